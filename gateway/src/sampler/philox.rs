//! Philox4x32-10, a counter generator: the same number from the same (seed, choice, position), whatever was
//! drawn before.
//!
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Ten rounds over `counter` with `key`; word 0 is the least significant of each.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut x0, mut x1, mut x2, mut x3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..ROUNDS {
        let (high0, low0) = wide_product(MULTIPLIERS[0], x0);
        let (high1, low1) = wide_product(MULTIPLIERS[1], x2);
        [x0, x1, x2, x3] = [high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0];
        k0 = k0.wrapping_add(KEY_STEPS[0]);
        k1 = k1.wrapping_add(KEY_STEPS[1]);
    }
    [x0, x1, x2, x3]
}

/// (high, low) word of the product.
fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// The uniform number in [0, 1) that draws the token at `position`: the top 53 bits of the generator's first
/// two words.
///
/// The key is the seed, low word first; the counter is the choice index, then the position, low word first.
pub fn uniform(seed: u64, choice: u32, position: u64) -> f64 {
    let words = |x: u64| [x as u32, (x >> 32) as u32];
    let ([low, high], key) = (words(position), words(seed));
    let [first, second, ..] = philox4x32_10([choice, low, high, 0], key);
    let bits = (u64::from(second) << 32 | u64::from(first)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 publishes for philox4x32 with ten rounds.
    #[test]
    fn published_known_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn a_uniform_is_the_top_53_bits() {
        // From the first known answer: (0xe169c58d6627e8d5 >> 11) / 2^53.
        assert_eq!(uniform(0, 0, 0), 0xe169_c58d_6627_e8d5_u64.wrapping_shr(11) as f64 / 2f64.powi(53));
    }

    #[test]
    fn uniforms_are_below_one_and_evenly_spread() {
        let mut tenths = [0; 10];
        for position in 0..100_000 {
            let u = uniform(7, 0, position);
            assert!((0.0..1.0).contains(&u));
            tenths[(u * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (9_600..10_400).contains(n)), "{tenths:?}");
    }

    #[test]
    fn seed_choice_and_position_each_count() {
        let all =
            [uniform(1, 0, 5), uniform(2, 0, 5), uniform(1 << 32, 0, 5), uniform(1, 1, 5), uniform(1, 5, 0)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
