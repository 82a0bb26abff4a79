//! Traces of batches, by OTLP to a collector; the traces of the rows themselves are not touched.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message as _;
use tokio::task::JoinSet;

use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::relay::Setup;
use crate::support::{self, eventually, topic_of};

const LONG: Duration = Duration::from_secs(60);
const CANARY: &str = "canary-4711";
/// As the W3C's recommendation writes it, with members of a vendor's own.
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN_ID: &str = "00f067aa0ba902b7";
const STATE: &str = "rojo=00f067aa0ba902b7, congo=t61rcWkgMzE";

/// A collector on loopback, and what it was told.
struct Collector {
    endpoint: String,
    told: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    _serving: JoinSet<()>,
}

impl Collector {
    async fn start() -> Self {
        let told = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&told));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            endpoint,
            told,
            _serving: serving,
        }
    }

    fn spans(&self) -> Vec<Span> {
        let told = self.told.lock().unwrap().clone();
        let scopes = told.into_iter().flat_map(|it| it.resource_spans);
        let spans = scopes.flat_map(|it| it.scope_spans);
        spans.flat_map(|it| it.spans).collect()
    }

    fn of_name(&self, name: &str) -> Vec<Span> {
        let spans = self.spans().into_iter();
        spans.filter(|span| span.name == name).collect()
    }
}

async fn take(State(told): State<Arc<Mutex<Vec<ExportTraceServiceRequest>>>>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    told.lock().unwrap().push(request);
}

/// The relay's environment, for traces that do not wait long.
fn traced<'a>(setup: Setup<'a>, endpoint: &str) -> Setup<'a> {
    setup
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_SERVICE_NAME", "the-relay-of-orders")
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let value = attributes.iter().find(|it| it.key == name)?.value.clone();
    match value?.value? {
        any_value::Value::StringValue(text) => Some(text),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_batch_is_traced_and_links_to_the_traces_of_its_rows_which_arrive_as_they_were() {
    support::run(async |world| {
        let collector = Collector::start().await;
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let parent = format!("00-{TRACE_ID}-{SPAN_ID}-01");
        // as text, so that Postgres prints what was written
        world
            .execute(&format!(
                "insert into outbox (aggregate_type, aggregate_id, event_type, payload, headers) values
                   ('{aggregate_type}', '{CANARY}-key', 'A', '{{\"a\": \"{CANARY}\"}}',
                    '{{\"traceparent\": \"{parent}\", \"tracestate\": \"{STATE}\"}}'),
                   ('{aggregate_type}', 'b', 'A', '{{}}', '{{\"traceparent\": \"no trace at all\"}}'),
                   ('{aggregate_type}', 'c', 'A', '{{}}', null)"
            ))
            .await;
        let relay = traced(setup, &collector.endpoint).workers(1).run();
        outbox.wait_drained(world, LONG).await;
        let topic = topic_of(&aggregate_type);
        let send = format!("send {topic}");
        eventually(LONG, "the spans arrive", async || {
            !collector.of_name("batch").is_empty()
        })
        .await;
        relay.stop().await;

        let sends = collector.of_name(&send);
        let batches = collector.of_name("batch");
        let settles = collector.of_name("settle");
        let sum = |spans: &[Span]| -> i64 {
            let count = |span: &Span| text(&span.attributes, "messaging.batch.message_count");
            (spans.iter())
                .map(|span| count(span).unwrap().parse::<i64>().unwrap())
                .sum()
        };
        assert_eq!((sum(&sends), sum(&batches)), (3, 3), "each row once");
        for span in sends.iter().chain(&settles) {
            let parent = |batch: &Span| batch.span_id == span.parent_span_id;
            assert!(
                batches.iter().any(parent),
                "{} is part of a batch",
                span.name
            );
        }
        assert_eq!(settles.len(), batches.len());
        let links: Vec<_> = sends.iter().flat_map(|span| &span.links).collect();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(links.len(), 1, "only one row came with a trace");
        assert_eq!(hex(&links[0].trace_id), TRACE_ID);
        assert_eq!(hex(&links[0].span_id), SPAN_ID);
        for span in &sends {
            assert_eq!(span.kind(), SpanKind::Client);
            assert_ne!(hex(&span.trace_id), TRACE_ID, "a link, not a child");
            let attribute = |name: &str| text(&span.attributes, name).unwrap();
            assert_eq!(attribute("messaging.system"), "kafka");
            assert_eq!(attribute("messaging.destination.name"), topic);
            assert!(
                span.status
                    .as_ref()
                    .is_none_or(|it| it.code() != StatusCode::Error)
            );
        }
        let told = collector.told.lock().unwrap().clone();
        for request in &told {
            let resource = request.resource_spans[0].resource.as_ref().unwrap();
            let name = text(&resource.attributes, "service.name");
            assert_eq!(name.as_deref(), Some("the-relay-of-orders"));
        }
        assert!(!format!("{told:?}").contains(CANARY), "no key, no payload");

        let records = world.kafka.read_all(&topic).await;
        let of_first = records
            .iter()
            .find(|it| it.key.as_deref() == Some(format!("{CANARY}-key").as_bytes()));
        let headers = &of_first.expect("it arrived").headers;
        for (name, value) in [("traceparent", parent.as_str()), ("tracestate", STATE)] {
            let header = headers.iter().find(|(header, _)| header == name);
            let bytes = header.and_then(|(_, value)| value.as_deref());
            assert_eq!(bytes, Some(value.as_bytes()), "{name} travels as it is");
        }
    });
}

#[test]
fn a_batch_that_fails_shows_it_and_a_collector_that_is_away_is_told_once() {
    support::run(async |world| {
        let collector = Collector::start().await;
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let missing = world.topic("missing");
        world
            .execute(&format!(
                "insert into outbox (aggregate_type, aggregate_id, event_type, topic)
                 values ('{aggregate_type}', 'a', 'A', '{missing}')"
            ))
            .await;
        let relay = traced(setup, &collector.endpoint).run();
        let send = format!("send {missing}");
        let failed = |span: &Span| {
            span.status
                .as_ref()
                .is_some_and(|it| it.code() == StatusCode::Error)
                && text(&span.attributes, "error.type").is_some()
        };
        eventually(LONG, "a send that failed is there", async || {
            collector.of_name(&send).iter().any(failed)
        })
        .await;
        relay.stop().await;
        drop(collector);

        world.execute("update outbox set topic = null").await;
        // a port that nobody listens on
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", nobody.local_addr().unwrap());
        drop(nobody);
        let relay = traced(world.relay(&[&outbox]), &endpoint).run();
        relay.wait_line("traces cannot be exported", LONG).await;
        outbox.wait_drained(world, LONG).await;
        world
            .execute(&format!(
                "insert into outbox (aggregate_type, aggregate_id, event_type)
                 select '{aggregate_type}', i::text, 'A' from generate_series(1, 20) i"
            ))
            .await;
        outbox.wait_drained(world, LONG).await;
        let said = |line: &&String| line.contains("traces cannot be exported");
        relay.sigterm();
        let lines = relay.lines();
        assert_eq!(lines.iter().filter(said).count(), 1, "told once");
        relay.stop().await;
    });
}

#[test]
fn traces_that_cannot_be_had_are_told_and_the_relay_goes_on() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        world.relay(&[&outbox]).migrate().await;
        let relay = traced(world.relay(&[&outbox]), "http://127.0.0.1:4317")
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
            .run();
        let line = relay.wait_line("nothing is traced", LONG).await;
        assert!(line.contains("http/protobuf"), "{line}");
        relay.wait_line("serving the outbox", LONG).await;
        relay.stop().await;
        let relay = traced(world.relay(&[&outbox]), "http://127.0.0.1:4318")
            .env("OTEL_SDK_DISABLED", "true")
            .run();
        relay.wait_line("serving the outbox", LONG).await;
        assert!(!relay.lines().join("\n").contains("trace"), "off is off");
        relay.stop().await;
    });
}
