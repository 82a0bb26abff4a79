//! An outbox row in the relay's own words. It knows neither SQL nor Kafka.

use bytes::Bytes;
use bytestring::ByteString;
use uuid::Uuid;

use crate::record::Record;

/// One event a service committed to its outbox. Its texts and bytes may be parts of a buffer that it shares with
/// others of its batch: thousands of them are made and dropped together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Place in the outbox: events of one aggregate are published in ascending `seq`.
    pub seq: i64,
    /// The writer's own id of the event; consumers use it to recognise a repeat.
    pub id: Uuid,
    /// The kind of aggregate, `Order` for instance. Routing reads it.
    pub aggregate_type: ByteString,
    /// Which aggregate: the Kafka key, and what order is kept for. `None` cannot be published.
    pub aggregate_id: Option<ByteString>,
    /// What happened, `OrderCreated` for instance.
    pub event_type: ByteString,
    /// The bytes of the record's value, exactly as Postgres gave them; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The row's own headers as the JSON text Postgres printed, where the layout has them.
    pub headers: Option<ByteString>,
    /// The row's own topic, where the layout has one. It overrides the template.
    pub topic: Option<ByteString>,
    /// When the row was inserted, as its `created_at` has it: microseconds since 1970. `None` where
    /// nobody can tell, and for a retried row. Only for measuring: nothing is decided by it.
    pub created_at_us: Option<i64>,
    /// The record as it was parked. A retried row is published as it stood, whatever the routing
    /// says today; a row that never got as far as a record has none and is routed again.
    pub parked: Option<Box<Record<'static>>>,
}

impl Event {
    /// What the order of this event is kept for. A row without an aggregate id never reaches
    /// Kafka, so the empty string stands for it, as it does in the lane's hash.
    #[must_use]
    pub fn key(&self) -> &str {
        self.aggregate_id.as_deref().unwrap_or_default()
    }

    /// Bytes this event holds in memory, near enough for a limit.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len)
            + self.headers.as_ref().map_or(0, |it| it.len())
            + self.aggregate_type.len()
            + self.event_type.len()
            + self.key().len()
            + self.topic.as_ref().map_or(0, |it| it.len())
            + self.parked.as_ref().map_or(0, |record| record.size_bytes())
    }
}
