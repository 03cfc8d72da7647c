//! Binding a socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;

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
