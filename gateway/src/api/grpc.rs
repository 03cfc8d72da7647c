//! `asterism.v1.Inference`: the gateway's own contract.

use std::pin::Pin;
use std::sync::Arc;

use asterism_proto::v1;
use asterism_proto::v1::inference_server::{Inference, InferenceServer};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::MAX_REQUEST_BYTES;
use crate::caller::Caller;
use crate::engine::{Engine, OpenEnd};

/// The service on an engine.
pub fn service(engine: Arc<Engine>) -> InferenceServer<impl Inference> {
    InferenceServer::new(Door { engine }).max_decoding_message_size(MAX_REQUEST_BYTES)
}

struct Door {
    engine: Arc<Engine>,
}

#[tonic::async_trait]
impl Inference for Door {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let caller = Caller::of_headers(request.metadata().as_ref());
        let answer = self.engine.generate(request.into_inner(), OpenEnd::Model, caller).await?;
        let responses = answer.map(|event| match event {
            Ok(event) => Ok(v1::GenerateResponse { event: Some(event) }),
            Err(failure) => Err(Status::from(failure)),
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        Ok(Response::new(self.engine.tokenize(request.into_inner()).await?))
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        Ok(Response::new(self.engine.detokenize(request.into_inner()).await?))
    }

    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        Ok(Response::new(v1::ListModelsResponse { models: vec![self.engine.model()] }))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let aborted = self.engine.abort(request.into_inner().request_id).await?;
        Ok(Response::new(v1::AbortResponse { aborted }))
    }

    async fn loads(&self, _: Request<v1::LoadsRequest>) -> Result<Response<v1::LoadsResponse>, Status> {
        let loads = self.engine.loads().await?;
        Ok(Response::new(self.engine.metrics().loads(&loads)))
    }
}
