//! P7, P8: an aggregate with a hundred thousand rows that cannot be published costs the others nothing.
//!
//! What a statement costs is counted in pages it looked at: the same on a slow machine.

use outbox_relay::config::{self, TableName};
use outbox_relay::source::hot_statements;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use std::time::Duration;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::{self, World, eventually, topic_of};

const LANES: u16 = 16;
const ROWS: i64 = 100_000;

/// Says how many pages each statement of a batch looks at, in the order given, as one sum for each.
struct Pages {
    connection: PgConnection,
    statements: Vec<(&'static str, String)>,
}

impl Pages {
    async fn new(world: &World) -> Self {
        let name = TableName::parse("outbox").unwrap();
        let (layout, mark) = (config::Layout::default(), config::OnPublished::Mark);
        Self {
            connection: PgConnection::connect(&world.database_url).await.unwrap(),
            statements: hot_statements(&name, &layout, mark, LANES),
        }
    }

    fn sql(&self, name: &str) -> String {
        let found = self.statements.iter().find(|(known, _)| *known == name);
        found
            .unwrap_or_else(|| panic!("no statement {name}"))
            .1
            .clone()
    }

    /// What `statement` costs with these arguments, under the pins of a batch, and the rows it gives.
    async fn of(&mut self, mode: &str, statement: &str, arguments: &str) -> (i64, i64) {
        let script = format!(
            "{} set local plan_cache_mode = {mode}; prepare hot as {};",
            self.sql("open"),
            self.sql(statement)
        );
        let mut cost = (0, 0);
        // The second time: the first sets hint bits, and reads the catalogue.
        for _ in 0..2 {
            self.execute(&script).await;
            let arguments = match arguments {
                "" => String::new(),
                some => format!("({some})"),
            };
            let explain = format!(
                "explain (analyze, buffers, timing off, format json) execute hot {arguments}"
            );
            let plan = sqlx::query_scalar::<_, serde_json::Value>(AssertSqlSafe(explain))
                .persistent(false)
                .fetch_one(&mut self.connection)
                .await
                .unwrap_or_else(|error| panic!("{statement}: {error}"));
            self.execute("rollback; deallocate hot").await;
            let number = |name: &str| plan[0]["Plan"][name].as_i64().unwrap();
            cost = (
                number("Shared Hit Blocks") + number("Shared Read Blocks"),
                number("Actual Rows"),
            );
        }
        cost
    }

    async fn execute(&mut self, script: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(script.to_owned()));
        done.execute(&mut self.connection)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// What a batch looks at: 2,000 rows of some 500 aggregates in four lanes.
    async fn of_batch(&mut self, mode: &str, holding: bool) -> i64 {
        let lanes = "'{0,1,2,3}'";
        let mut sum = self.of(mode, "sweep", "'{0,1,2,3,4,5,6,7}'").await.0;
        let claim = self
            .of(
                mode,
                "claim_all",
                &format!("{lanes}, '{{500,500,500,500}}', '{{0,0,0,0}}'"),
            )
            .await;
        assert_eq!(claim.1, 2_000, "the batch is full");
        sum += claim.0;
        if holding {
            // What is asked before each of its aggregates is: `src/source/held.rs`.
            for (statement, limit) in [("parked_keys", "500"), ("fronts", "31")] {
                sum += self.of(mode, statement, limit).await.0;
            }
        }
        sum
    }
}

/// Parks rows of the aggregate `key` as a relay would.
fn parked(key: &str, state: &str, rows: i64, offset: i64) -> String {
    format!(
        "insert into outbox_relay.parked
                (outbox, state, seq, event_id, aggregate_type, aggregate_id, event_type, topic, headers,
                 value, hash)
         select 'public.outbox', '{state}', {offset} + i, gen_random_uuid(), 'Order', '{key}',
                'OrderChanged', 'order-events', '[]', '1', hashtext('{key}')
           from generate_series(1, {rows}) i;"
    )
}

#[test]
fn a_batch_costs_the_same_beside_a_hundred_thousand_parked_rows_of_one_aggregate() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        world.relay(&[&outbox]).migrate().await;
        world
            .execute(
                "alter table outbox set (autovacuum_enabled = false);
                 alter table outbox_relay.parked set (autovacuum_enabled = false);
                 insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select md5((i % 2000)::text)::uuid, 'Order', 'OrderChanged', '{}'
                   from generate_series(1, 20000) i",
            )
            .await;
        world.execute("vacuum analyze outbox").await;
        let mut pages = Pages::new(world).await;
        let modes = ["force_custom_plan", "force_generic_plan"];
        let mut clean = Vec::new();
        for mode in modes {
            clean.push(pages.of_batch(mode, false).await);
        }
        let park = format!(
            "{} {}",
            parked("hot", "blocked", 1, 0),
            parked("hot", "behind", ROWS, 1)
        );
        world.execute(&park).await;
        for statistics in ["", "analyze outbox_relay.parked"] {
            world.execute(statistics).await;
            for (mode, clean) in modes.iter().zip(&clean) {
                let beside = pages.of_batch(mode, true).await;
                assert!(
                    beside * 100 <= clean * 110,
                    "{mode}, {statistics:?}: {beside} pages, {clean} beside nothing"
                );
                // What is done about parked rows, each batch or now and then.
                let lane = "array[(hashtext('hot') & 15)]";
                for (statement, arguments, pages_max) in [
                    ("parked_keys", "500", 40),
                    ("fronts", "31", 20),
                    ("held", "'{hot,a,b,c}'", 30),
                    ("parked_promote", "'{hot}'", 20),
                    ("parked_sweep", "", 30),
                    ("parked_claim", &format!("{lane}, 100, '{{}}'"), 20),
                ] {
                    let cost = pages.of(mode, statement, arguments).await.0;
                    assert!(
                        cost <= pages_max,
                        "{mode}, {statistics:?}: {statement} looks at {cost} pages"
                    );
                }
            }
        }

        // Decided, it is published by the batch, and each costs what it takes.
        let decide = "update outbox_relay.parked set state = 'retry' where state = 'blocked'";
        world.execute(decide).await;
        for mode in modes {
            let lane = "array[(hashtext('hot') & 15)]";
            let arguments = format!("{lane}, 100, '{{}}'");
            let claim = pages.of(mode, "parked_claim", &arguments).await;
            assert_eq!(claim.1, 100);
            assert!(claim.0 <= 1_000, "{mode}: {} pages for 100 rows", claim.0);
        }
    });
}

#[test]
fn a_hundred_thousand_rows_behind_a_blocked_one_move_once_and_their_lane_goes_on() {
    const OTHERS: i64 = 100;
    let soon = Duration::from_secs(180);
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        world.expect_errors("park");
        let other = "select 'other ' || i from generate_series(1, 1000) i
             where hashtext('other ' || i) & 15 = hashtext('hot') & 15 limit 1";
        let other: String = sqlx::query_scalar(other)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        // A row that blocks, and behind it a thousand of its aggregate for each of the other.
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload, topic)
                 values ('hot', '{aggregate_type}', 'Bad', '0', 'no such/topic');
                 insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select case when i % 1001 = 0 then '{other}' else 'hot' end, '{aggregate_type}', 'Good',
                        to_jsonb(i)
                   from generate_series(1, {rows}) i;
                 create table moves (id bigint generated always as identity, what text, n bigint);
                 create function count_parked() returns trigger language plpgsql security definer as $$
                   begin insert into public.moves (what, n) select 'parked', count(*) from came; return null; end $$;
                 create trigger count_parked after insert on outbox_relay.parked
                   referencing new table as came for each statement execute function count_parked();
                 create function count_others() returns trigger language plpgsql security definer as $$
                   begin insert into public.moves (what, n)
                         select 'other', count(*) from gone where aggregate_id <> 'hot' having count(*) > 0;
                         return null; end $$;
                 create trigger count_others after delete on outbox
                   referencing old table as gone for each statement execute function count_others()",
                rows = ROWS + OTHERS,
            ))
            .await;
        world.execute("analyze outbox").await;
        let relay = setup.run();
        outbox.wait_drained(world, soon).await;
        let number = async |sql: &str| world.number(sql).await;
        let moved = number("select sum(n)::bigint from moves where what = 'parked'").await;
        assert_eq!(moved, ROWS + 1, "each row is moved once");
        let distinct = "select count(distinct event_id) from outbox_relay.parked";
        assert_eq!(number(distinct).await, ROWS + 1);
        let batches = number("select count(*) from moves where what = 'parked'").await;
        let meanwhile = "select coalesce(sum(n), 0)::bigint from moves where what = 'other'
             and id < (select max(id) from moves where what = 'parked')";
        let meanwhile = number(meanwhile).await;
        let numbers = async || {
            let records = world.kafka.read_all(&topic).await;
            let of = |record: &support::kafka::Record| {
                let value = str::from_utf8(record.value.as_deref()?).ok()?;
                let key = String::from_utf8(record.key.clone()?).ok()?;
                Some((key, value.parse::<i64>().ok()?))
            };
            let all: Vec<_> = records.iter().map(|record| of(record).unwrap()).collect();
            let of_key = |hot: bool| -> Vec<i64> {
                all.iter()
                    .filter(|(key, _)| (key == "hot") == hot)
                    .map(|(_, n)| *n)
                    .collect()
            };
            (of_key(true), of_key(false))
        };
        let (hot, others) = numbers().await;
        let wanted: Vec<i64> = (1..=OTHERS).map(|i| i * 1001).collect();
        assert_eq!((hot.len(), others), (0, wanted));
        assert!(
            meanwhile >= OTHERS / 2,
            "only {meanwhile} went on meanwhile"
        );
        assert!(batches <= 400, "{batches} batches");

        // All of it can be published still, in its order.
        if support::soak() {
            world
                .execute("update outbox_relay.parked set row_topic = null where topic is null")
                .await;
            let mut retry = setup.spawn(&["parked", "retry", "--yes"]);
            assert!(retry.wait_exit(soon).await.success());
            eventually(soon, "all is published", async || {
                number("select count(*) from outbox_relay.parked").await == 0
            })
            .await;
            let (hot, _) = numbers().await;
            assert!(hot.is_sorted() && hot.len() == usize::try_from(ROWS + 1).unwrap());
        }
        relay.stop().await;
    });
}
