//! Reaching a server, over TCP or within this process.

use std::io;
use std::net::SocketAddr;

use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

use crate::channel::{self, AddressError, Traffic};
use crate::inproc::{Registry, SCHEME};
use crate::listen;

/// How a server is reached. Nothing is connected yet.
#[derive(Clone, Debug)]
pub struct Dial {
    endpoint: Endpoint,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    /// As the system does it.
    Any,
    Near(Near),
}

/// A server on the same machine.
#[derive(Clone, Debug)]
enum Near {
    Loopback(SocketAddr),
    Inproc(Registry, String),
}

type Connection = TokioIo<Either<TcpStream, DuplexStream>>;

impl Dial {
    /// The way to `address`: `host:port`, with or without `http://` before it, or `inproc:NAME` of a server in `registry`.
    ///
    /// # Errors
    /// The address does not parse.
    pub fn new(address: &str, traffic: Traffic, registry: &Registry) -> Result<Self, AddressError> {
        let Some(name) = address.strip_prefix(SCHEME) else {
            let loopback = address.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback());
            let way = loopback.map_or(Way::Any, |address| Way::Near(Near::Loopback(address)));
            return Ok(Self { endpoint: channel::endpoint(address, traffic)?, way });
        };
        if name.is_empty() {
            let reason = "the name is missing".to_owned();
            return Err(AddressError { address: address.to_owned(), reason });
        }
        let endpoint = channel::settled(Endpoint::from_static("http://inproc"), traffic);
        Ok(Self { endpoint, way: Way::Near(Near::Inproc(registry.clone(), name.to_owned())) })
    }

    /// Connects now.
    ///
    /// # Errors
    /// Nobody answers there.
    pub async fn connect(self) -> Result<Channel, Error> {
        match self.way {
            Way::Any => self.endpoint.connect().await,
            Way::Near(near) => {
                let connector = service_fn(move |_: Uri| near.clone().connect());
                self.endpoint.connect_with_connector(connector).await
            }
        }
    }

    /// Connects when it is first used, and again whenever the connection was lost. Must be called within the runtime that the
    /// connection shall live in.
    pub fn lazy(self) -> Channel {
        match self.way {
            Way::Any => self.endpoint.connect_lazy(),
            Way::Near(near) => {
                let connector = service_fn(move |_: Uri| near.clone().connect());
                self.endpoint.connect_with_connector_lazy(connector)
            }
        }
    }
}

impl Near {
    async fn connect(self) -> io::Result<Connection> {
        let connection = match self {
            Self::Loopback(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                listen::do_not_pace(SockRef::from(&stream));
                Either::Left(stream)
            }
            Self::Inproc(registry, name) => Either::Right(registry.connect(&name).await?),
        };
        Ok(TokioIo::new(connection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_listens_where_nobody_does() {
        let registry = Registry::default();
        for address in ["inproc:a", "127.0.0.1:1", "http://127.0.0.1:1"] {
            let dial = Dial::new(address, Traffic::Internal, &registry).unwrap();
            assert!(dial.connect().await.is_err(), "{address}");
        }
    }

    #[test]
    fn wrong_addresses_are_named() {
        for address in ["inproc:", "127.0.0.1", "https://a:1"] {
            let error = Dial::new(address, Traffic::Internal, &Registry::default()).expect_err(address);
            assert!(error.to_string().contains(address), "{error}");
        }
    }
}
