//! A checkpoint becomes a stage: spec, weights, layers, KV blocks.
