//! Keys that were stored with another rope table than the reading row has.
//!
//! A key k turned by angle a (cos c, sin s) is read turned by a′ (c′, s′): by the difference
//! cos = (c′c + s′s) / (c² + s²), sin = (s′c − c′s) / (c² + s²), in f32 and not rounded again.
#![allow(unsafe_code, reason = "reads keys through pointers")]

use super::TILE_BLOCKS;
use crate::RopeTables;
use crate::cpu::element::Element;
use crate::cpu::isa::Isa;
use crate::cpu::simd::{Kernel, LANES, Simd};

/// A tile's keys, and what to turn each block's by.
#[derive(Clone, Copy)]
pub struct Turn<'a, E> {
    /// Cos and sin.
    pub tables: &'a RopeTables,
    /// The tile's first block within its sequence.
    pub first_block: usize,
    /// The keys as they are stored, `[half]` pairs of elements of 16 keys for each block.
    pub keys: [&'a [E]; TILE_BLOCKS],
    /// The table that each block was stored with.
    pub from: [u16; TILE_BLOCKS],
    /// The reading row's table.
    pub to: u16,
    /// Half of head_dim.
    pub half: usize,
}

struct Block<'a, E> {
    turn: Turn<'a, E>,
    index: usize,
    to: &'a mut [f32],
}

impl<E: Element> Turn<'_, E> {
    /// The tile's keys as f32 in the table `to`; they lie in `turned`.
    pub fn run(self, isa: Isa, turned: &mut Vec<f32>) -> [&[f32]; TILE_BLOCKS] {
        let elements = 2 * self.half * LANES;
        turned.resize(TILE_BLOCKS * elements, 0.0);
        for (index, to) in turned.chunks_exact_mut(elements).enumerate() {
            E::dispatch(isa, Block { turn: self, index, to });
        }
        std::array::from_fn(|index| &turned[index * elements..][..elements])
    }
}

impl<E: Element> Kernel for Block<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn { tables, first_block, keys, from, to: table, half } = self.turn;
        let (keys, from) = (keys[self.index], from[self.index]);
        let (old, new) = (tables.in_groups(from), tables.in_groups(table));
        assert!(keys.len() >= half * 2 * LANES);
        for j in 0..half {
            // SAFETY: `half` pairs of 16 keys, by the assertion.
            let mut pair = E::split_keys(s, unsafe { E::load_keys(s, keys.as_ptr().add(j * 2 * LANES)) });
            // A block beyond the sequence's last repeats it and may be beyond the tables: it is masked anyway.
            let at = ((first_block + self.index) * half + j) * LANES;
            if from != table && at < old.cos.len().min(new.cos.len()) {
                let (cos, sin) = (s.load_f32(&old.cos, at), s.load_f32(&old.sin, at));
                let (new_cos, new_sin) = (s.load_f32(&new.cos, at), s.load_f32(&new.sin, at));
                let norm = s.splat(old.inverse_norm);
                let by_cos = s.mul(s.add(s.mul(new_cos, cos), s.mul(new_sin, sin)), norm);
                let by_sin = s.mul(s.sub(s.mul(new_sin, cos), s.mul(new_cos, sin)), norm);
                let [a, b] = pair;
                pair = [s.sub(s.mul(a, by_cos), s.mul(b, by_sin)), s.add(s.mul(b, by_cos), s.mul(a, by_sin))];
            }
            s.store_f32(pair[0], self.to, 2 * j * LANES);
            s.store_f32(pair[1], self.to, (2 * j + 1) * LANES);
        }
    }
}
