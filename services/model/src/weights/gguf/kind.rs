//! The element types of GGUF tensors, and what they stand for as f32.

use half::{bf16, f16};

/// Weights that share a scale.
const BLOCK: usize = 32;

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    /// A block: scale d (f16), 32 × i8 q; w = d·q.
    Q8_0,
    /// A block: scale d (f16), 32 × 4 bits q; w = d·(q − 8). Byte j holds q of weight j (low half) and j + 16 (high half).
    Q4_0,
    /// A block: scale d and minimum m (f16), 32 × 4 bits q as in Q4_0; w = d·q + m.
    Q4_1,
}

impl Kind {
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Bytes of a row of `columns` weights, if there can be one.
    pub fn bytes(self, columns: usize) -> Option<usize> {
        let (weights, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4_0 => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
        };
        if columns.is_multiple_of(weights) { (columns / weights).checked_mul(bytes) } else { None }
    }

    /// The weights of one row; `bytes` is the whole row.
    pub fn row(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Self::Q8_0 => bytes
                .as_chunks::<34>()
                .0
                .iter()
                .flat_map(|&[d0, d1, ref q @ ..]| {
                    let d = half(d0, d1);
                    let q: &[u8; BLOCK] = q;
                    q.map(|q| d * f32::from(q.cast_signed()))
                })
                .collect(),
            Self::Q4_0 => bytes
                .as_chunks::<18>()
                .0
                .iter()
                .flat_map(|&[d0, d1, ref q @ ..]| {
                    let d = half(d0, d1);
                    halves(q).map(|q| d * (f32::from(q) - 8.0))
                })
                .collect(),
            Self::Q4_1 => bytes
                .as_chunks::<20>()
                .0
                .iter()
                .flat_map(|&[d0, d1, m0, m1, ref q @ ..]| {
                    let (d, m) = (half(d0, d1), half(m0, m1));
                    halves(q).map(|q| d * f32::from(q) + m)
                })
                .collect(),
        }
    }
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

fn halves(bytes: &[u8; BLOCK / 2]) -> [u8; BLOCK] {
    std::array::from_fn(|j| if j < BLOCK / 2 { bytes[j] & 15 } else { bytes[j - BLOCK / 2] >> 4 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_for_the_weights_they_were_made_of() {
        let d = f16::from_f32(0.5).to_le_bytes();
        let m = f16::from_f32(-3.0).to_le_bytes();

        let mut q8 = d.to_vec();
        q8.extend((0..32i8).map(|q| (q - 16).cast_unsigned()));
        let expected: Vec<f32> = (0..32i8).map(|q| f32::from(q - 16) * 0.5).collect();
        assert_eq!(Kind::Q8_0.row(&q8), expected);

        let nibbles: Vec<u8> = (0..16u8).map(|j| j | (15 - j) << 4).collect();
        let q: Vec<f32> = (0..16u8).chain((0..16).rev()).map(f32::from).collect();
        let q4_0 = [&d[..], &nibbles].concat();
        assert_eq!(Kind::Q4_0.row(&q4_0), q.iter().map(|q| 0.5 * (q - 8.0)).collect::<Vec<_>>());
        let q4_1 = [&d[..], &m, &nibbles].concat();
        assert_eq!(Kind::Q4_1.row(&q4_1), q.iter().map(|q| 0.5 * q - 3.0).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_of_blocks_has_whole_blocks() {
        assert_eq!(Kind::Q4_1.bytes(64), Some(40));
        assert_eq!(Kind::Q4_1.bytes(48), None);
        assert_eq!(Kind::Bf16.bytes(3), Some(6));
    }
}
