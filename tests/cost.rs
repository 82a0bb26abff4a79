//! What a row costs, as counts: the same on a slow machine and a busy one. `just bench` has the times.
//!
//! Each bound is what was measured, and some room. A change that needs more says so here, and why.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::see::Seen;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::proxy::{Direction, Proxy};
use crate::support::relay::Setup;
use crate::support::{self, Own, World, topic_of};

const LONG: Duration = Duration::from_secs(240);

/// An outbox, and a relay that costs the same each time: one worker, which finds no lane taken and never
/// waits for another, and nobody who looks at the table beside it.
struct Drain<'a> {
    world: &'a World,
    setup: Setup<'a>,
    aggregate_type: String,
}

impl<'a> Drain<'a> {
    async fn new(world: &'a World, on_published: OnPublished) -> Self {
        let outbox = Outbox::new("outbox", Layout::Classic, on_published);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        Self {
            world,
            setup: setup.workers(1).set("relay", "sample_interval", "\"1h\""),
            aggregate_type,
        }
    }

    /// The same through a proxy that counts what Postgres answers.
    async fn counted(self) -> (Self, Proxy) {
        let (_, port) = self.world.database_url.rsplit_once(':').unwrap();
        let port = port.split('/').next().unwrap().parse().unwrap();
        let proxy = Proxy::to(port).await;
        proxy.count_answers();
        let url = proxy.url(&self.world.database_url);
        let url = format!("\"{url}?sslmode=disable\"");
        let setup = self.setup.set("database", "url", &url);
        (Self { setup, ..self }, proxy)
    }

    /// Inserts rows of about 350 bytes, of 500 aggregates.
    async fn insert(&self, rows: i64) {
        let aggregate_type = &self.aggregate_type;
        self.world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select md5((g % 500)::text)::uuid, '{aggregate_type}', 'OrderCreated',
                        jsonb_build_object('order_id', g, 'customer', md5(g::text), 'total', g * 1.5,
                                           'items', jsonb_build_array(1, 2, 3), 'note', repeat('x', 150))
                   from generate_series(1, {rows}) g"
            ))
            .await;
        self.world.execute("analyze outbox").await;
    }

    async fn publish(&self) {
        assert!(self.setup.until_empty(LONG).await.success());
    }

    async fn published(&self) -> i64 {
        let topic = topic_of(&self.aggregate_type);
        self.world.kafka.count(&topic).await
    }
}

/// Holds a count against its bound. A bound that is far away guards nothing: it fails as well.
#[track_caller]
#[allow(
    clippy::print_stdout,
    reason = "libtest shows it with a failed test, or when asked"
)]
fn within(what: &str, count: f64, bound: f64, look_at: &str) {
    println!("{what}: {count:.3}, at most {bound}");
    assert!(
        count <= bound,
        "{what}: {count:.3}, more than {bound}; look at {look_at}"
    );
    assert!(
        count > bound / 10.0,
        "{what}: {count:.3}; lower the bound of {bound}, which guards nothing any more"
    );
}

#[test]
fn a_batch_costs_few_round_trips_and_bytes() {
    const ROWS: i64 = 20_000;
    const BATCH: i64 = 2_000;
    support::run(async |world| {
        let drain = Drain::new(world, OnPublished::Delete).await;
        let (drain, proxy) = drain.counted().await;
        let used = || {
            let bytes = proxy.bytes(Direction::ToClient) + proxy.bytes(Direction::ToServer);
            (proxy.answers() as f64, bytes as f64)
        };
        // what a start costs, however much there is to do
        drain.insert(1).await;
        drain.publish().await;
        let start = used();
        drain.insert(ROWS).await;
        drain.publish().await;
        let all = used();
        assert_eq!(drain.published().await, ROWS + 1);
        let (answers, bytes) = (all.0 - 2.0 * start.0, all.1 - 2.0 * start.1);
        let batches = (ROWS / BATCH) as f64;
        within(
            "round trips for each full batch",
            answers / batches,
            17.5,
            "what a worker asks in src/source/polling.rs, and how few rows a batch claims",
        );
        within(
            "bytes between relay and Postgres for each row",
            bytes / ROWS as f64,
            580.0,
            "the columns of `claim` and the arguments of `finish` in src/source/sql.rs",
        );
    });
}

#[test]
fn an_outbox_at_rest_costs_one_round_trip_a_poll() {
    support::run(async |world| {
        let drain = Drain::new(world, OnPublished::Delete).await;
        let (drain, proxy) = drain.counted().await;
        // many polls between two looks at all lanes, however slow the machine is
        let setup = (drain.setup.set("relay", "poll_interval_max", "\"10ms\"")).set(
            "http",
            "listen",
            "\"127.0.0.1:0\"",
        );
        let drain = Drain { setup, ..drain };
        let seen = Seen::start(&drain.setup).await;
        let polls = async || {
            let (_, metrics) = seen.get("/metrics").await;
            let empty = |line: &&str| {
                line.starts_with("outbox_relay_polls_total{") && line.contains("\"empty\"")
            };
            let line = metrics.lines().find(empty);
            let polls = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            polls.unwrap_or(0.0)
        };
        for state in ["that nobody has ever written to", "at rest"] {
            let began = polls().await;
            support::eventually(LONG, "it rests", async || polls().await > began + 100.0).await;
            let before = (proxy.answers() as f64, polls().await);
            support::eventually(LONG, "it polls", async || polls().await > before.1 + 200.0).await;
            let after = (proxy.answers() as f64, polls().await);
            within(
                &format!("round trips for each poll of an outbox {state}"),
                (after.0 - before.0) / (after.1 - before.1),
                1.6,
                "src/source/quiet.rs",
            );
            drain.insert(1).await;
        }
        seen.relay.stop().await;
    });
}

#[test]
fn a_settled_row_writes_little_to_the_log() {
    const ROWS: i64 = 20_000;
    let bounds = [(OnPublished::Delete, 170.0), (OnPublished::Mark, 840.0)];
    for (on_published, bound) in bounds {
        support::run_with(Own::POSTGRES, async |world| {
            let drain = Drain::new(world, on_published).await;
            // nothing but what the relay does: no page is written whole, nobody cleans up beside it
            let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
            for sql in [
                "alter system set full_page_writes = off",
                "alter system set autovacuum = off",
                "select pg_reload_conf()",
            ] {
                let done = sqlx::raw_sql(AssertSqlSafe(sql));
                done.execute(&mut connection).await.unwrap();
            }
            support::eventually(LONG, "the settings are in force", async || {
                world
                    .number("select count(*) from pg_settings where name in ('full_page_writes', 'autovacuum') and setting = 'off'")
                    .await
                    == 2
            })
            .await;
            drain.insert(ROWS).await;
            let position = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8";
            let before = world.number(position).await;
            drain.publish().await;
            let written = world.number(position).await - before;
            assert_eq!(drain.published().await, ROWS);
            within(
                &format!(
                    "bytes of write-ahead log for each row, {}",
                    on_published.name()
                ),
                written as f64 / ROWS as f64,
                bound,
                "the indexes of the table, `for update` and `finish` in src/source/sql.rs",
            );
        });
    }
}

/// Two relays under valgrind make each other wait, and waiting is counted as well.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What each row costs a relay, in instructions of a build without optimisation.
async fn instructions(drain: Drain<'_>) -> f64 {
    // the difference: a start costs a hundred times as many
    const FEW: i64 = 1_000;
    const MANY: i64 = 3_000;
    let valgrind = drain.setup.program("valgrind".into());
    let drain = Drain {
        setup: valgrind,
        ..drain
    };
    let mut counts = Vec::new();
    for rows in [FEW, MANY] {
        drain.insert(rows).await;
        let mut relay = drain.setup.spawn(&[
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            env!("CARGO_BIN_EXE_outbox-relay"),
            "run",
            "--until-empty",
        ]);
        assert!(relay.wait_exit(LONG).await.success());
        let lines = relay.lines();
        let count = lines.iter().find_map(|line| {
            let (_, count) = line.split_once("Collected : ")?;
            count.trim().parse::<f64>().ok()
        });
        counts.push(count.unwrap_or_else(|| panic!("no count in {lines:?}")));
    }
    assert_eq!(drain.published().await, FEW + MANY);
    (counts[1] - counts[0]) / (MANY - FEW) as f64
}

fn has_valgrind() -> bool {
    let asked = std::process::Command::new("valgrind")
        .arg("--version")
        .output();
    if asked.is_err() {
        support::skip("no valgrind");
    }
    asked.is_ok()
}

#[test]
fn a_row_costs_few_instructions() {
    if !has_valgrind() {
        return;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    support::run(async |world| {
        let drain = Drain::new(world, OnPublished::Delete).await;
        within(
            "instructions for each row, in a build without optimisation",
            instructions(drain).await,
            84_000.0,
            "what is done for each row in src/source, src/relay and src/sink: callgrind tells where",
        );
    });
    drop(alone);
}

#[test]
fn a_contract_costs_a_row_little() {
    if !has_valgrind() {
        return;
    }
    const CONTRACT: &str = r#"{
      "type": "object", "required": ["order_id", "customer", "total", "items"],
      "properties": {
        "order_id": {"type": "integer", "minimum": 1},
        "customer": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "total": {"type": "number", "minimum": 0},
        "items": {"type": "array", "maxItems": 100, "items": {"type": "integer"}},
        "note": {"type": ["string", "null"], "maxLength": 1000}
      }
    }"#;
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    support::run(async |world| {
        let folder = world.directory.join("contracts");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("OrderCreated.v1.json"), CONTRACT).unwrap();
        let mut drain = Drain::new(world, OnPublished::Delete).await;
        let mut outbox = Outbox::new("outbox", Layout::Classic, OnPublished::Delete);
        outbox.config = format!("contracts = \"{}\"", folder.display());
        let setup = world.relay(&[&outbox]).workers(1);
        drain.setup = setup.set("relay", "sample_interval", "\"1h\"");
        within(
            "instructions for each row that is held against a contract, in a build without optimisation",
            instructions(drain).await,
            130_000.0,
            "src/contract, and the validator that it calls",
        );
    });
    drop(alone);
}
