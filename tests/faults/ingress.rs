//! Two replicas behind a real ingress, configured as shipped, are restarted, killed and frozen under load.
//! nginx is Debian's. Envoy's scenarios exist only if `HOOKGATE_ENVOY` names its binary; `tests/envoy/run` sets it.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tempfile::TempDir;

use super::{
    crm::{Crm, Load},
    rig::{Bounds, Report, Rig, demand, demand_good_end},
};
use crate::{
    Scenario, scenario,
    support::{PATH, Port, Process, binary, eventually, post, try_exchange},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![scenario!(rolling_restart_behind_nginx, alone), scenario!(killed_behind_nginx, alone)];
    if !binary(ENVOY, "").is_empty() {
        all.extend([
            scenario!(rolling_restart_behind_envoy, alone),
            scenario!(killed_behind_envoy, alone),
            scenario!(frozen_behind_envoy, alone),
            scenario!(large_bodies_behind_envoy, alone),
            scenario!(envoy_as_the_route_of_0_1_0_loses, alone),
        ]);
    }
    all
}

const ENVOY: &str = "HOOKGATE_ENVOY";
/// As EspoCRM's records with long texts are: more than an Envoy keeps for a second try by default.
const LARGE: usize = 200_000;

/// The sender, with EspoCRM's four attempts. What stands for the ten minutes between them is longer than any fault here
/// in which both replicas are away.
fn load(bytes: usize) -> Load {
    Load { workers: 16, bytes, attempts: 4, retry_after: Duration::from_secs(3), ..Load::default() }
}

/// Two replicas on ports that stay theirs, and an ingress before them.
struct Ingress {
    rig: Rig,
    ports: [Port; 2],
    address: SocketAddr,
    _proxy: Process,
    _port: Port,
    _files: TempDir,
}

impl Ingress {
    /// `start` puts files into a folder and starts the ingress on a port of its own before the two of the replicas.
    async fn start(start: impl FnOnce(&Path, u16, [u16; 2]) -> Process) -> Self {
        let mut rig = Rig::start(0, "").await;
        let ports = [Port::reserve(), Port::reserve()];
        for port in &ports {
            rig.gates.push(rig.world.gate(&Self::settings(port)).await);
        }
        let (files, port) = (tempfile::tempdir().expect("a temporary folder can be made"), Port::reserve());
        let proxy = start(files.path(), port.number, [ports[0].number, ports[1].number]);
        let address = SocketAddr::from(([127, 0, 0, 1], port.number));
        eventually("the ingress answers", async || {
            try_exchange(address, &post(PATH, b"[]")).await.ok().filter(|answer| answer.status == 200)
        })
        .await;
        Self { rig, ports, address, _proxy: proxy, _port: port, _files: files }
    }

    /// The file that operators use, with two replicas in the places of the Service.
    fn nginx(files: &Path, port: u16, replicas: [u16; 2]) -> Process {
        let place = "server hookgate:80";
        let reference = include_str!("../../k8s/ingress/nginx/hookgate.conf")
            .replacen(place, &format!("server 127.0.0.1:{}", replicas[0]), 1)
            .replacen(place, &format!("server 127.0.0.1:{}", replicas[1]), 1)
            .replace("listen 8080", &format!("listen 127.0.0.1:{port}"));
        std::fs::write(files.join("hookgate.conf"), reference).expect("the folder is ours");
        let file = files.join("nginx.conf");
        std::fs::write(&file, include_str!("nginx.conf")).expect("the folder is ours");
        Process::start(&binary("HOOKGATE_NGINX", "nginx"), |command| {
            command.arg("-p").arg(files).arg("-c").arg(&file).args(["-e", "error.log"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        })
    }

    /// The same with Envoy.
    fn envoy(files: &Path, port: u16, replicas: [u16; 2]) -> Process {
        Self::envoy_with(include_str!("../../k8s/ingress/envoy/envoy.yaml"), files, port, replicas)
    }

    fn envoy_with(text: &str, files: &Path, port: u16, replicas: [u16; 2]) -> Process {
        let mut text =
            swap(text, "address: 0.0.0.0, port_value: 8080", &format!("address: 127.0.0.1, port_value: {port}"));
        for (place, replica) in replicas.iter().enumerate() {
            let named = format!("address: hookgate-{place}, port_value: 3000");
            text = swap(&text, &named, &format!("address: 127.0.0.1, port_value: {replica}"));
        }
        let file = files.join("envoy.yaml");
        std::fs::write(&file, text).expect("the folder is ours");
        Process::start(&binary(ENVOY, ""), |command| {
            command.arg("-c").arg(&file).args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "error"]);
            command.stdin(Stdio::null()).stdout(Stdio::null());
        })
    }

    /// As behind the reference ingress.
    fn settings(port: &Port) -> String {
        format!(
            "server.listen = \"127.0.0.1:{}\"\nserver.request_deadline = \"3.5s\"\nserver.drain_delay = \"500ms\"\noutbox.relay_after = \"4s\"\nlog.filter = \"info,hookgate::entity=warn\"\n",
            port.number
        )
    }

    /// Starts a replica that ended, where it was.
    async fn start_again(&mut self, place: usize) {
        self.rig.gates[place] = self.rig.world.gate(&Self::settings(&self.ports[place])).await;
    }

    async fn verdict(&self, crm: Crm) -> Report {
        // Two tries of 4 s each.
        self.rig.verdict(crm, Bounds { longest: Duration::from_secs(9), ..Bounds::default() }).await
    }

    /// Ten restarts as in a rolling update.
    async fn rolling_restart(mut self, load: Load) -> Report {
        let crm = Crm::start(vec![self.address], load);
        let mut ends = Vec::new();
        for round in 0..10 {
            self.rig.progress(&crm, 200).await;
            ends.push(self.rig.gates[round % 2].terminate().await);
            self.start_again(round % 2).await;
        }
        self.rig.progress(&crm, 200).await;
        let mut report = self.verdict(crm).await;
        demand_good_end(&mut report, &ends);
        report
    }

    /// Ten deaths without a word, one at a time, and once both: then the ingress answers, and says 503.
    async fn killed(mut self, load: Load) -> Report {
        let crm = Crm::start(vec![self.address], load);
        for round in 0..10 {
            self.rig.progress(&crm, 200).await;
            self.rig.gates[round % 2].kill();
            self.start_again(round % 2).await;
        }
        self.rig.progress(&crm, 200).await;
        let before = crm.answered(503);
        self.rig.gates[0].kill();
        self.rig.gates[1].kill();
        eventually("nobody is there", async || (crm.answered(503) > before).then_some(())).await;
        self.start_again(0).await;
        self.start_again(1).await;
        self.rig.progress(&crm, 200).await;
        self.verdict(crm).await
    }

    /// One replica hangs, longer than a try; one dies while it hangs; both hang, until the ingress says 503.
    async fn frozen(mut self, load: Load) -> Report {
        let crm = Crm::start(vec![self.address], load);
        for round in 0..4 {
            self.rig.progress(&crm, 200).await;
            self.rig.gates[round % 2].signal("STOP");
            // More batches than senders: some of them have met the frozen replica.
            self.rig.progress(&crm, 500).await;
            self.rig.gates[round % 2].signal("CONT");
        }
        self.rig.progress(&crm, 200).await;
        self.rig.gates[0].signal("STOP");
        self.rig.progress(&crm, 200).await;
        self.rig.gates[0].kill();
        self.start_again(0).await;
        self.rig.progress(&crm, 200).await;
        let before = crm.answered(503);
        self.rig.gates[0].signal("STOP");
        self.rig.gates[1].signal("STOP");
        eventually("nobody answers", async || (crm.answered(503) > before).then_some(())).await;
        self.rig.gates[0].signal("CONT");
        self.rig.gates[1].signal("CONT");
        self.rig.progress(&crm, 200).await;
        self.verdict(crm).await
    }
}

/// Replaces what has to be there.
fn swap(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "the shipped file has no {old:?}");
    text.replace(old, new)
}

async fn rolling_restart_behind_nginx() -> Report {
    Ingress::start(Ingress::nginx).await.rolling_restart(Load { workers: 16, ..Load::default() }).await
}

async fn killed_behind_nginx() -> Report {
    Ingress::start(Ingress::nginx).await.killed(Load { workers: 16, ..Load::default() }).await
}

async fn rolling_restart_behind_envoy() -> Report {
    Ingress::start(Ingress::envoy).await.rolling_restart(load(0)).await
}

async fn killed_behind_envoy() -> Report {
    Ingress::start(Ingress::envoy).await.killed(load(0)).await
}

async fn frozen_behind_envoy() -> Report {
    Ingress::start(Ingress::envoy).await.frozen(load(LARGE)).await
}

async fn large_bodies_behind_envoy() -> Report {
    Ingress::start(Ingress::envoy).await.killed(load(LARGE)).await
}

/// What the scenarios above can see: the same Envoy as Envoy Gateway set it up for the `HTTPRoute` of 0.1.0, with its
/// time-outs and retries, and no other status in the place of 502, 504 and 507.
async fn envoy_as_the_route_of_0_1_0_loses() -> Report {
    let text = include_str!("../../k8s/ingress/envoy/envoy.yaml");
    let text = swap(
        text,
        "retry_on: connect-failure,refused-stream,reset",
        "retry_on: retriable-status-codes\n                              retriable_status_codes: [502, 504]",
    );
    let text = swap(&text, "status_code: 503\n", "status_code: null\n");
    let mut ingress = Ingress::start(|files, port, replicas| Ingress::envoy_with(&text, files, port, replicas)).await;
    let crm = Crm::start(vec![ingress.address], load(LARGE));
    for round in 0..2 {
        ingress.rig.progress(&crm, 100).await;
        ingress.rig.gates[round].signal("STOP");
        ingress.rig.progress(&crm, 500).await;
        ingress.rig.gates[round].kill();
        ingress.start_again(round).await;
    }
    let mut report = ingress.verdict(crm).await;
    let given_up = report.lost > 0 && report.violations.iter().any(|found| found.starts_with("given up by the sender"));
    report.violations.clear();
    demand(&mut report, given_up, "the sender gave up on nothing: this suite would not see lost batches");
    report
}
