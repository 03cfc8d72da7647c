//! Rotary position embedding: the tables of cosines and sines, and which of them a row uses.
//!
//! Dynamic NTK as TeleChat-52B has it: a sequence of rope length L rotates with θ·α(L), α(L) = max(2^(⌈log2(L / base)⌉ + 1) − 1, 1).
//! α is integer arithmetic here. An α has an id, 0, 1, 2, … for 1, 3, 7, …, and one table each.

use crate::spec::Rope;

/// The id of the α of a sequence of rope length `length`: 0 up to the base length, one more for each doubling.
pub fn alpha_id(rope: &Rope, length: usize) -> usize {
    length.div_ceil(rope.base_length).max(1).next_power_of_two().trailing_zeros() as usize
}

/// The α of an id.
pub fn alpha(id: usize) -> u64 {
    (2u64 << id) - 1
}

/// The rope length of the row at `position` of a sequence whose prompt has `prompt_len` tokens: a prompt uses the α of its
/// final length, each token after it that of its own length.
pub fn rope_length(position: usize, prompt_len: usize) -> usize {
    prompt_len.max(position + 1)
}

/// Rows of the table of an α: no row of a longer sequence uses it.
pub fn table_rows(rope: &Rope, id: usize, max_context: usize) -> usize {
    rope.base_length.saturating_mul(1 << id).min(max_context)
}

/// Inverse frequencies (θ·α)^(−2j/d), j = 0 … d/2 − 1: computed in f64, rounded once.
pub fn inverse_frequencies(rope: &Rope, head_dim: usize, id: usize) -> Vec<f32> {
    let theta = rope.theta * alpha(id) as f64;
    (0..head_dim / 2).map(|j| libm::pow(theta, -((2 * j) as f64) / head_dim as f64) as f32).collect()
}

/// Cosines and sines `[rows, head_dim / 2]` of an α. The angle is an f32 product, as in the reference; its cosine and sine are
/// computed in f64 and rounded once. (`libm` is pure Rust, so every machine makes the same table.)
pub fn cos_sin(rope: &Rope, head_dim: usize, id: usize, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let frequencies = inverse_frequencies(rope, head_dim, id);
    let mut cos = Vec::with_capacity(rows * frequencies.len());
    let mut sin = Vec::with_capacity(rows * frequencies.len());
    for position in 0..rows {
        for frequency in &frequencies {
            let (s, c) = libm::sincos(f64::from(position as f32 * frequency));
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
    (cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROPE: Rope = Rope { theta: 10_000.0, base_length: 4096 };

    #[test]
    fn alpha_doubles_past_each_multiple() {
        let alphas: Vec<u64> = [1, 4096, 4097, 8192, 8193, 16384, 16385, 32768, 32769]
            .map(|length| alpha(alpha_id(&ROPE, length)))
            .to_vec();
        assert_eq!(alphas, [1, 1, 3, 3, 7, 7, 15, 15, 31]);
    }

    #[test]
    fn alpha_equals_the_formula_in_floats() {
        for length in (1..70_000).step_by(13) {
            let exponent = (length as f64 / 4096.0).log2() + 1.0;
            let expected = (exponent.ceil().exp2() - 1.0).max(1.0);
            assert_eq!(alpha(alpha_id(&ROPE, length)) as f64, expected, "length {length}");
        }
    }

    #[test]
    fn a_table_covers_the_rows_that_use_it() {
        assert_eq!(table_rows(&ROPE, 0, 32_768), 4096);
        assert_eq!(table_rows(&ROPE, 1, 32_768), 8192);
        assert_eq!(table_rows(&ROPE, 1, 5000), 5000);
    }

    #[test]
    fn angles_are_those_of_the_base() {
        let frequencies = inverse_frequencies(&ROPE, 4, 0);
        assert_eq!(frequencies, [1.0, 0.01]);
        let (cos, sin) = cos_sin(&ROPE, 4, 0, 3);
        assert_eq!((cos.len(), sin.len()), (6, 6));
        assert_eq!((cos[0], sin[0]), (1.0, 0.0));
        assert_eq!((cos[4], sin[4]), (2f64.cos() as f32, 2f64.sin() as f32));
        assert_eq!(sin[5], f64::from(2.0 * 0.01f32).sin() as f32);
    }

    #[test]
    fn a_row_uses_its_prompts_length_then_its_own() {
        assert_eq!(rope_length(0, 17), 17);
        assert_eq!(rope_length(16, 17), 17);
        assert_eq!(rope_length(17, 17), 18);
    }
}
