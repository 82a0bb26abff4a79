//! `check` finds what is wrong with a set-up and names what mends it. Each fix is taken out of its line
//! and executed; then the line is gone.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

use crate::faults::clocks::fake_time;
use crate::support::cluster;
use crate::support::guarded::{Guarded, PASSWORD, USER};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::pgbouncer::PgBouncer;
use crate::support::relay::Setup;
use crate::support::writers::{first, one};
use crate::support::{self, Own, World, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);

/// What one run of `check` said.
pub(crate) struct Checked {
    pub(crate) code: Option<i32>,
    pub(crate) lines: Vec<Value>,
    pub(crate) all: String,
}

pub(crate) async fn check(setup: &Setup<'_>, arguments: &[&str]) -> Checked {
    let mut relay = setup.spawn(&[&["check", "--json"], arguments].concat());
    let status = relay.wait_exit(SOON).await;
    let lines = relay.lines();
    let objects = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok());
    Checked {
        code: status.code(),
        lines: objects
            .filter(|line: &Value| line["item"].is_string())
            .collect(),
        all: lines.join("\n"),
    }
}

/// Checks until `condition` holds. `what` says what never came.
async fn checked_until(
    setup: &Setup<'_>,
    arguments: &[&str],
    what: &str,
    condition: impl Fn(&Checked) -> bool,
) -> Checked {
    let began = Instant::now();
    loop {
        let checked = check(setup, arguments).await;
        if condition(&checked) {
            return checked;
        }
        assert!(
            began.elapsed() < SOON,
            "not within {SOON:?}: {what}:\n{}",
            checked.all
        );
    }
}

impl Checked {
    /// What is not as it must be: item and reason.
    pub(crate) fn bad(&self) -> impl Iterator<Item = (&str, &str)> {
        let bad = self
            .lines
            .iter()
            .filter(|line| line["level"] == "warn" || line["level"] == "fail");
        bad.map(|line| {
            (
                line["item"].as_str().unwrap(),
                line["why"].as_str().unwrap(),
            )
        })
    }

    pub(crate) fn has(&self, item: &str, part: &str) -> bool {
        self.bad()
            .any(|(name, why)| name == item && why.contains(part))
    }

    /// The level of what was found, and what mends it.
    pub(crate) fn found(&self, item: &str, part: &str) -> (&str, &str) {
        let line = self.lines.iter().find(|line| {
            let level = line["level"].as_str().unwrap();
            line["item"] == item && line["why"].as_str().unwrap().contains(part) && level != "ok"
        });
        let line = line.unwrap_or_else(|| panic!("no {item} with {part:?} in\n{}", self.all));
        let fix = line["fix"].as_str();
        (
            line["level"].as_str().unwrap(),
            fix.unwrap_or_else(|| panic!("no fix: {line}")),
        )
    }

    pub(crate) fn assert_clean_of(&self, item: &str, part: &str) {
        assert!(
            !self.has(item, part),
            "{item} {part:?} still:\n{}",
            self.all
        );
    }
}

/// Runs a line for a shell that begins with `outbox-relay`, as somebody who may do more than the relay.
fn run_line(world: &World, line: &str) -> String {
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("outbox-relay"), "{line}");
    let done = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args(words)
        .env("DATABASE_URL", &world.database_url)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.success(), "{line}: {said}");
    said
}

/// The words behind each option of a line for a shell.
fn options(line: &str) -> BTreeMap<&str, &str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[0].starts_with("--"));
    pairs.map(|pair| (pair[0], pair[1])).collect()
}

/// The name and the value of a line such as `key = value in [section] of the config`.
fn setting(fix: &str) -> (&str, &str) {
    let (line, _) = fix.split_once(" in [").expect("a setting");
    line.split_once(" = ").expect("a key and its value")
}

/// The relay as a role that has nothing but its login.
async fn plain_role<'a>(world: &'a World, outbox: &Outbox) -> Setup<'a> {
    world
        .execute("create role relay login password 'relays-own'")
        .await;
    let url = world
        .database_url
        .replacen("postgres:postgres@", "relay:relays-own@", 1);
    assert_ne!(url, world.database_url, "the tests' own role is postgres");
    world
        .relay(&[outbox])
        .set("database", "url", &format!("\"{url}\""))
}

/// Executes the fix of every missing grant; the first ones uncover more.
async fn grant_all(world: &World, setup: &Setup<'_>) -> Checked {
    loop {
        let checked = check(setup, &[]).await;
        let fixes: Vec<&str> = (checked.lines.iter())
            .filter(|line| line["item"] == "grants" && line["level"] != "ok")
            .map(|line| line["fix"].as_str().expect("a statement"))
            .collect();
        if fixes.is_empty() {
            return checked;
        }
        for fix in fixes {
            assert!(
                fix.starts_with("grant ") && fix.ends_with("to \"relay\";"),
                "{fix}"
            );
            world.execute(fix).await;
        }
    }
}

#[test]
fn check_leads_from_no_table_to_one_that_is_served() {
    support::run_with(Own::POSTGRES, async |world| {
        let outbox = Outbox::classic();
        let setup = plain_role(world, &outbox).await;
        let checked = check(&setup, &[]).await;
        assert_eq!(checked.code, Some(1), "{}", checked.all);
        let (_, fix) = checked.found("table", "does not exist");
        world.execute(fix).await;
        world
            .execute(
                "create table outbox_orders (id text primary key, n bigint not null default 0);
                 create table outbox_journal (id uuid primary key)",
            )
            .await;

        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("table", "");
        let (_, fix) = checked.found("schema", "is not there");
        assert!(checked.has("columns", "no column seq"), "{}", checked.all);
        run_line(world, fix);
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("schema", "");
        checked.assert_clean_of("columns", "");
        checked.found("grants", "missing");
        let checked = grant_all(world, &setup).await;
        let ours: Vec<_> = checked
            .bad()
            .filter(|(item, _)| *item != "replicas")
            .collect();
        assert!(ours.is_empty(), "{}", checked.all);
        assert_eq!(checked.code, Some(0), "{}", checked.all);

        // a column that may be null
        world
            .execute("alter table outbox alter column event_type drop not null")
            .await;
        let checked = check(&setup, &[]).await;
        world
            .execute(checked.found("columns", "event_type").1)
            .await;

        // no index; then one of that name that is none of the relay's
        world.execute("drop index outbox_outbox_relay_16").await;
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("columns", "");
        run_line(world, checked.found("lanes", "lacks the index").1);
        world
            .execute(
                "drop index outbox_outbox_relay_16;
                 create index outbox_outbox_relay_16 on outbox (seq) where published_at is null",
            )
            .await;
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("lanes", "");
        world
            .execute(checked.found("claim", "does not go by the index").1)
            .await;
        run_line(
            world,
            check(&setup, &[]).await.found("lanes", "lacks the index").1,
        );

        // numbers that come again, and a schema of an older version, to a role that is told of both
        let aggregate_type = world.aggregate_type("Order");
        for n in 1..=3 {
            one(
                world,
                &outbox,
                &aggregate_type,
                &Uuid::new_v4().to_string(),
                n,
            )
            .await;
        }
        world
            .execute(
                "grant select, usage on all sequences in schema public to relay;
                 grant select on outbox_relay.migrations to relay;
                 select setval('outbox_seq_seq', 1);
                 delete from outbox_relay.migrations
                  where version = (select max(version) from outbox_relay.migrations)",
            )
            .await;
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("claim", "");
        world
            .execute(checked.found("numbers", "was set back").1)
            .await;
        run_line(
            world,
            checked.found("migrations", "older than this build").1,
        );

        // somebody routes otherwise
        world
            .execute("update outbox_relay.outbox set routing = 'layout=classic topic=old key=aggregate_id'")
            .await;
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("numbers", "");
        checked.assert_clean_of("migrations", "");
        run_line(world, checked.found("routing", "topic=old").1);
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("routing", "");

        // the topic of the rows that wait
        let topic = topic_of(&aggregate_type);
        let (level, fix) = checked.found("topic", &topic);
        assert_eq!(level, "fail");
        let named = options(fix);
        assert_eq!(
            (named["--topic"], named["--bootstrap-server"]),
            (&*topic, &*world.kafka.brokers)
        );
        let partitions = named["--partitions"].parse().unwrap();
        world
            .kafka
            .create_topic(named["--topic"], partitions, &[])
            .await;
        let checked = check(&setup, &[]).await;
        let ours: Vec<_> = checked
            .bad()
            .filter(|(item, _)| *item != "replicas")
            .collect();
        assert!(ours.is_empty(), "{}", checked.all);
        assert_eq!(checked.code, Some(0), "{}", checked.all);
    });
}

#[test]
fn check_finds_a_dozen_things_at_once_and_each_fix_mends_its_own() {
    /// What is broken: item, and a part of the reason.
    const BROKEN: &[(&str, &str, &str)] = &[
        ("sequence", "caches 20", "fail"),
        ("autovacuum", "off for this table", "warn"),
        ("horizon", "a transaction of", "warn"),
        ("horizon", "slot forgotten", "warn"),
        ("bloat", "dead rows", "warn"),
        ("deleted", "the service seems to delete", "warn"),
        ("rivals", "the trigger tell", "warn"),
        ("rivals", "the publication rival", "warn"),
        ("policies", "row security", "fail"),
        ("connections", "may make 3", "fail"),
        ("timeouts", "idle_session_timeout", "warn"),
        ("parked", "1 rows block", "warn"),
    ];
    support::run_with(Own::POSTGRES, async |world| {
        let mut outbox = Outbox::classic();
        outbox.config = "notify = true".to_owned();
        outbox.create(world).await;
        world.relay(&[&outbox]).migrate().await;
        let setup = plain_role(world, &outbox).await;
        let old = &["--transaction-age", "1ms"];
        let checked = grant_all(world, &setup).await;
        for (item, part, _) in BROKEN {
            checked.assert_clean_of(item, part);
        }
        // who may not see others' transactions is told what to grant
        world.execute(checked.found("horizon", "not told").1).await;

        world
            .execute(
                "alter table outbox set (autovacuum_enabled = false);
                 begin;
                 insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select gen_random_uuid(), 'Order', 'OrderCreated', '{}' from generate_series(1, 20000);
                 delete from outbox;
                 commit",
            )
            .await;
        eventually(SOON, "the statistics have arrived", async || {
            let deleted = "select pg_stat_get_tuples_deleted('outbox'::regclass)";
            world.number(deleted).await >= 20_000
        })
        .await;
        world
            .execute(
                "alter table outbox alter column seq set cache 20;
                 create function tell() returns trigger language plpgsql as 'begin return null; end';
                 create trigger tell after insert on outbox for each row execute function tell();
                 create publication rival for table outbox;
                 alter table outbox enable row level security;
                 alter role relay connection limit 3;
                 alter role relay set idle_session_timeout = '10min';
                 insert into outbox_relay.parked
                        (outbox, state, reason_class, seq, event_id, aggregate_type, aggregate_id, event_type, hash)
                 values ('public.outbox', 'blocked', 'too_large', 1, gen_random_uuid(), 'Order', 'a',
                         'OrderCreated', hashtext('a'))",
            )
            .await;
        world
            .execute("select pg_create_physical_replication_slot('forgotten', true)")
            .await;
        let mut open = PgConnection::connect(&world.database_url).await.unwrap();
        sqlx::raw_sql("begin; select pg_current_xact_id()")
            .execute(&mut open)
            .await
            .unwrap();

        let checked = check(&setup, old).await;
        assert_eq!(checked.code, Some(1), "{}", checked.all);
        let quiet = check(&setup, &[old, &["--quiet"][..]].concat()).await;
        assert!(
            quiet.lines.iter().all(|line| line["level"] != "ok"),
            "{}",
            quiet.all
        );
        for (item, part, level) in BROKEN {
            let (found, fix) = checked.found(item, part);
            assert_eq!(found, *level, "{item}: {part}");
            if *item == "parked" {
                // it leads to the rows; what becomes of them is somebody's decision
                assert!(
                    run_line(world, fix).contains("1 blocked (too_large)"),
                    "{fix}"
                );
                let retry = fix.replacen("list", "retry --yes", 1);
                run_line(world, &retry);
            } else {
                world.execute(fix).await;
            }
            if *part == "a transaction of" {
                // it ends when its process hears of it; until then vacuum can do nothing
                eventually(SOON, "the transaction has ended", async || {
                    let open = "select count(*) from pg_stat_activity
                         where datname = current_database() and backend_xid is not null";
                    world.number(open).await == 0
                })
                .await;
            }
        }
        let checked = check(&setup, old).await;
        for (item, part, _) in BROKEN {
            checked.assert_clean_of(item, part);
        }
        assert_eq!(checked.code, Some(0), "{}", checked.all);
    });
}

#[test]
fn a_healthy_set_up_is_all_ok_and_a_careless_topic_is_not() {
    cluster::run(async |world, cluster| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]).workers(1).set(
            "kafka",
            "brokers",
            &format!("\"{}\"", cluster.bootstrap()),
        );
        setup.migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        let topic = topic_of(&aggregate_type);
        cluster.create_replicated(&topic).await;
        first(world, &outbox, &aggregate_type).await;
        let strict = &["--deny-warnings"];
        let checked = check(&setup, strict).await;
        assert!(
            checked.lines.iter().all(|line| line["level"] == "ok"),
            "{}",
            checked.all
        );
        assert_eq!(checked.code, Some(0));
        for item in [
            "database",
            "tls",
            "clock",
            "pooler",
            "connections",
            "timeouts",
            "horizon",
            "table",
            "schema",
            "columns",
            "grants",
            "sequence",
            "lanes",
            "routing",
            "numbers",
            "migrations",
            "autovacuum",
            "bloat",
            "deleted",
            "policies",
            "rivals",
            "claim",
            "parked",
            "kafka",
            "topic",
            "replicas",
            "unclean",
            "size",
        ] {
            let looked = checked.lines.iter().any(|line| line["item"] == item);
            assert!(looked, "{item} was looked at:\n{}", checked.all);
        }

        let careless = [
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
        ];
        cluster.kafka().configure_topic(&topic, &careless).await;
        let checked = checked_until(&setup, strict, "the brokers have heard of it", |it| {
            it.has("unclean", &topic)
        })
        .await;
        assert_eq!(
            checked.code,
            Some(1),
            "under --deny-warnings: {}",
            checked.all
        );
        let mut mended = Vec::new();
        for (item, part) in [
            ("replicas", "min.insync.replicas"),
            ("unclean", "unclean.leader"),
        ] {
            let (level, fix) = checked.found(item, part);
            assert_eq!(level, "warn");
            let named = options(fix);
            assert_eq!(named["--entity-name"], topic);
            mended.push(named["--add-config"].split_once('=').unwrap());
        }
        // a warning alone is no failure
        assert_eq!(check(&setup, &[]).await.code, Some(0));
        cluster.kafka().configure_topic(&topic, &mended).await;
        eventually(SOON, "the fixes mend it", async || {
            check(&setup, strict).await.code == Some(0)
        })
        .await;
    });
}

#[test]
fn what_the_brokers_deny_is_found_step_by_step() {
    support::run(async |world| {
        let guarded = Guarded::start().await.unwrap_or_else(|why| panic!("{why}"));
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let login = |password: &str| {
            world
                .relay(&[&outbox])
                .set("kafka", "brokers", &format!("\"{}\"", guarded.bootstrap()))
                .set(
                    "kafka.properties",
                    "\"security.protocol\"",
                    "\"SASL_PLAINTEXT\"",
                )
                .set("kafka.properties", "\"sasl.mechanisms\"", "\"PLAIN\"")
                .set(
                    "kafka.properties",
                    "\"sasl.username\"",
                    &format!("\"{USER}\""),
                )
                .set(
                    "kafka.properties",
                    "\"sasl.password\"",
                    &format!("\"{password}\""),
                )
        };
        login(PASSWORD).migrate().await;
        let aggregate_type = world.aggregate_type("Order");
        let topic = topic_of(&aggregate_type);
        guarded.kafka().create_topic(&topic, 1, &[]).await;
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select gen_random_uuid(), '{aggregate_type}', 'OrderCreated',
                        jsonb_build_object('text', repeat('x', 1200000))"
            ))
            .await;

        let checked = check(&login("another"), &[]).await;
        assert_eq!(checked.code, Some(1), "{}", checked.all);
        assert!(
            !checked.all.contains("another"),
            "a secret: {}",
            checked.all
        );
        let (_, fix) = checked.found("kafka", "refuses the relay's user or password");
        assert!(fix.contains("sasl.password"), "{fix}");

        let setup = login(PASSWORD);
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("kafka", "");
        let named = options(checked.found("rights", &topic).1);
        let of = ["--allow-principal", "--operation", "--topic"].map(|name| named[name]);
        assert_eq!(of, [&*format!("User:{USER}"), "Write", &*topic]);
        guarded.grant(named["--topic"]).await;

        let checked = checked_until(&setup, &[], "the right is in force", |it| {
            !it.has("rights", "")
        })
        .await;
        // whose settings it may not read; so its own limit counts
        let (level, fix) = checked.found("settings", &topic);
        assert_eq!(
            (level, options(fix)["--operation"]),
            ("skip", "DescribeConfigs")
        );
        let (key, value) = setting(checked.found("size", "1200").1);
        let setup = login(PASSWORD).set("kafka", key, value);
        let checked = check(&setup, &[]).await;
        checked.assert_clean_of("size", "");
        assert_eq!(checked.code, Some(0), "{}", checked.all);
    });
}

#[test]
fn a_row_that_its_topic_cannot_take_is_found_while_it_waits() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        world
            .kafka
            .configure_topic(&topic, &[("max.message.bytes", "2000")])
            .await;
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select gen_random_uuid(), '{aggregate_type}', 'OrderCreated',
                        jsonb_build_object('text', repeat('x', 100 * i))
                   from generate_series(1, 50) i"
            ))
            .await;
        let checked = checked_until(&setup, &[], "the broker has heard of the limit", |it| {
            it.has("size", &topic)
        })
        .await;
        let (level, fix) = checked.found("size", &topic);
        assert_eq!(level, "fail");
        let named = options(fix);
        assert_eq!(named["--entity-name"], topic);
        let config = named["--add-config"].split_once('=').unwrap();
        assert_eq!(config.0, "max.message.bytes");
        world.kafka.configure_topic(&topic, &[config]).await;
        eventually(SOON, "the fix mends it", async || {
            !check(&setup, &[]).await.has("size", "")
        })
        .await;
        // and it is enough for the relay itself
        assert!(setup.until_empty(SOON).await.success());
        assert_eq!(
            world
                .number("select count(*) from outbox_relay.parked")
                .await,
            0
        );
    });
}

#[test]
fn a_pooler_that_loses_prepared_statements_is_found() {
    support::run(async |world| {
        let bouncer = PgBouncer::before(&world.database_url, 3).await;
        let bouncer = bouncer.unwrap_or_else(|why| panic!("{why}"));
        let outbox = Outbox::classic();
        outbox.create(world).await;
        world.relay(&[&outbox]).migrate().await;
        let through = || {
            let url = format!("\"{}\"", bouncer.url(&world.database_url));
            world.relay(&[&outbox]).set("database", "url", &url)
        };
        let checked = check(&through(), &[]).await;
        let (level, fix) = checked.found("pooler", "does not know what was prepared");
        assert_eq!(level, "fail");
        let (key, value) = setting(fix);
        let checked = check(&through().set("database", key, value), &[]).await;
        checked.assert_clean_of("pooler", "");
        assert!(
            checked.all.contains("a pooler hands out transactions"),
            "{}",
            checked.all
        );
        assert_eq!(checked.code, Some(0), "{}", checked.all);
        // nothing of the look stays behind for whoever comes next
        for _ in 0..3 {
            let checked = check(&through(), &[]).await;
            checked.found("pooler", "does not know what was prepared");
        }
    });
}

/// The server answers with another time. To run the program under a false clock is no way: librdkafka was
/// seen to stand still there.
#[test]
fn a_clock_that_is_wrong_is_found() {
    let library = match fake_time() {
        Ok(library) => library,
        Err(why) => return support::skip(&why),
    };
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        check(&setup, &[]).await.assert_clean_of("clock", "");
        let setup = world
            .relay(&[&outbox])
            .env("LD_PRELOAD", &library.to_string_lossy())
            .env("FAKETIME", "+1h")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let relay = setup.spawn(&["check", "--json"]);
        let line = relay.wait_line("s behind this machine's", SOON).await;
        assert!(
            line.contains("\"warn\"") && line.contains("timedatectl"),
            "{line}"
        );
        // librdkafka, which comes next, waits until a time that such a clock has passed
        relay.sigkill();
    });
}

#[test]
fn a_check_goes_on_after_what_it_cannot_reach_and_says_what_it_leaves_out() {
    /// Nobody listens on it, and nobody may.
    const CLOSED: &str = "127.0.0.1:9";
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = || world.relay(&[&outbox]);
        setup().migrate().await;
        let topic = world.topic("named");
        world.kafka.create_topic(&topic, 1, &[]).await;
        let named = ["--topic", &topic];

        let url = format!("\"postgres://relay:canary@{CLOSED}/x\"");
        let checked = check(&setup().set("database", "url", &url), &named).await;
        assert_eq!(checked.code, Some(1));
        assert!(!checked.all.contains("canary"), "{}", checked.all);
        let (level, fix) = checked.found("database", "cannot connect");
        assert!(level == "fail" && fix.contains("database.url"), "{fix}");
        assert!(
            checked
                .lines
                .iter()
                .any(|line| line["level"] == "skip" && line["item"] == "table")
        );
        let looked = |line: &Value| line["item"] == "topic" && line["level"] == "ok";
        assert!(
            checked.lines.iter().any(looked),
            "Kafka is still asked: {}",
            checked.all
        );

        let url = world
            .database_url
            .replacen(world.database(), "no-such-database", 1);
        let checked = check(&setup().set("database", "url", &format!("\"{url}\"")), &[]).await;
        assert!(
            checked
                .found("database", "3D000")
                .1
                .contains("create the database")
        );

        let checked = check(
            &setup().set("kafka", "brokers", &format!("\"{CLOSED}\"")),
            &named,
        )
        .await;
        assert_eq!(checked.code, Some(1));
        assert!(checked.found("kafka", CLOSED).1.contains("kafka.brokers"));
        assert!(
            checked
                .lines
                .iter()
                .any(|line| line["level"] == "skip" && line["item"] == "topic")
        );
        let looked = |line: &Value| line["item"] == "claim" && line["level"] == "ok";
        assert!(
            checked.lines.iter().any(looked),
            "Postgres is still asked: {}",
            checked.all
        );

        // a person's lines, and what makes no sense
        let mut plain = setup().spawn(&["check"]);
        assert!(plain.wait_exit(SOON).await.success());
        assert!(
            plain
                .lines()
                .iter()
                .any(|line| line.starts_with("ok    claim ")),
            "{:?}",
            plain.lines()
        );
        for bad in [["--topic", "no such"], ["--transaction-age", "soon"]] {
            let mut relay = setup().spawn(&["check", bad[0], bad[1]]);
            assert_eq!(relay.wait_exit(SOON).await.code(), Some(64), "{bad:?}");
        }
        let mut relay = world.relay(&[]).spawn(&["check"]);
        assert_eq!(relay.wait_exit(SOON).await.code(), Some(78), "no table");
    });
}

#[test]
fn every_item_is_in_the_docs() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let docs = read("docs/check.md");
    let mut items = std::collections::BTreeSet::new();
    for file in ["mod", "postgres", "kafka"] {
        let source = read(&format!("src/check/{file}.rs"));
        for level in ["ok", "skip", "warn", "fail"] {
            for after in source.split(&format!("Line::{level}(")).skip(1) {
                let item = after
                    .trim_start()
                    .strip_prefix('"')
                    .and_then(|it| it.split('"').next());
                items.extend(item.map(str::to_owned));
            }
        }
    }
    assert!(items.len() > 20, "{items:?}");
    for item in items {
        assert!(
            docs.contains(&format!("| `{item}` |")),
            "docs/check.md lacks {item}"
        );
    }
}
