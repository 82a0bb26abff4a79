//! The customers: they order, look at once whether they see their order, and remember what they were told.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Failure;
use crate::chance::Dice;
use crate::orders::{Receipt, Wish};
use crate::projector::Summary;
use crate::web::ask;

/// Who orders, and what; each as often as it is here.
const CUSTOMERS: [&str; 8] = [
    "alice", "alice", "bob", "bob", "carol", "dave", "dave", "zoe",
];
const WISHES: [&str; 8] = [
    "mug", "mug", "notebook", "lamp", "poster", "pen", "pen", "unicorn",
];

/// How many order at once.
const AT_ONCE: u32 = 8;

/// How long whoever has ordered tries to hear that it was heard, though services die.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pause before asking somebody again who did not answer.
const PAUSE: Duration = Duration::from_millis(50);

/// The customers' way in.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Doors {
    /// host:port of the orders service
    #[arg(long, env = "SHOP_ORDERS", default_value = "127.0.0.1:8080")]
    pub(crate) orders: String,

    /// host:port of the projector
    #[arg(long, env = "SHOP_PROJECTOR", default_value = "127.0.0.1:8081")]
    pub(crate) projector: String,
}

/// An order as its customer knows it.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) id: Uuid,
    pub(crate) wish: Wish,
    /// Whether the orders service has said that it has it.
    pub(crate) accepted: bool,
    pub(crate) look: Look,
}

/// What the customer saw of the order, right after it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// The order.
    Seen,
    /// That the projection is late.
    Late,
    /// Nobody answered.
    Nobody,
    /// Something else, which must not be.
    Wrong(String),
}

/// Orders, `rate` a second, until `enough`. Returns what the customers know.
pub(crate) async fn order(
    doors: &Doors,
    rate: u32,
    enough: &CancellationToken,
) -> Result<Vec<Placed>, Failure> {
    let pace = Duration::from_secs(1) * AT_ONCE / rate.max(1);
    let mut customers = JoinSet::new();
    let doors = Arc::new(doors.clone());
    for number in 0..AT_ONCE {
        let (doors, enough) = (Arc::clone(&doors), enough.clone());
        customers.spawn(async move {
            let mut dice = Dice::new();
            let mut orders = Vec::new();
            let mut next = Instant::now() + pace * number / AT_ONCE;
            while enough
                .run_until_cancelled(sleep_until(next))
                .await
                .is_some()
            {
                orders.push(one(&doors, &mut dice).await);
                next = (next + pace).max(Instant::now());
            }
            orders
        });
    }
    let all = customers.join_all().await;
    Ok(all.into_iter().flatten().collect())
}

async fn one(doors: &Doors, dice: &mut Dice) -> Placed {
    let wish = Wish {
        customer: dice.one_of(&CUSTOMERS).to_owned(),
        sku: dice.one_of(&WISHES).to_owned(),
        quantity: 1 + i32::try_from(dice.below(3)).unwrap_or_default(),
    };
    let id = Uuid::new_v4();
    let path = format!("/orders/{id}");
    let body = serde_json::to_string(&wish).unwrap_or_default();
    let mut placed = Placed {
        id,
        wish,
        accepted: false,
        look: Look::Nobody,
    };
    // The id is the customer's, so asking twice orders once.
    let Some((_, receipt)) = patiently(&doors.orders, "PUT", &path, &body).await else {
        return placed;
    };
    let Ok(Receipt { seq }) = serde_json::from_str(&receipt) else {
        return placed;
    };
    placed.accepted = true;
    let path = format!("{path}?seq={seq}");
    placed.look = match patiently(&doors.projector, "GET", &path, "").await {
        None => Look::Nobody,
        Some((503, _)) => Look::Late,
        Some((200, body)) => match serde_json::from_str::<Summary>(&body) {
            Ok(seen) if is_of(&seen, &placed.wish) => Look::Seen,
            _ => Look::Wrong(body),
        },
        Some((status, body)) => Look::Wrong(format!("{status} {body}")),
    };
    placed
}

fn is_of(seen: &Summary, wish: &Wish) -> bool {
    seen.customer == wish.customer
        && seen.sku == wish.sku
        && seen.quantity == wish.quantity
        && ["placed", "confirmed", "cancelled"].contains(&seen.status.as_str())
}

/// Asks until somebody answers, and not with "something went wrong".
async fn patiently(host: &str, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match ask(host, method, path, body).await {
            Ok((500, _)) | Err(_) => sleep(PAUSE).await,
            Ok(answer) => return Some(answer),
        }
    }
    None
}
