//! TLS, logins and secrets on the way to Kafka.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::{SOON, all_told, checking};
use crate::support::certificates::{Authority, Dates, Issued, replace};
use crate::support::outbox::Outbox;
use crate::support::relay::Setup;
use crate::support::secured::{Door, PASSWORD, Secured, USER, token};
use crate::support::writers::{Load, Writing};
use crate::support::{self, World, eventually, topic_of};

/// A relay that comes in by `door`, with these librdkafka settings.
fn by<'a>(
    world: &'a World,
    secured: &Secured,
    outbox: &Outbox,
    door: Door,
    properties: &[(&str, String)],
) -> Setup<'a> {
    let brokers = format!("\"{}\"", secured.bootstrap(door));
    let mut setup = world.relay(&[outbox]).set("kafka", "brokers", &brokers);
    for (name, value) in properties {
        let (name, value) = (format!("\"{name}\""), format!("\"{value}\""));
        setup = setup.set("kafka.properties", &name, &value);
    }
    setup
}

/// What every way in wants: TLS, and the authority of the broker's certificate.
fn tls(protocol: &str, authority: &Authority) -> Vec<(&'static str, String)> {
    vec![
        ("security.protocol", protocol.to_owned()),
        ("ssl.ca.location", authority.pem().display().to_string()),
    ]
}

fn with_certificate(authority: &Authority, own: &Issued) -> Vec<(&'static str, String)> {
    let mut properties = tls("SSL", authority);
    properties.extend([
        (
            "ssl.certificate.location",
            own.certificate.display().to_string(),
        ),
        ("ssl.key.location", own.key.display().to_string()),
    ]);
    properties
}

fn with_password(
    authority: &Authority,
    mechanism: &str,
    password: (&'static str, &str),
) -> Vec<(&'static str, String)> {
    let mut properties = tls("SASL_SSL", authority);
    properties.extend([
        ("sasl.mechanisms", mechanism.to_owned()),
        ("sasl.username", USER.to_owned()),
        (password.0, password.1.to_owned()),
    ]);
    properties
}

async fn broker(world: &World) -> Secured {
    let secured = Secured::start(world.file("broker")).await;
    secured.unwrap_or_else(|why| panic!("{why}"))
}

#[test]
fn each_way_in_works_and_whoever_is_refused_is_told_why() {
    support::run(async |world| {
        let secured = broker(world).await;
        let ca = &secured.authority;
        let other = Authority::new(world.file("other")).await;
        let own = ca.issue("one", "DNS:relay", Dates::Now).await;
        let foreign = other.issue("one", "DNS:relay", Dates::Now).await;
        let outbox = Outbox::classic();
        let (_, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        secured.kafka().create_topic(&topic, 2, &[]).await;
        secured.grant(&topic, "User:CN=one").await;

        let check = |door, properties: &[(&'static str, String)]| {
            checking(&by(world, &secured, &outbox, door, properties))
        };
        let scram = |password| with_password(ca, "SCRAM-SHA-512", ("sasl.password", password));
        let plain = |password| with_password(ca, "PLAIN", ("sasl.password", password));
        let unnamed = [
            tls("SSL", ca),
            vec![("ssl.endpoint.identification.algorithm", "none".to_owned())],
        ]
        .concat();
        const AUTHORITY: &str = "is from an authority that the relay does not trust";
        let cases: Vec<(_, _, &[&str])> = vec![
            (
                "another authority",
                check(Door::Tls, &tls("SSL", &other)),
                &["fail", AUTHORITY, "ssl.ca.location"],
            ),
            (
                "another host",
                check(Door::WrongHost, &tls("SSL", ca)),
                &[
                    "fail",
                    "another host name: it is for other.example, and the relay wants localhost",
                ],
            ),
            (
                "another host, not compared",
                check(Door::WrongHost, &unnamed),
                &["\"ok\""],
            ),
            (
                "expired",
                check(Door::Expired, &tls("SSL", ca)),
                &["fail", "has expired", "days ago", "renew it"],
            ),
            (
                "no certificate",
                check(Door::Certificate, &tls("SSL", ca)),
                &[
                    "fail",
                    "the relay's client certificate",
                    "ssl.certificate.location",
                ],
            ),
            (
                "a foreign certificate",
                check(Door::Certificate, &with_certificate(ca, &foreign)),
                &[
                    "fail",
                    "the relay's client certificate",
                    "ssl.certificate.location",
                ],
            ),
            (
                "SCRAM, wrong password",
                check(Door::Password, &scram("wrong")),
                &[
                    "fail",
                    "refuses the relay's user or password",
                    "sasl.password",
                ],
            ),
            (
                "PLAIN, wrong password",
                check(Door::Password, &plain("wrong")),
                &[
                    "fail",
                    "refuses the relay's user or password",
                    "sasl.password",
                ],
            ),
            (
                "another mechanism",
                check(
                    Door::Password,
                    &with_password(ca, "SCRAM-SHA-256", ("sasl.password", PASSWORD)),
                ),
                &[
                    "fail",
                    "does not take this way to log in",
                    "sasl.mechanisms",
                ],
            ),
        ];
        all_told(cases, &["kafka"]).await;

        let ways = [
            (Door::Tls, tls("SSL", ca)),
            (Door::Certificate, with_certificate(ca, &own)),
            (Door::Password, scram(PASSWORD)),
            (Door::Password, plain(PASSWORD)),
        ];
        for (door, properties) in ways {
            let mut load = Load::of(&aggregate_type);
            (load.events, load.aggregates) = (20, 5);
            let ledger = load.start(world, &outbox).await.finish().await;
            let setup = by(world, &secured, &outbox, door, &properties);
            let ended = setup.until_empty(SOON).await;
            assert!(ended.success(), "{door:?}: {ended}");
            assert!(ledger.committed() > 0);
            assert_eq!(outbox.pending(world).await, 0);
        }

        // a relay that runs says it too
        let relay = by(world, &secured, &outbox, Door::Expired, &tls("SSL", ca)).run();
        let line = relay.wait_line("Kafka does not take records", SOON).await;
        assert!(line.contains("has expired"), "{line}");
        relay.stop().await;
        let relay = by(world, &secured, &outbox, Door::WrongHost, &unnamed).run();
        let line = relay
            .wait_line("a connection is weaker than it should be", SOON)
            .await;
        assert!(
            line.contains("ssl.endpoint.identification.algorithm"),
            "{line}"
        );
        relay.stop().await;
    });
}

/// An outbox under a steady load, whose topic is at `secured`.
async fn under_load(world: &World, secured: &Secured, table: &str) -> (Outbox, Writing, String) {
    let outbox = Outbox {
        table: table.to_owned(),
        ..Outbox::classic()
    };
    outbox.create(world).await;
    world.relay(&[&outbox]).migrate().await;
    let mut load = Load::of(&world.aggregate_type(table));
    (load.events, load.rate) = (usize::MAX, Some(200.0));
    let topic = topic_of(&load.aggregate_type);
    secured.kafka().create_topic(&topic, 4, &[]).await;
    let writing = load.start(world, &outbox).await;
    (outbox, writing, topic)
}

async fn flows(world: &World, outbox: &Outbox, rows: i64) {
    let before = outbox.published(world).await;
    eventually(SOON, "rows flow", async || {
        outbox.published(world).await >= before + rows
    })
    .await;
}

const TAKEN: &str = "changed on disk: a new producer takes them";

#[test]
fn a_token_in_a_file_lets_a_relay_in_and_one_that_has_expired_is_renewed_there() {
    support::run(async |world| {
        let secured = broker(world).await;
        let outbox = Outbox::classic();
        let (_, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        secured.kafka().create_topic(&topic, 2, &[]).await;
        let file = world.file("token");
        fs::write(&file, token(-120, -60)).unwrap();
        let mut properties = tls("SASL_SSL", &secured.authority);
        properties.extend([
            ("sasl.mechanisms", "OAUTHBEARER".to_owned()),
            ("sasl.oauthbearer.token_file", file.display().to_string()),
        ]);
        let setup = by(world, &secured, &outbox, Door::Token, &properties);
        let refused: &[&str] = &["fail", "has expired 6", "sasl.oauthbearer.token_file"];
        all_told(vec![("expired", checking(&setup), refused)], &["kafka"]).await;

        let relay = setup.run();
        let line = relay.wait_line("Kafka does not take records", SOON).await;
        assert!(line.contains("has expired"), "{line}");
        let mut load = Load::of(&aggregate_type);
        (load.events, load.aggregates) = (20, 5);
        let ledger = load.start(world, &outbox).await.finish().await;
        replace(&file, token(-5, 600).as_bytes());
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        world
            .check_in(&secured.kafka(), &ledger)
            .await
            .assert_clean(0);
        let well: &[&str] = &["\"ok\""];
        all_told(vec![("renewed", checking(&setup), well)], &["kafka"]).await;
    });
}

#[test]
fn a_certificate_that_is_renewed_on_disk_is_taken_up_while_rows_flow_and_none_is_lost() {
    support::run(async |world| {
        let secured = broker(world).await;
        let ca = &secured.authority;
        let (outbox, writing, topic) = under_load(world, &secured, "outbox").await;
        secured.grant(&topic, "User:CN=one").await;
        secured.grant(&topic, "User:CN=two").await;
        let own = ca.issue("one", "DNS:relay", Dates::Now).await;
        let renewed = ca.issue("two", "DNS:relay", Dates::Now).await;
        let setup = by(
            world,
            &secured,
            &outbox,
            Door::Certificate,
            &with_certificate(ca, &own),
        );
        let relay = setup.workers(2).run();
        flows(world, &outbox, 50).await;

        // half of it: the old producer goes on
        replace(&own.certificate, &fs::read(&renewed.certificate).unwrap());
        relay
            .wait_line("no producer can be made of them", SOON)
            .await;
        flows(world, &outbox, 50).await;
        replace(&own.key, &fs::read(&renewed.key).unwrap());
        eventually(SOON, "each worker has a new producer", async || {
            let lines = relay.lines();
            lines.iter().filter(|line| line.contains(TAKEN)).count() >= 2
        })
        .await;

        // the brokers know the one by its name, and the other no more
        secured.revoke(&topic, "User:CN=one").await;
        flows(world, &outbox, 100).await;
        let ledger = writing.stop().await;
        outbox.wait_drained(world, SOON).await;
        let paused = relay
            .lines()
            .into_iter()
            .find(|it| it.contains("its rows wait"));
        assert_eq!(paused, None);
        relay.stop().await;
        world
            .check_in(&secured.kafka(), &ledger)
            .await
            .assert_clean(0);
    });
}

#[test]
fn a_login_that_is_changed_on_disk_is_taken_up_while_rows_flow_and_none_is_lost() {
    support::run(async |world| {
        let secured = broker(world).await;
        let (outbox, writing, _) = under_load(world, &secured, "outbox").await;
        let file: PathBuf = world.file("password");
        fs::write(&file, format!("{PASSWORD}\n")).unwrap();
        let shown = file.display().to_string();
        let login = with_password(
            &secured.authority,
            "SCRAM-SHA-512",
            ("sasl.password_file", &shown),
        );
        let setup = by(world, &secured, &outbox, Door::Password, &login);
        let relay = setup.workers(2).run();
        flows(world, &outbox, 50).await;
        secured.change_password("another").await;
        replace(&file, b"another\n");
        eventually(SOON, "each worker has a new producer", async || {
            let lines = relay.lines();
            lines.iter().filter(|line| line.contains(TAKEN)).count() >= 2
        })
        .await;
        flows(world, &outbox, 100).await;
        let ledger = writing.stop().await;
        outbox.wait_drained(world, Duration::from_secs(60)).await;
        let away = relay
            .lines()
            .into_iter()
            .find(|it| it.contains("does not take records"));
        assert_eq!(away, None, "the old password was not asked for again");
        relay.stop().await;
        world
            .check_in(&secured.kafka(), &ledger)
            .await
            .assert_clean(0);
    });
}
