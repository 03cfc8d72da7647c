//! bf16 as the whole library rounds it: to nearest, ties to even, denormals flushed to zero with their sign.
//!
//! This is what `vcvtneps2bf16` does, and since `vdpbf16ps` reads a denormal as zero too, values rounded here
//! mean the same on every path.

/// The bf16 of `x`. A denormal input gives zero of its sign, NaN a quiet NaN.
#[inline]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let high = (bits >> 16) as u16;
    let odd = (bits >> 16) & 1;
    let nearest = (bits.wrapping_add(0x7fff + odd) >> 16) as u16;
    let normal = if bits & 0x7f80_0000 == 0 { high & 0x8000 } else { nearest };
    if x.is_nan() { high | 0x0040 } else { normal }
}

/// The f32 of a bf16, exactly.
#[inline]
pub fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// `x`, or zero of its sign if it is denormal.
#[inline]
pub fn flush(x: u16) -> u16 {
    if x & 0x7f80 == 0 { x & 0x8000 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_even() {
        for (x, want) in [
            (1.0, 0x3f80),
            (-2.5, 0xc020),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::MAX, 0x7f80),
            (f32::INFINITY, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
        ] {
            assert_eq!(round(x), want, "{x}");
        }
        assert!(widen(round(f32::NAN)).is_nan());
        assert!(widen(round(f32::from_bits(0xff80_0001))).is_nan());
    }

    #[test]
    fn flushes_denormals_with_their_sign() {
        assert_eq!(round(f32::from_bits(0x007f_ffff)), 0);
        assert_eq!(round(f32::from_bits(0x8000_0001)), 0x8000);
        assert_eq!(round(f32::MIN_POSITIVE), 0x0080);
        assert_eq!(flush(0x007f), 0);
        assert_eq!(flush(0x8001), 0x8000);
        assert_eq!(flush(0x0080), 0x0080);
        assert_eq!(flush(0xff80), 0xff80);
    }

    #[test]
    fn agrees_with_half_where_nothing_is_flushed() {
        for high in 0..=u16::MAX {
            let exact = widen(high);
            if exact.is_nan() || high & 0x7f80 == 0 {
                continue;
            }
            assert_eq!(round(exact), high);
            for low in [0x7fff, 0x8000, 0x8001] {
                let near = f32::from_bits(exact.to_bits() | low);
                if !near.is_nan() {
                    assert_eq!(round(near), half::bf16::from_f32(near).to_bits(), "{near}");
                }
            }
        }
    }
}
