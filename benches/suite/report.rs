//! What comes out: rows, as a table, as Markdown, as JSON, and in a history.

use std::fs::{File, create_dir_all};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::Arguments;
use crate::catalog::Case;
use crate::relays::Build;
use crate::stand::Stand;

/// The figures of one run of a case. What it has none of is none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) build: String,
    against: Option<String>,
    pub(crate) events: u64,
    pub(crate) seconds: f64,
    /// Events a second, from the relays' start to the last row that is settled.
    pub(crate) rate: Option<f64>,
    /// Events a second, from the first rows that were seen settled.
    pub(crate) running: Option<f64>,
    /// Until the first rows were seen settled.
    pub(crate) start_ms: Option<f64>,
    /// Of processor time, each for an event.
    pub(crate) relay_us: Option<f64>,
    pub(crate) postgres_us: Option<f64>,
    pub(crate) kafka_us: Option<f64>,
    /// Of the largest relay.
    pub(crate) peak_mib: Option<f64>,
    /// For an event.
    pub(crate) wal_bytes: Option<f64>,
    /// The relays' in a transaction, but for those that begin, configure and end it.
    pub(crate) statements: Option<f64>,
    pub(crate) rows_per_transaction: Option<f64>,
    pub(crate) latency: Option<Latency>,
    /// Of that, the commit itself.
    pub(crate) commit: Option<Latency>,
    /// While idle.
    pub(crate) core_percent: Option<f64>,
    /// The rate, or the other way round the median latency, as a part of what it is compared with.
    ratio: Option<f64>,
    /// The same of the first build.
    beside: Option<f64>,
    note: String,
}

/// From the insert's commit to the consumer, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Latency {
    /// Of times that ascend.
    pub(crate) fn of(ms: &[f64]) -> Option<Self> {
        let at = |share: f64| {
            let rank = (ms.len() as f64 * share).ceil() as usize;
            ms.get(rank.saturating_sub(1)).copied()
        };
        Some(Self {
            p50: at(0.50)?,
            p95: at(0.95)?,
            p99: at(0.99)?,
            max: at(1.0)?,
        })
    }
}

impl Row {
    pub(crate) fn new(case: &Case, build: &Build) -> Self {
        Self {
            case: case.name.clone(),
            build: build.name.clone(),
            against: case.against.clone(),
            ..Self::default()
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(&what);
    }

    /// Takes the rate without the start for its rate: that of a Java program is long.
    pub(crate) fn compare_running(&mut self) {
        self.rate = self.running.or(self.rate);
        let start = self.start_ms.unwrap_or(0.0);
        self.note(format!("without the start of {start:.0} ms"));
    }

    /// How well it went, for comparisons: more is better.
    fn merit(&self) -> Option<f64> {
        match (&self.latency, self.core_percent) {
            (Some(latency), _) => Some(1.0 / latency.p50),
            (None, Some(percent)) => Some(1.0 / percent.max(0.001)),
            (None, None) => self.rate,
        }
    }

    /// For whoever watches.
    pub(crate) fn line(&self) -> String {
        let cells = self.cells();
        let named = COLUMNS.iter().zip(&cells).skip(2);
        let told: Vec<_> = named
            .filter(|(_, cell)| !cell.is_empty())
            .map(|(column, cell)| format!("{column} {cell}"))
            .collect();
        format!("{} [{}]: {}", self.case, self.build, told.join(", "))
    }

    fn cells(&self) -> Vec<String> {
        let plain = |value: Option<f64>, digits: usize| {
            value.map_or(String::new(), |value| format!("{value:.digits$}"))
        };
        vec![
            self.case.clone(),
            self.build.clone(),
            plain(self.ratio, 2),
            plain(self.beside, 2),
            self.rate.map_or(String::new(), thousands),
            plain(self.relay_us, 2),
            plain(self.postgres_us, 2),
            plain(self.kafka_us, 2),
            plain(self.peak_mib, 0),
            plain(self.wal_bytes, 0),
            plain(self.statements, 1),
            plain(self.rows_per_transaction, 0),
            self.latency.map_or(String::new(), |it| {
                format!("{:.1} / {:.1} / {:.1}", it.p50, it.p95, it.p99)
            }),
            self.commit
                .map_or(String::new(), |it| format!("{:.1} / {:.1}", it.p50, it.p99)),
            plain(self.core_percent, 2),
            self.note.clone(),
        ]
    }

    fn json(&self) -> Map<String, Value> {
        let whole = json!({
            "case": self.case,
            "build": self.build,
            "against": self.against,
            "events": self.events,
            "seconds": self.seconds,
            "events_per_second": self.rate,
            "events_per_second_running": self.running,
            "start_ms": self.start_ms,
            "relay_cpu_us_per_event": self.relay_us,
            "postgres_cpu_us_per_event": self.postgres_us,
            "kafka_cpu_us_per_event": self.kafka_us,
            "relay_peak_mib": self.peak_mib,
            "wal_bytes_per_event": self.wal_bytes,
            "statements_per_transaction": self.statements,
            "rows_per_transaction": self.rows_per_transaction,
            "insert_to_consumer_ms": self.latency.map(|it| json!({
                "p50": it.p50, "p95": it.p95, "p99": it.p99, "max": it.max,
            })),
            "commit_ms": self.commit.map(|it| json!({ "p50": it.p50, "p99": it.p99, "max": it.max })),
            "core_percent": self.core_percent,
            "ratio": self.ratio,
            "beside_first_build": self.beside,
            "note": self.note,
        });
        match whole {
            Value::Object(members) => members,
            _ => Map::new(),
        }
    }
}

const COLUMNS: &[&str] = &[
    "case",
    "build",
    "×",
    "× build",
    "events/s",
    "relay µs",
    "Postgres µs",
    "Kafka µs",
    "MiB",
    "WAL B",
    "statements",
    "rows",
    "p50 / p95 / p99 ms",
    "commit p50 / p99 ms",
    "% of a core",
    "note",
];

/// Of two cases that ran in turns.
struct Ratio {
    /// The geometric mean of the turns'.
    mean: f64,
    low: f64,
    high: f64,
}

impl Ratio {
    /// Of `own` to `other`, turn by turn.
    fn of(own: &[f64], other: Option<Vec<f64>>) -> Option<Self> {
        let turns: Vec<f64> = own.iter().zip(other?).map(|(a, b)| a / b).collect();
        let logarithms: f64 = turns.iter().map(|ratio| ratio.ln()).sum();
        Some(Self {
            mean: (logarithms / turns.len() as f64).exp(),
            low: turns.iter().copied().reduce(f64::min)?,
            high: turns.iter().copied().reduce(f64::max)?,
        })
    }
}

/// All rows of a run, and what they were measured on.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    facts: Vec<Value>,
}

impl Report {
    /// Says what everything that follows was measured on.
    pub(crate) fn stands(&mut self, stand: &Stand, builds: &[Build], arguments: &Arguments) {
        let mut facts = stand.facts().clone();
        facts["builds"] = builds
            .iter()
            .map(|build| json!({ "name": build.name, "version": build.version }))
            .collect();
        facts["commit"] = commit().into();
        facts["rows"] = arguments.rows.into();
        facts["seconds"] = arguments.seconds.into();
        facts["repeat"] = arguments.repeat.into();
        facts["environment"] = std::env::vars()
            .filter(|(name, _)| name.starts_with("OUTBOX_RELAY__"))
            .map(|(name, _)| name)
            .collect();
        eprintln!("{facts}");
        self.facts.push(facts);
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Keeps the middle run of each case, and compares them turn by turn.
    pub(crate) fn finish(&mut self) {
        let mut kept: Vec<Row> = Vec::new();
        for row in &self.rows {
            let same = |other: &&Row| other.case == row.case && other.build == row.build;
            if kept.iter().any(|other| same(&other)) {
                continue;
            }
            let mut runs: Vec<_> = self.rows.iter().filter(same).collect();
            runs.sort_by(|a, b| {
                a.merit()
                    .partial_cmp(&b.merit())
                    .unwrap_or(std::cmp::Ordering::Equal)
            });
            let mut middle = (*runs[(runs.len() - 1) / 2]).clone();
            if let (Some(first), Some(last), 2..) =
                (runs[0].rate, runs[runs.len() - 1].rate, runs.len())
            {
                let (low, high) = (first.min(last), first.max(last));
                middle.note(format!(
                    "{} runs, {} to {}",
                    runs.len(),
                    thousands(low),
                    thousands(high)
                ));
            }
            kept.push(middle);
        }
        let runs = |case: &str, build: &str| -> Vec<f64> {
            let fits = |row: &&Row| row.case == case && row.build == build;
            (self.rows.iter().filter(fits))
                .filter_map(Row::merit)
                .collect()
        };
        let first = |case: &str| kept.iter().find(|row| row.case == case);
        let compared: Vec<_> = kept
            .iter()
            .map(|row| {
                let own = runs(&row.case, &row.build);
                let twin = row.against.as_deref();
                let twin = twin.map(|twin| runs(twin, &row.build));
                let several = kept
                    .iter()
                    .any(|other| other.case == row.case && other.build != row.build);
                let beside = first(&row.case).filter(|_| several);
                let beside = beside.map(|first| runs(&first.case, &first.build));
                (Ratio::of(&own, twin), Ratio::of(&own, beside))
            })
            .collect();
        for (row, (ratio, beside)) in kept.iter_mut().zip(compared) {
            for (of, name) in [(&ratio, "×"), (&beside, "× build")] {
                if let Some(Ratio { low, high, .. }) = of
                    && low < high
                {
                    row.note(format!("{name} {low:.2} to {high:.2}"));
                }
            }
            row.ratio = ratio.map(|ratio| ratio.mean);
            row.beside = beside.map(|beside| beside.mean);
        }
        self.rows = kept;
    }

    pub(crate) fn table(&self) -> String {
        let lines: Vec<Vec<String>> = std::iter::once(titles())
            .chain(self.rows.iter().map(Row::cells))
            .collect();
        let wanted = self.columns();
        let width = |column: usize| {
            let cells = lines.iter().map(|line| line[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let mut text = String::new();
        for line in &lines {
            for column in &wanted {
                let cell = &line[*column];
                let gap = " ".repeat(width(*column) - cell.chars().count() + 2);
                text.push_str(&match *column {
                    0 | 1 => format!("{cell}{gap}"),
                    15 => format!("  {cell}{gap}"),
                    _ => format!("{gap}{cell}"),
                });
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    pub(crate) fn markdown(&self) -> String {
        let wanted = self.columns();
        let line = |cells: Vec<String>| {
            let cells: Vec<_> = wanted.iter().map(|column| cells[*column].clone()).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = wanted.iter().map(|column| match column {
            0 | 1 | 15 => "---|",
            _ => "---:|",
        });
        let mut text = String::new();
        for facts in &self.facts {
            text.push_str(&format!("{}\n\n", machine(facts)));
        }
        text.push_str(&line(titles()));
        text.push_str(&format!("|{}\n", rule.collect::<String>()));
        for row in &self.rows {
            let mut cells = row.cells();
            cells[0] = format!("`{}`", cells[0]);
            text.push_str(&line(cells));
        }
        text
    }

    /// A row a line.
    pub(crate) fn json(&self) -> String {
        let lines: Vec<_> = self
            .rows
            .iter()
            .map(|row| Value::Object(row.json()).to_string())
            .collect();
        lines.join("\n")
    }

    /// Appends the rows to the history, each with what it was measured on.
    pub(crate) fn keep(&self) -> Result<(), String> {
        let told = |error: std::io::Error| error.to_string();
        let path = history();
        create_dir_all(path.parent().unwrap_or(&path)).map_err(told)?;
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(told)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        for row in &self.rows {
            let mut line = row.json();
            line.insert("at".to_owned(), now.into());
            line.insert("on".to_owned(), self.facts.clone().into());
            writeln!(file, "{}", Value::Object(line)).map_err(told)?;
        }
        eprintln!("kept in {}", path.display());
        Ok(())
    }

    /// Those that say anything in this run.
    fn columns(&self) -> Vec<usize> {
        let builds = self.rows.iter().any(|row| row.build != self.rows[0].build);
        let cells: Vec<_> = self.rows.iter().map(Row::cells).collect();
        (0..COLUMNS.len())
            .filter(|column| *column != 1 || builds)
            .filter(|column| cells.iter().any(|cells| !cells[*column].is_empty()))
            .collect()
    }
}

fn titles() -> Vec<String> {
    COLUMNS.iter().map(|title| (*title).to_owned()).collect()
}

/// `1234567.8` as `1,234,568`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn machine(facts: &Value) -> String {
    let text = |name: &str| facts[name].as_str().unwrap_or("?").to_owned();
    let builds: Vec<_> = facts["builds"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|build| format!("{} ({})", build["name"], build["version"]).replace('"', ""))
        .collect();
    format!(
        "{} cores ({}), {}, Linux {}; PostgreSQL {} (`wal_level = {}`), Apache Kafka {}; {} at {}; \
         `--rows {} --seconds {} --repeat {}`.",
        facts["cores"],
        text("processor"),
        text("memory"),
        text("kernel"),
        text("postgres"),
        text("wal_level"),
        text("kafka"),
        builds.join(", "),
        text("commit"),
        facts["rows"],
        facts["seconds"],
        facts["repeat"],
    )
}

/// Of the sources beside this program, which need not be what `OUTBOX_BENCH_RELAY` was built from.
fn commit() -> String {
    let told = Command::new("git")
        .args([
            "-C",
            env!("CARGO_MANIFEST_DIR"),
            "describe",
            "--always",
            "--dirty",
        ])
        .output();
    let told = told.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned());
    told.unwrap_or_default()
}

/// In the target directory: figures of this machine are nobody else's.
pub(crate) fn history() -> PathBuf {
    let beside = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let target = beside.parent().unwrap_or(&beside);
    target.join("bench/history.jsonl")
}
