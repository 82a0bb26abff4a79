//! What a table's columns are to the bytes that are made of them.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::error::Error;
use super::inspect::{Found, Look};
use super::layout::{literal, quote_table};
use super::lookup::Lookup;
use super::session::{answer, fixed};
use crate::config::Outbox;
use crate::connect::Column;
use crate::finding::Finding;
use crate::record::{Encoding, Style};

const DOING: &str = "read what the columns are";

/// Asks for the columns of the table whose oid the SQL `relid` gives. Plan: the catalogue alone.
fn sql(relid: &str) -> String {
    format!(
        "select a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                case when a.attidentity = '' and a.attgenerated = ''
                     then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end
           from pg_catalog.pg_attribute a
           left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
          where a.attrelid = {relid} and a.attnum > 0 and not a.attisdropped
          order by a.attnum"
    )
}

fn read(rows: &[PgRow]) -> Result<Vec<Column>, Error> {
    let column = |row: &PgRow| {
        Ok(Column {
            name: row.try_get(0)?,
            type_name: row.try_get(1)?,
            not_null: row.try_get(2)?,
            default: row.try_get(3)?,
        })
    };
    let columns: Result<_, sqlx::Error> = rows.iter().map(column).collect();
    columns.map_err(|error| Error::statement(DOING, error))
}

impl Look<'_> {
    /// The outbox's encoding, knowing the columns; what cannot be written goes to the problems. A table whose
    /// rows travel as Postgres prints them is not asked.
    pub(super) async fn encoding(&mut self, table: Found) -> Result<Encoding, Error> {
        let encoding = &self.outbox.encoding;
        if encoding.style == Style::Plain {
            return Ok(encoding.clone());
        }
        let rows = self.rows(DOING, sql(&table.oid.0.to_string())).await?;
        let known = encoding.knowing(&self.outbox.layout, &read(&rows)?);
        Ok(known.unwrap_or_else(|problems| {
            for why in problems {
                let text = format!(
                    "{}: {why}. Leave it out of headers_from, or set that part of outbox.formats to \
                     \"plain\"",
                    self.outbox.table
                );
                self.wrong.push(Finding::words(text));
            }
            encoding.clone()
        }))
    }
}

impl Lookup {
    /// The encoding of `outbox`, as its relays have it.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn encoding(&mut self, outbox: &Outbox) -> Result<Encoding, Error> {
        let encoding = outbox.encoding.clone();
        if encoding.style == Style::Plain {
            return Ok(encoding);
        }
        let relid = format!("to_regclass({})", literal(&quote_table(&outbox.table)));
        let limit = self.session.answer_timeout();
        let connection = self.session.connect().await?;
        let rows = sqlx::raw_sql(fixed(&sql(&relid))).fetch_all(connection);
        let columns = read(&answer(limit, DOING, rows).await?)?;
        // what cannot be written is the relay's to say
        Ok(encoding
            .knowing(&outbox.layout, &columns)
            .unwrap_or(encoding))
    }
}
