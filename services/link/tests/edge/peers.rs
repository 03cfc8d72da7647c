//! Two ends of an edge over a real socket, or through memory.

use std::sync::{Arc, Mutex};

use asterism_link::{Acceptor, CreditStream, Edge, LinkKind, Peer, Receiver, Sender};
use asterism_process::channel::{self, FRAME_MESSAGE_LIMIT, Traffic};
use asterism_process::dial::Dial;
use asterism_process::inproc::Registry;
use asterism_process::listen::{self, Listener};
use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::shard_server::{Shard, ShardServer};
use asterism_proto::shard::v1::{
    ActivationsRequest, DescribeRequest, DescribeResponse, DrainRequest, DrainResponse, FetchLogitsRequest,
    FetchLogitsResponse, Holder, JoinRequest, JoinResponse, RunRequest, RunResponse, activations_request,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

pub const CREDITS: u32 = 3;
pub const LARGEST: u64 = (16 << 20) + 5;

/// What a connection goes through.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    Sockets,
    Memory,
}

impl Transport {
    /// Somewhere to listen, and how it is reached.
    async fn listen(self) -> (Listener, Peer) {
        let registry = Registry::default();
        let listener = match self {
            Self::Sockets => listen::bind(listen::loopback(0)).await.expect("a free port").0.into(),
            Self::Memory => Listener::from(registry.listen("peer").expect("a free name")),
        };
        let address = listener.address().expect("it listens").to_string();
        (listener, Peer { address, registry })
    }
}

/// A peer elsewhere.
pub fn peer(address: &str) -> Peer {
    Peer { address: address.to_owned(), registry: Registry::default() }
}

/// The edge of an epoch, as either end knows it.
pub fn edge(epoch: u64) -> Edge {
    let holder = Holder { epoch, driver_id: "driver".to_owned() };
    Edge { holder, credits: CREDITS, largest: LARGEST, cancel: CancellationToken::new() }
}

/// An open edge.
pub struct Peers {
    pub sender: Sender,
    pub receiver: Receiver,
    pub send_cancel: CancellationToken,
    pub receive_cancel: CancellationToken,
    _server: Server,
}

impl Peers {
    pub async fn joined((kind, transport): (LinkKind, Transport)) -> Self {
        match kind {
            LinkKind::Grpc => {
                let server = Server::start(transport).await;
                let edge = edge(7);
                let send_cancel = edge.cancel.clone();
                let sender = kind.open(&server.peer, edge, super::DEADLINE).await.expect("the edge opens");
                let receive_cancel = server.cancel.clone();
                Self { sender, receiver: server.receiver(), send_cancel, receive_cancel, _server: server }
            }
        }
    }
}

/// A server that takes one edge, of epoch 7.
pub struct Server {
    pub peer: Peer,
    cancel: CancellationToken,
    receiver: Mutex<Option<Receiver>>,
    _stop: DropGuard,
}

impl Server {
    pub async fn start(transport: Transport) -> Self {
        let edge = edge(7);
        let cancel = edge.cancel.clone();
        let (acceptor, receiver) = LinkKind::Grpc.accept(edge);
        let (listener, peer) = transport.listen().await;
        let service = ShardServer::new(OneEdge { acceptor: Arc::new(Mutex::new(Some(acceptor))) })
            .max_decoding_message_size(FRAME_MESSAGE_LIMIT);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = channel::server(Traffic::Internal).add_service(service);
        tokio::spawn(channel::serve(server, listener, stopped));
        let receiver = Mutex::new(Some(receiver));
        Self { peer, cancel, receiver, _stop: stop.drop_guard() }
    }

    pub fn receiver(&self) -> Receiver {
        self.receiver.lock().expect("not poisoned").take().expect("taken once")
    }
}

/// Somewhere that takes connections and says nothing.
pub async fn silent(transport: Transport) -> (Listener, Peer) {
    transport.listen().await
}

/// Sends raw messages, and returns the status that ends the call.
pub async fn call(peer: &Peer, messages: Vec<ActivationsRequest>) -> Status {
    let dial = Dial::new(&peer.address, Traffic::Internal, &peer.registry).expect("an address");
    let connection = dial.connect().await;
    let mut client = ShardClient::new(connection.expect("a server"));
    let messages = futures::StreamExt::chain(tokio_stream::iter(messages), tokio_stream::pending());
    let mut answers = match client.activations(messages).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status,
    };
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the call ended without an error"),
            Err(status) => return status,
        }
    }
}

struct OneEdge {
    acceptor: Arc<Mutex<Option<Acceptor>>>,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this server has an edge only"))
}

#[tonic::async_trait]
impl Shard for OneEdge {
    type RunStream = tokio_stream::Pending<Result<RunResponse, Status>>;
    type ActivationsStream = CreditStream;

    async fn activations(
        &self,
        request: Request<Streaming<ActivationsRequest>>,
    ) -> Result<Response<CreditStream>, Status> {
        let mut messages = request.into_inner();
        let opening = messages.message().await?.and_then(|message| message.message);
        match opening {
            Some(activations_request::Message::Open(holder)) if holder == edge(7).holder => {}
            other => {
                return Err(Status::failed_precondition(format!("opened with {other:?}").replace(": ", " ")));
            }
        }
        let acceptor = self.acceptor.lock().expect("not poisoned").take();
        let Acceptor::Grpc(acceptor) = acceptor.ok_or_else(|| Status::failed_precondition("taken"))?;
        Ok(Response::new(acceptor.serve(messages)))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        not_here()
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        not_here()
    }

    async fn run(&self, _: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        not_here()
    }

    async fn fetch_logits(
        &self,
        _: Request<FetchLogitsRequest>,
    ) -> Result<Response<FetchLogitsResponse>, Status> {
        not_here()
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        not_here()
    }
}
