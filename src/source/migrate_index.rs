//! The lanes' index, as `migrate` makes it: concurrently, whatever the table is.
//!
//! A partitioned table cannot have an index made concurrently. So it gets an empty one first, which partitions
//! that come from then on have by themselves; each partition there is gets its own, concurrently, and these
//! are attached one by one. The table's is valid when the last of them is.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::ddl::Ddl;
use super::error::Error;
use super::layout::{index_name, literal, own_name, quote, quote_table};
use super::migrate::{Step, TableMigration};
use super::session::answer;
use crate::config::TableName;

/// A table of a partition tree that lacks a valid index, and what there is of it.
struct Bare {
    table: TableName,
    parent: Option<TableName>,
    is_leaf: bool,
    /// Whether there is one by the name, and whether it is valid.
    index: Option<bool>,
    attached: bool,
}

impl TableMigration<'_> {
    pub(super) async fn find_index(&mut self) -> Result<Option<Step>, Error> {
        let name = &self.outbox.table;
        let lanes = self.lanes_in_force().await?;
        let index = index_name(name, lanes);
        let (schema, quoted) = (literal(&name.schema), literal(&index));
        let found = format!(
            "select coalesce((select case when i.indisvalid then 2 else 1 end
               from pg_catalog.pg_index i
               join pg_catalog.pg_class c on c.oid = i.indexrelid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where n.nspname = {schema} and c.relname = {quoted}), 0)::int8"
        );
        match self.number(found).await? {
            2 => return Ok(None),
            // what a cancelled build left
            1 => {
                let drop = format!(
                    "drop index concurrently if exists {}.{};",
                    quote(&name.schema),
                    quote(&index)
                );
                self.run(&Step {
                    title: String::new(),
                    leave: None,
                    concurrent: true,
                    sql: drop,
                })
                .await?;
            }
            _ => {}
        }
        let sql = Ddl::of(self.outbox, lanes).index();
        Ok(Some(Step {
            title: format!("{name}: making the index {index}, concurrently"),
            leave: None,
            concurrent: true,
            sql,
        }))
    }

    /// Makes the index of a partitioned table and of all its partitions.
    pub(super) async fn index_partitions(
        &mut self,
        say: &mut impl FnMut(&str),
    ) -> Result<(), Error> {
        let lanes = self.lanes_in_force().await?;
        let suffix = format!("_outbox_relay_{lanes}");
        let name = self.outbox.table.clone();
        let index_of = |table: &TableName| own_name(table, &suffix);
        let quoted =
            |table: &TableName| format!("{}.{}", quote(&table.schema), quote(&index_of(table)));
        let bare = self.bare(&suffix, &name).await?;
        if bare.is_empty() {
            return Ok(());
        }
        say(&format!(
            "{name}: making the index {} of {} partitions, concurrently",
            index_of(&name),
            bare.iter().filter(|it| it.is_leaf).count()
        ));
        // before the partitions are listed anew: one that comes between has its own
        for table in bare.iter().filter(|it| !it.is_leaf && it.index.is_none()) {
            let sql = Ddl::of(self.outbox, lanes).index_only(&table.table, &index_of(&table.table));
            self.step(sql, false).await?;
        }
        for leaf in self
            .bare(&suffix, &name)
            .await?
            .iter()
            .filter(|it| it.is_leaf)
        {
            if leaf.index == Some(false) && !leaf.attached {
                // what a cancelled build left
                let sql = format!("drop index concurrently if exists {};", quoted(&leaf.table));
                self.step(sql, true).await?;
            }
            if leaf.index != Some(true) {
                let index = index_of(&leaf.table);
                let sql = Ddl::of(self.outbox, lanes).index_concurrently(&leaf.table, &index);
                self.step(sql, true).await?;
            }
        }
        for table in self.bare(&suffix, &name).await? {
            let Some(parent) = table.parent.as_ref().filter(|_| !table.attached) else {
                continue;
            };
            let (parent, own) = (quoted(parent), quoted(&table.table));
            let sql = format!("alter index {parent} attach partition {own};");
            self.step(sql, false).await?;
        }
        Ok(())
    }

    async fn step(&mut self, sql: String, concurrent: bool) -> Result<(), Error> {
        let step = Step {
            title: String::new(),
            leave: None,
            concurrent,
            sql,
        };
        self.run(&step).await
    }

    /// The tables of the partition tree of `name` whose index with this `suffix` is missing, not valid or not
    /// attached to that of their parent; those next to the root first.
    async fn bare(&mut self, suffix: &str, name: &TableName) -> Result<Vec<Bare>, Error> {
        const DOING: &str = "look at the partitions' indexes";
        let tree = format!(
            "select n.nspname::text, c.relname::text, pn.nspname::text, pc.relname::text, p.isleaf
               from pg_partition_tree({}::regclass) p
               join pg_catalog.pg_class c on c.oid = p.relid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
               left join pg_catalog.pg_class pc on pc.oid = p.parentrelid and p.level > 0
               left join pg_catalog.pg_namespace pn on pn.oid = pc.relnamespace
              order by p.level, c.oid",
            literal(&quote_table(name))
        );
        let rows = sqlx::query(AssertSqlSafe(tree)).fetch_all(&mut *self.connection);
        let rows = answer(self.limit, DOING, rows).await?;
        let read = |row: &PgRow| -> Result<Bare, sqlx::Error> {
            let parent: (Option<String>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
            Ok(Bare {
                table: TableName {
                    schema: row.try_get(0)?,
                    table: row.try_get(1)?,
                },
                parent: (parent.0.zip(parent.1)).map(|(schema, table)| TableName { schema, table }),
                is_leaf: row.try_get(4)?,
                index: None,
                attached: false,
            })
        };
        let mut bare = Vec::new();
        for row in &rows {
            let mut table = read(row).map_err(|error| Error::statement(DOING, error))?;
            // one that Postgres made by itself, for a partition that came later, has another name: it is a part
            // of the parent's, which is what counts
            let found = format!(
                "select i.indisvalid, exists (select from pg_catalog.pg_inherits h where h.inhrelid = c.oid)
                   from pg_catalog.pg_index i
                   join pg_catalog.pg_class c on c.oid = i.indexrelid
                   left join pg_catalog.pg_inherits h on h.inhrelid = c.oid
                   left join pg_catalog.pg_class pc on pc.oid = h.inhparent
                  where i.indrelid = {table}::regclass
                    and (c.relname = {own} or pc.relname = {parents})
                  order by 2 desc limit 1",
                own = literal(&own_name(&table.table, suffix)),
                parents = literal(
                    &table
                        .parent
                        .as_ref()
                        .map_or_else(String::new, |parent| own_name(parent, suffix))
                ),
                table = literal(&quote_table(&table.table)),
            );
            let found = sqlx::query_as::<_, (bool, bool)>(AssertSqlSafe(found));
            let found = found.fetch_optional(&mut *self.connection);
            if let Some((valid, attached)) = answer(self.limit, DOING, found).await? {
                table.index = Some(valid);
                table.attached = attached;
            }
            let well = table.index == Some(true) && (table.attached || table.parent.is_none());
            if !well {
                bare.push(table);
            }
        }
        Ok(bare)
    }
}
