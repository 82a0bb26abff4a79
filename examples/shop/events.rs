//! What the services tell each other: the contract between them. The key of each record is the order's id, the
//! header `event_type` the name of the struct, and the topic one per kind of aggregate.

use serde::{Deserialize, Serialize};

/// Of the orders service: `order-events`. `version` counts the events of an order, from 1: whoever follows can tell
/// a gap.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) version: i64,
    pub(crate) customer: String,
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    /// For all of them.
    pub(crate) cents: i64,
}

/// It was paid: the happy end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderConfirmed {
    pub(crate) version: i64,
    pub(crate) customer: String,
    pub(crate) cents: i64,
}

/// The other end, and why: `out of stock` or `payment refused`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderCancelled {
    pub(crate) version: i64,
    pub(crate) reason: String,
}

/// Of the inventory service: `stock-events`. It hands on what the payment needs, so that nobody has to ask.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StockReserved {
    pub(crate) customer: String,
    pub(crate) cents: i64,
}

/// There are not as many.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StockRefused {
    pub(crate) sku: String,
}

/// A reservation was taken back, because the payment was refused.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StockReleased {
    pub(crate) sku: String,
}

/// Of the payments service: `payment-events`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PaymentTaken {
    pub(crate) cents: i64,
}

/// The customer has not as much.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PaymentRefused {
    pub(crate) cents: i64,
}
