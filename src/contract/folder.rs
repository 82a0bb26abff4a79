//! A folder of contracts: `<event type>.v<version>.json`, and parts that others refer to, whose names
//! begin with `_`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use jsonschema::ValidationError;
use serde_json::Value;

use super::{BASE, Version};

/// Most files of a folder, and the largest: a wrong path must not take the memory.
const FILES_MAX: usize = 10_000;
const FILE_BYTES_MAX: u64 = 4 << 20;
/// How deep folders may nest.
const DEPTH_MAX: usize = 16;

/// The files of a folder, read as JSON, by their paths in it.
#[derive(Debug, Clone, Default)]
pub struct Files {
    documents: BTreeMap<String, Value>,
    schemas: Vec<File>,
    digest: u64,
    is_one: bool,
}

/// A file that is the contract of an event type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path in the folder, with `/` between.
    pub path: String,
    /// The event type, as rows have it: the path without `.v<version>.json`.
    pub event_type: String,
    /// Which version.
    pub version: Version,
}

/// Something that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Its path in the folder; empty for the folder itself.
    pub file: String,
    /// Where in it, as a JSON pointer, or a line.
    pub place: String,
    /// What, and what to do.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.file, &self.place] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.text)
    }
}

impl Fault {
    fn new(file: &str, place: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            place: place.into(),
            text: text.into(),
        }
    }

    /// What the validator has against the schema of `file`.
    pub(super) fn of_schema(file: &str, error: &ValidationError<'_>) -> Self {
        let place = error.instance_path().to_string();
        let text = match place.ends_with("/pattern") || place.contains("/patternProperties") {
            true => {
                "this is no regular expression that is matched in linear time: look-around and \
                     backreferences are none"
                    .to_owned()
            }
            // a schema is no secret, but it may be long
            false => error.masked_with("what is there").to_string(),
        };
        Self::new(file, place, text.replace(BASE, ""))
    }
}

impl Files {
    /// Reads `path`: a folder, or one file, whose parts are looked for beside it.
    ///
    /// # Errors
    /// Everything that cannot be read, is no JSON, or has a name that says nothing.
    pub fn read(path: &Path) -> Result<Self, Vec<Fault>> {
        let mut reading = Reading::default();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            reading.files.is_one = true;
            reading.file(path, &name);
            let beside = path.parent().filter(|it| !it.as_os_str().is_empty());
            reading.folder(beside.unwrap_or_else(|| Path::new(".")), "", 0, true);
        } else {
            reading.folder(path, "", 0, false);
        }
        reading.end()
    }

    /// Of texts by their paths, as a folder would have them.
    ///
    /// # Errors
    /// As [`Files::read`].
    pub fn of_texts<'a>(
        texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Vec<Fault>> {
        let mut reading = Reading::default();
        for (path, text) in texts {
            reading.text(path, text);
        }
        reading.end()
    }

    /// The contracts, by event type and version.
    pub fn schemas(&self) -> impl Iterator<Item = (&File, &Value)> {
        let document = |file: &'_ File| self.documents.get(&file.path);
        (self.schemas.iter()).filter_map(move |file| Some((file, document(file)?)))
    }

    /// All files, parts too.
    pub fn documents(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.documents.iter().map(|(path, it)| (path.as_str(), it))
    }

    /// Whether somebody named a file, not a folder: then its name need not say what it is.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.is_one
    }

    /// Whether there is no contract.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.schemas.is_empty()
    }

    /// The same of two folders that hold the same.
    #[must_use]
    pub fn digest(&self) -> String {
        format!("{:016x}", self.digest)
    }
}

#[derive(Default)]
struct Reading {
    files: Files,
    texts: BTreeMap<String, String>,
    faults: Vec<Fault>,
    count: usize,
}

impl Reading {
    /// Reads the folder `path`, called `within` in the files' names; with `parts`, parts alone.
    fn folder(&mut self, path: &Path, within: &str, depth: usize, parts: bool) {
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => {
                let text = format!("cannot read the folder {}: {error}", path.display());
                return self.faults.push(Fault::new("", "", text));
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let text = format!("cannot read the folder {}: {error}", path.display());
                    self.faults.push(Fault::new("", "", text));
                    continue;
                }
            };
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str() else {
                self.faults
                    .push(Fault::new(within, "", "a file's name is not UTF-8"));
                continue;
            };
            // among them the links by which Kubernetes changes a mounted folder at once
            let hidden = name.starts_with('.');
            let part = name.starts_with('_') || within.split('/').any(|it| it.starts_with('_'));
            if hidden || (parts && !part) {
                continue;
            }
            let (path, name) = (entry.path(), format!("{within}{name}"));
            if path.is_dir() {
                match depth < DEPTH_MAX {
                    true => self.folder(&path, &format!("{name}/"), depth + 1, parts),
                    false => self
                        .faults
                        .push(Fault::new(&name, "", "folders nest too deep")),
                }
            } else if name.ends_with(".json") {
                self.file(&path, &name);
            }
        }
    }

    fn file(&mut self, path: &Path, name: &str) {
        self.count += 1;
        if self.count == FILES_MAX + 1 {
            let text = format!("more than {FILES_MAX} files: is this the right folder?");
            self.faults.push(Fault::new("", "", text));
        }
        if self.count > FILES_MAX {
            return;
        }
        let length = std::fs::metadata(path).map(|it| it.len());
        let text = match length {
            Ok(bytes) if bytes > FILE_BYTES_MAX => Err(format!(
                "it has {bytes} bytes; {FILE_BYTES_MAX} are the most"
            )),
            _ => std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}")),
        };
        match text {
            Ok(text) => self.text(name, &text),
            Err(why) => self.faults.push(Fault::new(name, "", why)),
        }
    }

    fn text(&mut self, path: &str, text: &str) {
        let is_part = path.split('/').any(|name| name.starts_with('_'));
        let is_named = self.files.is_one && self.texts.is_empty();
        let whatever = || Some((path.trim_end_matches(".json"), Version::parse("1")?));
        if !is_part || is_named {
            match split(path).or_else(|| whatever().filter(|_| is_named)) {
                Some((event_type, version)) => self.files.schemas.push(File {
                    path: path.to_owned(),
                    event_type: event_type.to_owned(),
                    version,
                }),
                None => self.faults.push(Fault::new(
                    path,
                    "",
                    "its name says no event type and version: call it <event type>.v1.json, or begin its \
                     name with `_` if others refer to it",
                )),
            }
        }
        match serde_json::from_str(text) {
            Ok(value) => {
                self.files.documents.insert(path.to_owned(), value);
            }
            Err(error) => {
                let place = format!("line {}, column {}", error.line(), error.column());
                self.faults.push(Fault::new(path, place, "it is no JSON"));
            }
        }
        self.texts.insert(path.to_owned(), text.to_owned());
    }

    fn end(mut self) -> Result<Files, Vec<Fault>> {
        let key = |file: &File| (file.event_type.clone(), file.version.clone());
        self.files.schemas.sort_by_key(key);
        if !self.faults.is_empty() {
            self.faults.sort();
            return Err(self.faults);
        }
        let mut digest = Digest::default();
        for (path, text) in &self.texts {
            digest.add(path);
            digest.add(text);
        }
        self.files.digest = digest.0;
        Ok(self.files)
    }
}

/// `OrderPaid.v2.json` is `OrderPaid`, version 2.
fn split(path: &str) -> Option<(&str, Version)> {
    let (event_type, version) = path.strip_suffix(".json")?.rsplit_once(".v")?;
    let named = !event_type.is_empty() && !event_type.ends_with('/');
    Some((event_type, Version::parse(version).filter(|_| named)?))
}

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>): to tell two folders apart, not to withstand
/// anybody.
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// One more text; where it ends is told too.
    fn add(&mut self, text: &str) {
        for byte in text.bytes().chain([0xff]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
