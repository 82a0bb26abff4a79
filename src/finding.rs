//! What is wrong with a set-up, and how to mend it. Pure.

use std::fmt;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong and what comes of it, with the real names in it.
    pub why: String,
    /// What mends it, where one thing does; else the reason says what to do.
    pub fix: Option<Fix>,
}

/// What mends something: to be pasted as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fix {
    /// SQL, for the database that has the outbox.
    Sql(String),
    /// A line for a shell.
    Shell(String),
    /// Arguments of `outbox-relay`, but for those that say where the config is.
    Relay(String),
    /// A key of the config with its value, as TOML has it, and the section it goes to.
    Setting {
        /// Such as `database`.
        section: &'static str,
        /// Such as `prepared_statements = false`.
        line: String,
    },
    /// Something a person has to do.
    Words(String),
}

impl Finding {
    /// Mended by `sql`.
    #[must_use]
    pub fn sql(why: impl Into<String>, sql: impl Into<String>) -> Self {
        let fix = Some(Fix::Sql(sql.into()));
        let why = why.into();
        Self { why, fix }
    }

    /// Mended by `outbox-relay migrate`, which `why` says.
    #[must_use]
    pub fn migrate(why: impl Into<String>) -> Self {
        let fix = Some(Fix::Relay("migrate --yes".to_owned()));
        let why = why.into();
        Self { why, fix }
    }

    /// Mended as `why` says.
    #[must_use]
    pub fn words(why: impl Into<String>) -> Self {
        let why = why.into();
        Self { why, fix: None }
    }
}

/// One line, for a log.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fix {
            Some(Fix::Sql(sql)) => write!(f, "{}. Run: {sql}", self.why),
            _ => f.write_str(&self.why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_log_has_the_statement_that_mends_it() {
        let finding = Finding::sql("the sequence s cycles", "alter sequence s no cycle;");
        let line = "the sequence s cycles. Run: alter sequence s no cycle;";
        assert_eq!(finding.to_string(), line);
        let finding = Finding::migrate("there is no index: `outbox-relay migrate` makes it");
        assert_eq!(finding.to_string(), finding.why);
    }
}
