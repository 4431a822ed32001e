//! The README's examples do what it says.

use std::process::Command;

use crate::support::{PENDING, SUBJECT, World};

const README: &str = include_str!("../README.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().expect("a block ends")).collect()
}

#[test]
fn its_configurations_are_valid_but_for_the_secrets() {
    let examples = blocks("toml");
    assert_eq!(examples.len(), 2, "one for signatures, one for the rest");
    for example in examples {
        let files = tempfile::tempdir().expect("a temporary folder can be made");
        let folder = files.path().display().to_string();
        std::fs::create_dir(files.path().join("espo")).expect("the folder is ours");
        for name in ["redis", "espo/current", "espo/previous"] {
            std::fs::write(files.path().join(name), "word\n").expect("the folder is ours");
        }
        let config = files.path().join("example.toml");
        std::fs::write(&config, example.replace("/run/secrets", &folder)).expect("likewise");
        let checked = Command::new(env!("CARGO_BIN_EXE_hookgate")).arg("check").arg("--config").arg(&config).output();
        let checked = checked.expect("hookgate starts");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[tokio::test]
async fn its_curl_line_gets_the_answer_beside_it() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let curl = blocks("sh").into_iter().find(|block| block.starts_with("curl ")).expect("there is a curl line");
    let curl = curl.replace("http://localhost:3000", &format!("http://{}", gate.address()));
    let sent = tokio::task::spawn_blocking(move || Command::new("sh").arg("-c").arg(format!("exec {curl}")).output());
    let sent = sent.await.expect("no panic").expect("there is a shell");
    let answer = String::from_utf8(sent.stdout).expect("the answer is text");
    assert_eq!(answer.trim(), blocks("json")[0].trim(), "{}", String::from_utf8_lossy(&sent.stderr));

    assert!(world.redis.pending(PENDING).await.contains("test-123"));
    let events = world.nats.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].subject, SUBJECT);
    assert!(README.contains(&format!("`{SUBJECT}`")) && README.contains(PENDING));
}

#[test]
fn its_commands_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_hookgate")).arg("--help").output().expect("hookgate starts");
    let help = String::from_utf8(help.stdout).expect("help is text");
    for block in blocks("sh") {
        for command in block.lines().filter_map(|line| line.strip_prefix("hookgate ")) {
            let name = command.split(' ').next().expect("a line has a word");
            assert!(help.contains(&format!("\n  {name} ")), "hookgate {name} is in --help");
        }
    }
    let makefile = include_str!("../Makefile");
    for block in blocks("sh") {
        for target in block.lines().filter_map(|line| line.strip_prefix("make ")) {
            let name = target.split(' ').next().expect("a line has a word");
            assert!(makefile.contains(&format!("\n{name}: ")), "make {name} exists");
        }
    }
}
