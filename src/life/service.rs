//! Requests to release ids, and the replies to them: over NATS, and on the admin address.

use std::sync::Arc;

use serde::Deserialize;

use super::{Keeper, ReleaseReport, ReleaseRequest};
use crate::{
    batch::EntityId,
    event::Token,
    metrics::ReleasedBy,
    route::{Route, RouteTable},
};

/// Most ids of one request.
const MAX_IDS: usize = 1000;

/// `{"flow","entity","action","entity_id"}` or `"entity_ids"`, and perhaps a `"token"`.
#[derive(Debug, Deserialize)]
struct Body {
    flow: String,
    entity: String,
    action: String,
    entity_id: Option<String>,
    #[serde(default)]
    entity_ids: Vec<String>,
    token: Option<String>,
}

/// Why nothing was released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The request can't be read.
    #[error(
        "the request is not understood: {0}; send {{\"flow\":…,\"entity\":…,\"action\":…,\"entity_id\":…}}, or \"entity_ids\", and perhaps a \"token\""
    )]
    Malformed(String),
    /// No route has this name.
    #[error("no route {0:?} is configured")]
    UnknownRoute(String),
    /// Too many ids.
    #[error("{0} ids; at most {MAX_IDS} are allowed in one request")]
    TooMany(usize),
    /// The store can't be asked, or gave no answer: the ids may have been released. Repeating it is harmless.
    #[error("{0}; try again")]
    Store(String),
}

impl ReleaseError {
    /// As a status of HTTP.
    #[must_use]
    pub const fn code(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::UnknownRoute(_) => 404,
            Self::TooMany(_) => 413,
            Self::Store(_) => 503,
        }
    }
}

/// Answers requests to release ids.
#[derive(Clone)]
pub struct Releases {
    keeper: Keeper,
    table: Arc<RouteTable>,
}

impl Releases {
    /// For the routes of a table.
    #[must_use]
    pub const fn new(keeper: Keeper, table: Arc<RouteTable>) -> Self {
        Self { keeper, table }
    }

    /// Carries out a request over NATS, `payload` in JSON. Returns the reply: a [`ReleaseReport`] in JSON.
    ///
    /// # Errors
    /// Why nothing was released.
    pub async fn answer(&self, payload: &[u8]) -> Result<Vec<u8>, ReleaseError> {
        let body: Body = serde_json::from_slice(payload).map_err(|error| ReleaseError::Malformed(error.to_string()))?;
        let route = self.route(&body.flow, &body.entity, &body.action)?;
        let mut ids = body.entity_ids;
        ids.extend(body.entity_id);
        if ids.len() > MAX_IDS {
            return Err(ReleaseError::TooMany(ids.len()));
        }
        if ids.is_empty() {
            return Err(ReleaseError::Malformed("it names no id".to_owned()));
        }
        let token = body.token.map(|token| token.parse::<Token>());
        let token = token.transpose().map_err(|error| ReleaseError::Malformed(error.to_string()))?;
        let report = self.release(&route, ids, token, ReleasedBy::Service).await?;
        serde_json::to_vec(&report).map_err(|error| ReleaseError::Store(error.to_string()))
    }

    /// Releases ids of a route, each once. What can't be an id is reported as not pending, last.
    ///
    /// # Errors
    /// [`ReleaseError::Store`].
    pub async fn release(
        &self,
        route: &Arc<Route>,
        mut ids: Vec<String>,
        token: Option<Token>,
        by: ReleasedBy,
    ) -> Result<ReleaseReport, ReleaseError> {
        let mut seen = hashbrown::HashSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        let (good, bad): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| EntityId::parse(id).is_some());
        let requests: Vec<_> = good.into_iter().map(|id| ReleaseRequest { id, token }).collect();
        let released = self.keeper.release(route, &requests, by).await;
        let mut report = released.map_err(|error| ReleaseError::Store(error.to_string()))?;
        report.not_pending.extend(bad);
        Ok(report)
    }

    /// Returns the route `flow/entity/action`.
    ///
    /// # Errors
    /// [`ReleaseError::UnknownRoute`], if there is none.
    pub fn route(&self, flow: &str, entity: &str, action: &str) -> Result<Arc<Route>, ReleaseError> {
        let name = format!("{flow}/{entity}/{action}");
        let route = self.table.routes().iter().find(|route| route.name() == name);
        route.cloned().ok_or(ReleaseError::UnknownRoute(name))
    }
}
