//! Any bytes as a body: what comes out keeps to its promises, whatever goes in.
#![no_main]

use std::collections::HashSet;

use hookgate::{
    batch::{Batch, BatchError, EntityId},
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let parsed = Batch::parse(body);
    let value = serde_json::from_slice::<Value>(body);
    match (&parsed, &value) {
        (Err(BatchError::NotJson { at, problem }), Ok(_)) => panic!("{problem} at {at}, and it is JSON"),
        (Ok(_), Ok(value)) => assert!(value.is_array() || value.is_object()),
        (Err(BatchError::NeitherArrayNorObject), Ok(value)) => assert!(!value.is_array() && !value.is_object()),
        (Err(BatchError::Empty), Ok(_)) => panic!("JSON that is empty"),
        (Err(BatchError::NotJson { at, .. }), Err(_)) => assert!(*at <= body.len()),
        // Lone surrogates, numbers out of range, depth, bytes that are no text: `Value` takes less.
        (_, Err(_)) => {}
    }
    let Ok(batch) = parsed else { return };
    let ids: Vec<_> = batch.ids().map(EntityId::as_str).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "each id once");
    assert!(ids.iter().all(|id| EntityId::parse(id).is_some()), "each is one");
    let mut end = 0;
    for (_, place) in batch.rejected().places() {
        assert!(end <= place.start && place.start < place.end && place.end <= body.len(), "in their order");
        end = place.end;
    }
    if let Ok(Value::Array(items)) = value {
        // Only ids that are said to be so, and all that a plain reading finds (it takes the last of two `id`).
        let said = items.iter().filter_map(|item| item.get("id")).map(|id| match id {
            Value::String(id) => id.clone(),
            other => other.to_string(),
        });
        let said: HashSet<String> = said.collect();
        assert!(items.len() >= ids.len() + batch.rejected().count());
        for id in ids {
            // Of a long integer, and of -0, `Value` makes a fraction.
            assert!(said.contains(id) || id.len() > 18 || id == "-0", "{id:?} is not there");
        }
    }
});
