//! The invariants of ARCHITECTURE.md that can be read off the source: who imports whom, and what is nowhere.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use support::source;

/// Modules from the outside in. Each imports from itself and from rows further down, and from no
/// other module of its own row.
const LAYERS: [&[&str]; 14] = [
    &["main"],
    &["commands"],
    &["client"],
    &["cli", "server"],
    &["provider"],
    &["workspace"],
    &["base"],
    &["state"],
    &["git", "pool"],
    &["chain", "clock", "config", "shown", "tally", "turns"],
    &["spawner"],
    &["init"],
    &["sandbox"],
    &["sys"],
];

/// The kernel side: single-threaded from birth, and closed to everything that needs a runtime.
const KERNEL_SIDE: [&str; 4] = ["spawner", "init", "sandbox", "sys"];

/// A source file: its module, its path for messages, and its lines that are code, without their texts.
struct Source {
    module: String,
    path: PathBuf,
    code: Vec<(usize, String)>,
}

/// All Rust files below a directory of the checkout.
fn sources(directory: &str) -> Vec<Source> {
    let root = source().join(directory);
    let mut files = Vec::new();
    let mut to_visit = vec![root.clone()];
    while let Some(path) = to_visit.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("the source can be listed");
            to_visit.extend(entries.map(|entry| entry.expect("it can be listed").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(read(&root, &path));
        }
    }
    assert!(!files.is_empty(), "no source in {}", root.display());
    files
}

fn read(root: &Path, path: &Path) -> Source {
    let relative = path.strip_prefix(root).expect("it is below the root");
    let first = relative.iter().next().expect("it has a name");
    let module = first.to_string_lossy().trim_end_matches(".rs").to_owned();
    let text = fs::read_to_string(path).expect("the source can be read");
    let code = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        // Every other piece between quotation marks is a text.
        .map(|(number, line)| (number + 1, line.split('"').step_by(2).collect()))
        .collect();
    Source {
        module,
        path: relative.to_owned(),
        code,
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Every `crate::module` of a line.
fn imports(line: &str) -> Vec<&str> {
    line.match_indices("crate::")
        .map(|(start, word)| {
            let rest = &line[start + word.len()..];
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            &rest[..end]
        })
        .collect()
}

/// Places where a line of code breaks a rule, as `file:line: text`.
fn breaches(sources: &[Source], breaks: impl Fn(&Source, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in &source.code {
            if breaks(source, line) {
                found.push(format!(
                    "{}:{number}: {}",
                    source.path.display(),
                    line.trim()
                ));
            }
        }
    }
    found
}

#[test]
fn imports_go_down_the_list_only() {
    let sources = sources("src");
    for source in &sources {
        let known = source.module == "lib" || layer(&source.module).is_some();
        assert!(known, "src/{} is in no layer", source.path.display());
    }
    let breaches = breaches(&sources, |source, line| {
        imports(line)
            .into_iter()
            .any(|module| match (layer(&source.module), layer(module)) {
                (Some(own), Some(other)) => other <= own && module != source.module,
                _ => false,
            })
    });
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn the_kernel_side_sees_no_runtime_no_server_and_no_config() {
    let breaches = breaches(&sources("src"), |source, line| {
        KERNEL_SIDE.contains(&source.module.as_str())
            && [
                "tokio",
                "axum",
                "hyper",
                "crate::config",
                "async fn",
                ".await",
            ]
            .iter()
            .any(|word| line.contains(word))
    });
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let breaches = breaches(&sources("src"), |source, line| {
        source.module != "sys"
            && line
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "unsafe")
    });
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn every_file_says_first_what_it_is() {
    for directory in ["src", "tests", "benches"] {
        for file in sources(directory) {
            let path = source().join(directory).join(&file.path);
            let text = fs::read_to_string(&path).expect("the source can be read");
            assert!(
                text.starts_with("//! "),
                "{directory}/{}",
                file.path.display()
            );
        }
    }
}

#[test]
fn only_a_build_for_tests_can_turn_a_restriction_off() {
    let name = "DERRICK_TEST_WITHOUT";
    let mut found = Vec::new();
    for file in sources("src") {
        let text = fs::read_to_string(source().join("src").join(&file.path))
            .expect("the source can be read");
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            if line.contains(name) && !line.starts_with("//!") {
                found.push((file.path.clone(), lines[number - 1].to_owned()));
            }
        }
    }
    let place = PathBuf::from("sandbox/without.rs");
    assert_eq!(found, [(place, "#[cfg(debug_assertions)]".to_owned())]);
    // What that is in a release; a build without it asserts that nothing can be off.
    let manifest = fs::read_to_string(source().join("Cargo.toml")).expect("it can be read");
    assert!(!manifest.contains("debug-assertions"), "{manifest}");
}

#[test]
fn no_test_is_left_out_and_none_sleeps() {
    // Spelt apart, so that this file does not find itself.
    let forbidden = ["#[ig", "thread::sl", "time::sl"];
    let rest = ["nore", "eep(", "eep("];
    let forbidden: Vec<String> = forbidden
        .iter()
        .zip(rest)
        .map(|(start, end)| format!("{start}{end}"))
        .collect();
    let breaches = breaches(&sources("tests"), |_, line| {
        forbidden.iter().any(|word| line.contains(word))
    });
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn no_work_is_left_for_later() {
    let forbidden = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    for directory in ["src", "tests", "benches"] {
        let breaches = breaches(&sources(directory), |_, line| {
            forbidden.iter().any(|word| line.contains(word))
        });
        assert!(breaches.is_empty(), "{breaches:#?}");
    }
}

/// What stands above a test of an attack: `// A-08: what is tried`, a row of the table of threats, or `// P1: …`
/// where no row fits; several with commas between them.
fn rows(line: &str) -> Option<Vec<&str>> {
    let ids = line.strip_prefix("// ")?.split(':').next()?;
    let ids: Vec<&str> = ids.split(", ").collect();
    let is_row = |id: &&str| match id.split_once('-') {
        Some((table, number)) => {
            matches!(table, "A" | "B" | "C" | "D" | "E" | "F" | "G" | "H" | "I")
                && number.len() == 2
                && number.bytes().all(|byte| byte.is_ascii_digit())
        }
        None => id
            .strip_prefix('P')
            .and_then(|number| number.parse::<u8>().ok())
            .is_some_and(|number| (1..=13).contains(&number)),
    };
    ids.iter().all(is_row).then_some(ids)
}

#[test]
fn every_attack_has_one_place_and_every_promise_its_file() {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut files = BTreeSet::new();
    for file in sources("tests") {
        let name = file.path.display().to_string();
        let text = fs::read_to_string(source().join("tests").join(&file.path));
        let text = text.expect("the source can be read");
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let Some(ids) = rows(line) else { continue };
            let next = lines[number + 1..]
                .iter()
                .find(|line| rows(line).is_none() && !line.starts_with("#[cfg"));
            assert_eq!(next, Some(&"#[test]"), "below {name}:{}", number + 1);
            // A promise may have several files.
            let place = match name.as_bytes() {
                [b'p', b'0' | b'1', b'0'..=b'9', b'_', ..] => &name[..3],
                _ => &*name,
            };
            for id in ids.into_iter().filter(|id| !id.starts_with('P')) {
                let places = places.entry(id.to_owned()).or_default();
                places.insert(place.to_owned());
            }
        }
        files.insert(name);
    }
    let scattered: Vec<_> = places.iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(scattered.is_empty(), "{scattered:#?}");
    let promises = 1..=13;
    let missing: Vec<String> = promises
        .map(|number| format!("p{number:02}_"))
        .filter(|prefix| !files.iter().any(|file| file.starts_with(prefix)))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let security = fs::read_to_string(source().join("SECURITY.md")).expect("it can be read");
    let of_promises = files
        .iter()
        .filter(|name| matches!(name.as_bytes(), [b'p', b'0'..=b'9', b'0'..=b'9', b'_', ..]));
    let unnamed: Vec<_> = of_promises
        .filter(|name| !security.contains(&format!("`tests/{name}`")))
        .collect();
    assert!(unnamed.is_empty(), "SECURITY.md does not name {unnamed:?}");
}
