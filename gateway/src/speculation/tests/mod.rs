mod control;
mod costs;
mod equality;
mod lookup;
mod traces;

use super::*;

fn price(tokens: f64) -> Price {
    Price::new(tokens)
}

fn offer(tokens: f64, most: u32) -> Offer {
    Offer { price: price(tokens), most }
}
