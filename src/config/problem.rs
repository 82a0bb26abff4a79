//! What is wrong with a config: every fault at once, each with its place.

use std::fmt;

use super::suggest;
use super::written::Origin;

/// Why there is no config: one line per fault, naming file and line, variable or option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    problems: Vec<Problem>,
}

/// One fault. They sort by place, and what has none comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    /// Where, unless it is nowhere in particular: a thing that is missing.
    place: Option<Origin>,
    text: String,
}

impl Problem {
    pub(super) fn at(place: &Origin, text: impl Into<String>) -> Self {
        Self {
            place: Some(place.clone()),
            text: text.into(),
        }
    }

    pub(super) fn nowhere(text: impl Into<String>) -> Self {
        Self {
            place: None,
            text: text.into(),
        }
    }

    /// A key that does not exist, with the nearest of `valid`, or all of them where none is near.
    pub(super) fn unknown_key(place: &Origin, path: &str, name: &str, valid: &[&str]) -> Self {
        let hint = match suggest::nearest(name, valid.iter().copied()) {
            Some(key) => format!("did you mean `{key}`?"),
            None => format!("there are `{}`", valid.join("`, `")),
        };
        Self::at(place, format!("unknown key `{path}`; {hint}"))
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self {
            problems: vec![problem],
        }
    }
}

impl From<Vec<Problem>> for Error {
    fn from(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { problems }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            if let Some(place) = &problem.place {
                write!(f, "{place}: ")?;
            }
            f.write_str(&problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
