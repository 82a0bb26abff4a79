//! Values that print as redacted.

use std::fmt;
use std::path::Path;

/// Text that no log, error or dump may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What `file` holds, without the line end behind it.
    ///
    /// # Errors
    /// It cannot be read, or is empty: half a sentence with its name.
    pub fn of_file(file: &Path) -> Result<Self, String> {
        let shown = file.display();
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read {shown}: {error}"))?;
        match text.trim_end_matches(['\n', '\r']) {
            "" => Err(format!("{shown} is empty")),
            text => Ok(Self::new(text)),
        }
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
