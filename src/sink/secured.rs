//! How safe the connections to the brokers are, and what is wrong where one does not come about.
//!
//! librdkafka verifies certificates and host names unless it is told otherwise. What it says of one that it
//! refuses is the same for a wrong authority, a wrong host name and one that has expired. So then the relay
//! knocks at that broker itself, with the same authorities, and says which it was. Nothing is sent but the
//! handshake; the connection is never used.

use std::io::{self, Read as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::generation::blocking;
use crate::certificate::{Peer, Trouble, is_this_machine};
use crate::config::{self, Secret};

const PEER: Peer<'_> = Peer {
    name: "the broker",
    authority: "ssl.ca.location",
    address: "kafka.brokers, or into the broker's advertised.listeners,",
    own: "ssl.certificate.location and ssl.key.location",
};

/// How long a broker has for each step of a handshake.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// What librdkafka says of a certificate that it refuses.
const REFUSED: &str = "certificate verify failed";

/// In which ways the connections to the brokers of `kafka` are weaker than they should be.
#[must_use]
pub fn weaknesses(kafka: &config::Kafka) -> Vec<Trouble> {
    let value = |name: &str| {
        kafka
            .properties
            .get(name)
            .map(|it| it.expose().to_lowercase())
    };
    let protocol = value("security.protocol").unwrap_or_else(|| "plaintext".to_owned());
    let encrypted = matches!(protocol.as_str(), "ssl" | "sasl_ssl");
    let mut found = Vec::new();
    let mut say = |what: &str, next_step: &str| found.push(Trouble::new(what, next_step));
    let is_off = |value: String| matches!(value.as_str(), "false" | "f" | "0" | "no");
    if encrypted && value("enable.ssl.certificate.verification").is_some_and(is_off) {
        say(
            "enable.ssl.certificate.verification is off: whoever is between can pass for a broker",
            "take it out, and name the brokers' authority by ssl.ca.location",
        );
    } else if encrypted
        && value("ssl.endpoint.identification.algorithm").is_some_and(|value| value == "none")
    {
        say(
            "ssl.endpoint.identification.algorithm is none: any certificate of the same authority passes \
             for a broker's",
            "take it out, and give the brokers certificates with the names they are reached by",
        );
    }
    if !encrypted && !is_local(&kafka.brokers) {
        match protocol.as_str() {
            "sasl_plaintext" => say(
                "security.protocol is SASL_PLAINTEXT: whoever is between can read the events, and the \
                 password of PLAIN",
                "let the brokers have a listener with TLS, and set security.protocol to SASL_SSL",
            ),
            _ => say(
                "security.protocol is PLAINTEXT: whoever is between can read the events, and write others",
                "let the brokers have a listener with TLS, and set security.protocol to SSL or SASL_SSL",
            ),
        }
    }
    found
}

/// Whether all of `brokers` are on this machine.
fn is_local(brokers: &str) -> bool {
    brokers.split(',').map(str::trim).all(|broker| {
        let broker = broker.rsplit_once("://").map_or(broker, |(_, rest)| rest);
        is_this_machine(broker.rsplit_once(':').map_or(broker, |(host, _)| host))
    })
}

/// `complaint`, librdkafka's, as a reader wants it: which thing is wrong, and what to do. Where that cannot
/// be told it stays as it is.
pub(super) async fn explained(kafka: &config::Kafka, complaint: String) -> String {
    let (kafka, said) = (kafka.clone(), complaint.clone());
    let explain = move || explain(&kafka, &said);
    match blocking(explain).await.flatten() {
        Some(trouble) => format!("{trouble} ({complaint})"),
        None => complaint,
    }
}

/// As [`explained`], on a thread that may block.
pub(super) fn explain(kafka: &config::Kafka, complaint: &str) -> Option<Trouble> {
    let said = |what: &str, next_step: &str| Some(Trouble::new(what, next_step));
    if complaint.contains(REFUSED) {
        return knock(kafka, complaint);
    }
    let lower = complaint.to_lowercase();
    if lower.contains("alert") && lower.contains("certificate") || lower.contains("unknown ca") {
        return said(
            "the broker does not accept the relay's client certificate: it is missing, has expired, or is \
             from an authority that is not trusted there",
            "put a valid certificate and its key into ssl.certificate.location and ssl.key.location",
        );
    }
    if lower.contains("sasl authentication error") || lower.contains("invalid credentials") {
        return said(
            "the broker refuses the relay's user or password",
            "put the right sasl.username and sasl.password (or sasl.password_file) into [kafka.properties]; \
             a file that changes is read anew",
        );
    }
    if lower.contains("unsupported sasl mechanism") || lower.contains("unsupported mechanism") {
        return said(
            "the broker does not take this way to log in",
            "set sasl.mechanisms to one that it has enabled",
        );
    }
    None
}

/// Tries a handshake with the broker that `complaint` is about, and says why its certificate is refused.
fn knock(kafka: &config::Kafka, complaint: &str) -> Option<Trouble> {
    let address = complaint.split_once("://")?.1.split(['/', ' ']).next()?;
    let address = address.trim_end_matches(':');
    let (host, _) = address.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let settings = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(authorities(kafka))
        .with_no_client_auth();
    let name = ServerName::try_from(host).ok()?;
    let mut connection = ClientConnection::new(Arc::new(settings), name).ok()?;
    for address in address.to_socket_addrs().ok()? {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, KNOCK_TIMEOUT) else {
            continue;
        };
        stream.set_read_timeout(Some(KNOCK_TIMEOUT)).ok()?;
        stream.set_write_timeout(Some(KNOCK_TIMEOUT)).ok()?;
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut stream) {
                let refused = error.get_ref().and_then(|it| it.downcast_ref());
                return refused.map(|error| PEER.trouble(error));
            }
        }
        return None;
    }
    None
}

/// Those that librdkafka trusts: of the config, else of this machine.
fn authorities(kafka: &config::Kafka) -> RootCertStore {
    let mut trusted = RootCertStore::empty();
    let property = |name: &str| kafka.properties.get(name).map(Secret::expose);
    let pem = match (property("ssl.ca.pem"), property("ssl.ca.location")) {
        (Some(pem), _) => Some(pem.as_bytes().to_vec()),
        (None, Some(file)) => Some(bytes(file).unwrap_or_default()),
        (None, None) => None,
    };
    match pem {
        Some(pem) => {
            let all = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
            trusted.add_parsable_certificates(all);
        }
        None => {
            let all = rustls_native_certs::load_native_certs().certs;
            trusted.add_parsable_certificates(all);
        }
    }
    trusted
}

/// What a file of certificates holds, if it is no larger than such files are.
fn bytes(file: &str) -> io::Result<Vec<u8>> {
    const BYTES_MAX: u64 = 16 << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?
        .take(BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing;

    fn told(brokers: &str, properties: &[(&str, &str)]) -> Vec<String> {
        let mut kafka = testing::kafka(brokers);
        for (name, value) in properties {
            let value = Secret::new(*value);
            kafka.properties.insert((*name).to_owned(), value);
        }
        weaknesses(&kafka).into_iter().map(|it| it.what).collect()
    }

    #[test]
    fn what_is_weaker_than_it_should_be_is_told() {
        let safe = ("security.protocol", "SASL_SSL");
        let away = "localhost:9092,kafka.example:9092";
        for (brokers, properties, word) in [
            (away, vec![], "PLAINTEXT"),
            (
                away,
                vec![("security.protocol", "sasl_plaintext")],
                "password",
            ),
            (
                away,
                vec![safe, ("enable.ssl.certificate.verification", "false")],
                "verification",
            ),
            (
                away,
                vec![safe, ("ssl.endpoint.identification.algorithm", "none")],
                "algorithm",
            ),
            (
                "localhost:9092",
                vec![safe, ("ssl.endpoint.identification.algorithm", "none")],
                "algorithm",
            ),
        ] {
            let told = told(brokers, &properties);
            assert_eq!(told.len(), 1, "{properties:?}: {told:?}");
            assert!(told[0].contains(word), "{told:?}");
        }
    }

    #[test]
    fn what_is_as_it_should_be_is_not() {
        assert!(told("kafka.example:9092", &[("security.protocol", "ssl")]).is_empty());
        for brokers in [
            "localhost:9092",
            "127.0.0.1:1,[::1]:2",
            "PLAINTEXT://127.8.0.1:9",
        ] {
            assert!(told(brokers, &[]).is_empty(), "{brokers}");
        }
    }
}
