//! Which edits of published contracts break whoever reads the events. Pure.
//!
//! The service writes, consumers read: an edit breaks when an event that the new schema allows was not
//! allowed by the old one, since a consumer built against the old one would meet what it does not know.
//! Whether there is such an event is decided by the algebra of schemas in `jsonschema::canonical`, which
//! answers yes, no, or that it cannot tell; only a proof that there is none counts as compatible.
//!
//! Each difference of the two files is judged by itself, as if it were the only one, so that whoever reads
//! the answer sees which it is; then the two files as wholes, which is what counts.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::canonical::{self, CanonicalSchema, Containment, Satisfiability};
use serde_json::{Map, Value};

use super::{Documents, Fault, Files, Version, address, patterns};

/// Longest value of a schema that a change shows.
const VALUE_CHARS_MAX: usize = 80;

/// What a change means for consumers, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judgement {
    /// Every event that is allowed now was allowed before.
    Compatible,
    /// Neither was proven.
    Unknown,
    /// An event is allowed now that was not.
    Breaking,
}

impl Judgement {
    /// As it is printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compatible => "compatible",
            Self::Unknown => "cannot tell",
            Self::Breaking => "breaking",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The event type.
    pub event_type: String,
    /// Of which of its versions.
    pub version: String,
    /// Where in the schema, as a JSON pointer; empty for the file itself. Parts of other files are under
    /// `$defs`, by their names.
    pub place: String,
    /// What it is.
    pub what: String,
    /// What it means.
    pub judgement: Judgement,
}

/// Every difference between two sets of contracts, in the order of event types and versions.
///
/// # Errors
/// What is wrong with the schemas of either, with `old/` or `new/` before the file.
pub fn compare(old: &Files, new: &Files) -> Result<Vec<Change>, Vec<Fault>> {
    let mut faults = faults("old", old);
    faults.extend(self::faults("new", new));
    if !faults.is_empty() {
        return Err(faults);
    }
    // two files are meant to be compared, whatever they are called
    if let (true, true, Some((was, _)), Some((is, _))) = (
        old.is_one(),
        new.is_one(),
        old.schemas().next(),
        new.schemas().next(),
    ) {
        let change = |(place, what, judgement)| Change {
            event_type: is.event_type.clone(),
            version: is.version.to_string(),
            place,
            what,
            judgement,
        };
        let changes = edited(&whole(old, &was.path), &whole(new, &is.path));
        return Ok(changes.into_iter().map(change).collect());
    }
    let (before, after) = (by_name(old), by_name(new));
    let types = |all: &BTreeMap<Name, &str>| -> BTreeSet<String> {
        all.keys()
            .map(|(event_type, _)| event_type.clone())
            .collect()
    };
    let (types_before, types_after) = (types(&before), types(&after));
    let names: BTreeSet<&Name> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        let (event_type, version) = name;
        let mut change = |place: String, what: String, judgement| {
            changes.push(Change {
                event_type: event_type.clone(),
                version: version.to_string(),
                place,
                what,
                judgement,
            });
        };
        match (before.get(name), after.get(name)) {
            (Some(_), None) if types_after.contains(event_type) => change(
                String::new(),
                "the version is gone, and events of it may be in topics still".to_owned(),
                Judgement::Breaking,
            ),
            (Some(_), None) => change(
                String::new(),
                "the event type is gone".to_owned(),
                Judgement::Breaking,
            ),
            (None, Some(_)) => {
                let what = match types_before.contains(event_type) {
                    true => "a new version beside the others",
                    false => "a new event type",
                };
                change(String::new(), what.to_owned(), Judgement::Compatible);
            }
            (Some(was), Some(is)) => {
                for (place, what, judgement) in edited(&whole(old, was), &whole(new, is)) {
                    change(place, what, judgement);
                }
            }
            (None, None) => {}
        }
    }
    Ok(changes)
}

/// An event type and a version of it.
type Name = (String, Version);

fn by_name(files: &Files) -> BTreeMap<Name, &str> {
    let name = |(file, _): (&'_ super::folder::File, _)| {
        let key = (file.event_type.clone(), file.version.clone());
        (key, file.path.clone())
    };
    let paths: BTreeMap<Name, String> = files.schemas().map(name).collect();
    let path = |(name, path): (Name, String)| {
        let (known, _) = files.documents().find(|(known, _)| *known == path)?;
        Some((name, known))
    };
    paths.into_iter().filter_map(path).collect()
}

fn faults(side: &str, files: &Files) -> Vec<Fault> {
    let documents = Documents::of(files);
    let fault = |(file, schema): (&super::folder::File, &Value)| {
        let mut fault = documents.compile(&file.path, schema).err()?;
        fault.file = format!("{side}/{}", fault.file);
        Some(fault)
    };
    files.schemas().filter_map(fault).collect()
}

/// The changes from `old` to `new`: place, what, judgement.
fn edited(old: &Whole, new: &Whole) -> Vec<(String, String, Judgement)> {
    if old.schema == new.schema {
        return Vec::new();
    }
    let together = match old.obstacle.or(new.obstacle) {
        Some(_) => Judgement::Unknown,
        None => judge(&old.schema, &new.schema),
    };
    let mut edits = Vec::new();
    differ(&old.schema, &new.schema, &mut Vec::new(), &mut edits);
    let mut all: Vec<_> = edits
        .iter()
        .map(|edit| {
            let alone = match (together, old.obstacle.or(new.obstacle)) {
                (Judgement::Compatible, _) => Judgement::Compatible,
                (_, Some(_)) => Judgement::Unknown,
                (_, None) => {
                    let mut one = old.schema.clone();
                    edit.apply(&mut one);
                    match judge(&old.schema, &one) {
                        Judgement::Unknown => edit.judge_locally(&old.schema, &one),
                        known => known,
                    }
                }
            };
            (edit.place(), edit.told(), alone)
        })
        .collect();
    let worst = all.iter().map(|(.., judgement)| *judgement).max();
    if worst.is_none_or(|worst| worst < together) {
        let what = match old.obstacle.or(new.obstacle) {
            Some(why) => format!("as a whole: {why}"),
            None => "all of it together".to_owned(),
        };
        all.push((String::new(), what, together));
    }
    all
}

/// Whether every value that `new` allows is allowed by `old`.
fn judge(old: &Value, new: &Value) -> Judgement {
    match (canonical(old, ""), canonical(new, "")) {
        (Some(old), Some(new)) => decide(&old, &new),
        _ => Judgement::Unknown,
    }
}

fn decide(old: &CanonicalSchema, new: &CanonicalSchema) -> Judgement {
    let added = new.subtract(old).map(|added| added.satisfiability());
    match added {
        Ok(Satisfiability::No) => return Judgement::Compatible,
        Ok(Satisfiability::Yes) => return Judgement::Breaking,
        Ok(Satisfiability::Unknown) | Err(_) => {}
    }
    match old.covers(new) {
        Ok(Containment::Yes) => Judgement::Compatible,
        Ok(Containment::No) => Judgement::Breaking,
        Ok(Containment::Unknown) | Err(_) => Judgement::Unknown,
    }
}

/// The part of `schema` at `pointer`, in the form that can be compared.
fn canonical(schema: &Value, pointer: &str) -> Option<CanonicalSchema> {
    let options = canonical::options()
        .offline()
        .should_validate_formats(true)
        .with_pattern_options(patterns());
    match pointer {
        "" => options.canonicalize(schema).ok(),
        pointer => options.prepare(schema).ok()?.canonicalize_at(pointer).ok(),
    }
}

/// One difference of two JSON texts.
#[derive(Debug)]
struct Edit {
    path: Vec<String>,
    old: Option<Value>,
    new: Option<Value>,
}

/// Collects what differs. Lists are compared member by member where they are lists of schemas.
fn differ(old: &Value, new: &Value, path: &mut Vec<String>, edits: &mut Vec<Edit>) {
    let mut edit = |path: &[String], old: Option<&Value>, new: Option<&Value>| {
        edits.push(Edit {
            path: path.to_vec(),
            old: old.cloned(),
            new: new.cloned(),
        });
    };
    match (old, new) {
        _ if old == new => {}
        (Value::Object(before), Value::Object(after)) => {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                path.push(name.clone());
                match (before.get(name), after.get(name)) {
                    (Some(old), Some(new)) => differ(old, new, path, edits),
                    (old, new) => edits.push(Edit {
                        path: path.clone(),
                        old: old.cloned(),
                        new: new.cloned(),
                    }),
                }
                path.pop();
            }
        }
        (Value::Array(before), Value::Array(after))
            if before.len() == after.len() && before.iter().chain(after).all(Value::is_object) =>
        {
            for (index, (old, new)) in before.iter().zip(after).enumerate() {
                path.push(index.to_string());
                differ(old, new, path, edits);
                path.pop();
            }
        }
        _ => edit(path, Some(old), Some(new)),
    }
}

impl Edit {
    fn place(&self) -> String {
        pointer(&self.path)
    }

    fn told(&self) -> String {
        let shown = |value: &Option<Value>| match value {
            None => "nothing".to_owned(),
            Some(value) => {
                let text = value.to_string();
                match text.char_indices().nth(VALUE_CHARS_MAX) {
                    Some((end, _)) => format!("{}…", text.split_at(end).0),
                    None => text,
                }
            }
        };
        format!("{} → {}", shown(&self.old), shown(&self.new))
    }

    /// Makes the change in `schema`, which is as it was before.
    fn apply(&self, schema: &mut Value) {
        let Some((last, before)) = self.path.split_last() else {
            *schema = self.new.clone().unwrap_or(Value::Null);
            return;
        };
        let Some(holder) = schema.pointer_mut(&pointer(before)) else {
            return;
        };
        match (holder, &self.new) {
            (Value::Object(members), Some(new)) => {
                members.insert(last.clone(), new.clone());
            }
            (Value::Object(members), None) => {
                members.shift_remove(last);
            }
            (Value::Array(items), Some(new)) => {
                let index = last.parse::<usize>().ok();
                if let Some(item) = index.and_then(|index| items.get_mut(index)) {
                    *item = new.clone();
                }
            }
            _ => {}
        }
    }

    /// Where the whole could not be decided: the part around the change alone. It breaks there, so it
    /// breaks, unless something elsewhere rules such events out. It never finds that it is compatible.
    fn judge_locally(&self, old: &Value, new: &Value) -> Judgement {
        let mut at = schema_at(&self.path);
        let opens = match &*self.path {
            // a property that is new, where none was allowed beside those that are named
            [holder @ .., within, _] if within == "properties" || within == "patternProperties" => {
                let closed = format!("{}/additionalProperties", pointer(holder));
                self.old.is_none() && old.pointer(&closed) == Some(&Value::Bool(false))
            }
            [.., last] => last == "additionalProperties" && self.old == Some(Value::Bool(false)),
            [] => false,
        };
        if opens && at.is_some() && self.new != Some(Value::Bool(false)) {
            return Judgement::Breaking;
        }
        while let Some(path) = at {
            let place = pointer(path);
            if let (Some(old), Some(new)) = (canonical(old, &place), canonical(new, &place))
                && decide(&old, &new) == Judgement::Breaking
            {
                return Judgement::Breaking;
            }
            at = match path.split_last() {
                Some((_, above)) => schema_at(above),
                None => None,
            };
        }
        Judgement::Unknown
    }
}

/// The longest beginning of `path` that leads to a schema which every value at its place must fit; `None`
/// where a step negates, or chooses among several.
fn schema_at(path: &[String]) -> Option<&[String]> {
    let (mut end, mut i) = (0, 0);
    while i < path.len() {
        i += match path[i].as_str() {
            "items" | "additionalProperties" => 1,
            "properties" | "patternProperties" | "prefixItems" | "$defs" | "definitions" => 2,
            "not"
            | "if"
            | "then"
            | "else"
            | "anyOf"
            | "oneOf"
            | "allOf"
            | "contains"
            | "propertyNames"
            | "dependentSchemas"
            | "dependencies"
            | "unevaluatedProperties"
            | "unevaluatedItems" => return None,
            _ => break,
        };
        if i <= path.len() {
            end = i;
        }
    }
    path.get(..end)
}

fn pointer(path: &[String]) -> String {
    let mut text = String::new();
    for name in path {
        text.push('/');
        text.push_str(&name.replace('~', "~0").replace('/', "~1"));
    }
    text
}

/// A schema with all that it refers to.
struct Whole {
    schema: Value,
    /// Why it cannot be put together, if so.
    obstacle: Option<&'static str>,
}

/// Keywords that give parts of a schema addresses of their own.
const ADDRESSES: [&str; 6] = [
    "$id",
    "id",
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveRef",
];

/// The schema of the file `path`, with the files that it refers to among its definitions.
fn whole(files: &Files, path: &str) -> Whole {
    let all: BTreeMap<&str, &Value> = files.documents().collect();
    let main = all.get(path).copied().unwrap_or(&Value::Null);
    let mut wanted = vec![path.to_owned()];
    let (mut schema, mut parts) = (main.clone(), Map::new());
    let draft = main.get("$schema").cloned();
    let shelf = match draft.as_ref().and_then(Value::as_str) {
        Some(old) if old.contains("draft-0") => "definitions",
        _ => "$defs",
    };
    let mut obstacle = None;
    let mut seen = BTreeSet::from([path.to_owned()]);
    while let Some(from) = wanted.pop() {
        let Some(document) = all.get(from.as_str()) else {
            continue;
        };
        let mut document = (*document).clone();
        // then other files' addresses count from there, and this does not know what they lead to
        let is_named = ["$id", "id"].iter().any(|id| document.get(id).is_some());
        let mut refer = |text: &str| -> Option<String> {
            let (file, place) = text.split_once('#').unwrap_or((text, ""));
            let to = match file {
                "" => from.clone(),
                _ if is_named => return None,
                file => resolved(&from, file, &all)?,
            };
            if !place.is_empty() && !place.starts_with('/') {
                return None;
            }
            if seen.insert(to.clone()) {
                wanted.push(to.clone());
            }
            Some(match to == path {
                true => format!("#{place}"),
                false => format!("#/{shelf}/{}{place}", shelved(&to)),
            })
        };
        let found = redirect(&mut document, Place::Root, &mut refer);
        obstacle = obstacle.or(found);
        if from == path {
            schema = document;
            continue;
        }
        if let Value::Object(members) = &mut document {
            let its = members.shift_remove("$schema");
            if its.is_some() && its != draft {
                obstacle = obstacle.or(Some("it refers to a schema of another draft"));
            }
        }
        parts.insert(from, document);
    }
    if !parts.is_empty()
        && let Value::Object(members) = &mut schema
    {
        let held = members.entry(shelf).or_insert_with(|| Map::new().into());
        if let Value::Object(held) = held {
            held.extend(parts);
        }
    }
    Whole { schema, obstacle }
}

/// A file's name as a fragment has it.
fn shelved(path: &str) -> String {
    let escaped = path.replace('~', "~0").replace('/', "~1");
    let address = address(&escaped);
    address.trim_start_matches(super::BASE).to_owned()
}

/// The file that `reference` means in the file `from`.
fn resolved(from: &str, reference: &str, all: &BTreeMap<&str, &Value>) -> Option<String> {
    let wanted = reference.strip_prefix(super::BASE);
    let mut parts: Vec<&str> = match (wanted, reference.starts_with('/')) {
        (Some(_), _) | (None, true) => Vec::new(),
        (None, false) => from.split('/').collect(),
    };
    parts.pop();
    for part in wanted.unwrap_or(reference).split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    let same =
        |known: &&&str| address(known) == format!("{}{path}", super::BASE) || **known == path;
    all.keys().find(same).map(|known| (*known).to_owned())
}

/// What a JSON object in a schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The schema that a file is.
    Root,
    /// A schema, or something that an unknown keyword has.
    Schema,
    /// Schemas by names of their own.
    Names,
}

/// Rewrites every reference in `schema` by `refer`; what stands in the way, if something does.
fn redirect(
    schema: &mut Value,
    place: Place,
    refer: &mut impl FnMut(&str) -> Option<String>,
) -> Option<&'static str> {
    let mut obstacle = None;
    match schema {
        Value::Object(members) => {
            for (name, value) in &mut *members {
                let found = match (place, name.as_str(), &mut *value) {
                    (Place::Names, _, value) => redirect(value, Place::Schema, refer),
                    (_, "enum" | "const" | "default" | "examples", _) => None,
                    (_, "$ref", Value::String(text)) => match refer(text) {
                        Some(other) => {
                            *text = other;
                            None
                        }
                        None => Some("it refers to something by an address of its own"),
                    },
                    (Place::Root, "$id" | "id", Value::String(_)) => None,
                    (_, name, Value::String(_)) if ADDRESSES.contains(&name) => {
                        Some("a part of it has an address of its own")
                    }
                    (
                        _,
                        "properties" | "patternProperties" | "$defs" | "definitions"
                        | "dependentSchemas" | "dependencies",
                        value,
                    ) => redirect(value, Place::Names, refer),
                    (_, _, value) => redirect(value, Place::Schema, refer),
                };
                obstacle = obstacle.or(found);
            }
            if place == Place::Root {
                members.shift_remove("$id");
                members.shift_remove("id");
            }
        }
        Value::Array(items) => {
            for item in items {
                let found = redirect(item, Place::Schema, refer);
                obstacle = obstacle.or(found);
            }
        }
        _ => {}
    }
    obstacle
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Contracts, Rules};
    use proptest::prelude::*;
    use serde_json::json;

    fn files(texts: &[(&str, &Value)]) -> Files {
        let texts: Vec<_> = texts
            .iter()
            .map(|(path, it)| (*path, it.to_string()))
            .collect();
        Files::of_texts(texts.iter().map(|(path, text)| (*path, text.as_str()))).unwrap()
    }

    fn one(schema: &Value) -> Files {
        files(&[("E.v1.json", schema)])
    }

    fn worst(changes: &[Change]) -> Judgement {
        let all = changes.iter().map(|change| change.judgement);
        all.max().unwrap_or(Judgement::Compatible)
    }

    fn order() -> Value {
        json!({
            "type": "object",
            "required": ["id", "total"],
            "properties": {
                "id": {"type": "string", "format": "uuid"},
                "total": {"type": "number", "minimum": 0, "description": "in euro"},
                "status": {"enum": ["open", "paid"]},
                "lines": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["sku"],
                        "properties": {"sku": {"type": "string", "pattern": "^[A-Z]+$"}}
                    }
                }
            }
        })
    }

    /// The judgement of every place that changes when the JSON at `pointer` becomes `to`.
    fn changed(schema: &Value, pointer: &str, to: Option<Value>) -> Vec<(String, Judgement)> {
        let mut path: Vec<String> = pointer.split('/').skip(1).map(str::to_owned).collect();
        let (old, new) = (None, to);
        let edit = Edit {
            path: std::mem::take(&mut path),
            old,
            new,
        };
        let mut after = schema.clone();
        edit.apply(&mut after);
        let changes = compare(&one(schema), &one(&after)).unwrap();
        changes
            .into_iter()
            .map(|it| (it.place, it.judgement))
            .collect()
    }

    #[test]
    fn each_edit_has_its_judgement_and_its_place() {
        use Judgement::{Breaking, Compatible, Unknown};
        let cases: &[(&str, Option<Value>, Judgement)] = &[
            ("/properties/total/description", None, Compatible),
            (
                "/properties/note",
                Some(json!({"type": "string"})),
                Compatible,
            ),
            (
                "/required",
                Some(json!(["id", "total", "status"])),
                Compatible,
            ),
            ("/required", Some(json!(["id"])), Breaking),
            ("/properties/status/enum", Some(json!(["open"])), Compatible),
            (
                "/properties/status/enum",
                Some(json!(["open", "paid", "lost"])),
                Breaking,
            ),
            ("/properties/total/minimum", Some(json!(1)), Compatible),
            ("/properties/total/minimum", Some(json!(-1)), Breaking),
            ("/properties/total/minimum", None, Breaking),
            ("/properties/total/type", Some(json!("integer")), Compatible),
            (
                "/properties/total/type",
                Some(json!(["number", "null"])),
                Breaking,
            ),
            ("/properties/id/format", None, Breaking),
            ("/properties/id", None, Breaking),
            ("/properties/lines/maxItems", Some(json!(3)), Compatible),
            (
                "/properties/lines/items/required",
                Some(json!([])),
                Breaking,
            ),
            (
                "/properties/lines/items/properties/sku/pattern",
                Some(json!("^[A-Z]{3}$")),
                Unknown,
            ),
            ("/additionalProperties", Some(json!(false)), Compatible),
        ];
        for (place, to, judgement) in cases {
            let found = changed(&order(), place, to.clone());
            assert_eq!(
                found,
                [((*place).to_owned(), *judgement)],
                "{place} to {to:?}"
            );
        }
        let mut closed = order();
        closed["additionalProperties"] = json!(false);
        let found = changed(&closed, "/properties/note", Some(json!({"type": "string"})));
        assert_eq!(found, [("/properties/note".to_owned(), Breaking)]);
        let found = changed(&closed, "/additionalProperties", None);
        assert_eq!(found, [("/additionalProperties".to_owned(), Breaking)]);
        // what negates turns round what an edit means
        let not = json!({"not": {"type": "number", "minimum": 3}});
        let found = changed(&not, "/not/minimum", Some(json!(2)));
        assert_eq!(found, [("/not/minimum".to_owned(), Compatible)]);
        let found = changed(&not, "/not/minimum", Some(json!(4)));
        assert_eq!(found, [("/not/minimum".to_owned(), Breaking)]);
    }

    #[test]
    fn what_makes_good_for_another_edit_is_seen_with_it() {
        let old =
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}});
        let new = json!({"allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}}, {"required": ["a"]}
        ]});
        let changes = compare(&one(&old), &one(&new)).unwrap();
        assert!(changes.len() > 1, "{changes:?}");
        assert_eq!(worst(&changes), Judgement::Compatible, "{changes:?}");
    }

    #[test]
    fn versions_and_event_types_come_and_go() {
        let any = json!({});
        let old = files(&[
            ("A.v1.json", &any),
            ("A.v2.json", &any),
            ("B.v1.json", &any),
        ]);
        let new = files(&[
            ("A.v2.json", &any),
            ("A.v10.json", &any),
            ("C.v1.json", &any),
        ]);
        let changes = compare(&old, &new).unwrap();
        let told: Vec<_> = changes
            .iter()
            .map(|it| (it.event_type.as_str(), it.version.as_str(), it.judgement))
            .collect();
        use Judgement::{Breaking, Compatible};
        assert_eq!(
            told,
            [
                ("A", "1", Breaking),
                ("A", "10", Compatible),
                ("B", "1", Breaking),
                ("C", "1", Compatible)
            ]
        );
        assert_eq!(compare(&old, &old), Ok(Vec::new()));
    }

    #[test]
    fn an_edited_part_is_an_edit_of_each_contract_that_refers_to_it() {
        let contract =
            json!({"properties": {"total": {"$ref": "_common/money.json#/$defs/amount"}}});
        let part =
            |minimum: i64| json!({"$defs": {"amount": {"type": "integer", "minimum": minimum}}});
        let with = |minimum: i64| {
            files(&[
                ("E.v1.json", &contract),
                ("_common/money.json", &part(minimum)),
            ])
        };
        let changes = compare(&with(0), &with(-1)).unwrap();
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(
            changes[0].place,
            "/$defs/_common~1money.json/$defs/amount/minimum"
        );
        assert_eq!(changes[0].judgement, Judgement::Breaking);
        assert_eq!(
            worst(&compare(&with(0), &with(1)).unwrap()),
            Judgement::Compatible
        );
    }

    #[test]
    fn what_cannot_be_told_is_never_called_compatible() {
        let dynamic = |minimum: i64| json!({"$defs": {"a": {"$anchor": "x", "minimum": minimum}}, "$ref": "#x"});
        let changes = compare(&one(&dynamic(1)), &one(&dynamic(2))).unwrap();
        assert_eq!(worst(&changes), Judgement::Unknown, "{changes:?}");
        let old = json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "string"});
        let new =
            json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "string"});
        let changes = compare(&one(&old), &one(&new)).unwrap();
        assert_eq!(worst(&changes), Judgement::Unknown, "{changes:?}");
    }

    #[test]
    fn a_schema_that_is_wrong_is_named_with_its_side() {
        let wrong = json!({"type": "strin"});
        let faults = compare(&one(&json!({})), &one(&wrong)).unwrap_err();
        assert_eq!(
            (faults[0].file.as_str(), faults[0].place.as_str()),
            ("new/E.v1.json", "/type")
        );
    }

    // ── the proof ──

    fn name() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("a"), Just("b"), Just("c")]
    }

    fn plain() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|it| json!(it)),
            (-2_i64..5).prop_map(|it| json!(it)),
            Just(json!(0.5)),
            Just(json!(1.0)),
            "[ab]{0,3}".prop_map(|it| json!(it)),
        ]
    }

    fn keyword(of: BoxedStrategy<Value>) -> BoxedStrategy<(&'static str, Value)> {
        let kinds = prop_oneof![
            Just(json!("object")),
            Just(json!("array")),
            Just(json!("string")),
            Just(json!("integer")),
            Just(json!("number")),
            Just(json!(["object", "null"])),
            Just(json!(["string", "integer"])),
        ];
        let names = proptest::collection::btree_set(name(), 0..3);
        let named = proptest::collection::btree_map(name(), of.clone(), 1..3);
        let named = named.prop_map(|all| {
            let all = all.into_iter().map(|(name, it)| (name.to_owned(), it));
            Value::Object(all.collect())
        });
        let some = proptest::collection::vec(of.clone(), 1..3).prop_map(Value::Array);
        let patterned = ("\\^?[ab]", of.clone()).prop_map(|(pattern, it)| json!({pattern: it}));
        let values = proptest::collection::vec(plain(), 1..4).prop_map(Value::Array);
        let small = 0_u64..3;
        prop_oneof![
            4 => kinds.prop_map(|it| ("type", it)),
            4 => named.prop_map(|it| ("properties", it)),
            3 => names.prop_map(|it| ("required", json!(it))),
            2 => of.clone().prop_map(|it| ("additionalProperties", it)),
            1 => Just(("additionalProperties", json!(false))),
            1 => patterned.prop_map(|it| ("patternProperties", it)),
            2 => of.clone().prop_map(|it| ("items", it)),
            2 => (-1_i64..4).prop_map(|it| ("minimum", json!(it))),
            1 => (-1_i64..4).prop_map(|it| ("exclusiveMinimum", json!(it))),
            2 => (-1_i64..4).prop_map(|it| ("maximum", json!(it))),
            1 => (1_i64..4).prop_map(|it| ("multipleOf", json!(it))),
            1 => small.clone().prop_map(|it| ("minLength", json!(it))),
            1 => small.clone().prop_map(|it| ("maxLength", json!(it))),
            1 => "\\^?[ab]\\$?".prop_map(|it| ("pattern", json!(it))),
            1 => small.clone().prop_map(|it| ("minItems", json!(it))),
            1 => small.clone().prop_map(|it| ("maxItems", json!(it))),
            1 => Just(("uniqueItems", json!(true))),
            1 => small.clone().prop_map(|it| ("minProperties", json!(it))),
            1 => small.prop_map(|it| ("maxProperties", json!(it))),
            2 => values.prop_map(|it| ("enum", it)),
            1 => plain().prop_map(|it| ("const", it)),
            1 => some.clone().prop_map(|it| ("anyOf", it)),
            1 => some.clone().prop_map(|it| ("oneOf", it)),
            1 => some.prop_map(|it| ("allOf", it)),
            1 => of.clone().prop_map(|it| ("not", it)),
            1 => of.clone().prop_map(|it| ("if", it)),
            1 => of.clone().prop_map(|it| ("then", it)),
            1 => of.clone().prop_map(|it| ("contains", it)),
            1 => of.prop_map(|it| ("propertyNames", it)),
            1 => Just(("$ref", json!("_part.json"))),
            1 => Just(("$ref", json!("#/definitions/d"))),
        ]
        .boxed()
    }

    fn schema() -> BoxedStrategy<Value> {
        let leaf = prop_oneof![
            3 => Just(json!({})),
            1 => Just(json!(false)),
            4 => plain().prop_map(|it| json!({"const": it})),
            6 => keyword(Just(json!({"type": "string"})).boxed()).prop_map(|(name, it)| json!({name: it})),
        ];
        leaf.prop_recursive(2, 12, 3, |of| {
            let members = proptest::collection::vec(keyword(of), 1..5);
            members.prop_map(|all| {
                Value::Object(
                    all.into_iter()
                        .map(|(name, it)| (name.to_owned(), it))
                        .collect(),
                )
            })
        })
        .boxed()
    }

    /// A schema, and what becomes of it by an edit or two: most pairs are near each other.
    fn pair() -> impl Strategy<Value = (Value, Value)> {
        let object = schema().prop_filter("an object", Value::is_object);
        let changes = proptest::collection::vec((keyword(schema()), any::<bool>()), 1..3);
        prop_oneof![
            3 => (object.clone(), changes).prop_map(|(old, changes)| {
                let mut new = old.clone();
                let members = new.as_object_mut().unwrap();
                for ((name, value), removes) in changes {
                    match removes && members.len() > 1 {
                        true => {
                            let first = members.keys().next().unwrap().clone();
                            members.shift_remove(&first);
                        }
                        false => {
                            members.insert(name.to_owned(), value);
                        }
                    }
                }
                (old, new)
            }),
            1 => (object.clone(), object),
        ]
    }

    fn folder(mut schema: Value, draft: &str, part: &Value, definition: &Value) -> Files {
        let members = schema.as_object_mut().unwrap();
        members.insert("$schema".into(), json!(draft));
        members.insert("definitions".into(), json!({"d": definition}));
        files(&[("E.v1.json", &schema), ("_part.json", part)])
    }

    /// Every small value there is, of a kind.
    fn instances() -> Vec<Value> {
        let plain = [
            json!(null),
            json!(true),
            json!(-2),
            json!(-1),
            json!(0),
            json!(0.5),
            json!(1),
            json!(2),
            json!(3),
            json!(4),
            json!(6),
            json!(""),
            json!("a"),
            json!("b"),
            json!("ab"),
            json!("aab"),
            json!("c"),
        ];
        let inner = [
            json!(null),
            json!(1),
            json!(-1),
            json!(2.5),
            json!("a"),
            json!(""),
            json!({}),
            json!({"a": 1}),
            json!([]),
            json!(["a"]),
        ];
        let mut all = plain.to_vec();
        all.push(json!([]));
        all.push(json!({}));
        for one in &inner {
            all.push(json!([one]));
            for name in ["a", "b", "c", "ba"] {
                all.push(json!({name: one}));
                all.push(json!({"a": {name: one}, "b": [one]}));
            }
            for other in &inner {
                all.push(json!([one, other]));
                all.push(json!({"a": one, "b": other}));
                all.push(json!({"b": one, "c": other}));
            }
            all.push(json!({"a": one, "b": 1, "c": "a"}));
            all.push(json!([one, 1, "a"]));
        }
        all
    }

    #[test]
    fn what_is_called_compatible_lets_no_event_through_that_was_not_allowed() {
        use proptest::test_runner::{Config, TestRunner};
        const CASES: u32 = 1_500;
        let instances = instances();
        let texts: Vec<Vec<u8>> = instances
            .iter()
            .map(|it| it.to_string().into_bytes())
            .collect();
        let drafts = prop_oneof![
            2 => Just("https://json-schema.org/draft/2020-12/schema"),
            1 => Just("http://json-schema.org/draft-07/schema#"),
        ];
        let strategy = (
            pair(),
            drafts,
            (schema(), schema()),
            (schema(), schema()),
            any::<bool>(),
        );
        let (mut compatible, mut breaking, mut edits) = (0, 0, 0);
        let mut runner = TestRunner::new(Config {
            cases: CASES,
            ..Config::default()
        });
        let (compatible, breaking, edits) = (&mut compatible, &mut breaking, &mut edits);
        let counts = std::cell::RefCell::new((compatible, breaking, edits));
        runner
            .run(
                &strategy,
                |((old, new), draft, parts, definitions, same)| {
                    let before = folder(old, draft, &parts.0, &definitions.0);
                    let after = match same {
                        true => folder(new, draft, &parts.0, &definitions.0),
                        false => folder(new, draft, &parts.1, &definitions.1),
                    };
                    let Ok(changes) = compare(&before, &after) else {
                        return Ok(());
                    };
                    let ready =
                        |files: &Files| Contracts::compile(files, Rules::default()).unwrap();
                    let (was, is) = (ready(&before), ready(&after));
                    let mut counts = counts.borrow_mut();
                    *counts.2 += changes.len();
                    if worst(&changes) != Judgement::Compatible {
                        *counts.1 += 1;
                        return Ok(());
                    }
                    *counts.0 += usize::from(!changes.is_empty());
                    for text in &texts {
                        let allowed = |it: &Contracts| it.judge("E", None, text).is_ok();
                        prop_assert!(
                            !allowed(&is) || allowed(&was),
                            "{} was not allowed, and is; {changes:?}",
                            String::from_utf8_lossy(text)
                        );
                    }
                    Ok(())
                },
            )
            .unwrap();
        let (compatible, breaking, edits) = counts.into_inner();
        println!("{compatible} compatible, {breaking} not, {edits} changes");
        // else the test proves nothing
        assert!(*compatible > CASES as usize / 10, "{compatible} of {CASES}");
        assert!(*breaking > CASES as usize / 10, "{breaking} of {CASES}");
    }
}
