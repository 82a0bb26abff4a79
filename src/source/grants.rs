//! What the relay's role may do, and what it must be able to: one list, which is printed for whoever gives
//! the rights, and held against the role at every look.
//!
//! Two roles. The *owner* migrates: it makes the relay's schema and changes the service's table, so it is a
//! member of the role that owns that. The *runner* relays: it reads, locks and settles rows, and can make,
//! change or drop nothing.

use sqlx::Row as _;

use super::archive_sql;
use super::emit_sql;
use super::error::Error;
use super::inspect::Look;
use super::layout::{literal, quote, quote_if_need_be, quote_table};
use crate::config::{OnPublished, Outbox};
use crate::finding::Finding;

/// A right of the runner's.
struct Right {
    /// To follow `grant`.
    grant: String,
    /// Whether the present role has it, as SQL.
    check: String,
}

/// What the runner must have on the relay's own tables.
const OWN: [(&str, &str); 4] = [
    ("outbox", "select, update"),
    ("lane", "select, update"),
    ("parked", "select, insert, update, delete"),
    ("pause", "select"),
];

/// On the schemas: without these nothing in them can even be asked about.
fn rights_of_schemas(outbox: &Outbox) -> Vec<Right> {
    let schema = |name: &str, quoted: &str| Right {
        grant: format!("usage on schema {quoted}"),
        check: format!("has_schema_privilege({}, 'usage')", literal(name)),
    };
    let service = &outbox.table.schema;
    vec![
        schema(service, &quote(service)),
        schema("outbox_relay", "outbox_relay"),
    ]
}

/// On what is in them.
fn rights_in_schemas(outbox: &Outbox) -> Vec<Right> {
    let table = quote_table(&outbox.table);
    let t = literal(&table);
    let on_table = |grant: &str, check: String| Right {
        grant: format!("{grant} on {table}"),
        check,
    };
    // locking a row takes the right to update some column of it: where there is none to mark, the relay's own
    let updated = outbox.layout.published_at.as_deref().unwrap_or("seq");
    let mut all = vec![
        on_table("select", format!("has_table_privilege({t}, 'select')")),
        on_table(
            &format!("update ({})", quote_if_need_be(updated)),
            format!(
                "(has_column_privilege({t}, {updated}, 'update')
                  or has_table_privilege({t}, 'update'))",
                updated = literal(updated)
            ),
        ),
        // parking moves rows, whatever becomes of published ones
        on_table("delete", format!("has_table_privilege({t}, 'delete')")),
    ];
    let own = OWN.iter().map(|(name, rights)| {
        let each = rights.split(", ");
        let each = each
            .map(|right| format!("has_table_privilege('outbox_relay.{name}', '{right}')"))
            .collect::<Vec<_>>();
        Right {
            grant: format!("{rights} on outbox_relay.{name}"),
            check: each.join(" and "),
        }
    });
    all.extend(own);
    if outbox.on_published == OnPublished::Archive {
        let table = archive_sql::history(&outbox.table);
        all.push(Right {
            grant: format!("select, insert on {table}"),
            check: format!("has_table_privilege({}, 'insert')", literal(&table)),
        });
        for name in [
            "outbox_relay.tend_history(text, double precision, double precision)",
            "outbox_relay.index_history(text, text)",
        ] {
            all.push(Right {
                grant: format!("execute on function {name}"),
                check: format!("has_function_privilege('{name}', 'execute')"),
            });
        }
    }
    all
}

impl Look<'_> {
    /// Which grants are missing, as the statements that give them; in between, whether the history is there.
    pub(super) async fn grants(&mut self) -> Result<(), Error> {
        let mut missing = self.missing(rights_of_schemas(self.outbox)).await?;
        if missing.is_empty() {
            self.history().await?;
            if !self.wrong.is_empty() {
                return Ok(());
            }
            missing = self.missing(rights_in_schemas(self.outbox)).await?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let me = self.role().await?;
        for grant in missing {
            let sql = format!("grant {grant} to {me};");
            self.wrong.push(Finding::sql("a grant is missing", sql));
        }
        Ok(())
    }

    async fn missing(&mut self, rights: Vec<Right>) -> Result<Vec<String>, Error> {
        let mut missing = Vec::new();
        for Right { grant, check } in rights {
            let check = format!("select {check}");
            if !self.truth("check the grants", check).await? {
                missing.push(grant);
            }
        }
        Ok(missing)
    }

    /// What the role lacks that nothing fails for: it may not read the sequence of `seq`.
    pub(super) async fn sequence_right(&mut self) -> Result<Option<Finding>, Error> {
        let table = literal(&quote_table(&self.outbox.table));
        let sequence = format!(
            "select s.seqrelid::regclass::text from pg_catalog.pg_sequence s
              where s.seqrelid = pg_get_serial_sequence({table}, 'seq')::regclass
                and not has_sequence_privilege(s.seqrelid, 'usage, select')"
        );
        let rows = self.rows("ask who may read the sequence", sequence).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let sequence: String = row
            .try_get(0)
            .map_err(|error| Error::statement("ask who may read the sequence", error))?;
        let me = self.role().await?;
        Ok(Some(Finding::sql(
            format!(
                "the role may not read the sequence {sequence}: it relays, but cannot tell how far each lane \
                 is settled, so an old transaction makes claims slower and slower, and a sequence that was set \
                 back is not noticed"
            ),
            format!("grant select on sequence {sequence} to {me};"),
        )))
    }

    async fn role(&mut self) -> Result<String, Error> {
        let me = self
            .rows(
                "ask who the relay is",
                "select current_user::text".to_owned(),
            )
            .await?;
        let me = me.first().and_then(|row| row.try_get::<String, _>(0).ok());
        Ok(quote(&me.unwrap_or_default()))
    }
}

/// What the role `writer` of a service is given to write to `outboxes` by the functions for it, and by nothing
/// else. May run twice.
fn print_writer(outboxes: &[Outbox], writer: &str) -> String {
    let mut sql = format!(
        "\n-- 3. After it, too. {writer} writes events, by select outbox_relay.emit(…), and has no other right \
         on the\n-- outbox: it can neither read, change nor delete a row. Where `migrate` made no function, \
         this says so.\n"
    );
    for outbox in outboxes {
        sql.push_str(&emit_sql::allow(&outbox.table, writer));
    }
    sql
}

/// The roles `owner` and `runner` and all that they are given for `outboxes`, as plain SQL that may run
/// twice. Its first part goes before the migration, its second one after it.
pub(super) fn print(
    outboxes: &[Outbox],
    owner: &str,
    runner: &str,
    writer: Option<&str>,
) -> String {
    let role = |name: &str| {
        format!(
            "do $outbox_relay$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = {name}) then
    create role {quoted} login;
  end if;
end
$outbox_relay$;\n",
            name = literal(name),
            quoted = quote(name),
        )
    };
    let mut sql = format!(
        "-- The roles of outbox-relay, as printed by `outbox-relay migrate --print --grants`: for a superuser, \
         in\n-- the outbox's database. It may run twice. No role gets a password here: give one, or let \
         pg_hba.conf say\n-- how each logs in.\n\n\
         -- 1. Before `outbox-relay migrate`, which {owner} runs: it makes the relay's schema, and changes the\n\
         -- service's tables as a member of the role that owns them. The relay itself never needs it.\n\n\
         {role}",
        role = role(owner),
    );
    sql.push_str(&format!(
        "do $outbox_relay$
begin
  execute format('grant create on database %I to %I', current_database(), {});
end
$outbox_relay$;\n",
        literal(owner)
    ));
    for outbox in outboxes {
        sql.push_str(&format!(
            "\n-- {name}
grant usage, create on schema {schema} to {owner};
do $outbox_relay$
declare
  keeper name := (select pg_get_userbyid(relowner) from pg_catalog.pg_class where oid = to_regclass({table}));
begin
  if keeper is null then
    raise notice 'there is no table % yet: run this again when the service has made it', {table};
  elsif not pg_has_role({member}, keeper, 'member') then
    execute format('grant %I to %I', keeper, {member});
  end if;
end
$outbox_relay$;\n",
            name = outbox.table,
            schema = quote(&outbox.table.schema),
            table = literal(&quote_table(&outbox.table)),
            owner = quote(owner),
            member = literal(owner),
        ));
    }
    sql.push_str(&format!(
        "\n-- 2. After it. {runner} relays: it reads, locks and settles rows, and can make, change or drop \
         nothing.\n\n{role}",
        role = role(runner),
    ));
    let mut given = Vec::new();
    for outbox in outboxes {
        sql.push_str(&format!("\n-- {}\n", outbox.table));
        let rights = rights_of_schemas(outbox).into_iter();
        for right in rights.chain(rights_in_schemas(outbox)) {
            if given.contains(&right.grant) {
                continue;
            }
            sql.push_str(&format!("grant {} to {};\n", right.grant, quote(runner)));
            given.push(right.grant);
        }
        sql.push_str(&format!(
            "-- which functions write to it, for `outbox-relay check`
do $outbox_relay$
begin
  if to_regclass('outbox_relay.emitter') is not null then
    execute format('grant select on outbox_relay.emitter to %I', {runner});
  end if;
end
$outbox_relay$;
-- how far numbers were drawn; and nothing of it can be changed
do $outbox_relay$
begin
  execute format('grant select on sequence %s to %I', pg_get_serial_sequence({table}, 'seq'), {runner});
end
$outbox_relay$;\n",
            table = literal(&quote_table(&outbox.table)),
            runner = literal(runner),
        ));
    }
    if let Some(writer) = writer {
        sql.push_str(&print_writer(outboxes, writer));
    }
    sql
}
