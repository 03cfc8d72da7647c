//! Keys that were stored with another rope table than the reading row has.
//!
//! A key k turned by angle a (cos c, sin s) is read turned by a′ (c′, s′): by the difference
//! cos = (c′c + s′s) / (c² + s²), sin = (s′c − c′s) / (c² + s²), in f32 and not rounded again.

use super::TILE_BLOCKS;
use crate::RopeTables;
use crate::cpu::element::Element;
use crate::cpu::simd::{LANES, Simd};

/// What to turn the keys of a tile's blocks by.
pub struct Turn<'a> {
    /// Cos and sin.
    pub tables: &'a RopeTables,
    /// The tile's first block within its sequence.
    pub first_block: usize,
    /// The table that each block was stored with.
    pub from: &'a [u16],
    /// The reading row's table.
    pub to: u16,
}

impl Turn<'_> {
    /// The tile's keys as f32 in `to`, and where its blocks are in there.
    ///
    /// # Safety
    /// `keys` must point to keys of `half` pairs.
    #[inline(always)]
    pub unsafe fn tile<S: Simd, E: Element>(
        &self,
        s: S,
        keys: [*const E; TILE_BLOCKS],
        half: usize,
        to: &mut Vec<f32>,
    ) -> [*const f32; TILE_BLOCKS] {
        let elements = 2 * half * LANES;
        to.resize(TILE_BLOCKS * elements, 0.0);
        for (i, (block, &from)) in to.chunks_exact_mut(elements).zip(self.from).enumerate() {
            let entries = (self.first_block + i) * half * LANES;
            for j in 0..half {
                // SAFETY: by the caller's promise.
                let [mut a, mut b] = unsafe { E::split_keys(s, E::load_keys(s, keys[i].add(j * 2 * LANES))) };
                if from != self.to {
                    let at = entries + j * LANES;
                    let (old, new) = (self.tables.in_groups(from), self.tables.in_groups(self.to));
                    let (c, sn) = (s.load_f32(&old.cos, at), s.load_f32(&old.sin, at));
                    let (to_c, to_sn) = (s.load_f32(&new.cos, at), s.load_f32(&new.sin, at));
                    let norm = s.splat(old.inverse_norm);
                    let cos = s.mul(s.add(s.mul(to_c, c), s.mul(to_sn, sn)), norm);
                    let sin = s.mul(s.sub(s.mul(to_sn, c), s.mul(to_c, sn)), norm);
                    (a, b) = (s.sub(s.mul(a, cos), s.mul(b, sin)), s.add(s.mul(b, cos), s.mul(a, sin)));
                }
                s.store_f32(a, block, 2 * j * LANES);
                s.store_f32(b, block, (2 * j + 1) * LANES);
            }
        }
        let last = self.from.len().max(1) - 1;
        std::array::from_fn(|i| to[i.min(last) * elements..].as_ptr())
    }
}
