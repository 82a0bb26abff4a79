//! What Debezium's event router makes of a JSON payload that it expands, written by JsonConverter without
//! schemas. Pure.
//!
//! It writes JSON anew, by a schema that it infers from the payload: compact, fields that are null or an empty
//! list left out, numbers as Java prints them. Where the inference gives up, a string of JSON with the whole text
//! in it is sent. Both are done here, byte by byte (tests/vectors/debezium). Where the connector itself would
//! stop for good, or where the order of fields depends on the run of its process, there are no bytes to be
//! equal to: such a row is parked.

use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::connect::push_text;
use crate::record::Members;

/// Deepest nesting that is read.
const DEPTH_MAX: usize = 100;

/// Most characters of a number, and bytes of a field's name: Jackson refuses more.
const NUMBER_MAX: usize = 1_000;
const NAME_MAX: usize = 50_000;

/// Writes `payload` behind `out`.
///
/// # Errors
/// Why there is nothing that it could be written as, to follow "the payload".
pub fn push(out: &mut Vec<u8>, payload: &str) -> Result<(), String> {
    // the router does not try others
    if !payload.starts_with(['{', '[']) {
        push_text(out, payload);
        return Ok(());
    }
    let raw: &RawValue = serde_json::from_str(payload).map_err(|_| "is no JSON".to_owned())?;
    let node = Node::read(raw, 0)?;
    let mut inference = Inference::default();
    match (inference.schema(&node), &node) {
        (Err(GivesUp), _) | (Ok(None), _) => push_text(out, payload),
        (Ok(Some(_)), Node::List(_)) => {
            return Err(
                "is a list, and Debezium cannot expand one: its connector stops".to_owned(),
            );
        }
        (Ok(Some(schema)), _) => {
            if let Some(why) = inference.unequal {
                return Err(why.to_owned());
            }
            write(out, &node, &schema)?;
        }
    }
    Ok(())
}

/// A value of JSON, as far as the router tells them apart.
#[derive(Debug, PartialEq)]
enum Node {
    Null,
    Bool(bool),
    /// Of 32 bits, or else of 64.
    Whole(i64),
    Double(f64),
    /// A whole number that is larger.
    Huge,
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

/// What the router infers of a value.
#[derive(Debug, Clone, PartialEq)]
enum Schema {
    Bool,
    Int32,
    Int64,
    Double,
    Text,
    List(Box<Self>),
    Struct {
        fields: Vec<(String, Self)>,
        takes_null: bool,
    },
}

/// The router sends the text as a string.
struct GivesUp;

#[derive(Default)]
struct Inference {
    /// Why there would be no bytes to be equal to.
    unequal: Option<&'static str>,
}

impl Node {
    fn read(raw: &RawValue, depth: usize) -> Result<Self, String> {
        let text = raw.get();
        let broken = |_| "has text that is none".to_owned();
        if depth > DEPTH_MAX {
            return Err(format!("is nested deeper than {DEPTH_MAX}"));
        }
        Ok(match text.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'"') => Self::Text(serde_json::from_str(text).map_err(broken)?),
            Some(b'[') => {
                let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(broken)?;
                let read = |raw: &RawValue| Self::read(raw, depth + 1);
                Self::List(elements.into_iter().map(read).collect::<Result<_, _>>()?)
            }
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text).map_err(broken)?;
                let mut fields: Vec<(String, Self)> = Vec::with_capacity(members.len());
                let mut places = HashMap::new();
                for (name, raw) in members {
                    let name = name.into_owned();
                    if name.len() > NAME_MAX {
                        return Err(format!("has a name of more than {NAME_MAX} bytes"));
                    }
                    let node = Self::read(raw, depth + 1)?;
                    // of two that have a name the last counts, in the place of the first
                    if let Some(at) = places.get(&name) {
                        let at: usize = *at;
                        fields[at].1 = node;
                    } else {
                        places.insert(name.clone(), fields.len());
                        fields.push((name, node));
                    }
                }
                Self::Object(fields)
            }
            // a limit of Jackson's
            _ if text.len() > NUMBER_MAX => {
                return Err(format!("has a number of more than {NUMBER_MAX} digits"));
            }
            _ if text.contains(['.', 'e', 'E']) => Self::Double(
                text.parse()
                    .map_err(|_| "has a number that is none".to_owned())?,
            ),
            _ => text.parse().map_or(Self::Huge, Self::Whole),
        })
    }

    /// Two of one kind can be in a list.
    fn kind(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Whole(_) | Self::Double(_) | Self::Huge => 2,
            Self::Text(_) => 3,
            Self::List(_) => 4,
            Self::Object(_) => 5,
        }
    }
}

impl Inference {
    /// The schema of `node`; none of a null and of an empty list.
    fn schema(&mut self, node: &Node) -> Result<Option<Schema>, GivesUp> {
        Ok(Some(match node {
            Node::Null => return Ok(None),
            Node::Bool(_) => Schema::Bool,
            Node::Whole(number) if i32::try_from(*number).is_ok() => Schema::Int32,
            Node::Whole(_) => Schema::Int64,
            Node::Double(_) => Schema::Double,
            Node::Huge => {
                self.unequal = Some(
                    "has a whole number of more than 64 bits, and Debezium cannot expand one: its connector \
                     stops",
                );
                Schema::Double
            }
            Node::Text(_) => Schema::Text,
            Node::List(elements) if elements.is_empty() => return Ok(None),
            Node::List(elements) => Schema::List(Box::new(self.of_elements(elements)?)),
            Node::Object(members) => {
                let mut fields = Vec::with_capacity(members.len());
                for (name, node) in members {
                    if let Some(schema) = self.schema(node)? {
                        if name.is_empty() {
                            return Err(GivesUp);
                        }
                        fields.push((name.clone(), schema));
                    }
                }
                Schema::Struct {
                    fields,
                    takes_null: true,
                }
            }
        }))
    }

    /// What all elements of a list are, by the first of them; of objects by all.
    fn of_elements(&mut self, elements: &[Node]) -> Result<Schema, GivesUp> {
        let mut present = elements.iter().filter(|node| **node != Node::Null);
        let first = present.next().ok_or(GivesUp)?;
        if present.any(|node| node.kind() != first.kind()) {
            return Err(GivesUp);
        }
        let present = || elements.iter().filter(|node| **node != Node::Null);
        match first {
            Node::Whole(_) | Node::Double(_) | Node::Huge => {
                let mut all = present().map(|node| self.schema(node));
                let schema = all.next().ok_or(GivesUp)??;
                for other in all {
                    if other? != schema {
                        return Err(GivesUp);
                    }
                }
                schema.ok_or(GivesUp)
            }
            Node::Object(_) => {
                let mut distinct: Vec<Schema> = Vec::new();
                for node in present() {
                    let schema = self.schema(node)?.ok_or(GivesUp)?;
                    if !distinct.contains(&schema) {
                        distinct.push(schema);
                    }
                }
                Ok(self.merged(distinct))
            }
            first => self.schema(first)?.ok_or(GivesUp),
        }
    }

    /// The schema with the fields of all. The router takes them in an order that no two runs have in common:
    /// it does not matter only where each begins as the longest does.
    fn merged(&mut self, mut distinct: Vec<Schema>) -> Schema {
        let fields = |schema: &Schema| match schema {
            Schema::Struct { fields, .. } => fields.clone(),
            _ => Vec::new(),
        };
        if distinct.len() == 1 {
            return distinct.remove(0);
        }
        distinct.sort_by_key(|schema| fields(schema).len());
        let longest = distinct.last().map(fields).unwrap_or_default();
        if distinct.iter().any(|it| !longest.starts_with(&fields(it))) {
            self.unequal = Some(
                "has a list of objects that differ in their fields, and Debezium writes those in an order that is \
                 another in each run of it",
            );
        }
        Schema::Struct {
            fields: longest,
            takes_null: false,
        }
    }
}

/// Writes `node` by its `schema`.
fn write(out: &mut Vec<u8>, node: &Node, schema: &Schema) -> Result<(), String> {
    match (node, schema) {
        (
            Node::Null,
            Schema::Struct {
                takes_null: false, ..
            },
        ) => return Err(stops()),
        (Node::Null, _) => out.extend_from_slice(b"null"),
        (Node::Bool(value), Schema::Bool) => out.extend_from_slice(value.to_string().as_bytes()),
        (Node::Whole(number), Schema::Int32) if i32::try_from(*number).is_ok() => {
            out.extend_from_slice(number.to_string().as_bytes());
        }
        (Node::Whole(number), Schema::Int64) if i32::try_from(*number).is_err() => {
            out.extend_from_slice(number.to_string().as_bytes());
        }
        (Node::Double(number), Schema::Double) => {
            out.extend_from_slice(java_double(*number).as_bytes());
        }
        (Node::Text(text), Schema::Text) => push_text(out, text),
        (Node::List(elements), Schema::List(of)) => {
            out.push(b'[');
            for (i, element) in elements.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(out, element, of)?;
            }
            out.push(b']');
        }
        (Node::Object(members), Schema::Struct { fields, .. }) => {
            let given: HashMap<&str, &Node> =
                (members.iter().map(|(name, node)| (name.as_str(), node))).collect();
            out.push(b'{');
            for (i, (name, schema)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                push_text(out, name);
                out.push(b':');
                let node = given.get(name.as_str()).copied();
                write(out, node.unwrap_or(&Node::Null), schema)?;
            }
            out.push(b'}');
        }
        _ => return Err(stops()),
    }
    Ok(())
}

fn stops() -> String {
    "has a list of lists or objects that are not alike, and Debezium cannot expand one: its connector stops"
        .to_owned()
}

/// As `Double.toString` prints it from Java 19 on, and Jackson quotes what JSON has no number for.
fn java_double(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 {
            "\"Infinity\"".to_owned()
        } else {
            "\"-Infinity\"".to_owned()
        };
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    let number = number.abs();
    if number == 0.0 {
        return format!("{sign}0.0");
    }
    // the shortest digits that are this number and no other; of two digits at least, the nearest to it
    let mut shortest = format!("{number:e}");
    if !shortest.contains('.') {
        shortest = format!("{number:.1e}");
    }
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    if !(1e-3..1e7).contains(&number) {
        return format!("{sign}{mantissa}E{exponent}");
    }
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (whole, mut part) = match usize::try_from(exponent + 1) {
        Ok(places) if places > 0 => {
            let whole = format!("{digits:0<places$}");
            let (whole, part) = whole.split_at(places);
            (whole.to_owned(), part.to_owned())
        }
        _ => {
            let zeros = usize::try_from(-exponent - 1).unwrap_or(0);
            ("0".to_owned(), format!("{}{digits}", "0".repeat(zeros)))
        }
    };
    part.truncate(part.trim_end_matches('0').len().max(1));
    if part.is_empty() {
        part.push('0');
    }
    format!("{sign}{whole}.{part}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn expanded(payload: &str) -> Result<String, String> {
        let mut out = Vec::new();
        push(&mut out, payload)?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// What Debezium sends and the relay does not: its connector reads the beginning of the first, and takes
    /// the second for text.
    const NO_JSON: [&str; 2] = ["{\"a\": 1} x", "{\"a\": 1"];

    #[test]
    fn payloads_are_expanded_as_the_router_does_it_and_parked_where_it_stops() {
        let vectors = include_str!("../tests/vectors/debezium/connector.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        let mut tables = vectors["tables"].as_array().unwrap().iter();
        let table = tables.find(|it| it["table"] == "j_expanded").unwrap();
        let (mut sent, mut stopped) = (0, 0);
        for row in table["rows"].as_array().unwrap() {
            let insert = row["insert"].as_str().unwrap();
            let Some((_, payload)) = insert.split_once("'OrderCreated', '") else {
                continue;
            };
            let payload = payload.strip_suffix("')").unwrap();
            let ours = expanded(payload);
            if row["error"].is_string() || NO_JSON.contains(&payload) {
                stopped += 1;
                assert!(ours.is_err(), "{payload}: {ours:?}");
            } else {
                sent += 1;
                let theirs = row["json"]["value"].as_str().unwrap();
                assert_eq!(ours.as_deref(), Ok(theirs), "{payload}");
            }
        }
        assert_eq!((sent, stopped), (37, 11));
    }

    #[test]
    fn what_debezium_writes_in_any_order_is_refused() {
        for payload in [
            r#"{"a": [{"x": 1}, {"y": 2}]}"#,
            r#"{"a": [{"x": 1, "y": 2}, {"y": 2, "x": 1}]}"#,
            r#"{"a": {"b": [{"c": 1}, {"d": [{"e": 1}]}]}}"#,
        ] {
            let why = expanded(payload).unwrap_err();
            assert!(why.contains("another in each run"), "{payload}: {why}");
        }
    }

    #[test]
    fn limits_are_refused() {
        let deep =
            |levels: usize| format!("{}{}", "{\"a\":".repeat(levels), "1") + &"}".repeat(levels);
        assert_eq!(expanded(&deep(DEPTH_MAX)), Ok(deep(DEPTH_MAX)));
        assert!(expanded(&deep(DEPTH_MAX + 1)).is_err());
        let number = |digits: usize| format!("{{\"a\":1.{}}}", "5".repeat(digits - 2));
        assert!(expanded(&number(NUMBER_MAX)).is_ok());
        assert!(expanded(&number(NUMBER_MAX + 1)).is_err());
        assert!(
            expanded("{\"a\": \"\\ud800\"}").is_err(),
            "half a character"
        );
    }

    proptest! {
        #[test]
        fn doubles_come_back_as_they_were(bits in any::<u64>()) {
            let number = f64::from_bits(bits);
            if number.is_finite() {
                let printed = java_double(number);
                prop_assert_eq!(printed.parse::<f64>().unwrap().to_bits(), bits, "{}", printed);
                prop_assert!(printed.contains('.'));
            }
        }

        #[test]
        fn whatever_stands_there_is_written_or_refused(payload in prop_oneof![any::<String>(), "[\\[\\]{}:,\"\\\\a0 nulltrue.e-]{0,60}"]) {
            if let Ok(written) = expanded(&payload) {
                prop_assert!(serde_json::from_str::<Value>(&written).is_ok(), "{}", written);
            }
        }
    }
}
