//! The inventory service: reserves stock for an order, and gives it away or takes it back when the payment has
//! been decided on.

use outbox_relay::consumer::Consumer;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Failure;
use crate::events::{OrderPlaced, StockRefused, StockReleased, StockReserved};
use crate::inbox::{Service, follow};
use crate::outbox::Draft;
use crate::settings::Settings;
use crate::stream::Event;

struct Inventory;

impl Service for Inventory {
    const CONSUMER: Consumer = Consumer::new("inventory");
    const TOPICS: &'static [&'static str] = &["order", "payment"];

    async fn act(
        &self,
        transaction: &mut PgConnection,
        event: &Event,
    ) -> Result<Option<Draft>, Failure> {
        let order = event.order()?;
        match event.event_type.as_str() {
            "OrderPlaced" => reserve(transaction, order, &event.read()?).await.map(Some),
            "PaymentTaken" => sell(transaction, order).await.map(|()| None),
            "PaymentRefused" => release(transaction, order).await.map(Some),
            _ => Ok(None),
        }
    }
}

/// Runs the service.
pub(crate) async fn run(settings: Settings) -> Result<(), Failure> {
    let pool = settings.pool().await?;
    follow(&Inventory, &pool, &settings).await
}

async fn reserve(
    transaction: &mut PgConnection,
    order: Uuid,
    placed: &OrderPlaced,
) -> Result<Draft, Failure> {
    let reserved = sqlx::query(
        "update stock set available = available - $2, reserved = reserved + $2
          where sku = $1 and available >= $2",
    )
    .bind(&placed.sku)
    .bind(placed.quantity)
    .execute(&mut *transaction)
    .await?;
    let enough = reserved.rows_affected() == 1;
    let kind = if enough { "reserved" } else { "refused" };
    let what = (placed.sku.clone(), placed.quantity);
    movement(transaction, order, kind, &what).await?;
    if enough {
        let reserved = StockReserved {
            customer: placed.customer.clone(),
            cents: placed.cents,
        };
        Draft::new("Stock", order, "StockReserved", &reserved)
    } else {
        let refused = StockRefused {
            sku: placed.sku.clone(),
        };
        Draft::new("Stock", order, "StockRefused", &refused)
    }
}

/// The reservation becomes a sale.
async fn sell(transaction: &mut PgConnection, order: Uuid) -> Result<(), Failure> {
    let what = reservation(transaction, order).await?;
    sqlx::query("update stock set reserved = reserved - $2 where sku = $1")
        .bind(&what.0)
        .bind(what.1)
        .execute(&mut *transaction)
        .await?;
    movement(transaction, order, "sold", &what).await
}

/// The compensation: what was reserved is there again for others.
async fn release(transaction: &mut PgConnection, order: Uuid) -> Result<Draft, Failure> {
    let what = reservation(transaction, order).await?;
    sqlx::query(
        "update stock set available = available + $2, reserved = reserved - $2 where sku = $1",
    )
    .bind(&what.0)
    .bind(what.1)
    .execute(&mut *transaction)
    .await?;
    movement(transaction, order, "released", &what).await?;
    Draft::new(
        "Stock",
        order,
        "StockReleased",
        &StockReleased { sku: what.0 },
    )
}

/// What is reserved for an order, and how much of it.
async fn reservation(
    transaction: &mut PgConnection,
    order: Uuid,
) -> Result<(String, i32), Failure> {
    let found = sqlx::query_as(
        "select sku, quantity from movements where order_id = $1 and kind = 'reserved' limit 1",
    )
    .bind(order)
    .fetch_one(transaction)
    .await?;
    Ok(found)
}

async fn movement(
    transaction: &mut PgConnection,
    order: Uuid,
    kind: &str,
    (sku, quantity): &(String, i32),
) -> Result<(), Failure> {
    sqlx::query("insert into movements (order_id, kind, sku, quantity) values ($1, $2, $3, $4)")
        .bind(order)
        .bind(kind)
        .bind(sku)
        .bind(quantity)
        .execute(transaction)
        .await?;
    Ok(())
}
