//! Calls to a gateway's sessions, made again while the gateway is away.

use std::error::Error as _;
use std::time::Duration;

use asterism_gateway::tenants::TENANT_HEADER;
use asterism_process::channel::{self, Traffic};
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_proto::v1::sessions_client::SessionsClient;
use asterism_proto::v1::{GetSessionRequest, ListModelsRequest, ListSessionsRequest, Session};
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::ChatError;
use super::error::innermost;

/// For so long a gateway may be away before an answer is given up; it goes on without its reader.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts, at first and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// So many of the newest conversations have a number.
pub const LISTED: u32 = 50;

/// A gateway that keeps conversations.
#[derive(Clone, Debug)]
pub struct Gateway {
    sessions: SessionsClient<Channel>,
    tenant: Option<MetadataValue<Ascii>>,
    /// Where it listens.
    pub address: String,
    /// What it serves.
    pub model: String,
}

impl Gateway {
    /// Connects, and asks for the model.
    ///
    /// # Errors
    /// Nobody answers there, or without a model.
    pub async fn dial(address: &str, tenant: Option<&str>) -> Result<Self, ChatError> {
        let tenant = match tenant {
            Some(name) => Some(name.parse().map_err(|_| ChatError::Tenant(name.to_owned()))?),
            None => None,
        };
        let dialled = channel::endpoint(address, Traffic::Public)?.connect().await;
        let channel =
            dialled.map_err(|error| ChatError::Unreachable(address.to_owned(), innermost(&error)))?;
        let mut inference = InferenceClient::new(channel.clone());
        let models = inference.list_models(ListModelsRequest {}).await?.into_inner().models;
        let model = models.into_iter().next().ok_or_else(|| ChatError::NoModel(address.to_owned()))?.name;
        Ok(Self { sessions: SessionsClient::new(channel), tenant, address: address.to_owned(), model })
    }

    /// Makes a call once.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn once<M, T>(
        &self,
        message: M,
        call: impl AsyncFnOnce(&mut SessionsClient<Channel>, Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, ChatError> {
        Ok(call(&mut self.sessions.clone(), self.request(message)).await?.into_inner())
    }

    /// Makes a call that may be made several times, until the gateway is there and takes it; says what it waits for.
    ///
    /// # Errors
    /// The gateway refuses it, or stays away.
    pub async fn insist<M: Clone, T>(
        &self,
        message: &M,
        call: impl AsyncFn(&mut SessionsClient<Channel>, Request<M>) -> Result<Response<T>, Status>,
        mut waits_for: impl FnMut(&Status) -> std::io::Result<()>,
    ) -> Result<T, ChatError> {
        let until = Instant::now() + PATIENCE;
        let mut pause = SHORTEST_PAUSE;
        loop {
            let status = match call(&mut self.sessions.clone(), self.request(message.clone())).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if !is_passing(&status) || Instant::now() + pause > until {
                return Err(status.into());
            }
            waits_for(&status)?;
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// The newest conversations.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn list(&self) -> Result<Vec<Session>, ChatError> {
        let request = ListSessionsRequest { page_size: Some(LISTED), page_token: String::new() };
        let page = self.once(request, async |sessions, request| sessions.list(request).await).await?;
        Ok(page.sessions)
    }

    /// The conversation of this number in the list, or of it whose id begins like this, or any of this whole id.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub async fn find(&self, name: &str) -> Result<Session, ChatError> {
        const ID_DIGITS: usize = 32;
        if name.len() == ID_DIGITS {
            let request = GetSessionRequest { session_id: name.to_owned() };
            return self.once(request, async |sessions, request| sessions.get(request).await).await;
        }
        pick(&self.list().await?, name)
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(tenant) = &self.tenant {
            request.metadata_mut().insert(TENANT_HEADER, tenant.clone());
        }
        request
    }
}

/// Whether trying again may help: a gateway that is starting, or a connection that broke.
pub fn is_passing(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

fn pick(sessions: &[Session], name: &str) -> Result<Session, ChatError> {
    // Ids have 32 digits; a number of the list has two.
    if let Some(number) = name.parse::<usize>().ok().filter(|_| name.len() <= 2) {
        let found = number.checked_sub(1).and_then(|index| sessions.get(index)).cloned();
        return found.ok_or_else(|| ChatError::NoSuch(name.to_owned(), sessions.len()));
    }
    let mut found = sessions.iter().filter(|session| session.session_id.starts_with(name));
    match (found.next(), found.next()) {
        (Some(session), None) => Ok(session.clone()),
        (None, _) => Err(ChatError::NoSuch(name.to_owned(), sessions.len())),
        (Some(_), Some(_)) => Err(ChatError::Several(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_have_numbers_and_the_beginnings_of_ids() {
        let session = |id: &str| Session { session_id: id.to_owned(), ..Session::default() };
        let sessions = [session("0193aa"), session("0193ab"), session("02")];
        let picked = |name| pick(&sessions, name).map(|session| session.session_id).ok();
        assert_eq!(picked("1").as_deref(), Some("0193aa"));
        assert_eq!(picked("3").as_deref(), Some("02"));
        assert_eq!(picked("0193ab").as_deref(), Some("0193ab"));
        assert!(matches!(pick(&sessions, "0193a"), Err(ChatError::Several(_))));
        for none in ["0", "4", "0194"] {
            assert!(matches!(pick(&sessions, none), Err(ChatError::NoSuch(_, 3))), "{none}");
        }
    }
}
