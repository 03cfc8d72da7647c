//! Carries one stage's output to the next.
