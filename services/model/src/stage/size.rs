//! What a stage may take of a device's memory.

use asterism_tensor::{BLOCK_ROWS, Device};

use super::StageOptions;
use crate::ModelError;
use crate::spec::DecoderSpec;
use crate::split::Sizing;

/// Without a memory budget the CPU's pool holds so many longest sequences …
const DEFAULT_SEQUENCES: usize = 4;
/// … but not more tokens than this, unless one sequence is longer.
const DEFAULT_TOKENS: usize = 32_768;
/// Planners keep a few bytes for each block, so their number has a bound.
const MOST_BLOCKS: usize = 1 << 22;
/// Percent of a card's free memory that its stages take by default. The rest is for recorded steps and the libraries' own.
const CARD_SHARE: u64 = 95;

/// Memory of each of `stages` stages that share a card with `free` bytes, where nothing else is asked for.
pub fn default_memory(free: u64, stages: u64) -> u64 {
    free / 100 * CARD_SHARE / stages.max(1)
}

/// The memory that the options name, or else a card's default.
pub(super) fn memory(device: &Device, options: &StageOptions) -> Result<Option<u64>, ModelError> {
    if options.memory.is_some() {
        return Ok(options.memory);
    }
    Ok(device.memory()?.map(|(free, _)| default_memory(free, 1)))
}

/// Blocks that fit beside the weights as loaded.
pub(super) fn kv_blocks(
    spec: &DecoderSpec,
    sizing: &Sizing,
    options: &StageOptions,
    (memory, weight_bytes): (Option<u64>, u64),
) -> Result<usize, ModelError> {
    let Some(memory) = memory else {
        let tokens = DEFAULT_SEQUENCES.saturating_mul(options.max_context).min(DEFAULT_TOKENS);
        return Ok(tokens.max(options.max_context).div_ceil(BLOCK_ROWS));
    };
    let buffers = sizing.buffer_bytes(spec, &options.layers);
    let least_kv = sizing.block_bytes(spec, options.layers.len());
    let blocks = memory.saturating_sub(weight_bytes.saturating_add(buffers)) / least_kv.max(1);
    if blocks == 0 {
        let layers = options.layers.clone();
        return Err(ModelError::DoesNotFit {
            layers,
            weights: weight_bytes,
            buffers,
            least_kv,
            memory,
            enough: None,
        });
    }
    Ok(usize::try_from(blocks).unwrap_or(MOST_BLOCKS).min(MOST_BLOCKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_share_what_a_card_has_free() {
        assert_eq!(default_memory(1_000_000, 1), 950_000);
        assert_eq!(default_memory(1_000_000, 4), 237_500);
        assert_eq!(default_memory(1_000_000, 0), 950_000);
        assert!(default_memory(u64::MAX, 1) < u64::MAX);
    }
}
