//! A broker with TLS: a local process with a listener for each way to come in, and a door without a lock
//! for the tests.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::certificates::{Authority, Dates, Issued};
use super::guarded;
use super::kafka::Kafka;
use super::local::{self, Process};
use super::servers::{free_port, janitor};

/// Who logs in, and by which password at first.
pub(crate) const USER: &str = "relay";
pub(crate) const PASSWORD: &str = "relays-own";

/// A way to come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Anybody, with TLS.
    Tls,
    /// Whoever has a certificate of the authority.
    Certificate,
    /// Whoever has a password, with TLS: SCRAM-SHA-512 and PLAIN.
    Password,
    /// Whoever has a token, with TLS.
    Token,
    /// As [`Door::Tls`], and the broker's certificate is for another host.
    WrongHost,
    /// As [`Door::Tls`], and the broker's certificate has expired.
    Expired,
}

const DOORS: [(Door, &str); 6] = [
    (Door::Tls, "TLS"),
    (Door::Certificate, "CERTIFICATE"),
    (Door::Password, "PASSWORD"),
    (Door::Token, "TOKEN"),
    (Door::WrongHost, "WRONGHOST"),
    (Door::Expired, "EXPIRED"),
];

/// See the module's description. It ends when it is dropped.
pub(crate) struct Secured {
    process: Process,
    ports: Vec<u16>,
    direct: u16,
    /// Of the broker's certificates, and of the clients it lets in.
    pub(crate) authority: Authority,
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.process.abandon();
    }
}

impl Secured {
    /// Starts it; what it needs is kept in `directory`.
    pub(crate) async fn start(directory: PathBuf) -> Result<Self, String> {
        janitor().await;
        let authority = Authority::new(directory.join("brokers-authority")).await;
        let good = authority.issue("broker", "DNS:localhost", Dates::Now).await;
        let other = authority
            .issue("broker", "DNS:other.example", Dates::Now)
            .await;
        let expired = authority
            .issue("broker", "DNS:localhost", Dates::Past)
            .await;
        let ports: Vec<u16> = DOORS.iter().map(|_| free_port()).collect();
        let (direct, voter) = (free_port(), free_port());
        let settings = settings(&authority.pem(), &ports, direct, voter, |door| match door {
            Door::WrongHost => &other,
            Door::Expired => &expired,
            _ => &good,
        });
        let name = format!("secured-{direct}");
        let user = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
        let format = ["--add-scram", user.as_str()];
        let process = local::launch_kafka_node_with(&name, 1, direct, &settings, &format).await?;
        let secured = Self {
            process,
            ports,
            direct,
            authority,
        };
        guarded::ready(&secured.process, &secured.kafka()).await?;
        Ok(secured)
    }

    /// Where a relay comes in by `door`.
    pub(crate) fn bootstrap(&self, door: Door) -> String {
        let at = DOORS.iter().position(|(it, _)| *it == door).unwrap();
        format!("localhost:{}", self.ports[at])
    }

    /// The door without a lock.
    pub(crate) fn kafka(&self) -> Kafka {
        Kafka {
            brokers: format!("127.0.0.1:{}", self.direct),
        }
    }

    /// Lets `principal`, such as `User:CN=one`, write to `topic`.
    pub(crate) async fn grant(&self, topic: &str, principal: &str) {
        guarded::ask(self.direct, guarded::CREATE_ACLS, topic, principal).await;
    }

    /// Takes that back.
    pub(crate) async fn revoke(&self, topic: &str, principal: &str) {
        guarded::ask(self.direct, guarded::DELETE_ACLS, topic, principal).await;
    }

    /// Gives [`USER`] another password, as an operator would.
    pub(crate) async fn change_password(&self, password: &str) {
        let change = format!("SCRAM-SHA-512=[password={password}]");
        let server = self.kafka().brokers;
        let mut tool = local::java("-Xmx128m").await.unwrap();
        tool.args(["kafka.admin.ConfigCommand", "--bootstrap-server", &server])
            .args(["--alter", "--entity-type", "users", "--entity-name", USER])
            .args(["--add-config", &change]);
        local::run(&mut tool).await.unwrap();
    }
}

fn settings<'a>(
    authority: &Path,
    ports: &[u16],
    direct: u16,
    voter: u16,
    certificate: impl Fn(Door) -> &'a Issued,
) -> Vec<(&'static str, String)> {
    let set = |name, value: &str| (name, value.to_owned());
    let mut listeners = format!("DIRECT://127.0.0.1:{direct},CONTROLLER://127.0.0.1:{voter}");
    let mut advertised = format!("DIRECT://127.0.0.1:{direct}");
    let mut protocols = "CONTROLLER:PLAINTEXT,DIRECT:PLAINTEXT".to_owned();
    let mut all = Vec::new();
    for ((door, name), port) in DOORS.into_iter().zip(ports) {
        let protocol = match door {
            Door::Password | Door::Token => "SASL_SSL",
            _ => "SSL",
        };
        listeners.push_str(&format!(",{name}://127.0.0.1:{port}"));
        advertised.push_str(&format!(",{name}://localhost:{port}"));
        protocols.push_str(&format!(",{name}:{protocol}"));
        let prefix = format!("listener.name.{}", name.to_lowercase());
        let store = certificate(door).store();
        let mut add = |name: &str, value: &str| {
            // a handful of names for the life of a test
            let name: &'static str = Box::leak(format!("{prefix}.{name}").into_boxed_str());
            all.push((name, value.to_owned()));
        };
        add("ssl.keystore.type", "PEM");
        add("ssl.keystore.location", &store.display().to_string());
        add("ssl.truststore.type", "PEM");
        add("ssl.truststore.location", &authority.display().to_string());
        match door {
            Door::Certificate => add("ssl.client.auth", "required"),
            Door::Password => {
                let module = "org.apache.kafka.common.security";
                let plain =
                    format!("{module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";");
                let scram = format!("{module}.scram.ScramLoginModule required;");
                add("sasl.enabled.mechanisms", "SCRAM-SHA-512,PLAIN");
                add("plain.sasl.jaas.config", &plain);
                add("scram-sha-512.sasl.jaas.config", &scram);
            }
            Door::Token => {
                // the broker's validator without keys: whatever has not expired is good
                let module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule";
                let own = format!("{module} required unsecuredLoginStringClaim_sub=\"broker\";");
                add("sasl.enabled.mechanisms", "OAUTHBEARER");
                add("oauthbearer.sasl.jaas.config", &own);
            }
            _ => {}
        }
    }
    all.extend([
        set("node.id", "1"),
        set("process.roles", "broker,controller"),
        set("controller.quorum.voters", &format!("1@127.0.0.1:{voter}")),
        set("controller.listener.names", "CONTROLLER"),
        set("listeners", &listeners),
        set("advertised.listeners", &advertised),
        set("inter.broker.listener.name", "DIRECT"),
        set("listener.security.protocol.map", &protocols),
        set(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        ),
        set("super.users", &format!("User:ANONYMOUS;User:{USER}")),
        set("offsets.topic.num.partitions", "1"),
        set("offsets.topic.replication.factor", "1"),
        set("auto.create.topics.enable", "false"),
    ]);
    all
}

/// A token of [`USER`] that is good from `from_s` to `to_s`, counted from now. Nobody has signed it.
pub(crate) fn token(from_s: i64, to_s: i64) -> String {
    let part = |json: String| URL_SAFE_NO_PAD.encode(json);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = i64::try_from(since.expect("a clock").as_secs()).expect("seconds");
    let (iat, exp) = (now + from_s, now + to_s);
    let head = part("{\"alg\":\"none\"}".to_owned());
    let claims = format!("{{\"sub\":\"{USER}\",\"iat\":{iat},\"exp\":{exp}}}");
    format!("{head}.{}.", part(claims))
}
