//! One suite for every kind of link: what an edge promises, whichever way its bytes go.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod peers;

use std::time::Duration;

use asterism_link::{LinkError, LinkKind, StepBytes};
use peers::{CREDITS, Peers, Transport, edge};

/// Longer than any test takes; no test waits for it to pass.
const DEADLINE: Duration = Duration::from_secs(60);

/// How an edge may carry its bytes, and over what.
const WAYS: [(LinkKind, Transport); 2] =
    [(LinkKind::Grpc, Transport::Sockets), (LinkKind::Grpc, Transport::Memory)];

fn step(step: u64, len: usize) -> StepBytes {
    StepBytes { step, bytes: (0..len).map(|i| (i as u64 * 31 + step) as u8).collect() }
}

#[tokio::test]
async fn steps_arrive_whole_and_in_order() {
    for way in WAYS {
        let Peers { mut sender, mut receiver, .. } = Peers::joined(way).await;
        // One byte, one frame, one byte more than a frame, and the largest; more steps than there are credits.
        let sizes = [1, 8 << 20, (8 << 20) + 1, peers::LARGEST as usize, 3, 4, 5, 6];
        let sending = tokio::spawn(async move {
            for (index, len) in sizes.into_iter().enumerate() {
                sender.send(step(index as u64 * 2 + 1, len)).await.expect("the edge is open");
            }
            sender
        });
        for (index, len) in sizes.into_iter().enumerate() {
            let got = receiver.receive().await.expect("the edge is open");
            assert!(got == step(index as u64 * 2 + 1, len), "step {} of {len} bytes", index * 2 + 1);
            receiver.consumed();
        }
        sending.await.expect("the sender ends well");
    }
}

#[tokio::test]
async fn all_credits_can_be_used_before_anything_is_received() {
    for way in WAYS {
        let Peers { mut sender, mut receiver, .. } = Peers::joined(way).await;
        for n in 1..=u64::from(CREDITS) {
            sender.send(step(n, peers::LARGEST as usize)).await.expect("a credit is left");
        }
        // The next step has to wait for a credit; that is the only thing that it waits for.
        let more = sender.send(step(100, 9));
        tokio::pin!(more);
        assert!(futures::poll!(&mut more).is_pending(), "no credit is left");
        for n in 1..=u64::from(CREDITS) {
            assert_eq!(receiver.receive().await.expect("queued").step, n);
        }
        assert!(futures::poll!(&mut more).is_pending(), "received is not consumed");
        receiver.consumed();
        more.await.expect("a credit came back");
        assert!(receiver.receive().await.expect("sent") == step(100, 9));
    }
}

#[tokio::test]
async fn a_step_that_is_there_is_received_without_waiting() {
    for way in WAYS {
        let Peers { mut sender, mut receiver, .. } = Peers::joined(way).await;
        assert_eq!(receiver.try_receive(), None, "nothing was sent");
        sender.send(step(1, 5)).await.expect("the edge is open");
        sender.send(step(2, peers::LARGEST as usize)).await.expect("the edge is open");
        assert!(receiver.receive().await.expect("sent") == step(1, 5));
        let largest = loop {
            match receiver.try_receive() {
                Some(step) => break step,
                None => tokio::task::yield_now().await,
            }
        };
        assert!(largest == step(2, peers::LARGEST as usize));
        assert_eq!(receiver.try_receive(), None, "all was received");
    }
}

#[tokio::test]
async fn a_step_of_the_wrong_size_is_refused_before_it_is_sent() {
    for way in WAYS {
        let Peers { mut sender, mut receiver, .. } = Peers::joined(way).await;
        for len in [0, peers::LARGEST as usize + 1] {
            let error = sender.send(step(1, len)).await.expect_err("a wrong size");
            assert!(matches!(error, LinkError::StepSize { bytes, .. } if bytes == len), "{error}");
        }
        sender.send(step(1, 1)).await.expect("the edge is still good");
        assert!(receiver.receive().await.expect("open") == step(1, 1));
    }
}

#[tokio::test]
async fn a_sender_that_goes_away_ends_the_receivers_wait() {
    for way in WAYS {
        let Peers { sender, mut receiver, .. } = Peers::joined(way).await;
        drop(sender);
        let error = receiver.receive().await.expect_err("nothing comes any more");
        assert!(matches!(error, LinkError::Broken { .. }), "{error}");
        receiver.end().wait().await;
    }
}

#[tokio::test]
async fn a_receiver_that_goes_away_ends_the_senders_wait() {
    for way in WAYS {
        let Peers { mut sender, receiver, .. } = Peers::joined(way).await;
        for n in 1..=u64::from(CREDITS) {
            sender.send(step(n, 1)).await.expect("a credit is left");
        }
        drop(receiver);
        let error = sender.send(step(100, 1)).await.expect_err("no credit comes any more");
        assert!(matches!(error, LinkError::Broken { .. }), "{error}");
        sender.end().wait().await;
    }
}

#[tokio::test]
async fn cancelling_either_side_ends_both() {
    for way in WAYS {
        for side in ["sender", "receiver"] {
            let Peers { mut sender, mut receiver, send_cancel, receive_cancel, .. } =
                Peers::joined(way).await;
            for n in 1..=u64::from(CREDITS) {
                sender.send(step(n, 1)).await.expect("a credit is left");
                receiver.receive().await.expect("sent");
            }
            if side == "sender" {
                send_cancel.cancel()
            } else {
                receive_cancel.cancel()
            }
            let (sent, received) = tokio::join!(sender.send(step(100, 1)), receiver.receive());
            assert!(sent.is_err() && received.is_err(), "{side}: {sent:?} {received:?}");
            tokio::join!(sender.end().wait(), receiver.end().wait());
        }
    }
}

#[tokio::test]
async fn an_edge_opens_only_to_a_peer_that_is_there_and_agrees() {
    for way in WAYS {
        let (kind, transport) = way;
        let server = peers::Server::start(transport).await;
        let error = kind.open(&server.peer, edge(8), DEADLINE).await.expect_err("no such holder");
        assert!(matches!(&error, LinkError::Refused { reason, .. } if reason.contains("epoch 8")), "{error}");

        let (_listener, silent) = peers::silent(transport).await;
        let error = kind.open(&silent, edge(7), Duration::ZERO).await.expect_err("nobody answers");
        assert!(matches!(error, LinkError::NoAnswer { .. }), "{error}");
        let nowhere = peers::peer("nowhere");
        let error = kind.open(&nowhere, edge(7), DEADLINE).await.expect_err("no address");
        assert!(matches!(error, LinkError::Address(_)), "{error}");

        let cancelled = edge(7);
        cancelled.cancel.cancel();
        let error = kind.open(&silent, cancelled, DEADLINE).await.expect_err("this side gave up");
        assert!(matches!(error, LinkError::Cancelled), "{error}");
    }
}

/// The gRPC peer may be anyone who reaches the port: what it sends is held to the rules.
#[tokio::test]
async fn a_hostile_grpc_peer_ends_the_edge_with_a_typed_error() {
    use asterism_link::FrameError;
    use asterism_proto::shard::v1::{ActivationsRequest, Frame, activations_request::Message};

    let frame = |step, total_bytes| Frame { epoch: 7, step, total_bytes, offset: 0, payload: vec![1].into() };
    let too_many: Vec<_> =
        (1..=u64::from(CREDITS) + 1).map(|step| Some(Message::Frame(frame(step, 1)))).collect();
    let no_credit = u64::from(CREDITS) + 1;
    let cases = [
        (vec![None], FrameError::NotAFrame),
        (vec![Some(Message::Open(edge(7).holder))], FrameError::NotAFrame),
        (vec![Some(Message::Frame(frame(0, 1)))], FrameError::Order { found: 0, expected: 1 }),
        (
            vec![Some(Message::Frame(frame(1, u64::MAX)))],
            FrameError::Total { step: 1, total: u64::MAX, largest: peers::LARGEST },
        ),
        (too_many, FrameError::NoCredit { step: no_credit }),
    ];
    for (messages, expected) in cases {
        let server = peers::Server::start(Transport::Sockets).await;
        let opened = Some(Message::Open(edge(7).holder));
        let messages = [opened].into_iter().chain(messages).map(|message| ActivationsRequest { message });
        let status = peers::call(&server.peer, messages.collect()).await;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().contains(&expected.to_string()), "{status} is not {expected}");
        let mut receiver = server.receiver();
        let error = loop {
            if let Err(error) = receiver.receive().await {
                break error;
            }
        };
        assert!(matches!(&error, LinkError::Frame(found) if *found == expected), "{error}");
    }
}
