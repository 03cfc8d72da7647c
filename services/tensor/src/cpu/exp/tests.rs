use super::*;
use crate::cpu::isa::Isa;
use crate::cpu::simd::{Kernel, LANES, dispatch};

struct Exp<'a>(&'a [f32]);

impl Kernel for Exp<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = vec![0.0; self.0.len()];
        for at in (0..out.len()).step_by(LANES) {
            let y = exp(s, s.load_f32(self.0, at));
            s.store_f32(y, &mut out, at);
        }
        out
    }
}

struct ExpF64<'a>(&'a [f32]);

impl Kernel for ExpF64<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f64> {
        let mut out = Vec::new();
        for at in (0..self.0.len()).step_by(LANES) {
            out.extend(s.to_array_f64(exp_f64(s, s.load_f64(self.0, at, 0.0))));
        }
        out.truncate(self.0.len());
        out
    }
}

/// From −110 to 110, densely, and never the same lanes.
fn arguments() -> Vec<f32> {
    (0..400_003).map(|i| (i as f32 - 200_001.5) * 5.5e-4 + (i % 7) as f32 * 1e-5).collect()
}

#[test]
fn exp_is_within_one_unit_of_the_last_place() {
    let x = arguments();
    for (&x, y) in x.iter().zip(dispatch(Isa::detect(), Exp(&x))) {
        let want = f64::from(x).exp();
        match x {
            x if x < LOW => assert_eq!(y.to_bits(), 0, "{x}"),
            x if x > HIGH => assert_eq!(y, f32::INFINITY, "{x}"),
            _ => {
                let unit = f64::from(f32::from_bits(y.to_bits() + 1) - y);
                assert!((f64::from(y) - want).abs() < unit, "{x}: {y} for {want}");
            }
        }
    }
}

#[test]
fn exp_has_the_same_bits_on_every_path() {
    let mut x = arguments();
    x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, LOW, HIGH, f32::MIN_POSITIVE]);
    x.extend([f32::MAX, f32::MIN, 88.721, -87.331]);
    let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let want = bits(dispatch(Isa::Scalar, Exp(&x)));
    let below: Vec<f32> = x.iter().copied().filter(|x| *x <= 0.0).map(|x| x * 8.0).collect();
    let want_f64 = dispatch(Isa::Scalar, ExpF64(&below));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        assert_eq!(bits(dispatch(isa, Exp(&x))), want, "{}", isa.name());
        assert_eq!(dispatch(isa, ExpF64(&below)), want_f64, "{}", isa.name());
    }
}

#[test]
fn exp_meets_its_ends_exactly() {
    let x = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let y = dispatch(Isa::detect(), Exp(&x));
    assert_eq!((y[0], y[1], y[3], y[4]), (1.0, 1.0, f32::INFINITY, 0.0));
    assert!(y[2].is_nan());
}

#[test]
fn exp_f64_is_accurate() {
    let x: Vec<f32> = (0..100_000).map(|i| i as f32 * -7.1e-3).collect();
    for (&x, y) in x.iter().zip(dispatch(Isa::detect(), ExpF64(&x))) {
        let want = f64::from(x).exp();
        if f64::from(x) < LOW_F64 {
            assert_eq!(y, 0.0, "{x}");
        } else {
            assert!((y - want).abs() <= want * 4.5e-16, "{x}: {y} for {want}");
        }
    }
}
