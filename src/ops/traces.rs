//! Traces of batches: what a collector is told by OTLP, in a build with the feature `otlp`.
//!
//! One span `batch` for each batch from its claim to its end, within it one `send <topic>` for each topic
//! it is published to, and `settle`. A `send` is a client's span that links to the traces the rows came
//! with; it is nobody's parent, and a row's own `traceparent` and `tracestate` travel to Kafka as they are
//! (OpenTelemetry's semantic conventions for messaging: a creation context is not modified). Not a span an
//! event: at full speed the traces would cost more than the relay.
//!
//! What it costs where nobody asked for it: a look at a flag, a few times a batch.

use std::future::Future;

use crate::config::{Collector, Environment};
use crate::outcome::Outcome;
use crate::record::Record;

/// Most links of one span, as many as OpenTelemetry keeps by default (`OTEL_SPAN_LINK_COUNT_LIMIT`).
#[cfg(feature = "otlp")]
const LINKS_MAX: usize = 128;

/// The traces of this process, until it is dropped.
#[derive(Debug)]
#[must_use = "traces end when it is dropped"]
pub struct Traces {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Traces {
    /// Begins to export, where the environment names a collector by the standard variables
    /// (`OTEL_EXPORTER_OTLP_ENDPOINT` and the others that OpenTelemetry has). Once in a process. Without a
    /// collector, or where the set-up is wrong, nothing is traced; the log has a line then.
    pub fn start(environment: &Environment) -> Self {
        match environment.collector() {
            Collector::None => {}
            Collector::Wrong(why) => tracing::warn!("nothing is traced: {why}"),
            #[cfg(not(feature = "otlp"))]
            Collector::Named => tracing::warn!(
                "nothing is traced: OTEL_EXPORTER_OTLP_ENDPOINT is set, and this build is without the feature \
                 `otlp`"
            ),
            #[cfg(feature = "otlp")]
            Collector::Named => match export::start() {
                Ok(provider) => {
                    return Self {
                        provider: Some(provider),
                    };
                }
                Err(why) => tracing::warn!("nothing is traced: {why}"),
            },
        }
        Self {
            #[cfg(feature = "otlp")]
            provider: None,
        }
    }

    /// Sends what is left, for two seconds at the most. Blocks.
    pub fn end(self) {
        #[cfg(feature = "otlp")]
        if let Some(provider) = &self.provider {
            // (what is wrong with the collector was said when it was found)
            drop(provider.shutdown_with_timeout(std::time::Duration::from_secs(2)));
        }
    }
}

/// The span of a batch; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Batch {
    #[cfg(feature = "otlp")]
    span: opentelemetry::Context,
}

/// The spans of what is being published.
#[derive(Debug)]
pub(crate) struct Sends {
    #[cfg(feature = "otlp")]
    spans: Vec<export::Send>,
}

#[cfg(not(feature = "otlp"))]
impl Batch {
    pub(crate) fn begin(_outbox: &str, _rows: usize) -> Self {
        Self {}
    }

    pub(crate) fn sends(&self, _: &[Option<Record<'_>>], _: &[Option<Outcome>]) -> Sends {
        Sends {}
    }

    pub(crate) async fn step<T, E>(
        &self,
        _name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        work.await
    }
}

#[cfg(not(feature = "otlp"))]
impl Sends {
    pub(crate) fn end(self, _: &[Outcome]) {}
}

#[cfg(feature = "otlp")]
mod export {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
    use opentelemetry::trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _,
    };
    use opentelemetry::{Context, Key, KeyValue, global};
    use opentelemetry_otlp::SpanExporter as Otlp;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

    use super::{Batch, Future, LINKS_MAX, Outcome, Record, Sends};
    use crate::record::Header;

    const NAME: &str = "outbox-relay";

    fn tracer() -> global::BoxedTracer {
        global::tracer(NAME)
    }

    /// Sets the process's tracer.
    pub(super) fn start() -> Result<SdkTracerProvider, String> {
        // somebody else's choice holds; there is one provider in a process
        drop(rustls::crypto::ring::default_provider().install_default());
        let exporter = Otlp::builder()
            .with_http()
            .build()
            .map_err(|error| error.to_string())?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let mut resource = Resource::builder().with_attribute(version);
        // what the environment says is stronger
        let found = Resource::builder().build().get(&Key::new("service.name"));
        if found.is_none_or(|name| name.as_str().starts_with("unknown_service")) {
            resource = resource.with_service_name(NAME);
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(Told {
                exporter,
                failing: AtomicBool::new(false),
            })
            .build();
        global::set_tracer_provider(provider.clone());
        tracing::info!("traces of batches go to the collector that OTEL_EXPORTER_OTLP_* names");
        Ok(provider)
    }

    /// An exporter whose failures are told: when they begin, and when they end.
    #[derive(Debug)]
    struct Told {
        exporter: Otlp,
        failing: AtomicBool,
    }

    impl SpanExporter for Told {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let exported = self.exporter.export(batch).await;
            let fails = exported.is_err();
            let failed = self.failing.swap(fails, Ordering::Relaxed);
            match &exported {
                Err(error) if !failed => tracing::warn!(
                    error = %error,
                    "traces cannot be exported and are dropped; look at OTEL_EXPORTER_OTLP_ENDPOINT and the \
                     collector there"
                ),
                Ok(()) if failed => tracing::info!("traces are exported again"),
                _ => {}
            }
            exported
        }

        fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
            self.exporter.shutdown_with_timeout(timeout)
        }

        fn force_flush(&self) -> OTelSdkResult {
            self.exporter.force_flush()
        }

        fn set_resource(&mut self, resource: &Resource) {
            self.exporter.set_resource(resource);
        }
    }

    /// A topic's records on their way.
    #[derive(Debug)]
    pub(super) struct Send {
        span: global::BoxedSpan,
        /// Which of the batch's rows.
        rows: Vec<usize>,
    }

    impl Batch {
        /// Begins the span of a batch of `rows` rows of `outbox`.
        pub(crate) fn begin(outbox: &str, rows: usize) -> Self {
            let span = SpanBuilder::from_name("batch")
                .with_kind(SpanKind::Internal)
                .with_attributes([
                    KeyValue::new("outbox_relay.outbox", outbox.to_owned()),
                    KeyValue::new("messaging.batch.message_count", count(rows)),
                ])
                .start(&tracer());
            Self {
                span: Context::new().with_span(span),
            }
        }

        /// Begins a span for each topic of the records that are not `decided` yet.
        pub(crate) fn sends(
            &self,
            records: &[Option<Record<'_>>],
            decided: &[Option<Outcome>],
        ) -> Sends {
            if !self.span.span().is_recording() {
                return Sends { spans: Vec::new() };
            }
            let mut topics: HashMap<&str, Vec<usize>> = HashMap::new();
            for (row, record) in records.iter().enumerate() {
                if let (Some(record), None) = (record, &decided[row]) {
                    topics.entry(&record.topic).or_default().push(row);
                }
            }
            let send = |(topic, rows): (&str, Vec<usize>)| {
                let links = rows
                    .iter()
                    .filter_map(|row| origin(records[*row].as_ref()?))
                    .take(LINKS_MAX)
                    .map(Link::with_context)
                    .collect();
                let span = SpanBuilder::from_name(format!("send {topic}"))
                    .with_kind(SpanKind::Client)
                    .with_attributes([
                        KeyValue::new("messaging.system", "kafka"),
                        KeyValue::new("messaging.operation.type", "send"),
                        KeyValue::new("messaging.operation.name", "send"),
                        KeyValue::new("messaging.destination.name", topic.to_owned()),
                        KeyValue::new("messaging.batch.message_count", count(rows.len())),
                    ])
                    .with_links(links)
                    .start_with_context(&tracer(), &self.span);
                Send { span, rows }
            };
            Sends {
                spans: topics.into_iter().map(send).collect(),
            }
        }

        /// Does `work` within a span called `name`.
        pub(crate) async fn step<T, E>(
            &self,
            name: &'static str,
            work: impl Future<Output = Result<T, E>>,
        ) -> Result<T, E> {
            let mut span = SpanBuilder::from_name(name).start_with_context(&tracer(), &self.span);
            let done = work.await;
            if done.is_err() {
                // (what it was is in the log)
                span.set_status(Status::error(""));
            }
            done
        }
    }

    impl Sends {
        /// Ends the spans by what became of the batch's rows.
        pub(crate) fn end(self, outcomes: &[Outcome]) {
            for Send { mut span, rows } in self.spans {
                let not_delivered =
                    |row: &&usize| !matches!(outcomes[**row], Outcome::Delivered { .. });
                let missing: Vec<_> = rows.iter().filter(not_delivered).collect();
                let Some(first) = missing.first() else {
                    continue;
                };
                let class = match &outcomes[**first] {
                    Outcome::Rejected(reason) => reason.class,
                    Outcome::Suspect => "refused_together",
                    Outcome::Paused => "topic_paused",
                    _ => "unfinished",
                };
                span.set_attribute(KeyValue::new("error.type", class));
                span.set_attribute(KeyValue::new(
                    "outbox_relay.undelivered_count",
                    count(missing.len()),
                ));
                span.set_status(Status::error(""));
            }
        }
    }

    fn count(rows: usize) -> i64 {
        i64::try_from(rows).unwrap_or(i64::MAX)
    }

    /// The trace that a record came with.
    fn origin(record: &Record<'_>) -> Option<SpanContext> {
        struct Headers<'a>(Vec<Header<'a>>);
        impl Extractor for Headers<'_> {
            fn get(&self, name: &str) -> Option<&str> {
                let header = self.0.iter().find(|header| header.name == name)?;
                std::str::from_utf8(header.value.as_deref()?).ok()
            }

            fn keys(&self) -> Vec<&str> {
                self.0.iter().map(|header| &*header.name).collect()
            }
        }
        let headers = Headers(record.headers.iter().collect());
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        let origin = context.span().span_context().clone();
        origin.is_valid().then_some(origin)
    }
}
