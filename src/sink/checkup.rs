//! The facts that `check` judges Kafka by. It asks and judges nothing, and produces nothing.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::Instant;

use super::outcome::{self, Fault, TopicFault};
use super::token::{self, Token};
use super::{secured, settings};
use crate::certificate::Trouble;
use crate::config;

/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a cluster none of whose brokers can be reached is asked again.
const CUT_OFF_MAX: Duration = Duration::from_secs(2);
/// How long one that only does not answer is.
const REACH_MAX: Duration = Duration::from_secs(20);
/// How long one attempt to reach it takes, and how long its complaints are then listened to.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);
const LISTEN: Duration = Duration::from_millis(100);

/// What is known of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cluster {
    /// Nobody answers; librdkafka's last words on it.
    Unreachable(String),
    /// Somebody answers, and does not let the relay in. With its last words, and what is behind them where that can be told.
    Refused(String, Option<Trouble>),
    /// It answers.
    Reached {
        /// How many brokers it has.
        brokers: usize,
        /// What it says of each topic that was asked for, in that order.
        topics: Vec<Topic>,
    },
}

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// What Kafka says of it.
    pub state: TopicState,
}

/// What Kafka says of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicState {
    /// It does not exist, or the relay may not see it.
    Missing,
    /// The relay may not describe it; whoever may write to it may that.
    Denied,
    /// Something else, in words.
    Broken(String),
    /// It is there.
    Found(Found),
}

/// A topic that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// How many partitions.
    pub partitions: usize,
    /// Those that nobody leads.
    pub leaderless: Vec<i32>,
    /// The fewest replicas a partition of it has.
    pub replicas: usize,
    /// The fewest of them that are in sync now, of the partitions that have a leader.
    pub in_sync: usize,
    /// Its settings, as they are in force; the error in words where they may not be read.
    pub settings: Result<Settings, String>,
}

/// A topic's settings, as they are in force: its own, or else the brokers'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// `min.insync.replicas`.
    pub min_in_sync: Option<usize>,
    /// `unclean.leader.election.enable`.
    pub unclean: Option<bool>,
    /// `max.message.bytes`.
    pub message_bytes_max: Option<usize>,
}

/// Asks the cluster of `kafka` about `topics`.
pub async fn examine(kafka: &config::Kafka, topics: Vec<String>) -> Cluster {
    let (kafka, brokers) = (kafka.clone(), kafka.brokers.clone());
    let asked = tokio::task::spawn_blocking(move || ask(&kafka, &topics)).await;
    asked.unwrap_or_else(|_| Cluster::Unreachable(format!("nobody could be asked at {brokers}")))
}

fn ask(kafka: &config::Kafka, topics: &[String]) -> Cluster {
    let settings = settings::connection(kafka);
    let client: BaseProducer<Complaints> = match settings.create_with_context(Complaints {
        token: Token::of(kafka),
        ..Complaints::default()
    }) {
        Ok(client) => client,
        Err(error) => return Cluster::Unreachable(outcome::in_words(&error)),
    };
    (client.context().token).ask_first(|limit| {
        client.poll(limit);
    });
    let brokers = match reach(kafka, &client, topics) {
        Ok(brokers) => brokers,
        Err(cluster) => return cluster,
    };
    let mut known: Vec<Topic> = Vec::with_capacity(topics.len());
    for name in topics {
        let state = look_up(&client, name);
        let name = name.clone();
        known.push(Topic { name, state });
    }
    let names: Vec<&str> = (known.iter())
        .filter(|topic| matches!(topic.state, TopicState::Found(_)))
        .map(|topic| topic.name.as_str())
        .collect();
    let mut all = describe(kafka, &names);
    for topic in &mut known {
        if let TopicState::Found(found) = &mut topic.state {
            found.settings = (all.remove(&topic.name))
                .unwrap_or_else(|| Err("the broker says nothing of them".to_owned()));
        }
    }
    Cluster::Reached {
        brokers,
        topics: known,
    }
}

/// How many brokers there are, once one of them answers.
fn reach(
    kafka: &config::Kafka,
    client: &BaseProducer<Complaints>,
    topics: &[String],
) -> Result<usize, Cluster> {
    let began = Instant::now();
    loop {
        // of one topic, where there is any: a large cluster has a long list
        let topic = topics.first().map(String::as_str);
        let error = match client.client().fetch_metadata(topic, REACH_TIMEOUT) {
            Ok(metadata) => return Ok(metadata.brokers().len()),
            Err(error) => error,
        };
        client.poll(LISTEN);
        let heard = client.context().heard();
        let words = heard.words.unwrap_or_else(|| outcome::in_words(&error));
        let cause = secured::explain(kafka, &words);
        if heard.refused || cause.is_some() {
            return Err(Cluster::Refused(words, cause));
        }
        let patience = if heard.cut_off {
            CUT_OFF_MAX
        } else {
            REACH_MAX
        };
        if began.elapsed() > patience {
            return Err(Cluster::Unreachable(words));
        }
    }
}

fn look_up(client: &BaseProducer<Complaints>, name: &str) -> TopicState {
    let metadata = match client.client().fetch_metadata(Some(name), ASK_TIMEOUT) {
        Ok(metadata) => metadata,
        Err(error) => return TopicState::Broken(outcome::in_words(&error)),
    };
    let Some(topic) = metadata.topics().iter().find(|it| it.name() == name) else {
        return TopicState::Missing;
    };
    if let Some(error) = topic.error() {
        let code = Code::from(error);
        return match Fault::of(code) {
            Fault::Topic(TopicFault::Unknown) => TopicState::Missing,
            Fault::Topic(TopicFault::Denied) => TopicState::Denied,
            _ => TopicState::Broken(code.to_string()),
        };
    }
    let partitions = topic.partitions();
    let (mut replicas, mut in_sync, mut leaderless) = (usize::MAX, usize::MAX, Vec::new());
    for partition in partitions {
        replicas = replicas.min(partition.replicas().len());
        if partition.leader() < 0 {
            leaderless.push(partition.id());
        } else {
            in_sync = in_sync.min(partition.isr().len());
        }
    }
    TopicState::Found(Found {
        partitions: partitions.len(),
        leaderless,
        replicas,
        in_sync,
        settings: Err(String::new()),
    })
}

/// The settings in force of `topics`. Those that the broker says nothing of are missing.
fn describe(kafka: &config::Kafka, topics: &[&str]) -> HashMap<String, Result<Settings, String>> {
    let failed = |why: &str| {
        let failed = topics
            .iter()
            .map(|topic| ((*topic).to_owned(), Err(why.to_owned())));
        failed.collect()
    };
    if topics.is_empty() {
        return HashMap::new();
    }
    if token::is_wanted(kafka) {
        return failed("with OAUTHBEARER they cannot be asked for");
    }
    let settings = settings::connection(kafka);
    let client: AdminClient<Complaints> = match settings.create_with_context(Complaints::default())
    {
        Ok(client) => client,
        Err(error) => return failed(&outcome::in_words(&error)),
    };
    let resources = topics.iter().map(|topic| ResourceSpecifier::Topic(topic));
    let resources: Vec<_> = resources.collect();
    let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
    let described = client.describe_configs(&resources, &options);
    let described = match tokio::runtime::Handle::current().block_on(described) {
        Ok(described) => described,
        Err(error) => return failed(&outcome::in_words(&error)),
    };
    let mut all = HashMap::new();
    for (topic, described) in topics.iter().zip(described) {
        let read = match described {
            Err(code) => Err(code.to_string()),
            Ok(resource) => {
                let named = OwnedResourceSpecifier::Topic((*topic).to_owned());
                if resource.specifier != named {
                    continue;
                }
                let text = |name: &str| resource.get(name)?.value.clone();
                let read = Settings {
                    min_in_sync: text("min.insync.replicas").and_then(|it| it.parse().ok()),
                    unclean: text("unclean.leader.election.enable").and_then(|it| it.parse().ok()),
                    message_bytes_max: text("max.message.bytes").and_then(|it| it.parse().ok()),
                };
                // who lacks the right gets an answer without entries
                match read == Settings::default() {
                    true => Err("the broker tells none of them".to_owned()),
                    false => Ok(read),
                }
            }
        };
        all.insert((*topic).to_owned(), read);
    }
    all
}

/// What librdkafka says on its own.
#[derive(Default)]
struct Complaints {
    heard: Mutex<Heard>,
    token: Token,
}

#[derive(Default, Clone)]
struct Heard {
    words: Option<String>,
    /// No broker can be reached at all.
    cut_off: bool,
    /// One does not let the relay in.
    refused: bool,
}

impl Complaints {
    fn heard(&self) -> Heard {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.clone()
    }
}

impl ClientContext for Complaints {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.token.read()
    }

    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => heard.cut_off = true,
            Some(code) => {
                heard.refused |= matches!(
                    code,
                    Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL
                );
                heard.words = Some(reason.to_owned());
            }
            None => heard.words = Some(reason.to_owned()),
        }
    }
}

impl ProducerContext for Complaints {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
