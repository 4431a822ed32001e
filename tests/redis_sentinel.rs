//! Redis found by sentinels: one primary, two Redis replicas, three sentinels.

use crate::support::{
    Authority, Event, Gate, Holds, NatsServer, OUTBOX, PENDING, RedisServer, Sentinels, World, batch, eventually, run,
};

struct Scene {
    world: World,
    sentinels: Sentinels,
}

impl Scene {
    async fn start() -> Self {
        let world = World::start().await;
        let sentinels = Sentinels::around(&world.redis).await;
        Self { world, sentinels }
    }

    fn url(&self) -> String {
        format!("redis.url = \"{}\"\n", self.sentinels.url())
    }

    fn settings(&self) -> String {
        self.settings_of(&self.sentinels.url())
    }

    fn settings_of(&self, url: &str) -> String {
        format!("redis.url = \"{url}\"\nnats.url = \"{}\"\n", self.world.nats.url())
    }
}

#[tokio::test]
async fn a_failover_is_followed() {
    let mut scene = Scene::start().await;
    let gate = scene.world.gate(&scene.url()).await;
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    scene.world.redis.settled(OUTBOX).await;
    let before = scene.world.redis.port();

    scene.sentinels.fail_over().await;
    let now = scene.sentinels.failed_over_from(before).await;
    scene.sentinels.swap(&mut scene.world.redis, now);
    // The old primary takes claims until it is told.
    eventually("ids are claimed on the new primary", async || {
        let _either = gate.post(batch(["c"])).await;
        scene.world.redis.pending(PENDING).await.contains("c").then_some(())
    })
    .await;
    assert_eq!(gate.deliver(batch(["a"])).await.counts(), (0, 1), "a is pending there, too");

    scene.world.redis.kill();
    let last = scene.sentinels.failed_over_from(now).await;
    scene.sentinels.swap(&mut scene.world.redis, last);
    eventually("ids are claimed on the last one", async || {
        let _either = gate.post(batch(["d"])).await;
        scene.world.redis.pending(PENDING).await.contains("d").then_some(())
    })
    .await;
    let events: Vec<String> = scene.world.nats.events().await.iter().map(Event::entity_id).collect();
    for (id, most) in [("a", 1), ("b", 1), ("c", 2)] {
        let count = events.iter().filter(|event| *event == id).count();
        assert!((1..=most).contains(&count), "{id} in {events:?}");
    }
}

#[tokio::test]
async fn the_commands_find_the_primary_and_doctor_looks_at_each_server() {
    let scene = Scene::start().await;
    let gate = scene.world.gate(&scene.url()).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(gate.post("[{\"id\":\"b\"},{\"x\":1}]").await.counts(), (1, 1));
    scene.world.redis.settled(OUTBOX).await;
    let settings = scene.settings();
    crate::redis_cluster::commands_work(&settings).await;

    let printed = run(&settings, &["doctor"]).printed;
    let servers = scene.sentinels.replicas.iter().chain([&scene.world.redis]).map(RedisServer::port);
    for port in servers {
        assert!(printed.contains(&format!("redis persistence (127.0.0.1:{port})")), "{printed}");
    }
    assert!(printed.contains("redis sentinels: the primary of \"main\" is"), "{printed}");
    assert!(printed.contains("WARN  redis min-replicas-to-write"), "a cut network can leave two primaries\n{printed}");
}

#[tokio::test]
async fn a_service_that_no_sentinel_knows_is_refused() {
    let scene = Scene::start().await;
    let url = scene.sentinels.url().replace("/main", "/other");
    let ran = run(&scene.settings_of(&url), &["outbox", "list"]);
    let problem = ran.bad();
    assert!(problem.contains("no sentinel of redis.url knows a primary named \"other\""), "{problem}");
    let instead = format!("redis+sentinel://127.0.0.1:{}/main", scene.world.redis.port());
    let problem = run(&scene.settings_of(&instead), &["outbox", "list"]).bad();
    assert!(problem.contains("is a Redis and no sentinel"), "{problem}");
}

#[tokio::test]
async fn sentinels_may_want_a_login() {
    let world = World::start().await;
    let more = "requirepass geheim\nsentinel sentinel-pass geheim\n\
        user hookgate on >right resetchannels -@all +sentinel|get-master-addr-by-name +sentinel|master\n\
        user doctor on >right resetchannels -@all +sentinel|get-master-addr-by-name +sentinel|master +sentinel|replicas\n\
        user weak on >right resetchannels -@all +sentinel|get-master-addr-by-name\n";
    let sentinels = Sentinels::guarded(&world.redis, more, ":geheim@").await;
    let settings = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", sentinels.url(), world.nats.url());
    let problem = run(&settings, &["outbox", "list"]).bad();
    assert!(problem.contains("requires a password: set redis.sentinel_password_file"), "{problem}");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("password");
    let denied = Some("denies a permission (NOPERM");
    // Who may not ask for the Redis replicas can do all but look at them.
    const UNSEEN: &str = "allow +sentinel|replicas to see them";
    for (user, sees) in [("hookgate", false), ("doctor", true)] {
        std::fs::write(&file, "right").expect("the folder is ours");
        let login =
            format!("redis.sentinel_username = \"{user}\"\nredis.sentinel_password_file = \"{}\"\n", file.display());
        let printed = run(&format!("{settings}{login}"), &["doctor"]).printed;
        assert_eq!(printed.contains(UNSEEN), !sees, "{user}: {printed}");
        for replica in &sentinels.replicas {
            let named = printed.contains(&format!("redis role (127.0.0.1:{})", replica.port()));
            assert_eq!(named, sees, "{user}: {printed}");
        }
    }
    for (user, password, complaint) in [
        (None, "falsch", Some("does not take this login")),
        (None, "geheim", None),
        (Some("hookgate"), "right", None),
        (Some("hookgate"), "wrong", Some("does not take this login")),
        (Some("weak"), "right", denied),
    ] {
        std::fs::write(&file, password).expect("the folder is ours");
        let user = user.map_or_else(String::new, |user| format!("redis.sentinel_username = \"{user}\"\n"));
        let with = format!("{settings}{user}redis.sentinel_password_file = \"{}\"\n", file.display());
        let ran = run(&with, &["outbox", "list"]);
        match complaint {
            None => drop(ran.good()),
            Some(complaint) => {
                let problem = ran.bad();
                assert!(problem.contains(complaint), "{user}: {problem}");
            }
        }
    }
}

#[tokio::test]
async fn sentinels_and_servers_may_speak_tls() {
    let (ours, others) = (Authority::new(), Authority::new());
    let shows = ours.sign("server", "127.0.0.1", Holds::Now);
    let ca = ours.ca();
    let (redis, nats) = tokio::join!(RedisServer::with_tls(&ca, &shows, false), NatsServer::start());
    let port = redis.tls_url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("it ends with a port");
    let sentinels = Sentinels::over_tls(port, &ca, &shows);
    let url = sentinels.url().replace("redis+", "rediss+");
    let settings = |authority: &Authority| {
        format!(
            "redis.url = \"{url}\"\nnats.url = \"{}\"\nredis.ca_file = \"{}\"\n",
            nats.url(),
            authority.ca().display()
        )
    };
    let gate = Gate::start(&settings(&ours), "").await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert!(redis.pending(PENDING).await.contains("a"));
    let problem = run(&settings(&others), &["outbox", "list"]).bad();
    assert!(problem.contains("sentinel 127.0.0.1") && problem.contains("check redis.ca_file"), "{problem}");
}
