//! Keeps passwords out of what is printed.

use super::sections::Configuration;
use crate::redaction::without_credentials;

impl Configuration {
    /// The same with the credentials of addresses hidden, to be shown.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut shown = self.clone();
        shown.redis.url = without_credentials(&self.redis.url);
        let servers: Vec<_> = self.nats.url.split(',').map(without_credentials).collect();
        shown.nats.url = servers.join(",");
        shown.tracing.otlp_endpoint = self.tracing.otlp_endpoint.as_deref().map(without_credentials);
        shown
    }
}
