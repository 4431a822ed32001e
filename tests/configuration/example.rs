//! config/example.toml has every key that hookgate knows, and each key changes its own setting only.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{EXAMPLE, Trial, company, leaves, other};

/// The values in force by their dotted keys, routes left out.
fn in_force(settings: &str) -> BTreeSet<(String, String)> {
    fn collect(key: &str, value: &Value, found: &mut BTreeSet<(String, String)>) {
        match value {
            Value::Object(members) => {
                members.iter().for_each(|(name, member)| collect(&format!("{key}.{name}"), member, found));
            }
            Value::Array(_) => {}
            leaf => drop(found.insert((key.trim_start_matches('.').to_owned(), leaf.to_string()))),
        }
    }
    let mut found = BTreeSet::new();
    collect("", &Trial::with_secrets(&[("one.toml", settings)]).check(&["one.toml"]), &mut found);
    found
}

#[test]
fn each_key_changes_what_it_says_and_nothing_else() {
    let defaults = in_force("");
    for (key, value) in leaves() {
        let now = in_force(&format!("{}{key} = {}\n", company(&key), other(&key, &value)));
        let changed: BTreeSet<_> = defaults.symmetric_difference(&now).map(|(key, _)| key.as_str()).collect();
        let expected = company(&key).lines().filter_map(|line| line.split_once(" = ")).map(|(company, _)| company);
        assert_eq!(changed, expected.chain([key.as_str()]).collect(), "{key}");
    }
}

/// hookgate says itself which keys it knows: in its answer to one that it doesn't.
#[test]
fn the_example_has_the_keys_that_are_known_and_no_others() {
    let known = |section: &str| -> BTreeSet<String> {
        let settings = match section {
            "" => "unheard_of = 1".to_owned(),
            "routes" => "routes = [{ unheard_of = 1 }]".to_owned(),
            _ => format!("{section}.unheard_of = 1"),
        };
        let complaint = Trial::new(&[("one.toml", &settings)]).complaint(&["check", "--config", "one.toml"]);
        let (_, expected) = complaint.split_once(", expected ").unwrap_or_else(|| panic!("no keys in: {complaint}"));
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let mut keys: Vec<_> = leaves().into_iter().map(|(key, _)| key).collect();
    let example: toml::Table = EXAMPLE.parse().expect("the example is TOML");
    for route in example["routes"].as_array().expect("routes are a list") {
        keys.extend(route.as_table().expect("a route is a table").keys().map(|key| format!("routes.{key}")));
    }
    let below = |section: &str| -> BTreeSet<String> {
        let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
        let rests = keys.iter().filter_map(|key| key.strip_prefix(&prefix));
        rests.map(|rest| rest.split('.').next().expect("a key has a first part").to_owned()).collect()
    };
    let sections = known("");
    assert_eq!(sections, below(""));
    let tables = sections.iter().map(String::as_str).filter(|name| *name != "instance");
    for section in tables.chain(["nats.stream"]) {
        assert_eq!(known(section), below(section), "[{section}]");
    }
}

#[test]
fn a_misspelt_key_is_named_with_its_section() {
    for (key, value) in leaves() {
        let trial = Trial::new(&[("one.toml", &format!("{key}x = {}\n", other(&key, &value)))]);
        let complaint = trial.complaint(&["check", "--config", "one.toml"]);
        let word = key.rsplit('.').next().expect("a key has a last part");
        assert!(complaint.contains(&format!("one.toml, line 1: {key}x: unknown field `{word}x`")), "{complaint}");
    }
    for word in [
        "flow",
        "entity",
        "action",
        "path",
        "subject",
        "pending_key",
        "label",
        "while_pending",
        "release",
        "consumers",
        "on_give_up",
        "journal",
        "max_redeliveries",
        "coalesce_max_wait",
        "quarantine",
    ] {
        let misspelt = EXAMPLE.replace(&format!("\n{word} = "), &format!("\n{word}x = "));
        let complaint = Trial::new(&[("one.toml", &misspelt)]).complaint(&["check", "--config", "one.toml"]);
        assert!(complaint.contains(&format!("{word}x: unknown field `{word}x`")), "{complaint}");
    }
}

#[test]
fn the_default_file_says_what_hookgate_does_anyway() {
    let trial = Trial::new(&[("default.toml", include_str!("../../config/default.toml"))]);
    assert_eq!(trial.check(&["default.toml"]), trial.check(&[]));
}
