//! What the CRM answers, as far as it is read. A member that is not named here is never looked at.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer};

/// A page of a list. Its total is not read: it may be -1 or -2 unasked.
#[derive(Deserialize)]
pub(super) struct Page<T> {
    pub(super) list: Vec<T>,
}

/// An item of the queue that the CRM has given up on.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedItem {
    /// Its id, for removing it.
    pub id: String,
    /// Its place in the queue.
    pub number: u64,
    /// Such as `CBeteiligte.create`.
    pub event: String,
    /// The record's id; without one there is nothing to publish.
    #[serde(default)]
    pub target_id: Option<String>,
    /// When the item was made, by the CRM's clock.
    #[serde(default, deserialize_with = "time")]
    pub created_at: Option<SystemTime>,
}

/// A webhook.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// Such as `CBeteiligte.create`.
    #[serde(default)]
    pub event: Option<String>,
    /// Where it sends to.
    #[serde(default)]
    pub url: Option<String>,
    /// Whether it sends.
    #[serde(default)]
    pub is_active: bool,
    /// Whether changes of its own user send nothing.
    #[serde(default)]
    pub skip_own: Option<bool>,
    /// Whose it is. What that user may not read is never sent; one of nobody sends all.
    #[serde(default)]
    pub user_id: Option<String>,
}

/// A record.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecordRow {
    pub(super) id: String,
    #[serde(default, deserialize_with = "time")]
    pub(super) created_at: Option<SystemTime>,
    #[serde(default, deserialize_with = "time")]
    pub(super) modified_at: Option<SystemTime>,
}

/// A row of the history of actions, or of the queue of events.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ActionRow {
    #[serde(default)]
    pub(super) target_id: Option<String>,
    #[serde(default, deserialize_with = "time")]
    pub(super) created_at: Option<SystemTime>,
}

/// What the CRM says of itself.
#[derive(Deserialize)]
pub(super) struct AboutAnswer {
    #[serde(default)]
    pub(super) version: String,
}

/// What the CRM says of the user that asks: what it may do with each entity type.
#[derive(Deserialize)]
pub(super) struct UserAnswer {
    #[serde(default)]
    acl: Acl,
}

/// What a user may do.
#[derive(Deserialize, Default)]
pub(super) struct Acl {
    #[serde(default)]
    table: BTreeMap<String, serde_json::Value>,
}

impl UserAnswer {
    /// `all`, `team`, `own`, `no`.
    pub(super) fn level(&self, entity_type: &str, action: &str) -> Option<String> {
        self.acl.level(entity_type, action)
    }
}

impl Acl {
    /// The same of any user.
    pub(super) fn level(&self, entity_type: &str, action: &str) -> Option<String> {
        match self.table.get(entity_type)? {
            // No access at all is `false`.
            serde_json::Value::Bool(allowed) => Some(if *allowed { "all" } else { "no" }.to_owned()),
            levels => levels.get(action)?.as_str().map(str::to_owned),
        }
    }
}

/// `YYYY-MM-DD HH:MM:SS` in UTC.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    // The text could be anything: it is not quoted.
    text.map(|text| parse_time(&text).ok_or_else(|| serde::de::Error::custom("a time is not YYYY-MM-DD HH:MM:SS")))
        .transpose()
}

/// Reads a time as the CRM writes it.
pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once(' ')?;
    humantime::parse_rfc3339(&format!("{date}T{time}Z")).ok()
}

/// Writes a time as the CRM does, to the second before.
pub(super) fn time_text(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
    humantime::format_rfc3339_seconds(whole).to_string().replace('T', " ").trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_crm() {
        let time = parse_time("2026-11-28 13:02:36").expect("it is a time");
        assert_eq!(time_text(time + Duration::from_millis(999)), "2026-11-28 13:02:36");
        assert_eq!(parse_time("2026-11-28T13:02:36Z"), None);
        assert_eq!(parse_time(""), None);
    }

    #[test]
    fn an_item_without_its_target_can_be_read() {
        let item: FailedItem = serde_json::from_str(
            r#"{"id":"a","number":7,"event":"A.create","targetName":"Max","createdAt":null,"targetId":null}"#,
        )
        .expect("it is an item");
        assert!(item.target_id.is_none() && item.created_at.is_none());
        assert!(!format!("{item:?}").contains("Max"));
    }
}
