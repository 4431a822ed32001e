//! What hookgate does, on real servers: each test starts its own Redis, its own NATS and the real binary.
//!
//! A file is named after the behaviour it shows. `support/` starts and looks; it asserts nothing of its own.

mod addresses;
mod architecture;
mod bad_input;
mod bad_items;
mod batch_examples;
mod batch_properties;
mod claims;
mod configuration;
mod consumers;
mod core_delivery;
mod dead_letter_replay;
mod dead_letters;
mod disconnect;
mod doctor;
mod doctor_espocrm;
mod drain;
mod espocrm;
mod fault_judge;
mod history;
mod life;
mod log_lines;
mod main_job;
mod metrics;
mod nats_outage;
mod outbox_commands;
mod pending_commands;
mod privacy;
mod privileges;
mod quarantine;
mod readme;
mod reconcile;
mod redis_cluster;
mod redis_outage;
mod redis_sentinel;
mod reload;
mod replicas;
mod runbooks;
mod send;
mod signatures;
mod slow_clients;
mod specifications;
mod startup;
mod status;
mod status_codes;
mod stores;
mod stores_tls;
mod streams;
#[allow(dead_code, unused_imports, reason = "shared with faults.rs, which uses the rest")]
mod support;
mod tail;
mod traces;
mod why;
