//! An edge over a long-lived gRPC stream, opened by the sending stage.

mod receive;
mod send;

pub(crate) use self::receive::accept;
pub use self::receive::{CreditStream, GrpcAcceptor, GrpcReceiver};
pub use self::send::GrpcSender;
pub(crate) use self::send::open;
