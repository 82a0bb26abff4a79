//! Rows that could not be published, and what operators do about them.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::checker::Written;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Setup;
use crate::support::writers::{Event, Ledger, one, to_be_committed};
use crate::support::{self, World, eventually, topic_of};

/// Long enough for a machine that is slow for a while.
const SOON: Duration = Duration::from_secs(60);

/// Runs `parked` with these arguments: its exit code, and what it printed.
async fn parked(setup: &Setup<'_>, arguments: &[&str]) -> (Option<i32>, Vec<String>) {
    let all: Vec<&str> = ["parked"].iter().chain(arguments).copied().collect();
    let mut command = setup.spawn(&all);
    let status = command.wait_exit(SOON).await;
    (status.code(), command.lines())
}

/// As [`parked`], where it must succeed: what it printed, as one text.
async fn done(setup: &Setup<'_>, arguments: &[&str]) -> String {
    let (code, lines) = parked(setup, arguments).await;
    let said = lines.join("\n");
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    said
}

/// Rows that are parked in `state`, and not given up.
async fn count(world: &World, state: &str) -> i64 {
    let sql = format!(
        "select count(*) from outbox_relay.parked where state = '{state}' and skipped_at is null"
    );
    world.number(&sql).await
}

/// Inserts and commits an event that has no legal topic until somebody mends the parked row.
async fn bad(world: &World, outbox: &Outbox, aggregate_type: &str, order: &str, n: i64) -> Written {
    let payload = format!("{{\"n\": {n}}}");
    let event = Event {
        outbox,
        aggregate_type,
        order,
        n,
        payload: Some(&payload),
        trace: None,
    };
    let mut transaction = world.pool.begin().await.unwrap();
    let event = to_be_committed(&mut transaction, event).await;
    let spoil = format!(
        "update {} set topic = 'no such/topic' where id = $1",
        outbox.table
    );
    sqlx::query(AssertSqlSafe(spoil))
        .bind(event.id)
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    event
}

/// What somebody does who knows where the row belongs.
async fn mend(world: &World) {
    world
        .execute("update outbox_relay.parked set row_topic = null where topic is null")
        .await;
}

/// A native outbox that is migrated, and a type of aggregates with a topic.
async fn prepared<'a>(world: &'a World, config: &str) -> (Outbox, Setup<'a>, String) {
    let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
    outbox.config = config.to_owned();
    let (setup, aggregate_type) = outbox.prepare(world).await;
    world.expect_errors("park");
    (outbox, setup, aggregate_type)
}

#[test]
fn a_retried_aggregate_publishes_its_parked_rows_first_while_new_ones_arrive() {
    support::run(async |world| {
        let (outbox, setup, aggregate_type) = prepared(world, "").await;
        let mut ledger = Ledger::default();
        for n in 1..=6 {
            let event = match n {
                3 => bad(world, &outbox, &aggregate_type, "a", n).await,
                _ => one(world, &outbox, &aggregate_type, "a", n).await,
            };
            ledger.push(event);
            ledger.push(one(world, &outbox, &aggregate_type, "b", n).await);
        }
        let relays = [setup.run(), setup.run()];
        outbox.wait_drained(world, SOON).await;
        let states = (count(world, "blocked").await, count(world, "behind").await);
        assert_eq!(states, (1, 3));

        mend(world).await;
        let writing = async {
            let mut written = Vec::new();
            for n in 7..=80 {
                written.push(one(world, &outbox, &aggregate_type, "a", n).await);
            }
            written
        };
        let retrying = async {
            let arguments = ["retry", "--key", "a", "--yes"];
            done(&setup, &arguments).await
        };
        let (written, said) = tokio::join!(writing, retrying);
        written.into_iter().for_each(|event| ledger.push(event));
        assert!(said.contains("1 rows of 1 aggregates"), "{said}");
        let left =
            "select (select count(*) from outbox_relay.parked) + (select count(*) from outbox)";
        eventually(SOON, "all is published", async || {
            world.number(left).await == 0
        })
        .await;
        for relay in relays {
            relay.stop().await;
        }
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_skipped_row_is_exactly_the_gap_and_stays_visible_with_who_made_it() {
    support::run(async |world| {
        let (outbox, setup, aggregate_type) = prepared(world, "").await;
        let (mut ledger, mut gap) = (Ledger::default(), None);
        for n in 1..=6 {
            let event = match n {
                3 => bad(world, &outbox, &aggregate_type, "a", n).await,
                _ => one(world, &outbox, &aggregate_type, "a", n).await,
            };
            if n == 3 {
                gap = Some(event.id);
            }
            ledger.push(event);
        }
        let gap = gap.unwrap();
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        assert_eq!(count(world, "behind").await, 3);
        let arguments = ["skip", "--key", "a", "--yes", "--note", "never mind"];
        let said = done(&setup.env("USER", "pat"), &arguments).await;
        for part in [
            "1 rows of 1 aggregates",
            "a gap by choice",
            "go on without them: a",
        ] {
            assert!(said.contains(part), "{part} in: {said}");
        }
        eventually(SOON, "the aggregate goes on", async || {
            count(world, "behind").await + count(world, "retry").await == 0
        })
        .await;
        relay.stop().await;

        let report = world.check(&ledger).await;
        assert_eq!(
            (report.lost.len(), report.disordered.len()),
            (1, 1),
            "{report}"
        );
        assert!(report.lost[0].ends_with(&gap.to_string()), "{report}");
        let rest = ledger.without(&HashSet::from([gap]));
        world.check(&rest).await.assert_clean(0);

        let setup = world.relay(&[&outbox]);
        let listed = done(&setup, &["list", "--state", "skipped"]).await;
        assert!(listed.contains(&gap.to_string()), "{listed}");
        let audit: (String, String, String, String, i64, bool, bool) = sqlx::query_as(
            "select a.command, a.os_user, a.note, a.filter->'keys'->>0, a.rows, a.role = session_user,
                    a.parked_ids = (select array_agg(p.parked_id) from outbox_relay.parked p)
               from outbox_relay.audit a where a.outbox = 'public.outbox'",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        let text = |text: &str| text.to_owned();
        let wanted = (
            text("skip"),
            text("pat"),
            text("never mind"),
            text("a"),
            1,
            true,
            true,
        );
        assert_eq!(audit, wanted);
        // Decided, so nothing that a run until empty would be left with.
        let status = setup.until_empty(SOON).await;
        assert_eq!(status.code(), Some(0));
    });
}

#[test]
fn a_row_that_was_let_pass_can_be_retried_and_comes_after_what_passed_it() {
    support::run(async |world| {
        let policies = "on_rejected_by_event_type = { OrderChanged = \"dead_letter\" }";
        let (outbox, setup, aggregate_type) = prepared(world, policies).await;
        let mut ledger = Ledger::default();
        // Only what changed is let pass: the first event of an order is its creation, and blocks.
        for n in 1..=4 {
            let event = match n {
                2 => bad(world, &outbox, &aggregate_type, "a", n).await,
                _ => one(world, &outbox, &aggregate_type, "a", n).await,
            };
            ledger.push(event);
            let event = match n {
                1 => bad(world, &outbox, &aggregate_type, "b", n).await,
                _ => one(world, &outbox, &aggregate_type, "b", n).await,
            };
            ledger.push(event);
        }
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        let states = ["dead", "blocked", "behind"];
        let mut counts = Vec::new();
        for state in states {
            counts.push(count(world, state).await);
        }
        assert_eq!(counts, [1, 1, 3]);
        assert_eq!(world.kafka.count(&topic_of(&aggregate_type)).await, 3);

        mend(world).await;
        // Without a word about them, only what blocks is retried.
        done(&setup, &["retry", "--yes"]).await;
        eventually(SOON, "what was blocked is published", async || {
            count(world, "blocked").await + count(world, "behind").await == 0
                && count(world, "retry").await == 0
        })
        .await;
        assert_eq!(count(world, "dead").await, 1);
        done(&setup, &["retry", "--state", "dead", "--yes"]).await;
        eventually(SOON, "what was let pass is published", async || {
            world
                .number("select count(*) from outbox_relay.parked")
                .await
                == 0
        })
        .await;
        relay.stop().await;
        let report = world.check(&ledger).await;
        let faults = (
            report.lost.len(),
            report.disordered.len(),
            report.duplicates,
        );
        assert_eq!(faults, (0, 1, 0), "{report}");
        assert_eq!(report.disordered, ["a: 3 arrived where 2 was due"]);
    });
}

#[test]
fn decisions_that_race_running_relays_lose_and_invert_nothing() {
    const TIMES: usize = 20;
    support::run(async |world| {
        let (outbox, setup, aggregate_type) = prepared(world, "").await;
        let (mut ledger, mut gaps) = (Ledger::default(), HashSet::new());
        let keys: Vec<String> = (0..TIMES).map(|i| format!("k{i}")).collect();
        for (i, key) in keys.iter().enumerate() {
            for n in 1..=4 {
                let event = match n {
                    2 => bad(world, &outbox, &aggregate_type, key, n).await,
                    _ => one(world, &outbox, &aggregate_type, key, n).await,
                };
                if n == 2 && i % 2 == 1 {
                    gaps.insert(event.id);
                }
                ledger.push(event);
            }
        }
        let relays = [setup.run(), setup.run()];
        outbox.wait_drained(world, SOON).await;
        assert_eq!(count(world, "blocked").await, i64::try_from(TIMES).unwrap());
        mend(world).await;
        for (i, key) in keys.iter().enumerate() {
            let command = ["retry", "skip"][i % 2];
            let arguments = [command, "--key", key, "--yes"];
            let writing = async {
                let mut written = Vec::new();
                for n in 5..=12 {
                    written.push(one(world, &outbox, &aggregate_type, key, n).await);
                }
                written
            };
            let (_, written) = tokio::join!(done(&setup, &arguments), writing);
            written.into_iter().for_each(|event| ledger.push(event));
        }
        let left = "select (select count(*) from outbox_relay.parked where skipped_at is null)
                         + (select count(*) from outbox)";
        eventually(SOON, "all is published", async || {
            world.number(left).await == 0
        })
        .await;
        for relay in relays {
            relay.stop().await;
        }
        let all = world.check(&ledger).await;
        assert_eq!(all.lost.len(), gaps.len(), "{all}");
        world.check(&ledger.without(&gaps)).await.assert_clean(0);
        let audits = world
            .number("select count(*) from outbox_relay.audit")
            .await;
        assert_eq!(audits, i64::try_from(TIMES).unwrap());
    });
}

/// Parks rows as a relay would, without one: `n` of an aggregate, in this state.
async fn park(world: &World, key: &str, state: &str, n: i64, value: &str, age: &str) {
    let reason = match state {
        "behind" => "null, null",
        _ => "'too_large', 'for the test'",
    };
    world
        .execute(&format!(
            "insert into outbox_relay.parked
                    (outbox, state, reason_class, reason, attempts, parked_at, seq, event_id,
                     aggregate_type, aggregate_id, event_type, created_at, topic, headers, value, hash)
             select 'public.outbox', '{state}', {reason}, ('{state}' <> 'behind')::int,
                    now() - interval '{age}', i, gen_random_uuid(), 'Order', '{key}', 'OrderChanged',
                    now(), 'order-events', '[[\"event_id\",\"x\"],[\"gone\",null]]', {value},
                    hashtext('{key}')
               from generate_series(1, {n}) i"
        ))
        .await;
}

/// Which lanes have such rows is read of the first of them alone, and those may all have to wait: here they are
/// of one aggregate, so of one lane.
#[test]
fn a_row_to_retry_is_found_behind_many_that_cannot_be_published_yet() {
    support::run(async |world| {
        let (_, setup, aggregate_type) = prepared(world, "").await;
        let topic = topic_of(&aggregate_type);
        let lanes = "select count(distinct hashtext(k) & 15) from unnest(array['held', 'free']) k";
        assert_eq!(world.number(lanes).await, 2);
        park(world, "held", "retry", 250, "'{}'", "1 minute").await;
        let pause = ["pause", "--topic", "order-events", "--yes"];
        crate::operating::ends(&setup, &pause, 0).await;
        park(world, "free", "retry", 1, "'{}'", "1 minute").await;
        let later = format!(
            "update outbox_relay.parked set seq = 1000, topic = '{topic}' where aggregate_id = 'free'"
        );
        world.execute(&later).await;
        let drawn = "select setval('outbox_seq_seq', 1000)";
        assert_eq!(world.number(drawn).await, 1000);
        let relay = setup.run();
        eventually(
            SOON,
            "the row whose topic is not paused is published",
            async || world.kafka.count(&topic).await == 1,
        )
        .await;
        assert_eq!(count(world, "retry").await, 250);
        relay.stop().await;
    });
}

/// Parks a line of rows of each aggregate that `keys`, a query, gives as `k`: one that blocks, with the number
/// `seq`, and `behind` more behind it.
async fn park_lines(world: &World, aggregate_type: &str, keys: &str, seq: i64, behind: i64) {
    let topic = topic_of(aggregate_type);
    world
        .execute(&format!(
            "insert into outbox_relay.parked
                    (outbox, state, reason_class, reason, attempts, seq, event_id, aggregate_type,
                     aggregate_id, event_type, created_at, topic, headers, value, hash)
             select 'public.outbox', case n when 0 then 'blocked' else 'behind' end, 'too_large',
                    'for the test', 0, n + ({seq}), gen_random_uuid(), '{aggregate_type}', k,
                    'OrderChanged', now(), '{topic}', '[]', '{{}}', hashtext(k)
               from ({keys}) keys (k), generate_series(0, {behind}) n"
        ))
        .await;
}

/// Which aggregates of a batch wait is asked in three ways, by what is parked: few rows, many rows of few
/// aggregates, many of both.
#[test]
fn every_row_of_an_aggregate_that_waits_is_held_back_however_much_is_parked() {
    const AGGREGATES: i64 = 2_000;
    support::run(async |world| {
        let (outbox, setup, aggregate_type) = prepared(world, "").await;
        let topic = topic_of(&aggregate_type);
        let mut published = 0;
        for (waiting, behind) in [(10, 1), (1, 3_000), (200, 20)] {
            world.execute("truncate outbox_relay.parked").await;
            let keys = format!("select 'a' || a from generate_series(1, {waiting}) a");
            park_lines(world, &aggregate_type, &keys, -100_000, behind).await;
            let written = format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 select 'a' || a, '{aggregate_type}', 'OrderChanged', '{{}}'
                   from generate_series(1, {AGGREGATES}) a"
            );
            world.execute(&written).await;
            let relay = setup.run();
            outbox.wait_drained(world, SOON).await;
            relay.stop().await;
            assert_eq!(count(world, "behind").await, waiting * behind + waiting);
            published += AGGREGATES - waiting;
            assert_eq!(world.kafka.count(&topic).await, published);
        }
    });
}

/// The index of the parked rows has an id's hash and beginning, and of aggregates that share both only the one
/// in front is read where there are many rows.
#[test]
fn an_aggregate_waits_also_where_another_has_its_hash_and_begins_alike() {
    support::run(async |world| {
        let (outbox, setup, aggregate_type) = prepared(world, "").await;
        let topic = topic_of(&aggregate_type);
        let alike = "select min(k) || ' ' || max(k) from (
                       select repeat('x', 500) || i as k from generate_series(1, 400000) i) all_keys
                      group by hashtext(k) having count(*) = 2 limit 1";
        let alike: String = sqlx::query_scalar(alike)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let (first, second) = alike.split_once(' ').unwrap();
        for (key, seq, behind) in [(first, -10_000, 3_000), (second, -5_000, 0)] {
            let key = format!("select '{key}'");
            park_lines(world, &aggregate_type, &key, seq, behind).await;
        }
        let written = format!(
            "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
             select k, '{aggregate_type}', 'OrderChanged', '{{}}'
               from (select '{first}' as k union all select '{second}'
                     union all select 'a' || i from generate_series(1, 2000) i) k"
        );
        world.execute(&written).await;
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        assert_eq!(world.kafka.count(&topic).await, 2_000);
        assert_eq!(count(world, "behind").await, 3_002);
    });
}

#[test]
fn nothing_changes_without_yes() {
    support::run(async |world| {
        let (_, setup, _) = prepared(world, "").await;
        park(world, "a", "blocked", 1, "'1'", "1 hour").await;
        park(world, "a", "behind", 3, "'1'", "1 hour").await;
        park(world, "b", "dead", 2, "'1'", "1 hour").await;
        let state = "select md5(string_agg(p::text, '|' order by parked_id))
             || (select count(*) from outbox_relay.audit) from outbox_relay.parked p";
        let state = async || {
            let state = sqlx::query_scalar::<_, String>(state).fetch_one(&world.pool);
            state.await.unwrap()
        };
        let before = state().await;
        for arguments in [
            &["retry"][..],
            &["retry", "--state", "dead"],
            &["skip"],
            &["skip", "--key", "a", "--state", "behind"],
        ] {
            let (code, said) = parked(&setup, arguments).await;
            let said = said.join("\n");
            assert_eq!(code, Some(1), "{arguments:?}: {said}");
            assert!(said.contains("nothing was changed"), "{said}");
            assert_eq!(state().await, before, "{arguments:?}");
        }
        // Nor with it, where it makes no sense or nothing matches.
        let (code, said) = parked(&setup, &["retry", "--state", "behind", "--yes"]).await;
        assert_eq!(code, Some(64), "{said:?}");
        for filter in [
            ["--key", "c"],
            ["--type", "Other"],
            ["--reason", "other"],
            ["--older-than", "2h"],
            ["--newer-than", "30min"],
            ["--outbox", "other"],
            ["--id", "999"],
        ] {
            let arguments = ["retry", filter[0], filter[1], "--yes"];
            let said = done(&setup, &arguments).await;
            assert!(said.contains("no parked row matches"), "{filter:?}: {said}");
            assert_eq!(state().await, before, "{filter:?}");
        }
        let arguments = ["retry", "--older-than", "30min", "--newer-than", "2h"];
        let arguments = [
            &arguments[..],
            &["--reason", "too_large", "--type", "OrderChanged", "--yes"],
        ];
        let said = done(&setup, &arguments.concat()).await;
        assert!(said.contains("1 rows of 1 aggregates"), "{said}");
        assert_ne!(state().await, before);
    });
}

#[test]
fn a_change_waits_for_a_lane_and_says_so() {
    support::run(async |world| {
        let (_, setup, _) = prepared(world, "").await;
        park(world, "a", "blocked", 1, "'1'", "1 hour").await;
        let mut relay = world.pool.begin().await.unwrap();
        sqlx::raw_sql("select from outbox_relay.lane for update")
            .execute(&mut *relay)
            .await
            .unwrap();
        let retry = setup.spawn(&["parked", "retry", "--yes"]);
        retry.wait_line("trying again", SOON).await;
        assert_eq!(count(world, "blocked").await, 1);
        relay.rollback().await.unwrap();
        let mut retry = retry;
        assert!(retry.wait_exit(SOON).await.success());
        assert_eq!(count(world, "retry").await, 1);
    });
}

#[test]
fn lists_hold_no_payload_and_an_export_holds_every_byte() {
    const CANARY: &str = "canary-4711";
    support::run(async |world| {
        let (outbox, setup, aggregate_type) = prepared(world, "").await;
        let mut transaction = world.pool.begin().await.unwrap();
        let payload = format!("{{\"card\": \"{CANARY}\"}}");
        let event = Event {
            outbox: &outbox,
            aggregate_type: &aggregate_type,
            order: "a",
            n: 1,
            payload: Some(&payload),
            trace: None,
        };
        to_be_committed(&mut transaction, event).await;
        sqlx::query("update outbox set topic = 'no such/topic'")
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        let log = relay.lines().join("\n");
        relay.stop().await;
        assert!(!log.contains(CANARY), "{log}");

        park(world, "b", "dead", 1, "'\\x00ff80'::bytea", "1 hour").await;
        park(world, "c", "blocked", 1, "null", "1 hour").await;
        park(world, "c", "behind", 2, "'\\x'::bytea", "1 hour").await;

        let listed = done(&setup, &["list"]).await;
        for part in [
            "blocked",
            "illegal_topic",
            "2 behind",
            "1 dead (too_large)",
            "1h",
        ] {
            assert!(listed.contains(part), "{part} in: {listed}");
        }
        let json = done(&setup, &["list", "--json"]).await;
        let rows: Vec<Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(rows.len(), 3, "{json}");
        let id = rows[0]["parked_id"].to_string();
        assert_eq!(rows[0]["reason_class"], "illegal_topic");
        let shown = done(&setup, &["show", &id]).await;
        for text in [&listed, &json, &shown] {
            assert!(
                !text.contains(CANARY) && !text.contains("value_base64"),
                "{text}"
            );
        }
        let shown = done(&setup, &["show", &id, "--payload"]).await;
        assert!(shown.contains(CANARY), "{shown}");
        let (code, _) = parked(&setup, &["show", "999"]).await;
        assert_eq!(code, Some(1));

        let exported = done(&setup, &["export"]).await;
        let mut places = Vec::new();
        for line in exported.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let same = "select outbox = $2 and state = $3 and seq = $4 and event_id = $5::uuid
                    and aggregate_type = $6 and aggregate_id = $7 and event_type = $8
                    and value is not distinct from $9 and topic is not distinct from $10
                    and headers::jsonb is not distinct from $11::jsonb
                    and row_topic is not distinct from $12
               from outbox_relay.parked where parked_id = $1";
            let value = row["value_base64"]
                .as_str()
                .map(|text| STANDARD.decode(text).unwrap());
            let text = |name: &str| row[name].as_str().map(str::to_owned);
            let headers = (!row["headers"].is_null()).then(|| row["headers"].to_string());
            let same = sqlx::query_scalar::<_, bool>(same)
                .bind(row["parked_id"].as_i64())
                .bind(text("outbox"))
                .bind(text("state"))
                .bind(row["seq"].as_i64())
                .bind(text("event_id"))
                .bind(text("aggregate_type"))
                .bind(text("aggregate_id"))
                .bind(text("event_type"))
                .bind(value)
                .bind(text("topic"))
                .bind(headers)
                .bind(text("row_topic"));
            assert!(same.fetch_one(&world.pool).await.unwrap(), "{line}");
            places.push(row["parked_id"].as_i64().unwrap());
        }
        assert_eq!(places.len(), 5);
    });
}

#[test]
fn an_operator_needs_the_grants_that_the_docs_name_and_is_told_them() {
    support::run(async |world| {
        let (_, setup, _) = prepared(world, "").await;
        park(world, "a", "blocked", 1, "'1'", "1 hour").await;
        let role = format!("{}-operator", world.database());
        let (server, database) = world.database_url.rsplit_once('/').unwrap();
        let address = server
            .rsplit_once('@')
            .map_or(server, |(_, address)| address);
        let url = format!("postgres://{role}:operator@{address}/{database}");
        world
            .execute(&format!("create role \"{role}\" login password 'operator'"))
            .await;
        let operator = setup.set("database", "url", &format!("\"{url}\""));
        let grant = async |grant: &str| {
            world.execute(&format!("grant {grant} to \"{role}\"")).await;
        };
        let (code, said) = parked(&operator, &["list"]).await;
        assert!(
            code == Some(1) && said.join("\n").contains("grant usage"),
            "{said:?}"
        );
        grant("usage on schema outbox_relay").await;
        grant("select on outbox_relay.lane, outbox_relay.parked").await;
        let listed = parked(&operator, &["list"]).await;
        let (refused, said) = parked(&operator, &["retry", "--yes"]).await;
        let unchanged = count(world, "blocked").await;
        grant("update on outbox_relay.lane, outbox_relay.parked").await;
        grant("select, insert on outbox_relay.audit").await;
        let retried = parked(&operator, &["retry", "--yes"]).await;
        let changed = count(world, "retry").await;
        world
            .execute(&format!("drop owned by \"{role}\"; drop role \"{role}\""))
            .await;
        assert_eq!(listed.0, Some(0), "{:?}", listed.1);
        assert!(
            refused == Some(1) && said.join("\n").contains("insert on"),
            "{said:?}"
        );
        assert_eq!(unchanged, 1);
        assert_eq!((retried.0, changed), (Some(0), 1), "{:?}", retried.1);
    });
}

#[test]
fn a_schema_of_an_older_version_is_told_and_migrate_mends_it() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        world
            .execute(include_str!("../migrations/0001_relay.sql"))
            .await;
        let setup = world.relay(&[&outbox]);
        world.expect_errors("migrate");
        let mut relay = setup.run();
        assert_eq!(relay.wait_exit(SOON).await.code(), Some(78));
        let said = relay.lines().join("\n");
        assert!(said.contains("of an older version"), "{said}");
        let (code, said) = parked(&setup, &["list"]).await;
        assert!(
            code == Some(78) && said.join("\n").contains("migrate"),
            "{said:?}"
        );
        setup.migrate().await;
        assert!(done(&setup, &["list"]).await.contains("nothing is parked"));
        assert_eq!(setup.until_empty(SOON).await.code(), Some(0));
    });
}

#[test]
fn dead_letters_survive_a_topic_that_is_missing_and_records_that_are_too_large() {
    support::run(async |world| {
        let dead = world.topic("dead");
        let config = format!(
            "dead_letter_topic = \"{dead}\"\n\
             on_rejected_by_event_type = {{ OrderChanged = \"dead_letter\" }}"
        );
        let (outbox, setup, aggregate_type) = prepared(world, &config).await;
        let mut ledger = Ledger::default();
        // The first event of b blocks it, the second of a lets the third pass.
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        let passed = bad(world, &outbox, &aggregate_type, "a", 2).await;
        let blocks = bad(world, &outbox, &aggregate_type, "b", 1).await;
        let large = bad(world, &outbox, &aggregate_type, "c", 2).await;
        let noise = "update outbox set headers = '{\"mine\": \"x\"}',
                payload = (select to_jsonb(string_agg(md5(i::text), '')) from generate_series(1, 300) i)
             where aggregate_id = 'c'";
        world.execute(noise).await;
        ledger.push(one(world, &outbox, &aggregate_type, "a", 3).await);
        one(world, &outbox, &aggregate_type, "b", 2).await;
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        relay.wait_line(&dead, SOON).await;
        // It pauses nothing else.
        ledger.push(one(world, &outbox, &aggregate_type, "a", 4).await);
        outbox.wait_drained(world, SOON).await;
        world.check(&ledger).await.assert_clean(0);
        let dated = "select count(*) from outbox_relay.parked where dead_lettered_at is not null";
        assert_eq!(world.number(dated).await, 0);
        // A relay that dies meanwhile takes nothing with it.
        relay.sigkill();
        let limit = [("max.message.bytes", "5000")];
        world.kafka.create_topic(&dead, 2, &limit).await;
        let relay = setup.run();
        eventually(SOON, "the topic has them", async || {
            world.number(dated).await == 3
        })
        .await;
        relay.stop().await;

        let records = world.kafka.read_all(&dead).await;
        assert_eq!(records.len(), 3);
        let header = |id: Uuid, name: &str| {
            let id = id.to_string().into_bytes();
            let of = |record: &&support::kafka::Record| {
                record
                    .headers
                    .iter()
                    .any(|(n, v)| n == "event_id" && v.as_ref() == Some(&id))
            };
            let record = records.iter().find(of).unwrap();
            let found = record.headers.iter().find(|(n, _)| n == name);
            found.map(|(_, value)| String::from_utf8(value.clone().unwrap()).unwrap())
        };
        for (event, state) in [(&passed, "dead"), (&blocks, "blocked"), (&large, "dead")] {
            let said = |name: &str| header(event.id, name);
            assert_eq!(said("outbox_relay_state").as_deref(), Some(state));
            assert_eq!(
                said("outbox_relay_reason_class").as_deref(),
                Some("illegal_topic")
            );
            assert_eq!(
                said("outbox_relay_outbox").as_deref(),
                Some("public.outbox")
            );
            assert!(said("outbox_relay_reason").is_some_and(|reason| reason.contains("topic")));
            assert!(said("outbox_relay_seq").is_some_and(|seq| seq.parse::<i64>().is_ok()));
        }
        let of = |key: &str| {
            let record = records
                .iter()
                .find(|record| record.key.as_deref() == Some(key.as_bytes()));
            record.unwrap().value.clone()
        };
        assert_eq!(
            (of("a"), of("b")),
            (passed.value.clone(), blocks.value.clone())
        );
        assert_eq!(of("c"), Some(Vec::new()));
        let omitted = header(large.id, "outbox_relay_value_omitted_bytes");
        assert_eq!(omitted.as_deref(), Some("9602"));
        let left = "select count(*) from outbox_relay.parked where value is not null";
        assert_eq!(world.number(left).await, 4, "the parked rows are the truth");

        // Nor does a run that waits for nothing leave letters behind.
        bad(world, &outbox, &aggregate_type, "d", 2).await;
        let status = setup.until_empty(SOON).await;
        assert_eq!(status.code(), Some(75), "rows are parked");
        assert_eq!(world.number(dated).await, 4);
        assert_eq!(world.kafka.count(&dead).await, 4);
    });
}

#[test]
fn only_parked_rows_that_nothing_waits_for_are_dropped_and_only_when_told() {
    const OLD: i64 = 2_500;
    support::run(async |world| {
        let (outbox, _, _) = prepared(world, "parked_retention = \"2s\"").await;
        park(world, "a", "dead", OLD, "'1'", "1 year").await;
        // Kept: what blocks and what waits, however old, and what is dead for a short time only.
        park(world, "b", "blocked", 1, "'1'", "1 year").await;
        park(world, "b", "behind", 3, "'1'", "1 year").await;
        park(world, "c", "dead", 7, "'1'", "-1 hour").await;
        world
            .execute(
                "update outbox_relay.parked set skipped_at = now() + interval '1 hour'
                  where aggregate_id = 'a' and seq <= 10;
                 create table drops (n bigint);
                 create function count_drops() returns trigger language plpgsql security definer as $$
                   begin insert into public.drops select count(*) from gone; return null; end $$;
                 create trigger count_drops after delete on outbox_relay.parked
                   referencing old table as gone for each statement execute function count_drops()",
            )
            .await;
        // Those rows had their numbers from the sequence, as far as the relay can tell.
        let sequence = "select setval('outbox_seq_seq', 10000)";
        assert_eq!(world.number(sequence).await, 10_000);
        let left = async || {
            world
                .number("select count(*) from outbox_relay.parked")
                .await
        };
        // By default nothing goes.
        let mut keeping = outbox.clone();
        keeping.on_published = OnPublished::Mark;
        keeping.config = "retention = \"2s\"".to_owned();
        let relay = world.relay(&[&keeping]).run();
        relay.wait_line("serving the outbox", SOON).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        relay.stop().await;
        assert_eq!(left().await, OLD + 4 + 7);

        let relay = world.relay(&[&outbox]).run();
        eventually(SOON, "what is old is gone", async || {
            left().await == 10 + 4 + 7
        })
        .await;
        relay.wait_line("dropped parked rows", SOON).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        relay.stop().await;
        assert_eq!(
            left().await,
            10 + 4 + 7,
            "young, blocked and waiting rows stay"
        );
        let most = world.number("select max(n) from drops").await;
        assert_eq!(most, 1_000, "no deletion is larger");
    });
}
