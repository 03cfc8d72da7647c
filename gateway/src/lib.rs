//! The door and the brain: text, sampling, scheduling, driving pipelines.
