//! What the monitoring port of a NATS server says, for `hookgate doctor`: how often it syncs to disk, which no API tells.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use serde::Deserialize;

use crate::{
    finding::Finding,
    http_client::{HttpClient, RequestLimits},
    tls::TlsFiles,
};

const LIMITS: RequestLimits =
    RequestLimits { connect: Duration::from_secs(2), total: Duration::from_secs(5), max_answer_bytes: 4 * 1024 * 1024 };
/// What the finding is about.
const SYNC: &str = "nats sync_interval";
/// What a server does that says nothing else.
const DEFAULT: &str = "2m";

/// What interests us of `/varz`.
#[derive(Debug, Default, Deserialize)]
struct Varz {
    #[serde(default)]
    version: String,
    #[serde(default)]
    jetstream: Jetstream,
}

#[derive(Debug, Default, Deserialize)]
struct Jetstream {
    config: Option<StoreConfig>,
}

#[derive(Debug, Deserialize)]
struct StoreConfig {
    /// In nanoseconds; newer servers alone say it.
    sync_interval: Option<u64>,
    #[serde(default)]
    sync_always: bool,
}

/// Looks at a monitoring address. It has to be that of a server with the stream; of the others of a cluster it says nothing.
pub(super) async fn inspect(address: &str, files: &TlsFiles) -> Finding {
    let varz = match ask(address, files).await {
        Ok(varz) => varz,
        Err(problem) => return Finding::warning("nats monitoring", format!("{problem} (nats.monitoring_url)")),
    };
    judge(&varz)
}

async fn ask(address: &str, files: &TlsFiles) -> Result<Varz, String> {
    let client = HttpClient::new(files, LIMITS, Some("nats")).map_err(|error| error.to_string())?;
    let uri = format!("{}/varz", address.trim_end_matches('/'));
    let request = Request::get(&uri).body(Bytes::new()).map_err(|error| format!("{uri}: {error}"))?;
    let answer = client.send(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("{uri} answers {}: is that the monitoring port (http_port)?", answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|error| format!("{uri} answers what no NATS server says: {error}"))
}

fn judge(varz: &Varz) -> Finding {
    let Some(config) = &varz.jetstream.config else {
        let text = "this server has no JetStream; name the monitoring port of one that has";
        return Finding::warning("nats monitoring", text);
    };
    let costs =
        "one machine that loses power can lose what it acknowledged, and stream replicas alone only narrow that";
    match config.sync_interval {
        _ if config.sync_always => Finding::ok(SYNC, "always: what is acknowledged is on disk (of this server)"),
        Some(0) => Finding::ok(SYNC, "always: what is acknowledged is on disk (of this server)"),
        Some(nanos) => {
            let interval = humantime::format_duration(Duration::from_nanos(nanos));
            Finding::warning(SYNC, format!("{interval}: {costs}; set sync_interval: always on each server"))
        }
        None => Finding::warning(
            SYNC,
            format!(
                "version {} does not say; its default is {DEFAULT}: {costs}; set sync_interval: always on each server, as far as it knows that",
                varz.version
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn only_a_sync_with_each_message_is_well() {
        for (varz, level, words) in [
            (
                r#"{"version":"2.15.1","jetstream":{"config":{"sync_interval":120000000000}}}"#,
                Level::Warning,
                "2m: one machine",
            ),
            (
                r#"{"version":"2.15.1","jetstream":{"config":{"sync_interval":120000000000,"sync_always":true}}}"#,
                Level::Ok,
                "always",
            ),
            (
                r#"{"version":"2.9.10","jetstream":{"config":{"max_memory":1}}}"#,
                Level::Warning,
                "version 2.9.10 does not say",
            ),
            (r#"{"version":"2.15.1","jetstream":{}}"#, Level::Warning, "no JetStream"),
            (r#"{"version":"2.15.1"}"#, Level::Warning, "no JetStream"),
        ] {
            let finding = judge(&serde_json::from_str(varz).expect("it is JSON"));
            assert_eq!(finding.level, level, "{varz}");
            assert!(finding.text.contains(words), "{varz}: {}", finding.text);
        }
    }
}
