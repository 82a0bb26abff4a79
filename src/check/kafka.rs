//! The facts about Kafka, judged. Pure.

use std::collections::BTreeMap;

use super::line::{Line, shell};
use crate::certificate::Trouble;
use crate::config;
use crate::finding::Fix;
use crate::sink::checkup::{Cluster, Found, Settings, Topic, TopicState};
use crate::sink::weaknesses;

/// What a topic's replicas should be: one may be lost, and what is acknowledged is still on another.
const REPLICAS: usize = 3;
const MIN_IN_SYNC: usize = 2;
/// What a record takes beside payload, key and the row's own headers: the batch's head, and the headers
/// that every event has.
const RECORD_OVERHEAD: u64 = 256;

/// What the facts are held against.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// How Kafka is reached.
    pub kafka: &'a config::Kafka,
    /// The bytes of the largest row that waits, by topic.
    pub largest: &'a BTreeMap<String, u64>,
}

impl Judge<'_> {
    /// A line for the cluster, and some for each topic.
    #[must_use]
    pub fn lines(&self, cluster: &Cluster) -> Vec<Line> {
        match cluster {
            Cluster::Unreachable(why) => vec![
                Line::fail("kafka", format!("no broker answers at {}: {why}", self.kafka.brokers)).words(
                    "start the brokers, or put the right host and port into kafka.brokers, and look whether \
                     security.protocol in [kafka.properties] is what their port speaks",
                ),
                Line::skip("topic", "every topic: nobody can be asked"),
            ],
            Cluster::Refused(words, Some(Trouble { what, next_step })) => vec![
                Line::fail("kafka", format!("{what} ({words})")).words(next_step),
                Line::skip("topic", "every topic: nobody can be asked"),
            ],
            Cluster::Refused(why, None) => vec![
                Line::fail("kafka", format!("the brokers do not let the relay in: {why}")).words(
                    "put the right sasl.username, sasl.password and sasl.mechanisms, or certificates, into \
                     [kafka.properties]",
                ),
                Line::skip("topic", "every topic: nobody can be asked"),
            ],
            Cluster::Reached { brokers, topics } => {
                let at = &self.kafka.brokers;
                let mut lines = vec![match brokers {
                    0 => Line::fail("kafka", format!("{at} answers, and knows of no broker that serves")).words(
                        "wait until its brokers have joined, or look in their logs for why they have not",
                    ),
                    1 => Line::ok("kafka", format!("1 broker at {at}")),
                    _ => Line::ok("kafka", format!("{brokers} brokers at {at}")),
                }];
                let weak = weaknesses(self.kafka).into_iter();
                lines.extend(weak.map(|Trouble { what, next_step }| Line::warn("tls", what).words(next_step)));
                for topic in topics {
                    let found = self.topic(topic, *brokers);
                    lines.extend(found.into_iter().map(|line| line.about(&topic.name)));
                }
                lines
            }
        }
    }

    fn topic(&self, topic: &Topic, brokers: usize) -> Vec<Line> {
        let name = &topic.name;
        match &topic.state {
            TopicState::Missing => {
                let replicas = brokers.clamp(1, REPLICAS);
                let min = match replicas {
                    REPLICAS => format!(" --config min.insync.replicas={MIN_IN_SYNC}"),
                    _ => String::new(),
                };
                let create = format!(
                    "--create --topic {name} --partitions 6 --replication-factor {replicas}{min}"
                );
                vec![
                    Line::fail(
                        "topic",
                        format!(
                            "{name} does not exist, or the relay may not see it: its rows wait. Its number of \
                             partitions is for good"
                        ),
                    )
                    .shell(self.tool("kafka-topics.sh", &create)),
                ]
            }
            TopicState::Denied => vec![
                Line::fail(
                    "rights",
                    format!("the relay may neither write nor describe {name}: its rows wait"),
                )
                .shell(self.acl(name, "Write")),
            ],
            TopicState::Broken(why) => vec![
                Line::fail("topic", format!("{name} cannot be looked at: {why}"))
                    .shell(self.tool("kafka-topics.sh", &format!("--describe --topic {name}"))),
            ],
            TopicState::Found(found) => self.found(name, found),
        }
    }

    fn found(&self, name: &str, found: &Found) -> Vec<Line> {
        let describe = self.tool("kafka-topics.sh", &format!("--describe --topic {name}"));
        let mut lines = Vec::new();
        let partitions = found.partitions;
        lines.push(if found.leaderless.is_empty() {
            Line::ok(
                "topic",
                format!("{name} has {partitions} partitions, each with a leader"),
            )
        } else {
            let many = found.leaderless.len();
            let why = format!(
                "{many} of {partitions} partitions of {name} have no leader: their rows wait"
            );
            Line::fail("topic", why).shell(describe.clone())
        });
        let settings = match &found.settings {
            Ok(settings) => *settings,
            Err(why) => {
                let why = format!(
                    "the relay may not read the settings of {name} ({why}), so nobody looks at them, and \
                     kafka.message_bytes_max counts for its size limit"
                );
                lines.push(Line::skip("settings", why).shell(self.acl(name, "DescribeConfigs")));
                Settings::default()
            }
        };
        lines.extend(self.replicas(name, found, settings, &describe));
        if settings.unclean == Some(true) {
            let why = format!(
                "unclean.leader.election.enable is on for {name}: a replica that lags may become leader, and \
                 what it lacks is lost although it was acknowledged"
            );
            let fix = self.set(name, "unclean.leader.election.enable=false");
            lines.push(Line::warn("unclean", why).shell(fix));
        } else if settings.unclean.is_some() {
            let why = format!("only a replica in sync can lead {name}");
            lines.push(Line::ok("unclean", why));
        }
        lines.push(self.size(name, settings));
        lines
    }

    fn replicas(&self, name: &str, found: &Found, settings: Settings, describe: &str) -> Vec<Line> {
        let replicas = found.replicas;
        let mut lines = Vec::new();
        if replicas < 2 {
            let why = format!(
                "{name} has a single replica of each partition: with its broker's disk all events are lost"
            );
            lines.push(
                Line::warn("replicas", why)
                    .words("give it three, by kafka-reassign-partitions.sh, on as many brokers"),
            );
        }
        match settings.min_in_sync {
            Some(min) if min > replicas => {
                let why = format!(
                    "min.insync.replicas of {name} is {min}, and it has {replicas}: nothing can be written"
                );
                let fix = format!("min.insync.replicas={}", replicas.saturating_sub(1).max(1));
                lines.push(Line::fail("replicas", why).shell(self.set(name, &fix)));
            }
            Some(min) if found.leaderless.is_empty() && min > found.in_sync => {
                let why = format!(
                    "a partition of {name} has {} replicas in sync, and min.insync.replicas is {min}: its \
                     rows wait until a broker is back",
                    found.in_sync
                );
                lines.push(Line::fail("replicas", why).shell(describe));
            }
            Some(min) if min < MIN_IN_SYNC && replicas >= MIN_IN_SYNC => {
                let why = format!(
                    "min.insync.replicas of {name} is {min}: what one broker alone has counts as \
                     acknowledged, and is lost with it"
                );
                let fix = format!("min.insync.replicas={MIN_IN_SYNC}");
                lines.push(Line::warn("replicas", why).shell(self.set(name, &fix)));
            }
            Some(min) if lines.is_empty() => {
                let why =
                    format!("{name} has {replicas}, {min} of which must have what is acknowledged");
                lines.push(Line::ok("replicas", why));
            }
            _ => {}
        }
        lines
    }

    fn size(&self, name: &str, settings: Settings) -> Line {
        let row = self.largest.get(name).copied().unwrap_or(0);
        let record = if row == 0 {
            0
        } else {
            row.saturating_add(RECORD_OVERHEAD)
        };
        let ours = u64::try_from(self.kafka.message_bytes_max).unwrap_or(u64::MAX);
        let theirs = settings
            .message_bytes_max
            .and_then(|max| u64::try_from(max).ok());
        let limit = theirs.unwrap_or(ours);
        if record <= limit {
            let why = format!("the largest row seen for {name} has {row} bytes; it takes {limit}");
            return Line::ok("size", why);
        }
        let room = record.saturating_add(record / 5);
        let line = Line::fail(
            "size",
            format!(
                "a row that waits for {name} makes a record of {record} bytes or so, and it takes {limit}: \
                 the row will be parked"
            ),
        );
        match theirs {
            Some(_) => line.shell(self.set(name, &format!("max.message.bytes={room}"))),
            None => line.fix(Fix::Setting {
                section: "kafka",
                line: format!("message_bytes_max = {room}"),
            }),
        }
    }

    fn set(&self, topic: &str, setting: &str) -> String {
        let rest =
            format!("--alter --entity-type topics --entity-name {topic} --add-config {setting}");
        self.tool("kafka-configs.sh", &rest)
    }

    fn acl(&self, topic: &str, operation: &str) -> String {
        let user = self.kafka.properties.get("sasl.username");
        let user = user.map_or("NAME", |user| user.expose());
        let user = shell(&format!("User:{user}"));
        let rest =
            format!("--add --allow-principal {user} --operation {operation} --topic {topic}");
        self.tool("kafka-acls.sh", &rest)
    }

    /// A command of Kafka's own tools. Where the relay logs in, so must they.
    fn tool(&self, tool: &str, rest: &str) -> String {
        let guarded = self.kafka.properties.contains_key("security.protocol");
        let login = if guarded {
            " --command-config admin.properties"
        } else {
            ""
        };
        let brokers = &self.kafka.brokers;
        format!("{tool} --bootstrap-server {brokers}{login} {rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::{Level, Names};
    use super::*;
    use crate::config::Secret;

    fn well() -> Found {
        Found {
            partitions: 6,
            leaderless: Vec::new(),
            replicas: 3,
            in_sync: 3,
            settings: Ok(Settings {
                min_in_sync: Some(2),
                unclean: Some(false),
                message_bytes_max: Some(1_048_588),
            }),
        }
    }

    fn lines(state: TopicState, waiting_bytes: u64) -> Vec<(Level, &'static str, String)> {
        let kafka = config::Kafka {
            brokers: "b:9092".into(),
            message_bytes_max: 1_000_000,
            properties: BTreeMap::from([
                ("sasl.username".to_owned(), Secret::new("o'relay")),
                ("security.protocol".to_owned(), Secret::new("SASL_SSL")),
            ]),
            files: BTreeMap::new(),
        };
        let largest = BTreeMap::from([("t".to_owned(), waiting_bytes)]);
        let judge = Judge {
            kafka: &kafka,
            largest: &largest,
        };
        let name = "t".to_owned();
        let topics = vec![Topic { name, state }];
        let lines = judge.lines(&Cluster::Reached { brokers: 3, topics });
        let line = |line: Line| {
            let fix = line.json(&Names::default())["fix"]
                .as_str()
                .unwrap_or("")
                .to_owned();
            (line.level, line.item, fix)
        };
        lines.into_iter().map(line).collect()
    }

    #[test]
    fn a_topic_that_is_well_has_no_other_lines() {
        let lines = lines(TopicState::Found(well()), 1_000_000);
        assert!(
            lines.iter().all(|(level, ..)| *level == Level::Ok),
            "{lines:?}"
        );
        let items: Vec<_> = lines.iter().map(|(_, item, _)| *item).collect();
        assert_eq!(items, ["kafka", "topic", "replicas", "unclean", "size"]);
    }

    #[test]
    fn a_cluster_without_a_broker_that_serves_is_none() {
        let kafka = config::Kafka {
            brokers: "localhost:9092".into(),
            message_bytes_max: 1_000_000,
            properties: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        let judge = Judge {
            kafka: &kafka,
            largest: &BTreeMap::new(),
        };
        for (brokers, level) in [(0, Level::Fail), (1, Level::Ok), (3, Level::Ok)] {
            let topics = Vec::new();
            let lines = judge.lines(&Cluster::Reached { brokers, topics });
            let told: Vec<_> = lines.iter().map(|line| (line.level, line.item)).collect();
            assert_eq!(told, [(level, "kafka")], "{brokers} brokers");
        }
    }

    #[test]
    fn a_weak_connection_has_a_line_for_each_weakness() {
        let told = |brokers: &str, properties: &[(&str, &str)]| -> Vec<(Level, &str)> {
            let secret = |(name, value): &(&str, &str)| ((*name).to_owned(), Secret::new(*value));
            let kafka = config::Kafka {
                brokers: brokers.into(),
                message_bytes_max: 1_000_000,
                properties: properties.iter().map(secret).collect(),
                files: BTreeMap::new(),
            };
            let judge = Judge {
                kafka: &kafka,
                largest: &BTreeMap::new(),
            };
            let topics = Vec::new();
            let lines = judge.lines(&Cluster::Reached { brokers: 1, topics });
            lines.iter().map(|line| (line.level, line.item)).collect()
        };
        let well = (Level::Ok, "kafka");
        let weak = (Level::Warn, "tls");
        assert_eq!(told("b.example:9092", &[]), [well, weak]);
        assert_eq!(told("localhost:9092", &[]), [well]);
        let encrypted = ("security.protocol", "SSL");
        assert_eq!(told("b.example:9092", &[encrypted]), [well]);
        let unverified = ("enable.ssl.certificate.verification", "false");
        assert_eq!(
            told("b.example:9092", &[encrypted, unverified]),
            [well, weak]
        );
    }

    #[test]
    fn each_fact_about_a_topic_has_its_line() {
        const CONFIGS: &str = "kafka-configs.sh --bootstrap-server b:9092 --command-config admin.properties --alter \
             --entity-type topics --entity-name t --add-config ";
        type Case = (fn(&mut Found), u64, &'static str, Level, &'static str);
        fn set(found: &mut Found, change: impl FnOnce(&mut Settings)) {
            found.settings.as_mut().map(change).unwrap();
        }
        let cases: &[Case] = &[
            (
                |f| f.leaderless = vec![1],
                0,
                "topic",
                Level::Fail,
                "--describe --topic t",
            ),
            (
                |f| (f.replicas, f.in_sync) = (1, 1),
                0,
                "replicas",
                Level::Warn,
                "kafka-reassign-partitions.sh",
            ),
            (
                |f| set(f, |s| s.min_in_sync = Some(1)),
                0,
                "replicas",
                Level::Warn,
                "min.insync.replicas=2",
            ),
            (
                |f| set(f, |s| s.min_in_sync = Some(4)),
                0,
                "replicas",
                Level::Fail,
                "min.insync.replicas=2",
            ),
            (
                |f| f.in_sync = 1,
                0,
                "replicas",
                Level::Fail,
                "--describe --topic t",
            ),
            (
                |f| set(f, |s| s.unclean = Some(true)),
                0,
                "unclean",
                Level::Warn,
                "unclean.leader.election.enable=false",
            ),
            (
                |_| {},
                1_048_500,
                "size",
                Level::Fail,
                "max.message.bytes=1258507",
            ),
            (
                |f| f.settings = Err("no".into()),
                0,
                "settings",
                Level::Skip,
                "--allow-principal 'User:o'\\''relay' --operation DescribeConfigs --topic t",
            ),
            (
                |f| f.settings = Err("no".into()),
                1_000_000,
                "size",
                Level::Fail,
                "message_bytes_max = 1200307 in [kafka]",
            ),
        ];
        for (i, (change, waiting, item, level, fix)) in cases.iter().enumerate() {
            let mut found = well();
            change(&mut found);
            let lines = lines(TopicState::Found(found), *waiting);
            let line = lines
                .iter()
                .find(|line| line.1 == *item && line.0 != Level::Ok);
            let line = line.unwrap_or_else(|| panic!("case {i}: {lines:?}"));
            assert_eq!(line.0, *level, "case {i}");
            assert!(line.2.contains(fix), "case {i}: {}", line.2);
            if line.2.contains("--alter") {
                assert!(line.2.starts_with(CONFIGS), "case {i}: {}", line.2);
            }
        }
    }

    #[test]
    fn a_topic_that_is_not_there_is_made_so_that_a_broker_may_be_lost() {
        let made = lines(TopicState::Missing, 0);
        assert!(made[1].2.ends_with("--create --topic t --partitions 6 --replication-factor 3 --config min.insync.replicas=2"));
        let denied = lines(TopicState::Denied, 0);
        assert_eq!((denied[1].0, denied[1].1), (Level::Fail, "rights"));
        assert!(denied[1].2.contains("--operation Write --topic t"));
    }
}
