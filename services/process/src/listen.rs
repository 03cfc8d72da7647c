//! Where a server listens.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::TcpListener;

use crate::inproc::{self, Registry, RunDoor};

/// What a server accepts connections from.
#[derive(Debug)]
pub enum Listener {
    /// A socket.
    Tcp(TcpListener),
    /// A name within this process.
    Inproc(inproc::Listener),
}

/// Where a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket's.
    Tcp(SocketAddr),
    /// `inproc:NAME`, in the registry that it listens in.
    Inproc(String),
}

impl Listener {
    /// Where it is reached.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(listener) => Address::Tcp(listener.local_addr()?),
            Self::Inproc(listener) => Address::Inproc(listener.address()),
        })
    }

    /// Where a server finds its neighbours: those that listen as it does.
    pub fn registry(&self) -> Registry {
        match self {
            Self::Tcp(_) => Registry::default(),
            Self::Inproc(listener) => listener.registry().clone(),
        }
    }

    /// Lets drivers in by this door too, where it listens within this process.
    pub fn set_run_door(&self, door: Arc<dyn RunDoor>) {
        match self {
            Self::Tcp(_) => {}
            Self::Inproc(listener) => listener.set_run_door(door),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<inproc::Listener> for Listener {
    fn from(listener: inproc::Listener) -> Self {
        Self::Inproc(listener)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Inproc(address) => address.fmt(formatter),
        }
    }
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    /// As configured.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// The loopback address with a port; port 0 lets the system choose.
pub const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A listening socket and the address that it really has.
///
/// # Errors
/// The address is taken, foreign or forbidden.
pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let wrap = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(wrap)?;
    let bound = listener.local_addr().map_err(wrap)?;
    Ok((listener, bound))
}

/// Lets a socket of the loopback device send as fast as it can: congestion control that spreads packets over time, where the
/// system has that by default, would hold up a message for which somebody waits.
pub(crate) fn do_not_pace(socket: SockRef<'_>) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket.set_tcp_congestion(b"reno") {
        tracing::debug!(%error, "no choice of congestion control");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_zero_becomes_a_real_port_and_a_taken_one_is_named() {
        let (_held, address) = bind(loopback(0)).await.expect("a free port");
        assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
        let error = bind(address).await.expect_err("the port is taken").to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
