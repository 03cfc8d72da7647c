//! Seeded randomness that does not depend on the order of events: every draw is keyed by what it is for.

/// A generator: `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

/// The golden ratio's odd integer, as in the paper.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

impl Random {
    /// The generator of what `path` names under `seed`, as (conversation, turn, purpose).
    pub fn of(seed: u64, path: &[u64]) -> Self {
        Self(path.iter().fold(mix(seed.wrapping_add(GAMMA)), |state, part| {
            mix(state ^ mix(part.wrapping_add(GAMMA)).wrapping_add(GAMMA))
        }))
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// Uniform in [0, 1), of 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..`bound`; 0 if that is empty. The bias, at most `bound` in 2^64, does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// Exponential with mean 1, by the inverse of its distribution.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_generator() {
        // The reference implementation's first values from the state 1234567.
        let mut random = Random(1_234_567);
        let values: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        assert_eq!(values, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_key_alone_decides() {
        assert_eq!(Random::of(7, &[1, 2]).bits(), Random::of(7, &[1, 2]).bits());
        let others =
            [Random::of(8, &[1, 2]), Random::of(7, &[2, 1]), Random::of(7, &[1]), Random::of(7, &[])];
        for mut other in others {
            assert_ne!(other.bits(), Random::of(7, &[1, 2]).bits());
        }
    }

    #[test]
    fn moments_are_right() {
        const DRAWS: usize = 100_000;
        let mut random = Random::of(1, &[]);
        let moments = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / DRAWS as f64;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / DRAWS as f64;
            (mean, variance)
        };
        // Five standard errors or more.
        let near = |(mean, variance): (f64, f64), (m, v): (f64, f64)| {
            (mean - m).abs() < 0.02 && (variance - v).abs() < 0.06
        };
        let units: Vec<f64> = (0..DRAWS).map(|_| random.unit()).collect();
        assert!(near(moments(&units), (0.5, 1.0 / 12.0)));
        let exponentials: Vec<f64> = (0..DRAWS).map(|_| random.exponential()).collect();
        assert!(near(moments(&exponentials), (1.0, 1.0)));
        let normals: Vec<f64> = (0..DRAWS).map(|_| random.normal()).collect();
        assert!(near(moments(&normals), (0.0, 1.0)));
        assert!((0..DRAWS).all(|_| random.below(3) < 3));
    }
}
