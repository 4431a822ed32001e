//! `hookgate why`: one id's story.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use hookgate::{app::story::Story, batch::EntityId, settings::Settings};

use super::{Output, print, store, tell};

/// How long reading may take. A stream of millions takes a minute or so.
const PATIENCE: Duration = Duration::from_secs(3600);

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 if something is known of the id, else 1.

Examples:
  hookgate why 65f0c1                          on every route that knows something of it
  hookgate why 65f0c1 --route vmh/beteiligte/create
  hookgate why 65f0c1 --since 2d               faster where the stream is long")]
pub(crate) struct WhyArguments {
    /// The entity's id.
    id: String,
    /// Only this route, by its name.
    #[arg(long, value_name = "FLOW/ENTITY/ACTION")]
    route: Option<String>,
    /// Read the stream from so long ago [default: from the first claim if it is pending, else all of it].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
}

pub(super) fn run(arguments: &WhyArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let WhyArguments { id, route, since } = arguments;
    if EntityId::parse(id).is_none() {
        bail!("{id:?} is no id of an entity: 1 to 255 bytes without control characters");
    }
    let all = settings.routes.routes();
    let routes: Vec<_> =
        all.iter().filter(|known| route.as_ref().is_none_or(|name| name == known.name())).cloned().collect();
    if let (Some(name), true) = (route, routes.is_empty()) {
        bail!("no route is named {name:?}; `hookgate routes` lists them");
    }
    let since = since.map(|since| SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH));
    store::block_on(async {
        let opened = store::open(settings).await?;
        let teller = opened.story_teller(settings);
        // Routes on which it is pending are read from their claim, and need not wait for the others.
        let stories = teller.tell(&routes, id, since, PATIENCE).await;
        let known: Vec<_> = stories.iter().filter(|story| !story.is_empty()).collect();
        let shown = if route.is_some() || known.is_empty() { stories.iter().collect() } else { known.clone() };
        show(&shown, route.is_some() || !known.is_empty(), id, output)?;
        let blind = stories.iter().any(|story| !story.not_seen.is_empty());
        Ok(if known.is_empty() || blind { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

fn show(stories: &[&Story], each: bool, id: &str, output: Output) -> anyhow::Result<()> {
    for story in stories {
        let text = match output {
            Output::Json => serde_json::to_string(story).context("print")?,
            Output::Text if each => story.lines().join("\n") + "\n",
            Output::Text => continue,
        };
        if !print(&text) {
            return Ok(());
        }
    }
    if output == Output::Text && !each {
        print(&format!("nothing is known of {} any more: not pending, and no event in the streams", id.escape_debug()));
        for problem in stories.iter().flat_map(|story| &story.not_seen).take(3) {
            tell(&format!("hookgate: not seen: {problem}"));
        }
    }
    Ok(())
}
