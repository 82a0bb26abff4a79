//! The snippets of examples/, each run as it stands: what it commits is published, what it rolls back leaves
//! nothing. Their dependencies are fetched once, at the versions of their lock files, by the clients of each
//! language. One whose tools are missing is skipped, as the tests without servers are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sqlx::{Connection, PgConnection};
use tokio::process::Command;
use uuid::Uuid;

use crate::operating::SOON;
use crate::support::outbox::Outbox;
use crate::support::{self, World, local};

#[path = "../examples/sqlx/main.rs"]
#[allow(dead_code, reason = "the program's main is the test's own")]
mod with_sqlx;

/// How a snippet writes its event, which its role must have the right to.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Emit,
    Insert,
}

/// A snippet's folder.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

/// Where what it needs is kept from run to run.
fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("examples")
        .join(name)
}

pub(crate) fn path(path: &Path) -> String {
    path.to_str().expect("the path is text").to_owned()
}

/// Runs a tool to its end.
pub(crate) async fn tool(at: &Path, program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = std::process::Command::new(program);
    local::run(command.args(arguments).current_dir(at)).await
}

/// Makes the folder `kept(name)` of the snippet's `files` by `make`, unless it was made for the same before.
async fn prepared(
    name: &str,
    files: &[&str],
    make: impl AsyncFnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let text = |file: &&str| {
        let text = fs::read_to_string(folder(name).join(file));
        ((*file).to_owned(), text.expect("the snippet is whole"))
    };
    prepared_of(name, &files.iter().map(text).collect::<Vec<_>>(), make).await
}

/// The same, of files that are given: name and text.
pub(crate) async fn prepared_of(
    name: &str,
    files: &[(String, String)],
    make: impl AsyncFnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let kept = kept(name);
    let print = format!("{} {files:?}", kept.display());
    let made_for = kept.join("made-for");
    if fs::read_to_string(&made_for).is_ok_and(|it| it == print) {
        return Ok(kept);
    }
    fs::remove_dir_all(&kept).ok();
    fs::create_dir_all(&kept).map_err(|error| error.to_string())?;
    for (file, text) in files {
        fs::write(kept.join(file), text).map_err(|error| error.to_string())?;
    }
    make(&kept).await?;
    fs::write(made_for, print).map_err(|error| error.to_string())?;
    Ok(kept)
}

/// The shop's tables in the test's database, served by a relay; and a role with a service's rights: its URL.
async fn shop(world: &World, by: By) -> (Outbox, String) {
    let schema = fs::read_to_string(folder("schema.sql")).unwrap();
    world.execute(&schema).await;
    let mut outbox = Outbox::classic();
    outbox.config = format!("topic = \"{}\"", world.topic("orders"));
    world.relay(&[&outbox]).migrate().await;
    let role = format!("{}-shop", world.database());
    let write = match by {
        By::Emit => format!("select outbox_relay.allow_emit('public.outbox', '{role}')"),
        By::Insert => format!("grant select, insert on outbox to \"{role}\""),
    };
    world
        .execute(&format!(
            "create role \"{role}\" login password 'sells';
             grant select, insert on orders to \"{role}\"; grant select, update on stock to \"{role}\"; {write}"
        ))
        .await;
    let url = world.url_as(&role, "sells");
    (outbox, url)
}

/// Holds that the order `placed` and its event are there, those of `refused` are not, and that the relay
/// publishes the one.
async fn holds(world: &World, outbox: &Outbox, placed: Uuid, refused: Uuid) {
    let orders: Vec<(Uuid, i32)> = sqlx::query_as("select id, quantity from orders")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(orders, [(placed, 2)], "not {refused}");
    assert_eq!(world.number("select sum(available) from stock").await, 3);
    assert_eq!(outbox.pending(world).await, 1);
    let topic = world.topic("orders");
    world.kafka.create_topic(&topic, 1, &[]).await;
    let status = world.relay(&[outbox]).until_empty(SOON).await;
    assert!(status.success(), "{status}");
    let records = world.kafka.read_all(&topic).await;
    assert_eq!(records.len(), 1);
    let text = |bytes: &Option<Vec<u8>>| String::from_utf8(bytes.clone().unwrap()).unwrap();
    assert_eq!(text(&records[0].key), placed.to_string());
    assert_eq!(text(&records[0].value), r#"{"sku": "mug", "quantity": 2}"#);
    assert_eq!(text(&records[0].headers[1].1), "OrderPlaced");
    let role = format!("\"{}-shop\"", world.database());
    world
        .execute(&format!("drop owned by {role}; drop role {role}"))
        .await;
}

/// Runs a snippet for an order that there is enough for and for one that there is not. `arguments` gives the
/// program and what it is told for an order and a quantity.
async fn play(world: &World, by: By, arguments: impl Fn(&str, &str) -> Vec<String>) {
    let (outbox, url) = shop(world, by).await;
    let (placed, refused) = (Uuid::new_v4(), Uuid::new_v4());
    for (id, quantity) in [(placed, "2"), (refused, "4")] {
        let arguments = arguments(&id.to_string(), quantity);
        let mut program = Command::new(&arguments[0]);
        program.args(&arguments[1..]).stdin(Stdio::null());
        // nothing but the one setting that the snippet asks for
        program.env_clear().env("DATABASE_URL", &url);
        for variable in ["PATH", "HOME"] {
            program.envs(std::env::var_os(variable).map(|value| (variable, value)));
        }
        let ran = program.output().await;
        let ran = ran.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(
            ran.status.success(),
            id == placed,
            "{arguments:?}: {}\n{said}",
            ran.status
        );
        assert!(
            id == placed || said.contains("stock_available_check"),
            "it failed for want of mugs: {said}"
        );
    }
    holds(world, &outbox, placed, refused).await;
}

/// The same for one that has to be prepared; skipped if that cannot be done.
fn run<F>(by: By, prepare: impl Future<Output = Result<F, String>>)
where
    F: Fn(&str, &str) -> Vec<String>,
{
    let mut ready = Err(String::new());
    support::block_on(async { ready = prepare.await });
    match ready {
        Ok(arguments) => support::run(async |world| play(world, by, arguments).await),
        Err(why) => support::skip(&why),
    }
}

/// Python's packages of a snippet, in an environment of its own: its interpreter.
async fn python(name: &str) -> Result<impl Fn(&str, &str) -> Vec<String>, String> {
    let kept = prepared(name, &["requirements.txt"], async |kept| {
        tool(kept, "python3", &["-m", "venv", "venv"]).await?;
        let install = ["-q", "install", "--no-deps", "-r", "requirements.txt"];
        tool(kept, &path(&kept.join("venv/bin/pip")), &install).await
    });
    let (python, program) = (
        path(&kept.await?.join("venv/bin/python")),
        path(&folder(name).join("place_order.py")),
    );
    Ok(move |id: &str, quantity: &str| {
        [&python, &program, id, quantity]
            .map(str::to_owned)
            .to_vec()
    })
}

/// The classes of a Java snippet.
async fn java(class: &'static str) -> Result<impl Fn(&str, &str) -> Vec<String>, String> {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE.lock().await;
    let sources = ["PlaceOrder.java", "PlaceOrderSpring.java"];
    let files = ["pom.xml", sources[0], sources[1]];
    let kept = prepared("java", &files, async |kept| {
        local::copy_jars(kept).await?;
        let compile = ["-cp", "jars/*", "-d", "classes", sources[0], sources[1]];
        tool(kept, "javac", &compile).await
    });
    let kept = path(&kept.await?);
    Ok(move |id: &str, quantity: &str| {
        let classes = format!("{kept}/jars/*:{kept}/classes");
        ["java", "-cp", &classes, class, id, quantity]
            .map(str::to_owned)
            .to_vec()
    })
}

#[test]
fn psql_places_an_order_and_its_event_or_neither() {
    let ready = async {
        tool(Path::new("."), "psql", &["--version"]).await?;
        let script = path(&folder("psql/place-order.sql"));
        Ok(move |id: &str, quantity: &str| {
            // the URL is no secret here; psql has no variable of its own for one
            let url = "exec psql \"$DATABASE_URL\" -v id=$1 -v quantity=$2 -f \"$0\"";
            ["sh", "-c", url, &script, id, quantity]
                .map(str::to_owned)
                .to_vec()
        })
    };
    run(By::Emit, ready);
}

#[test]
fn sqlx_places_an_order_and_its_event_or_neither() {
    support::run(async |world| {
        let (outbox, url) = shop(world, By::Emit).await;
        let (placed, refused) = (Uuid::new_v4(), Uuid::new_v4());
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let event = with_sqlx::place_order(&mut connection, placed, 2).await;
        let event = event.unwrap();
        let error = with_sqlx::place_order(&mut connection, refused, 4).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("stock_available_check"), "{error}");
        connection.close().await.unwrap();
        let known = format!("select count(*) from outbox where id = '{event}'");
        assert_eq!(world.number(&known).await, 1);
        holds(world, &outbox, placed, refused).await;
    });
}

#[test]
fn pgx_places_an_order_and_its_event_or_neither() {
    let ready = async {
        let files = ["go.mod", "go.sum", "main.go"];
        let kept = prepared("go", &files, async |kept| {
            tool(kept, "go", &["build", "-o", "place-order", "."]).await
        });
        let program = path(&kept.await?.join("place-order"));
        Ok(move |id: &str, quantity: &str| [&program, id, quantity].map(str::to_owned).to_vec())
    };
    run(By::Emit, ready);
}

#[test]
fn node_postgres_places_an_order_and_its_event_or_neither() {
    let ready = async {
        let files = ["package.json", "package-lock.json", "place-order.mjs"];
        let kept = prepared("node", &files, async |kept| {
            tool(kept, "npm", &["ci", "--no-audit", "--no-fund"]).await
        });
        let program = path(&kept.await?.join("place-order.mjs"));
        Ok(move |id: &str, quantity: &str| {
            ["node", &program, id, quantity].map(str::to_owned).to_vec()
        })
    };
    run(By::Emit, ready);
}

#[test]
fn jdbc_places_an_order_and_its_event_or_neither() {
    run(By::Emit, java("PlaceOrder"));
}

#[test]
fn spring_places_an_order_and_its_event_or_neither() {
    run(By::Insert, java("PlaceOrderSpring"));
}

#[test]
fn django_places_an_order_and_its_event_or_neither() {
    run(By::Insert, python("django"));
}

#[test]
fn sqlalchemy_places_an_order_and_its_event_or_neither() {
    run(By::Insert, python("sqlalchemy"));
}
