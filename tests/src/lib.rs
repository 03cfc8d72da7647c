//! What the whole-system tests share: the golden data, and clusters of real services over real sockets.

pub mod answer;
pub mod cluster;
pub mod golden;
