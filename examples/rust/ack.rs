//! A consumer of a route with `release = "ack"`: it processes each event and acknowledges it. Nothing else to do.

use std::{
    env, fs,
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context;
use async_nats::{
    ConnectOptions,
    jetstream::{self, AckKind, Message, consumer::PullConsumer},
};
use futures_util::StreamExt;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

static LEAVING: AtomicBool = AtomicBool::new(false);

#[expect(clippy::disallowed_methods, reason = "the ban is hookgate's own")]
fn setting(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Your work. Store the result and the token in one step, here a file: then a second delivery does nothing.
async fn process(event: &[u8], token: &str) -> anyhow::Result<()> {
    let result = PathBuf::from(setting("RESULTS", "results")).join(format!("{token}.json"));
    if result.exists() {
        return Ok(());
    }
    // Read the record from the CRM by the event's `entity_id`, and work.
    sleep(Duration::from_secs_f64(setting("WORK_SECONDS", "0").parse()?)).await;
    // In containers each is process 1.
    let part = result.with_extension(format!("{}.{}", setting("HOSTNAME", ""), std::process::id()));
    let mut file = fs::File::create(&part)?;
    file.write_all(event)?;
    file.sync_all()?;
    Ok(fs::rename(part, result)?)
}

/// Work may take longer than the consumer's `ack_wait`: until it is done, the server must not deliver it again.
async fn in_progress(message: &Message, pause: Duration) -> anyhow::Result<()> {
    loop {
        sleep(pause).await;
        message.ack_with(AckKind::Progress).await.map_err(anyhow::Error::from_boxed)?;
    }
}

async fn handle(message: &Message, ack_wait: Duration) {
    let work = async {
        let token = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).context("no token")?;
        process(&message.payload, token.as_str()).await
    };
    let worked = tokio::select! {
        worked = work => worked,
        Err(error) = in_progress(message, ack_wait / 3) => Err(error),
    };
    // Waits until the server has it.
    let handled = match worked {
        Ok(()) => message.double_ack().await.map_err(anyhow::Error::from_boxed),
        Err(error) => Err(error),
    };
    if let Err(error) = handled {
        let delivered = message.info().map_or(1, |info| info.delivered);
        let pause = Duration::from_secs(1 << delivered.clamp(1, 5));
        println!("{}: once more in {pause:?}: {error:#}", String::from_utf8_lossy(&message.payload));
        let _comes_again_anyway = message.ack_with(AckKind::Nak(Some(pause))).await;
    }
}

async fn consume(stream: &jetstream::Context, durable: &str) -> anyhow::Result<()> {
    let consumer: PullConsumer = stream.get_consumer_from_stream(durable, setting("STREAM", "HOOKGATE")).await?;
    let ack_wait = consumer.cached_info().config.ack_wait;
    while !LEAVING.load(Relaxed) {
        let events = consumer.batch().max_messages(10).expires(Duration::from_secs(5)).messages().await?;
        events
            .for_each_concurrent(None, async |event| match event {
                Ok(message) => handle(&message, ack_wait).await,
                Err(error) => println!("fetch: {error:#}"),
            })
            .await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    fs::create_dir_all(setting("RESULTS", "results"))?;
    let durable = setting("CONSUMER", "case-sync");
    // What is in hand is finished first. As the first process of a container it would not hear the signal else.
    let mut told_to_leave = signal(SignalKind::terminate())?;
    let leave = async {
        told_to_leave.recv().await;
        LEAVING.store(true, Relaxed);
    };
    let mut options = ConnectOptions::new().retry_on_initial_connect().custom_inbox_prefix(format!("_INBOX.{durable}"));
    // The user and its password, which is in a file, where NATS asks for one.
    let user = setting("NATS_USER", "");
    if !user.is_empty() {
        let password = fs::read_to_string(setting("NATS_PASSWORD_FILE", ""))?;
        options = options.user_and_password(user, password.trim().to_owned());
    }
    let stream = jetstream::new(options.connect(setting("NATS_URL", "nats://127.0.0.1:4222")).await?);
    let work = async {
        while !LEAVING.load(Relaxed) {
            // No such consumer yet, or NATS is away.
            if let Err(error) = consume(&stream, &durable).await {
                println!("consume {durable}: {error:#}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    };
    tokio::join!(work, leave);
    Ok(())
}
