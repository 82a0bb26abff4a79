//! The projector: makes `order_summary` of what the three services tell, and answers from it.
//!
//! `GET /orders/{id}?seq=TOKEN` waits, for a moment, until the projection has passed the write that the token is of:
//! whoever has just placed an order sees it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use outbox_relay::consumer::{Consumer, Step, Token, Waited, step};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::Failure;
use crate::events::{OrderCancelled, OrderConfirmed, OrderPlaced};
use crate::inbox::{Service, follow};
use crate::mistakes::{self, Mistake};
use crate::outbox::Draft;
use crate::settings::Settings;
use crate::stream::Event;
use crate::web;

/// How long a reader is kept waiting for what was just written.
const READ_BUDGET: Duration = Duration::from_secs(2);

/// An order as the read model has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) customer: String,
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    pub(crate) status: String,
}

/// Which write the reader knows of.
#[derive(Debug, Deserialize)]
struct After {
    seq: Option<i64>,
}

struct Projector;

impl Service for Projector {
    const CONSUMER: Consumer = Consumer::new("order_summary");
    const TOPICS: &'static [&'static str] = &["order", "stock", "payment"];

    async fn act(
        &self,
        transaction: &mut PgConnection,
        event: &Event,
    ) -> Result<Option<Draft>, Failure> {
        let order = event.order()?;
        match event.event_type.as_str() {
            "OrderPlaced" => placed(transaction, order, &event.read()?).await?,
            "OrderConfirmed" => confirmed(transaction, order, &event.read()?).await?,
            "OrderCancelled" => cancelled(transaction, order, &event.read()?).await?,
            "StockReserved" => elsewhere(transaction, order, Some("reserved"), None).await?,
            "StockRefused" => elsewhere(transaction, order, Some("refused"), None).await?,
            "StockReleased" => elsewhere(transaction, order, Some("released"), None).await?,
            "PaymentTaken" => elsewhere(transaction, order, None, Some("taken")).await?,
            "PaymentRefused" => elsewhere(transaction, order, None, Some("refused")).await?,
            unknown => return Err(format!("nobody told this projector of {unknown}").into()),
        }
        sqlx::query(
            "insert into lags (ms) select 1000 * extract(epoch from clock_timestamp() - $1::text::timestamptz)",
        )
        .bind(&event.created_at)
        .execute(transaction)
        .await?;
        Ok(None)
    }
}

/// Runs the projector.
pub(crate) async fn run(settings: Settings) -> Result<(), Failure> {
    let pool = settings.pool().await?;
    let api = Router::new()
        .route("/orders/{id}", get(show))
        .with_state(Arc::new((pool.clone(), settings.clone())));
    tokio::select! {
        served = web::serve(&settings.listen, api) => served,
        followed = follow(&Projector, &pool, &settings) => followed,
    }
}

async fn show(
    State(state): State<Arc<(PgPool, Settings)>>,
    Path(id): Path<String>,
    Query(after): Query<After>,
) -> Result<Json<Summary>, (StatusCode, String)> {
    let (pool, settings) = &*state;
    let id = web::order(&id)?;
    if let Some(seq) = after.seq
        && !mistakes::makes(Mistake::DoNotWait)
    {
        let token = Token::Seq {
            topic: settings.topic("order"),
            key: id.to_string(),
            seq,
        };
        let waited = Projector::CONSUMER.wait_for(pool, &token, READ_BUDGET);
        if waited.await.map_err(web::failed)? == Waited::TimedOut {
            let late = "the projection is not there yet".to_owned();
            return Err((StatusCode::SERVICE_UNAVAILABLE, late));
        }
    }
    let found = sqlx::query_as(
        "select customer, sku, quantity, status from order_summary where order_id = $1 and version is not null",
    )
    .bind(id)
    .fetch_optional(pool)
    .await
    .map_err(web::failed)?;
    let Some((customer, sku, quantity, status)) = found else {
        return Err((StatusCode::NOT_FOUND, "no such order".to_owned()));
    };
    Ok(Json(Summary {
        customer,
        sku,
        quantity,
        status,
    }))
}

async fn placed(
    transaction: &mut PgConnection,
    order: Uuid,
    placed: &OrderPlaced,
) -> Result<(), Failure> {
    moves(transaction, order, placed.version).await?;
    // the other topics may have been quicker, so the row may be there
    sqlx::query(
        "insert into order_summary as s (order_id, customer, sku, quantity, cents, status, version, events)
         values ($1, $2, $3, $4, $5, 'placed', $6, 1)
         on conflict (order_id) do update
            set customer = excluded.customer, sku = excluded.sku, quantity = excluded.quantity,
                cents = excluded.cents, status = excluded.status, version = excluded.version,
                events = s.events + 1",
    )
    .bind(order)
    .bind(&placed.customer)
    .bind(&placed.sku)
    .bind(placed.quantity)
    .bind(placed.cents)
    .bind(placed.version)
    .execute(transaction)
    .await?;
    Ok(())
}

async fn confirmed(
    transaction: &mut PgConnection,
    order: Uuid,
    confirmed: &OrderConfirmed,
) -> Result<(), Failure> {
    moves(transaction, order, confirmed.version).await?;
    ends(transaction, order, "confirmed", None, confirmed.version).await?;
    sqlx::query(
        "insert into customer_totals as t (customer, orders, cents) values ($1, 1, $2)
         on conflict (customer) do update set orders = t.orders + 1, cents = t.cents + excluded.cents",
    )
    .bind(&confirmed.customer)
    .bind(confirmed.cents)
    .execute(transaction)
    .await?;
    Ok(())
}

async fn cancelled(
    transaction: &mut PgConnection,
    order: Uuid,
    cancelled: &OrderCancelled,
) -> Result<(), Failure> {
    let OrderCancelled { version, reason } = cancelled;
    moves(transaction, order, *version).await?;
    ends(transaction, order, "cancelled", Some(reason), *version).await
}

/// Holds the version of an event against what is here. A gap is written down and passed: this read model is better
/// with a hole than without the rest, and somebody looks.
async fn moves(transaction: &mut PgConnection, order: Uuid, version: i64) -> Result<(), Failure> {
    let here: Option<Option<i64>> =
        sqlx::query_scalar("select version from order_summary where order_id = $1 for update")
            .bind(order)
            .fetch_optional(&mut *transaction)
            .await?;
    if let Step::Gap { expected } = step(here.flatten(), version) {
        sqlx::query("insert into gaps (order_id, expected, arrived) values ($1, $2, $3)")
            .bind(order)
            .bind(expected)
            .bind(version)
            .execute(transaction)
            .await?;
    }
    Ok(())
}

async fn ends(
    transaction: &mut PgConnection,
    order: Uuid,
    status: &str,
    reason: Option<&str>,
    version: i64,
) -> Result<(), Failure> {
    sqlx::query(
        "insert into order_summary as s (order_id, status, reason, version, events) values ($1, $2, $3, $4, 1)
         on conflict (order_id) do update
            set status = excluded.status, reason = excluded.reason, version = excluded.version,
                events = s.events + 1",
    )
    .bind(order)
    .bind(status)
    .bind(reason)
    .bind(version)
    .execute(transaction)
    .await?;
    Ok(())
}

/// What became of an order elsewhere: the other column is left as it is.
async fn elsewhere(
    transaction: &mut PgConnection,
    order: Uuid,
    stock: Option<&str>,
    payment: Option<&str>,
) -> Result<(), Failure> {
    sqlx::query(
        "insert into order_summary as s (order_id, stock, payment, events) values ($1, $2, $3, 1)
         on conflict (order_id) do update
         set stock = coalesce(excluded.stock, s.stock),
             payment = coalesce(excluded.payment, s.payment),
             events = s.events + 1",
    )
    .bind(order)
    .bind(stock)
    .bind(payment)
    .execute(transaction)
    .await?;
    Ok(())
}
