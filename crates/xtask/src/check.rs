//! `cargo xtask check`: everything that can be judged without running the product.

use std::fs;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::workspace::Workspace;
use crate::{process, test};

/// One check.
type Check = fn(&Workspace) -> anyhow::Result<()>;

/// Private items are documented too, so links to them work; help texts of the command line hold plain addresses.
const RUSTDOC: &str = "-D warnings -A rustdoc::private-intra-doc-links -A rustdoc::bare-urls";

const CHECKS: [(&str, Check); 6] = [
    ("format", |w| process::run(&mut w.cargo(&["fmt", "--all", "--check"]))),
    ("words", words),
    ("lints", |w| process::run(&mut w.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
    ("docs", |w| process::run(w.cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", RUSTDOC))),
    ("layering", |w| process::run(&mut w.cargo(&["test", "--quiet", "--workspace", "--test", "it", "--", "tidy::"]))),
    ("licences", licences),
];

/// Runs all checks, also after one failed, and names those that did.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        eprintln!("== {name}");
        let begun = Instant::now();
        match check(workspace) {
            Ok(()) => eprintln!("{name}: ok, {}", test::seconds(begun.elapsed())),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Licences, bans and sources of the dependencies; advisories need a database from the network and are left to the maintainers' own run.
fn licences(workspace: &Workspace) -> anyhow::Result<()> {
    if !process::answers("cargo", &["deny", "--version"]) {
        eprintln!("licences: skipped, cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(());
    }
    process::run(&mut workspace.cargo(&["deny", "check", "licenses", "bans", "sources"]))
}

/// Words that must not stay: marks of unfinished work, and paths of one person's machine. Split here, so that this file may stay.
const FORBIDDEN: [&str; 6] = [
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimpl", "emented!("),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
];
const TEXTS: [&str; 14] = ["rs", "toml", "md", "sh", "py", "proto", "sql", "yml", "yaml", "json", "ts", "css", "html", "service"];

fn words(workspace: &Workspace) -> anyhow::Result<()> {
    let listed = process::output(std::process::Command::new("git").current_dir(&workspace.root).args(["ls-files", "-z"]))?;
    let mut found = Vec::new();
    for file in listed.split('\0').filter(|f| TEXTS.iter().any(|t| f.rsplit_once('.').is_some_and(|(_, e)| e == *t))) {
        let path = workspace.root.join(file);
        if !path.is_file() {
            continue; // deleted, not yet committed
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
        found.extend(forbidden(&text).map(|(line, word)| format!("{file}:{line}: {word:?}")));
    }
    if !found.is_empty() {
        bail!("words that must not stay:\n  {}", found.join("\n  "));
    }
    Ok(())
}

/// Line numbers, from 1, with the word found there. A path counts only at its beginning, so `https://host/home/` is none.
fn forbidden(text: &str) -> impl Iterator<Item = (usize, &'static str)> + '_ {
    text.lines().enumerate().flat_map(|(i, line)| {
        FORBIDDEN.iter().filter_map(move |word| {
            let at = line.find(word)?;
            let inside = word.starts_with('/')
                && line.get(..at).is_some_and(|before| before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '~' | '}' | '.')));
            (!inside).then_some((i + 1, *word))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_home_paths_are_found_and_addresses_are_not() {
        let text =
            format!("fine\n// {}: later\nlet p = \"{}ann/x\";\nhttps://example.org{}page\n", FORBIDDEN[0], FORBIDDEN[4], FORBIDDEN[4]);
        assert_eq!(forbidden(&text).collect::<Vec<_>>(), [(2, FORBIDDEN[0]), (3, FORBIDDEN[4])]);
    }
}
