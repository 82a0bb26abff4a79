//! The payments service: takes the money for what is reserved, if the customer has as much.

use outbox_relay::consumer::Consumer;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Failure;
use crate::events::{PaymentRefused, PaymentTaken, StockReserved};
use crate::inbox::{Service, follow};
use crate::outbox::Draft;
use crate::settings::Settings;
use crate::stream::Event;

struct Payments;

impl Service for Payments {
    const CONSUMER: Consumer = Consumer::new("payments");
    const TOPICS: &'static [&'static str] = &["stock"];

    async fn act(
        &self,
        transaction: &mut PgConnection,
        event: &Event,
    ) -> Result<Option<Draft>, Failure> {
        match event.event_type.as_str() {
            "StockReserved" => charge(transaction, event.order()?, &event.read()?)
                .await
                .map(Some),
            _ => Ok(None),
        }
    }
}

/// Runs the service.
pub(crate) async fn run(settings: Settings) -> Result<(), Failure> {
    let pool = settings.pool().await?;
    follow(&Payments, &pool, &settings).await
}

async fn charge(
    transaction: &mut PgConnection,
    order: Uuid,
    reserved: &StockReserved,
) -> Result<Draft, Failure> {
    let StockReserved { customer, cents } = reserved;
    let taken =
        sqlx::query("update wallets set cents = cents - $2 where customer = $1 and cents >= $2")
            .bind(customer)
            .bind(cents)
            .execute(&mut *transaction)
            .await?;
    let taken = taken.rows_affected() == 1;
    sqlx::query("insert into payments (order_id, customer, cents, status) values ($1, $2, $3, $4)")
        .bind(order)
        .bind(customer)
        .bind(cents)
        .bind(if taken { "taken" } else { "refused" })
        .execute(transaction)
        .await?;
    let cents = *cents;
    if taken {
        Draft::new("Payment", order, "PaymentTaken", &PaymentTaken { cents })
    } else {
        Draft::new(
            "Payment",
            order,
            "PaymentRefused",
            &PaymentRefused { cents },
        )
    }
}
