//! The orders service: takes orders, and confirms or cancels them as the others decide.
//!
//! `PUT /orders/{id}`, the id being the customer's choice, so that who got no answer can ask again. The answer has
//! the token by which a reader can wait for the order.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::put;
use axum::{Json, Router};
use outbox_relay::consumer::Consumer;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::Failure;
use crate::events::{OrderCancelled, OrderConfirmed, OrderPlaced};
use crate::inbox::{Service, follow};
use crate::outbox::Draft;
use crate::settings::Settings;
use crate::stream::Event;
use crate::web;

/// What a customer asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Wish {
    pub(crate) customer: String,
    pub(crate) sku: String,
    pub(crate) quantity: i32,
}

/// What a customer is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// The token: the `seq` of the event that tells of the order.
    pub(crate) seq: i64,
}

struct Orders;

impl Service for Orders {
    const CONSUMER: Consumer = Consumer::new("orders");
    const TOPICS: &'static [&'static str] = &["stock", "payment"];

    async fn act(
        &self,
        transaction: &mut PgConnection,
        event: &Event,
    ) -> Result<Option<Draft>, Failure> {
        match event.event_type.as_str() {
            "PaymentTaken" => confirm(transaction, event.order()?).await.map(Some),
            "StockRefused" => cancel(transaction, event.order()?, "out of stock")
                .await
                .map(Some),
            // a refused payment has the stock released first
            "StockReleased" => cancel(transaction, event.order()?, "payment refused")
                .await
                .map(Some),
            _ => Ok(None),
        }
    }
}

/// Runs the service.
pub(crate) async fn run(settings: Settings) -> Result<(), Failure> {
    let pool = settings.pool().await?;
    let api = Router::new()
        .route("/orders/{id}", put(place))
        .with_state(Arc::new(pool.clone()));
    tokio::select! {
        served = web::serve(&settings.listen, api) => served,
        followed = follow(&Orders, &pool, &settings) => followed,
    }
}

async fn place(
    State(pool): State<Arc<PgPool>>,
    Path(id): Path<String>,
    Json(wish): Json<Wish>,
) -> Result<Json<Receipt>, (StatusCode, String)> {
    let id = web::order(&id)?;
    let placed = accept(&pool, id, &wish).await;
    placed.map(Json).map_err(web::failed)
}

/// The order and its event, or neither. Asked again for the same order, it answers again.
async fn accept(pool: &PgPool, id: Uuid, wish: &Wish) -> Result<Receipt, Failure> {
    let mut transaction = pool.begin().await?;
    let cents: Option<i64> = sqlx::query_scalar(
        "insert into orders (id, customer, sku, quantity, cents)
         select $1, $2, sku, $4, cents * $4 from catalogue where sku = $3
         on conflict (id) do nothing
         returning cents",
    )
    .bind(id)
    .bind(&wish.customer)
    .bind(&wish.sku)
    .bind(wish.quantity)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(cents) = cents else {
        let seq = sqlx::query_scalar("select placed_seq from orders where id = $1")
            .bind(id)
            .fetch_optional(&mut *transaction)
            .await?;
        let seq = seq.ok_or("nothing of that name is sold here")?;
        return Ok(Receipt { seq });
    };
    let placed = OrderPlaced {
        version: 1,
        customer: wish.customer.clone(),
        sku: wish.sku.clone(),
        quantity: wish.quantity,
        cents,
    };
    let event = Draft::new("Order", id, "OrderPlaced", &placed)?;
    let seq = event.write(&mut transaction).await?;
    sqlx::query("update orders set placed_seq = $2 where id = $1")
        .bind(id)
        .bind(seq)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Receipt { seq })
}

async fn confirm(transaction: &mut PgConnection, id: Uuid) -> Result<Draft, Failure> {
    // the row is locked from here on: the events of an order are written one after the other
    let (version, customer, cents) = sqlx::query_as(
        "update orders set status = 'confirmed', version = version + 1 where id = $1
         returning version, customer, cents",
    )
    .bind(id)
    .fetch_one(transaction)
    .await?;
    let confirmed = OrderConfirmed {
        version,
        customer,
        cents,
    };
    Draft::new("Order", id, "OrderConfirmed", &confirmed)
}

async fn cancel(transaction: &mut PgConnection, id: Uuid, reason: &str) -> Result<Draft, Failure> {
    let version = sqlx::query_scalar(
        "update orders set status = 'cancelled', reason = $2, version = version + 1 where id = $1
         returning version",
    )
    .bind(id)
    .bind(reason)
    .fetch_one(transaction)
    .await?;
    let cancelled = OrderCancelled {
        version,
        reason: reason.to_owned(),
    };
    Draft::new("Order", id, "OrderCancelled", &cancelled)
}
