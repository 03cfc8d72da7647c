//! The binary `asterism`.

fn main() {}
