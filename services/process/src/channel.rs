//! The one place for HTTP/2 settings, of clients and of servers.
//!
//! Windows are fixed. The adaptive mode is never used: it would start every stream at 64 KiB and override the sizes here.
//! Each side states its own receive window, so both a client and a server must be made here.

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpListener;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::transport::{Endpoint, Server};

use crate::listen::{self, Listener};

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// The largest message of a public service.
pub const PUBLIC_MESSAGE_LIMIT: usize = 8 << 20;
/// The largest message between a driver and a shard: a plan with cached ids, or a report with 1,024 candidates in each row.
pub const CONTROL_MESSAGE_LIMIT: usize = 32 << 20;
/// The most payload in one frame of activations.
pub const FRAME_PAYLOAD_LIMIT: usize = 8 << 20;
/// The largest message on an edge: a full frame with its header.
pub const FRAME_MESSAGE_LIMIT: usize = FRAME_PAYLOAD_LIMIT + 1024;
/// How long opening a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const HTTP2_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const HTTP2_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What a connection carries. An edge, the plans and the public each have connections of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Clients of a gateway.
    Public,
    /// A driver and its shards, and neighbouring shards.
    Internal,
}

struct Settings {
    stream_window: u32,
    connection_window: u32,
    max_frame: u32,
    max_streams: u32,
}

impl Traffic {
    fn settings(self) -> Settings {
        match self {
            Self::Public => Settings {
                stream_window: MIB,
                connection_window: 4 * MIB,
                max_frame: 16 * KIB,
                max_streams: 1024,
            },
            // The stream window holds more than two full frames, so that one can travel while another is read.
            Self::Internal => Settings {
                stream_window: 32 * MIB,
                connection_window: 64 * MIB,
                max_frame: MIB,
                max_streams: 64,
            },
        }
    }
}

/// An address that cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is no address: {reason}")]
pub struct AddressError {
    /// As given.
    pub address: String,
    /// What is wrong with it.
    pub reason: String,
}

/// How a client reaches `address`: `host:port`, with or without `http://` before it. Connects when asked to.
///
/// # Errors
/// The address does not parse.
pub fn endpoint(address: &str, traffic: Traffic) -> Result<Endpoint, AddressError> {
    let wrong = |reason: String| AddressError { address: address.to_owned(), reason };
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| wrong(error.to_string()))?;
    match endpoint.uri().scheme_str() {
        Some("http") => {}
        _ => return Err(wrong("only http:// is served".to_owned())),
    }
    if endpoint.uri().port_u16().is_none() {
        return Err(wrong("the port is missing".to_owned()));
    }
    Ok(settled(endpoint, traffic))
}

/// The same endpoint with the settings of its traffic.
pub(crate) fn settled(endpoint: Endpoint, traffic: Traffic) -> Endpoint {
    let settings = traffic.settings();
    endpoint
        .initial_stream_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(TCP_KEEP_ALIVE))
        .http2_keep_alive_interval(HTTP2_KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(HTTP2_KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_timeout(CONNECT_TIMEOUT)
}

/// A server's builder.
pub fn server(traffic: Traffic) -> Server {
    let settings = traffic.settings();
    Server::builder()
        .initial_stream_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_concurrent_streams(settings.max_streams)
        .http2_keepalive_interval(Some(HTTP2_KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(HTTP2_KEEP_ALIVE_TIMEOUT))
}

/// Serves what a listener accepts, until `shutdown`; then lets open calls end.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    router: Router,
    listener: Listener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    match listener {
        Listener::Tcp(listener) => router.serve_with_incoming_shutdown(incoming(listener), shutdown).await,
        Listener::Inproc(listener) => router.serve_with_incoming_shutdown(listener, shutdown).await,
    }
}

/// The connections that a listener accepts, with their socket options set.
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    if listener.local_addr().is_ok_and(|address| address.ip().is_loopback()) {
        // What is accepted has the listener's.
        listen::do_not_pace(SockRef::from(&listener));
    }
    TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(TCP_KEEP_ALIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_with_and_without_a_scheme() {
        for address in ["127.0.0.1:7070", "http://shard-0.shards:7070", "[::1]:7070"] {
            endpoint(address, Traffic::Internal).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn wrong_addresses_are_named() {
        for address in ["", "127.0.0.1", "https://a:1", "a b:1", "http://:7070 "] {
            let error = endpoint(address, Traffic::Public).expect_err(address).to_string();
            assert!(error.contains(address), "{error}");
        }
    }
}
