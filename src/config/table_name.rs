//! `schema.table` as SQL reads it.

use super::TableName;

/// What Postgres keeps of a name; it cuts the rest off with a notice nobody sees.
const BYTES_MAX: usize = 63;

impl TableName {
    /// Reads `table` or `schema.table` the way SQL does: a part without quotes is folded to lower
    /// case, a part in double quotes is kept, with `""` for a quote. No schema means `public`.
    ///
    /// # Errors
    /// One sentence on what is wrong with `text`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (first, rest) = part(text.trim())?;
        let name = match rest.strip_prefix('.') {
            None if rest.is_empty() => Self {
                schema: "public".into(),
                table: first,
            },
            None => return Err("a part ends before its end".into()),
            Some(rest) => {
                let (table, rest) = part(rest)?;
                if !rest.is_empty() {
                    return Err("it has more than a schema and a table".into());
                }
                Self {
                    schema: first,
                    table,
                }
            }
        };
        Ok(name)
    }

    /// The name as SQL and the config file take it: quoted where it must be.
    /// [`TableName::parse`] reads it back.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }
}

/// The first part of `text`, and what follows it.
fn part(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(text) => quoted_part(text)?,
        None => bare_part(text)?,
    };
    if name.is_empty() {
        Err("a part is empty".into())
    } else if name.contains('\0') {
        Err("a part has a NUL character".into())
    } else if name.len() > BYTES_MAX {
        Err(format!(
            "a part has {} bytes; Postgres keeps {BYTES_MAX}",
            name.len()
        ))
    } else {
        Ok((name, rest))
    }
}

fn quoted_part(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('"') {
        name.push_str(before);
        match after.strip_prefix('"') {
            None => return Ok((name, after)),
            Some(after) => {
                name.push('"');
                rest = after;
            }
        }
    }
    Err("a `\"` has no closing `\"`".into())
}

fn bare_part(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = match text.find('.') {
        None => (text, ""),
        Some(dot) => text.split_at(dot),
    };
    match name.chars().enumerate().find(|(i, c)| !bare(*i, *c)) {
        Some((_, c)) => Err(format!(
            "it has the character {c:?} outside of double quotes"
        )),
        // ASCII only, as Postgres folds in every encoding of more than one byte.
        None => Ok((name.to_ascii_lowercase(), rest)),
    }
}

/// Whether SQL takes `c` at `position` of a name without quotes.
fn bare(position: usize, c: char) -> bool {
    c.is_ascii_alphabetic()
        || c == '_'
        || !c.is_ascii()
        || (position > 0 && (c.is_ascii_digit() || c == '$'))
}

fn quote(name: &str) -> String {
    let plain = name
        .chars()
        .enumerate()
        .all(|(i, c)| c.is_ascii() && !c.is_ascii_uppercase() && bare(i, c));
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String) {
        let name = TableName::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(TableName::parse(&name.quoted()).as_ref(), Ok(&name));
        (name.schema, name.table)
    }

    #[test]
    fn names_are_read_as_sql_reads_them() {
        for (text, schema, table) in [
            ("outbox", "public", "outbox"),
            ("Shop.OutBox", "shop", "outbox"),
            ("shop.\"OutBox\"", "shop", "OutBox"),
            ("\"my shop\".\"a.b\"\"c\"", "my shop", "a.b\"c"),
            ("_a.b$1", "_a", "b$1"),
            (" GRÖSSE ", "public", "grÖsse"),
        ] {
            assert_eq!(parsed(text), (schema.into(), table.into()), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_says_why() {
        let long = "x".repeat(64);
        for (text, why) in [
            ("", "empty"),
            ("a.", "empty"),
            (".b", "empty"),
            ("\"\"", "empty"),
            ("a.b.c", "more than"),
            ("\"a", "closing"),
            ("\"a\"b", "ends"),
            ("a b", "' '"),
            ("1a", "'1'"),
            ("a-b", "'-'"),
            ("a\"b\"", "'\"'"),
            ("\"a\0\"", "NUL"),
            (long.as_str(), "64 bytes"),
        ] {
            let error = TableName::parse(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn words_that_need_quotes_get_them() {
        let name = TableName {
            schema: "Shop".into(),
            table: "out\"box".into(),
        };
        assert_eq!(name.quoted(), "\"Shop\".\"out\"\"box\"");
    }
}
