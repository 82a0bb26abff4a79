//! What can go wrong with Postgres, in words for whoever reads the log.

use std::time::Duration;

use crate::certificate::Trouble;

/// What went wrong with the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection could be made.
    #[error(
        "cannot connect to Postgres: look whether it runs, and at the address, the role and the password \
         of database.url"
    )]
    Connect(#[source] Cause),
    /// There is a server, and no safe connection to it, or the files for one are of no use.
    #[error("cannot connect to Postgres safely: {0}")]
    Unsafe(Trouble),
    /// A statement failed; its transaction is gone and its rows are free again.
    #[error("Postgres refused to {doing}")]
    Statement {
        /// What the statement was for.
        doing: &'static str,
        /// What Postgres said.
        #[source]
        cause: Cause,
    },
    /// No answer came in time, so the connection was given up.
    #[error("Postgres did not answer within {after:?} when asked to {doing}")]
    Silence {
        /// What the statement was for.
        doing: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// Relays of one table route differently.
    #[error(
        "the relays of {outbox} do not agree on routing: this one has `{ours}`, the table is served \
         with `{theirs}`. Give all of them one config; if that is the new one, say so once with \
         `outbox-relay migrate --yes` while no relay with the old one runs"
    )]
    Routing {
        /// The table.
        outbox: String,
        /// This relay's routing.
        ours: String,
        /// The one kept with the lanes.
        theirs: String,
    },
    /// The number of lanes changed under the relay.
    #[error("{outbox} has {theirs} lanes now, and had {ours} when this relay looked at it")]
    Lanes {
        /// The table.
        outbox: String,
        /// The number this relay has been counting on.
        ours: u16,
        /// The number of lane rows there are.
        theirs: i64,
    },
    /// The connection leads to another database than the outbox was first served in.
    #[error(
        "{outbox} is now another database's, a copy of the one it was first served in: see `outbox-relay \
         adopt`"
    )]
    Copy {
        /// The table.
        outbox: String,
    },
    /// Fewer rows were marked, deleted or moved than were published.
    #[error(
        "{changed} of {expected} published rows of {outbox} could be marked, deleted or moved: look for a \
         trigger or a rule on the table that stops it. They will be published again"
    )]
    Unsettled {
        /// The table.
        outbox: String,
        /// Rows that Kafka has.
        expected: usize,
        /// Rows that Postgres changed.
        changed: u64,
    },
    /// A row could not be read as the layout says. The start checks should have found it.
    #[error("a row of {outbox} could not be read")]
    Row {
        /// The table.
        outbox: String,
        /// What did not fit.
        #[source]
        cause: Cause,
    },
    /// The table cannot be served any more; what to do about it.
    #[error("{0}")]
    Changed(String),
    /// A migration of the relay's own schema failed.
    #[error("the migrations of the schema outbox_relay could not be applied")]
    Migration(#[source] Cause),
}

/// What Postgres or its driver said: a message and its code, without the rows it may be about.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Cause {
    text: String,
    code: Option<String>,
}

impl Cause {
    /// SQLSTATE, if Postgres answered at all.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Something of our own to say.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: None,
        }
    }
}

impl From<sqlx::Error> for Cause {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // the detail and the hint can hold a row's values: only the message and the code
            sqlx::Error::Database(database) => {
                let code = database.code().map(|code| code.into_owned());
                let shown = code.as_deref().unwrap_or("?????");
                let message = database.message();
                let advice = code.as_deref().and_then(|code| advice(code, message));
                let advice = advice.unwrap_or_default();
                Self {
                    text: format!("{message} (SQLSTATE {shown}){advice}"),
                    code,
                }
            }
            _ => Self {
                text: error.to_string(),
                code: None,
            },
        }
    }
}

/// What to do about what Postgres said, where its own words do not say it.
fn advice(code: &str, message: &str) -> Option<&'static str> {
    const READ_ONLY: &str = ". This server is read-only, a standby most likely: look where the address of database.url leads. \
         The relay waits for a primary";
    const POOLER: &str = ". Is a pooler between them that hands each transaction to another server process? Then set \
         prepared_statements = false in [database]";
    const CLIENT: &str = ". Name one by sslcert and sslkey in database.url: it must be for this role, and from an authority \
         of the server's ssl_ca_file";
    match code {
        // read only sql transaction
        "25006" => Some(READ_ONLY),
        // feature not supported: what a standby says of `begin read write`
        "0A000" if message.contains("recovery") => Some(READ_ONLY),
        // invalid authorization
        "28000" if message.contains("certificate") => Some(CLIENT),
        // invalid statement name, duplicate prepared statement, and parameters for another statement
        // of that name
        "26000" | "42P05" => Some(POOLER),
        "08P01" if message.contains("prepared statement") => Some(POOLER),
        _ => None,
    }
}

impl Error {
    /// A statement for `doing` failed with `error`.
    pub(super) fn statement(doing: &'static str, error: sqlx::Error) -> Self {
        Self::Statement {
            doing,
            cause: error.into(),
        }
    }

    /// SQLSTATE, if Postgres gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Connect(cause)
            | Self::Statement { cause, .. }
            | Self::Row { cause, .. }
            | Self::Migration(cause) => cause.code(),
            Self::Unsafe(_)
            | Self::Silence { .. }
            | Self::Routing { .. }
            | Self::Lanes { .. }
            | Self::Copy { .. }
            | Self::Unsettled { .. }
            | Self::Changed(_) => None,
        }
    }

    /// Whether there is no server to talk to, or no safe way there: no statement was refused.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Connect(_) | Self::Unsafe(_) | Self::Silence { .. }
        )
    }

    /// Whether a statement that does not wait met a row that somebody else has locked.
    pub(super) fn met_a_lock(&self) -> bool {
        // lock_not_available
        self.code() == Some("55P03")
    }

    /// Whether the table, a column, a grant or the routing may have changed under the relay, so that
    /// the start checks should look again: they say exactly what is wrong and what to do.
    #[must_use]
    pub fn wants_inspection(&self) -> bool {
        // undefined table, column, schema, function; insufficient privilege; datatype mismatch; no partition
        const CHANGED: &[&str] = &[
            "42P01", "42703", "3F000", "42883", "42501", "42804", "42846", "23514",
        ];
        matches!(
            self,
            Self::Routing { .. } | Self::Lanes { .. } | Self::Copy { .. } | Self::Row { .. }
        ) || self.code().is_some_and(|code| CHANGED.contains(&code))
    }
}
