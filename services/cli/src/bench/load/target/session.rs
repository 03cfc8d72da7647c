//! Turns of a gateway's sessions.

use asterism_proto::v1::sessions_client::SessionsClient;
use asterism_proto::v1::turn_event::Event;
use asterism_proto::v1::{
    AppendTurnRequest, CreateSessionRequest, DeleteSessionRequest, SessionSettings, Stopping,
};
use tonic::transport::Channel;

use super::grpc::{Gateway, broken_off, failed, message};
use super::{Failed, Listener, Message};

/// A gateway's sessions, over one of its connections.
pub struct Sessions<'a> {
    gateway: &'a Gateway,
    client: SessionsClient<Channel>,
}

impl<'a> Sessions<'a> {
    /// Those of a gateway.
    pub fn new(gateway: &'a Gateway, channel: Channel) -> Self {
        Self { gateway, client: SessionsClient::new(channel) }
    }

    /// Says something in a session, a new one unless it is named, and listens to the end. Making it counts.
    pub async fn ask(
        mut self,
        id: Option<String>,
        mut messages: Vec<Message>,
        stopping: Stopping,
        listener: &mut Listener<'_>,
    ) -> Result<(), Failed> {
        let session_id = match id {
            Some(id) => id,
            None => {
                let systems = messages.iter().take_while(|message| message.role == "system").count();
                let preamble = messages.drain(..systems).map(message).collect();
                self.create(preamble).await?
            }
        };
        listener.answer.session = Some(session_id.clone());
        let (sampling, priority) = self.gateway.manner();
        let request = AppendTurnRequest {
            session_id,
            messages: messages.into_iter().map(message).collect(),
            sampling: Some(sampling),
            stopping: Some(stopping),
            priority,
            ..AppendTurnRequest::default()
        };
        let stream = self.client.append_turn(self.gateway.labelled(request)).await;
        let mut stream = stream.map_err(failed)?.into_inner();
        while let Some(message) = stream.message().await.map_err(failed)? {
            match message.event {
                Some(Event::Delta(delta)) => listener.delta(delta),
                Some(Event::Finished(turn)) => {
                    listener.finished(&turn.finished.unwrap_or_default());
                    return Ok(());
                }
                Some(Event::Started(_)) | None => {}
            }
        }
        Err(broken_off())
    }

    async fn create(&mut self, preamble: Vec<asterism_proto::v1::Message>) -> Result<String, Failed> {
        let settings = Some(SessionSettings { preamble, ..SessionSettings::default() });
        let model = self.gateway.model().to_owned();
        let request = CreateSessionRequest { model, settings, ..CreateSessionRequest::default() };
        let created = self.client.create(self.gateway.labelled(request)).await.map_err(failed)?;
        Ok(created.into_inner().session_id)
    }

    /// Forgets a session. It is kept where that fails.
    pub async fn forget(mut self, session: &str) {
        let request =
            DeleteSessionRequest { session_id: session.to_owned(), ..DeleteSessionRequest::default() };
        drop(self.client.delete(self.gateway.labelled(request)).await);
    }
}
