//! The books of the whole shop, read from its four databases: what the checker holds against each other.

use std::collections::HashMap;

use sqlx::postgres::PgRow;
use sqlx::{Connection as _, FromRow, PgConnection, Row as _};
use uuid::Uuid;

use crate::Failure;
use crate::place::{Place, SERVICES};

/// An order, by the orders service.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) id: Uuid,
    pub(crate) customer: String,
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    pub(crate) cents: i64,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) version: i64,
}

/// An order, by the projector.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) order_id: Uuid,
    pub(crate) customer: Option<String>,
    pub(crate) sku: Option<String>,
    pub(crate) quantity: Option<i32>,
    pub(crate) cents: Option<i64>,
    pub(crate) status: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) version: Option<i64>,
    pub(crate) stock: Option<String>,
    pub(crate) payment: Option<String>,
    pub(crate) events: i32,
}

/// What there is of something, and what there was at first.
#[derive(Debug, Clone)]
pub(crate) struct Holding {
    pub(crate) name: String,
    pub(crate) at_first: i64,
    pub(crate) now: i64,
    /// Of it, what is neither here nor gone.
    pub(crate) reserved: i64,
}

/// Something that was done for an order.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    pub(crate) order_id: Uuid,
    pub(crate) kind: String,
    /// Whose wallet, or of which stock.
    pub(crate) of: String,
    /// Cents, or pieces.
    pub(crate) amount: i64,
}

/// Reads each member from the column of its name: what `derive(sqlx::FromRow)` does, without sqlx's macros.
macro_rules! from_columns {
    ($what:ident: $($member:ident)+) => {
        impl FromRow<'_, PgRow> for $what {
            fn from_row(row: &PgRow) -> sqlx::Result<Self> {
                Ok(Self {
                    $($member: row.try_get(stringify!($member))?),+
                })
            }
        }
    };
}

from_columns!(Order: id customer sku quantity cents status reason version);
from_columns!(Shown: order_id customer sku quantity cents status reason version stock payment events);
from_columns!(Holding: name at_first now reserved);
from_columns!(Deed: order_id kind of amount);

/// All of it, read one after the other: they agree when nothing moves.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) orders: HashMap<Uuid, Order>,
    pub(crate) shown: HashMap<Uuid, Shown>,
    pub(crate) totals: HashMap<String, (i64, i64)>,
    pub(crate) stock: Vec<Holding>,
    pub(crate) movements: Vec<Deed>,
    pub(crate) wallets: Vec<Holding>,
    pub(crate) payments: Vec<Deed>,
    /// How many events tell of an order, in all outboxes.
    pub(crate) told: HashMap<Uuid, i64>,
    /// Events that no relay has published.
    pub(crate) pending: i64,
    pub(crate) parked: i64,
    pub(crate) gaps: i64,
    pub(crate) late: i64,
    /// Copies that were passed over.
    pub(crate) repeats: i64,
    /// Half of the events, and 99 of 100, took so many milliseconds at most from writing to the read model.
    pub(crate) lag_p50_ms: Option<f64>,
    pub(crate) lag_p99_ms: Option<f64>,
}

impl Books {
    /// Reads them.
    pub(crate) async fn read(place: &Place) -> Result<Self, Failure> {
        let mut books = Self::default();
        for (service, _, writes) in SERVICES {
            let mut connection = PgConnection::connect(&place.url(service)).await?;
            match service {
                "orders" => books.read_orders(&mut connection).await?,
                "inventory" => books.read_stock(&mut connection).await?,
                "payments" => books.read_payments(&mut connection).await?,
                _ => books.read_summary(&mut connection).await?,
            }
            if writes {
                books.read_outbox(&mut connection).await?;
            }
            let (late, repeats): (i64, i64) = sqlx::query_as(
                "select count(*) filter (where what = 'late'), count(*) filter (where what = 'repeat') from noted",
            )
            .fetch_one(&mut connection)
            .await?;
            books.late += late;
            books.repeats += repeats;
            connection.close().await?;
        }
        Ok(books)
    }

    async fn read_orders(&mut self, orders: &mut PgConnection) -> Result<(), Failure> {
        let all: Vec<Order> = sqlx::query_as(
            "select id, customer, sku, quantity, cents, status, reason, version from orders",
        )
        .fetch_all(orders)
        .await?;
        self.orders = all.into_iter().map(|order| (order.id, order)).collect();
        Ok(())
    }

    async fn read_stock(&mut self, inventory: &mut PgConnection) -> Result<(), Failure> {
        self.stock = sqlx::query_as(
            "select s.sku as name, f.available::bigint as at_first, s.available::bigint as now,
                    s.reserved::bigint as reserved
               from stock s join stock_at_first f using (sku)",
        )
        .fetch_all(&mut *inventory)
        .await?;
        self.movements = sqlx::query_as(
            "select order_id, kind, sku as of, quantity::bigint as amount from movements",
        )
        .fetch_all(inventory)
        .await?;
        Ok(())
    }

    async fn read_payments(&mut self, payments: &mut PgConnection) -> Result<(), Failure> {
        self.wallets = sqlx::query_as(
            "select w.customer as name, f.cents as at_first, w.cents as now, 0::bigint as reserved
               from wallets w join wallets_at_first f using (customer)",
        )
        .fetch_all(&mut *payments)
        .await?;
        self.payments = sqlx::query_as(
            "select order_id, status as kind, customer as of, cents as amount from payments",
        )
        .fetch_all(payments)
        .await?;
        Ok(())
    }

    async fn read_outbox(&mut self, service: &mut PgConnection) -> Result<(), Failure> {
        let told: Vec<(Uuid, i64)> =
            sqlx::query_as("select aggregate_id, count(*) from outbox group by aggregate_id")
                .fetch_all(&mut *service)
                .await?;
        for (order, events) in told {
            *self.told.entry(order).or_default() += events;
        }
        let (pending, parked): (i64, i64) = sqlx::query_as(
            "select (select count(*) from outbox where published_at is null),
                    (select count(*) from outbox_relay.parked)",
        )
        .fetch_one(service)
        .await?;
        self.pending += pending;
        self.parked += parked;
        Ok(())
    }

    async fn read_summary(&mut self, projector: &mut PgConnection) -> Result<(), Failure> {
        let all: Vec<Shown> = sqlx::query_as(
            "select order_id, customer, sku, quantity, cents, status, reason, version, stock, payment, events
               from order_summary",
        )
        .fetch_all(&mut *projector)
        .await?;
        self.shown = all.into_iter().map(|one| (one.order_id, one)).collect();
        let totals: Vec<(String, i64, i64)> =
            sqlx::query_as("select customer, orders::bigint, cents from customer_totals")
                .fetch_all(&mut *projector)
                .await?;
        let totals = totals.into_iter();
        self.totals = totals
            .map(|(customer, orders, cents)| (customer, (orders, cents)))
            .collect();
        self.gaps = sqlx::query_scalar("select count(*) from gaps")
            .fetch_one(&mut *projector)
            .await?;
        (self.lag_p50_ms, self.lag_p99_ms) = sqlx::query_as(
            "select percentile_disc(0.5) within group (order by ms), percentile_disc(0.99) within group (order by ms)
               from lags",
        )
        .fetch_one(projector)
        .await?;
        Ok(())
    }
}
