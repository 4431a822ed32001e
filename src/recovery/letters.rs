//! The ids of dead letters. Pure.

use serde::Deserialize;

use crate::batch::{Batch, EntityId};

/// Reason of a letter about an event that a consumer gave up on.
pub const GAVE_UP: &str = "gave_up";

/// The usable ids in the content of a dead letter. Most have none: that is why they are dead letters.
#[must_use]
pub fn ids_of(raw: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct AboutAnId {
        entity_id: String,
    }
    // What hookgate itself writes names the id as an event does.
    if let Ok(AboutAnId { entity_id }) = serde_json::from_slice(raw) {
        return EntityId::parse(&entity_id).map(|id| id.as_str().to_owned()).into_iter().collect();
    }
    let Ok(batch) = Batch::parse(raw) else { return Vec::new() };
    (0..batch.len()).map(|place| batch.id(place).as_str().to_owned()).collect()
}

/// Whether an id stands anywhere in a content, as a whole word: also in one that can't be read.
#[must_use]
pub fn mentions(raw: &[u8], id: &str) -> bool {
    let in_a_word = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte) || *byte >= 0x80)
    };
    let stands_at = |start: usize| {
        !in_a_word(start.checked_sub(1).and_then(|before| raw.get(before))) && !in_a_word(raw.get(start + id.len()))
    };
    !id.is_empty() && memchr::memmem::find_iter(raw, id).any(stands_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_a_batch_or_of_what_hookgate_wrote() {
        assert_eq!(ids_of(br#"[{"id":"a"},{"id":7},{"name":"x"}]"#), ["a", "7"]);
        assert_eq!(ids_of(br#"{"entity_id":"a","consumer":"c"}"#), ["a"]);
        for hopeless in ["", "no JSON", "[]", "7", "{}", r#"{"entity_id":""}"#, r#"{"id":null}"#] {
            assert!(ids_of(hopeless.as_bytes()).is_empty(), "{hopeless}");
        }
    }

    #[test]
    fn an_id_is_found_as_a_whole() {
        let raw = br#"[{"id":"abc-1","name":"x"},{"id":77}"#;
        for there in ["abc-1", "77", "x"] {
            assert!(mentions(raw, there), "{there}");
        }
        for not_there in ["abc", "abc-12", "7", "bc-1", "1", ""] {
            assert!(!mentions(raw, not_there), "{not_there}");
        }
    }
}
