//! Certificates, keys and passwords that change on disk.
//!
//! librdkafka reads files when a client is made. So a worker looks now and then whether one of them is
//! another than when its producer was made, and then makes a new one, between two groups of records. A
//! producer that cannot be made of the new files, half of which may be written, leaves the old one in place.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::generation::blocking;
use crate::config;

/// Settings that name a file for librdkafka to read.
const NAME_FILES: [&str; 5] = [
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
];

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The files of one config, and how they were.
#[derive(Debug)]
pub(super) struct Files {
    paths: Vec<PathBuf>,
    looked_at: Option<Instant>,
    /// When the last producer was made, or could not be.
    then: Vec<Stamp>,
}

/// What tells one writing of a file from the next, links followed; `None` where there is no such file.
type Stamp = Option<(SystemTime, u64, u64)>;

impl Files {
    pub(super) fn of(kafka: &config::Kafka) -> Self {
        let named = |name: &str| Some(PathBuf::from(kafka.properties.get(name)?.expose()));
        let held = kafka.files.values().cloned();
        Self {
            paths: NAME_FILES
                .into_iter()
                .filter_map(named)
                .chain(held)
                .collect(),
            looked_at: None,
            then: Vec::new(),
        }
    }

    /// Whether one of them changed since this was last true, or since the first look.
    pub(super) async fn changed(&mut self) -> bool {
        let recently = |at: Instant| at.elapsed() < LOOK_EVERY;
        if self.paths.is_empty() || self.looked_at.is_some_and(recently) {
            return false;
        }
        let paths = self.paths.clone();
        let look = move || -> Vec<Stamp> { paths.iter().map(|path| stamp(path)).collect() };
        let Some(now) = blocking(look).await else {
            return false;
        };
        let is_first = self.looked_at.replace(Instant::now()).is_none();
        let changed = !is_first && now != self.then;
        self.then = now;
        changed
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    Some((found.modified().ok()?, found.ino(), found.len()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Secret;
    use crate::sink::testing;

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_written_anew_replaced_or_gone_has_changed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("ca.pem"), "one").unwrap();
        fs::write(path("password"), "one").unwrap();
        let mut kafka = testing::kafka("127.0.0.1:1");
        let ca = Secret::new(path("ca.pem").display().to_string());
        kafka.properties.insert("ssl.ca.location".into(), ca);
        kafka.files.insert("sasl.password".into(), path("password"));
        let mut files = Files::of(&kafka);
        let mut changed = async || {
            tokio::time::advance(LOOK_EVERY).await;
            files.changed().await
        };
        assert!(!changed().await, "the first look");
        assert!(!changed().await);
        fs::write(path("ca.pem"), "longer").unwrap();
        assert!(changed().await);
        assert!(!changed().await);
        // as Kubernetes does, and whoever writes beside it and renames
        fs::write(path("new"), "two").unwrap();
        fs::rename(path("new"), path("password")).unwrap();
        assert!(changed().await);
        fs::remove_file(path("ca.pem")).unwrap();
        assert!(changed().await);
        assert!(!changed().await);
    }

    #[tokio::test]
    async fn without_files_nothing_is_looked_at() {
        let mut files = Files::of(&testing::kafka("127.0.0.1:1"));
        assert!(!files.changed().await);
        assert!(files.looked_at.is_none());
    }
}
