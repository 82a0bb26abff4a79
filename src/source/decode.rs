//! Row → event. The bytes of a payload are taken as they came, never parsed.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::{BoxDynError, UnexpectedNullError};
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgRow, PgTypeInfo, PgValueRef};
use sqlx::{Postgres, Row, Type, ValueRef};
use uuid::Uuid;

use super::error::{Cause, Error};
use crate::event::Event;
use crate::record::{Header, Headers, Record};

/// The types `tid` and `tid[]`, which are the same in every database (`src/include/catalog/pg_type.dat`).
const TID: u32 = 27;
const TIDS: Oid = Oid(1010);

/// Where a row stands in its table. It holds while the row is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The table or partition.
    pub(super) table: u32,
    /// The page, and the line on it.
    pub(super) page: u32,
    pub(super) line: u16,
}

impl Place {
    /// As Postgres writes a `tid`.
    pub(super) fn tid(self) -> String {
        format!("({},{})", self.page, self.line)
    }
}

/// Places of one table: an argument of the type `tid[]`. In the binary format, since thousands of them are sent
/// with each batch.
#[derive(Debug, Default)]
pub(super) struct Places {
    count: u32,
    elements: Vec<u8>,
}

impl Places {
    pub(super) fn push(&mut self, place: Place) {
        self.count += 1;
        self.elements.extend_from_slice(&6_u32.to_be_bytes());
        self.elements.extend_from_slice(&place.page.to_be_bytes());
        self.elements.extend_from_slice(&place.line.to_be_bytes());
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

impl Type<Postgres> for Places {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIDS)
    }
}

/// An array of one dimension as `array_recv` reads it (`src/backend/utils/adt/arrayfuncs.c`): the number of
/// dimensions, no nulls, the type of the elements, how many, the first index, and each with its length.
impl Encode<'_, Postgres> for Places {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        for head in [1, 0, TID, self.count, 1] {
            buffer.extend_from_slice(&head.to_be_bytes());
        }
        buffer.extend_from_slice(&self.elements);
        Ok(IsNull::No)
    }
}

/// What the claim says of a row beside its event.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClaimedRow {
    pub(super) lane: i32,
    pub(super) place: Place,
    /// Whether any aggregate of the outbox waits behind a parked row.
    pub(super) holding: bool,
}

/// Where the texts and bytes of a claim's rows are put, one behind another in large pieces: to allocate each by
/// itself, and to free it, was a fifth of what the relay did for an event (`perf record` in a drain).
#[derive(Debug, Default)]
pub(super) struct Buffer {
    piece: Piece,
    /// What the last row had, which the next one mostly has as well.
    aggregate_type: ByteString,
    event_type: ByteString,
}

#[derive(Debug, Default)]
struct Piece(BytesMut);

/// Bytes that are asked for at once.
const PIECE_BYTES: usize = 64 * 1024;
/// What is larger has an allocation of its own: less of a piece is left over.
const PART_BYTES_MAX: usize = 8 * 1024;

impl Piece {
    fn bytes(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > PART_BYTES_MAX {
            return Bytes::copy_from_slice(bytes);
        }
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(PIECE_BYTES);
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }

    /// Bytes of any type: text and bytea look alike in the binary format.
    fn value(&mut self, value: PgValueRef<'_>) -> Result<Option<Bytes>, sqlx::Error> {
        if value.is_null() {
            return Ok(None);
        }
        let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
        Ok(Some(self.bytes(bytes)))
    }

    fn text(&mut self, value: PgValueRef<'_>) -> Result<Option<ByteString>, sqlx::Error> {
        let text = self.value(value)?.map(ByteString::try_from).transpose();
        text.map_err(|error| sqlx::Error::Decode(error.into()))
    }

    /// A text that must be there. It is `last` if it says the same, which it is from then on.
    fn like(
        &mut self,
        last: &mut ByteString,
        value: PgValueRef<'_>,
    ) -> Result<ByteString, sqlx::Error> {
        let same = !value.is_null() && value.as_bytes().is_ok_and(|it| it == last.as_bytes());
        if !same {
            let text = self.text(value)?;
            *last = text.ok_or_else(|| sqlx::Error::Decode(UnexpectedNullError.into()))?;
        }
        Ok(last.clone())
    }
}

/// Reads a row of the claim, by way of its `buffer`; the order of the columns is `Statements::claim`'s.
///
/// # Errors
/// A column that is not what the layout says.
pub(super) fn claimed(
    row: &PgRow,
    buffer: &mut Buffer,
    outbox: &str,
) -> Result<(ClaimedRow, Event), Error> {
    read_claimed(row, buffer).map_err(|error| Error::Row {
        outbox: outbox.to_owned(),
        cause: error.into(),
    })
}

fn read_claimed(row: &PgRow, buffer: &mut Buffer) -> Result<(ClaimedRow, Event), sqlx::Error> {
    let Buffer {
        piece,
        aggregate_type,
        event_type,
    } = buffer;
    let event = Event {
        seq: row.try_get_unchecked(1)?,
        id: row.try_get_unchecked::<Uuid, _>(4)?,
        aggregate_type: (piece.like(aggregate_type, row.try_get_raw(5)?))
            .map_err(of("aggregate_type"))?,
        aggregate_id: (piece.text(row.try_get_raw(6)?)).map_err(of("aggregate_id"))?,
        event_type: (piece.like(event_type, row.try_get_raw(7)?)).map_err(of("event_type"))?,
        payload: piece.value(row.try_get_raw(8)?)?,
        headers: (piece.text(row.try_get_raw(9)?)).map_err(of("headers"))?,
        topic: (piece.text(row.try_get_raw(10)?)).map_err(of("topic"))?,
        created_at_us: time(row.try_get_raw(11)?)?,
        parked: None,
    };
    let table = row.try_get_unchecked::<Oid, _>(2)?.0;
    let place = place(table, row.try_get_raw(3)?)?;
    let row = ClaimedRow {
        lane: row.try_get_unchecked(0)?,
        place,
        holding: row.try_get_unchecked(12)?,
    };
    Ok((row, event))
}

/// Names the column in an error of what is in it, by what the layout takes it for.
fn of(column: &str) -> impl Fn(sqlx::Error) -> sqlx::Error {
    move |error| match error {
        sqlx::Error::Decode(source) => sqlx::Error::ColumnDecode {
            index: column.to_owned(),
            source,
        },
        error => error,
    }
}

/// A `tid` on the wire is a page number and a line number, big-endian
/// (`src/backend/utils/adt/tid.c`, `tidsend`).
fn place(table: u32, tid: PgValueRef<'_>) -> Result<Place, sqlx::Error> {
    match tid.as_bytes().map_err(sqlx::Error::Decode)? {
        [a, b, c, d, e, f] => Ok(Place {
            table,
            page: u32::from_be_bytes([*a, *b, *c, *d]),
            line: u16::from_be_bytes([*e, *f]),
        }),
        other => Err(sqlx::Error::Decode(Box::from(Cause::new(format!(
            "a tid of {} bytes",
            other.len()
        ))))),
    }
}

/// A time on the wire is microseconds since 2000, big-endian; the ends of the range are the
/// infinities (`src/include/datatype/timestamp.h`). One without a zone is taken for UTC.
fn time(value: PgValueRef<'_>) -> Result<Option<i64>, sqlx::Error> {
    const Y2000_US: i64 = 946_684_800_000_000;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let since = Some(i64::from_be_bytes(bytes)).filter(|since| *since != i64::MIN);
    Ok(since.and_then(|since| since.checked_add(Y2000_US)))
}

/// A parked row that may be published again.
#[derive(Debug)]
pub(super) struct ParkedRow {
    pub(super) id: i64,
    /// Whether somebody chose to give it up.
    pub(super) skip: bool,
    pub(super) event: Event,
}

/// Reads a row of `Statements::parked_claim`.
///
/// # Errors
/// A column that is not what the relay wrote: somebody changed it by hand.
pub(super) fn parked(row: &PgRow, outbox: &str) -> Result<ParkedRow, Error> {
    read_parked(row).map_err(|error| Error::Row {
        outbox: outbox.to_owned(),
        cause: error.into(),
    })
}

fn read_parked(row: &PgRow) -> Result<ParkedRow, sqlx::Error> {
    let mut event = Event {
        seq: row.try_get(2)?,
        id: row.try_get(3)?,
        aggregate_type: text(row, 4)?,
        aggregate_id: text_or_null(row, 5)?,
        event_type: text(row, 6)?,
        payload: row.try_get::<Option<Vec<u8>>, _>(7)?.map(Bytes::from),
        headers: text_or_null(row, 8)?,
        topic: text_or_null(row, 9)?,
        // what it waited for is somebody's decision, not a lag
        created_at_us: None,
        parked: None,
    };
    let topic: Option<String> = row.try_get(10)?;
    let headers: Option<String> = row.try_get(11)?;
    if let (Some(topic), Some(headers)) = (topic, headers) {
        let headers = headers_from_json(&headers).map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
        let (key, value) = match row.try_get(12)? {
            true => (row.try_get(13)?, row.try_get(14)?),
            false => (
                event.key().as_bytes().to_vec(),
                event.payload.take().map(Vec::from),
            ),
        };
        event.payload = None;
        event.parked = Some(Box::new(Record {
            topic: topic.into(),
            key: key.into(),
            value: value.map(Into::into),
            headers,
        }));
    }
    Ok(ParkedRow {
        id: row.try_get(0)?,
        skip: row.try_get::<&str, _>(1)? == "skip",
        event,
    })
}

/// The text in column `i` of `row`.
pub(super) fn text(row: &PgRow, i: usize) -> Result<ByteString, sqlx::Error> {
    row.try_get::<String, _>(i).map(ByteString::from)
}

/// The same of one that may be null.
pub(super) fn text_or_null(row: &PgRow, i: usize) -> Result<Option<ByteString>, sqlx::Error> {
    Ok(row.try_get::<Option<String>, _>(i)?.map(ByteString::from))
}

/// A record's headers as they are parked: `[["name","value"],["other",null]]`. Every layout's
/// headers are text.
pub(super) fn headers_to_json(headers: &Headers<'_>) -> String {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let pairs: Vec<(Cow<'_, str>, Option<String>)> = headers
        .iter()
        .map(|header| (header.name, header.value.as_deref().map(text)))
        .collect();
    serde_json::to_string(&pairs).expect("text pairs are valid JSON")
}

pub(super) fn headers_from_json(json: &str) -> Result<Headers<'static>, serde_json::Error> {
    let pairs: Vec<(String, Option<String>)> = serde_json::from_str(json)?;
    let header = |(name, value): (String, Option<String>)| Header {
        name: name.into(),
        value: value.map(|value| value.into_bytes().into()),
    };
    Ok(pairs.into_iter().map(header).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_put_into_pieces_stays_as_it_was() {
        let mut piece = Piece::default();
        let sizes = [
            0,
            1,
            36,
            400,
            PART_BYTES_MAX,
            PART_BYTES_MAX + 1,
            PIECE_BYTES,
            3,
        ];
        let filled = |n: usize| vec![u8::try_from(n % 251).unwrap(); sizes[n % sizes.len()]];
        let put: Vec<Bytes> = (0..500).map(|n| piece.bytes(&filled(n))).collect();
        for (n, put) in put.iter().enumerate() {
            assert_eq!(*put, filled(n), "{n}");
        }
    }

    #[test]
    fn parked_headers_come_back_as_they_were() {
        let text = |text: &str| Some(text.as_bytes().to_vec().into());
        let headers: Headers<'_> = vec![
            Header {
                name: "event_id".into(),
                value: text("é\"\n"),
            },
            Header {
                name: "gone".into(),
                value: None,
            },
            Header {
                name: "empty".into(),
                value: text(""),
            },
        ]
        .into();
        assert_eq!(
            headers_from_json(&headers_to_json(&headers)).unwrap(),
            headers
        );
    }

    proptest! {
        #[test]
        fn any_parked_headers_come_back_as_they_were(
            pairs in any::<Vec<(String, Option<String>)>>()
        ) {
            let header = |(name, value): (String, Option<String>)| Header {
                name: name.into(),
                value: value.map(|value| value.into_bytes().into()),
            };
            let headers: Headers<'static> = pairs.into_iter().map(header).collect();
            let json = headers_to_json(&headers);
            // a column of text takes no NUL
            prop_assert!(!json.contains('\0'));
            prop_assert_eq!(headers_from_json(&json).unwrap(), headers);
        }

        #[test]
        fn parked_headers_that_somebody_changed_are_read_or_refused(
            json in prop_oneof![any::<String>(), "[\\[\\],\"\\\\anul0 ]{0,40}"]
        ) {
            if let Ok(headers) = headers_from_json(&json) {
                prop_assert_eq!(headers_from_json(&headers_to_json(&headers)).unwrap(), headers);
            }
        }
    }
}
