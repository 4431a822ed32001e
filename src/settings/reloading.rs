//! Reading a configuration again: where it comes from, and which of its keys a running process can take over.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    ClaimsIn, DEFAULT_FILE, Environment, Layers, Settings,
    sections::{Configuration, LogSection, OutboxSection, ServerSection},
    variables,
};
use crate::{nats_login::Login, secrets::Secret};

/// Where a configuration comes from.
pub struct Sources {
    files: Vec<PathBuf>,
    environment: Environment,
}

/// The text of each file; none of one that can't be read.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents(Vec<Option<Vec<u8>>>);

impl Contents {
    /// These, and what the secret files of the stores hold, which a configuration names.
    #[must_use]
    pub fn with_secrets_of(mut self, configuration: &Configuration) -> Self {
        self.0.extend(configuration.store_secrets().filter_map(|(_, file)| file).map(|file| std::fs::read(file).ok()));
        self
    }
}

const REDIS_PASSWORD: &str = "redis.password_file";
const SENTINEL_PASSWORD: &str = "redis.sentinel_password_file";

/// What the stores are logged in with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct StoreLogins {
    redis: Option<Secret>,
    sentinels: Option<Secret>,
    nats: Login,
}

impl StoreLogins {
    /// Keys of the secret files that hold something else than `before`.
    pub(crate) fn changed_since(&self, before: &Self, configuration: &Configuration) -> Vec<String> {
        let has_changed = |key: &str| match key {
            SENTINEL_PASSWORD => self.sentinels != before.sentinels,
            REDIS_PASSWORD => self.redis != before.redis,
            _ => self.nats != before.nats,
        };
        let named = configuration.store_secrets().filter(|(_, file)| file.is_some()).map(|(key, _)| key);
        named.filter(|key| has_changed(key)).map(str::to_owned).collect()
    }
}

impl Settings {
    /// What the stores are logged in with.
    pub(crate) fn store_logins(&self) -> StoreLogins {
        let (redis, sentinels) = match &self.claims_in {
            ClaimsIn::Redis(address) => (address.password.clone(), address.servers.sentinel_password()),
            ClaimsIn::Memory => (None, None),
        };
        StoreLogins { redis, sentinels, nats: self.nats.login.clone() }
    }
}

impl Sources {
    /// Built-in defaults, files, environment. Without `files` those of the variable `HOOKGATE_CONFIG`, else [`DEFAULT_FILE`]
    /// if it exists.
    #[must_use]
    pub fn new(files: Vec<PathBuf>, environment: Environment) -> Self {
        let named = environment.iter().find(|(name, _)| name == variables::FILES).map_or("", |(_, files)| files);
        let files = if files.is_empty() {
            named.split(':').filter(|file| !file.is_empty()).map(PathBuf::from).collect()
        } else {
            files
        };
        Self { files, environment }
    }

    /// Reads and merges the layers. What is wrong with them, [`super::Settings::check`] says.
    #[must_use]
    pub fn load(&self) -> (Configuration, Layers) {
        let mut layers = Layers::default();
        for file in &self.files {
            layers.add_file(file);
        }
        let default = Path::new(DEFAULT_FILE);
        if self.files.is_empty() && default.exists() {
            layers.add_file(default);
        }
        layers.add_environment(self.environment.clone());
        (layers.merge(), layers)
    }

    /// What the files hold now, to see whether they change. Contents, not times: a mounted file is swapped by a link.
    #[must_use]
    pub fn contents(&self) -> Contents {
        let files = if self.files.is_empty() { vec![PathBuf::from(DEFAULT_FILE)] } else { self.files.clone() };
        Contents(files.iter().map(|file| std::fs::read(file).ok()).collect())
    }
}

impl Configuration {
    /// The same with what a running process can take over from another one: routes, limits of requests, bodies, letters and
    /// outboxes, and the log filter. Everything else needs a restart.
    #[must_use]
    pub fn taking_over(&self, next: &Self) -> Self {
        let Self { instance, server, admin, redis, nats, outbox, tracing, log, .. } = self.clone();
        let next = next.clone();
        Self {
            server: ServerSection {
                listen: server.listen,
                max_connections: server.max_connections,
                worker_threads: server.worker_threads,
                ..next.server
            },
            outbox: OutboxSection { relay_after: outbox.relay_after, ..next.outbox },
            log: LogSection { format: log.format, ..next.log },
            instance,
            admin,
            redis,
            nats,
            tracing,
            dead_letters: next.dead_letters,
            quarantine: next.quarantine,
            // Only commands use it.
            espocrm: next.espocrm,
            routes: next.routes,
        }
    }

    /// The files that hold secrets of the stores, by their keys.
    fn store_secrets(&self) -> impl Iterator<Item = (&'static str, Option<&PathBuf>)> {
        [
            ("nats.nkey_seed_file", self.nats.nkey_seed_file.as_ref()),
            ("nats.password_file", self.nats.password_file.as_ref()),
            ("nats.token_file", self.nats.token_file.as_ref()),
            (REDIS_PASSWORD, self.redis.password_file.as_ref()),
            (SENTINEL_PASSWORD, self.redis.sentinel_password_file.as_ref()),
        ]
        .into_iter()
    }

    /// Names of the keys whose values differ, in order.
    #[must_use]
    pub fn differing_keys(&self, other: &Self) -> Vec<String> {
        let (mine, yours) = (self.keys(), other.keys());
        let mut keys: Vec<_> = mine.iter().filter(|(key, value)| yours.get(*key) != Some(*value)).collect();
        keys.extend(yours.iter().filter(|(key, _)| !mine.contains_key(*key)));
        let mut names: Vec<_> = keys.into_iter().map(|(key, _)| key.clone()).collect();
        names.sort();
        names
    }

    fn keys(&self) -> BTreeMap<String, Value> {
        let mut keys = BTreeMap::new();
        collect("", Table::try_from(self).expect("text and numbers always serialize"), &mut keys);
        keys
    }
}

fn collect(prefix: &str, table: Table, keys: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) => collect(&name, table, keys),
            value => {
                keys.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(text: &str) -> Configuration {
        let mut layers = Layers::default();
        layers.add_text("a test", text);
        layers.merge()
    }

    #[test]
    fn a_running_process_takes_over_what_it_can() {
        let before = configuration("redis.url = \"redis://a\"\nserver.max_in_flight = 7");
        let next = configuration(
            "redis.url = \"redis://b\"\nredis.username = \"u\"\nnats.stream.replicas = 3\nserver.max_in_flight = 9\n\
            server.drain_delay = \"1s\"\noutbox.max_entries = 5\noutbox.relay_after = \"1m\"\nlog.filter = \"debug\"\n\
            log.format = \"text\"\nquarantine.max_entries = 3\ndead_letters.max_age = \"1h\"\n\
            [[routes]]\nflow = \"a\"\nentity = \"b\"\naction = \"c\"",
        );
        let taken = before.taking_over(&next);
        assert_eq!(
            taken.differing_keys(&next),
            ["log.format", "nats.stream.replicas", "outbox.relay_after", "redis.url", "redis.username"]
        );
        assert_eq!(
            before.differing_keys(&taken),
            [
                "dead_letters.max_age",
                "log.filter",
                "outbox.max_entries",
                "quarantine.max_entries",
                "routes",
                "server.drain_delay",
                "server.max_in_flight"
            ]
        );
        assert_eq!(before.taking_over(&before), before);
    }
}
