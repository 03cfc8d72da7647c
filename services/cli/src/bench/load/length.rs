//! How long prompts and answers are, in tokens.

use std::fmt;
use std::str::FromStr;

use super::random::Random;

/// Longer than any context; a load of such prompts is a mistake.
const MOST: u32 = 1 << 20;

/// A distribution of lengths, none below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Always the same.
    Fixed(u32),
    /// Every length from `least` to `most`, both included, equally often.
    Uniform {
        /// The shortest.
        least: u32,
        /// The longest.
        most: u32,
    },
    /// The logarithm is normal: most are near the median, few are very long.
    LogNormal {
        /// Half are shorter.
        median: f64,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
        /// What is longer is cut to this.
        most: u32,
    },
}

/// A text that describes no lengths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no length: {reason} (write 128, uniform:64,256 or lognormal:MEDIAN,SIGMA[,MOST])")]
pub struct LengthError {
    text: String,
    reason: String,
}

impl Length {
    /// One length.
    pub fn draw(&self, random: &mut Random) -> u32 {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform { least, most } => {
                let above = random.below(u64::from(most - least) + 1);
                least + u32::try_from(above).unwrap_or(0)
            }
            Self::LogNormal { median, sigma, most } => {
                let tokens = (median * (sigma * random.normal()).exp()).round();
                // A float that is too large becomes the largest integer.
                (tokens as u32).clamp(1, most)
            }
        }
    }
}

impl FromStr for Length {
    type Err = LengthError;

    fn from_str(text: &str) -> Result<Self, LengthError> {
        read(text.trim()).map_err(|reason| LengthError { text: text.to_owned(), reason })
    }
}

fn read(text: &str) -> Result<Length, String> {
    let (kind, rest) = text.split_once(':').unwrap_or(("fixed", text));
    let numbers: Vec<&str> = rest.split(',').map(str::trim).collect();
    match (kind, numbers.as_slice()) {
        ("fixed", &[length]) => Ok(Length::Fixed(tokens(length)?)),
        ("uniform", &[least, most]) => {
            let (least, most) = (tokens(least)?, tokens(most)?);
            if least > most {
                return Err(format!("{least} is more than {most}"));
            }
            Ok(Length::Uniform { least, most })
        }
        ("lognormal", &[median, sigma]) => log_normal(median, sigma, MOST),
        ("lognormal", &[median, sigma, most]) => log_normal(median, sigma, tokens(most)?),
        ("fixed", _) => Err("one number is wanted".to_owned()),
        ("uniform", _) => Err("two numbers are wanted".to_owned()),
        ("lognormal", _) => Err("two or three numbers are wanted".to_owned()),
        _ => Err(format!("{kind:?} is no distribution")),
    }
}

fn tokens(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(tokens @ 1..=MOST) => Ok(tokens),
        _ => Err(format!("{text:?} is no number of tokens from 1 to {MOST}")),
    }
}

fn log_normal(median: &str, sigma: &str, most: u32) -> Result<Length, String> {
    let median = match median.parse::<f64>() {
        Ok(median) if (1.0..=f64::from(most)).contains(&median) => median,
        _ => return Err(format!("the median {median:?} is not in [1, {most}]")),
    };
    match sigma.parse::<f64>() {
        Ok(sigma) if (0.0..=10.0).contains(&sigma) => Ok(Length::LogNormal { median, sigma, most }),
        _ => Err(format!("sigma {sigma:?} is not in [0, 10]")),
    }
}

impl fmt::Display for Length {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform { least, most } => write!(f, "uniform:{least},{most}"),
            Self::LogNormal { median, sigma, most: MOST } => write!(f, "lognormal:{median},{sigma}"),
            Self::LogNormal { median, sigma, most } => write!(f, "lognormal:{median},{sigma},{most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(text: &str) -> Vec<u32> {
        let length: Length = text.parse().unwrap_or_else(|error| panic!("{error}"));
        let mut random = Random::of(3, &[]);
        let mut draws: Vec<u32> = (0..20_001).map(|_| length.draw(&mut random)).collect();
        draws.sort_unstable();
        draws
    }

    #[test]
    fn a_fixed_length_is_fixed() {
        assert!(draws("128").iter().all(|&tokens| tokens == 128));
        assert_eq!(draws("fixed:7")[0], 7);
    }

    #[test]
    fn a_uniform_length_has_every_value_equally_often() {
        let draws = draws("uniform:10,19");
        for tokens in 10..=19 {
            let count = draws.iter().filter(|&&drawn| drawn == tokens).count();
            // 2,000 expected; the standard deviation is 42.
            assert!((1_750..2_250).contains(&count), "{tokens}: {count}");
        }
        assert_eq!((draws[0], draws[20_000]), (10, 19));
    }

    #[test]
    fn a_lognormal_length_has_its_quantiles() {
        let draws = draws("lognormal:200,0.8");
        // Φ(1) = 0.8413: the quantile is median · e^sigma.
        for (quantile, expected) in
            [(0.5, 200.0), (0.8413, 200.0 * 0.8f64.exp()), (0.1587, 200.0 * (-0.8f64).exp())]
        {
            let drawn = f64::from(draws[(quantile * 20_000.0) as usize]);
            assert!((drawn / expected - 1.0).abs() < 0.05, "{quantile}: {drawn}, not {expected}");
        }
    }

    #[test]
    fn a_cut_is_kept_and_no_length_is_zero() {
        let draws = draws("lognormal:2,3,50");
        assert_eq!((draws[0], draws[20_000]), (1, 50));
    }

    #[test]
    fn lengths_print_as_they_are_read() {
        for text in ["128", "uniform:64,256", "lognormal:200,0.8", "lognormal:200.5,0,1000"] {
            assert_eq!(text.parse::<Length>().map(|length| length.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (text, named) in [
            ("", "no number of tokens"),
            ("0", "\"0\""),
            ("-5", "\"-5\""),
            ("1,2", "one number"),
            ("uniform:5", "two numbers"),
            ("uniform:9,3", "9 is more than 3"),
            ("lognormal:100", "two or three"),
            ("lognormal:0.5,1", "median"),
            ("lognormal:100,nan", "sigma"),
            ("lognormal:100,1,50", "median"),
            ("zipf:3", "zipf"),
            ("99999999", "no number of tokens"),
        ] {
            let error = text.parse::<Length>().expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
