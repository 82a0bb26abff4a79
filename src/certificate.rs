//! What is wrong with a TLS connection, said so that a reader knows which thing it is: the authority, the
//! name, the time, or the relay's own certificate. Pure; Postgres and Kafka share it.

use core::net::IpAddr;
use std::fmt;

use rustls::{AlertDescription, CertificateError, Error};

/// Who is at the other end, and by which settings it is told.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// "Postgres", "the broker".
    pub name: &'a str,
    /// The setting that names the file with trusted authorities.
    pub authority: &'a str,
    /// The setting that holds the address.
    pub address: &'a str,
    /// The settings that name the relay's own certificate and key.
    pub own: &'a str,
}

/// What is wrong, and what to do about it: half a sentence each, without a capital or a full stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub next_step: String,
}

impl Trouble {
    pub(crate) fn new(what: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            next_step: next_step.into(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. What to do: {}", self.what, self.next_step)
    }
}

/// Whether a connection to `host`, a name or an address, stays on this machine: then nobody is between.
#[must_use]
pub fn is_this_machine(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let is_loopback = |address: IpAddr| address.is_loopback();
    host == "localhost" || host.parse().is_ok_and(is_loopback)
}

impl Peer<'_> {
    /// `error` in words.
    #[must_use]
    pub fn trouble(&self, error: &Error) -> Trouble {
        match error {
            Error::InvalidCertificate(error) => self.certificate(error),
            Error::AlertReceived(alert) => self.alert(*alert),
            Error::InconsistentKeys(_) => Trouble {
                what: "the relay's own certificate and key do not belong together".to_owned(),
                next_step: format!("put the two of one issue into {}", self.own),
            },
            error => Trouble {
                what: format!("no TLS connection with {} comes about: {error}", self.name),
                next_step: format!(
                    "look whether {} leads to a port that speaks TLS 1.2 or 1.3",
                    self.address
                ),
            },
        }
    }

    fn certificate(&self, error: &CertificateError) -> Trouble {
        let name = self.name;
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Trouble {
                what: format!(
                    "the certificate of {name} is from an authority that the relay does not trust"
                ),
                next_step: format!(
                    "put the authority's certificate into the file that {} names; if it is there, somebody \
                     else may be answering",
                    self.authority
                ),
            },
            CertificateError::NotValidForName => self.name("another name", "the one asked for"),
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => {
                let presented: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
                let presented = match presented.is_empty() {
                    true => "no name at all".to_owned(),
                    false => presented.join(", "),
                };
                self.name(&presented, &expected.to_str())
            }
            CertificateError::Expired => self.expired(None),
            CertificateError::ExpiredContext { time, not_after } => {
                self.expired(Some(time.as_secs().saturating_sub(not_after.as_secs())))
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Trouble {
                    what: format!("the certificate of {name} is not valid yet"),
                    next_step: "look at this machine's clock, then at the certificate's dates"
                        .to_owned(),
                }
            }
            CertificateError::Revoked => Trouble {
                what: format!("the certificate of {name} was revoked"),
                next_step: "give the server a new one".to_owned(),
            },
            error if error.to_string().contains("CaUsedAsEndEntity") => Trouble {
                what: format!(
                    "the certificate of {name} is an authority's own, which no server may use"
                ),
                next_step: "give the server one that the authority has signed".to_owned(),
            },
            error => Trouble {
                what: format!("the certificate of {name} is of no use: {error}"),
                next_step: "give the server another one".to_owned(),
            },
        }
    }

    fn name(&self, presented: &str, expected: &str) -> Trouble {
        Trouble {
            what: format!(
                "the certificate of {} is for another host name: it is for {presented}, and the relay \
                 wants {expected}",
                self.name
            ),
            next_step: format!(
                "put a name that the certificate has into {}, or give the server a certificate with this name",
                self.address
            ),
        }
    }

    fn expired(&self, seconds: Option<u64>) -> Trouble {
        const DAY_S: u64 = 86_400;
        let ago = match seconds {
            None => String::new(),
            Some(seconds) if seconds < 2 * DAY_S => format!(" {} hours ago", seconds / 3600),
            Some(seconds) => format!(" {} days ago", seconds / DAY_S),
        };
        Trouble {
            what: format!(
                "the certificate of {}, or one that it rests on, has expired{ago}",
                self.name
            ),
            next_step: "renew it on the server, if this machine's clock is right".to_owned(),
        }
    }

    fn alert(&self, alert: AlertDescription) -> Trouble {
        let why = match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                "it wants one, and there is none"
            }
            AlertDescription::UnknownCA => "it is from an authority that is not trusted there",
            AlertDescription::CertificateExpired => "it has expired",
            AlertDescription::CertificateRevoked => "it was revoked",
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => {
                "it is missing, has expired, or is from an authority that is not trusted there"
            }
            alert => {
                return Trouble {
                    what: format!("{} breaks off the TLS handshake: {alert:?}", self.name),
                    next_step: "look at its log, and at the TLS versions and ciphers it takes"
                        .to_owned(),
                };
            }
        };
        Trouble {
            what: format!(
                "{} does not accept the relay's client certificate: {why}",
                self.name
            ),
            next_step: format!("put a valid certificate and its key into {}", self.own),
        }
    }
}

/// `DnsName("a.example")` is `a.example`.
fn bare(name: &str) -> &str {
    name.split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'))
        .unwrap_or(name)
        .trim_matches('"')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    const PEER: Peer<'_> = Peer {
        name: "Postgres",
        authority: "sslrootcert",
        address: "database.url",
        own: "sslcert and sslkey",
    };

    #[test]
    fn each_fault_has_words_and_a_next_step_of_its_own() {
        let time = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400));
        let expected = ServerName::try_from("db.example").unwrap();
        let name = CertificateError::NotValidForNameContext {
            expected,
            presented: vec![
                "DnsName(\"other.example\")".to_owned(),
                "IpAddress(10.0.0.1)".to_owned(),
            ],
        };
        let expired = CertificateError::ExpiredContext {
            time: time(30),
            not_after: time(27),
        };
        let certificate = Error::InvalidCertificate;
        let alert = Error::AlertReceived;
        for (error, what, next_step) in [
            (
                certificate(CertificateError::UnknownIssuer),
                "authority that the relay does not trust",
                "sslrootcert",
            ),
            (
                certificate(name),
                "for other.example, 10.0.0.1, and the relay wants db.example",
                "database.url",
            ),
            (certificate(expired), "expired 3 days ago", "renew"),
            (
                certificate(CertificateError::NotValidYet),
                "not valid yet",
                "clock",
            ),
            (certificate(CertificateError::Revoked), "revoked", "new one"),
            (
                alert(AlertDescription::CertificateRequired),
                "client certificate: it wants one",
                "sslcert and sslkey",
            ),
            (
                alert(AlertDescription::CertificateExpired),
                "client certificate: it has expired",
                "sslcert and sslkey",
            ),
            (
                alert(AlertDescription::HandshakeFailure),
                "breaks off",
                "ciphers",
            ),
        ] {
            let trouble = PEER.trouble(&error);
            assert!(trouble.what.contains(what), "{trouble:?}");
            assert!(trouble.next_step.contains(next_step), "{trouble:?}");
        }
    }
}
