//! Which multiplications have a plan of their own, and for how many rows.

use crate::{Compute, Dtype};

/// Numbers of rows that have plans, up to [`LADDER_END`]: decode batches.
const LADDER: [usize; 15] = [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128];

/// Where the ladder ends and multiples begin.
const LADDER_END: usize = 128;

/// Up to here rows are rounded up to multiples of 64, beyond to multiples of 128: at most a fifth is padding.
const FINE_END: usize = 512;

/// The most rows of a recorded step.
const RECORDED_ROWS: usize = LADDER_END;

/// Rows of its output that a plan is verified on.
pub const VERIFIED_ROWS: usize = 64;

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanKey {
    /// Rows that it computes, a bucket.
    pub rows: usize,
    /// Output size N.
    pub outputs: usize,
    /// Input size K.
    pub inputs: usize,
    /// The type of weights and activations.
    pub compute: Compute,
    /// The type of the outputs.
    pub out: Dtype,
    /// Whether a bias is added.
    pub bias: bool,
}

/// The rows that are computed where `rows` are wanted: the least bucket that holds them.
pub fn bucket(rows: usize) -> usize {
    match LADDER.iter().find(|bucket| **bucket >= rows) {
        Some(bucket) => *bucket,
        None if rows <= FINE_END => rows.next_multiple_of(64),
        None => rows.next_multiple_of(LADDER_END),
    }
}

/// All buckets that up to `most` rows fall into, ascending.
pub fn buckets(most: usize) -> Vec<usize> {
    let mut all = Vec::new();
    let mut next = 1;
    while next <= bucket(most) {
        all.push(next);
        next = bucket(next + 1);
    }
    all
}

/// How far apart the rows of an output are on which a plan is verified: odd, so that they fall on different places of
/// its tiles.
pub fn stride(rows: usize) -> usize {
    let fit = rows / VERIFIED_ROWS.min(rows).max(1);
    if fit.is_multiple_of(2) { fit.saturating_sub(1).max(1) } else { fit }
}

impl PlanKey {
    /// Whether cuBLASLt is asked at all: types that it multiplies without rounding between, and rows in whole 16-byte
    /// chunks.
    pub fn suits_library(&self) -> bool {
        let chunk = 16 / self.compute.dtype().bytes();
        let types = matches!(
            (self.compute, self.out),
            (Compute::Bf16, Dtype::Bf16 | Dtype::F32) | (Compute::F32, Dtype::F32)
        );
        types && self.inputs > 0 && self.inputs.is_multiple_of(chunk) && self.outputs.is_multiple_of(8)
    }

    /// Whether it may be part of a recorded step, which other kernels run before and after.
    pub fn is_recorded(&self) -> bool {
        self.rows <= RECORDED_ROWS
    }

    /// Whether our own kernel takes over where no plan of cuBLASLt has its bits: few rows, where it is fast enough, and
    /// f32.
    pub fn suits_own(&self) -> bool {
        self.compute == Compute::F32 || self.rows <= VERIFIED_ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_rows_and_wastes_little() {
        for rows in 1..5_000 {
            let bucket = bucket(rows);
            assert!(bucket >= rows && super::bucket(bucket) == bucket, "{rows}: {bucket}");
            let waste = bucket - rows;
            assert!(waste < 128 && (rows <= 16 || waste * 2 <= rows), "{rows}: {bucket}");
        }
    }

    #[test]
    fn tensors_have_memory_for_the_buckets_of_all_their_rows() {
        for rows in 1..5_000 {
            assert!(bucket(rows) <= crate::Device::padded_rows(rows), "{rows}");
        }
    }

    #[test]
    fn buckets_are_all_that_rows_fall_into() {
        for most in [1, 2, 3, 63, 64, 65, 128, 129, 500, 512, 513, 2_048, 2_049] {
            let mut reached: Vec<_> = (1..=most).map(bucket).collect();
            reached.dedup();
            assert_eq!(buckets(most), reached, "up to {most}");
        }
        assert_eq!(buckets(2_048).len(), 15 + 6 + 12);
    }

    #[test]
    fn verified_rows_lie_within_and_at_odd_distance() {
        for rows in buckets(8_192) {
            let (stride, count) = (stride(rows), rows.min(VERIFIED_ROWS));
            assert!(stride % 2 == 1 && (count - 1) * stride < rows, "{rows}: {count} rows, {stride} apart");
        }
    }

    #[test]
    fn the_library_is_asked_for_whole_chunks_only() {
        let key =
            |inputs, outputs, compute, out| PlanKey { rows: 8, outputs, inputs, compute, out, bias: false };
        assert!(key(64, 32, Compute::Bf16, Dtype::Bf16).suits_library());
        assert!(key(64, 32, Compute::Bf16, Dtype::F32).suits_library());
        assert!(key(36, 32, Compute::F32, Dtype::F32).suits_library());
        assert!(!key(36, 32, Compute::Bf16, Dtype::Bf16).suits_library());
        assert!(!key(64, 31, Compute::Bf16, Dtype::Bf16).suits_library());
        assert!(!key(64, 32, Compute::F32, Dtype::Bf16).suits_library());
        assert!(!key(0, 32, Compute::F32, Dtype::F32).suits_library());
    }
}
