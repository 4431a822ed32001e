//! EspoCRM's API, as far as it helps to find what the CRM gave up on: failed queue items, records, webhooks.
//!
//! Reads with bounded requests, page by page. Asks only for the fields it needs. The CRM answers more, a client's name among
//! it: no answer is ever logged or quoted, only its status and the reason in `X-Status-Reason`.

mod answers;
mod query;
mod records;
mod version;

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use url::{Url, form_urlencoded};

use self::{
    answers::{AboutAnswer, Acl, ActionRow, Page, RecordRow, UserAnswer},
    query::Query,
};
pub use self::{
    answers::{FailedItem, Webhook},
    records::{Change, Changes, ChangesOf},
    version::CrmVersion,
};
use crate::{
    http_client::{HttpClient, HttpError, RequestLimits},
    secrets::Secret,
    tls::{TlsFileError, TlsFiles},
};

/// Most rows that the CRM gives at once; it refuses to give more.
pub const PAGE: usize = 200;
/// A page of 200 rows is some 100 kB.
const LIMITS: RequestLimits =
    RequestLimits { connect: Duration::from_secs(5), total: Duration::from_secs(30), max_answer_bytes: 8 << 20 };
/// How often a request is tried that got no answer, or a 5xx.
const TRIES: u32 = 4;
/// Before the second try; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(500);

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const STATUS_REASON: HeaderName = HeaderName::from_static("x-status-reason");
const NO_TOTAL: HeaderName = HeaderName::from_static("x-no-total");

/// How to reach a CRM.
#[derive(Debug, Clone)]
pub struct Access {
    /// Where it is.
    pub url: Url,
    /// As whom.
    pub login: Login,
    /// Authorities to trust; without it those of the system.
    pub ca: Option<PathBuf>,
}

/// As whom to ask.
#[derive(Debug, Clone)]
pub enum Login {
    /// An API user: sees records and its own webhooks.
    ApiKey(Secret),
    /// An administrator: sees the queue, too.
    User {
        /// Name.
        name: String,
        /// Password.
        password: Secret,
    },
}

/// Why the CRM can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The authorities can't be read.
    #[error("espocrm.{0}")]
    File(#[from] TlsFileError),
    /// The credentials can't stand in a header.
    #[error("{0} holds a character that can't stand in a header")]
    Credentials(&'static str),
}

/// Why the CRM gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum CrmError {
    /// It can't be reached.
    #[error("{operation}: {error}; check espocrm.url")]
    Http {
        /// What was tried.
        operation: String,
        /// Why it failed.
        error: HttpError,
    },
    /// It says no.
    #[error("{operation}: EspoCRM answers {status}{}{}", reason_text(.reason.as_deref()), advice(*.status, *.admin))]
    Refused {
        /// What was tried.
        operation: String,
        /// The status.
        status: StatusCode,
        /// What `X-Status-Reason` says.
        reason: Option<String>,
        /// Whether this needs an administrator.
        admin: bool,
    },
    /// The answer is none of its API.
    #[error("{operation}: the answer is not what EspoCRM's API gives ({problem}); check espocrm.url")]
    NotUnderstood {
        /// What was tried.
        operation: String,
        /// What is wrong with it. Quotes nothing of it.
        problem: String,
    },
}

impl CrmError {
    /// Whether these credentials may not do this.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, .. })
    }
}

fn reason_text(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" ({reason})"))
}

fn advice(status: StatusCode, admin: bool) -> &'static str {
    match (status, admin) {
        (StatusCode::UNAUTHORIZED, _) => {
            "; check the credentials of [espocrm]: api_key_file for an API user, or user and password_file"
        }
        (StatusCode::FORBIDDEN, true) => {
            "; this needs an administrator: set espocrm.user and espocrm.password_file (an API user is refused whatever its role)"
        }
        (StatusCode::FORBIDDEN, false) => {
            "; the user needs a role with read: all on this entity type, and with access to webhooks for webhooks"
        }
        (StatusCode::NOT_FOUND, _) => "; check espocrm.url, and the entity type in routes.espocrm_event",
        _ => "",
    }
}

/// What waits in the CRM for its job that sends webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backlog {
    /// Nothing.
    Empty,
    /// The oldest event was made then.
    Since(SystemTime),
    /// This version does not show it.
    NotShown,
}

/// Asks one CRM.
pub struct EspoCrm {
    http: HttpClient,
    base: String,
    headers: HeaderMap,
    /// Between its clock and ours, as its last answer showed it.
    clock: Mutex<Option<ClockDifference>>,
}

/// How far the CRM's clock is from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockDifference {
    /// How far.
    pub apart: Duration,
    /// Whether the CRM's is the later one.
    pub ahead: bool,
}

impl EspoCrm {
    /// A client; asks nothing yet.
    ///
    /// # Errors
    /// If `ca_file` or the credentials can't be used.
    pub fn new(access: &Access) -> Result<Self, SetupError> {
        let files = TlsFiles { ca: access.ca.clone(), client: None };
        let http = HttpClient::new(&files, LIMITS, Some("espocrm"))?;
        let mut headers = HeaderMap::new();
        let (name, value, source) = match &access.login {
            Login::ApiKey(key) => (API_KEY, HeaderValue::from_bytes(key.bytes()), "espocrm.api_key_file"),
            Login::User { name, password } => {
                let pair = [name.as_bytes(), b":", password.bytes()].concat();
                let value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)));
                (header::AUTHORIZATION, value, "espocrm.password_file")
            }
        };
        let mut value = value.map_err(|_no_value| SetupError::Credentials(source))?;
        value.set_sensitive(true);
        headers.insert(name, value);
        headers.insert(NO_TOTAL, HeaderValue::from_static("true"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("hookgate/", env!("CARGO_PKG_VERSION"))));
        let base = access.url.as_str().trim_end_matches('/');
        let base = base.strip_suffix("/api/v1").unwrap_or(base);
        Ok(Self { http, base: format!("{base}/api/v1/"), headers, clock: Mutex::new(None) })
    }

    /// How far its clock is from ours, as its answers showed; `None` before the first, or if it does not say.
    #[must_use]
    pub fn clock(&self) -> Option<ClockDifference> {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next page of failed items of some events, behind a number. The last page is shorter than [`PAGE`]. Numbers are
    /// good for one scan only: an item with a low number can fail later than one with a high number.
    ///
    /// # Errors
    /// [`CrmError`]. Needs an administrator.
    pub async fn failed_items(&self, events: &[String], behind: u64) -> Result<Vec<FailedItem>, CrmError> {
        let query = Query::new("id,number,event,webhookId,targetType,targetId,attempts,createdAt")
            .equals("status", "Failed")
            .any_of("event", events)
            .greater("number", &behind.to_string())
            .order("number")
            .size(PAGE);
        let page: Page<FailedItem> =
            self.get("list the failed items of the queue", "WebhookQueueItem", &query, true).await?;
        Ok(page.list)
    }

    /// How many items of some events have failed, counted up to a limit.
    ///
    /// # Errors
    /// [`CrmError`]. Needs an administrator.
    pub async fn count_failed(&self, events: &[String], limit: usize) -> Result<usize, CrmError> {
        let (mut count, mut behind) = (0, 0);
        while count < limit {
            let page = self.failed_items(events, behind).await?;
            count += page.len();
            match page.last() {
                Some(last) if page.len() >= PAGE => behind = last.number,
                _ => break,
            }
        }
        Ok(count)
    }

    /// Removes items from the queue. Those that are gone already count as removed.
    ///
    /// # Errors
    /// [`CrmError`]. Needs an administrator.
    pub async fn remove_items(&self, ids: &[String]) -> Result<(), CrmError> {
        let body = json!({ "entityType": "WebhookQueueItem", "action": "delete", "params": { "ids": ids } });
        let operation = format!("remove {} dealt-with items of the queue", ids.len());
        match self.ask::<IgnoredAny>(&operation, Method::POST, "MassAction", Some(&body), true).await {
            // 8.4.2 knows no such action for the queue.
            Err(CrmError::Refused { status: StatusCode::FORBIDDEN, .. }) => {}
            answer => return answer.map(|_count| ()),
        }
        for id in ids {
            let path = format!("WebhookQueueItem/{}", in_path(id));
            match self.ask::<IgnoredAny>(&operation, Method::DELETE, &path, None, true).await {
                Ok(_) | Err(CrmError::Refused { status: StatusCode::NOT_FOUND, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Events of this kind that the CRM has not put into a webhook's queue yet.
    ///
    /// # Errors
    /// [`CrmError`]. Needs an administrator.
    pub async fn backlog(&self, event: &str) -> Result<Backlog, CrmError> {
        let query =
            Query::new("id,number,createdAt").unset("isProcessed").equals("event", event).order("number").size(1);
        match self
            .get::<Page<ActionRow>>("look at the backlog of the queue", "WebhookEventQueueItem", &query, true)
            .await
        {
            Ok(page) => Ok(page.list.first().and_then(|row| row.created_at).map_or(Backlog::Empty, Backlog::Since)),
            // 8.4.2 does not show it.
            Err(CrmError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(Backlog::NotShown),
            Err(error) => Err(error),
        }
    }

    /// The webhooks of an entity type: all of them for an administrator, their own for an API user.
    ///
    /// # Errors
    /// [`CrmError`].
    pub async fn webhooks(&self, entity_type: &str) -> Result<Vec<Webhook>, CrmError> {
        let query = Query::new("id,event,url,isActive,skipOwn,userId")
            .starts_with("event", &format!("{entity_type}."))
            .size(PAGE);
        let page: Page<Webhook> = self.get("list the webhooks", "Webhook", &query, false).await?;
        Ok(page.list)
    }

    /// Its version; `None` if it does not say one.
    ///
    /// # Errors
    /// [`CrmError`].
    pub async fn version(&self) -> Result<Option<CrmVersion>, CrmError> {
        let about: AboutAnswer = self.ask("ask for the version", Method::GET, "App/about", None, false).await?;
        Ok(CrmVersion::parse(&about.version))
    }

    /// What the user that asks may read of an entity type: `all`, `team`, `own`, `no`. `None` if the CRM does not say.
    ///
    /// # Errors
    /// [`CrmError`].
    pub async fn may_read(&self, entity_type: &str) -> Result<Option<String>, CrmError> {
        let user: UserAnswer = self.ask("look at the rights of the user", Method::GET, "App/user", None, false).await?;
        Ok(user.level(entity_type, "read"))
    }

    /// The same of another user, such as that of a webhook.
    ///
    /// # Errors
    /// [`CrmError`]. Needs an administrator.
    pub async fn may_user_read(&self, user_id: &str, entity_type: &str) -> Result<Option<String>, CrmError> {
        let path = format!("User/{}/acl", in_path(user_id));
        let acl: Acl = self.ask("look at the rights of a webhook's user", Method::GET, &path, None, true).await?;
        Ok(acl.level(entity_type, "read"))
    }

    /// What was created, modified or deleted since a time, page by page.
    #[must_use]
    pub fn changes(&self, of: ChangesOf, since: SystemTime, until: Option<SystemTime>) -> Changes<'_> {
        Changes::new(self, of, since, until)
    }

    async fn record_rows(&self, entity_type: &str, query: &Query) -> Result<Vec<RecordRow>, CrmError> {
        let page: Page<RecordRow> =
            self.get(&format!("list records of {entity_type}"), entity_type, query, false).await?;
        Ok(page.list)
    }

    async fn action_rows(&self, entity_type: &str, query: &Query) -> Result<Vec<ActionRow>, CrmError> {
        let operation = format!("list deleted records of {entity_type}");
        let page: Page<ActionRow> = self.get(&operation, "ActionHistoryRecord", query, true).await?;
        Ok(page.list)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        operation: &str,
        path: &str,
        query: &Query,
        admin: bool,
    ) -> Result<T, CrmError> {
        self.ask(operation, Method::GET, &format!("{path}?{}", query.text()), None, admin).await
    }

    /// Asks until there is an answer. What is asked may be asked twice.
    async fn ask<T: DeserializeOwned>(
        &self,
        operation: &str,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        admin: bool,
    ) -> Result<T, CrmError> {
        let not_understood = |problem: String| CrmError::NotUnderstood { operation: operation.to_owned(), problem };
        let mut pause = PAUSE;
        for tried in 1.. {
            let request = self.request(&method, path, body).map_err(|error| not_understood(error.to_string()))?;
            let failure = match self.http.send(request).await {
                Ok(answer) => {
                    self.note_clock(&answer);
                    if answer.status().is_success() {
                        return serde_json::from_slice(answer.body())
                            .map_err(|error| not_understood(without_content(&error)));
                    }
                    let status = answer.status();
                    let refused =
                        CrmError::Refused { operation: operation.to_owned(), status, reason: reason(&answer), admin };
                    if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
                        return Err(refused);
                    }
                    refused
                }
                Err(error) => CrmError::Http { operation: operation.to_owned(), error },
            };
            if tried >= TRIES {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop ends by itself")
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Request<Bytes>, http::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            if body.is_some() {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
        }
        request.body(body.map_or_else(Bytes::new, |body| body.to_string().into()))
    }

    fn note_clock(&self, answer: &Response<Bytes>) {
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else { return };
        // The header is a whole second: the middle of it is right by half a second.
        let theirs = theirs + Duration::from_millis(500);
        let ours = SystemTime::now();
        let difference = match theirs.duration_since(ours) {
            Ok(apart) => ClockDifference { apart, ahead: true },
            Err(error) => ClockDifference { apart: error.duration(), ahead: false },
        };
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(difference);
    }
}

/// An id as a segment of a path.
fn in_path(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

/// Where a parser stopped, without what it saw.
fn without_content(error: &serde_json::Error) -> String {
    format!("{:?} at line {}, column {}", error.classify(), error.line(), error.column())
}

/// Why the CRM refuses, as one line of harmless text.
fn reason(answer: &Response<Bytes>) -> Option<String> {
    let reason = answer.headers().get(STATUS_REASON)?;
    let text: String = String::from_utf8_lossy(reason.as_bytes()).chars().take(200).collect();
    Some(text.escape_debug().to_string())
}
