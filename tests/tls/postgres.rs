//! TLS and secrets on the way to Postgres.

use std::fs;
use std::path::{Path, PathBuf};

use super::{SOON, all_told, checking};
use crate::support::certificates::{Authority, Dates, Issued, replace};
use crate::support::debian::Stage;
use crate::support::outbox::Outbox;
use crate::support::relay::Setup;
use crate::support::writers::{Load, one};
use crate::support::{self, World, eventually, topic_of};

/// A host that is this machine, and is not written as a loopback address.
const REMOTE: &str = "0.0.0.0";

/// Changes settings of the server that a reload puts in force, and waits until they are.
async fn set(world: &World, stage: &Stage, settings: &[(&str, &Path)]) {
    for (name, value) in settings {
        let value = value.display();
        world
            .execute(&format!("alter system set {name} = '{value}'"))
            .await;
    }
    world.execute("select pg_reload_conf()").await;
    for (name, value) in settings {
        eventually(SOON, "the setting is in force", async || {
            let shown = stage.clusters[0].ask(&format!("show {name}")).await;
            shown.is_some_and(|shown| Path::new(&shown) == *value)
        })
        .await;
    }
}

/// Lets clients in by `rule`, before all other rules.
async fn admit(world: &World, stage: &Stage, rule: &str) {
    let data = stage.clusters[0].ask("show data_directory").await.unwrap();
    let file = PathBuf::from(data).join("pg_hba.conf");
    let rules = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{rule}\n{rules}")).unwrap();
    world.execute("select pg_reload_conf()").await;
    let refused = "select count(*) from pg_hba_file_rules where error is not null";
    assert_eq!(world.number(refused).await, 0);
}

/// Turns TLS on, with a certificate for [`REMOTE`]; its authority, and what else that issued.
async fn secure(world: &World, stage: &Stage) -> (Authority, Issued) {
    let authority = Authority::new(world.file("authority")).await;
    let hosts = format!("IP:{REMOTE},DNS:db.example");
    let server = authority.issue("postgres", &hosts, Dates::Now).await;
    let ssl = [
        ("ssl_cert_file", &*server.certificate),
        ("ssl_key_file", &*server.key),
        ("ssl_ca_file", &*authority.pem()),
        ("ssl", Path::new("on")),
    ];
    set(world, stage, &ssl).await;
    (authority, server)
}

/// A database URL: who, at which host of this machine, and with which parameters.
fn url(world: &World, stage: &Stage, user: &str, host: &str, parameters: &str) -> String {
    let (port, database) = (stage.clusters[0].port, world.database());
    format!("postgres://{user}@{host}:{port}/{database}{parameters}")
}

fn at<'a>(world: &'a World, outbox: &Outbox, url: &str) -> Setup<'a> {
    world
        .relay(&[outbox])
        .set("database", "url", &format!("\"{url}\""))
}

#[test]
fn what_is_wrong_with_the_servers_certificate_is_told_and_a_weaker_mode_must_be_named() {
    support::run_on(Stage::primary(&[]), async |world, stage| {
        let outbox = Outbox::classic();
        outbox.prepare(world).await;
        let (authority, server) = secure(world, stage).await;
        let other = Authority::new(world.file("other")).await;
        let ca = format!("sslrootcert={}", authority.pem().display());
        let wrong = format!("sslrootcert={}", other.pem().display());
        let check = |host: &str, parameters: &str| {
            let url = url(world, stage, "postgres", host, parameters);
            checking(&at(world, &outbox, &url))
        };
        let items = ["database", "tls"];
        let trusted = format!("?{ca}");
        let cases: Vec<(_, _, &[&str])> = vec![
            (
                "the default away from this machine",
                check(REMOTE, ""),
                &[
                    "fail",
                    "authority that the relay does not trust",
                    "sslrootcert of database.url",
                ],
            ),
            (
                "its own authority",
                check(REMOTE, &trusted),
                &["\"ok\" \"encrypted, and the certificate and its name are verified\""],
            ),
            (
                "another authority",
                check(REMOTE, &format!("?{wrong}")),
                &["fail", "authority that the relay does not trust"],
            ),
            (
                "another host",
                check("localhost", &format!("?sslmode=verify-full&{ca}")),
                &[
                    "fail",
                    "another host name: it is for",
                    "db.example",
                    "wants localhost",
                ],
            ),
            (
                "another host, not compared",
                check("localhost", &format!("?sslmode=verify-ca&{ca}")),
                &["\"ok\" \"PostgreSQL"],
            ),
            (
                "no such file",
                check(REMOTE, "?sslrootcert=/none"),
                &["fail", "cannot be opened", "No such file"],
            ),
            (
                "require",
                check(REMOTE, "?sslmode=require"),
                &[
                    "\"ok\" \"PostgreSQL",
                    "\"warn\" \"encrypted, but nobody verifies the certificate",
                ],
            ),
            (
                "verify-ca",
                check(REMOTE, &format!("?sslmode=verify-ca&{ca}")),
                &[
                    "\"ok\" \"PostgreSQL",
                    "\"warn\" \"encrypted, but nobody compares the host name",
                ],
            ),
            (
                "this machine",
                check("127.0.0.1", ""),
                &["\"ok\" \"PostgreSQL", "does not leave this machine"],
            ),
        ];
        all_told(cases, &items).await;

        // a relay that runs says once what was asked for, and nothing where all is well
        let weaker = "a connection is weaker than it should be";
        for (parameters, said) in [("?sslmode=require", 1), (&*trusted, 0)] {
            let url = url(world, stage, "postgres", REMOTE, parameters);
            let relay = at(world, &outbox, &url).run();
            relay.wait_line("serving the outbox", SOON).await;
            let lines = relay.lines();
            let told = lines.iter().filter(|line| line.contains(weaker));
            assert_eq!(told.count(), said, "{}", lines.join("\n"));
            relay.stop().await;
        }

        let hosts = format!("IP:{REMOTE}");
        let expired = authority.issue("postgres", &hosts, Dates::Past).await;
        let ssl = [
            ("ssl_cert_file", &*expired.certificate),
            ("ssl_key_file", &*expired.key),
        ];
        set(world, stage, &ssl).await;
        // each of a running relay's lines says it too
        world.expect_errors("the outbox cannot be read or settled");
        let url = url(world, stage, "postgres", REMOTE, &trusted);
        let relay = at(world, &outbox, &url).run();
        let cases: Vec<(_, _, &[&str])> = vec![
            (
                "expired",
                check(REMOTE, &trusted),
                &["fail", "has expired", "days ago", "renew it on the server"],
            ),
            (
                "expired, and nobody looks",
                check(REMOTE, "?sslmode=require"),
                &["\"ok\" \"PostgreSQL"],
            ),
        ];
        all_told(cases, &items).await;
        relay.wait_line("has expired", SOON).await;
        let renewed = [
            ("ssl_cert_file", &*server.certificate),
            ("ssl_key_file", &*server.key),
        ];
        set(world, stage, &renewed).await;
        relay.wait_line("serving the outbox", SOON).await;
        relay.stop().await;

        set(world, stage, &[("ssl", Path::new("off"))]).await;
        let cases: Vec<(_, _, &[&str])> = vec![
            (
                "no TLS",
                check(REMOTE, &trusted),
                &["fail", "offers no TLS", "sslmode=disable"],
            ),
            (
                "no TLS, by default",
                check(REMOTE, ""),
                &["fail", "offers no TLS"],
            ),
            (
                "no TLS, and it was said so",
                check(REMOTE, "?sslmode=disable"),
                &["\"ok\" \"PostgreSQL", "\"warn\" \"not encrypted"],
            ),
            (
                "no TLS, this machine",
                check("localhost", ""),
                &["\"ok\" \"PostgreSQL"],
            ),
        ];
        all_told(cases, &items).await;
    });
}

#[test]
fn a_relay_proves_who_it_is_by_a_certificate_which_may_be_renewed() {
    support::run_on(Stage::primary(&[]), async |world, stage| {
        let outbox = Outbox::classic();
        let (_, aggregate_type) = outbox.prepare(world).await;
        let (authority, _) = secure(world, stage).await;
        world.execute("create role certified superuser login").await;
        admit(world, stage, "hostssl all certified 0.0.0.0/0 cert").await;
        let own = authority.issue("certified", "DNS:relay", Dates::Now).await;
        let foreign = authority.issue("somebody", "DNS:relay", Dates::Now).await;
        let another = Authority::new(world.file("another")).await;
        let forged = another.issue("certified", "DNS:relay", Dates::Now).await;
        let ca = authority.pem();
        let url = |own: Option<&Issued>| {
            let own = own.map_or_else(String::new, |own| {
                let (certificate, key) = (own.certificate.display(), own.key.display());
                format!("&sslcert={certificate}&sslkey={key}")
            });
            let parameters = format!("?sslrootcert={}{own}", ca.display());
            url(world, stage, "certified", REMOTE, &parameters)
        };
        let check = |url: String| checking(&at(world, &outbox, &url));
        let none = Issued {
            certificate: own.certificate.clone(),
            key: PathBuf::from("/none"),
        };
        let halves = Issued {
            certificate: own.certificate.clone(),
            key: foreign.key.clone(),
        };
        const ADVICE: &str = "sslcert and sslkey";
        let cases: Vec<(_, _, &[&str])> = vec![
            ("its own", check(url(Some(&own))), &["\"ok\" \"PostgreSQL"]),
            (
                "none",
                check(url(None)),
                &["fail", "client certificate", ADVICE],
            ),
            (
                "somebody else's",
                check(url(Some(&foreign))),
                &["fail", "certificate authentication failed", ADVICE],
            ),
            (
                "its name, from another authority",
                check(url(Some(&forged))),
                &["fail", "not trusted there", ADVICE],
            ),
            (
                "no key",
                check(url(Some(&none))),
                &["fail", "cannot be opened", "sslkey"],
            ),
            (
                "another's key",
                check(url(Some(&halves))),
                &["fail", "do not belong together", ADVICE],
            ),
        ];
        all_told(cases, &["database", "tls"]).await;

        // one that is renewed on disk serves the next connection
        world.expect_errors("the outbox cannot be read or settled");
        let relay = at(world, &outbox, &url(Some(&own))).run();
        let mut ledger = one_by_one(world, &outbox, &aggregate_type, 1).await;
        let renewed = authority.issue("certified", "DNS:relay", Dates::Now).await;
        foreign.replaces(&own);
        cut_off(world, "certified").await;
        relay
            .wait_line("certificate authentication failed", SOON)
            .await;
        renewed.replaces(&own);
        ledger.push(one(world, &outbox, &aggregate_type, ORDER, 2).await);
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

const ORDER: &str = "7a6f5b8e-0a53-4c39-8a5d-0a4f9a0b3c01";

/// Writes the `n`th event of [`ORDER`], and waits until it is published.
async fn one_by_one(
    world: &World,
    outbox: &Outbox,
    aggregate_type: &str,
    n: i64,
) -> support::writers::Ledger {
    let mut ledger = support::writers::Ledger::default();
    ledger.push(one(world, outbox, aggregate_type, ORDER, n).await);
    outbox.wait_drained(world, SOON).await;
    ledger
}

/// Ends the connections of `role`.
async fn cut_off(world: &World, role: &str) {
    let cut =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'");
    world.execute(&cut).await;
}

#[test]
fn a_password_that_is_changed_in_a_file_is_taken_up_while_rows_flow_and_none_is_lost() {
    support::run_on(Stage::primary(&[]), async |world, stage| {
        world.expect_errors("the outbox cannot be read or settled");
        world.execute("create role rotated superuser login").await;
        admit(world, stage, "host all rotated 0.0.0.0/0 scram-sha-256").await;
        let address = |user: &str| url(world, stage, user, "127.0.0.1", "");
        let alone = |password: &str| format!("{password}\n");
        let in_url = |password: &str| format!("{}\n", address(&format!("rotated:{password}")));
        // what the file holds
        type Text<'a> = &'a dyn Fn(&str) -> String;
        let ways: [(&str, &str, Text<'_>); 2] = [
            ("password_file", "outbox", &alone),
            ("url_file", "outbox_2", &in_url),
        ];
        for (key, table, text) in ways {
            let outbox = Outbox {
                table: table.to_owned(),
                ..Outbox::classic()
            };
            outbox.create(world).await;
            world.execute("alter role rotated password 'one'").await;
            let file = world.file(key);
            fs::write(&file, text("one")).unwrap();
            let shown = format!("\"{}\"", file.display());
            let setup = at(world, &outbox, &address("rotated")).workers(2);
            let setup = match key {
                "url_file" => setup.without("database", "url"),
                _ => setup,
            };
            let setup = setup.set("database", key, &shown);
            setup.migrate().await;
            let mut load = Load::of(&world.aggregate_type(table));
            (load.events, load.rate) = (usize::MAX, Some(300.0));
            let topic = topic_of(&load.aggregate_type);
            world.kafka.create_topic(&topic, 4, &[]).await;
            let relay = setup.run();
            let writing = load.start(world, &outbox).await;
            let published = async |more: i64| {
                let before = outbox.published(world).await;
                eventually(SOON, "rows flow", async || {
                    outbox.published(world).await >= before + more
                })
                .await;
            };
            published(50).await;
            world.execute("alter role rotated password 'two'").await;
            cut_off(world, "rotated").await;
            relay.wait_line("28P01", SOON).await;
            replace(&file, text("two").as_bytes());
            published(100).await;
            // a file that is gone changes nothing for who needs no new connection
            fs::remove_file(&file).unwrap();
            published(50).await;
            let ledger = writing.stop().await;
            outbox.wait_drained(world, SOON).await;
            relay.stop().await;
            world.check(&ledger).await.assert_clean(usize::MAX);
        }
    });
}
