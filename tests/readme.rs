//! The examples in README and docs work, and their links have a target.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Authority, PENDING, SUBJECT, World};

const README: &str = include_str!("../README.md");

/// The fenced blocks of a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().expect("a block ends")).collect()
}

/// Every page for people, with its path.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> = [root.to_owned(), root.join("docs")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("the folder is there"))
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("a page is text"))).collect()
}

/// What GitHub makes of a heading: `## Size` is `#size`.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn links_lead_somewhere() {
    for (path, page) in pages() {
        for link in page.split("](").skip(1).map(|rest| rest.split(')').next().expect("a link ends")) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
            assert!(target.exists(), "{}: {link} is a file", path.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&target).expect("a page is text"));
                assert!(there.iter().any(|heading| heading == anchor), "{}: {link} is a heading", path.display());
            }
        }
    }
}

#[test]
fn configurations_are_valid_but_for_the_secrets() {
    for (path, page) in pages() {
        for block in blocks(&page, "toml") {
            let files = tempfile::tempdir().expect("a temporary folder can be made");
            let folder = files.path().display().to_string();
            // A block on a page may be keys of a route, or be indented.
            let route = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n";
            let of_a_route = ["auth", "release"].iter().any(|key| block.trim_start().starts_with(key));
            let whole = if of_a_route { format!("{route}{block}") } else { block.to_owned() };
            for secret in whole.split('"').filter(|word| word.starts_with("/run/secrets/")) {
                let file = PathBuf::from(secret.replace("/run/secrets", &folder));
                fs::create_dir_all(file.parent().expect("a file is in a folder")).expect("the folder is ours");
                if file.extension().is_some_and(|extension| extension == "pem") {
                    fs::copy(Authority::new().ca(), file).expect("likewise");
                } else {
                    fs::write(file, "word\n").expect("likewise");
                }
            }
            let config = files.path().join("example.toml");
            fs::write(&config, whole.replace("/run/secrets", &folder)).expect("likewise");
            let checked =
                Command::new(env!("CARGO_BIN_EXE_hookgate")).arg("check").arg("--config").arg(&config).output();
            let checked = checked.expect("hookgate starts");
            let error = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{}:\n{block}\n{error}", path.display());
        }
    }
}

#[tokio::test]
async fn its_curl_line_gets_the_answer_beside_it() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let curl = blocks(README, "sh").into_iter().find(|block| block.starts_with("curl ")).expect("there is a curl line");
    let curl = curl.replace("http://localhost:3000", &format!("http://{}", gate.address()));
    let sent = tokio::task::spawn_blocking(move || Command::new("sh").arg("-c").arg(format!("exec {curl}")).output());
    let sent = sent.await.expect("no panic").expect("there is a shell");
    let answer = String::from_utf8(sent.stdout).expect("the answer is text");
    assert_eq!(answer.trim(), blocks(README, "json")[0].trim(), "{}", String::from_utf8_lossy(&sent.stderr));

    assert!(world.redis.pending(PENDING).await.contains("test-123"));
    let events = world.nats.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].subject, SUBJECT);
    assert!(README.contains(&format!("`{SUBJECT}`")) && README.contains(PENDING));
}

#[test]
fn commands_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_hookgate")).arg("--help").output().expect("hookgate starts");
    let help = String::from_utf8(help.stdout).expect("help is text");
    let makefile = include_str!("../Makefile");
    for (path, page) in pages() {
        for line in blocks(&page, "sh").into_iter().flat_map(str::lines) {
            if let Some(command) = line.strip_prefix("hookgate ") {
                let mut words = command.split_whitespace();
                let name = words.find(|word| !word.starts_with("--") && !word.contains('.')).unwrap_or("serve");
                let there = name == "#" || help.contains(&format!("\n  {name} "));
                assert!(there, "{}: hookgate {name} is in --help", path.display());
            }
            if let Some(target) = line.strip_prefix("make ") {
                let name = target.split(' ').next().expect("a line has a word");
                assert!(makefile.contains(&format!("\n{name}: ")), "{}: make {name} exists", path.display());
            }
        }
    }
}
