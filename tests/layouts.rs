//! Every layout in every mode, tables of all sorts side by side, and databases with settings of
//! their own.

use std::time::Duration;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::{Ledger, Load, one};
use crate::support::{self, World, topic_of};

#[test]
fn one_process_serves_all_layouts_in_every_mode() {
    support::run(async |world| {
        let mut outboxes = Vec::new();
        for layout in [Layout::Classic, Layout::Native] {
            for mode in [OnPublished::Mark, OnPublished::Delete, OnPublished::Archive] {
                let table = format!("{}_{}", layout.name(), mode.name());
                outboxes.push(Outbox::new(&table, layout, mode));
            }
        }
        for mode in [OnPublished::Delete, OnPublished::Archive] {
            let table = format!("debezium_{}", mode.name());
            outboxes.push(Outbox::new(&table, Layout::Debezium, mode));
        }
        let all: Vec<_> = outboxes.iter().collect();
        for outbox in &all {
            outbox.create(world).await;
        }
        let setup = world.relay(&all);
        setup.migrate().await;
        let mut writing = Vec::new();
        for outbox in &all {
            let mut load = Load::of(&world.aggregate_type(&outbox.table));
            (load.events, load.writers) = (400, 2);
            world
                .kafka
                .create_topic(&topic_of(&load.aggregate_type), 3, &[])
                .await;
            writing.push(load.start(world, outbox).await);
        }
        let relay = setup.run();
        let mut ledgers = Vec::new();
        for load in writing {
            ledgers.push(load.finish().await);
        }
        let ledger = Ledger::join(ledgers);
        for outbox in &all {
            outbox.wait_drained(world, Duration::from_secs(30)).await;
            let sql = format!("select count(*) from {}", outbox.table);
            let kept = world.number(&sql).await;
            assert_eq!(
                kept > 0,
                outbox.on_published == OnPublished::Mark,
                "{}",
                outbox.table
            );
            if outbox.on_published == OnPublished::Archive {
                assert!(outbox.archived(world).await > 0, "{}", outbox.table);
            }
        }
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_native_row_brings_headers_a_topic_and_a_tombstone() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let (aggregate_type, chosen) = (world.aggregate_type("Order"), world.topic("chosen"));
        world
            .kafka
            .create_topic(&topic_of(&aggregate_type), 1, &[])
            .await;
        world.kafka.create_topic(&chosen, 1, &[]).await;
        world
            .execute(&format!(
                "insert into outbox (aggregate_id, aggregate_type, event_type, payload, headers, topic) values
                 ('a', '{aggregate_type}', 'Kept', '{{\"b\":1.50,  \"a\": \"é\"}}', '{{\"trace\": \"x\", \"n\": 2, \"none\": null}}', null),
                 ('a', '{aggregate_type}', 'Dropped', null, null, null),
                 ('a', '{aggregate_type}', 'Sent', '[]', null, '{chosen}')"
            ))
            .await;
        let status = setup.until_empty(Duration::from_secs(60)).await;
        assert!(status.success(), "{status}");

        let records = world.kafka.read_all(&topic_of(&aggregate_type)).await;
        let values: Vec<_> = records
            .iter()
            .map(|record| record.value.as_deref())
            .collect();
        let kept: &[u8] = "{\"a\": \"é\", \"b\": 1.50}".as_bytes();
        assert_eq!(
            values,
            [Some(kept), None],
            "as Postgres prints it, and a tombstone"
        );
        let own: Vec<_> = records[0].headers.iter().skip(2).cloned().collect();
        let header = |name: &str, value: Option<&str>| {
            (
                name.to_owned(),
                value.map(|value| value.as_bytes().to_vec()),
            )
        };
        // The order is that of jsonb: shorter names first.
        let expected = [
            header("n", Some("2")),
            header("none", None),
            header("trace", Some("x")),
        ];
        assert_eq!(own, expected);
        let moved = world.kafka.read_all(&chosen).await;
        assert_eq!(moved.len(), 1, "the row's own topic wins");
        assert_eq!(moved[0].headers[1], header("event_type", Some("Sent")));
    });
}

#[test]
fn a_database_whose_transactions_are_serializable_is_served() {
    support::run(async |world| {
        let database = world.database();
        let alter = |setting: &str| format!("alter database \"{database}\" set {setting}");
        world
            .execute(&alter("default_transaction_isolation = 'serializable'"))
            .await;
        published_under_load(world).await;
    });
}

/// Two relays, a moderate load, and every event exactly once.
async fn published_under_load(world: &World) {
    let outbox = Outbox::classic();
    outbox.create(world).await;
    let setup = world.relay(&[&outbox]);
    setup.migrate().await;
    let load = Load {
        events: 600,
        ..Load::of(&world.aggregate_type("Order"))
    };
    world
        .kafka
        .create_topic(&topic_of(&load.aggregate_type), 3, &[])
        .await;
    let relays = [setup.run(), setup.run()];
    let ledger = load.start(world, &outbox).await.finish().await;
    outbox.wait_drained(world, Duration::from_secs(30)).await;
    for relay in relays {
        relay.stop().await;
    }
    world.check(&ledger).await.assert_clean(0);
}

#[test]
fn migrate_may_run_again_on_an_empty_table_and_on_a_filled_one() {
    support::run(async |world| {
        let (empty, filled) = (
            Outbox::new("empty", Layout::Classic, OnPublished::Mark),
            Outbox::new("filled", Layout::Classic, OnPublished::Mark),
        );
        for outbox in [&empty, &filled] {
            outbox.create(world).await;
        }
        let aggregate_type = world.aggregate_with_topic("Order", 3).await;
        let order = uuid::Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        for n in 1..=50 {
            let event = one(world, &filled, &aggregate_type, &order, n).await;
            // Published long ago, by somebody else.
            if n <= 20 {
                let sql = format!(
                    "update filled set published_at = now() where id = '{}'",
                    event.id
                );
                world.execute(&sql).await;
            } else {
                ledger.push(event);
            }
        }
        // Where a row lies on disk says nothing of its age: the oldest come to lie last.
        world
            .execute("update filled set payload = payload where published_at is null and (payload->>'n')::int < 35")
            .await;
        let setup = world.relay(&[&empty, &filled]);
        setup.migrate().await;
        setup.migrate().await;
        let status = setup.until_empty(Duration::from_secs(60)).await;
        assert!(status.success(), "{status}");
        let report = world.check(&ledger).await;
        report.assert_clean(0);
        assert_eq!(report.delivered, 30, "what was published is left alone");

        // And once more while the relay's own rows are there.
        setup.migrate().await;
        ledger.push(one(world, &filled, &aggregate_type, &order, 51).await);
        assert!(setup.until_empty(Duration::from_secs(60)).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}
