//! The layers: which crate may know which. An edge is added to this table on purpose, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each crate of the workspace and the crates of the workspace that it may depend on.
const ALLOWED: [(&str, &[&str]); 13] = [
    // 0: nothing of ours
    ("domain", &[]),
    ("onnx", &[]),
    ("trust", &[]),
    // 1
    ("prune", &["onnx", "domain"]),
    ("store", &["domain"]),
    ("proto", &["domain"]),
    ("artifact", &["domain"]),
    ("inference", &["onnx", "domain"]),
    // 2
    ("controller", &["store", "proto", "prune", "artifact", "trust", "inference", "onnx", "domain"]),
    ("agent", &["proto", "artifact", "trust", "inference", "domain"]),
    ("cli", &["proto", "prune", "trust", "inference", "onnx", "domain"]),
    // 3: all
    ("tests", ALL),
    ("xtask", &["tests", "domain", "onnx", "trust", "prune", "store", "proto", "artifact", "inference", "controller", "agent", "cli"]),
];
const ALL: &[&str] = &["domain", "onnx", "trust", "prune", "store", "proto", "artifact", "inference", "controller", "agent", "cli"];

/// What only the named crates may use directly.
const RESERVED: [(&str, &[&str]); 3] =
    [("sqlx", &["store"]), ("ort", &["inference"]), ("tonic", &["proto", "controller", "agent", "tests", "xtask"])];

/// What the pure layers must not know.
const NO_IO: [&str; 5] = ["tokio", "sqlx", "tonic", "axum", "reqwest"];
const PURE: [&str; 6] = ["domain", "onnx", "prune", "artifact", "trust", "inference"];

#[test]
fn crates_know_only_the_layers_below() {
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let manifests = manifests();
    let known: BTreeSet<_> = manifests.keys().map(String::as_str).collect();
    assert_eq!(known, allowed.keys().copied().collect(), "the crates of the workspace and those of the table");
    let wrong: Vec<_> = manifests
        .iter()
        .flat_map(|(name, m)| m.built_with.iter().filter_map(|u| short(u)).map(move |u| (name.as_str(), u)))
        .filter(|(name, used)| !allowed[name].contains(used))
        .map(|(name, used)| format!("{name} -> {used}"))
        .collect();
    assert!(wrong.is_empty(), "edges that the table does not allow: {wrong:?}");
}

#[test]
fn databases_runtimes_and_networks_stay_in_their_crates() {
    let manifests = manifests();
    let users =
        |dependency: &str| manifests.iter().filter(|(_, m)| m.built_with.contains(dependency)).map(|(n, _)| n.as_str()).collect::<Vec<_>>();
    for (dependency, reserved) in RESERVED {
        let others: Vec<_> = users(dependency).into_iter().filter(|n| !reserved.contains(n)).collect();
        assert!(others.is_empty(), "{dependency} is for {reserved:?} only, but {others:?} use it");
    }
    for dependency in NO_IO {
        let others: Vec<_> = users(dependency).into_iter().filter(|n| PURE.contains(n)).collect();
        assert!(others.is_empty(), "{others:?} must not know {dependency}");
    }
}

#[test]
fn every_dependency_says_why_it_is_here() {
    let text = std::fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let all = manifests().into_values().flat_map(|m| m.built_with.into_iter().chain(m.tested_with));
    let used: BTreeSet<_> = all.filter(|d| short(d).is_none()).collect();
    let missing: Vec<_> = used.iter().filter(|d| !text.contains(&format!("`{d}`"))).collect();
    assert!(missing.is_empty(), "no line in docs/dependencies.md for {missing:?}");
}

#[test]
fn modules_stand_beside_their_folders() {
    let mut found = Vec::new();
    for folder in ["agent/src", "controller/src", "proto/src", "crates", "tests/src"] {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 20, "only {} source files found", found.len());
    let wrong: Vec<_> = found.iter().filter(|p| p.ends_with("mod.rs")).collect();
    assert!(wrong.is_empty(), "foo.rs beside foo/, never mod.rs: {wrong:?}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Name of one of our crates without its prefix.
fn short(package: &str) -> Option<&str> {
    package.strip_prefix("pleach-").or((package == "xtask").then_some(package))
}

/// What a crate is built with; what its own tests use beside that ties nobody and is apart.
struct Manifest {
    built_with: BTreeSet<String>,
    tested_with: BTreeSet<String>,
}

fn manifests() -> BTreeMap<String, Manifest> {
    let crates = std::fs::read_dir(root().join("crates")).unwrap().map(|e| e.unwrap().path());
    let folders = crates.chain(["agent", "controller", "proto", "tests"].map(|f| root().join(f)));
    folders.map(|f| f.join("Cargo.toml")).filter(|f| f.is_file()).map(|f| manifest(&f)).collect()
}

fn manifest(path: &Path) -> (String, Manifest) {
    let table: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let name = table["package"]["name"].as_str().unwrap();
    let targets =
        table.get("target").and_then(toml::Value::as_table).into_iter().flat_map(|t| t.values().filter_map(toml::Value::as_table));
    let sections: Vec<_> = std::iter::once(&table).chain(targets).collect();
    let names = |kind: &str| -> BTreeSet<String> {
        let tables = sections.iter().filter_map(|s| s.get(kind)?.as_table());
        tables.flat_map(|t| t.keys().cloned()).collect()
    };
    let built_with = names("dependencies").into_iter().chain(names("build-dependencies")).collect();
    let short = short(name).unwrap_or_else(|| panic!("{name} in {}: expected pleach-…", path.display())).to_owned();
    (short, Manifest { built_with, tested_with: names("dev-dependencies") })
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}
