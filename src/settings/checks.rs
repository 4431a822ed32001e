//! Whether a value makes sense, alone and beside the others. Each complaint names the layer it came from.

use std::time::Duration;

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::{
    Delivery, Layers, SettingsError,
    sections::{self, Auth, RouteSection, SchemeName, WhilePending},
    without_credentials,
};
use crate::{
    publisher::StreamSettings,
    route::{Route, RouteSpec, RouteTable},
    secrets::SecretFiles,
    signature::{Scheme, Secrets, Verifier, Verifiers},
    telemetry,
    traces::Collector,
};

/// A value as it is written in a file.
pub(super) fn in_toml(value: &impl Serialize) -> String {
    toml::Value::try_from(value).map_or_else(|_| "?".to_owned(), |value| value.to_string())
}

/// Names the layer a bad value came from.
pub(super) struct Check<'a> {
    pub(super) layers: &'a Layers,
}

impl Check<'_> {
    pub(super) fn value(&self, key: &'static str, value: impl std::fmt::Display, problem: String) -> SettingsError {
        SettingsError::Value { source_name: self.layers.origin(key), key, value: value.to_string(), problem }
    }

    pub(super) fn range(&self, key: &'static str, value: usize, low: usize, high: usize) -> Result<(), SettingsError> {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(self.value(key, value, format!("is not between {low} and {high}")))
    }

    /// That one limit leaves room for another.
    pub(super) fn at_least(
        &self,
        (key, value): (&'static str, usize),
        (low_key, low): (&str, usize),
    ) -> Result<(), SettingsError> {
        if value >= low {
            return Ok(());
        }
        let problem =
            format!("is below {low_key} ({}: {low}); raise the one or lower the other", self.layers.origin(low_key));
        Err(self.value(key, value, problem))
    }

    pub(super) fn positive(&self, key: &'static str, value: Duration) -> Result<(), SettingsError> {
        if value.is_zero() {
            return Err(self.value(key, "\"0s\"", "has to be longer than nothing".to_owned()));
        }
        Ok(())
    }

    pub(super) fn log_filter(&self, log: &sections::Log) -> Result<EnvFilter, SettingsError> {
        telemetry::parse_filter(&log.filter).map_err(|error| {
            let problem = format!("{error}; write levels and modules such as \"info,hookgate::entity=warn\"");
            self.value("log.filter", format!("{:?}", log.filter), problem)
        })
    }

    pub(super) fn collector(&self, tracing: &sections::Tracing) -> Result<Option<Collector>, SettingsError> {
        let Some(endpoint) = &tracing.otlp_endpoint else { return Ok(None) };
        Collector::parse(endpoint).map(Some).map_err(|error| {
            let shown = format!("{:?}", without_credentials(endpoint));
            self.value("tracing.otlp_endpoint", shown, error.to_string())
        })
    }

    pub(super) fn delivery(&self, nats: &sections::Nats) -> Result<Delivery, SettingsError> {
        let stream = &nats.stream;
        let good = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
        if stream.name.is_empty() || !stream.name.chars().all(good) {
            let problem = "is no name of a stream: visible ASCII without '.', '*', '>', '/' and '\\'".to_owned();
            return Err(self.value("nats.stream.name", format!("{:?}", stream.name), problem));
        }
        self.range("nats.stream.replicas", stream.replicas, 1, 5)?;
        if !stream.max_age.0.is_zero() && stream.max_age.0 < stream.duplicate_window.0 {
            let problem = "is shorter than nats.stream.duplicate_window, which NATS refuses".to_owned();
            return Err(self.value("nats.stream.max_age", stream.max_age, problem));
        }
        Ok(match nats.delivery {
            sections::Delivery::Core => Delivery::Core,
            sections::Delivery::Jetstream => Delivery::JetStream(StreamSettings {
                name: stream.name.clone(),
                create: stream.create,
                replicas: stream.replicas,
                max_age: stream.max_age.0,
                duplicate_window: stream.duplicate_window.0,
            }),
        })
    }

    pub(super) fn routes(&self, routes: &[RouteSection]) -> Result<RouteTable, SettingsError> {
        let wrong = |problem: String| SettingsError::Layer { source_name: self.layers.origin("routes"), problem };
        let mut table = Vec::new();
        for section in routes {
            let RouteSection { flow, entity, action, path, subject, pending_key, label, while_pending, auth: _ } =
                section;
            let name = section.name();
            let updates = matches!(action.as_str(), "update" | "fieldUpdate");
            match while_pending {
                Some(WhilePending::Skip) => {}
                None if !updates => {}
                None => {
                    return Err(wrong(format!(
                        "route {name:?}: an {action} route needs while_pending = \"skip\": this version drops an {action} of an id that is still pending, so its consumers have to release an id before they read the record"
                    )));
                }
                Some(WhilePending::Coalesce) => {
                    return Err(wrong(format!(
                        "route {name:?}: while_pending = \"coalesce\" is not in this version of hookgate; set \"skip\", and let consumers release an id before they read the record"
                    )));
                }
            }
            let spec = RouteSpec {
                flow,
                entity,
                action,
                path: path.as_deref(),
                subject: subject.as_deref(),
                pending_key: pending_key.as_deref(),
                label: label.as_deref(),
            };
            table.push(Route::new(&spec).map_err(|error| wrong(error.to_string()))?);
        }
        RouteTable::new(table).map_err(|error| wrong(error.to_string()))
    }

    /// What each route asks of its senders, by the route's name, and the files behind it.
    pub(super) fn verifiers(&self, routes: &[RouteSection]) -> Result<(Verifiers, Vec<SecretFiles>), SettingsError> {
        let (mut verifiers, mut files) = (Vec::new(), Vec::new());
        for section in routes {
            let name = section.name();
            let wrong = |problem: String| SettingsError::Layer {
                source_name: self.layers.origin("routes"),
                problem: format!("route {name:?}: auth: {problem}"),
            };
            let mut entries: Vec<(Scheme, Secrets)> = Vec::new();
            for entry in &section.auth {
                let scheme = scheme(entry).map_err(wrong)?;
                if entries.iter().any(|(other, _)| *other == scheme) {
                    return Err(wrong(format!("{scheme:?} is there twice; put all its files into one secret_files")));
                }
                if entry.secret_files.is_empty() {
                    let problem = "secret_files names no file, so nobody would be let in".to_owned();
                    return Err(wrong(format!("scheme {:?}: {problem}", scheme.name())));
                }
                let opened = SecretFiles::open(name.clone(), scheme.clone(), entry.secret_files.clone());
                let opened = opened.map_err(|error| wrong(error.to_string()))?;
                entries.push((scheme, opened.secrets()));
                files.push(opened);
            }
            verifiers.push((name, Verifier::new(entries)));
        }
        Ok((Verifiers::new(verifiers), files))
    }
}

fn scheme(entry: &Auth) -> Result<Scheme, String> {
    let scheme = match (entry.scheme, &entry.id) {
        (SchemeName::EspoCrm, Some(id)) if !id.is_empty() && !id.contains(':') => Scheme::EspoCrm { id: id.clone() },
        (SchemeName::EspoCrm, Some(id)) => {
            return Err(format!("id {id:?} is no id of a webhook: it is empty or has a colon in it"));
        }
        (SchemeName::EspoCrm, None) => {
            return Err("scheme \"espocrm\" needs the id of the webhook, as EspoCRM shows it".to_owned());
        }
        (SchemeName::StandardWebhooks, None) => Scheme::StandardWebhooks,
        (SchemeName::GitHub, None) => Scheme::GitHub,
        (SchemeName::Bearer, None) => Scheme::Bearer,
        (_, Some(id)) => return Err(format!("id {id:?} makes sense with scheme \"espocrm\" only; leave it out")),
    };
    Ok(scheme)
}
