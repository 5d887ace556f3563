//! The gRPC services: the Open Inference Protocol, and Pleach's own for the application on the device.
//!
//! Source: Open Inference Protocol, version 2, gRPC.

use std::sync::Arc;

use pleach_proto::device::local_server::Local;
use pleach_proto::device::{FeedbackRequest, FeedbackResponse, StatusRequest, StatusResponse};
use pleach_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use pleach_proto::inference::infer_parameter::ParameterChoice;
use pleach_proto::inference::model_infer_response::InferOutputTensor;
use pleach_proto::inference::model_metadata_response::TensorMetadata;
use pleach_proto::inference::repository_index_response::ModelIndex;
use pleach_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
};
use tonic::{Request, Response, Status};

use crate::runtime::codec::{self, Content};
use crate::runtime::error::ServeError;
use crate::runtime::host::Host;
use crate::runtime::ladder::Named;
use crate::runtime::server::{EXTENSIONS, PLATFORM, SERVER_NAME, SERVER_VERSION};

/// Both services over one host.
#[derive(Clone, Debug)]
pub(crate) struct Services(pub(crate) Arc<Host>);

#[tonic::async_trait]
impl GrpcInferenceService for Services {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.0.active().is_some() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let ready = match self.0.serving(&request.name, &request.version) {
            Ok(_) => true,
            Err(ServeError::NoModel) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Result<Response<ServerMetadataResponse>, Status> {
        let extensions = EXTENSIONS.map(str::to_owned).to_vec();
        Ok(Response::new(ServerMetadataResponse { name: SERVER_NAME.to_owned(), version: SERVER_VERSION.to_owned(), extensions }))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let ladder = self.0.serving(&request.name, &request.version)?;
        let metadata = |spec: &pleach_domain::runtime::TensorSpec| TensorMetadata {
            name: spec.name.clone(),
            datatype: spec.element_type.name().to_owned(),
            shape: codec::shape_of(spec),
        };
        Ok(Response::new(ModelMetadataResponse {
            name: ladder.model.clone(),
            versions: vec![ladder.version.to_string()],
            platform: PLATFORM.to_owned(),
            inputs: ladder.inputs.iter().map(metadata).collect(),
            outputs: ladder.outputs.iter().map(metadata).collect(),
        }))
    }

    async fn repository_index(&self, request: Request<RepositoryIndexRequest>) -> Result<Response<RepositoryIndexResponse>, Status> {
        Ok(Response::new(repository_index(&self.0, request.into_inner().ready)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let request = request.into_inner();
        let ladder = self.0.served(&request.model_name, &request.model_version).await?;
        let inputs = parse_inputs(&request)?;
        codec::check(&ladder.inputs, &inputs)?;
        let requested: Vec<_> = request.outputs.iter().map(|o| o.name.as_str()).collect();
        let places = codec::select(&ladder.outputs, &requested)?;
        let id = codec::request_id(&request.id)?;
        let timeout_us = match request.parameters.get("timeout").and_then(|p| p.parameter_choice.as_ref()) {
            Some(ParameterChoice::Int64Param(us)) => Some(*us),
            Some(ParameterChoice::Uint64Param(us)) => i64::try_from(*us).ok(),
            _ => None,
        };
        let results = ladder.infer(id.clone(), inputs, codec::limit(timeout_us)).await?;
        let raw = !request.raw_input_contents.is_empty();
        let mut response = ModelInferResponse {
            model_name: ladder.model.clone(),
            model_version: ladder.version.to_string(),
            id,
            ..ModelInferResponse::default()
        };
        for (spec, tensor) in places.iter().filter_map(|&at| ladder.outputs.get(at).zip(results.get(at))) {
            response.outputs.push(InferOutputTensor {
                name: spec.name.clone(),
                datatype: tensor.element_type().name().to_owned(),
                shape: tensor.shape().iter().map(|&axis| i64::try_from(axis).unwrap_or(i64::MAX)).collect(),
                contents: (!raw).then(|| codec::to_contents(tensor)),
                ..InferOutputTensor::default()
            });
            if raw {
                response.raw_output_contents.push(tensor.to_le_bytes());
            }
        }
        Ok(Response::new(response))
    }
}

/// What the gRPC side of the repository index says.
fn repository_index(host: &Host, ready: bool) -> RepositoryIndexResponse {
    let line = |l: codec::IndexLine| ModelIndex { name: l.name, version: l.version, state: l.state.into(), reason: l.reason.into() };
    RepositoryIndexResponse { models: codec::index(host, ready).into_iter().map(line).collect() }
}

fn parse_inputs(request: &ModelInferRequest) -> Result<Named, ServeError> {
    let raw = &request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        return Err(ServeError::invalid(format!("{} raw inputs: expected {}, one for each input", raw.len(), request.inputs.len())));
    }
    let empty = Default::default();
    let parse = |(at, input): (usize, &pleach_proto::inference::model_infer_request::InferInputTensor)| {
        if raw.get(at).is_some() && input.contents.is_some() {
            return Err(ServeError::invalid(format!("input {:?} has raw and typed contents: expected one of them", input.name)));
        }
        let content = match raw.get(at) {
            Some(bytes) => Content::Raw(bytes),
            None => Content::Typed(input.contents.as_ref().unwrap_or(&empty)),
        };
        codec::parse(&input.name, &input.datatype, &input.shape, &content)
    };
    request.inputs.iter().enumerate().map(parse).collect()
}

#[tonic::async_trait]
impl Local for Services {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status(&self.0)))
    }

    async fn feedback(&self, request: Request<FeedbackRequest>) -> Result<Response<FeedbackResponse>, Status> {
        let request = request.into_inner();
        let matched = self.0.label(&request.request_id, &request.labels)?;
        Ok(Response::new(FeedbackResponse { matched }))
    }
}

/// What runs here.
pub(crate) fn status(host: &Host) -> StatusResponse {
    let device_id = host.device_id().to_owned();
    let Some(active) = host.active() else {
        return StatusResponse { device_id, state: "empty".to_owned(), ..StatusResponse::default() };
    };
    StatusResponse {
        device_id,
        bundle_digest: active.ladder.digest.to_string(),
        rung: active.ladder.rung.clone(),
        model_name: active.ladder.model.clone(),
        model_version: active.ladder.version.to_string(),
        requests: active.requests(),
        errors: active.errors(),
        state: if active.probation { "probation" } else { "serving" }.to_owned(),
    }
}
