//! `hookgate send`: a test webhook, signed as the sender of the route signs.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use hookgate::{
    http_client::{HttpClient, RequestLimits},
    route::Route,
    settings::Settings,
    tls::TlsFiles,
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use url::Url;

use super::{Output, print, store, tell};

/// As long as EspoCRM waits: 5 s to connect, 10 s in all.
const LIMITS: RequestLimits = RequestLimits {
    connect: Duration::from_secs(5),
    total: Duration::from_secs(10),
    // Longer than any answer of hookgate.
    max_answer_bytes: 64 << 10,
};

const BETWEEN_TRIES: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The event is a real one: the id is claimed, and consumers get it. Use an id that they can ignore, and
release it afterwards.

Exit code: 0 if the answer is 200, 1 if it is another one or there is none.

Examples:
  hookgate send vmh/beteiligte/create --id test-1
  hookgate send vmh/beteiligte/create --id test-1 --url https://hooks.example.com     through the ingress"
)]
pub(crate) struct SendArguments {
    /// Name of the route: flow/entity/action. `hookgate routes` lists them.
    route: String,
    /// Id of the record; several make a batch.
    #[arg(long, required = true, value_name = "ID")]
    id: Vec<String>,
    /// Where to send it: scheme and host, or a whole address [default: `server.listen` on this machine].
    #[arg(long)]
    url: Option<Url>,
    /// Sign for this webhook id, where `auth` has several [default: the first entry].
    #[arg(long, value_name = "ID")]
    webhook_id: Option<String>,
    /// Send it again each second, for so many seconds, while nobody answers or the answer is 503.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    try_for: u64,
    /// Certificates to trust for https, in PEM [default: those of the system].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

pub(super) fn run(arguments: &SendArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let Some(route) = settings.routes.routes().iter().find(|route| route.name() == arguments.route) else {
        tell(&format!("hookgate: no route is named {:?}; `hookgate routes` lists them", arguments.route));
        return Ok(ExitCode::from(2));
    };
    let url = address(arguments.url.as_ref(), settings.listen, route)?;
    // Signed for each try: a signature with a time holds for some minutes. It stays the same message.
    let message = format!("msg_{}", uuid::Uuid::now_v7().simple());
    let request = || request(arguments, settings, route, &url, &message);
    let files = TlsFiles { ca: arguments.ca_file.clone(), client: None };
    store::block_on(async {
        let client = HttpClient::new(&files, LIMITS, None).context("read the certificates to trust")?;
        let (answer, took) = ask(&client, request, Duration::from_secs(arguments.try_for)).await?;
        let good = answer.status() == StatusCode::OK;
        let sent = Sent::new(route, &url, &answer, took);
        print(&match output {
            Output::Json => serde_json::to_string(&sent).context("print the answer")?,
            Output::Text => format!("{} in {} ms: {}", sent.status, sent.took_ms, sent.answer.get()),
        });
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// The last answer, and how long it took.
async fn ask(
    client: &HttpClient,
    request: impl Fn() -> anyhow::Result<Request<Bytes>>,
    try_for: Duration,
) -> anyhow::Result<(Response<Bytes>, Duration)> {
    let first = Instant::now();
    loop {
        let request = request()?;
        let began = Instant::now();
        let answer = client.send(request).await;
        let took = began.elapsed();
        let passing = match &answer {
            Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => Some("it answers 503".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        let Some(problem) = passing.filter(|_| first.elapsed() < try_for) else {
            return Ok((answer.map_err(with_advice)?, took));
        };
        tell(&format!("hookgate: {problem}; sent again in {} s", BETWEEN_TRIES.as_secs()));
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

fn with_advice(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let unknown_authority = error.to_string().contains("certificate");
    let error = anyhow::Error::from(error);
    if unknown_authority { error.context("--ca-file names the authorities to trust") } else { error }
}

#[derive(Serialize)]
struct Sent<'a> {
    route: &'a str,
    url: &'a str,
    status: u16,
    took_ms: u128,
    /// As it came if it is JSON, else as a string.
    answer: Box<RawValue>,
}

impl<'a> Sent<'a> {
    fn new(route: &'a Route, url: &'a Url, answer: &Response<Bytes>, took: Duration) -> Self {
        let body = answer.body();
        let answer_body = serde_json::from_slice(body).unwrap_or_else(|_not_json| {
            let text = Value::from(String::from_utf8_lossy(body));
            serde_json::value::to_raw_value(&text).expect("text always serializes")
        });
        Self {
            route: route.name(),
            url: url.as_str(),
            status: answer.status().as_u16(),
            took_ms: took.as_millis(),
            answer: answer_body,
        }
    }
}

/// Where the webhook goes. An address without a path gets that of the route.
fn address(given: Option<&Url>, listen: SocketAddr, route: &Route) -> anyhow::Result<Url> {
    let Some(given) = given else {
        let host = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        return Url::parse(&format!("http://{host}:{}{}", listen.port(), route.path())).context("make the address");
    };
    if !matches!(given.scheme(), "http" | "https") || !given.has_host() {
        bail!("--url {given} is no http or https address; write https://hooks.example.com");
    }
    if matches!(given.path(), "" | "/") {
        return given.join(route.path()).with_context(|| format!("add {} to --url {given}", route.path()));
    }
    Ok(given.clone())
}

fn request(
    arguments: &SendArguments,
    settings: &Settings,
    route: &Route,
    url: &Url,
    message: &str,
) -> anyhow::Result<Request<Bytes>> {
    let records: Vec<_> = arguments.id.iter().map(|id| json!({ "id": id })).collect();
    let body = serde_json::to_vec(&records).context("make the body")?;
    let verifier = settings.verifiers.of(route);
    let signer = verifier.signer(arguments.webhook_id.as_deref());
    let mut request = Request::post(url.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("hookgate/", env!("CARGO_PKG_VERSION")));
    match signer {
        Some((scheme, secret)) => {
            for (name, value) in scheme.sign(&secret, &body, message, SystemTime::now()) {
                let mut value = HeaderValue::from_bytes(&value)
                    .map_err(|_no_value| anyhow!("the secret of route {route} can't stand in a header"))?;
                value.set_sensitive(true);
                request = request.header(name, value);
            }
        }
        None => match &arguments.webhook_id {
            Some(id) => bail!("route {route} has no entry of auth for webhook id {id:?}"),
            None if verifier.is_open() => {}
            None => bail!("route {route} has auth, but none of its secret_files holds a secret"),
        },
    }
    request.body(body.into()).context("make the request")
}
