//! A service under load: transactions that change an order and insert its events, some of them
//! rolled back. The writers of one order serialise on its row, as the order promise presumes, and
//! keep a ledger of every event they wrote.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::Postgres;
use sqlx::{AssertSqlSafe, PgConnection, Pool};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::checker::{Fate, Written};
use super::outbox::{Layout, Outbox};
use super::{Rng, World, topic_of};

/// How much to write, and how.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) aggregate_type: String,
    /// Orders that the events are spread over.
    pub(crate) aggregates: usize,
    /// Writers at once.
    pub(crate) writers: usize,
    /// They stop when this many events have been inserted, rolled-back ones included.
    pub(crate) events: usize,
    /// Events a second, all writers together; `None` is as fast as they can.
    pub(crate) rate: Option<f64>,
    /// Transactions that are rolled back, in a hundred.
    pub(crate) rollbacks: u64,
    /// Transactions insert from one up to this many events of their order.
    pub(crate) events_per_transaction_max: u64,
    /// Letters that make the payload longer.
    pub(crate) padding: usize,
}

impl Load {
    /// A moderate load of one aggregate type.
    pub(crate) fn of(aggregate_type: &str) -> Self {
        Self {
            aggregate_type: aggregate_type.to_owned(),
            aggregates: 20,
            writers: 4,
            events: 2_000,
            rate: None,
            rollbacks: 10,
            events_per_transaction_max: 3,
            padding: 100,
        }
    }
}

/// Every event that was written, and what became of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    events: Vec<Written>,
    journals: Vec<String>,
}

impl Ledger {
    /// The ledgers of several tables in one.
    pub(crate) fn join(ledgers: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for ledger in ledgers {
            all.events.extend(ledger.events);
            all.journals.extend(ledger.journals);
        }
        all
    }

    /// Events of committed transactions.
    pub(crate) fn committed(&self) -> usize {
        let committed = self
            .events
            .iter()
            .filter(|event| event.fate == Fate::Committed);
        committed.count()
    }

    /// The ledger without the events whose ids are given: somebody else saw to those.
    pub(crate) fn without(mut self, ids: &HashSet<Uuid>) -> Self {
        self.events.retain(|event| !ids.contains(&event.id));
        self
    }

    /// Events of one order so far.
    pub(crate) fn count_of(&self, order: &str) -> i64 {
        let events = self.events.iter().filter(|event| event.key == order);
        i64::try_from(events.count()).expect("a few events")
    }

    /// Adds an event that a test wrote by itself.
    pub(crate) fn push(&mut self, event: Written) {
        self.events.push(event);
    }

    /// The ledger as it is after a database forgot commits that it had confirmed: only the journal
    /// knows.
    pub(crate) fn doubted(mut self) -> Self {
        for event in &mut self.events {
            event.fate = Fate::Unknown;
        }
        self
    }

    /// The events, the fate of each known: where the reply to a commit was lost, the journal that
    /// was written in the same transaction tells.
    pub(crate) async fn resolved(&self, pool: &Pool<Postgres>) -> Vec<Written> {
        let mut events = self.events.clone();
        if events.iter().all(|event| event.fate != Fate::Unknown) {
            return events;
        }
        let mut committed = Vec::new();
        for journal in &self.journals {
            let sql = format!("select id from {journal}");
            let ids = sqlx::query_scalar::<_, Uuid>(AssertSqlSafe(sql))
                .fetch_all(pool)
                .await;
            committed.extend(ids.expect("the journal can be read"));
        }
        for event in events
            .iter_mut()
            .filter(|event| event.fate == Fate::Unknown)
        {
            let there = committed.contains(&event.id);
            event.fate = if there {
                Fate::Committed
            } else {
                Fate::RolledBack
            };
        }
        events
    }
}

/// A load under way.
pub(crate) struct Writing {
    writers: JoinSet<()>,
    stop: CancellationToken,
    shared: Arc<Shared>,
}

struct Shared {
    load: Load,
    outbox: Outbox,
    pool: Pool<Postgres>,
    orders: Vec<String>,
    inserted: AtomicUsize,
    events: Mutex<Vec<Written>>,
}

impl Load {
    /// Begins to write into `outbox`.
    pub(crate) async fn start(self, world: &World, outbox: &Outbox) -> Writing {
        let orders: Vec<_> = (0..self.aggregates)
            .map(|i| match outbox.layout {
                Layout::Classic => Uuid::new_v4().to_string(),
                Layout::Native | Layout::Debezium => format!("order {i} of café"),
            })
            .collect();
        let sql = format!(
            "insert into {}_orders (id) select unnest($1) on conflict do nothing",
            outbox.table
        );
        let made = sqlx::query(AssertSqlSafe(sql))
            .bind(&orders)
            .execute(&world.pool)
            .await;
        made.expect("orders can be made");
        let shared = Arc::new(Shared {
            load: self,
            outbox: outbox.clone(),
            pool: world.pool.clone(),
            orders,
            inserted: AtomicUsize::new(0),
            events: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        for seed in 0..shared.load.writers {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            writers.spawn(async move { shared.write(Rng::new(seed as u64), stop).await });
        }
        Writing {
            writers,
            stop,
            shared,
        }
    }
}

impl Writing {
    /// Waits until all is written.
    pub(crate) async fn finish(mut self) -> Ledger {
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
        Ledger {
            events: std::mem::take(&mut self.shared.events.lock().unwrap()),
            journals: vec![format!("{}_journal", self.shared.outbox.table)],
        }
    }

    /// Lets each writer end its transaction, however much there was to write still.
    pub(crate) async fn stop(self) -> Ledger {
        self.stop.cancel();
        self.finish().await
    }
}

impl Shared {
    async fn write(&self, mut rng: Rng, stop: CancellationToken) {
        let writers = u32::try_from(self.load.writers).expect("a few writers");
        while !stop.is_cancelled() && self.inserted.load(Ordering::Relaxed) < self.load.events {
            let most = self.load.events_per_transaction_max;
            let count = i64::try_from(1 + rng.below(most)).expect("a few events");
            let mut events = Vec::new();
            match self.transaction(count, &mut events, &mut rng).await {
                Ok(()) => {}
                Err(error) if passes(&error) => sleep(Duration::from_millis(50)).await,
                Err(error) => panic!("the service cannot write: {error}"),
            }
            self.inserted.fetch_add(events.len(), Ordering::Relaxed);
            self.events.lock().unwrap().extend(events);
            if let Some(rate) = self.load.rate {
                let pause = Duration::from_secs_f64(f64::from(writers) / rate);
                sleep(pause * u32::try_from(count).expect("a few events")).await;
            }
        }
    }

    /// One transaction: what it wrote is in `events` whatever becomes of it.
    async fn transaction(
        &self,
        count: i64,
        events: &mut Vec<Written>,
        rng: &mut Rng,
    ) -> Result<(), sqlx::Error> {
        let table = &self.outbox.table;
        let order = {
            let any = usize::try_from(rng.below(self.orders.len() as u64)).expect("an index");
            &self.orders[any]
        };
        let mut transaction = self.pool.begin().await?;
        let sql = format!("update {table}_orders set n = n + $2 where id = $1 returning n");
        let last: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(order)
            .bind(count)
            .fetch_one(&mut *transaction)
            .await?;
        for n in last - count + 1..=last {
            let event = self.event(order, n, rng);
            let (payload, trace) = (event.0.as_deref(), event.1.as_deref());
            let event = Event {
                outbox: &self.outbox,
                aggregate_type: &self.load.aggregate_type,
                order,
                n,
                payload,
                trace,
            };
            let event = insert(&mut transaction, event).await?;
            let id = event.id;
            events.push(event);
            let sql = format!("insert into {table}_journal values ($1)");
            sqlx::query(AssertSqlSafe(sql))
                .bind(id)
                .execute(&mut *transaction)
                .await?;
        }
        if rng.percent(self.load.rollbacks) {
            return transaction.rollback().await;
        }
        let committed = transaction.commit().await;
        let fate = match &committed {
            Ok(()) => Fate::Committed,
            Err(error) if refused(error) => Fate::RolledBack,
            Err(_) => Fate::Unknown,
        };
        events.iter_mut().for_each(|event| event.fate = fate);
        committed
    }
}

impl Shared {
    /// The payload and the header of an event.
    fn event(&self, order: &str, n: i64, rng: &mut Rng) -> (Option<String>, Option<String>) {
        // Postgres prints jsonb its own way: other spacing, other order of members.
        let payload = format!(
            "{{\"total\":{n}.50,\"n\":{n},\"order\":\"{order}\",\"note\":\"{}\"}}",
            "é".repeat(self.load.padding)
        );
        match self.outbox.layout {
            Layout::Classic => (Some(payload), None),
            Layout::Native => {
                let trace = rng.percent(50).then(|| format!("{:016x}", rng.next()));
                ((!rng.percent(5)).then_some(payload), trace)
            }
            Layout::Debezium => ((!rng.percent(5)).then_some(payload), None),
        }
    }
}

/// One event to insert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event<'a> {
    pub(crate) outbox: &'a Outbox,
    pub(crate) aggregate_type: &'a str,
    /// The aggregate's id; a UUID where the layout is classic.
    pub(crate) order: &'a str,
    /// The aggregate's own count.
    pub(crate) n: i64,
    /// As JSON, or null in the native layout.
    pub(crate) payload: Option<&'a str>,
    /// A header of the row's own, in the native layout.
    pub(crate) trace: Option<&'a str>,
}

/// Inserts an event. Its fate is the transaction's, which is not known here: rolled back, until
/// the caller says otherwise.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    event: Event<'_>,
) -> Result<Written, sqlx::Error> {
    let Event {
        outbox,
        aggregate_type,
        order,
        n,
        ..
    } = event;
    let event_type = if n == 1 {
        "OrderCreated"
    } else {
        "OrderChanged"
    };
    let usual = "aggregate_id, aggregate_type, event_type, payload";
    let (columns, id_type, headers) = match outbox.layout {
        Layout::Classic => (usual, "uuid", ""),
        Layout::Debezium => ("aggregateid, aggregatetype, type, payload", "text", ""),
        Layout::Native => (
            "aggregate_id, aggregate_type, event_type, payload, headers",
            "text",
            ", jsonb_strip_nulls(jsonb_build_object('trace', $5::text))",
        ),
    };
    let sql = format!(
        "insert into {} ({columns})
         values ($1::{id_type}, $2, $3, $4::jsonb{headers}) returning id, payload::text",
        outbox.table
    );
    let mut query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(order)
        .bind(aggregate_type)
        .bind(event_type)
        .bind(event.payload);
    if outbox.layout == Layout::Native {
        query = query.bind(event.trace);
    }
    let (id, value): (Uuid, Option<String>) = query.fetch_one(connection).await?;
    let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
    let mut headers = vec![
        header("event_id", &id.to_string()),
        header("event_type", event_type),
    ];
    headers.extend(event.trace.map(|trace| header("trace", trace)));
    Ok(Written {
        id,
        topic: topic_of(aggregate_type),
        key: order.to_owned(),
        n,
        value: value.map(String::into_bytes),
        headers,
        fate: Fate::RolledBack,
    })
}

/// Inserts and commits one event of `order`, its `n`th.
pub(crate) async fn one(
    world: &World,
    outbox: &Outbox,
    aggregate_type: &str,
    order: &str,
    n: i64,
) -> Written {
    let payload = format!("{{\"n\": {n}}}");
    let mut connection = world.pool.acquire().await.expect("Postgres answers");
    let event = Event {
        outbox,
        aggregate_type,
        order,
        n,
        payload: Some(&payload),
        trace: None,
    };
    to_be_committed(&mut connection, event).await
}

/// Inserts and commits the first event of an order that nobody knows yet.
pub(crate) async fn first(world: &World, outbox: &Outbox, aggregate_type: &str) -> Written {
    one(
        world,
        outbox,
        aggregate_type,
        &Uuid::new_v4().to_string(),
        1,
    )
    .await
}

/// Inserts an event whose transaction the caller commits, or which is one by itself.
pub(crate) async fn to_be_committed(connection: &mut PgConnection, event: Event<'_>) -> Written {
    let written = insert(connection, event).await;
    let mut written = written.expect("an event can be inserted");
    written.fate = Fate::Committed;
    written
}

/// Whether the server itself said no, so that the transaction is certainly not committed.
fn refused(error: &sqlx::Error) -> bool {
    // 57P01 to 57P03 may come instead of a reply to a commit that was made.
    matches!(error.as_database_error().and_then(|error| error.code()), Some(code) if !code.starts_with("57P"))
}

/// Whether a service would try again: a conflict, or Postgres is away.
fn passes(error: &sqlx::Error) -> bool {
    match error.as_database_error().and_then(|error| error.code()) {
        // serialization_failure, deadlock_detected, lock_not_available, disk_full,
        // too_many_connections, query_canceled, read_only_sql_transaction, and the server is going
        // or coming
        Some(code) => {
            [
                "40001", "40P01", "55P03", "53100", "53300", "57014", "25006",
            ]
            .contains(&&*code)
                || code.starts_with("57P")
        }
        None => matches!(
            error,
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_)
        ),
    }
}
