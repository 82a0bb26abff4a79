//! `on_published = "archive"`: what is published moves to a history, whole and once, and can be found and
//! published again; the history's partitions come and go by themselves, and stop nothing.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::operating::{SOON, audited, command, ends};
use crate::support::checker::verify;
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::writers::{Ledger, Load, one};
use crate::support::{self, World, eventually, topic_of};

/// A native outbox whose rows are archived, with more lines of config.
fn archiving(config: &str) -> Outbox {
    let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Archive);
    outbox.config = config.to_owned();
    outbox
}

/// Rows in the history's default partition.
async fn strays(world: &World, outbox: &Outbox) -> i64 {
    let sql = format!("select count(*) from {}_default", outbox.history());
    world.number(&sql).await
}

/// Partitions of the history, without the default one.
async fn partitions(world: &World) -> i64 {
    let sql = "select count(*) from outbox_relay.history_partition where not is_default";
    world.number(sql).await
}

/// Whether the relay's schema has a table of this name.
async fn is_there(world: &World, table: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_tables where schemaname = 'outbox_relay' and tablename = '{table}'"
    );
    world.number(&sql).await == 1
}

/// Holds every event of `ledger` against the history: there once, and no other.
async fn each_is_there_once(world: &World, outbox: &Outbox, ledger: &Ledger) {
    let history = outbox.history();
    let distinct = format!("select count(distinct id) from {history}");
    let committed = i64::try_from(ledger.committed()).unwrap();
    assert_eq!(outbox.archived(world).await, committed, "rows");
    assert_eq!(world.number(&distinct).await, committed, "events");
    let left = format!("select count(*) from {}", outbox.table);
    assert_eq!(world.number(&left).await, 0, "the table is empty");
}

#[test]
fn published_rows_move_as_they_are_and_are_published_again_from_there_byte_for_byte() {
    const PAYLOADS: &[(&str, &str)] = &[
        ("jsonb", "{\"b\": 1.50,  \"a\": \"é\\u0041\"}"),
        ("json", "{\"b\": 1.50,  \"a\": \"é\\u0041\", \"b\": 2}"),
        ("text", "  no \"JSON\" at all\n\té"),
        ("varchar(40)", "nor this"),
        ("bytea", "\\x00ff10"),
    ];
    support::run(async |world| {
        let mut outboxes = Vec::new();
        for (n, (payload, _)) in PAYLOADS.iter().enumerate() {
            let outbox = Outbox::new(&format!("t{n}"), Layout::Native, OnPublished::Archive);
            outbox.create(world).await;
            let alter = format!(
                "alter table t{n} alter column payload type {payload}
                   using {}",
                match *payload {
                    "bytea" => "convert_to(payload::text, 'UTF8')".to_owned(),
                    other => format!("payload::text::{other}"),
                }
            );
            world.execute(&alter).await;
            outboxes.push(outbox);
        }
        let all: Vec<_> = outboxes.iter().collect();
        let setup = world.relay(&all);
        setup.migrate().await;
        setup.migrate().await;
        let mut topics = Vec::new();
        for (n, (payload, value)) in PAYLOADS.iter().enumerate() {
            let aggregate_type = world.aggregate_with_topic(&format!("T{n}"), 2).await;
            let topic = topic_of(&aggregate_type);
            topics.push(topic);
            // stored outside of the row, where the type lets it
            let large = "'\"' || (select string_agg(md5(i::text), '') from generate_series(1, 3000) i) || '\"'";
            let large = match *payload {
                "bytea" => format!("convert_to({large}, 'UTF8')"),
                other => format!("({large})::{other}"),
            };
            let insert = format!(
                "insert into t{n} (aggregate_id, aggregate_type, event_type, payload, headers)
                 values ('a', '{aggregate_type}', 'Created', $1::text::{payload}, '{{\"z\": 1, \"trace\": \"x\"}}'),
                        ('b', '{aggregate_type}', 'Created', null, null),
                        ('c', '{aggregate_type}', 'Created', {large}, null)"
            );
            sqlx::query(AssertSqlSafe(insert))
                .bind(*value)
                .execute(&world.pool)
                .await
                .unwrap();
            let keep = format!("create table kept_{n} as select * from t{n}");
            world.execute(&keep).await;
        }
        assert!(setup.until_empty(SOON).await.success());
        for (n, outbox) in outboxes.iter().enumerate() {
            assert_eq!(
                outbox.pending(world).await + outbox.published(world).await,
                0
            );
            assert_eq!(outbox.archived(world).await, 3);
            assert_eq!(strays(world, outbox).await, 0);
            let alike = format!(
                "select count(*) from kept_{n} k join {} h using (seq, id, aggregate_id, aggregate_type, event_type)
                  where (k.payload::text, k.headers::text, k.topic, k.created_at)
                        is not distinct from (h.payload::text, h.headers::text, h.topic, h.created_at)
                    and h.published_at between k.created_at and clock_timestamp()",
                outbox.history()
            );
            assert_eq!(world.number(&alike).await, 3, "{:?}", PAYLOADS[n]);
        }

        // again, from there
        for (n, topic) in topics.iter().enumerate() {
            let table = format!("public.t{n}");
            let replay = ["replay", "--outbox", &table, "--since", "1h", "--yes"];
            let said = ends(&setup, &replay, 0).await;
            assert!(said.contains("3 of 3 rows"), "{said}");
            let mut records = world.kafka.read_all(topic).await;
            assert_eq!(records.len(), 6, "{:?}", PAYLOADS[n]);
            for record in &mut records {
                record
                    .headers
                    .retain(|(name, _)| name != "outbox_relay_replayed_at");
            }
            for key in [b"a", b"b", b"c"] {
                let of_key = records.iter().filter(|it| it.key.as_deref() == Some(key));
                let of_key: Vec<_> = of_key.map(|it| (&it.value, &it.headers)).collect();
                assert_eq!(of_key.len(), 2);
                assert_eq!(of_key[0], of_key[1], "{:?}", PAYLOADS[n]);
            }
        }
    });
}

#[test]
fn a_crash_around_the_commit_leaves_each_row_in_one_place() {
    support::run(async |world| {
        for step in ["settle_before_commit", "settle_after_commit"] {
            let mut outbox = archiving("");
            outbox.table = format!("outbox_{step}");
            let (setup, aggregate_type) = outbox.prepare_as(world, &step.replace('_', "-")).await;
            let setup = setup.workers(1);
            let mut ledger = Ledger::default();
            for n in 1..=3 {
                ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
            }
            let armed = world.relay(&[&outbox]).workers(1).failpoint(step, "return");
            let status = armed.run().wait_exit(SOON).await;
            assert!(!status.success(), "it aborts at {step}: {status}");
            let came = world.kafka.read_all(&topic_of(&aggregate_type)).await.len();
            assert_eq!(came, 3);
            let committed = step == "settle_after_commit";
            assert_eq!(outbox.pending(world).await, if committed { 0 } else { 3 });
            assert_eq!(outbox.archived(world).await, if committed { 3 } else { 0 });

            assert!(setup.until_empty(SOON).await.success());
            let report = world.check(&ledger).await;
            report.assert_clean(if committed { 0 } else { came });
            each_is_there_once(world, &outbox, &ledger).await;
        }
    });
}

#[test]
fn retention_drops_whole_partitions_and_nothing_that_is_younger() {
    support::run(async |world| {
        let outbox = archiving("retention = \"2days\"\narchive_partition = \"6h\"");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let history = outbox.history();
        // one that is old as a whole, one that is old in part, and old and young rows for which there was none
        world
            .execute(&format!(
                "create table outbox_relay.old partition of {history}
                   for values from ('2020-01-01') to ('2020-01-02');
                 create table outbox_relay.older partition of {history}
                   for values from ('2019-12-01') to ('2020-01-01');
                 do $$ declare at timestamptz := date_trunc('day', now()) - interval '3 days'; begin
                   execute format('create table outbox_relay.partly partition of {history}
                     for values from (%L) to (%L)', at, at + interval '2 days');
                 end $$;
                 insert into {history} (seq, id, aggregate_type, event_type, published_at)
                 select n, gen_random_uuid(), 'Order', 'OrderChanged', at
                   from generate_series(1, 100) n,
                        unnest('{{2019-12-05, 2020-01-01 12:00, 2021-01-01}}'::timestamptz[]
                               || (date_trunc('day', now()) - interval '60 hours')
                               || (now() - interval '30 days')) at"
            ))
            .await;
        assert_eq!(strays(world, &outbox).await, 200);
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);

        let relay = setup.run();
        eventually(SOON, "what is old has gone", async || {
            strays(world, &outbox).await == 0
                && !is_there(world, "old").await
                && !is_there(world, "older").await
        })
        .await;
        let indexed =
            "select count(*) from pg_indexes where tablename = 'partly' and indexdef like '%(id)%'";
        eventually(SOON, "what takes no more rows has its index", async || {
            world.number(indexed).await == 1
        })
        .await;
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        let partly = "select count(*) from outbox_relay.partly";
        assert_eq!(world.number(partly).await, 100, "some of it may be younger");
        assert_eq!(outbox.archived(world).await, 101);
        world.check(&ledger).await.assert_clean(0);

        // without a word about how long, everything stays
        let forever = archiving("");
        assert!(world.relay(&[&forever]).until_empty(SOON).await.success());
        assert_eq!(outbox.archived(world).await, 101);
    });
}

#[test]
fn a_reader_of_the_history_delays_only_the_end_of_old_partitions() {
    support::run(async |world| {
        let outbox = archiving("retention = \"2days\"");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let history = outbox.history();
        world
            .execute(&format!(
                "create table outbox_relay.old partition of {history}
                   for values from ('2020-01-01') to ('2020-01-02')"
            ))
            .await;
        let mut reader = world.pool.begin().await.unwrap();
        let read = format!("select count(*) from {history}");
        sqlx::query(AssertSqlSafe(read))
            .execute(&mut *reader)
            .await
            .unwrap();
        let mut ledger = Ledger::default();
        let relay = setup.run();
        let line = relay.wait_line("could not be dropped yet", SOON).await;
        assert!(line.contains("old") && line.contains("locked"), "{line}");
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        outbox.wait_drained(world, SOON).await;
        assert!(is_there(world, "old").await);
        reader.rollback().await.unwrap();
        relay.stop().await;
        let relay = setup.run();
        eventually(SOON, "it is dropped", async || {
            !is_there(world, "old").await
        })
        .await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
        each_is_there_once(world, &outbox, &ledger).await;
    });
}

#[test]
fn rows_without_a_partition_go_to_the_default_one_and_stop_nothing() {
    support::run(async |world| {
        let outbox = archiving("");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let history = outbox.history();
        world
            .execute(
                "do $$ declare name text; begin
                   for name in select p.name from outbox_relay.history_partition p where not is_default loop
                     execute format('drop table outbox_relay.%I', name);
                   end loop;
                 end $$",
            )
            .await;
        assert_eq!(partitions(world).await, 0);
        // somebody keeps new ones from being attached
        let mut holder = world.pool.begin().await.unwrap();
        let hold = format!("lock table {history} in share update exclusive mode");
        sqlx::raw_sql(AssertSqlSafe(hold))
            .execute(&mut *holder)
            .await
            .unwrap();
        let mut ledger = Ledger::default();
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        let relay = setup.run();
        relay.wait_line("could not be attached yet", SOON).await;
        outbox.wait_drained(world, SOON).await;
        assert_eq!(strays(world, &outbox).await, 20);
        holder.rollback().await.unwrap();
        relay.stop().await;

        let relay = setup.run();
        relay.wait_line("default partition", SOON).await;
        eventually(SOON, "there are partitions", async || {
            partitions(world).await > 2
        })
        .await;
        ledger.push(one(world, &outbox, &aggregate_type, "a", 21).await);
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
        each_is_there_once(world, &outbox, &ledger).await;
        let said = ends(&setup, &["replay", "--key", "a", "--dry-run"], 0).await;
        assert!(said.contains("21 published rows"), "{said}");

        // without a default one rows could stand in front of nothing: it is asked for at the start
        world
            .execute(&format!("drop table {history}_default"))
            .await;
        world.expect_errors("default partition");
        let said = ends(&setup, &["run"], 78).await;
        assert!(said.contains("outbox-relay migrate"), "{said}");
        setup.migrate().await;
        assert!(setup.until_empty(SOON).await.success());
    });
}

#[test]
fn archived_events_are_inspected_and_replayed_beside_those_that_were_marked_before() {
    support::run(async |world| {
        let marking = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        let (marks, aggregate_type) = marking.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let mut of_a = Vec::new();
        let mut ledger = Ledger::default();
        for n in 1..=5 {
            of_a.push(one(world, &marking, &aggregate_type, "a", n).await);
        }
        assert!(marks.until_empty(SOON).await.success());
        let outbox = archiving("");
        let setup = world.relay(&[&outbox]);
        world.expect_errors("history");
        let said = ends(&setup, &["run"], 78).await;
        assert!(said.contains("has no history"), "{said}");
        setup.migrate().await;
        for n in 6..=10 {
            of_a.push(one(world, &outbox, &aggregate_type, "a", n).await);
            ledger.push(one(world, &outbox, &aggregate_type, "b", n - 5).await);
        }
        assert!(setup.until_empty(SOON).await.success());
        assert_eq!(
            (outbox.published(world).await, outbox.archived(world).await),
            (5, 10)
        );

        let id = of_a[7].id.to_string();
        let said = ends(&setup, &["inspect", &id, "--json"], 0).await;
        for part in ["\"published\"", &outbox.history(), "\"found\":true"] {
            assert!(said.contains(part), "{part} in: {said}");
        }
        let said = ends(&setup, &["inspect", &of_a[0].id.to_string(), "--json"], 0).await;
        assert!(
            said.contains("\"history\":null") && said.contains("\"published\""),
            "{said}"
        );

        let one_row = ["replay", "--id", &id, "--dry-run"];
        let said = ends(&setup, &one_row, 0).await;
        assert!(said.contains("1 published rows"), "{said}");
        let said = ends(&setup, &["replay", "--key", "a", "--yes"], 0).await;
        assert!(said.contains("10 of 10 rows"), "{said}");
        assert_eq!(audited(world, "replay").await, (1, 10));
        let records = world.kafka.read_all(&topic).await;
        let (mut copies, firsts): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| {
            let name = |(name, _): &(String, _)| name == "outbox_relay_replayed_at";
            record.headers.iter().any(name)
        });
        for copy in &mut copies {
            copy.headers.pop();
        }
        let counts = std::collections::HashMap::from([(topic, 2)]);
        verify(&of_a, &copies, &counts).assert_clean(0);
        of_a.into_iter().for_each(|event| ledger.push(event));
        let events = ledger.resolved(&world.pool).await;
        verify(&events, &firsts, &counts).assert_clean(0);

        // a relay that marks again leaves the history where it is
        ledger.push(one(world, &marking, &aggregate_type, "b", 6).await);
        assert!(marks.until_empty(SOON).await.success());
        assert_eq!(
            (outbox.published(world).await, outbox.archived(world).await),
            (6, 10)
        );
        let said = ends(&marks, &["inspect", &id, "--no-kafka"], 0).await;
        assert!(said.contains("history_public_outbox"), "{said}");
    });
}

#[test]
fn relays_that_archive_and_relays_that_mark_serve_one_table_in_order() {
    support::run(async |world| {
        let archiving = archiving("");
        let marking = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        let (setup, aggregate_type) = archiving.prepare(world).await;
        let load = Load {
            events: 1_200,
            ..Load::of(&aggregate_type)
        };
        let marks = world.relay(&[&marking]);
        let relays = [setup.run(), marks.run(), setup.run()];
        let ledger = load.start(world, &archiving).await.finish().await;
        archiving.wait_drained(world, SOON).await;
        for relay in relays {
            relay.stop().await;
        }
        world.check(&ledger).await.assert_clean(0);
        let (marked, archived) = (
            archiving.published(world).await,
            archiving.archived(world).await,
        );
        assert_eq!(
            marked + archived,
            i64::try_from(ledger.committed()).unwrap()
        );
        assert!(archived > 0, "{marked} marked, {archived} archived");
    });
}

#[test]
fn parked_rows_that_are_published_after_all_go_to_the_history_too() {
    support::run(async |world| {
        let outbox = archiving("");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        world.expect_errors("park");
        let mut ledger = Ledger::default();
        for n in 1..=4 {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        world
            .execute(
                "create table kept as select * from outbox;
                 update outbox set topic = 'no such/topic' where (payload->>'n')::int = 2",
            )
            .await;
        assert_eq!(setup.until_empty(SOON).await.code(), Some(75));
        assert_eq!((parked(world).await, outbox.archived(world).await), (3, 1));
        world
            .execute("update outbox_relay.parked set row_topic = null where topic is null")
            .await;
        ends(&setup, &["parked", "retry", "--yes"], 0).await;
        assert!(setup.until_empty(SOON).await.success());
        assert_eq!(parked(world).await, 0);
        world.check(&ledger).await.assert_clean(0);
        each_is_there_once(world, &outbox, &ledger).await;
        let alike = format!(
            "select count(*) from kept k join {} h using (seq, id, aggregate_id, aggregate_type, event_type, created_at)
              where (k.payload::text, k.headers::text) is not distinct from (h.payload::text, h.headers::text)",
            outbox.history()
        );
        assert_eq!(world.number(&alike).await, 4);
    });
}

#[test]
fn a_role_that_may_create_nothing_archives_and_has_partitions_made() {
    support::run(async |world| {
        let outbox = archiving("retention = \"1day\"");
        let (_, aggregate_type) = outbox.prepare(world).await;
        let role = format!("{}-relay", world.database());
        world
            .execute(&format!(
                "create role \"{role}\" login password 'relay';
                 grant usage on schema public, outbox_relay to \"{role}\";
                 grant select, delete, update (published_at) on outbox to \"{role}\";
                 grant select, update on outbox_relay.outbox, outbox_relay.lane to \"{role}\";
                 grant select, insert, update, delete on outbox_relay.parked to \"{role}\";
                 grant select on outbox_relay.pause to \"{role}\""
            ))
            .await;
        let (server, database) = world.database_url.rsplit_once('/').unwrap();
        let address = server
            .rsplit_once('@')
            .map_or(server, |(_, address)| address);
        let url = format!("\"postgres://{role}:relay@{address}/{database}\"");
        let setup = world.relay(&[&outbox]).set("database", "url", &url);
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);

        // what is missing is told as statements, which do
        world.expect_errors("a grant is missing");
        let (refused, said) = command(&setup, &["run"]).await;
        let grants: Vec<String> = said
            .split("Run: ")
            .skip(1)
            .filter_map(|rest| {
                Some(format!(
                    "{};",
                    rest.split_once(';')?.0.replace("\\\"", "\"")
                ))
            })
            .collect();
        let told = grants.len();
        world.execute(&grants.concat()).await;
        let last: String = sqlx::query_scalar(
            "select p.name from outbox_relay.history_partition p
              where not is_default order by upper desc limit 1",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        world
            .execute(&format!(
                "drop table outbox_relay.{last};
                 create table outbox_relay.old partition of outbox_relay.history_public_outbox
                   for values from ('2020-01-01') to ('2020-01-02')"
            ))
            .await;
        let relay = setup.run();
        eventually(SOON, "partitions come and go", async || {
            is_there(world, &last).await && !is_there(world, "old").await
        })
        .await;
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
        let drop = format!("drop owned by \"{role}\"; drop role \"{role}\"");
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        assert_eq!(refused, Some(78), "{said}");
        assert_eq!(told, 3, "{said}");
        world.check(&ledger).await.assert_clean(0);
        each_is_there_once(world, &outbox, &ledger).await;
    });
}

#[test]
fn a_history_is_kept_when_the_relay_is_uninstalled_unless_somebody_says_otherwise() {
    support::run(async |world| {
        let outbox = archiving("");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        assert!(setup.until_empty(Duration::from_secs(60)).await.success());
        let said = ends(&setup, &["uninstall", "--yes"], 0).await;
        assert!(said.contains("stays; --drop-history drops it"), "{said}");
        each_is_there_once(world, &outbox, &ledger).await;
        let said = ends(&setup, &["uninstall", "--all", "--yes"], 1).await;
        assert!(said.contains("has rows"), "{said}");

        setup.migrate().await;
        ledger.push(one(world, &outbox, &aggregate_type, "a", 2).await);
        assert!(setup.until_empty(SOON).await.success());
        each_is_there_once(world, &outbox, &ledger).await;
        world.check(&ledger).await.assert_clean(0);
        ends(&setup, &["uninstall", "--drop-history", "--yes"], 0).await;
        let left = "select count(*) from pg_class where relname like 'history_public%'";
        assert_eq!(world.number(left).await, 0);
        ends(&setup, &["uninstall", "--all", "--yes"], 0).await;
    });
}

#[test]
fn a_history_that_fits_no_more_is_told_and_can_be_changed_or_left_behind() {
    support::run(async |world| {
        let outbox = archiving("");
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, "a", 1).await);
        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;

        // while it is served: it waits, and goes on when somebody did what the line says
        world
            .execute("alter table outbox alter column payload type json using payload::json")
            .await;
        ledger.push(one(world, &outbox, &aggregate_type, "a", 2).await);
        world.expect_errors("and that of its history is");
        world.expect_errors("cannot be read or settled");
        let line = relay
            .wait_line("is json, and that of its history is jsonb", SOON)
            .await;
        assert_eq!(outbox.archived(world).await, 1);
        let mends = line.split("Run: ").nth(1).unwrap();
        let mends = mends.split(';').next().unwrap();
        world.execute(mends).await;
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        // what was published and could not be moved came again
        world.check(&ledger).await.assert_clean(20);
        each_is_there_once(world, &outbox, &ledger).await;

        // or it stays as it is, under another name
        world
            .execute("alter table outbox alter column payload type text using payload::text")
            .await;
        let said = ends(&setup, &["run"], 78).await;
        assert!(
            said.contains("is text, and that of its history is json"),
            "{said}"
        );
        world
            .execute(
                "alter table outbox_relay.history_public_outbox rename to kept;
                 delete from outbox_relay.history where outbox = 'public.outbox';
                 alter table outbox_relay.history_public_outbox_default rename to kept_default",
            )
            .await;
        setup.migrate().await;
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
                 values ('b', '{aggregate_type}', 'Created', 'no json')"
            ))
            .await;
        assert!(setup.until_empty(SOON).await.success());
        let kept = "select count(*) from outbox_relay.kept";
        assert_eq!(
            (world.number(kept).await, outbox.archived(world).await),
            (2, 1)
        );
        assert_eq!(strays(world, &outbox).await, 0);
    });
}
