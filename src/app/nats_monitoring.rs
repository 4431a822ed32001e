//! What the monitoring port of a NATS server says, for `hookgate doctor`: how often it syncs to disk, how full its store is,
//! and which servers of its cluster are away. No API tells these to a user of an account.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    finding::Finding,
    http_client::{HttpClient, RequestLimits},
    publisher::peers::{Peers, printable},
    redaction::without_credentials,
    tls::TlsFiles,
};

const LIMITS: RequestLimits =
    RequestLimits { connect: Duration::from_secs(2), total: Duration::from_secs(5), max_answer_bytes: 4 * 1024 * 1024 };
/// What the findings are about.
const MONITORING: &str = "nats monitoring";
const SYNC: &str = "nats sync_interval";
const STORE: &str = "nats store";
const CLUSTER: &str = "nats cluster";
/// What a server does that says nothing else.
const DEFAULT: &str = "2m";
/// Warn when at most this part of the store is left: a tenth.
const WARN_DIVISOR: u64 = 10;
/// Fail when at most this part is left, a thousandth: the next event may not fit.
const FAIL_DIVISOR: u64 = 1_000;
/// Longest error of an answer that is shown.
const ERROR_CHARS: usize = 200;

/// What interests us of `/varz`.
#[derive(Debug, Default, Deserialize)]
struct Varz {
    #[serde(default)]
    version: String,
    /// Its name in the cluster.
    #[serde(default)]
    server_name: String,
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

/// What interests us of `/jsz`, in bytes.
#[derive(Debug, Default, Deserialize)]
struct Jsz {
    /// In use by all streams of all accounts on this server.
    #[serde(default)]
    storage: u64,
    /// Set aside for streams with `max_bytes`.
    #[serde(default)]
    reserved_storage: u64,
    config: Option<Limits>,
    /// Only in a cluster.
    meta_cluster: Option<MetaCluster>,
}

#[derive(Debug, Default, Deserialize)]
struct Limits {
    /// `max_file_store`, or what the server took from the free space of its disk.
    #[serde(default)]
    max_storage: i64,
}

#[derive(Debug, Default, Deserialize)]
struct MetaCluster {
    /// Missing or empty during an election, and without a majority.
    #[serde(default)]
    leader: String,
    #[serde(default)]
    cluster_size: u64,
    /// Others than the leader leave it out, or know nothing of those that they list.
    replicas: Option<Value>,
}

/// Looks at a monitoring address. It has to be that of a server with the stream; of the others of a cluster it says only which
/// are away, and only the leader does.
pub(super) async fn inspect(address: &str, files: &TlsFiles) -> Vec<Finding> {
    let problem = |problem: String| Finding::warning(MONITORING, format!("{problem} (nats.monitoring_url)"));
    let client = match HttpClient::new(files, LIMITS, Some("nats")) {
        Ok(client) => client,
        Err(error) => return vec![problem(error.to_string())],
    };
    let varz: Varz = match ask(&client, address, "varz").await {
        Ok(varz) => varz,
        Err(error) => return vec![problem(error)],
    };
    let shown = without_credentials(address.trim_end_matches('/'));
    let mut findings = vec![judge_sync(&shown, &varz)];
    if varz.jetstream.config.is_none() {
        return findings;
    }
    match ask::<Jsz>(&client, address, "jsz").await {
        Ok(jsz) => {
            findings.extend(judge_store(&shown, &jsz));
            findings.extend(jsz.meta_cluster.as_ref().map(|cluster| judge_cluster(&shown, &varz.server_name, cluster)));
        }
        Err(error) => findings.push(problem(error)),
    }
    findings
}

async fn ask<T: DeserializeOwned>(client: &HttpClient, address: &str, what: &str) -> Result<T, String> {
    let uri = format!("{}/{what}", address.trim_end_matches('/'));
    let shown = without_credentials(&uri);
    let request = Request::get(&uri).body(Bytes::new()).map_err(|error| format!("{shown}: {error}"))?;
    let answer = client.send(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("{shown} answers {}: is that the monitoring port (http_port)?", answer.status()));
    }
    read(&shown, answer.body())
}

fn read<T: DeserializeOwned>(shown: &str, body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| {
        // It quotes text that stands where something else is expected.
        let error: String = error.to_string().chars().take(ERROR_CHARS).collect();
        format!("{shown} answers what no NATS server says: {error}")
    })
}

fn judge_sync(shown: &str, Varz { version, jetstream, .. }: &Varz) -> Finding {
    let Some(config) = &jetstream.config else {
        let text = format!("{shown}: this server has no JetStream; name the monitoring port of one that has");
        return Finding::warning(MONITORING, text);
    };
    let costs =
        "one machine that loses power can lose what it acknowledged, and stream replicas alone only narrow that";
    match config.sync_interval {
        interval if config.sync_always || interval == Some(0) => {
            Finding::ok(SYNC, format!("{shown}: always: what is acknowledged is on disk"))
        }
        Some(nanos) => {
            let interval = humantime::format_duration(Duration::from_nanos(nanos));
            Finding::warning(SYNC, format!("{shown}: {interval}: {costs}; set sync_interval: always on each server"))
        }
        None => Finding::warning(
            SYNC,
            format!(
                "{shown}: version {} does not say; its default is {DEFAULT}: {costs}; upgrade to nats-server 2.10 or newer, and set sync_interval: always on each server",
                printable(version)
            ),
        ),
    }
}

/// At the limit the server refuses every event. What is reserved and not in use yet is shown, and decides nothing.
fn judge_store(shown: &str, jsz: &Jsz) -> Option<Finding> {
    let limit = u64::try_from(jsz.config.as_ref()?.max_storage).ok().filter(|limit| *limit > 0)?;
    let (used, reserved) = (jsz.storage, jsz.reserved_storage);
    let text = format!("{shown}: {used} of {limit} bytes used (max_file_store), {reserved} reserved for streams");
    let left = limit.saturating_sub(used);
    if left > limit / WARN_DIVISOR {
        return Some(Finding::ok(STORE, text));
    }
    let text = format!(
        "{text}: at the limit the server refuses every event, and senders get 503; raise max_file_store, or purge what has been processed (nats stream purge --keep or --seq)"
    );
    Some(if left <= limit / FAIL_DIVISOR { Finding::failure(STORE, text) } else { Finding::warning(STORE, text) })
}

fn judge_cluster(shown: &str, name: &str, cluster: &MetaCluster) -> Finding {
    let size = cluster.cluster_size;
    if cluster.leader.is_empty() {
        let text = format!(
            "{shown}: {size} servers and no leader: no stream or consumer can be made or changed, and a stream without most of its copies refuses every event; see that the servers run and reach each other"
        );
        return Finding::failure(CLUSTER, text);
    }
    let leader = printable(&cluster.leader);
    if cluster.leader != name {
        let text = format!(
            "{shown}: {size} servers, {leader} leads; it alone says which of them are away: name its monitoring port to see that"
        );
        return Finding::ok(CLUSTER, text);
    }
    let peers = Peers::of(cluster.replicas.as_ref());
    let (there, all) = (peers.there(), peers.all());
    match peers.problems() {
        None => Finding::ok(CLUSTER, format!("{shown}: {all} servers, {leader} leads, all are there")),
        Some(problems) => Finding::warning(
            CLUSTER,
            format!(
                "{shown}: {problems}; {there} of {all} servers are there, and with fewer than {} no stream or consumer can be made or changed; a stream without most of its copies refuses events; see that the servers named run and reach the others",
                peers.majority()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    const AT: &str = "http://nats:8222";

    fn parse<T: DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).expect("it is JSON")
    }

    fn assert_finding(finding: &Finding, level: Level, words: &str) {
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.text.starts_with(&format!("{AT}: ")) && finding.text.contains(words), "{words}: {finding:?}");
    }

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
                "version \"2.9.10\" does not say",
            ),
            (r#"{"version":"2.15.1","jetstream":{}}"#, Level::Warning, "no JetStream"),
            (r#"{"version":"2.15.1"}"#, Level::Warning, "no JetStream"),
        ] {
            assert_finding(&judge_sync(AT, &parse(varz)), level, words);
        }
    }

    #[test]
    fn a_store_is_full_before_its_last_byte() {
        for (used, level) in
            [(0, Level::Ok), (899_999, Level::Ok), (900_000, Level::Warning), (998_999, Level::Warning)]
                .into_iter()
                .chain([(999_000, Level::Failure), (1_000_000, Level::Failure), (2_000_000, Level::Failure)])
        {
            let jsz = format!(r#"{{"storage":{used},"reserved_storage":7,"config":{{"max_storage":1000000}}}}"#);
            let finding = judge_store(AT, &parse(&jsz)).expect("there is a limit");
            assert_finding(&finding, level, &format!("{used} of 1000000 bytes used (max_file_store), 7 reserved"));
        }
        for jsz in
            [r#"{"disabled":true}"#, r#"{"config":{}}"#, r#"{"config":{"max_storage":-1}}"#, r#"{"config":null}"#]
        {
            assert_eq!(judge_store(AT, &parse(jsz)), None, "{jsz}");
        }
    }

    #[test]
    fn a_server_that_is_away_is_named_by_the_leader() {
        let of = |rest: &str| format!(r#"{{"name":"c","leader":"n1","peer":"fjFyEjc1","cluster_size":3{rest}}}"#);
        let well = r#"{"name":"n2","current":true,"active":477915112,"peer":"BXScrY9i"}"#;
        let silent = r#"{"name":"n3","current":false,"active":14478289666,"peer":"44jzkV9D"}"#;
        let unknown = r#"{"name":"n3","current":false,"active":0,"peer":"44jzkV9D"}"#;
        // As 2.9.10 and 2.15.1 answer; the newer one lists others where it does not lead, too.
        for (asked, cluster, level, words) in [
            ("n1", of(&format!(r#","replicas":[{well},{well}]"#)), Level::Ok, "3 servers, \"n1\" leads, all are there"),
            (
                "n1",
                of(&format!(r#","replicas":[{silent},{well}],"quorum_needed":2,"pending":0,"snapshot":{{}}"#)),
                Level::Warning,
                "\"n3\" has said nothing for 14 s; 2 of 3 servers are there, and with fewer than 2",
            ),
            ("n2", of(""), Level::Ok, "it alone says"),
            ("n2", of(&format!(r#","replicas":[{well},{unknown}]"#)), Level::Ok, "it alone says"),
            ("n3", r#"{"name":"c","peer":"fqA4S4SK","cluster_size":3}"#.to_owned(), Level::Failure, "no leader"),
            (
                "n3",
                format!(r#"{{"name":"c","replicas":[{unknown},{unknown},{well}],"cluster_size":3}}"#),
                Level::Failure,
                "no leader",
            ),
        ] {
            assert_finding(&judge_cluster(AT, asked, &parse(&cluster)), level, words);
        }
    }

    /// Another service may answer at that address.
    #[test]
    fn what_no_nats_server_says_is_an_error_and_no_panic() {
        for odd in ["", "null", "[]", "7", r#"{"storage":-1}"#, r#"{"storage":1e99}"#, r#"{"meta_cluster":[]}"#] {
            if let Ok(jsz) = serde_json::from_str::<Jsz>(odd) {
                assert_eq!(judge_store(AT, &jsz), None, "{odd}");
            }
        }
        let long = format!(r#"{{"storage":"{}"}}"#, "x".repeat(1_000_000));
        let error = read::<Jsz>(AT, long.as_bytes()).expect_err("a text is no size");
        assert!(error.contains("invalid type") && error.len() < 300, "{}", error.len());
        let most = format!(r#"{{"storage":{0},"config":{{"max_storage":{1}}}}}"#, u64::MAX, i64::MAX);
        assert_finding(&judge_store(AT, &parse(&most)).expect("a limit"), Level::Failure, "used");
        let long = format!(r#"{{"leader":"{}\u001b[31m","cluster_size":3}}"#, "x".repeat(1_000_000));
        let finding = judge_cluster(AT, "n1", &parse(&long));
        assert!(finding.text.len() < 1_000 && !finding.text.contains('\u{1b}'), "{}", finding.text.len());
    }
}
