//! Asking a relay how it is, by its `/status`: for commands that run beside it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::facts::Facts;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What the relay that listens on `listen`, `host:port`, knows.
///
/// # Errors
/// Nobody answers there, or not as a relay does: one sentence.
pub async fn status(listen: &str) -> Result<Facts, String> {
    let body = get(listen, "/status").await?;
    serde_json::from_slice(&body)
        .map_err(|error| format!("what answers on {listen} is no relay: {error}"))
}

/// The body of `path`, if the answer is 200.
async fn get(listen: &str, path: &str) -> Result<Vec<u8>, String> {
    let asking = async {
        let mut stream = TcpStream::connect(reachable(listen)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("no relay answers on {listen}: {error}")),
        Err(_) => {
            let limit = humantime::format_duration(ANSWER_TIMEOUT);
            return Err(format!(
                "what listens on {listen} does not answer in {limit}"
            ));
        }
    };
    body(&answer).ok_or_else(|| format!("what answers on {listen} is no relay, or an older one"))
}

/// Where a relay that listens on `listen` can be reached from its own machine.
fn reachable(listen: &str) -> String {
    match listen.parse::<SocketAddr>() {
        Ok(mut address) if address.ip().is_unspecified() => {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
            address.to_string()
        }
        _ => listen.to_owned(),
    }
}

/// The body of an HTTP answer that is 200 and comes in one piece, as a relay's does.
fn body(answer: &[u8]) -> Option<Vec<u8>> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.lines().next()?.split(' ').nth(1)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding:");
    (status == "200" && !chunked).then(|| answer[end + 4..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_has_a_body() {
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}"),
            Some(b"{}".to_vec())
        );
        for bad in [
            "HTTP/1.1 404 Not Found\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "",
        ] {
            assert_eq!(body(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn every_address_is_asked_on_this_machine() {
        assert_eq!(reachable("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(reachable("[::]:9464"), "[::1]:9464");
        assert_eq!(reachable("relay:9464"), "relay:9464");
        assert_eq!(reachable("10.0.0.7:1"), "10.0.0.7:1");
    }
}
