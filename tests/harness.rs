//! The harness proves itself: its servers answer, survive what tests do to them, and go away.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, timeout};

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::servers::Server;
use crate::support::writers::Load;
use crate::support::{self, Own, topic_of};

#[test]
fn a_test_has_a_database_and_topics_of_its_own() {
    support::run(async |world| {
        let name = world.database();
        let sql = format!("select count(*) from pg_database where datname = '{name}'");
        assert_eq!(world.number(&sql).await, 1);
        let topic = world.topic("made");
        world
            .kafka
            .create_topic(&topic, 3, &[("max.message.bytes", "2000")])
            .await;
        assert_eq!(world.kafka.partitions(&topic).await, 3);
        assert_eq!(world.kafka.read_all(&topic).await, []);
    });
}

#[test]
fn writers_keep_a_ledger_that_agrees_with_the_table() {
    support::run(async |world| {
        for layout in [Layout::Classic, Layout::Native] {
            let outbox = Outbox::new(layout.name(), layout, OnPublished::Mark);
            outbox.create(world).await;
            let mut load = Load::of(&world.aggregate_type("Order"));
            load.events = 300;
            load.rollbacks = 30;
            let ledger = load.start(world, &outbox).await.finish().await;
            let rows = outbox.pending(world).await;
            assert_eq!(usize::try_from(rows).unwrap(), ledger.committed());
            let sql = format!("select sum(n)::bigint from {}_orders", outbox.table);
            assert_eq!(
                world.number(&sql).await,
                rows,
                "each aggregate counts without a gap"
            );
        }
    });
}

#[test]
fn nothing_published_is_everything_lost() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = 50;
        world
            .kafka
            .create_topic(&topic_of(&load.aggregate_type), 2, &[])
            .await;
        let ledger = load.start(world, &outbox).await.finish().await;
        let report = world.check(&ledger).await;
        assert_eq!(
            (report.lost.len(), report.delivered),
            (ledger.committed(), 0)
        );
    });
}

#[test]
fn an_own_postgres_comes_back_at_its_port_with_its_rows() {
    support::run_with(Own::POSTGRES, async |world| {
        world
            .execute("create table kept (n int); insert into kept values (7)")
            .await;
        let server = world.own_postgres();
        comes_back(server, async || {
            let sql = "select n from kept";
            let connection = PgConnection::connect(&world.database_url).await;
            match connection {
                Ok(mut connection) => {
                    let n: i32 = sqlx::query_scalar(sql)
                        .fetch_one(&mut connection)
                        .await
                        .unwrap();
                    n == 7
                }
                Err(_) => false,
            }
        })
        .await;
    });
}

#[test]
fn an_own_kafka_comes_back_at_its_port_with_its_topics() {
    support::run_with(Own::KAFKA, async |world| {
        let topic = world.topic("kept");
        world.kafka.create_topic(&topic, 5, &[]).await;
        comes_back(world.own_kafka(), async || {
            let partitions = world.kafka.clone();
            let topic = topic.clone();
            // A broker that is away makes the reader panic, in a task of its own.
            let asked = tokio::task::JoinSet::from_iter([async move {
                partitions.topics(move |name| name == topic).await
            }]);
            asked.join_all().await.len() == 1
        })
        .await;
    });
}

/// Stops, kills and pauses a server; `serves` asks it something that takes long while it is away.
async fn comes_back(server: &Server, serves: impl AsyncFn() -> bool) {
    assert!(serves().await, "at first");
    let began = Instant::now();
    server.stop().await;
    server.start().await;
    assert!(serves().await, "after a stop");
    server.kill().await;
    server.start().await;
    assert!(serves().await, "after a kill");
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "took {:?}",
        began.elapsed()
    );
    server.pause().await;
    let asked = timeout(Duration::from_secs(1), serves()).await;
    assert!(asked.is_err(), "paused, it answers nobody");
    server.unpause().await;
    assert!(serves().await, "after a pause");
}
