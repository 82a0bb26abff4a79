//! The harness tests itself: each mistake that the relay's build for tests can make (see
//! `src/ops/mistake.rs`) is made once, under a fault that brings it out, and the checker must notice
//! it. The same fault without the mistake must leave nothing to notice.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::support::checker::{Report, java_partition};
use crate::support::kafka::Kafka;
use crate::support::outbox::Outbox;
use crate::support::relay::Setup;
use crate::support::writers::{Event, Ledger, Load, one, to_be_committed};
use crate::support::{self, World, eventually, topic_of};

/// Generous: what is awaited with it takes a second or two.
const SOON: Duration = Duration::from_secs(60);

/// How often a mistake may be made before it must have been noticed.
const TRIES: usize = 6;

/// A table, topics and relays for one run of a scenario.
struct Stage<'a> {
    world: &'a World,
    outbox: Outbox,
    aggregate_type: String,
    mistake: Option<&'static str>,
}

impl<'a> Stage<'a> {
    async fn new(world: &'a World, mistake: Option<&'static str>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let kind = mistake.map_or("right", |_| "wrong");
        let name = &format!("{kind}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut outbox = Outbox::classic();
        outbox.table = format!("outbox_{name}");
        // one lane, so that the rows of two aggregates meet in one batch
        outbox.config = "lanes = 1".to_owned();
        outbox.create(world).await;
        Self {
            world,
            outbox,
            aggregate_type: world.aggregate_type(name),
            mistake,
        }
    }

    fn topic(&self) -> String {
        topic_of(&self.aggregate_type)
    }

    /// A relay that makes the mistake, if this is the run for it.
    fn setup(&self) -> Setup<'a> {
        let setup = self.world.relay(&[&self.outbox]).workers(1);
        match self.mistake {
            Some(mistake) => setup.failpoint(mistake, "return"),
            None => setup,
        }
    }

    async fn prepare(&self, partitions: i32) {
        self.setup().migrate().await;
        let kafka = &self.world.kafka;
        kafka.create_topic(&self.topic(), partitions, &[]).await;
    }

    async fn one(&self, order: &str, n: i64) -> support::checker::Written {
        one(self.world, &self.outbox, &self.aggregate_type, order, n).await
    }

    /// Inserts the `n`th event of `order` into a transaction that is to be committed.
    async fn within(
        &self,
        transaction: &mut PgConnection,
        order: &str,
        n: i64,
        payload: &str,
    ) -> support::checker::Written {
        let event = Event {
            outbox: &self.outbox,
            aggregate_type: &self.aggregate_type,
            order,
            n,
            payload: Some(payload),
            trace: None,
        };
        to_be_committed(transaction, event).await
    }

    /// Waits until nothing is pending; in the run with the mistake that may never come.
    async fn quiet(&self) {
        let limit = self.mistake.map_or(SOON, |_| Duration::from_secs(5));
        let began = Instant::now();
        while self.outbox.pending(self.world).await > 0 && began.elapsed() < limit {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Runs `scenario` without and with `mistake`: the first must be clean, the second must not.
fn noticed(
    mistake: &'static str,
    scenario: impl AsyncFn(&Stage<'_>) -> Report,
    symptom: impl Fn(&Report) -> bool,
) {
    support::run(async |world| {
        let right = scenario(&Stage::new(world, None).await).await;
        right.assert_clean(0);
        // Some need two things to meet, which a busy machine may keep apart once or twice.
        let mut last = None;
        for _ in 0..TRIES {
            let wrong = scenario(&Stage::new(world, Some(mistake)).await).await;
            if symptom(&wrong) {
                return;
            }
            last = Some(wrong);
        }
        let last = last.expect("at least one try");
        panic!("{mistake} was not noticed: {last}");
    });
}

fn order() -> String {
    Uuid::new_v4().to_string()
}

#[test]
fn settling_before_the_acknowledgement_is_noticed() {
    let killed_after_its_commit = async |stage: &Stage<'_>| {
        stage.prepare(2).await;
        let (order, mut ledger) = (order(), Ledger::default());
        for n in 1..=5 {
            ledger.push(stage.one(&order, n).await);
        }
        let armed = stage.setup().failpoint("settle_after_commit", "return");
        armed.run().wait_exit(SOON).await;
        stage.setup().until_empty(SOON).await;
        stage.world.check(&ledger).await
    };
    noticed("mistake_settle_first", killed_after_its_commit, |report| {
        !report.lost.is_empty()
    });
}

#[test]
fn lanes_that_nobody_locks_are_noticed() {
    let four_relays = async |stage: &Stage<'_>| {
        stage.prepare(4).await;
        let mut load = Load::of(&stage.aggregate_type);
        load.events = 1_500;
        load.aggregates = 5;
        let dawdling = || {
            let setup = stage.setup().set("relay", "claim_rows_max", "10");
            setup.failpoint("claim_after", "50%sleep(20)")
        };
        let relays = [(); 4].map(|()| dawdling().run());
        let ledger = load.start(stage.world, &stage.outbox).await.finish().await;
        stage.outbox.wait_drained(stage.world, SOON).await;
        for relay in relays {
            relay.stop().await;
        }
        stage.world.check(&ledger).await
    };
    noticed("mistake_no_lane_lock", four_relays, |report| {
        !report.disordered.is_empty()
    });
}

#[test]
fn another_partitioner_is_noticed() {
    let forty_keys = async |stage: &Stage<'_>| {
        stage.prepare(4).await;
        let mut ledger = Ledger::default();
        for _ in 0..40 {
            ledger.push(stage.one(&order(), 1).await);
        }
        stage.setup().until_empty(SOON).await;
        stage.world.check(&ledger).await
    };
    noticed("mistake_default_partitioner", forty_keys, |report| {
        !report.misplaced.is_empty()
    });
}

/// Two transactions, the one that began first commits last, after the other's event has arrived.
async fn late_commit(stage: &Stage<'_>, relay: Setup<'_>) -> Report {
    stage.prepare(2).await;
    let relay = relay.run();
    let (early, late) = (order(), order());
    let mut ledger = Ledger::default();
    let mut transaction = stage.world.pool.begin().await.unwrap();
    let written = stage.within(&mut transaction, &late, 1, "{}").await;
    ledger.push(stage.one(&early, 1).await);
    eventually(SOON, "the other's event arrives", async || {
        stage.world.kafka.count(&stage.topic()).await > 0
    })
    .await;
    transaction.commit().await.unwrap();
    ledger.push(written);
    stage.quiet().await;
    relay.stop().await;
    stage.world.check(&ledger).await
}

#[test]
fn a_cursor_instead_of_a_flag_is_noticed() {
    let scenario = async |stage: &Stage<'_>| late_commit(stage, stage.setup()).await;
    noticed("mistake_seq_cursor", scenario, |report| {
        report.lost.len() == 1
    });
}

#[test]
fn settling_by_range_is_noticed() {
    // long enough for the late commit to fall between the acknowledgement and the settling
    let scenario = async |stage: &Stage<'_>| {
        let dawdling = stage.setup().failpoint("settle_before", "1*sleep(6000)");
        late_commit(stage, dawdling).await
    };
    noticed("mistake_settle_by_range", scenario, |report| {
        report.lost.len() == 1
    });
}

#[test]
fn settling_past_an_unfinished_row_is_noticed() {
    let one_topic_is_missing = async |stage: &Stage<'_>| {
        stage.prepare(2).await;
        let missing = format!("{}-missing", stage.aggregate_type);
        let mut ledger = Ledger::default();
        // both rows are there when the relay first looks
        ledger.push(one(stage.world, &stage.outbox, &missing, &order(), 1).await);
        ledger.push(stage.one(&order(), 1).await);
        let relay = stage.setup().run();
        eventually(SOON, "the other topic's event is settled", async || {
            stage.outbox.published(stage.world).await > 0
        })
        .await;
        let kafka = &stage.world.kafka;
        kafka.create_topic(&topic_of(&missing), 2, &[]).await;
        stage.outbox.wait_drained(stage.world, SOON).await;
        relay.stop().await;
        stage.world.check(&ledger).await
    };
    noticed(
        "mistake_settle_past_unfinished",
        one_topic_is_missing,
        |report| report.lost.len() == 1,
    );
}

#[test]
fn an_acknowledgement_without_an_offset_that_is_believed_is_noticed() {
    let falsely_acknowledged = async |stage: &Stage<'_>| {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(&stage.topic(), 2, 1).unwrap();
        // librdkafka takes it for a success, and has no offset
        cluster.request_errors(
            RDKafkaApiKey::Produce,
            &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER],
        );
        let kafka = Kafka {
            brokers: cluster.bootstrap_servers(),
        };
        let brokers = format!("\"{}\"", kafka.brokers);
        let setup = stage.setup().set("kafka", "brokers", &brokers);
        setup.migrate().await;
        let (order, mut ledger) = (order(), Ledger::default());
        for n in 1..=3 {
            ledger.push(stage.one(&order, n).await);
        }
        setup.until_empty(SOON).await;
        stage.world.check_in(&kafka, &ledger).await
    };
    noticed(
        "mistake_believe_no_offset",
        falsely_acknowledged,
        |report| !report.lost.is_empty(),
    );
}

#[test]
fn five_requests_in_flight_are_noticed() {
    // The broker has no state of the producer in the large row's partition: after that row's refusal
    // it takes any sequence for the first.
    let refused_at_the_beginning = async |stage: &Stage<'_>| {
        stage.world.expect_errors("park");
        stage.prepare(2).await;
        let orders = std::iter::repeat_with(order);
        let in_partition = |wanted| {
            let mut orders = orders;
            let found = orders.find(|order| java_partition(order.as_bytes(), 2) == wanted);
            found.expect("half of all keys")
        };
        let (other, order) = (in_partition(0), in_partition(1));
        let one_by_one = stage
            .setup()
            .set("kafka.properties", "\"batch.num.messages\"", "\"1\"");
        let relay = one_by_one.run();
        let mut ledger = Ledger::default();
        ledger.push(stage.one(&other, 1).await);
        stage.outbox.wait_drained(stage.world, SOON).await;
        // the relay does not know of it yet, so it is the broker that refuses
        let kafka = &stage.world.kafka;
        let small = [("max.message.bytes", "10000")];
        kafka.configure_topic(&stage.topic(), &small).await;
        sleep(Duration::from_secs(2)).await;
        let noise = "select string_agg(md5(random()::text), '') from generate_series(1, 1000)";
        let noise: String = sqlx::query_scalar(noise)
            .fetch_one(&stage.world.pool)
            .await
            .unwrap();
        let mut transaction = stage.world.pool.begin().await.unwrap();
        for n in 1..=20 {
            let large = if n == 1 { noise.as_str() } else { "" };
            let payload = format!("{{\"n\": {n}, \"noise\": \"{large}\"}}");
            let written = stage.within(&mut transaction, &order, n, &payload);
            ledger.push(written.await);
        }
        transaction.commit().await.unwrap();
        stage.outbox.wait_drained(stage.world, SOON).await;
        relay.stop().await;
        let mut report = stage.world.check(&ledger).await;
        // what is parked is not lost: it waits for somebody's decision
        let parked = "select event_id::text from outbox_relay.parked";
        let parked: Vec<String> = sqlx::query_scalar(parked)
            .fetch_all(&stage.world.pool)
            .await
            .unwrap();
        assert!(!parked.is_empty(), "the broker refused a record");
        report
            .lost
            .retain(|line| !parked.iter().any(|id| line.contains(id)));
        // Those that were let pass come again, which is no fault of this scenario.
        report.duplicates = 0;
        report
    };
    noticed(
        "mistake_five_in_flight",
        refused_at_the_beginning,
        |report| !report.disordered.is_empty(),
    );
}

#[test]
fn a_purge_of_an_open_producer_is_noticed() {
    let lingering = async |stage: &Stage<'_>| {
        stage.prepare(1).await;
        // so that nothing is on its way yet when the producer is purged
        let linger = stage
            .setup()
            .set("kafka.properties", "\"linger.ms\"", "\"100\"");
        let relay = linger.run();
        let (order, mut ledger) = (order(), Ledger::default());
        ledger.push(stage.one(&order, 1).await);
        stage.outbox.wait_drained(stage.world, SOON).await;
        let mut transaction = stage.world.pool.begin().await.unwrap();
        for n in 2..=9 {
            ledger.push(stage.within(&mut transaction, &order, n, "{}").await);
        }
        transaction.commit().await.unwrap();
        stage.outbox.wait_drained(stage.world, SOON).await;
        relay.stop().await;
        stage.world.check(&ledger).await
    };
    noticed("mistake_purge_open", lingering, |report| {
        !report.disordered.is_empty()
    });
}
