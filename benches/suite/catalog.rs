//! Every workload there is, by name.

use std::time::Duration;

use crate::relays::Build;
use crate::support::servers::Kind;

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// `workload/case`.
    pub(crate) name: String,
    /// The case that this one is a ratio of: its clean twin, or the plainest of its workload.
    pub(crate) against: Option<String>,
    pub(crate) sample: Sample,
}

#[derive(Debug, Clone)]
pub(crate) enum Sample {
    Drain(Drain),
    Steady(Steady),
    /// Without a relay: each writer publishes what it has committed.
    Direct(Steady),
    /// Without the relay: the barest polling publisher there is.
    Bare(Steady),
    Idle,
    /// Without the relay: as many polls as it makes at rest.
    BareIdle,
    Postgres(Postgres),
    Kafka(Kafka),
    Debezium(Debezium),
}

/// A backlog, and relays that publish it.
#[derive(Debug, Clone)]
pub(crate) struct Drain {
    /// `on_published`, as the config takes it.
    pub(crate) mode: &'static str,
    /// Of an event, about: key, headers and payload.
    pub(crate) bytes: u64,
    /// The payload column's.
    pub(crate) column: &'static str,
    pub(crate) aggregates: u64,
    pub(crate) relays: usize,
    /// One of so many of the rows asked for: large rows would fill the disk.
    pub(crate) part: u64,
    pub(crate) trouble: Trouble,
    /// What is beyond a proxy, and how much later each byte arrives there, both ways.
    pub(crate) link: Option<(Kind, Duration)>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            mode: "delete",
            bytes: 350,
            column: "jsonb",
            aggregates: 20_000,
            relays: 1,
            part: 1,
            trouble: Trouble::None,
            link: None,
        }
    }
}

/// Events that arrive one by one, or a few at once.
#[derive(Debug, Clone)]
pub(crate) struct Steady {
    /// Events a second.
    pub(crate) rate: u64,
    pub(crate) rows_per_transaction: u64,
    pub(crate) mode: &'static str,
    pub(crate) trouble: Trouble,
    /// What is beyond a proxy for the relay, and how much later each byte arrives there, both ways.
    pub(crate) link: Option<(Kind, Duration)>,
}

/// What makes a day a bad one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// A transaction is open throughout, so that no dead row goes away. Before `steady`, a backlog is
    /// drained under it.
    Pinned,
    /// 100,000 rows are parked behind one that is blocked.
    Parked,
    /// One row of a thousand cannot be published.
    Poison,
    /// One row of ten goes to a topic that does not exist.
    MissingTopic,
    /// Kafka stands still for five seconds.
    Stall,
    /// Nobody has removed the dead rows of the backlog before.
    NoVacuum,
}

/// Claims and deletes without a relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Postgres {
    pub(crate) connections: u64,
    /// In one statement.
    pub(crate) at_once: bool,
    /// One row of ten is not to be had and passed over.
    pub(crate) passing: bool,
}

/// Produces without a relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kafka {
    pub(crate) producers: u64,
    pub(crate) in_flight: u64,
}

/// Debezium Server on the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debezium {
    Relay,
    Default,
    Tuned,
}

impl Case {
    pub(crate) fn drain(name: &str, against: Option<&str>, drain: Drain) -> Self {
        Self {
            name: name.to_owned(),
            against: against.map(str::to_owned),
            sample: Sample::Drain(drain),
        }
    }

    fn steady(name: &str, against: Option<&str>, rate: u64, rows: u64, trouble: Trouble) -> Self {
        Self {
            name: name.to_owned(),
            against: against.map(str::to_owned),
            sample: Sample::Steady(Steady {
                rate,
                rows_per_transaction: rows,
                mode: "delete",
                trouble,
                link: None,
            }),
        }
    }

    /// Whether its Postgres has `wal_level = logical`.
    pub(crate) fn wants_logical(&self) -> bool {
        matches!(self.sample, Sample::Debezium(_))
    }

    /// The builds that it is run with: one, where there is no relay in it.
    pub(crate) fn builds<'a>(&self, all: &'a [Build]) -> &'a [Build] {
        let alone = match self.sample {
            Sample::Postgres(_)
            | Sample::Kafka(_)
            | Sample::Direct(_)
            | Sample::Bare(_)
            | Sample::BareIdle => true,
            Sample::Debezium(which) => which != Debezium::Relay,
            _ => false,
        };
        if alone { &all[..1] } else { all }
    }
}

/// What `just bench` runs when it is told nothing.
const USUAL: &[&str] = &[
    "drain/delete",
    "drain/archive",
    "drain/mark",
    "drain/1kB",
    "drain/1-aggregate",
    "drain/2-relays",
    "steady/50x1",
    "steady/500x1",
    "steady/2000x1",
    "steady/20000x1000",
    "idle",
    "bad",
    "ceiling",
];

/// The cases that `wanted` names, in the catalogue's order, each after the one it is compared with.
pub(crate) fn select(wanted: &[String]) -> Result<Vec<Case>, String> {
    let all = all();
    let usual: Vec<String> = USUAL.iter().map(|name| (*name).to_owned()).collect();
    let wanted = if wanted.is_empty() { &usual } else { wanted };
    let meant = |case: &Case, word: &str| {
        word == case.name
            || case.name.split('/').next() == Some(word)
            || word == "all" && !case.wants_logical()
    };
    for word in wanted {
        if !all.iter().any(|case| meant(case, word)) {
            let names: Vec<_> = all.iter().map(|case| case.name.as_str()).collect();
            return Err(format!(
                "no workload {word}. There are: {}",
                names.join(" ")
            ));
        }
    }
    let chosen = |case: &Case| wanted.iter().any(|word| meant(case, word));
    let twins: Vec<String> = all
        .iter()
        .filter(|case| chosen(case))
        .filter_map(|case| case.against.clone())
        .collect();
    Ok(all
        .into_iter()
        .filter(|case| chosen(case) || twins.contains(&case.name))
        .collect())
}

fn all() -> Vec<Case> {
    let mut all = drains();
    all.extend(steadies());
    all.push(Case {
        name: "idle".to_owned(),
        against: None,
        sample: Sample::Idle,
    });
    all.push(Case {
        name: "bare/idle".to_owned(),
        against: None,
        sample: Sample::BareIdle,
    });
    all.extend(bad_days());
    all.extend(links());
    all.extend(ceilings());
    for (name, which) in [
        ("relay", Debezium::Relay),
        ("default", Debezium::Default),
        ("tuned", Debezium::Tuned),
    ] {
        all.push(Case {
            name: format!("debezium/{name}"),
            against: (which != Debezium::Relay).then(|| "debezium/relay".to_owned()),
            sample: Sample::Debezium(which),
        });
    }
    all
}

fn drains() -> Vec<Case> {
    let base = Some("drain/delete");
    let plain = Drain::default;
    let with = |name: &str, drain: Drain| Case::drain(&format!("drain/{name}"), base, drain);
    let mut all = vec![Case::drain("drain/delete", None, plain())];
    for mode in ["archive", "mark"] {
        all.push(with(mode, Drain { mode, ..plain() }));
    }
    for (name, bytes, part) in [("200B", 200, 1), ("1kB", 1_000, 2), ("10kB", 10_000, 10)] {
        let drain = Drain {
            bytes,
            part,
            ..plain()
        };
        all.push(with(name, drain));
    }
    for column in ["json", "text", "bytea"] {
        all.push(with(column, Drain { column, ..plain() }));
    }
    for (name, aggregates) in [("1-aggregate", 1), ("100-aggregates", 100)] {
        let drain = Drain {
            aggregates,
            ..plain()
        };
        all.push(with(name, drain));
    }
    for (name, relays) in [("2-relays", 2), ("4-relays", 4)] {
        all.push(with(name, Drain { relays, ..plain() }));
    }
    all
}

fn steadies() -> Vec<Case> {
    let rates = [
        ("50x1", 50, 1),
        ("200x1", 200, 1),
        ("500x1", 500, 1),
        ("2000x1", 2_000, 1),
        ("2000x5", 2_000, 5),
        ("20000x5", 20_000, 5),
        ("20000x1000", 20_000, 1_000),
    ];
    let steady = |name: &str, rate, rows| Case::steady(name, None, rate, rows, Trouble::None);
    let mut all: Vec<Case> = (rates.into_iter())
        .map(|(name, rate, rows)| steady(&format!("steady/{name}"), rate, rows))
        .collect();
    for (name, rate, rows) in &rates[..4] {
        let Sample::Steady(alone) = steady("", *rate, *rows).sample else {
            continue;
        };
        for (workload, sample) in [
            ("bare", Sample::Bare(alone.clone())),
            ("direct", Sample::Direct(alone)),
        ] {
            all.push(Case {
                name: format!("{workload}/{name}"),
                against: Some(format!("steady/{name}")),
                sample,
            });
        }
    }
    all
}

fn bad_days() -> Vec<Case> {
    let mut all = vec![Case::drain("bad/clean", None, Drain::default())];
    for (name, trouble) in [
        ("pinned", Trouble::Pinned),
        ("parked", Trouble::Parked),
        ("poison", Trouble::Poison),
        ("missing-topic", Trouble::MissingTopic),
        ("stall", Trouble::Stall),
        ("no-vacuum", Trouble::NoVacuum),
    ] {
        let drain = Drain {
            trouble,
            ..Drain::default()
        };
        all.push(Case::drain(
            &format!("bad/{name}"),
            Some("bad/clean"),
            drain,
        ));
    }
    let clean = "bad/steady-clean";
    all.push(Case::steady(clean, None, 500, 1, Trouble::None));
    for (name, trouble) in [("pinned", Trouble::Pinned), ("parked", Trouble::Parked)] {
        let name = format!("bad/steady-{name}");
        all.push(Case::steady(&name, Some(clean), 500, 1, trouble));
    }
    // what the service's own inserts take on such days
    let clean = "bad/direct-clean";
    for (name, against, trouble) in [
        (clean, None, Trouble::None),
        ("bad/direct-pinned", Some(clean), Trouble::Pinned),
    ] {
        let mut case = Case::steady(name, against, 500, 1, trouble);
        if let Sample::Steady(steady) = case.sample {
            case.sample = Sample::Direct(steady);
        }
        all.push(case);
    }
    // what Postgres alone takes where rows are passed over
    let clean = "bad/postgres-clean";
    for (name, against, passing) in [
        (clean, None, false),
        ("bad/postgres-missing-topic", Some(clean), true),
    ] {
        all.push(Case {
            name: name.to_owned(),
            against: against.map(str::to_owned),
            sample: Sample::Postgres(Postgres {
                connections: 2,
                at_once: false,
                passing,
            }),
        });
    }
    all
}

fn links() -> Vec<Case> {
    let mut all = Vec::new();
    for (name, kind) in [("kafka", Kind::Kafka), ("postgres", Kind::Postgres)] {
        // the twin goes through the proxy as well, which costs something by itself
        let twin = format!("link/{name}-0ms");
        for ms in [0, 1, 5] {
            let drain = Drain {
                link: Some((kind, Duration::from_millis(ms))),
                ..Drain::default()
            };
            let against = (ms > 0).then_some(twin.as_str());
            all.push(Case::drain(&format!("link/{name}-{ms}ms"), against, drain));
        }
    }
    let twin = "link/steady-kafka-0ms";
    for ms in [0, 1, 5] {
        let mut case = Case::steady(
            &format!("link/steady-kafka-{ms}ms"),
            (ms > 0).then_some(twin),
            500,
            1,
            Trouble::None,
        );
        if let Sample::Steady(steady) = &mut case.sample {
            steady.link = Some((Kind::Kafka, Duration::from_millis(ms)));
        }
        all.push(case);
    }
    all
}

fn ceilings() -> Vec<Case> {
    let relay = "ceiling/relay";
    let mut all = vec![Case::drain(relay, None, Drain::default())];
    let mut add = |name: &str, sample: Sample| {
        all.push(Case {
            name: format!("ceiling/{name}"),
            against: Some(relay.to_owned()),
            sample,
        });
    };
    for connections in [1, 2] {
        for (name, at_once) in [("postgres", false), ("postgres-returning", true)] {
            let postgres = Postgres {
                connections,
                at_once,
                passing: false,
            };
            add(&format!("{name}-{connections}"), Sample::Postgres(postgres));
        }
    }
    for (name, producers, in_flight) in [("kafka-1", 1, 5), ("kafka-4", 4, 1)] {
        let kafka = Kafka {
            producers,
            in_flight,
        };
        add(name, Sample::Kafka(kafka));
    }
    all
}
