//! The bytes that Kafka Connect's JsonConverter makes of a column, as Debezium hands it over. Pure.
//!
//! For consumers that read what a connector with JsonConverter writes. What is equal was compared with a real
//! connector: tests/vectors/debezium. What a column is, its nullability and its default are the table's, so
//! a relay asks the catalogue before it writes any ([`Connect::knowing`]).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use crate::config::Layout;
use crate::event::Event;
use crate::expanded;
use crate::outcome::Reason;
use crate::record::{Record, Standard};

/// How a key, a value or the headers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Format {
    /// As Postgres prints them: StringConverter.
    #[default]
    Plain,
    /// JsonConverter with `schemas.enable=false`.
    Json,
    /// JsonConverter with `schemas.enable=true`.
    JsonWithSchema,
    /// A value that the event router expands, by JsonConverter with `schemas.enable=false`.
    JsonExpanded,
}

/// The format of each part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats {
    /// Of the key.
    pub key: Format,
    /// Of the value.
    pub value: Format,
    /// Of every header.
    pub headers: Format,
}

impl Format {
    /// Those that a config can name.
    pub(crate) const NAMED: [(&'static str, Self); 4] = [
        ("plain", Self::Plain),
        ("json", Self::Json),
        ("json_with_schema", Self::JsonWithSchema),
        ("json_expanded", Self::JsonExpanded),
    ];

    /// As a config names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        let named = Self::NAMED.iter().find(|(_, it)| *it == self);
        named.map_or("plain", |(name, _)| name)
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            value,
            headers,
        } = self;
        write!(f, "{},{},{}", key.name(), value.name(), headers.name())
    }
}

impl Formats {
    /// Whether nothing is written otherwise than Postgres prints it.
    #[must_use]
    pub fn are_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// A column as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` prints it with its modifier: `numeric(10,2)`.
    pub type_name: String,
    /// Whether it takes no null.
    pub not_null: bool,
    /// Its default, as `pg_get_expr` prints it.
    pub default: Option<String>,
}

impl Column {
    /// A column of text that nobody has looked at.
    fn unknown(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            type_name: "text".to_owned(),
            not_null: true,
            default: None,
        }
    }
}

/// How each part of a record is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    formats: Formats,
    key: Option<Writer>,
    value: Option<Writer>,
    /// By the header's name; the relay's own first.
    headers: Vec<(String, Writer)>,
}

impl Connect {
    /// Before the table was looked at: as if all of its columns were text.
    #[must_use]
    pub fn new(formats: Formats) -> Self {
        let writer = |format| Writer::of(&Column::unknown(""), format).ok().flatten();
        Self {
            formats,
            key: writer(formats.key),
            value: writer(formats.value),
            headers: Vec::new(),
        }
    }

    /// The formats.
    #[must_use]
    pub fn formats(&self) -> Formats {
        self.formats
    }

    /// The same for a table of `layout` that has `columns`, whose own headers the relay calls `standard`.
    ///
    /// # Errors
    /// A sentence for each column that cannot be written as JsonConverter does it.
    pub fn knowing(
        &self,
        layout: &Layout,
        standard: &[(Standard, String)],
        columns: &[Column],
    ) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        let mut writer = |name: &str, placed: Option<bool>, format| {
            let known = columns.iter().find(|column| column.name == name);
            let unknown = Column::unknown(name);
            let column = known.unwrap_or(&unknown);
            // what is placed comes as Postgres prints it, which is Debezium's way for neither of these
            let printed = match column.type_name.as_str() {
                "bytea" => placed.is_none() || format == Format::Plain,
                it if it.starts_with("timestamp") => {
                    placed == Some(true) || format == Format::Plain
                }
                _ => true,
            };
            match Writer::of(column, format).and_then(|it| match printed {
                true => Ok(it),
                false => Err(unwritten(&column.type_name)),
            }) {
                Ok(writer) => writer,
                Err(why) => {
                    wrong.push(format!("the column {name} {why}"));
                    None
                }
            }
        };
        let key = writer(&layout.aggregate_id, None, self.formats.key);
        let value = writer(&layout.payload, None, self.formats.value);
        let of_event = standard.iter().map(|(what, header)| {
            let column = match what {
                Standard::EventId => &layout.id,
                Standard::EventType => &layout.event_type,
                Standard::AggregateType => &layout.aggregate_type,
                Standard::Seq => "seq",
            };
            (column, false, header)
        });
        let placed = (layout.placed.iter())
            .map(|placed| (placed.column.as_str(), placed.is_time, &placed.header));
        let headers = of_event
            .chain(placed)
            .filter_map(|(column, is_time, header)| {
                let writer = writer(column, Some(is_time), self.formats.headers)?;
                Some((header.clone(), writer))
            })
            .collect();
        match wrong.is_empty() {
            true => Ok(Self {
                formats: self.formats,
                key,
                value,
                headers,
            }),
            false => Err(wrong),
        }
    }

    /// The key of the aggregate `id`.
    #[must_use]
    pub fn key(&self, id: &str) -> String {
        match &self.key {
            Some(writer) => String::from_utf8_lossy(&writer.text(id)).into_owned(),
            None => id.to_owned(),
        }
    }

    /// The relay's own header `name`, whose text is `text`.
    #[must_use]
    pub fn header(&self, name: &str, text: &str) -> Vec<u8> {
        match self.writer(name) {
            Some(writer) => writer.text(text),
            None => text.as_bytes().to_vec(),
        }
    }

    fn writer(&self, header: &str) -> Option<&Writer> {
        let mut named = self.headers.iter().filter(|(name, _)| name == header);
        named.next().map(|(_, writer)| writer)
    }

    /// `record`, which is plain, as it travels.
    ///
    /// # Errors
    /// The reason to park the row: something of it cannot be written so.
    pub fn encode<'a>(
        &self,
        mut record: Record<'a>,
        event: &Event,
        tombstone_on_empty_payload: bool,
    ) -> Result<Record<'a>, Reason> {
        if let Some(writer) = &self.key {
            record.key = writer.text(event.key()).into();
        }
        if let Some(writer) = &self.value {
            // JsonConverter writes a null that has a schema as JSON's null: only the option makes a tombstone
            let is_tombstone = record.value.is_none()
                && tombstone_on_empty_payload
                && (event.payload.is_some() || writer.null.is_none());
            if !is_tombstone {
                let written = writer.write(record.value.as_deref());
                let written = written.map_err(|why| {
                    Reason::new("bad_payload", format!("the row's payload {why}"))
                })?;
                record.value = Some(written.into());
            }
        }
        if self.formats.headers != Format::Plain {
            for header in record.headers.to_mut() {
                if let Some(writer) = self.writer(&header.name) {
                    let written = writer.write(header.value.as_deref()).map_err(|why| {
                        let text = format!("the row's header `{}` {why}", header.name);
                        Reason::new("bad_header", text)
                    })?;
                    header.value = Some(written.into());
                }
            }
        }
        Ok(record)
    }
}

/// What a header says that may have been written by a JsonConverter: the text in it.
#[must_use]
pub fn unwrapped(header: &str) -> String {
    let read = match serde_json::from_str::<serde_json::Value>(header) {
        Ok(serde_json::Value::Object(mut envelope)) if envelope.contains_key("schema") => {
            envelope.remove("payload")
        }
        Ok(value) => Some(value),
        Err(_) => None,
    };
    match read {
        Some(serde_json::Value::String(text)) => text,
        Some(number @ serde_json::Value::Number(_)) => number.to_string(),
        _ => header.to_owned(),
    }
}

/// How the cells of a column are written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Writer {
    kind: Kind,
    /// What stands before each cell and behind it: the envelope with the schema.
    before: String,
    after: &'static str,
    /// What a null is written as instead: Connect puts a column's default there.
    null: Option<Vec<u8>>,
}

/// What a column is to Connect, as far as a cell is written by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A string of JSON.
    Text,
    /// A number or a boolean, as it is printed.
    Bare,
    /// Bytes in base64.
    Bytes,
    /// The unscaled digits as a big-endian number, in base64.
    Decimal,
    /// JSON, written anew.
    Expanded,
}

/// The type of a column: its kind, and its schema without what the column itself adds.
struct Type {
    kind: Kind,
    name: &'static str,
    logical: Option<&'static str>,
    /// Digits in all, and behind the point.
    decimal: Option<(u8, u8)>,
}

/// Most digits of a numeric: more do not fit the number they are read into.
const DIGITS_MAX: u8 = 38;

impl Type {
    fn of(type_name: &str) -> Option<Self> {
        let of = |kind, name, logical| {
            Some(Self {
                kind,
                name,
                logical,
                decimal: None,
            })
        };
        let bare = type_name.split('(').next().unwrap_or(type_name);
        match bare {
            "text" | "character varying" => of(Kind::Text, "string", None),
            "uuid" => of(Kind::Text, "string", Some("io.debezium.data.Uuid")),
            "json" | "jsonb" => of(Kind::Text, "string", Some("io.debezium.data.Json")),
            "smallint" => of(Kind::Bare, "int16", None),
            "integer" => of(Kind::Bare, "int32", None),
            "bigint" => of(Kind::Bare, "int64", None),
            "boolean" => of(Kind::Bare, "boolean", None),
            "bytea" => of(Kind::Bytes, "bytes", None),
            // microseconds alone: the claim prints as many digits
            "timestamp with time zone" => of(
                Kind::Text,
                "string",
                Some("io.debezium.time.ZonedTimestamp"),
            ),
            "numeric" => {
                let (digits, scale) = type_name
                    .strip_prefix("numeric(")?
                    .strip_suffix(')')?
                    .split_once(',')?;
                let (digits, scale) = (digits.parse().ok()?, scale.parse().ok()?);
                (digits <= DIGITS_MAX).then_some(Self {
                    kind: Kind::Decimal,
                    name: "bytes",
                    logical: Some("org.apache.kafka.connect.data.Decimal"),
                    decimal: Some((digits, scale)),
                })
            }
            _ => None,
        }
    }
}

impl Writer {
    /// The writer of `column` in `format`; `None` where that is as Postgres prints it.
    fn of(column: &Column, format: Format) -> Result<Option<Self>, String> {
        if format == Format::Plain {
            return Ok(None);
        }
        let Some(it) = Type::of(&column.type_name) else {
            return Err(unwritten(&column.type_name));
        };
        let default = match &column.default {
            None => None,
            Some(expression) => literal(expression, &column.type_name).ok_or_else(|| {
                format!(
                    "has the default {expression}, and what Debezium makes of it is not known here: only \
                     literals are, and gen_random_uuid()"
                )
            })?,
        };
        let mut writer = Self {
            kind: match (it.kind, format) {
                (Kind::Text, Format::JsonExpanded) => Kind::Expanded,
                (kind, _) => kind,
            },
            before: String::new(),
            after: "",
            null: None,
        };
        let default = default.map(|text| writer.bare(text.as_bytes()));
        let default = default
            .transpose()
            .map_err(|why| format!("has a default that {why}"))?;
        if format == Format::JsonWithSchema {
            writer.before = envelope(&it, column, default.as_deref());
            writer.after = "}";
        }
        writer.null = default;
        Ok(Some(writer))
    }

    /// A cell as it travels.
    fn write(&self, cell: Option<&[u8]>) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(
            self.before.len() + cell.map_or(4, <[u8]>::len) + self.after.len() + 16,
        );
        out.extend_from_slice(self.before.as_bytes());
        match (cell, &self.null) {
            (Some(cell), _) => self.push(&mut out, cell)?,
            (None, Some(default)) => out.extend_from_slice(default),
            (None, None) => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(self.after.as_bytes());
        Ok(out)
    }

    /// A cell of a kind that takes any text.
    fn text(&self, cell: &str) -> Vec<u8> {
        self.write(Some(cell.as_bytes()))
            .unwrap_or_else(|_| cell.as_bytes().to_vec())
    }

    fn bare(&self, cell: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        self.push(&mut out, cell)?;
        Ok(out)
    }

    fn push(&self, out: &mut Vec<u8>, cell: &[u8]) -> Result<(), String> {
        let base64 = |bytes: &[u8]| format!("\"{}\"", STANDARD.encode(bytes)).into_bytes();
        match self.kind {
            Kind::Text => {
                let text = str::from_utf8(cell).map_err(|_| "is no text".to_owned())?;
                push_text(out, text);
            }
            Kind::Expanded => {
                let text = str::from_utf8(cell).map_err(|_| "is no text".to_owned())?;
                expanded::push(out, text)?;
            }
            Kind::Bare => out.extend_from_slice(cell),
            Kind::Bytes => out.extend(base64(cell)),
            Kind::Decimal => {
                let bytes = unscaled(cell).ok_or("is no number with digits")?;
                out.extend(base64(&bytes));
            }
        }
        Ok(())
    }
}

fn unwritten(type_name: &str) -> String {
    format!(
        "is {type_name}, which the relay does not write as JsonConverter does: docs/debezium.md has the types"
    )
}

/// `{"schema":…,"payload":` of a column.
fn envelope(it: &Type, column: &Column, default: Option<&[u8]>) -> String {
    let mut text = format!(
        "{{\"schema\":{{\"type\":\"{}\",\"optional\":{}",
        it.name, !column.not_null
    );
    if let Some(logical) = it.logical {
        text.push_str(&format!(",\"name\":\"{logical}\",\"version\":1"));
    }
    if let Some((digits, scale)) = it.decimal {
        text.push_str(&format!(
            ",\"parameters\":{{\"scale\":\"{scale}\",\"connect.decimal.precision\":\"{digits}\"}}"
        ));
    }
    if let Some(default) = default {
        text.push_str(",\"default\":");
        text.push_str(&String::from_utf8_lossy(default));
    }
    text.push_str("},\"payload\":");
    text
}

/// The value of a default that is a literal, as Debezium has it; `None` where it is none, `Some(None)` where
/// the default is null.
fn literal(expression: &str, type_name: &str) -> Option<Option<String>> {
    let text = expression.trim();
    if type_name == "uuid" && matches!(text, "gen_random_uuid()" | "uuid_generate_v4()") {
        return Some(Some(Uuid::nil().to_string()));
    }
    if type_name == "timestamp with time zone" {
        let now = matches!(text, "now()" | "CURRENT_TIMESTAMP");
        return now.then(|| Some("1970-01-01T00:00:00.000000Z".to_owned()));
    }
    if type_name == "bigint" && text.starts_with("nextval(") {
        return Some(Some("0".to_owned()));
    }
    // `'…'::a type`, or bare
    let (value, of_type) = match text.rsplit_once("::") {
        Some((value, of_type)) if !of_type.contains('\'') => (value, Some(of_type)),
        _ => (text, None),
    };
    let simple = |of_type: &str| {
        of_type
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || " (),".contains(c))
    };
    if !of_type.is_none_or(simple) {
        return None;
    }
    if value.eq_ignore_ascii_case("null") {
        return Some(None);
    }
    let quoted = |value: &str| {
        let inner = value.strip_prefix('\'')?.strip_suffix('\'')?;
        let unquoted = inner.replace("''", "\u{0}");
        (!unquoted.contains('\'')).then(|| unquoted.replace('\u{0}', "'"))
    };
    let bare = |value: &str| value.trim_matches(['(', ')']).to_owned();
    match type_name.split('(').next()? {
        "text" | "character varying" | "uuid" | "json" | "jsonb" => quoted(value).map(Some),
        "smallint" | "integer" | "bigint" => {
            let number: i64 = quoted(value).unwrap_or_else(|| bare(value)).parse().ok()?;
            Some(Some(number.to_string()))
        }
        "boolean" => matches!(value, "true" | "false").then(|| Some(value.to_owned())),
        _ => None,
    }
}

/// The digits of a decimal number as `BigInteger.toByteArray` gives them: two's complement, as short as it goes.
fn unscaled(cell: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(cell).ok()?.replacen('.', "", 1);
    let number: i128 = text.parse().ok()?;
    let bytes = number.to_be_bytes();
    let needless = bytes
        .windows(2)
        .take_while(|pair| match pair[0] {
            0 => pair[1] < 0x80,
            0xff => pair[1] >= 0x80,
            _ => false,
        })
        .count();
    Some(bytes[needless..].to_vec())
}

/// A JSON string as Jackson writes it to bytes: what lies outside the basic plane as two escapes, everything
/// else but quotes, backslashes and controls as it is.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let escape = |out: &mut Vec<u8>, unit: u16| {
        let digit = |shift: u16| HEX[usize::from((unit >> shift) & 15)];
        out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
    };
    out.push(b'"');
    let mut plain_from = 0;
    for (at, c) in text.char_indices() {
        let short = match c {
            '"' | '\\' => u8::try_from(c).ok(),
            '\n' => Some(b'n'),
            '\r' => Some(b'r'),
            '\t' => Some(b't'),
            '\u{8}' => Some(b'b'),
            '\u{c}' => Some(b'f'),
            ' '..='\u{ffff}' => continue,
            _ => None,
        };
        out.extend_from_slice(&text.as_bytes()[plain_from..at]);
        plain_from = at + c.len_utf8();
        match short {
            Some(letter) => out.extend_from_slice(&[b'\\', letter]),
            None => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    escape(out, *unit);
                }
            }
        }
    }
    out.extend_from_slice(&text.as_bytes()[plain_from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LayoutKind;
    use proptest::prelude::*;

    fn column(type_name: &str, default: Option<&str>) -> Column {
        Column {
            name: "c".into(),
            type_name: type_name.into(),
            not_null: false,
            default: default.map(str::to_owned),
        }
    }

    fn written(column: &Column, format: Format, cell: Option<&str>) -> String {
        let writer = Writer::of(column, format).unwrap().unwrap();
        String::from_utf8(writer.write(cell.map(str::as_bytes)).unwrap()).unwrap()
    }

    #[test]
    fn defaults_are_read_where_they_are_literals_and_refused_elsewhere() {
        let read = |type_name, text| literal(text, type_name);
        let some = |text: &str| Some(Some(text.to_owned()));
        assert_eq!(read("text", "'it''s'::text"), some("it's"));
        assert_eq!(
            read("character varying(20)", "'a::b'::character varying"),
            some("a::b")
        );
        assert_eq!(read("text", "NULL::text"), Some(None));
        assert_eq!(read("jsonb", "'{}'::jsonb"), some("{}"));
        assert_eq!(read("integer", "'-5'::integer"), some("-5"));
        assert_eq!(read("integer", "(-5)"), some("-5"));
        assert_eq!(read("smallint", "5"), some("5"));
        assert_eq!(read("boolean", "true"), some("true"));
        assert_eq!(read("bigint", "nextval('s'::regclass)"), some("0"));
        assert_eq!(
            read("uuid", "gen_random_uuid()"),
            some("00000000-0000-0000-0000-000000000000")
        );
        for (type_name, text) in [
            ("text", "lower('A'::text)"),
            ("text", "('a'::text || 'b'::text)"),
            ("text", "CURRENT_USER"),
            ("integer", "(2 + 3)"),
            ("integer", "nextval('s'::regclass)"),
            ("numeric(10,2)", "1.5"),
            ("boolean", "(NOT false)"),
            ("uuid", "uuidv7()"),
            ("timestamp with time zone", "(now() - '1 day'::interval)"),
        ] {
            assert_eq!(read(type_name, text), None, "{type_name} {text}");
            let why = Writer::of(&column(type_name, Some(text)), Format::Json).unwrap_err();
            assert!(why.contains("literals"), "{why}");
        }
    }

    #[test]
    fn a_column_that_cannot_be_written_is_named() {
        let mut layout = Layout::of(LayoutKind::Debezium);
        for name in ["at", "raw", "f", "amount"] {
            layout.placed.push(crate::config::Placed {
                column: name.into(),
                header: name.into(),
                is_time: false,
            });
        }
        let of = |name: &str, type_name: &str| Column {
            name: name.into(),
            ..column(type_name, None)
        };
        let columns = [
            of("at", "timestamp with time zone"),
            of("raw", "bytea"),
            of("f", "double precision"),
            of("amount", "numeric"),
            of("payload", "bytea"),
        ];
        let formats = |headers| Formats {
            headers,
            value: Format::Json,
            ..Formats::default()
        };
        let knowing = |headers| Connect::new(formats(headers)).knowing(&layout, &[], &columns);
        let wrong = knowing(Format::Json).unwrap_err();
        let named: Vec<&str> = wrong.iter().filter_map(|it| it.split(' ').nth(2)).collect();
        assert_eq!(named, ["at", "raw", "f", "amount"], "{wrong:?}");
        assert!(knowing(Format::Plain).is_ok());
    }

    #[test]
    fn a_null_is_the_columns_default_and_stands_in_its_schema() {
        let it = column("character varying(20)", Some("'x\"'::character varying"));
        assert_eq!(written(&it, Format::Json, None), r#""x\"""#);
        assert_eq!(
            written(&it, Format::JsonWithSchema, None),
            r#"{"schema":{"type":"string","optional":true,"default":"x\""},"payload":"x\""}"#
        );
        let it = column("timestamp with time zone", Some("now()"));
        assert_eq!(
            written(
                &it,
                Format::JsonWithSchema,
                Some("2024-01-02T03:04:05.600000Z")
            ),
            r#"{"schema":{"type":"string","optional":true,"name":"io.debezium.time.ZonedTimestamp","version":1,"default":"1970-01-01T00:00:00.000000Z"},"payload":"2024-01-02T03:04:05.600000Z"}"#
        );
        let it = column("numeric(10,2)", None);
        assert_eq!(written(&it, Format::Json, None), "null");
        let writer = Writer::of(&it, Format::Json).unwrap().unwrap();
        assert!(writer.write(Some(b"NaN")).is_err());
    }

    #[test]
    fn a_header_that_was_wrapped_is_read() {
        let id = column("uuid", None);
        for format in [Format::Json, Format::JsonWithSchema] {
            assert_eq!(unwrapped(&written(&id, format, Some("4711"))), "4711");
        }
        let number = column("bigint", None);
        for format in [Format::Json, Format::JsonWithSchema] {
            assert_eq!(unwrapped(&written(&number, format, Some("-42"))), "-42");
        }
        for plain in ["4711", "o-1", "{\"a\": 1}", ""] {
            assert_eq!(unwrapped(plain), plain);
        }
    }

    proptest! {
        #[test]
        fn a_string_comes_back_as_it_was(text in any::<String>()) {
            let mut out = Vec::new();
            push_text(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            let basic = |c: char| (' '..='\u{ffff}').contains(&c);
            prop_assert!(str::from_utf8(&out).unwrap().chars().all(basic));
        }

        #[test]
        fn a_number_is_as_short_as_it_goes(number in any::<i128>(), few in any::<i16>()) {
            for number in [number, i128::from(few)] {
                let bytes = unscaled(number.to_string().as_bytes()).unwrap();
                let sign = if bytes[0] >= 0x80 { 0xff } else { 0 };
                let mut whole = [sign; 16];
                whole[16 - bytes.len()..].copy_from_slice(&bytes);
                prop_assert_eq!(i128::from_be_bytes(whole), number);
                let needless = bytes.len() > 1 && bytes[0] == sign && (bytes[1] >= 0x80) == (sign != 0);
                prop_assert!(!needless);
            }
        }
    }
}
