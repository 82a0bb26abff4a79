//! Connections that must be safe: real servers with certificates made for the test. What is refused is
//! refused for a reason that the line names; what is right goes through; what is renewed on disk is taken up
//! by a relay that runs.

mod kafka;
mod postgres;

use std::time::Duration;

use serde_json::Value;

use crate::support::relay::{Relay, Setup};

const SOON: Duration = Duration::from_secs(60);

/// Begins to check what `setup` says.
fn checking(setup: &Setup<'_>) -> Relay {
    setup.spawn(&["check", "--json"])
}

/// What `check` says of `items`: of each the level, the reason and what mends it, in one text.
async fn said(mut checking: Relay, items: &[&str]) -> String {
    checking.wait_exit(SOON).await;
    let lines = checking.lines();
    let objects = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok());
    let told = objects.filter(|line: &Value| items.iter().any(|item| line["item"] == *item));
    let told: Vec<String> = told
        .map(|line| format!("{} {} {}", line["level"], line["why"], line["fix"]))
        .collect();
    assert!(!told.is_empty(), "{}", lines.join("\n"));
    told.join("\n")
}

/// Asserts that each of `cases` is told in its own words: what was checked, and what its lines must hold.
async fn all_told(cases: Vec<(&str, Relay, &[&str])>, items: &[&str]) {
    for (case, checking, words) in cases {
        let told = said(checking, items).await;
        for word in words {
            assert!(told.contains(word), "{case}: {word:?} is not in {told}");
        }
    }
}
