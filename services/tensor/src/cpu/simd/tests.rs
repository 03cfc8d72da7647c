//! Every lane operation of every instruction set against the scalar specification, bit for bit.

use super::*;

/// Values at which lane operations differ if they ever do, then some ordinary ones.
fn values() -> Vec<f32> {
    let mut values = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::MIN_POSITIVE,
        -f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x807f_ffff),
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0x3f80_8000),
        f32::from_bits(0x3f81_8000),
        f32::from_bits(0xbf80_8001),
    ];
    let mut state = 1_u32;
    while values.len() < 400 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = f32::from_bits(state);
        values.push(if values.len().is_multiple_of(2) { value } else { (state >> 8) as f32 / 1e6 - 8.0 });
    }
    values
}

/// Bits of a number, all NaN being one.
fn bits(x: f32) -> u64 {
    if x.is_nan() { u64::MAX } else { u64::from(x.to_bits()) }
}

fn bits_f64(x: f64) -> u64 {
    if x.is_nan() { u64::MAX } else { x.to_bits() }
}

/// Applies all operations to sixteen lanes of each input.
struct All<'a> {
    a: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
}

impl Kernel for All<'_> {
    type Output = Vec<(&'static str, Vec<u64>)>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let n = self.a.len();
        let (a, b, c) = (s.load_f32(self.a, 0), s.load_f32(self.b, 0), s.load_f32(self.c, 0));
        let mut all = Vec::new();
        for (name, v) in [
            ("splat", s.splat(self.a[0])),
            ("load", a),
            ("add", s.add(a, b)),
            ("sub", s.sub(a, b)),
            ("mul", s.mul(a, b)),
            ("div", s.div(a, b)),
            ("fma", s.fma(a, b, c)),
            ("max", s.max(a, b)),
            ("where_less", s.where_less([a, b], c, a)),
            ("where_nan", s.where_nan(a, b, c)),
            ("first", s.first(n / 2, a, b)),
            ("first all", s.first(40, a, b)),
            ("scale", s.scale_by_bits(s.splat(1.25), s.add(s.splat(12_582_912.0), s.splat(n as f32 - 5.0)))),
            ("round", s.round_bf16(a)),
        ] {
            let mut lanes = [7.0; LANES + 1];
            s.store_f32(v, &mut lanes, 0);
            all.push((name, lanes.map(bits).to_vec()));
            let mut part = vec![7.0; n];
            s.store_f32(v, &mut part, 0);
            all.push((name, part.into_iter().map(bits).collect()));
            let mut halves = vec![bf16::ONE; n];
            s.store_bf16(v, &mut halves, 0);
            all.push((name, halves.iter().map(|x| u64::from(x.to_bits())).collect()));
            all.push((name, {
                let mut lanes = [0.0; LANES];
                s.store_f32(s.load_bf16(&halves, 0), &mut lanes, 0);
                lanes.map(bits).to_vec()
            }));
        }
        all.push((
            "masks",
            vec![s.greater(a, b), s.nan(a), s.finite(a)].into_iter().map(u64::from).collect(),
        ));
        let sum = s.where_nan(a, b, a);
        all.push(("reduce", vec![bits(s.reduce_add(sum)), bits(s.reduce_max(s.splat(self.b[0])))]));
        for (name, v) in [
            ("load_f64", s.load_f64(self.a, 0, -3.0)),
            ("add_f64", s.add_f64(s.load_f64(self.a, 0, 1.0), s.load_f64(self.b, 0, 2.0))),
            ("sub_f64", s.sub_f64(s.load_f64(self.a, 0, 1.0), s.load_f64(self.b, 0, 2.0))),
            ("div_f64", s.div_f64(s.load_f64(self.a, 0, 1.0), s.load_f64(self.b, 0, 2.0))),
            (
                "fma_f64",
                s.fma_f64(s.load_f64(self.a, 0, 1.0), s.load_f64(self.b, 0, 2.0), s.load_f64(self.c, 0, 3.0)),
            ),
            (
                "where_less_f64",
                s.where_less_f64(
                    [s.load_f64(self.a, 0, 1.0), s.load_f64(self.b, 0, 2.0)],
                    s.load_f64(self.c, 0, 3.0),
                    s.splat_f64(4.0),
                ),
            ),
            (
                "scale_f64",
                s.scale_by_bits_f64(
                    s.splat_f64(1.25),
                    s.add_f64(s.splat_f64(6_755_399_441_055_744.0), s.splat_f64(n as f64 - 5.0)),
                ),
            ),
        ] {
            all.push((name, s.to_array_f64(v).map(bits_f64).to_vec()));
        }
        all
    }
}

/// Sixteen pairs against two factors.
struct Dot<'a>(&'a [f32]);

impl Kernel for Dot<'_> {
    type Output = Vec<u64>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u64> {
        let pairs: Vec<bf16> = self.0[..32].iter().map(|&x| bf16::from_f32(x)).collect();
        let [x, y] = [32, 33].map(|i| bf16::from_f32(self.0[i]).to_f32());
        // SAFETY: 32 bf16 are 64 bytes.
        let pairs = unsafe { s.load_pairs(pairs.as_ptr()) };
        let v = s.dot(s.load_f32(&self.0[34..50], 0), &s.pair(x, y), pairs);
        let mut all = Vec::new();
        let mut stored = [bf16::ZERO; 2 * LANES];
        s.store_pairs(s.lower(pairs), s.upper(pairs), &mut stored);
        all.extend(stored.map(|x| u64::from(x.to_bits())));
        for v in [v, s.upper(pairs), s.lower(pairs)] {
            let mut lanes = [0.0; LANES];
            s.store_f32(v, &mut lanes, 0);
            all.extend(lanes.map(bits));
        }
        all
    }
}

#[test]
fn every_lane_operation_equals_the_scalar_one() {
    let values = values();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for start in 0..values.len() - 60 {
            let n = 1 + start % LANES;
            let (a, b) = (&values[start..start + n], &values[start + 17..start + 17 + n]);
            let c = &values[start + 40..start + 40 + n];
            let want = dispatch(Isa::Scalar, All { a, b, c });
            let got = dispatch(isa, All { a, b, c });
            for (got, want) in got.into_iter().zip(want) {
                assert_eq!(got, want, "{} {a:?} {b:?} {c:?}", isa.name());
            }
        }
    }
}

#[test]
fn dot_adds_the_upper_product_first() {
    let ordinary: Vec<f32> = values().into_iter().filter(|x| x.abs() < 100.0 && x.abs() > 1e-6).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for start in 0..ordinary.len() - 50 {
            let values = &ordinary[start..start + 50];
            assert_eq!(dispatch(isa, Dot(values)), dispatch(Isa::Scalar, Dot(values)), "{}", isa.name());
        }
    }
}
