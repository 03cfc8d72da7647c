//! Where numbers stand in a plot, and which of them are written beside it.

/// How numbers are spread over an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Evenly.
    Linear,
    /// By their logarithms.
    Logarithmic,
    /// Shares by their nines: 90 %, 99 %, 99.9 % stand evenly.
    Nines,
    /// Evenly, and only whole numbers are written.
    Whole,
}

/// One axis of a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is told, with its unit.
    pub label: &'static str,
    /// How.
    pub spread: Spread,
    /// The first number.
    pub from: f64,
    /// The last.
    pub to: f64,
}

impl Axis {
    /// From 0 to at least `most`, ending at a round number.
    pub fn linear(label: &'static str, most: f64) -> Self {
        let most = if most > 0.0 && most.is_finite() { most } else { 1.0 };
        let step = round_step(most);
        Self { label, spread: Spread::Linear, from: 0.0, to: (most / step).ceil() * step }
    }

    /// From 0 to exactly `most`.
    pub fn time(label: &'static str, most: f64) -> Self {
        Self { label, spread: Spread::Linear, from: 0.0, to: most.max(1e-3) }
    }

    /// The numbers from 1 to `count`, with room at both ends.
    pub fn ordinals(label: &'static str, count: usize) -> Self {
        Self { label, spread: Spread::Whole, from: 0.5, to: count as f64 + 0.5 }
    }

    /// Over all of `least` to `most`: by logarithms if they are far apart, else from 0.
    pub fn magnitudes(label: &'static str, least: f64, most: f64) -> Self {
        /// More than this between them, and the small ones could not be told apart.
        const FAR: f64 = 30.0;
        if least <= 0.0 || most / least < FAR {
            return Self::linear(label, most);
        }
        let bound = |value: f64, towards: fn(f64) -> f64| {
            let power = 10f64.powf(value.log10().floor());
            // Both ends at 1, 2 or 5 times a power of ten would do; halves of decades are near enough.
            towards(value / power) * power
        };
        Self {
            label,
            spread: Spread::Logarithmic,
            from: bound(least, f64::floor),
            to: bound(most, f64::ceil),
        }
    }

    /// Shares of `count` things, from none to the last nine that they can show.
    pub fn nines(label: &'static str, count: u64) -> Self {
        let most = (1.0 - 1.0 / count.max(10) as f64).min(0.9999);
        Self { label, spread: Spread::Nines, from: 0.0, to: most }
    }

    /// Where a number stands, from 0 to 1; outside if it is outside.
    pub fn place(&self, value: f64) -> f64 {
        let [value, from, to] = [value, self.from, self.to].map(|value| match self.spread {
            Spread::Linear | Spread::Whole => value,
            Spread::Logarithmic => value.max(f64::MIN_POSITIVE).log10(),
            Spread::Nines => -(1.0 - value).max(1e-9).log10(),
        });
        if to > from { (value - from) / (to - from) } else { 0.0 }
    }

    /// The numbers that are written, with their texts.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match self.spread {
            Spread::Linear => {
                let step = round_step(self.to - self.from);
                let steps = ((self.to - self.from) / step + 1e-9).floor() as u32;
                (0..=steps)
                    .map(|index| self.from + f64::from(index) * step)
                    .map(|at| (at, number(at)))
                    .collect()
            }
            Spread::Logarithmic => {
                let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
                let wide = (self.to / self.from).log10() > 2.5;
                let factors: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let all =
                    decades.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
                all.filter(|at| (self.from * 0.999..=self.to * 1.001).contains(at))
                    .map(|at| (at, number(at)))
                    .collect()
            }
            Spread::Whole => {
                let step = round_step(self.to - self.from).ceil();
                let later = (1..).map(|index| f64::from(index) * step).filter(|&at| at > 1.0);
                let all = std::iter::once(1.0).chain(later.take_while(|&at| at <= self.to));
                all.map(|at| (at, number(at))).collect()
            }
            Spread::Nines => {
                let all = [0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999];
                let shown = all.into_iter().filter(|&share| share <= self.to + 1e-9);
                shown.map(|share| (share, number(share * 100.0))).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, four to ten of which make `span`.
fn round_step(span: f64) -> f64 {
    let rough = (span / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

/// A number as short as it can be read: `1,200`, `0.05`, `2.5`.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    grouped(text)
}

/// With a comma between thousands.
fn grouped(text: &str) -> String {
    let end = text.find('.').unwrap_or(text.len());
    let (whole, fraction) = text.split_at(end);
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn round_numbers_are_written() {
        assert_eq!(texts(&Axis::linear("", 37.0)), ["0", "10", "20", "30", "40"]);
        assert_eq!(texts(&Axis::linear("", 0.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(texts(&Axis::time("", 2500.0)), ["0", "500", "1,000", "1,500", "2,000", "2,500"]);
        assert_eq!(texts(&Axis::magnitudes("", 1.4, 90.0)), ["1", "2", "5", "10", "20", "50"]);
        assert_eq!(texts(&Axis::magnitudes("", 0.3, 12_000.0)), ["1", "10", "100", "1,000", "10,000"]);
        assert_eq!(texts(&Axis::nines("", 500)), ["0", "50", "75", "90", "95", "99"]);
        assert_eq!(texts(&Axis::ordinals("", 4)), ["1", "2", "3", "4"]);
        assert_eq!(texts(&Axis::ordinals("", 20)), ["1", "5", "10", "15", "20"]);
    }

    #[test]
    fn near_numbers_begin_at_zero() {
        assert_eq!(Axis::magnitudes("", 10.0, 42.0), Axis::linear("", 42.0));
    }

    #[test]
    fn places_are_even_in_their_spread() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        near(Axis::linear("", 40.0).place(10.0), 0.25);
        near(Axis { from: 1.0, to: 100.0, ..Axis::magnitudes("", 1.0, 100.0) }.place(10.0), 0.5);
        near(Axis { to: 0.99, ..Axis::nines("", 100) }.place(0.9), 0.5);
        assert!(Axis::linear("", 40.0).place(80.0) > 1.0);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.05, "0.05"),
            (0.96588, "0.966"),
            (2.5, "2.5"),
            (12.345, "12.35"),
            (999.6, "1,000"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
