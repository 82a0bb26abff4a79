//! The toy order service: the user of an outbox. It changes an order and inserts the order's
//! events in one transaction, from several writers at once, and rolls some transactions back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::books::Books;
use super::dice::Dice;

/// The service's own tables, by its own hand. The relay adds what it needs; the inserts below
/// know nothing of that.
const TABLES: [&str; 2] = [
    "create table public.orders (
       id uuid primary key,
       status text not null,
       items integer not null,
       version bigint not null)",
    "create table public.outbox (
       id uuid primary key default gen_random_uuid(),
       aggregate_id uuid not null,
       aggregate_type text not null,
       event_type text not null,
       payload jsonb not null,
       created_at timestamptz not null default now(),
       published_at timestamptz)",
];

/// Orders that are worked on at once: few enough that the writers meet on them.
const ORDERS_OPEN_MAX: usize = 24;

/// One transaction in so many rolls back.
const ROLLED_BACK_ONE_IN: usize = 10;

/// The longest a writer lags behind its pace before it gives up catching up.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// The service, its writers running until told to stop.
pub(super) struct Service {
    writers: JoinSet<Result<(), sqlx::Error>>,
    stop: CancellationToken,
    pool: PgPool,
}

/// What the writers share.
struct Shop {
    pool: PgPool,
    books: Arc<Books>,
    aggregate_type: String,
    open: Mutex<Vec<Uuid>>,
}

/// An order as its row has it, with the events this transaction adds.
struct Order {
    id: Uuid,
    status: Status,
    items: i32,
    version: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Created,
    Paid,
    Shipped,
    Delivered,
}

/// Makes the service's tables in an empty database.
pub(super) async fn create_tables(options: &PgConnectOptions) -> Result<PgPool, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options.clone())
        .await?;
    for table in TABLES {
        sqlx::query(table).execute(&pool).await?;
    }
    Ok(pool)
}

impl Service {
    /// Starts writers that write `rate` events a second between them.
    pub(super) async fn start(
        options: &PgConnectOptions,
        books: &Arc<Books>,
        aggregate_type: &str,
        rate: u32,
    ) -> Result<Self, sqlx::Error> {
        let writer_count = (rate / 50).clamp(4, 16);
        let pool = PgPoolOptions::new()
            .max_connections(writer_count)
            .min_connections(writer_count)
            .connect_with(options.clone())
            .await?;
        let shop = Arc::new(Shop {
            pool: pool.clone(),
            books: Arc::clone(books),
            aggregate_type: aggregate_type.to_owned(),
            open: Mutex::default(),
        });
        let stop = CancellationToken::new();
        // The time one writer may take for one event.
        let pace = Duration::from_secs(1) * writer_count / rate.max(1);
        let mut writers = JoinSet::new();
        for number in 0..writer_count {
            let first = Instant::now() + pace * number / writer_count;
            writers.spawn(Arc::clone(&shop).write(first, pace, stop.clone()));
        }
        Ok(Self {
            writers,
            stop,
            pool,
        })
    }

    /// Waits until a writer fails. Never returns while all is well.
    pub(super) async fn failed(&mut self) -> sqlx::Error {
        loop {
            match self.writers.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                None => std::future::pending().await,
            }
        }
    }

    /// Lets the transactions in hand end and starts no more.
    pub(super) async fn stop(mut self) -> Result<(), sqlx::Error> {
        self.stop.cancel();
        while let Some(writer) = self.writers.join_next().await {
            match writer {
                Ok(ended) => ended?,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        self.pool.close().await;
        Ok(())
    }
}

impl Shop {
    async fn write(
        self: Arc<Self>,
        first: Instant,
        pace: Duration,
        stop: CancellationToken,
    ) -> Result<(), sqlx::Error> {
        let mut dice = Dice::new();
        let mut next = first;
        while stop.run_until_cancelled(sleep_until(next)).await.is_some() {
            let events = self.trade(&mut dice).await?;
            let late = Instant::now().checked_sub(CATCH_UP_MAX);
            next += pace * events;
            next = late.map_or(next, |late| next.max(late));
        }
        Ok(())
    }

    /// One transaction: an order changes, and its events are written. Returns how many.
    async fn trade(&self, dice: &mut Dice) -> Result<u32, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        let mut order = self.take_order(&mut transaction, dice).await?;
        let steps = if dice.one_in(4) { 2 } else { 1 };
        let mut written = Vec::with_capacity(steps);
        while written.len() < steps && order.status != Status::Delivered {
            let event_type = order.step(dice);
            let event_id = Uuid::new_v4();
            sqlx::query(
                "insert into public.outbox (id, aggregate_id, aggregate_type, event_type, payload)
                 values ($1, $2, $3, $4, $5::text::jsonb)",
            )
            .bind(event_id)
            .bind(order.id)
            .bind(&self.aggregate_type)
            .bind(event_type)
            .bind(order.payload(event_type))
            .execute(&mut *transaction)
            .await?;
            written.push((event_id, order.id, order.version));
        }
        sqlx::query("update public.orders set status = $2, items = $3, version = $4 where id = $1")
            .bind(order.id)
            .bind(order.status.name())
            .bind(order.items)
            .bind(order.version)
            .execute(&mut *transaction)
            .await?;

        self.books.opened(&written);
        let commit = !dice.one_in(ROLLED_BACK_ONE_IN);
        if commit {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        self.books.closed(&written, commit);
        if commit {
            self.remember(&order);
        }
        Ok(u32::try_from(written.len()).unwrap_or(u32::MAX))
    }

    /// An order of which this transaction holds the row: an open one, or a new one. Whoever
    /// changes an order locks its row first, so the events of one order are written one after
    /// the other.
    async fn take_order(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        dice: &mut Dice,
    ) -> Result<Order, sqlx::Error> {
        if let Some(id) = self.pick(dice) {
            let (status, items, version): (String, i32, i64) = sqlx::query_as(
                "select status, items, version from public.orders where id = $1 for update",
            )
            .bind(id)
            .fetch_one(&mut **transaction)
            .await?;
            let status = Status::named(&status);
            // Another writer may have finished it since it was picked. Then a new one, not a
            // second pick: who waits for a row while holding another can deadlock.
            if status != Status::Delivered {
                return Ok(Order {
                    id,
                    status,
                    items,
                    version,
                });
            }
        }
        let order = Order {
            id: Uuid::new_v4(),
            status: Status::Created,
            items: 0,
            version: 0,
        };
        sqlx::query("insert into public.orders (id, status, items, version) values ($1, $2, 0, 0)")
            .bind(order.id)
            .bind(order.status.name())
            .execute(&mut **transaction)
            .await?;
        Ok(order)
    }

    /// One of the open orders, or none: then it is time for a new one.
    fn pick(&self, dice: &mut Dice) -> Option<Uuid> {
        let open = self.open();
        open.get(dice.below(ORDERS_OPEN_MAX)).copied()
    }

    fn remember(&self, order: &Order) {
        let mut open = self.open();
        match open.iter().position(|id| *id == order.id) {
            Some(at) if order.status == Status::Delivered => {
                open.swap_remove(at);
            }
            None if order.status != Status::Delivered => open.push(order.id),
            _ => {}
        }
    }

    fn open(&self) -> MutexGuard<'_, Vec<Uuid>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Order {
    /// Takes the order one step on and names the event of it.
    fn step(&mut self, dice: &mut Dice) -> &'static str {
        self.version += 1;
        match self.status {
            Status::Created if self.version == 1 => "OrderCreated",
            Status::Created if self.items == 0 || (self.items < 5 && !dice.one_in(3)) => {
                self.items += 1;
                "ItemAdded"
            }
            Status::Created => {
                self.status = Status::Paid;
                "OrderPaid"
            }
            Status::Paid => {
                self.status = Status::Shipped;
                "OrderShipped"
            }
            Status::Shipped | Status::Delivered => {
                self.status = Status::Delivered;
                "OrderDelivered"
            }
        }
    }

    fn payload(&self, event_type: &str) -> String {
        let status = self.status.name();
        format!(
            r#"{{"order_id": "{}", "event": "{event_type}", "version": {}, "status": "{status}", "items": {}}}"#,
            self.id, self.version, self.items
        )
    }
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "created" => Self::Created,
            "paid" => Self::Paid,
            "shipped" => Self::Shipped,
            _ => Self::Delivered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_goes_from_created_to_delivered_and_counts_its_events() {
        let mut dice = Dice::new();
        for _ in 0..100 {
            let mut order = Order {
                id: Uuid::nil(),
                status: Status::Created,
                items: 0,
                version: 0,
            };
            let mut events = Vec::new();
            while order.status != Status::Delivered {
                events.push(order.step(&mut dice));
            }
            assert_eq!(events[..2], ["OrderCreated", "ItemAdded"]);
            let end = &events[events.len() - 3..];
            assert_eq!(end, ["OrderPaid", "OrderShipped", "OrderDelivered"]);
            assert_eq!(order.version, i64::try_from(events.len()).unwrap());
            assert!((1..=5).contains(&order.items));
        }
    }
}
