//! Room rules, as text: a crate has no inner walls, so these are the walls.
//!
//! A top-level file is pure; a folder touches the world; each dependency on the world has its own
//! rooms. Comments and unit tests may name what their room may not use.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file: its path under `src/`, and its text.
struct File {
    path: String,
    text: String,
}

/// What is wrong with a file, if anything.
type Rule = fn(&File) -> Vec<String>;

const RULES: &[(&str, Rule)] = &[
    ("it begins by saying what it is for (`//!`)", introduced),
    (
        "sqlx, rdkafka, the environment and spawning have their rooms",
        rooms,
    ),
    ("a top-level file is pure", pure),
    ("no file is longer than one can hold in mind", short),
    ("SQL is lower-case", lower_case_sql),
];

/// Lines of code of a file: comments, empty lines and its unit tests are not counted.
const LINES_MAX: usize = 550;

/// Files that are longer, and may only shrink.
const LONG: &[(&str, usize)] = &[];

/// What a room's code may not contain, unless it is one of `rooms`.
struct Wall {
    words: &'static [&'static str],
    rooms: &'static [&'static str],
}

const WALLS: &[Wall] = &[
    Wall {
        words: &["sqlx::", "use sqlx;"],
        rooms: &["source/", "demo/", "consumer/"],
    },
    Wall {
        words: &["AssertSqlSafe"],
        rooms: &["source/", "demo/"],
    },
    Wall {
        words: &["rdkafka::", "use rdkafka;"],
        rooms: &["sink/", "demo/"],
    },
    Wall {
        words: &["jsonschema::"],
        rooms: &["contract/"],
    },
    Wall {
        words: &["std::env", " env::var", "(env::var"],
        rooms: &["config/", "demo/"],
    },
    Wall {
        words: &["JoinSet", "tokio::spawn", "thread::spawn", "task::spawn("],
        rooms: &["relay/", "sink/", "ops/", "demo/"],
    },
];

/// What the pure files do without.
const IMPURE: &[&str] = &[
    "async ",
    ".await",
    "tokio::",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "SystemTime",
    "Instant",
];

/// Top-level files that are no part of the pure middle.
const DOORS: &[&str] = &["main.rs", "lib.rs"];

/// SQL as somebody would shout it. Rust has none of these in code.
const SHOUTED: &[&str] = &[
    "SELECT ",
    "INSERT INTO",
    "UPDATE ",
    "DELETE FROM",
    " FROM ",
    " WHERE ",
    "CREATE ",
    "ALTER ",
    "DROP ",
    "ORDER BY",
    "FOR UPDATE",
    "SKIP LOCKED",
    "RETURNING",
    " VALUES",
    "\"BEGIN",
    "\"COMMIT",
    "\"ROLLBACK",
    "\"SET ",
];

fn introduced(file: &File) -> Vec<String> {
    let introduced = file.text.is_empty() || file.text.starts_with("//!");
    (!introduced)
        .then(|| "it does not".to_owned())
        .into_iter()
        .collect()
}

fn rooms(file: &File) -> Vec<String> {
    if DOORS.contains(&file.path.as_str()) || file.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for wall in WALLS {
        if !wall.rooms.iter().any(|room| file.path.starts_with(room)) {
            faults.extend(containing(file, wall.words));
        }
    }
    faults
}

fn pure(file: &File) -> Vec<String> {
    if file.path.contains('/') || DOORS.contains(&file.path.as_str()) {
        return Vec::new();
    }
    containing(file, IMPURE)
}

fn short(file: &File) -> Vec<String> {
    if file.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let lines = code(&file.text)
        .filter(|(_, line)| !line.trim().is_empty())
        .count();
    let known = LONG.iter().find(|(path, _)| *path == file.path);
    let max = known.map_or(LINES_MAX, |(_, max)| *max);
    let long = (lines > max).then(|| format!("{lines} lines of code; {max} are enough"));
    long.into_iter().collect()
}

fn lower_case_sql(file: &File) -> Vec<String> {
    containing(file, SHOUTED)
}

/// The lines of code that contain one of `words`.
fn containing(file: &File, words: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in code(&file.text) {
        for word in words.iter().filter(|word| line.contains(**word)) {
            faults.push(format!("line {number} has `{}`", word.trim()));
        }
    }
    faults
}

/// A file's lines with their numbers, without comments and unit tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(text.lines());
    lines
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(number, line)| match line.trim_start() {
            comment if comment.starts_with("//") || comment.starts_with("--") => (number, ""),
            _ => (number, line),
        })
}

/// Files that no `mod` names are no part of the program, and nobody would notice.
fn undeclared(files: &[File]) -> Vec<String> {
    let declared_in = |parent: &str, name: &str| {
        let file = files.iter().find(|file| file.path == parent);
        let declares = |line: &str| {
            let line = line.trim();
            let line = line.rsplit_once(") ").map_or(line, |(_, rest)| rest);
            line.strip_prefix("pub ").unwrap_or(line) == format!("mod {name};")
        };
        file.is_some_and(|file| file.text.lines().any(declares))
    };
    let mut orphans = Vec::new();
    for file in files
        .iter()
        .filter(|file| !DOORS.contains(&file.path.as_str()))
    {
        let module = file
            .path
            .strip_suffix("/mod.rs")
            .or_else(|| file.path.strip_suffix(".rs"));
        let module = module.unwrap_or(&file.path);
        let declared = match module.rsplit_once('/') {
            Some((folder, name)) => {
                declared_in(&format!("{folder}/mod.rs"), name)
                    || declared_in(&format!("{folder}.rs"), name)
            }
            None => DOORS.iter().any(|door| declared_in(door, module)),
        };
        if !declared {
            orphans.push(file.path.clone());
        }
    }
    orphans
}

/// Every file under `folder` of the project with that ending.
fn files(folder: &str, ending: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == ending)
            {
                found.push(File {
                    path: path
                        .strip_prefix(&root)
                        .unwrap()
                        .to_string_lossy()
                        .into_owned(),
                    text: fs::read_to_string(&path).unwrap(),
                });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

#[test]
fn every_file_keeps_to_its_room() {
    let files = files("src", "rs");
    assert!(files.len() > 10, "the source is where it was");
    let mut faults = Vec::new();
    for file in &files {
        for (name, rule) in RULES {
            let found = rule(file).into_iter();
            faults.extend(found.map(|fault| format!("src/{}: {name}: {fault}", file.path)));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_file_is_part_of_the_program() {
    let orphans = undeclared(&files("src", "rs"));
    assert!(orphans.is_empty(), "no module declares {orphans:?}");
}

#[test]
fn sql_is_lower_case_everywhere() {
    let rust = files("tests", "rs")
        .into_iter()
        .filter(|file| file.path != "tidy.rs");
    let all = files("migrations", "sql")
        .into_iter()
        .chain(files("benches", "rs"))
        .chain(rust);
    for file in all {
        let shouted = lower_case_sql(&file);
        assert!(shouted.is_empty(), "{}: {shouted:?}", file.path);
    }
}

#[test]
fn every_rule_can_be_broken() {
    let file = |path: &str, text: &str| File {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    let broken: &[(Rule, &str, &str)] = &[
        (introduced, "a.rs", "use std::fmt;\n"),
        (rooms, "relay/a.rs", "use sqlx::PgPool;\n"),
        (rooms, "cli/a.rs", "    sqlx::query(AssertSqlSafe(text))\n"),
        (rooms, "source/a.rs", "use rdkafka::ClientConfig;\n"),
        (rooms, "relay/a.rs", "let home = std::env::var(\"HOME\");\n"),
        (rooms, "source/a.rs", "let tasks = JoinSet::new();\n"),
        (rooms, "consumer/a.rs", "use rdkafka::ClientConfig;\n"),
        (rooms, "consumer/a.rs", "AssertSqlSafe(text)\n"),
        (pure, "settle.rs", "pub async fn settle() {}\n"),
        (
            pure,
            "backoff.rs",
            "let now = tokio::time::Instant::now();\n",
        ),
        (lower_case_sql, "source/a.rs", "\"SELECT 1\"\n"),
        (lower_case_sql, "0001.sql", "INSERT INTO a select 1;\n"),
    ];
    for (rule, path, text) in broken {
        assert!(!rule(&file(path, text)).is_empty(), "{path}: {text}");
        let comment = format!("//! {text}");
        assert!(
            rule(&file(path, &comment)).is_empty(),
            "a comment may say it: {text}"
        );
        let tested = format!("//! a\n#[cfg(test)]\nmod tests {{ {text} }}");
        assert!(
            rule(&file(path, &tested)).is_empty(),
            "a unit test may do it: {text}"
        );
    }
    assert!(rooms(&file("source/a.rs", "use sqlx::PgPool;\n")).is_empty());
    assert!(rooms(&file("sink/a.rs", "use rdkafka::ClientConfig;\n")).is_empty());
    assert!(pure(&file("relay/a.rs", "    .await\n")).is_empty());
    assert!(!short(&file("a.rs", &"let a;\n".repeat(LINES_MAX + 1))).is_empty());
    assert!(short(&file("a.rs", &"let a;\n".repeat(LINES_MAX))).is_empty());
    let tree = [
        file("lib.rs", "pub mod a;\n"),
        file("a/mod.rs", "mod b;\n"),
        file("a/b.rs", ""),
    ];
    assert!(undeclared(&tree).is_empty());
    assert_eq!(undeclared(&tree[..1]), Vec::<String>::new());
    assert_eq!(undeclared(&tree[1..]), ["a/mod.rs"]);
    assert_eq!(
        undeclared(&[
            file("lib.rs", "pub(crate) mod c;\n"),
            file("c.rs", ""),
            file("c/d.rs", "")
        ]),
        ["c/d.rs"]
    );
}
