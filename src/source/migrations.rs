//! The files of `migrations/`, as they are compiled into the program.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// `migrations/`: the number, what it is about, and the statements. A list, because sqlx's macro would have half of
/// sqlx be compiled a second time, for the compiler.
pub(super) const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "relay", include_str!("../../migrations/0001_relay.sql")),
    (
        2,
        "parking",
        include_str!("../../migrations/0002_parking.sql"),
    ),
    (
        3,
        "parked long keys",
        include_str!("../../migrations/0003_parked_long_keys.sql"),
    ),
    (4, "views", include_str!("../../migrations/0004_views.sql")),
    (
        5,
        "operating",
        include_str!("../../migrations/0005_operating.sql"),
    ),
    (
        6,
        "archive",
        include_str!("../../migrations/0006_archive.sql"),
    ),
    (
        7,
        "settled",
        include_str!("../../migrations/0007_settled.sql"),
    ),
    (
        8,
        "layouts",
        include_str!("../../migrations/0008_layouts.sql"),
    ),
    (9, "emit", include_str!("../../migrations/0009_emit.sql")),
    (
        10,
        "parked record",
        include_str!("../../migrations/0010_parked_record.sql"),
    ),
];

/// Applies them, and records each under its number.
pub(super) fn migrator() -> Migrator {
    let of = |(number, about, statements): &(i64, &'static str, &'static str)| {
        let (about, kind) = ((*about).into(), MigrationType::Simple);
        Migration::new(*number, about, kind, statements.into_sql_str(), false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(of).collect())
}
