//! Connections within one process: servers by name, whose connections are streams of bytes through memory.
//!
//! Whoever shall find each other share a [`Registry`]; there is no global one. What goes over such a connection is the same as
//! over a socket, and it ends the same way: either end that is dropped ends it for the other. What must not even take that way
//! has a [door](RunDoor) beside it.

mod door;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

pub use door::{PlanIntake, RunCall, RunDoor};

/// What an address of a server in this process begins with.
pub const SCHEME: &str = "inproc:";
/// The most bytes that wait in a connection, each way: evidence of a step and a frame's piece of activations fit.
const BUFFER: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: usize = 16;

/// The servers of a process that find each other by name. Clones are the same registry.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    servers: Arc<Mutex<Servers>>,
}

type Servers = HashMap<String, Server>;

#[derive(Debug)]
struct Server {
    connections: mpsc::Sender<DuplexStream>,
    run_door: Option<Arc<dyn RunDoor>>,
}

/// A server's end: the connections that it accepts. Dropping it frees its name.
#[derive(Debug)]
pub struct Listener {
    name: String,
    registry: Registry,
    accepted: mpsc::Receiver<DuplexStream>,
}

// === impl Registry ===

impl Registry {
    /// Listens under a name.
    ///
    /// # Errors
    /// `AddrInUse`: another server has it.
    pub fn listen(&self, name: impl Into<String>) -> io::Result<Listener> {
        let name = name.into();
        match self.servers().entry(name.clone()) {
            Entry::Occupied(taken) => {
                let taken = taken.key();
                Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{SCHEME}{taken} is taken")))
            }
            Entry::Vacant(free) => {
                let (connections, accepted) = mpsc::channel(BACKLOG);
                free.insert(Server { connections, run_door: None });
                Ok(Listener { name, registry: self.clone(), accepted })
            }
        }
    }

    /// Connects to the server of this name, as soon as it has room for another connection.
    ///
    /// # Errors
    /// `ConnectionRefused`: there is none, or it ends.
    pub async fn connect(&self, name: &str) -> io::Result<DuplexStream> {
        let refused =
            || io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on {SCHEME}{name}"));
        let connections = self.servers().get(name).map(|server| server.connections.clone());
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        connections.ok_or_else(refused)?.send(theirs).await.map_err(|_| refused())?;
        Ok(ours)
    }

    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Listener ===

impl Listener {
    /// How clients of the same registry reach it.
    pub fn address(&self) -> String {
        format!("{SCHEME}{}", self.name)
    }

    /// Where it is registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Stream for Listener {
    type Item = io::Result<DuplexStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accepted.poll_recv(context).map(|accepted| accepted.map(Ok))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _server = self.registry.servers().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_name_is_its_listeners_as_long_as_it_lives() {
        let registry = Registry::default();
        let mut listener = registry.listen("a").unwrap();
        assert_eq!(listener.address(), "inproc:a");
        assert_eq!(registry.listen("a").unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let mut ours = registry.clone().connect("a").await.unwrap();
        let mut theirs = listener.next().await.unwrap().unwrap();
        drop(listener);
        let refused = registry.connect("a").await.unwrap_err();
        assert_eq!(refused.to_string(), "nobody listens on inproc:a");
        registry.listen("a").unwrap();
        // What is connected stays so.
        ours.write_all(b"hello").await.unwrap();
        drop(ours);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"hello");
    }

    #[tokio::test]
    async fn registries_are_apart() {
        let _listener = Registry::default().listen("a").unwrap();
        assert_eq!(
            Registry::default().connect("a").await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
