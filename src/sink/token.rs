//! The token to log in with by OAUTHBEARER: from a file that somebody else keeps fresh, such as the token that
//! Kubernetes projects into a pod. It is read anew whenever librdkafka wants one.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use serde::Deserialize;

use crate::config::{self, Secret};

/// The relay's own name among the settings of librdkafka, which has none for it.
pub(super) const PROPERTY: &str = "sasl.oauthbearer.token";

/// How long one counts that does not say it itself.
const LIFETIME_MS: u64 = 60_000;

/// How long that poll takes at the most.
const FIRST_POLL: Duration = Duration::from_millis(100);

/// Where the token is.
#[derive(Debug, Clone, Default)]
pub(super) struct Token {
    /// Whether the relay logs in by one.
    is_wanted: bool,
    text: Option<Secret>,
    file: Option<PathBuf>,
}

/// What a token says about itself, as far as a client wants to know.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    sub: Option<String>,
    /// Seconds since the epoch.
    exp: Option<f64>,
}

/// Whether the relay logs in by a token.
pub(super) fn is_wanted(kafka: &config::Kafka) -> bool {
    let is_it = |name: &str| {
        let value = kafka.properties.get(name);
        value.is_some_and(|value| value.expose().trim().eq_ignore_ascii_case("OAUTHBEARER"))
    };
    is_it("sasl.mechanisms") || is_it("sasl.mechanism")
}

impl Token {
    pub(super) fn of(kafka: &config::Kafka) -> Self {
        Self {
            is_wanted: is_wanted(kafka),
            text: kafka.properties.get(PROPERTY).cloned(),
            file: kafka.files.get(PROPERTY).cloned(),
        }
    }

    /// Lets a client that is new ask for its first token: it does so in a `poll`, and there is nothing else to
    /// come yet.
    pub(super) fn ask_first(&self, poll: impl FnOnce(Duration)) {
        if self.is_wanted {
            poll(FIRST_POLL);
        }
    }

    /// The token as it is now.
    ///
    /// # Errors
    /// There is none, or it has expired. Nothing of it is in the words.
    pub(super) fn read(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let newer = self.file.as_ref().map(|file| Secret::of_file(file));
        let text = match (newer, &self.text) {
            (Some(Ok(newer)), _) => newer,
            (_, Some(text)) => text.clone(),
            (Some(Err(why)), None) => return Err(why.into()),
            (None, None) => return Err("no sasl.oauthbearer.token_file names a token".into()),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let now_ms = u64::try_from(now.as_millis())?;
        let text = text.expose().trim();
        let claims = claims(text);
        let lifetime_ms = match claims.exp {
            Some(seconds) => milliseconds(seconds),
            None => now_ms + LIFETIME_MS,
        };
        if lifetime_ms <= now_ms {
            let ago = (now_ms - lifetime_ms) / 1000;
            return Err(format!(
                "the token that sasl.oauthbearer.token_file names has expired {ago} s ago: look at \
                 whoever writes it; a newer one is taken up by itself"
            )
            .into());
        }
        Ok(OAuthToken {
            token: text.to_owned(),
            principal_name: claims.sub.unwrap_or_else(|| "relay".to_owned()),
            lifetime_ms: i64::try_from(lifetime_ms)?,
        })
    }
}

/// Of a JSON web token its claims; of another one nothing is known.
fn claims(token: &str) -> Claims {
    let middle = token.split('.').nth(1).unwrap_or_default();
    let decoded = URL_SAFE_NO_PAD.decode(middle).unwrap_or_default();
    serde_json::from_slice(&decoded).unwrap_or_default()
}

/// What is out of range has expired, or never does.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits"
)]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).clamp(0.0, 253_402_300_799_000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> Token {
        let text = format!("e30.{}.", URL_SAFE_NO_PAD.encode(claims));
        Token {
            is_wanted: true,
            text: Some(Secret::new(text)),
            file: None,
        }
    }

    #[test]
    fn a_token_says_whose_it_is_and_how_long_it_is_good() {
        let read = token(r#"{"sub":"svc","exp":4102444800}"#).read().unwrap();
        assert_eq!(read.principal_name, "svc");
        assert_eq!(read.lifetime_ms, 4_102_444_800_000);
        let error = token(r#"{"sub":"canary","exp":1}"#).read().err().unwrap();
        let error = error.to_string();
        assert!(
            error.contains("has expired") && !error.contains("canary"),
            "{error}"
        );
    }

    #[test]
    fn one_that_says_nothing_is_good_for_a_while_and_there_must_be_one() {
        let opaque = Token {
            is_wanted: true,
            text: Some(Secret::new("opaque\n")),
            file: None,
        };
        let read = opaque.read().unwrap();
        assert_eq!(read.token, "opaque");
        assert!(Token::default().read().is_err());
    }

    #[test]
    fn the_file_counts_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "newer\n").unwrap();
        let token = Token {
            is_wanted: true,
            text: Some(Secret::new("older")),
            file: Some(file.clone()),
        };
        assert_eq!(token.read().unwrap().token, "newer");
        std::fs::remove_file(file).unwrap();
        assert_eq!(token.read().unwrap().token, "older");
    }
}
