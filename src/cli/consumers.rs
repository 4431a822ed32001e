//! `hookgate consumers`: durable consumers of the streams.

use std::{collections::HashMap, process::ExitCode};

use anyhow::{Context, bail};
use clap::Subcommand;
use hookgate::{
    app::operator,
    publisher::consumers::{ConsumerInfo, Listed},
    route::Route,
    settings::Settings,
};
use serde::Serialize;

use super::{
    Output, dead_letters, print, store,
    table::{Table, counted},
    tell,
};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  hookgate consumers list
  hookgate consumers add case-sync --route vmh/beteiligte/create --route vmh/beteiligte/update
  hookgate consumers add case-sync --filter 'vmh.>'")]
pub(crate) enum ConsumersCommand {
    /// The durable consumers of the streams: what waits for each, what it has not acknowledged, and what is wrong.
    List,
    /// Make one whose acknowledgements can release ids: explicit, each one announced, without a last delivery.
    Add {
        /// Its name, as in `routes.consumers`.
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
        /// A route whose events it takes, by its name; several are allowed [default: those that name it in `consumers`].
        #[arg(long = "route", value_name = "FLOW/ENTITY/ACTION")]
        routes: Vec<String>,
        /// What it takes, in the place of the subjects of the routes.
        #[arg(long, value_name = "SUBJECT")]
        filter: Option<String>,
    },
}

/// A name that NATS takes.
fn name(text: &str) -> Result<String, &'static str> {
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\' | ',' | ':' | ';');
    if !text.is_empty() && text.len() <= 255 && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    Err("visible ASCII without '.', '*', '>', '/', '\\', ',', ':' and ';', at most 255 bytes")
}

pub(super) fn run(command: &ConsumersCommand, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(async {
        match command {
            ConsumersCommand::List => list(settings, output).await,
            ConsumersCommand::Add { name, routes, filter } => {
                add(name, &chosen(name, routes, settings)?, filter.as_deref(), settings, output).await
            }
        }
    })
}

/// Stream and consumer → the events that it gave up.
type GivenUp = HashMap<(String, String), u64>;

#[derive(Serialize)]
struct Row<'a> {
    consumer: &'a str,
    stream: &'a str,
    routes: Vec<&'a str>,
    exists: bool,
    waiting: Option<u64>,
    unacknowledged: Option<u64>,
    redelivered: Option<u64>,
    /// As far as their dead letters are kept; unknown while Redis is down.
    given_up: Option<u64>,
    delivered_sequence: Option<u64>,
    acknowledged_up_to: Option<u64>,
    problems: &'a [String],
}

impl<'a> Row<'a> {
    fn new(listed: &'a Listed<'_>, given_up: Option<&GivenUp>) -> Self {
        let info = listed.info.as_ref();
        Self {
            consumer: &listed.name,
            stream: &listed.stream,
            routes: listed.routes.iter().map(|route| route.name()).collect(),
            exists: info.is_some(),
            waiting: info.map(ConsumerInfo::waiting),
            unacknowledged: info.map(ConsumerInfo::unacknowledged),
            redelivered: info.map(ConsumerInfo::redelivered),
            given_up: given_up.map(|all| all.get(&(listed.stream.clone(), listed.name.clone())).copied().unwrap_or(0)),
            delivered_sequence: info.map(ConsumerInfo::delivered),
            acknowledged_up_to: info.map(ConsumerInfo::floor),
            problems: &listed.problems,
        }
    }

    fn cells(&self) -> [String; 7] {
        let routes = match self.routes.as_slice() {
            [] => "none".to_owned(),
            [one] => (*one).to_owned(),
            several => counted(several.len(), "route", "routes"),
        };
        let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
        let numbers = [self.waiting, self.unacknowledged, self.redelivered, self.given_up].map(number);
        let [waiting, unacknowledged, redelivered, given_up] = numbers;
        [self.consumer.to_owned(), self.stream.to_owned(), routes, waiting, unacknowledged, redelivered, given_up]
    }
}

async fn list(settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let consumers = operator::consumers(settings).await?;
    let listed = consumers.list(&settings.routes).await?;
    let given_up = given_up(settings).await;
    let given_up =
        given_up.inspect_err(|error| tell(&format!("hookgate: what consumers gave up is not known: {error:#}"))).ok();
    let rows: Vec<_> = listed.iter().map(|listed| Row::new(listed, given_up.as_ref())).collect();
    match output {
        Output::Json => {
            for row in &rows {
                if !print(&serde_json::to_string(row).context("print")?) {
                    break;
                }
            }
        }
        Output::Text => {
            let columns = ["CONSUMER", "STREAM", "ROUTES", "WAITING", "UNACKNOWLEDGED", "REDELIVERED", "GIVEN UP"];
            let mut table = Table::new(columns);
            table.rows(&rows.iter().map(Row::cells).collect::<Vec<_>>());
            table.end("no durable consumers");
            for row in &rows {
                for problem in row.problems {
                    tell(&format!("hookgate: warning: consumer {}: {problem}", row.consumer));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn given_up(settings: &Settings) -> anyhow::Result<GivenUp> {
    let store = store::open(settings).await?;
    dead_letters::given_up(&store).await
}

/// The routes that a new consumer is for.
fn chosen<'a>(name: &str, named: &[String], settings: &'a Settings) -> anyhow::Result<Vec<&'a Route>> {
    let all = settings.routes.routes();
    if named.is_empty() {
        let configured = |route: &&Route| route.life().consumers.iter().any(|consumer| consumer == name);
        let routes: Vec<_> = all.iter().map(|route| &**route).filter(configured).collect();
        if routes.is_empty() {
            bail!("no route names {name:?} in `consumers`: say which ones with --route; `hookgate routes` lists them");
        }
        return Ok(routes);
    }
    let find = |name: &String| {
        let route = all.iter().find(|route| route.name() == name);
        route.map(|route| &**route).with_context(|| format!("no route is named {name:?}; `hookgate routes` lists them"))
    };
    named.iter().map(find).collect()
}

async fn add(
    name: &str,
    routes: &[&Route],
    filter: Option<&str>,
    settings: &Settings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let consumers = operator::consumers(settings).await?;
    let added = consumers.add(name, routes, filter).await?;
    let filters = added.filters.join(", ");
    if added.takes_more {
        tell(&format!(
            "hookgate: warning: this NATS gives a consumer one filter, so it takes {filters}; --filter chooses another one"
        ));
    }
    print(&match output {
        Output::Json => serde_json::json!({
            "consumer": name,
            "stream": added.stream,
            "filters": added.filters,
            "created": !added.was_there,
        })
        .to_string(),
        Output::Text if added.was_there => {
            format!("consumer {name} of stream {} is there already, and right", added.stream)
        }
        Output::Text => format!("created consumer {name} of stream {}: it takes {filters}", added.stream),
    });
    let unnamed = |route: &&&Route| !route.life().consumers.iter().any(|consumer| consumer == name);
    if let Some(route) = routes.iter().find(unnamed) {
        tell(&format!("Name it in the configuration of route {route}: consumers = [\"{name}\"], release = \"ack\""));
    }
    Ok(ExitCode::SUCCESS)
}
