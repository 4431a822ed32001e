//! A stand-in for EspoCRM's API, as strict as the real one where that was tried (9.3.10): it refuses what the real one
//! refuses, and says unasked what the real one says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{HttpServer, Identity};

pub(crate) const ADMIN: (&str, &str) = ("admin", "admin-password");
pub(crate) const API_KEY: &str = "0123456789abcdef0123456789abcdef";
/// A client's name, which the CRM gives unasked and nobody may log.
pub(crate) const NAME: &str = "Erika Mustermann";

/// What the role of the API user lets it read of an entity type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    All,
    Own,
    No,
}

/// What the CRM holds.
pub(crate) struct State {
    /// By entity type, in the order in which they were made.
    rows: BTreeMap<String, Vec<Map<String, Value>>>,
    pub(crate) read: Read,
    pub(crate) webhook_role: bool,
    /// What it calls itself.
    pub(crate) version: &'static str,
    /// Added to the `Date` of answers.
    pub(crate) clock_ahead: Duration,
    /// Statuses of the next answers.
    pub(crate) failing: Vec<u16>,
    /// Done before the answers that follow the first, one for each: what others do meanwhile.
    pub(crate) meanwhile: Vec<Meanwhile>,
    /// Answers so far, as method and path.
    pub(crate) asked: Vec<String>,
    next: u64,
}

/// What somebody else does to the CRM.
pub(crate) type Meanwhile = Box<dyn FnOnce(&mut State) + Send>;

/// The CRM, until it is dropped.
pub(crate) struct EspoCrm {
    state: Arc<Mutex<State>>,
    server: HttpServer,
}

type Answer = Result<Value, (StatusCode, &'static str)>;

enum User {
    Admin,
    Api,
}

impl EspoCrm {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_with(tls: Option<&Identity>) -> Self {
        let state = Arc::new(Mutex::new(State {
            rows: BTreeMap::new(),
            read: Read::All,
            webhook_role: true,
            version: "9.3.10",
            clock_ahead: Duration::ZERO,
            failing: Vec::new(),
            meanwhile: Vec::new(),
            asked: Vec::new(),
            next: 1,
        }));
        let shared = Arc::clone(&state);
        let server = HttpServer::start(tls, move |request| lock(&shared).answer(&request)).await;
        Self { state, server }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Settings that reach it as an administrator, whose password is in a file of the folder.
    pub(crate) fn as_admin(&self, folder: &std::path::Path) -> String {
        let file = folder.join("espocrm-password");
        std::fs::write(&file, ADMIN.1).expect("the folder is ours");
        format!("[espocrm]\nurl = \"{}\"\nuser = \"{}\"\npassword_file = \"{}\"\n", self.url(), ADMIN.0, file.display())
    }

    /// The same as an API user.
    pub(crate) fn as_api_user(&self, folder: &std::path::Path) -> String {
        let file = folder.join("espocrm-api-key");
        std::fs::write(&file, API_KEY).expect("the folder is ours");
        format!("[espocrm]\nurl = \"{}\"\napi_key_file = \"{}\"\n", self.url(), file.display())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As the CRM writes times.
pub(crate) fn crm_time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").trim_end_matches('Z').to_owned()
}

impl State {
    fn id(&mut self) -> String {
        self.next += 1;
        format!("6b0ad0ec{:09x}", self.next)
    }

    fn add(&mut self, kind: &str, mut row: Map<String, Value>) -> String {
        let id = row.get("id").and_then(Value::as_str).map_or_else(|| self.id(), str::to_owned);
        row.insert("id".to_owned(), id.clone().into());
        self.rows.entry(kind.to_owned()).or_default().push(row);
        id
    }

    /// An item of the queue that the CRM gave up on. Answers its id.
    pub(crate) fn add_failed(&mut self, event: &str, target: &str, created_at: SystemTime) -> String {
        let number = self.next;
        let target_type = event.split('.').next().unwrap_or_default();
        let row = json!({
            "number": number, "event": event, "createdAt": crm_time(created_at), "attempts": 4, "status": "Failed",
            "webhookId": "65f0c1d2e3a4b5c6d", "targetId": target, "targetType": target_type, "targetName": NAME,
        });
        self.add("WebhookQueueItem", object(row))
    }

    /// The targets of the failed items that are left.
    pub(crate) fn failed(&self) -> Vec<String> {
        let rows = self.rows.get("WebhookQueueItem").into_iter().flatten();
        rows.map(|row| row["targetId"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// A record.
    pub(crate) fn add_record(&mut self, kind: &str, id: &str, created_at: SystemTime, modified_at: SystemTime) {
        let row = json!({
            "id": id, "name": NAME, "createdAt": crm_time(created_at), "modifiedAt": crm_time(modified_at),
            "createdById": "1", "assignedUserId": null,
        });
        self.add(kind, object(row));
    }

    /// Somebody changes a record.
    pub(crate) fn modify(&mut self, kind: &str, id: &str, modified_at: SystemTime) {
        let rows = self.rows.get_mut(kind).expect("there are such records");
        let row = rows.iter_mut().find(|row| row["id"] == id).expect("there is such a record");
        row.insert("modifiedAt".to_owned(), crm_time(modified_at).into());
    }

    /// Somebody deletes a record.
    pub(crate) fn delete_record(&mut self, kind: &str, id: &str, at: SystemTime) {
        self.rows.get_mut(kind).expect("there are such records").retain(|row| row["id"] != id);
        let row = json!({ "action": "delete", "targetType": kind, "targetId": id, "createdAt": crm_time(at) });
        self.add("ActionHistoryRecord", object(row));
    }

    /// A webhook of the API user, or of somebody else.
    pub(crate) fn add_webhook(&mut self, event: &str, url: &str, active: bool, own: bool) -> String {
        let row = json!({
            "event": event, "url": url, "isActive": active, "skipOwn": false, "secretKey": "f".repeat(32),
            "userId": if own { "api" } else { "other" },
        });
        self.add("Webhook", object(row))
    }

    /// An event that the cron job has not looked at yet.
    pub(crate) fn add_waiting(&mut self, event: &str, created_at: SystemTime) {
        let number = self.next;
        let row = json!({ "number": number, "event": event, "createdAt": crm_time(created_at), "isProcessed": false });
        self.add("WebhookEventQueueItem", object(row));
    }

    fn answer(&mut self, request: &Request<Bytes>) -> Response<Bytes> {
        if !self.asked.is_empty() && !self.meanwhile.is_empty() {
            self.meanwhile.remove(0)(self);
        }
        self.asked.push(format!("{} {}", request.method(), request.uri().path()));
        let answer = if self.failing.is_empty() {
            self.dispatch(request)
        } else {
            Err((StatusCode::from_u16(self.failing.remove(0)).expect("it is a status"), ""))
        };
        let date = httpdate::fmt_http_date(SystemTime::now() + self.clock_ahead);
        let response = Response::builder().header(header::DATE, date).header(header::CONTENT_TYPE, "application/json");
        let response = match answer {
            Ok(value) => response.status(200).body(value.to_string().into()),
            Err((status, "")) => response.status(status).body(Bytes::new()),
            Err((status, reason)) => response.status(status).header("X-Status-Reason", reason).body(Bytes::new()),
        };
        response.expect("the parts are good")
    }

    fn dispatch(&mut self, request: &Request<Bytes>) -> Answer {
        let user = user(request)?;
        let path = request.uri().path().strip_prefix("/api/v1/").ok_or((StatusCode::NOT_FOUND, ""))?;
        let parts: Vec<&str> = path.split('/').collect();
        let admin = matches!(user, User::Admin);
        let for_admins = ["WebhookQueueItem", "WebhookEventQueueItem", "ActionHistoryRecord"].contains(&parts[0]);
        if for_admins && !admin {
            return Err((StatusCode::FORBIDDEN, "No access to scope."));
        }
        let before_9 = self.version.starts_with("8.");
        match (request.method(), parts.as_slice()) {
            (&Method::GET, ["WebhookEventQueueItem"]) if before_9 => {
                Err((StatusCode::NOT_FOUND, "Controller 'WebhookEventQueueItem' does not exist."))
            }
            (&Method::POST, ["MassAction"]) if before_9 => {
                Err((StatusCode::FORBIDDEN, "Mass action 'delete' is disabled for 'WebhookQueueItem'."))
            }
            (&Method::GET, ["App", "about"]) => Ok(json!({ "text": "EspoCRM", "version": self.version })),
            (&Method::GET, ["App", "user"]) => Ok(self.rights(admin)),
            (&Method::GET, ["User", "api", "acl"]) => Ok(self.rights(false)["acl"].clone()),
            (&Method::GET, ["User", _, "acl"]) if !admin => Err((StatusCode::FORBIDDEN, "")),
            (&Method::GET, ["User", "other", "acl"]) => Ok(self.rights(true)["acl"].clone()),
            (&Method::GET, [kind]) => self.list(kind, request, admin),
            (&Method::DELETE, ["WebhookQueueItem", id]) => {
                let rows = self.rows.entry("WebhookQueueItem".to_owned()).or_default();
                let before = rows.len();
                rows.retain(|row| row["id"] != *id);
                if rows.len() == before { Err((StatusCode::NOT_FOUND, "")) } else { Ok(Value::Bool(true)) }
            }
            (&Method::POST, ["MassAction"]) => self.mass_action(request, admin),
            // An item can't be sent again over the API.
            (&Method::POST | &Method::PUT, ["WebhookQueueItem", ..]) => Err((StatusCode::FORBIDDEN, "No edit access.")),
            _ => Err((StatusCode::NOT_FOUND, "")),
        }
    }

    fn rights(&self, admin: bool) -> Value {
        let read = match (admin, self.read) {
            (true, _) | (_, Read::All) => "all",
            (_, Read::Own) => "own",
            (_, Read::No) => "no",
        };
        let levels = |kind: &String| (kind.clone(), json!({ "create": "no", "read": read, "edit": "no" }));
        let table: Map<String, Value> = self.rows.keys().map(levels).collect();
        json!({ "user": { "userName": "hookgate", "name": NAME }, "acl": { "table": table } })
    }

    fn mass_action(&mut self, request: &Request<Bytes>, admin: bool) -> Answer {
        let body: Value =
            serde_json::from_slice(request.body()).map_err(|_no_json| (StatusCode::BAD_REQUEST, "Bad JSON."))?;
        if !admin {
            return Err((StatusCode::FORBIDDEN, "No access to mass action."));
        }
        let ids = body["params"]["ids"].as_array().ok_or((StatusCode::BAD_REQUEST, "No params."))?;
        if body["entityType"] != "WebhookQueueItem" || body["action"] != "delete" {
            return Err((StatusCode::BAD_REQUEST, "Unknown action."));
        }
        let rows = self.rows.entry("WebhookQueueItem".to_owned()).or_default();
        let before = rows.len();
        rows.retain(|row| !ids.contains(&row["id"]));
        Ok(json!({ "count": before - rows.len() }))
    }

    fn list(&self, kind: &str, request: &Request<Bytes>, admin: bool) -> Answer {
        let asked = Asked::read(request)?;
        let system = ["WebhookQueueItem", "WebhookEventQueueItem", "ActionHistoryRecord", "Webhook"].contains(&kind);
        if !admin && ((kind == "Webhook" && !self.webhook_role) || (!system && self.read == Read::No)) {
            return Err((StatusCode::FORBIDDEN, "No access to scope."));
        }
        let rows = match self.rows.get(kind) {
            Some(rows) => rows.as_slice(),
            None if system => &[],
            None => return Err((StatusCode::NOT_FOUND, "")),
        };
        let visible = |row: &&Map<String, Value>| {
            admin || (kind != "Webhook" || row["userId"] == "api") && (system || self.read == Read::All)
        };
        let mut found: Vec<_> = rows.iter().filter(visible).filter(|row| asked.takes(row)).collect();
        if let Some(by) = &asked.order_by {
            found.sort_by(|first, second| compare(first.get(by), second.get(by)));
        }
        let more = found.len() > asked.offset + asked.max_size;
        let page: Vec<_> =
            found.into_iter().skip(asked.offset).take(asked.max_size).map(|row| asked.fields(row)).collect();
        // The number of all of them is what nobody relies on: it may be missing unasked.
        Ok(json!({ "total": if more { -1 } else { -2 }, "list": page }))
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => unreachable!("only objects are made"),
    }
}

fn compare(first: Option<&Value>, second: Option<&Value>) -> std::cmp::Ordering {
    match (first, second) {
        (Some(Value::Number(first)), Some(Value::Number(second))) => first.as_u64().cmp(&second.as_u64()),
        (first, second) => first.and_then(Value::as_str).cmp(&second.and_then(Value::as_str)),
    }
}

fn user(request: &Request<Bytes>) -> Result<User, (StatusCode, &'static str)> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", ADMIN.0, ADMIN.1)));
    match (header("authorization"), header("x-api-key")) {
        (Some(given), None) if given == basic => Ok(User::Admin),
        (None, Some(API_KEY)) => Ok(User::Api),
        _ => Err((StatusCode::UNAUTHORIZED, "Bad credentials.")),
    }
}

/// A query that the real CRM understands.
struct Asked {
    filters: BTreeMap<String, Filter>,
    select: Option<Vec<String>>,
    order_by: Option<String>,
    max_size: usize,
    offset: usize,
}

#[derive(Default)]
struct Filter {
    kind: String,
    attribute: String,
    values: Vec<String>,
}

impl Asked {
    fn read(request: &Request<Bytes>) -> Result<Self, (StatusCode, &'static str)> {
        const BAD: (StatusCode, &str) = (StatusCode::BAD_REQUEST, "Bad search params.");
        let mut asked = Self { filters: BTreeMap::new(), select: None, order_by: None, max_size: 20, offset: 0 };
        let query = request.uri().query().unwrap_or_default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "select" => asked.select = Some(value.split(',').map(str::to_owned).collect()),
                "orderBy" => asked.order_by = Some(value.into_owned()),
                "order" if value == "asc" => {}
                "maxSize" => asked.max_size = value.parse().map_err(|_| BAD)?,
                "offset" => asked.offset = value.parse().map_err(|_| BAD)?,
                name => {
                    let parts: Vec<_> = name.split(['[', ']']).filter(|part| !part.is_empty()).collect();
                    let ["where", number, part] = parts.as_slice() else { return Err(BAD) };
                    let filter = asked.filters.entry((*number).to_owned()).or_default();
                    match *part {
                        "type" => filter.kind = value.into_owned(),
                        "attribute" => filter.attribute = value.into_owned(),
                        "value" if name.ends_with("[]") == (filter.kind == "in") => {
                            filter.values.push(value.into_owned());
                        }
                        _ => return Err(BAD),
                    }
                }
            }
        }
        if asked.max_size > 200 {
            return Err((StatusCode::FORBIDDEN, "Max size should should not exceed 200. Use offset and limit."));
        }
        let known = ["equals", "in", "greaterThan", "greaterThanOrEquals", "after", "isFalse", "startsWith"];
        let good = |filter: &Filter| {
            known.contains(&filter.kind.as_str())
                && !filter.attribute.is_empty()
                && (filter.kind == "isFalse") == filter.values.is_empty()
        };
        if asked.filters.values().all(good) { Ok(asked) } else { Err(BAD) }
    }

    fn takes(&self, row: &Map<String, Value>) -> bool {
        self.filters.values().all(|Filter { kind, attribute, values }| {
            let value = row.get(attribute).unwrap_or(&Value::Null);
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let order = |wanted: &String| match value {
                Value::Number(number) => number.as_u64().cmp(&wanted.parse().ok()),
                _ => text.as_str().cmp(wanted.as_str()),
            };
            match kind.as_str() {
                "equals" | "in" => values.contains(&text),
                "isFalse" => *value == Value::Bool(false),
                "startsWith" => text.starts_with(&values[0]),
                "greaterThanOrEquals" => order(&values[0]).is_ge(),
                _ => order(&values[0]).is_gt(),
            }
        })
    }

    /// The fields that were asked for, and those that come unasked.
    fn fields(&self, row: &Map<String, Value>) -> Value {
        let unasked = ["id", "targetName", "createdById", "assignedUserId"];
        let given = |(name, _): &(&String, &Value)| {
            unasked.contains(&name.as_str()) || self.select.as_ref().is_none_or(|select| select.contains(*name))
        };
        Value::Object(row.iter().filter(given).map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}
