//! `doctor --espocrm`: whether the CRM's webhooks fit the routes, and what its queue holds.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Response;
use tempfile::TempDir;

use crate::support::{EspoCrm, HttpServer, NAME, Ran, Read, run};

const CREATE: &str = "CBeteiligte.create";
const UPDATE: &str = "CBeteiligte.update";
const PATH: &str = "/vmh/webhook/beteiligte/create";

struct Scene {
    crm: EspoCrm,
    folder: TempDir,
}

impl Scene {
    async fn start() -> Self {
        let scene = Self { crm: EspoCrm::start().await, folder: tempfile::tempdir().expect("a folder can be made") };
        scene.crm.state().add_record("CBeteiligte", "a", SystemTime::now(), SystemTime::now());
        scene
    }

    async fn doctor(&self, login: &str, routes: &str, more: &[&str]) -> Ran {
        let settings = format!("{login}{routes}");
        let arguments: Vec<_> = ["doctor", "--espocrm"].iter().chain(more).map(|word| (*word).to_owned()).collect();
        let ran = tokio::task::spawn_blocking(move || {
            run(&settings, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let ran = ran.await.expect("it does not panic");
        assert!(!ran.printed.contains(NAME) && !ran.remarks.contains(NAME), "{}{}", ran.printed, ran.remarks);
        ran
    }

    async fn as_admin(&self, routes: &str, more: &[&str]) -> Ran {
        self.doctor(&self.crm.as_admin(self.folder.path()), routes, more).await
    }

    async fn as_api_user(&self, routes: &str) -> Ran {
        self.doctor(&self.crm.as_api_user(self.folder.path()), routes, &[]).await
    }

    /// A route for an event, with `auth` for these webhook ids.
    fn route(&self, event: &str, ids: &[&str]) -> String {
        let secret = self.folder.path().join("secret");
        std::fs::write(&secret, "secret").expect("the folder is ours");
        let entry =
            |id: &&str| format!("{{ scheme = \"espocrm\", id = \"{id}\", secret_files = [\"{}\"] }}", secret.display());
        let auth: Vec<_> = ids.iter().map(entry).collect();
        let action = event.split('.').nth(1).expect("an event has an action");
        format!(
            "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"{action}\"\nespocrm_event = \"{event}\"\nauth = [{}]\n",
            auth.join(", ")
        )
    }
}

#[tokio::test]
async fn a_webhook_that_fits_its_route_is_fine() {
    let scene = Scene::start().await;
    // An address of documentation: public, and it resolves everywhere.
    let id = scene.crm.state().add_webhook(CREATE, &format!("https://192.0.2.1{PATH}"), true, true);
    let ran = scene.as_api_user(&scene.route(CREATE, &[&id])).await;
    let printed = ran.good();
    assert!(printed.contains("ok    espocrm role for CBeteiligte: the API user may read all records"), "{printed}");
    assert!(printed.contains("holds an IP address"), "{printed}");
    assert!(printed.contains("0 failures"), "{printed}");
}

#[tokio::test]
async fn what_loses_webhooks_fails() {
    let scene = Scene::start().await;
    let none = scene.as_admin(&scene.route(CREATE, &[]), &[]).await;
    assert_eq!(none.code, Some(1));
    assert!(
        none.printed.contains("the CRM has no such webhook: route vmh/beteiligte/create gets nothing"),
        "{}",
        none.printed
    );

    let elsewhere = scene.crm.state().add_webhook(CREATE, "https://localhost/other", true, false);
    let ran = scene.as_admin(&scene.route(CREATE, &[&elsewhere]), &[]).await;
    assert!(ran.printed.contains(&format!("no webhook of this event sends to {PATH}")), "{}", ran.printed);

    let inactive = scene.crm.state().add_webhook(CREATE, &format!("https://localhost{PATH}"), false, false);
    let ran = scene.as_admin(&scene.route(CREATE, &[&inactive]), &[]).await;
    assert!(ran.printed.contains("it is inactive"), "{}", ran.printed);

    let active = scene.crm.state().add_webhook(CREATE, &format!("http://localhost:3000{PATH}"), true, false);
    let ran = scene.as_admin(&scene.route(CREATE, &["another"]), &[]).await;
    assert_eq!(ran.code, Some(1));
    for said in [
        &format!(
            "FAIL  espocrm webhook {active}: it sends to route vmh/beteiligte/create, whose auth does not name this id"
        ),
        "webhookAllowedAddressList in data/config.php has 'localhost:3000'",
        "auth names webhook id \"another\", which the CRM does not show",
    ] {
        assert!(ran.printed.contains(said), "{said}: {}", ran.printed);
    }

    scene.crm.state().read = Read::Own;
    let ran = scene.as_api_user(&scene.route(CREATE, &[])).await;
    assert!(ran.printed.contains("the API user may read \"own\", not all"), "{}", ran.printed);
    assert!(ran.printed.contains("an API user sees only its own"), "{}", ran.printed);
    let of_api_user = scene.crm.state().add_webhook(CREATE, &format!("https://localhost{PATH}"), true, true);
    let ran = scene.as_admin(&scene.route(CREATE, &[&active, &of_api_user]), &[]).await;
    for said in [
        &format!("ok    espocrm user of webhook {active}: its user may read all records"),
        &format!("FAIL  espocrm user of webhook {of_api_user}: its user may read \"own\", not all"),
    ] {
        assert!(ran.printed.contains(said), "{said}: {}", ran.printed);
    }
}

#[tokio::test]
async fn an_update_route_is_warned_of_loops() {
    let scene = Scene::start().await;
    let id = scene.crm.state().add_webhook(UPDATE, "https://192.0.2.1/vmh/webhook/beteiligte/update", true, false);
    let printed = scene.as_admin(&scene.route(UPDATE, &[&id]), &[]).await.good();
    assert!(printed.contains("skipOwn is off"), "{printed}");
}

#[tokio::test]
async fn the_queue_is_shown_to_people_and_to_programs() {
    let scene = Scene::start().await;
    let id = scene.crm.state().add_webhook(CREATE, &format!("https://192.0.2.1{PATH}"), true, false);
    let routes = scene.route(CREATE, &[&id]);
    let printed = scene.as_admin(&routes, &[]).await.good();
    assert!(printed.contains("espocrm failed items CBeteiligte.create: none"), "{printed}");
    assert!(printed.contains("espocrm backlog CBeteiligte.create: no event waits"), "{printed}");
    for number in 0..201 {
        scene.crm.state().add_failed(CREATE, &format!("id-{number}"), SystemTime::now());
    }
    scene.crm.state().add_waiting(CREATE, SystemTime::now() - Duration::from_secs(7200));
    scene.crm.state().add_waiting(UPDATE, SystemTime::now() - Duration::from_secs(86400));
    let strict = scene.as_admin(&routes, &["--strict"]).await;
    assert_eq!(strict.code, Some(1));
    assert!(strict.printed.contains("201: the CRM gave them up"), "{}", strict.printed);
    assert!(strict.printed.contains("the oldest event has waited for 2h"), "{}", strict.printed);
    let metrics = scene.as_admin(&routes, &["--metrics"]).await.good();
    assert!(metrics.contains("hookgate_espocrm_failed_items{route=\"vmh/beteiligte/create\"} 201\n"), "{metrics}");
    let series = "hookgate_espocrm_backlog_age_seconds{route=\"vmh/beteiligte/create\"} ";
    let age = metrics.lines().find_map(|line| line.strip_prefix(series));
    assert!(age.and_then(|age| age.parse::<u64>().ok()).is_some_and(|age| (7200..7300).contains(&age)), "{metrics}");
    assert!(metrics.contains("hookgate_espocrm_failures 0\n"), "{metrics}");
}

/// The image has neither a shell nor a client: the job brings its metrics to a Pushgateway by itself.
#[tokio::test]
async fn metrics_go_to_a_pushgateway() {
    let scene = Scene::start().await;
    let id = scene.crm.state().add_webhook(CREATE, &format!("https://192.0.2.1{PATH}"), false, false);
    let (sender, mut pushed) = tokio::sync::mpsc::unbounded_channel();
    let gateway = HttpServer::start(None, move |request| {
        let body = String::from_utf8_lossy(request.body()).into_owned();
        sender.send((request.method().to_string(), request.uri().path().to_owned(), body)).expect("the test listens");
        Response::builder().status(200).body(Bytes::new()).expect("it is an answer")
    })
    .await;
    let routes = scene.route(CREATE, &[&id]);
    let ran = scene.as_admin(&routes, &["--metrics", "--push-to", &gateway.url()]).await;
    assert_eq!((ran.code, ran.printed.as_str()), (Some(1), ""), "an inactive webhook is a failure: {}", ran.remarks);
    assert!(ran.remarks.contains("it is inactive"), "{}", ran.remarks);
    let (method, path, body) = pushed.recv().await.expect("something came");
    assert_eq!((method.as_str(), path.as_str()), ("PUT", "/metrics/job/hookgate-espocrm/instance/hookgate"));
    assert!(body.ends_with("hookgate_espocrm_failures 1\n"), "{body}");
    drop(gateway);
    let refusing = HttpServer::start(None, |_request| {
        Response::builder().status(404).body(Bytes::new()).expect("it is an answer")
    })
    .await;
    let said = scene.as_admin(&routes, &["--metrics", "--push-to", &refusing.url()]).await.bad();
    assert!(said.contains("answered 404 Not Found; check --push-to"), "{said}");
}

#[tokio::test]
async fn a_crm_and_a_pushgateway_that_are_both_away_are_both_named() {
    let scene = Scene::start().await;
    let [crm, gateway] = [(); 2].map(|()| {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free").local_addr();
        format!("http://{}", nobody.expect("it has one"))
    });
    let login = scene.crm.as_admin(scene.folder.path()).replace(&scene.crm.url(), &crm);
    let said = scene.doctor(&login, &scene.route(CREATE, &[]), &["--metrics", "--push-to", &gateway]).await.bad();
    assert!(said.contains(&crm) && said.contains(&gateway), "{said}");
}

#[tokio::test]
async fn what_the_version_of_the_crm_does_is_said() {
    let scene = Scene::start().await;
    let id = scene.crm.state().add_webhook(UPDATE, "http://localhost:3000/vmh/webhook/beteiligte/update", true, false);
    let by_ip = scene.crm.state().add_webhook(CREATE, &format!("https://192.0.2.1{PATH}"), true, false);
    let lost = scene.crm.state().add_webhook(CREATE, &format!("https://nobody.invalid{PATH}"), true, false);
    let routes = format!("{}{}", scene.route(UPDATE, &[&id]), scene.route(CREATE, &[&by_ip, &lost]));
    let cases: [(&str, &[&str], &[&str]); 6] = [
        (
            "8.4.2",
            &[
                "8.4.2: before an upgrade to 9.3.2 or later, list private addresses",
                "this version has no skipOwn",
                "EspoCRM 8.4.2 calls it; from 9.3.2 on it is called only if webhookAllowedAddressList in data/config.php has 'localhost:3000'",
                "EspoCRM 8.4.2 tries four times; from 9.3.4 on",
                "espocrm backlog CBeteiligte.create: this version of the CRM does not show it",
            ],
            &["skipOwn is off", "FAIL"],
        ),
        ("9.2.7", &["skipOwn is off", "EspoCRM 9.2.7 calls it; from 9.3.2 on"], &["no skipOwn"]),
        ("9.3.2", &["9.3.2: private addresses are called only if", "EspoCRM 9.3.2 calls it only if"], &[]),
        ("9.3.10", &["EspoCRM 9.3.10 calls it only if", "EspoCRM 9.3.10 loses each batch at once"], &["FAIL"]),
        (
            "10.0.0",
            &["10.0.0: a refused connection", "FAIL  espocrm webhook", "crashes if webhookAllowedAddressList has it"],
            &["in EspoCRM 10"],
        ),
        ("@@version", &["does not name its version", "EspoCRM from 9.3.2 on calls it only if"], &["FAIL"]),
    ];
    for (version, said, unsaid) in cases {
        scene.crm.state().version = version;
        let printed = scene.as_admin(&routes, &[]).await.printed;
        for words in said {
            assert!(printed.contains(words), "{version}: {words:?} is not in {printed}");
        }
        for words in unsaid {
            assert!(!printed.contains(words), "{version}: {words:?} is in {printed}");
        }
    }
}
