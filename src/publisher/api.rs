//! The JetStream API in raw JSON: servers have settings that the client library does not know, and would lose.

use std::time::Duration;

use async_nats::jetstream::{self, Context, ErrorCode, context::RequestErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Limit of one request.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The JetStream API over a connection.
pub(super) struct Api {
    client: async_nats::Client,
    context: Context,
}

/// Why the API did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The connected server has no JetStream, and no other one answers in its place.
    #[error(
        "no server answers the JetStream API, so nothing would be stored; start the server with -js, or set nats.delivery = \"core\" if live delivery is enough"
    )]
    NoJetStream,
    /// The account may not use it.
    #[error(
        "{0}, so nothing would be stored; enable JetStream for the account, log in to another account, or set nats.delivery = \"core\" if live delivery is enough"
    )]
    NotForAccount(Description),
    /// The answer is an error.
    #[error("{0}")]
    Answered(Description),
    /// There is no answer, or none that can be read.
    #[error("{0}")]
    Unanswered(String),
}

/// An error in the words of the server.
#[derive(Debug, Clone, Deserialize, thiserror::Error)]
#[error("{text} (error code {err_code})")]
pub(super) struct Description {
    /// As a status of HTTP.
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default, rename = "description")]
    text: String,
}

impl ApiError {
    /// Whether waiting won't help.
    pub(super) const fn is_refusal(&self) -> bool {
        match self {
            Self::NoJetStream | Self::NotForAccount(_) => true,
            // 503: elections, recovery.
            Self::Answered(error) => error.code != 503,
            Self::Unanswered(_) => false,
        }
    }

    /// Whether there is no JetStream for us at all.
    pub(super) const fn is_no_jetstream(&self) -> bool {
        matches!(self, Self::NoJetStream | Self::NotForAccount(_))
    }

    /// Whether the server answered with this error.
    pub(super) fn is(&self, code: ErrorCode) -> bool {
        matches!(self, Self::Answered(error) if error.err_code == code.0)
    }
}

impl Api {
    pub(super) fn over(client: async_nats::Client) -> Self {
        let context = jetstream::context::ContextBuilder::new().timeout(TIMEOUT).build(client.clone());
        Self { client, context }
    }

    /// Asks, and gives the answer as it is.
    ///
    /// Whether there is JetStream only the answer tells: in a cluster, servers without it pass requests on to those
    /// that have it.
    pub(super) async fn ask(&self, request: String, payload: &impl Serialize) -> Result<Value, ApiError> {
        let answer: Result<Value, _> = self.context.request(request, payload).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders if !self.client.server_info().jetstream => ApiError::NoJetStream,
            _ => ApiError::Unanswered(error.to_string()),
        })?;
        let Some(error) = answer.get("error") else { return Ok(answer) };
        let error = Description::deserialize(error)
            .map_err(|problem| ApiError::Unanswered(format!("an error that can't be read: {problem}")))?;
        Err(match ErrorCode(error.err_code) {
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                ApiError::NotForAccount(error)
            }
            _ => ApiError::Answered(error),
        })
    }
}
