//! An order and its event, or neither:
//! `DATABASE_URL=… cargo run --example sqlx -- 0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 2`

use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

/// Places an order of mugs; the event's id.
pub(crate) async fn place_order(
    connection: &mut PgConnection,
    id: Uuid,
    quantity: i32,
) -> Result<Uuid, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("insert into orders (id, sku, quantity) values ($1, 'mug', $2)")
        .bind(id)
        .bind(quantity)
        .execute(&mut *transaction)
        .await?;
    let payload = serde_json::json!({ "sku": "mug", "quantity": quantity });
    let event = sqlx::query_scalar("select outbox_relay.emit('Order', $1, 'OrderPlaced', $2)")
        .bind(id)
        .bind(payload.to_string())
        .fetch_one(&mut *transaction)
        .await?;
    // fails when there are not as many: dropping the transaction takes the order and its event with it
    sqlx::query("update stock set available = available - $1 where sku = 'mug'")
        .bind(quantity)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(event)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let id = arguments.next().ok_or("an order's id")?.parse()?;
    let quantity = arguments.next().ok_or("a quantity")?.parse()?;
    let mut connection = PgConnection::connect(&std::env::var("DATABASE_URL")?).await?;
    place_order(&mut connection, id, quantity).await?;
    Ok(())
}
