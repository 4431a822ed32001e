//! The map in ARCHITECTURE.md is the map of the code: every module has a row, uses what its row names and nothing else, and
//! uses only modules of lower layers. So there are no import cycles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A row of the map.
#[derive(Debug, Default)]
struct Row {
    layer: u32,
    may_use: BTreeSet<String>,
}

/// Modules by name.
type Map = BTreeMap<String, Row>;
/// What each module imports, and one file that does.
type Imports = BTreeMap<String, BTreeMap<String, PathBuf>>;

/// The rows of the table whose header begins with `| layer | module |`. The last column names the modules that may be used.
fn read_map(page: &str) -> Map {
    let rows = page.lines().skip_while(|line| !line.starts_with("| layer | module |")).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let layer = cells[0].parse().unwrap_or_else(|_| panic!("no layer in the row {line:?}"));
            let may_use = cells.last().expect("a row has cells").split_whitespace().map(unquoted).collect();
            (unquoted(cells[1]), Row { layer, may_use })
        })
        .collect()
}

fn unquoted(name: &str) -> String {
    name.trim_matches(['`', ',']).to_owned()
}

/// The imports of all modules below a folder. A file's module is the first part of its path. Unit tests may use anything.
fn read_imports(folder: &Path) -> Imports {
    let mut imports = Imports::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                let inside = path.strip_prefix(folder).expect("it was found there");
                let first = Path::new(inside.iter().next().expect("a file has a name"));
                let module = first.file_stem().expect("likewise").to_string_lossy().into_owned();
                let used = imports.entry(module.clone()).or_default();
                // The binary's own modules name the library.
                let roots =
                    if ["cli", "main"].contains(&&*module) { &["crate::", "hookgate::"][..] } else { &["crate::"] };
                for name in names(&fs::read_to_string(&path).expect("the file can be read"), roots) {
                    if name != module {
                        used.entry(name).or_insert_with(|| inside.to_owned());
                    }
                }
            }
        }
    }
    // They name the modules; they are none.
    imports.remove("lib");
    imports
}

/// The top-level modules that a source names as `crate::name`, or below another root, outside of its unit tests.
fn names(source: &str, roots: &[&str]) -> BTreeSet<String> {
    let product = source.split("#[cfg(test)]\nmod tests").next().expect("there is a first part");
    let code: Vec<&str> = product.lines().map(|line| line.split("//").next().expect("likewise")).collect();
    let code = code.join("\n");
    let mut found = BTreeSet::new();
    for root in roots {
        for (at, _) in code.match_indices(root) {
            let is_a_path = code[..at]
                .chars()
                .next_back()
                .is_none_or(|before| !before.is_alphanumeric() && !"_\"".contains(before));
            if is_a_path {
                found.extend(first_segments(&code[at + root.len()..]));
            }
        }
    }
    found.retain(|name| name.starts_with(|first: char| first.is_ascii_lowercase()));
    found
}

/// `a::b` gives a; `{a::{b, c}, d}` gives a and d.
fn first_segments(path: &str) -> Vec<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut depth, mut start, mut segments) = (1, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            segments.push(word(&group[start..at]));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    segments
}

/// What does not agree.
fn differences(map: &Map, imports: &Imports) -> Vec<String> {
    let mut found = Vec::new();
    for module in imports.keys().filter(|module| !map.contains_key(*module)) {
        found.push(format!("{module} has no row in the map"));
    }
    for (module, row) in map {
        let Some(used) = imports.get(module) else {
            found.push(format!("the map has a row for {module}, which is no module"));
            continue;
        };
        for (name, file) in used {
            if !row.may_use.contains(name) {
                found.push(format!("{module} uses {name} (src/{}), which its row does not allow", file.display()));
            }
        }
        for name in &row.may_use {
            if !used.contains_key(name) {
                found.push(format!("the row of {module} allows {name}, which it does not use"));
            }
            if map.get(name).is_none_or(|below| below.layer >= row.layer) {
                found.push(format!("the row of {module} allows {name}, which is not in a lower layer"));
            }
        }
    }
    found
}

#[test]
fn the_map_says_what_the_modules_use() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = read_map(&fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the map can be read"));
    let imports = read_imports(&root.join("src"));
    assert!(map.len() > 20, "the map has {} rows", map.len());
    assert_eq!(differences(&map, &imports), Vec::<String>::new());
}

#[test]
fn each_kind_of_difference_is_found() {
    let map = "| layer | module | owns | may use |\n|---|---|---|---|\n| 2 | `upper` | it | `lower` |\n| 1 | `lower` | it | |\n";
    let imports = |upper: &[&str], lower: &[&str]| -> Imports {
        let used = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), PathBuf::from("x.rs"))).collect();
        [("upper".to_owned(), used(upper)), ("lower".to_owned(), used(lower))].into()
    };
    let found = |map: &str, imports: &Imports| differences(&read_map(map), imports).join("; ");
    assert_eq!(found(map, &imports(&["lower"], &[])), "");
    let undeclared = found(map, &imports(&["lower"], &["upper"]));
    assert!(undeclared.contains("lower uses upper"), "{undeclared}");
    let unused = found(map, &imports(&[], &[]));
    assert!(unused.contains("does not use"), "{unused}");
    let cycle = map.replace("| 1 | `lower` | it | |", "| 1 | `lower` | it | `upper` |");
    let cycle = found(&cycle, &imports(&["lower"], &["upper"]));
    assert!(cycle.contains("not in a lower layer"), "{cycle}");
    let without_row = found(&map.replace("`lower` | it | |", "`other` | it | |"), &imports(&["lower"], &[]));
    assert!(
        without_row.contains("lower has no row") && without_row.contains("other, which is no module"),
        "{without_row}"
    );
}

#[test]
fn imports_are_read_in_every_form() {
    let source = "use crate::{\n    a::{B, c::D},\n    e,\n};\nfn f() { crate::g::h(); } // crate::comment\n\
        use hookgate::i::J; use other_crate::k; use crate::L; f(\"hookgate::target\");\n#[cfg(test)]\nmod tests { use crate::unit; }";
    assert_eq!(names(source, &["crate::", "hookgate::"]).into_iter().collect::<Vec<_>>(), ["a", "e", "g", "i"]);
}

/// An acknowledgement is earned: only what reads a broker's answers makes one.
#[test]
fn only_the_publishers_make_acknowledgements() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut makers = BTreeSet::new();
    for (module, folder) in
        [("delivery", "delivery"), ("relay", "relay"), ("pending", "pending"), ("publisher", "publisher")]
    {
        for entry in fs::read_dir(source.join(folder)).expect("the folder can be read") {
            let text = fs::read_to_string(entry.expect("the folder can be read").path()).unwrap_or_default();
            if text.contains("Ack::stored(") || text.contains("Ack::passed(") {
                makers.insert(module);
            }
        }
    }
    assert_eq!(makers.into_iter().collect::<Vec<_>>(), ["publisher"]);
}
