//! A broker that asks who somebody is and what they may do: a local process. Clients that log in as
//! `relay` may do what they were granted; the tests, who come in by another door, everything.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, sleep};

use super::kafka::{Kafka, blocking};
use super::local::{self, Process};
use super::servers::free_port;
use rdkafka::consumer::Consumer;

/// The name and the password that the relay logs in with.
pub(crate) const USER: &str = "relay";
pub(crate) const PASSWORD: &str = "relays-own";

const START_MAX: Duration = Duration::from_secs(90);

/// See the module's description. It ends when it is dropped.
pub(crate) struct Guarded {
    process: Process,
    port: u16,
    direct: u16,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.process.abandon();
    }
}

impl Guarded {
    pub(crate) async fn start() -> Result<Self, String> {
        let [port, direct, voter] = [free_port(), free_port(), free_port()];
        let set = |name, value: &str| (name, value.to_owned());
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule";
        let settings = [
            set("node.id", "1"),
            set("process.roles", "broker,controller"),
            set("controller.quorum.voters", &format!("1@127.0.0.1:{voter}")),
            set("controller.listener.names", "CONTROLLER"),
            set(
                "listeners",
                &format!(
                    "GUARDED://127.0.0.1:{port},DIRECT://127.0.0.1:{direct},\
                     CONTROLLER://127.0.0.1:{voter}"
                ),
            ),
            set("inter.broker.listener.name", "DIRECT"),
            set(
                "listener.security.protocol.map",
                "CONTROLLER:PLAINTEXT,DIRECT:PLAINTEXT,GUARDED:SASL_PLAINTEXT",
            ),
            set("sasl.enabled.mechanisms", "PLAIN"),
            set(
                "listener.name.guarded.plain.sasl.jaas.config",
                &format!("{plain} required user_{USER}=\"{PASSWORD}\";"),
            ),
            set(
                "authorizer.class.name",
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            ),
            set("super.users", "User:ANONYMOUS"),
            set("offsets.topic.num.partitions", "1"),
            set("offsets.topic.replication.factor", "1"),
            set("auto.create.topics.enable", "false"),
        ];
        let process =
            local::launch_kafka_node(&format!("guarded-{port}"), 1, port, &settings).await?;
        let guarded = Self {
            process,
            port,
            direct,
        };
        ready(&guarded.process, &guarded.kafka()).await?;
        Ok(guarded)
    }

    /// Where the relay logs in.
    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The door without a lock.
    pub(crate) fn kafka(&self) -> Kafka {
        Kafka {
            brokers: format!("127.0.0.1:{}", self.direct),
        }
    }

    /// Lets the relay write to `topic`.
    pub(crate) async fn grant(&self, topic: &str) {
        ask(self.direct, CREATE_ACLS, topic, &format!("User:{USER}")).await;
    }

    /// Takes that back.
    pub(crate) async fn revoke(&self, topic: &str) {
        ask(self.direct, DELETE_ACLS, topic, &format!("User:{USER}")).await;
    }
}

/// Waits until the broker of `process` answers by the door of `kafka`.
pub(crate) async fn ready(process: &Process, kafka: &Kafka) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let kafka = kafka.clone();
        let look = move || {
            let consumer = kafka.consumer();
            let all = consumer.fetch_metadata(None, Duration::from_secs(2));
            all.is_ok_and(|all| !all.brokers().is_empty())
        };
        if blocking(look).await {
            return Ok(());
        }
        if !process.is_running() || began.elapsed() > START_MAX {
            return Err(format!("a broker does not start\n{}", process.log()));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) const CREATE_ACLS: i16 = 30;
pub(crate) const DELETE_ACLS: i16 = 31;

/// One request of Kafka's protocol to the broker on `port`, in version 1, where both of these have the same
/// fields: the rule that lets `principal` write to `topic`, or what the rules to delete are like.
pub(crate) async fn ask(port: u16, what: i16, topic: &str, principal: &str) {
    const TOPIC: i8 = 2;
    const LITERAL: i8 = 3;
    const WRITE: i8 = 4;
    const ALLOW: i8 = 3;
    let mut request = Vec::new();
    request.extend(what.to_be_bytes());
    request.extend(1_i16.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    text(&mut request, "test");
    request.extend(1_i32.to_be_bytes());
    request.extend(TOPIC.to_be_bytes());
    text(&mut request, topic);
    request.extend(LITERAL.to_be_bytes());
    text(&mut request, principal);
    text(&mut request, "*");
    request.extend(WRITE.to_be_bytes());
    request.extend(ALLOW.to_be_bytes());
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let length = i32::try_from(request.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let length = usize::try_from(stream.read_i32().await.unwrap()).unwrap();
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await.unwrap();
    // correlation, throttle time, one result, and that it is no error
    let result = &reply[8..14];
    assert_eq!(result, [0, 0, 0, 1, 0, 0], "the broker refuses: {reply:?}");
}

fn text(request: &mut Vec<u8>, text: &str) {
    let length = i16::try_from(text.len()).expect("a short text");
    request.extend(length.to_be_bytes());
    request.extend(text.as_bytes());
}
