//! Plain Rust lanes: the specification of every lane operation, and the path of processors without vectors.

use half::bf16;

use super::{LANES, Pair, Simd};
use crate::cpu::bf16::{round, widen};

/// No instruction set in particular.
#[derive(Clone, Copy)]
pub struct Scalar;

type Lanes = [f32; LANES];
type Lanes64 = [f64; LANES];

#[inline(always)]
fn map(v: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    v.map(f)
}

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn zip64(a: Lanes64, b: Lanes64, f: impl Fn(f64, f64) -> f64) -> Lanes64 {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn bits(v: Lanes, f: impl Fn(f32) -> bool) -> u16 {
    (0..LANES).fold(0, |mask, i| mask | u16::from(f(v[i])) << i)
}

impl Simd for Scalar {
    type F32 = Lanes;
    type F64 = Lanes64;
    type Pairs = [u32; LANES];

    const ROWS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn where_less(self, [a, b]: [Lanes; 2], x: Lanes, y: Lanes) -> Lanes {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn where_nan(self, a: Lanes, x: Lanes, y: Lanes) -> Lanes {
        std::array::from_fn(|i| if a[i].is_nan() { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn first(self, n: usize, v: Lanes, fill: Lanes) -> Lanes {
        std::array::from_fn(|i| if i < n { v[i] } else { fill[i] })
    }

    #[inline(always)]
    fn scale_by_bits(self, p: Lanes, t: Lanes) -> Lanes {
        zip(p, t, |p, t| f32::from_bits(p.to_bits().wrapping_add(t.to_bits() << 23)))
    }

    #[inline(always)]
    fn greater(self, a: Lanes, b: Lanes) -> u16 {
        (0..LANES).fold(0, |mask, i| mask | u16::from(a[i] > b[i]) << i)
    }

    #[inline(always)]
    fn nan(self, v: Lanes) -> u16 {
        bits(v, f32::is_nan)
    }

    #[inline(always)]
    fn finite(self, v: Lanes) -> u16 {
        bits(v, f32::is_finite)
    }

    #[inline(always)]
    fn reduce_max(self, v: Lanes) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
    }

    #[inline(always)]
    fn reduce_add(self, v: Lanes) -> f32 {
        let v8: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let v4: [f32; 4] = std::array::from_fn(|i| v8[i] + v8[i + 4]);
        (v4[0] + v4[2]) + (v4[1] + v4[3])
    }

    #[inline(always)]
    fn load_f32(self, x: &[f32], at: usize) -> Lanes {
        std::array::from_fn(|i| x.get(at + i).copied().unwrap_or(0.0))
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16], at: usize) -> Lanes {
        std::array::from_fn(|i| x.get(at + i).map_or(0.0, |x| widen(x.to_bits())))
    }

    #[inline(always)]
    fn store_f32(self, v: Lanes, x: &mut [f32], at: usize) {
        for (to, v) in x[at..].iter_mut().zip(v) {
            *to = v;
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: Lanes, x: &mut [bf16], at: usize) {
        for (to, v) in x[at..].iter_mut().zip(v) {
            *to = bf16::from_bits(round(v));
        }
    }

    #[inline(always)]
    fn round_bf16(self, v: Lanes) -> Lanes {
        map(v, |x| widen(round(x)))
    }

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const bf16) -> [u32; LANES] {
        // SAFETY: readable for 64 bytes by the caller's promise.
        unsafe { from.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Lanes {
        // SAFETY: readable for 64 bytes by the caller's promise.
        unsafe { from.cast::<Lanes>().read_unaligned() }
    }

    #[inline(always)]
    fn store_pairs(self, upper: Lanes, lower: Lanes, to: &mut [bf16; 2 * LANES]) {
        for (i, pair) in to.chunks_exact_mut(2).enumerate() {
            let [lower, upper] = [lower[i], upper[i]].map(|x| bf16::from_bits((x.to_bits() >> 16) as u16));
            pair.copy_from_slice(&[lower, upper]);
        }
    }

    #[inline(always)]
    fn upper(self, pairs: [u32; LANES]) -> Lanes {
        pairs.map(|pair| f32::from_bits(pair & 0xffff_0000))
    }

    #[inline(always)]
    fn lower(self, pairs: [u32; LANES]) -> Lanes {
        pairs.map(|pair| f32::from_bits(pair << 16))
    }

    #[inline(always)]
    fn pair(self, upper: f32, lower: f32) -> Pair {
        [upper, lower]
    }

    #[inline(always)]
    fn dot(self, acc: Lanes, x: &Pair, pairs: [u32; LANES]) -> Lanes {
        let acc = self.fma(self.splat(x[0]), self.upper(pairs), acc);
        self.fma(self.splat(x[1]), self.lower(pairs), acc)
    }

    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}

    #[inline(always)]
    fn load_f64(self, x: &[f32], at: usize, fill: f64) -> Lanes64 {
        std::array::from_fn(|i| x.get(at + i).map_or(fill, |&x| f64::from(x)))
    }

    #[inline(always)]
    fn splat_f64(self, x: f64) -> Lanes64 {
        [x; LANES]
    }

    #[inline(always)]
    fn to_array_f64(self, v: Lanes64) -> [f64; LANES] {
        v
    }

    #[inline(always)]
    fn add_f64(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        zip64(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub_f64(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        zip64(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn div_f64(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        zip64(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma_f64(self, a: Lanes64, b: Lanes64, c: Lanes64) -> Lanes64 {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn where_less_f64(self, [a, b]: [Lanes64; 2], x: Lanes64, y: Lanes64) -> Lanes64 {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn scale_by_bits_f64(self, p: Lanes64, t: Lanes64) -> Lanes64 {
        zip64(p, t, |p, t| f64::from_bits(p.to_bits().wrapping_add(t.to_bits() << 52)))
    }
}
