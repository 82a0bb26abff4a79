//! What operators are given beside the program: rules, dashboard, runbook. The programs they are for
//! check them in `deploy/check`; here they are held against the relay.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let file = root().join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every word of `text` that begins with `prefix`.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let part = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    text.split(part)
        .filter(|word| word.starts_with(prefix))
        .collect()
}

/// The metrics in the table of docs/metrics.md, with their types.
fn documented() -> Vec<(String, String)> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`');
        Some((name.to_owned(), cells.next()?.to_owned()))
    });
    rows.collect()
}

/// The metrics that `text` asks for and docs/metrics.md does not know.
fn unknown(text: &str) -> Vec<String> {
    let documented = documented();
    let known = |word: &str| {
        documented.iter().any(|(name, kind)| match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| word.strip_suffix(suffix) == Some(name)),
            _ => word == name,
        })
    };
    // a colon: recorded by a rule
    let asked = words(text, "outbox_relay_").into_iter();
    let asked = asked.filter(|word| !word.contains(':') && !known(word));
    asked.map(str::to_owned).collect()
}

/// The values of `key` in a YAML file, a line each.
fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    let find = |line: &'a str| line.trim_start_matches([' ', '-']).strip_prefix(key);
    yaml.lines().filter_map(find).map(str::trim).collect()
}

#[test]
fn every_metric_that_is_asked_for_exists() {
    assert!(documented().len() > 20, "docs/metrics.md has its table");
    for file in [
        "deploy/prometheus/rules.yml",
        "deploy/prometheus/rules.test.yml",
        "deploy/grafana/outbox-relay.json",
    ] {
        let text = read(file);
        assert!(words(&text, "outbox_relay_").len() > 10, "{file} asks");
        assert_eq!(unknown(&text), Vec::<String>::new(), "{file}");
    }
    // a histogram has no series of its own name, and nothing else has the three
    assert_eq!(unknown("outbox_relay_event_lag_seconds").len(), 1);
    assert_eq!(unknown("outbox_relay_backlog_events_sum").len(), 1);
}

#[test]
fn what_is_asked_of_the_rules_is_recorded_by_them() {
    let rules = read("deploy/prometheus/rules.yml");
    let recorded: BTreeSet<_> = values(&rules, "record:").into_iter().collect();
    assert!(recorded.len() > 5);
    let dashboard = read("deploy/grafana/outbox-relay.json");
    for text in [&rules, &dashboard] {
        for word in words(text, "outbox_relay:") {
            assert!(recorded.contains(word), "no rule records {word}");
        }
    }
}

#[test]
fn every_alert_is_tested_and_is_in_the_runbook_and_nothing_else_is() {
    let rules = read("deploy/prometheus/rules.yml");
    let alerts = values(&rules, "alert:");
    assert!(alerts.len() > 10);
    let links = values(&rules, "runbook_url:");
    let wanted: Vec<_> = alerts
        .iter()
        .map(|alert| format!("docs/runbook.md#{}", alert.to_lowercase()))
        .collect();
    assert_eq!(links, wanted, "each alert leads to its entry");

    let (runbook, tests) = (
        read("docs/runbook.md"),
        read("deploy/prometheus/rules.test.yml"),
    );
    let entries: BTreeSet<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|heading| heading.starts_with("OutboxRelay"))
        .collect();
    assert_eq!(entries, alerts.iter().copied().collect());
    for alert in alerts {
        let fires = format!("alertname=\"{alert}\"");
        assert!(tests.contains(&fires), "no test makes {alert} fire");
        let entry = runbook.split(&format!("### {alert}\n")).nth(1).unwrap();
        let entry = entry.split("\n#").next().unwrap();
        for part in ["**Means**", "**Check", "ix**"] {
            assert!(entry.contains(part), "{alert} has no {part}");
        }
    }
}

/// The texts of all `warn!` and `error!` of a source file, unit tests aside.
fn lines_of_the_log(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut all = Vec::new();
    for (at, _) in code
        .match_indices("warn!(")
        .chain(code.match_indices("error!("))
    {
        let call = code.split_at(at).1;
        // to the parenthesis that closes the call, past those in strings
        let (mut depth, mut quoted, mut escaped) = (0, false, false);
        let (mut text, mut last) = (String::new(), String::new());
        for c in call.chars() {
            match c {
                _ if escaped => {
                    escaped = false;
                    text.push(c);
                    continue;
                }
                '\\' if quoted => escaped = true,
                '"' => {
                    if quoted {
                        last = std::mem::take(&mut text);
                    }
                    quoted = !quoted;
                }
                '(' if !quoted => depth += 1,
                ')' if !quoted => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                _ if quoted => text.push(c),
                _ => {}
            }
        }
        let mut words = String::new();
        for (number, part) in last.split('\n').enumerate() {
            words.push_str(if number == 0 { part } else { part.trim_start() });
        }
        all.push(words);
    }
    all
}

/// What of a text is the same each time: its first words between values, as far as one reads.
/// None: the words are somebody else's, as in `{problem}`.
fn constant(text: &str) -> Option<String> {
    let parts = text.split('{').map(|part| match part.split_once('}') {
        Some((_, rest)) => rest,
        None => part,
    });
    let mut parts = parts.map(|part| part.trim_matches([' ', ':', ',', ';', '`']));
    let first = parts.find(|part| part.len() > 12)?;
    let clause = first.split([':', ';']).next().filter(|it| it.len() > 12);
    Some(clause.unwrap_or(first).chars().take(40).collect())
}

fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_warning_and_error_of_the_log_is_in_the_runbook() {
    let runbook = read("docs/runbook.md");
    let mut files = Vec::new();
    source_files(&root().join("src"), &mut files);
    // of the demo, its own screen tells; a simulated source or sink has no operator
    let others = ["/demo/", "scripted.rs", "simulated.rs", "mocked.rs"];
    files.retain(|file| !others.iter().any(|it| file.to_string_lossy().contains(it)));
    let mut texts = Vec::new();
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        texts.extend(
            lines_of_the_log(&source)
                .into_iter()
                .map(|text| (file.clone(), text)),
        );
    }
    assert!(texts.len() > 15, "the log has lines: {}", texts.len());
    let missing: Vec<_> = texts
        .iter()
        .filter_map(|(file, text)| Some((file, constant(text)?)))
        .filter(|(_, constant)| !runbook.contains(constant.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/runbook.md has no entry for {missing:#?}"
    );
}

#[test]
fn the_texts_of_the_log_are_found_as_they_are_written() {
    let source = r#"
        warn!(outbox = f(x), why = "a ( alone", "short: {x} and {y} is what it says; that is all");
        f("and this is no line of the log");
        tracing::error!(
            topic,
            why = "a quote \" and a ) alone",
            "the longer one \"goes on\" \
             over two lines; {rest} is left out"
        );
        error!("{why}");
        #[cfg(test)]
        mod tests { fn f() { warn!("of a test"); } }
    "#;
    let texts = lines_of_the_log(source);
    assert_eq!(texts.len(), 3, "{texts:?}");
    let constants: BTreeSet<_> = texts.iter().filter_map(|text| constant(text)).collect();
    assert_eq!(
        constants.into_iter().collect::<Vec<_>>(),
        [
            "is what it says",
            "the longer one \"goes on\" over two lines"
        ]
    );
}
