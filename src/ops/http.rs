//! What a relay tells over HTTP: `/metrics`, `/livez`, `/readyz`, `/status`, and `/` for people. It
//! reads and changes nothing, and asks neither Postgres nor Kafka: an answer is what is known anyway.
//!
//! **Bounds.** So many connections at once, one request on each, and all of it within a few seconds:
//! whoever asks slowly, or not at all, is cut off. Request bodies are not read.
//!
//! **A port that is taken** does not end the relay: its events matter more than its figures, and a
//! sidecar that dies for a port takes a service with it. It says so, and tries again.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Reminders, metrics};
use crate::relay::Known;

/// Connections at once.
const CONNECTIONS_MAX: usize = 64;
/// From accepting a connection to the end of its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const HEADERS_MAX: usize = 64;
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// The pause before the next attempt at a port that is taken.
const BIND_PAUSE: Duration = Duration::from_secs(5);

/// Listens on `listen`, `host:port`, and answers; for as long as it is polled.
pub(crate) async fn serve(listen: String, known: Arc<Known>) {
    let listener = bind(&listen).await;
    let service = TowerToHyperService::new(routes(known));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // no file handles left, or a client that is gone already: neither is the relay's end
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        connections.spawn(async move {
            // a client that breaks off, or is too slow, harms nobody but itself
            let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

/// Takes the port, as soon as it can be had.
async fn bind(listen: &str) -> TcpListener {
    let mut reminders: Option<Reminders> = None;
    loop {
        let error = match TcpListener::bind(listen).await {
            Ok(listener) => {
                let address = listener.local_addr();
                let address = address.map_or_else(|_| listen.to_owned(), |it| it.to_string());
                tracing::info!(address, "status and metrics are on http://{address}/");
                return listener;
            }
            Err(error) => error,
        };
        let now = tokio::time::Instant::now();
        if reminders
            .as_mut()
            .is_none_or(|reminders| reminders.due(now))
        {
            tracing::warn!(
                listen,
                error = error.to_string(),
                "cannot listen on http.listen: there are no metrics and no status of this relay, which \
                 relays all the same. Give it another port, or \"off\"; it tries again meanwhile"
            );
            reminders.get_or_insert_with(|| Reminders::new(now));
        }
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

fn routes(known: Arc<Known>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(scrape))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .fallback(nothing_here)
        .layer(map_response(as_it_is))
        .with_state(known)
}

/// Every answer is to be taken as what it says it is, kept nowhere, shown in no frame, and read by no other
/// site's pages; and nothing of it is to be run, unless it says otherwise itself.
async fn as_it_is(mut response: Response) -> Response {
    let rules = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, rule) in rules {
        let headers = response.headers_mut();
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(rule));
        }
    }
    response
}

async fn page() -> Response {
    // everything it needs is in it, and it asks nobody but this relay
    let headers = [(
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )];
    (headers, Html(include_str!("page.html"))).into_response()
}

async fn scrape(State(known): State<Arc<Known>>) -> Response {
    let format = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    (format, metrics::render(&known.snapshot())).into_response()
}

async fn livez(State(known): State<Arc<Known>>) -> Response {
    verdict(&known.stuck())
}

async fn readyz(State(known): State<Arc<Known>>) -> Response {
    verdict(&known.facts().why)
}

async fn status(State(known): State<Arc<Known>>) -> Response {
    Json(known.facts()).into_response()
}

async fn nothing_here() -> Response {
    let text = "there are /, /status, /metrics, /livez and /readyz\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

/// 200 if nothing speaks against it, else 503 and what does.
fn verdict(why: &[String]) -> Response {
    match why {
        [] => "ok\n".into_response(),
        why => {
            let text = format!("{}\n", why.join("\n"));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}
