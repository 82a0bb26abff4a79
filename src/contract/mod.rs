//! What an event may look like, as its service promised: a JSON Schema for each event type and version.
//! A row whose payload is none of these is parked before any consumer sees it, or published with a warning.
//!
//! [`folder`] reads the files, [`compare`] tells which edit of them breaks consumers; the rest of this is
//! pure. The validator (the crate `jsonschema`) fetches nothing, matches patterns in linear time, and is
//! compiled once. Payloads nest no deeper than 128: that is the JSON reader's own limit, so no payload
//! takes the stack.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use jsonschema::paths::LocationSegment;
use jsonschema::{PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::Value;

use crate::event::Event;
use crate::outcome::Reason;
use crate::record::{Header, Record};

pub mod compare;

pub mod folder;

pub use folder::{Fault, Files};

/// The class of [`Reason`] of a row whose payload is not as its contract says.
pub const VIOLATED: &str = "contract_violated";
/// The class of [`Reason`] of a row whose event type has no contract, where it must have one.
pub const MISSING: &str = "contract_missing";
/// The header that says which version of its contract an event has, unless a config names another.
pub const VERSION_HEADER: &str = "event_version";

/// What the files are called among each other.
const BASE: &str = "contract:///";
/// Most bytes of a name from a payload or a header that a reason repeats, where the contract has it too.
const SHOWN_BYTES_MAX: usize = 200;

/// What becomes of a row whose payload violates its contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnViolation {
    /// It is parked, as any other row that cannot be published.
    #[default]
    Park,
    /// It is published, counted, and told of now and then.
    Warn,
}

/// What becomes of a row whose event type has no contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// It is published.
    #[default]
    Pass,
    /// It is published, counted, and told of now and then.
    Warn,
    /// It is parked.
    Park,
}

/// Which version counts for a row that names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expected {
    /// The newest.
    #[default]
    Newest,
    /// The newest that its payload fits.
    Any,
}

/// What is done by the contracts, beside what they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Which version counts where the row does not say.
    pub expected: Expected,
    /// Of event types that are not named.
    pub on_violation: OnViolation,
    /// By event type, as rows have it.
    pub on_violation_by_event_type: BTreeMap<String, OnViolation>,
    /// Of event types without a contract.
    pub on_missing: OnMissing,
    /// The header that names the version. A row may bring it.
    pub header: String,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            expected: Expected::Newest,
            on_violation: OnViolation::Park,
            on_violation_by_event_type: BTreeMap::new(),
            on_missing: OnMissing::Pass,
            header: VERSION_HEADER.to_owned(),
        }
    }
}

impl Rules {
    fn on_violation(&self, event_type: &str) -> OnViolation {
        let named = self.on_violation_by_event_type.get(event_type);
        named.copied().unwrap_or(self.on_violation)
    }
}

/// The contracts of an outbox, ready to be held against rows.
pub struct Contracts {
    types: HashMap<String, Contract>,
    rules: Rules,
    /// Names that stand in the files: they may be repeated in a reason.
    known: BTreeSet<String>,
    digest: String,
}

/// The versions of one event type, the newest first; never none.
struct Contract {
    versions: Vec<Compiled>,
}

struct Compiled {
    version: Version,
    file: String,
    validator: Validator,
}

/// A version as a file's name has it, such as `2` or `1.10`. They are in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    numbers: Vec<u32>,
    text: String,
}

impl Version {
    /// Reads one to three numbers with dots between; none begins with a needless zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |part: &str| {
            let plain = part.bytes().all(|byte| byte.is_ascii_digit());
            let needless = part.len() > 1 && part.starts_with('0');
            (plain && !needless).then(|| part.parse().ok()).flatten()
        };
        let numbers: Vec<u32> = text.split('.').map(number).collect::<Option<_>>()?;
        (numbers.len() <= 3).then(|| Self {
            numbers,
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the contracts say of a row that is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted<'a> {
    /// Its record, with the header that names the version.
    pub record: Record<'a>,
    /// What is wrong with it, where the rules only warn.
    pub warning: Option<Reason>,
}

/// What one look at a payload came to.
enum Held<'a> {
    /// By this version.
    Fits(&'a Version),
    /// There is no payload.
    Tombstone,
    Violates(Reason),
    /// Its event type has no contract.
    Unknown,
}

impl Contracts {
    /// Compiles `files`.
    ///
    /// # Errors
    /// Everything that is wrong with them, each with its file and place.
    pub fn compile(files: &Files, rules: Rules) -> Result<Self, Vec<Fault>> {
        let documents = Documents::of(files);
        let (mut types, mut faults) = (HashMap::<String, Contract>::new(), Vec::new());
        for (file, schema) in files.schemas() {
            match documents.compile(&file.path, schema) {
                Ok(validator) => {
                    let contract = types.entry(file.event_type.clone());
                    let contract = contract.or_insert_with(|| Contract {
                        versions: Vec::new(),
                    });
                    contract.versions.push(Compiled {
                        version: file.version.clone(),
                        file: file.path.clone(),
                        validator,
                    });
                }
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        for contract in types.values_mut() {
            contract
                .versions
                .sort_by(|one, other| other.version.cmp(&one.version));
        }
        let mut known = BTreeSet::new();
        files.documents().for_each(|(_, it)| names(it, &mut known));
        Ok(Self {
            types,
            rules,
            known,
            digest: files.digest(),
        })
    }

    /// Says the same of two sets of files that are the same.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What is done by them.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// How many event types there are, and how many versions of them in all.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let versions = self.types.values().map(|it| it.versions.len()).sum();
        (self.types.len(), versions)
    }

    /// Whether `event_type` has a contract.
    #[must_use]
    pub fn knows(&self, event_type: &str) -> bool {
        self.types.contains_key(event_type)
    }

    /// Holds `record`, which was made of `event`, against its contract, and adds the header that names the
    /// version it fits.
    ///
    /// # Errors
    /// The reason to park the row.
    pub fn admit<'a>(
        &'a self,
        event: &Event,
        mut record: Record<'a>,
    ) -> Result<Admitted<'a>, Reason> {
        let held = self.hold(event, &record, self.rules.expected);
        let warning = match held {
            Held::Fits(version) => {
                self.label(&mut record, version);
                None
            }
            Held::Tombstone => None,
            Held::Violates(reason) => match self.rules.on_violation(&event.event_type) {
                OnViolation::Park => return Err(reason),
                OnViolation::Warn => Some(reason),
            },
            Held::Unknown => {
                let reason = || {
                    let text =
                        "the row's event type has no contract, and on_missing_contract wants one";
                    Reason::new(MISSING, text)
                };
                match self.rules.on_missing {
                    OnMissing::Pass => None,
                    OnMissing::Warn => Some(reason()),
                    OnMissing::Park => return Err(reason()),
                }
            }
        };
        Ok(Admitted { record, warning })
    }

    /// The same for a row that was published before: nothing is judged, and the header names the newest
    /// version that it fits, if it fits one.
    #[must_use]
    pub fn label_again<'a>(&'a self, event: &Event, mut record: Record<'a>) -> Record<'a> {
        if let Held::Fits(version) = self.hold(event, &record, Expected::Any) {
            self.label(&mut record, version);
        }
        record
    }

    /// What is wrong with `payload` of an event of `event_type` that says it has `version`, if it does; and
    /// the version it fits.
    ///
    /// # Errors
    /// The reason, in the words that a parked row would have.
    pub fn judge(
        &self,
        event_type: &str,
        version: Option<&str>,
        payload: &[u8],
    ) -> Result<Option<&Version>, Reason> {
        let Some(contract) = self.types.get(event_type) else {
            return Ok(None);
        };
        self.fit(contract, version, payload, self.rules.expected)
            .map(Some)
    }

    fn hold<'a>(&'a self, event: &Event, record: &Record<'_>, expected: Expected) -> Held<'a> {
        let (Some(payload), Some(_)) = (&event.payload, &record.value) else {
            return Held::Tombstone;
        };
        let Some(contract) = self.types.get(&*event.event_type) else {
            return Held::Unknown;
        };
        let named = record.headers.find(&self.rules.header);
        let named = named.and_then(|header| header.value);
        let named = named.map(|value| String::from_utf8_lossy(&value).into_owned());
        match self.fit(contract, named.as_deref(), payload, expected) {
            Ok(version) => Held::Fits(version),
            Err(reason) => Held::Violates(reason),
        }
    }

    fn fit<'a>(
        &'a self,
        contract: &'a Contract,
        named: Option<&str>,
        payload: &[u8],
        expected: Expected,
    ) -> Result<&'a Version, Reason> {
        let candidates = match named {
            Some(named) => {
                let mut all = contract.versions.iter();
                let found = all.find(|it| it.version.text == named);
                let Some(found) = found else {
                    let all: Vec<&str> = contract
                        .versions
                        .iter()
                        .map(|it| it.version.text.as_str())
                        .collect();
                    return Err(violated(format!(
                        "the row's header `{}` names no version that there is; there are {}",
                        self.rules.header,
                        all.join(", ")
                    )));
                };
                std::slice::from_ref(found)
            }
            None if expected == Expected::Any => &contract.versions,
            None => &contract.versions[..1],
        };
        let payload: Value = serde_json::from_slice(payload).map_err(|error| {
            violated(format!(
                "the payload is no JSON that can be read: {} at line {}, column {}",
                unreadable(&error),
                error.line(),
                error.column()
            ))
        })?;
        if let Some(fits) = candidates.iter().find(|it| it.validator.is_valid(&payload)) {
            return Ok(&fits.version);
        }
        // the newest that was tried: what a new writer is held to
        let tried = &candidates[0];
        let text = match tried.validator.validate(&payload) {
            Err(error) => self.told(tried, &payload, &error),
            Ok(()) => format!("the payload violates {}", tried.file),
        };
        Err(violated(text))
    }

    /// Where a payload violates its contract, and by which keyword; nothing of what is there.
    fn told(&self, by: &Compiled, payload: &Value, error: &ValidationError<'_>) -> String {
        let place = self.place(payload, error.instance_path());
        let keyword = (error.absolute_keyword_location())
            .map(ToString::to_string)
            .map(|location| {
                location
                    .strip_prefix(BASE)
                    .map(str::to_owned)
                    .unwrap_or(location)
            })
            .unwrap_or_else(|| error.schema_path().to_string());
        let detail = match error.kind() {
            jsonschema::error::ValidationErrorKind::Required { property } => {
                format!(" (`{}` is missing)", property.as_str().unwrap_or_default())
            }
            _ => String::new(),
        };
        format!(
            "the payload violates {}: at {place}, by {}{detail}",
            by.file,
            shortened(&keyword)
        )
    }

    /// A place of the payload as a JSON pointer. A name of it that no contract has is somebody's data: `*`.
    fn place(&self, payload: &Value, path: &jsonschema::paths::Location) -> String {
        let (mut here, mut text) = (Some(payload), String::new());
        for segment in path {
            let name = match &segment {
                LocationSegment::Property(name) => name.to_string(),
                LocationSegment::Index(index) => index.to_string(),
            };
            let (shown, next) = match here {
                Some(Value::Array(items)) => {
                    let index = name.parse::<usize>().ok();
                    (true, index.and_then(|index| items.get(index)))
                }
                Some(Value::Object(members)) => (self.known.contains(&name), members.get(&name)),
                _ => (false, None),
            };
            text.push('/');
            text.push_str(if shown { &name } else { "*" });
            here = next;
        }
        match text.is_empty() {
            true => "its root".to_owned(),
            false => shortened(&text),
        }
    }

    /// Adds the header that names `version`; a row that brought it has said so itself.
    fn label<'a>(&'a self, record: &mut Record<'a>, version: &'a Version) {
        let value = Some(version.text.as_bytes().into());
        let ours = |header: &&mut Header<'_>| header.name == self.rules.header;
        let headers = record.headers.to_mut();
        match headers.iter_mut().find(ours) {
            Some(header) => header.value = value,
            None => headers.push(Header {
                name: self.rules.header.as_str().into(),
                value,
            }),
        }
    }
}

impl fmt::Debug for Contracts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (types, versions) = self.count();
        f.debug_struct("Contracts")
            .field("types", &types)
            .field("versions", &versions)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

fn violated(text: String) -> Reason {
    Reason::new(VIOLATED, text)
}

fn unreadable(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        _ if error.to_string().starts_with("recursion limit") => "it nests deeper than 128",
        _ if error.to_string().starts_with("number out of range") => "a number is out of range",
        _ => "it is malformed",
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_BYTES_MAX) {
        Some((end, _)) => format!("{}…", text.split_at(end).0),
        None => text.to_owned(),
    }
}

/// Every name of a member in `value`, and every text of a list: `required` has names there.
fn names(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                into.insert(name.clone());
                names(value, into);
            }
        }
        Value::Array(items) => {
            for item in items {
                if let Value::String(text) = item {
                    into.insert(text.clone());
                }
                names(item, into);
            }
        }
        _ => {}
    }
}

/// The files by the addresses that a `$ref` may have for them.
struct Documents(HashMap<String, Value>);

impl Documents {
    fn of(files: &Files) -> Self {
        let mut all = HashMap::new();
        for (path, document) in files.documents() {
            let id = document.get("$id").or_else(|| document.get("id"));
            if let Some(id) = id.and_then(Value::as_str)
                && id.contains(':')
            {
                let id = id.split_once('#').map_or(id, |(id, _)| id);
                all.insert(id.to_owned(), document.clone());
            }
            all.insert(address(path), document.clone());
        }
        Self(all)
    }

    fn options(&self, path: &str) -> jsonschema::ValidationOptions<'static> {
        jsonschema::options()
            .with_retriever(Local(self.0.clone()))
            .with_base_uri(address(path))
            .with_pattern_options(patterns())
            .should_validate_formats(true)
    }

    fn compile(&self, path: &str, schema: &Value) -> Result<Validator, Fault> {
        let built = self.options(path).build(schema);
        built.map_err(|error| Fault::of_schema(path, &error))
    }
}

/// The engine that takes linear time. Look-around and backreferences are refused by it.
fn patterns() -> PatternOptions<jsonschema::Regex> {
    PatternOptions::regex()
        .size_limit(1 << 20)
        .dfa_size_limit(1 << 20)
}

/// The address of a file.
fn address(path: &str) -> String {
    let mut text = BASE.to_owned();
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Files of the folder, and nothing else in the world.
struct Local(HashMap<String, Value>);

impl Retrieve for Local {
    fn retrieve(
        &self,
        uri: &Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        self.0.get(uri.as_str()).cloned().ok_or_else(|| {
            match uri.as_str().strip_prefix(BASE) {
                Some(path) => format!("the folder has no file {path}"),
                None => "nothing is fetched from elsewhere: put the schema into the folder, under a name \
                         that begins with `_`, and refer to that"
                    .to_owned(),
            }
            .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn contracts(texts: &[(&str, &str)], rules: Rules) -> Contracts {
        let files = Files::of_texts(texts.iter().copied()).unwrap();
        Contracts::compile(&files, rules).unwrap()
    }

    fn reason(contracts: &Contracts, payload: &str) -> String {
        let judged = contracts.judge("E", None, payload.as_bytes());
        let reason = judged.expect_err("it violates its contract");
        assert_eq!(reason.class, VIOLATED);
        reason.text.clone()
    }

    #[test]
    fn a_reason_names_the_place_and_the_keyword_and_nothing_of_the_payload() {
        let schema = r#"{
          "required": ["n"],
          "properties": {
            "n": true,
            "lines": {"items": {"properties": {"sku": {"type": "string"}}}},
            "by_mail": {"additionalProperties": {"type": "integer"}}
          },
          "additionalProperties": false
        }"#;
        let all = contracts(&[("E.v1.json", schema)], Rules::default());
        let cases = [
            (
                r#"{"lines": []}"#,
                "at its root, by E.v1.json#/required (`n` is missing)",
            ),
            (
                r#"{"n": 1, "lines": [{}, {"sku": 4711}]}"#,
                "at /lines/1/sku, by E.v1.json#/properties/lines/items/properties/sku/type",
            ),
            (
                r#"{"n": 1, "by_mail": {"pat@canary.example": "x"}}"#,
                "at /by_mail/*, by E.v1.json#/properties/by_mail/additionalProperties/type",
            ),
            (
                r#"{"n": 1, "canary": 2}"#,
                "at its root, by E.v1.json#/additionalProperties",
            ),
        ];
        for (payload, told) in cases {
            let text = reason(&all, payload);
            assert_eq!(text, format!("the payload violates E.v1.json: {told}"));
        }
    }

    #[test]
    fn what_is_no_json_or_nests_without_end_violates_and_takes_no_stack() {
        let tree = r##"{"properties": {"a": {"$ref": "#"}}, "items": {"$ref": "#"}}"##;
        let all = contracts(&[("E.v1.json", tree)], Rules::default());
        for (payload, told) in [
            ("", "it ends too early at line 1, column 0"),
            ("\"canary", "it ends too early"),
            ("nonsense", "it is malformed"),
            ("1e400", "a number is out of range"),
            ("\u{0}", "it is malformed"),
        ] {
            let text = reason(&all, payload);
            assert!(text.contains(told) && !text.contains("canary"), "{text}");
        }
        for open in ["[", "{\"a\":"] {
            let text = reason(&all, &open.repeat(1_000_000));
            assert!(text.contains("it nests deeper than 128"), "{text}");
            let close = if open == "[" { "]" } else { "}" };
            let deep = format!("{}1{}", open.repeat(127), close.repeat(127));
            // on the small stack that a worker has
            std::thread::scope(|scope| {
                let builder = std::thread::Builder::new().stack_size(2 << 20);
                let judged =
                    builder.spawn_scoped(scope, || all.judge("E", None, deep.as_bytes()).is_ok());
                assert!(judged.unwrap().join().unwrap());
            });
        }
        // a reference that leads to itself asks nothing, and ends
        let all = contracts(
            &[(
                "E.v1.json",
                r##"{"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}"##,
            )],
            Rules::default(),
        );
        assert!(all.judge("E", None, b"1").is_ok());
    }

    #[test]
    fn patterns_take_linear_time() {
        let schema = r#"{"pattern": "^(a+)+$"}"#;
        let all = contracts(&[("E.v1.json", schema)], Rules::default());
        let hostile = json!("a".repeat(100_000) + "!").to_string();
        assert!(reason(&all, &hostile).ends_with("by E.v1.json#/pattern"));
    }

    #[test]
    fn files_are_found_by_their_path_or_their_id_and_nowhere_else() {
        let by_path = r#"{"$ref": "../_parts/a%20b.json#/$defs/n"}"#;
        let by_id = r#"{"$id": "https://example.com/E.json", "$ref": "n.json"}"#;
        let texts = [
            ("orders/Paid.v1.json", by_path),
            ("E.v1.json", by_id),
            (
                "_parts/a b.json",
                r#"{"$defs": {"n": {"type": "integer"}}}"#,
            ),
            (
                "_n.json",
                r#"{"$id": "https://example.com/n.json", "type": "integer"}"#,
            ),
        ];
        let all = contracts(&texts, Rules::default());
        for event_type in ["orders/Paid", "E"] {
            assert!(all.judge(event_type, None, b"1").is_ok());
            assert!(all.judge(event_type, None, b"\"x\"").is_err());
        }
        assert_eq!(all.judge("Other", None, b"no JSON"), Ok(None));
        for elsewhere in [
            "https://example.com/m.json",
            "file:///etc/passwd",
            "/etc/passwd",
        ] {
            let text = json!({"$ref": elsewhere}).to_string();
            let files = Files::of_texts([("E.v1.json", text.as_str())]).unwrap();
            let faults = Contracts::compile(&files, Rules::default()).unwrap_err();
            assert_eq!(faults[0].file, "E.v1.json");
            let text = &faults[0].text;
            assert!(
                text.contains("nothing is fetched") || text.contains("has no file"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_version_is_newer_by_its_numbers_and_a_strange_name_is_refused() {
        let texts = ["9", "10", "2", "1.10", "1.9"].map(|it| format!("E.v{it}.json"));
        let texts: Vec<_> = texts.iter().map(|path| (path.as_str(), "{}")).collect();
        let all = contracts(&texts, Rules::default());
        let versions: Vec<_> = (all.types["E"].versions.iter())
            .map(|it| it.version.to_string())
            .collect();
        assert_eq!(versions, ["10", "9", "2", "1.10", "1.9"]);
        for name in [
            "E.json",
            "E.v.json",
            "E.v01.json",
            "E.v1.2.3.4.json",
            "E.vx.json",
            ".v1.json",
            "a/.v1.json",
            "E.v1x.json",
        ] {
            assert!(Files::of_texts([(name, "{}")]).is_err(), "{name}");
        }
        assert!(Files::of_texts([("Order.viewed.v1.json", "{}")]).is_ok());
    }

    #[test]
    fn two_folders_that_differ_have_other_digests() {
        let digest =
            |texts: &[(&str, &str)]| Files::of_texts(texts.iter().copied()).unwrap().digest();
        let one = digest(&[("E.v1.json", "{}"), ("_a.json", "1")]);
        assert_eq!(one, digest(&[("_a.json", "1"), ("E.v1.json", "{}")]));
        assert_ne!(one, digest(&[("E.v1.json", "{ }"), ("_a.json", "1")]));
        assert_ne!(one, digest(&[("E.v1.json", "{}"), ("_b.json", "1")]));
    }

    proptest! {
        #[test]
        fn no_word_of_a_payload_is_in_a_reason(
            word in "zq[a-z0-9@/~]{6,20}", n in any::<i32>(), nested in any::<bool>()
        ) {
            let schema = r#"{
              "type": "object", "properties": {"a": {"type": "array", "items": {"enum": [1, 2]}}},
              "patternProperties": {"^zq": {"not": {}}}, "additionalProperties": {"type": "null"},
              "propertyNames": {"maxLength": 12}
            }"#;
            let all = contracts(&[("E.v1.json", schema)], Rules::default());
            let payload = match nested {
                true => json!({"a": [word, n], word.clone(): {word.clone(): word}}),
                false => json!({word.clone(): [word.clone(), n], "other": word}),
            };
            let text = reason(&all, &payload.to_string());
            prop_assert!(!text.contains(&word), "{}", text);
            prop_assert!(!text.replace("%5Ezq", "").contains("zq"), "{}", text);
        }
    }
}
