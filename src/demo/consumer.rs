//! The consumer: reads every partition from its start, notes each arrival and prints it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::Instant;
use uuid::Uuid;

use super::books::Books;
use super::kafka::{Kafka, PARTITIONS};
use super::screen::{Screen, Style, time_of_day};

/// How often the thread looks whether it shall stop.
const POLL: Duration = Duration::from_millis(20);

/// How long reading up to the end may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a broker may take to say where a partition ends.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(5);

const READ_ON: u8 = 0;
const READ_TO_THE_END: u8 = 1;
const LEAVE: u8 = 2;

/// A consumer on a thread of its own: librdkafka's `poll` blocks.
pub(super) struct Consumer {
    orders: Arc<AtomicU8>,
    thread: Option<JoinHandle<KafkaResult<()>>>,
}

struct Reader {
    consumer: BaseConsumer,
    topic: String,
    /// The offset after the last record read, by partition.
    next: Vec<i64>,
    books: Arc<Books>,
    screen: Screen,
    /// Print one arrival in so many.
    print_every: u64,
    arrivals: u64,
}

impl Consumer {
    /// Starts to read. Prints one arrival of `print_every`.
    pub(super) fn start(
        kafka: &Kafka,
        books: &Arc<Books>,
        screen: Screen,
        print_every: u64,
    ) -> KafkaResult<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &kafka.brokers)
            // librdkafka wants a name even where nothing is committed.
            .set("group.id", "outbox-relay-demo")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", kafka.fetch_wait_ms.to_string())
            .set("fetch.error.backoff.ms", "50")
            .create()?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(&kafka.topic, partition, Offset::Offset(0))?;
        }
        consumer.assign(&partitions)?;
        let mut reader = Reader {
            consumer,
            topic: kafka.topic.clone(),
            next: vec![0; partitions.count()],
            books: Arc::clone(books),
            screen,
            print_every,
            arrivals: 0,
        };
        let orders = Arc::new(AtomicU8::new(READ_ON));
        let heard = Arc::clone(&orders);
        let thread = std::thread::spawn(move || reader.read(&heard));
        Ok(Self {
            orders,
            thread: Some(thread),
        })
    }

    /// Reads whatever the partitions hold at this moment, then ends.
    pub(super) async fn finish(mut self) -> KafkaResult<()> {
        self.orders.store(READ_TO_THE_END, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        match tokio::task::spawn_blocking(|| thread.join()).await {
            Ok(Ok(read)) => read,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_stopped) => Err(KafkaError::Canceled),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // After `finish` the thread has ended and nobody hears this.
        self.orders.store(LEAVE, Ordering::Release);
    }
}

impl Reader {
    fn read(&mut self, orders: &AtomicU8) -> KafkaResult<()> {
        while orders.load(Ordering::Acquire) == READ_ON {
            self.poll();
        }
        let deadline = Instant::now() + FINISH_TIMEOUT;
        for partition in 0..PARTITIONS {
            let (_low, end) =
                self.consumer
                    .fetch_watermarks(&self.topic, partition, WATERMARK_TIMEOUT)?;
            while self.at(partition) < end {
                if orders.load(Ordering::Acquire) == LEAVE || Instant::now() > deadline {
                    return Err(KafkaError::Canceled);
                }
                self.poll();
            }
        }
        Ok(())
    }

    fn at(&self, partition: i32) -> i64 {
        let index = usize::try_from(partition).unwrap_or(usize::MAX);
        self.next.get(index).copied().unwrap_or_default()
    }

    /// Waits a moment for a record. An error is librdkafka's to retry; what never arrives shows
    /// in the verdict.
    fn poll(&mut self) {
        let consumer = &self.consumer;
        if let Some(Ok(message)) = consumer.poll(POLL) {
            let noted = self.books.arrived(event_id(&message));
            self.arrivals += 1;
            let index = usize::try_from(message.partition()).unwrap_or(usize::MAX);
            if let Some(next) = self.next.get_mut(index) {
                *next = message.offset() + 1;
            }
            if (self.arrivals - 1).is_multiple_of(self.print_every) {
                let screen = self.screen;
                screen.event(|| line(screen, &message, noted.lag, noted.duplicate));
            }
        }
    }
}

fn line(screen: Screen, message: &BorrowedMessage<'_>, lag: Duration, duplicate: bool) -> String {
    let key: String = String::from_utf8_lossy(message.key().unwrap_or_default())
        .chars()
        .take(8)
        .collect();
    let event_type = header(message, "event_type").unwrap_or_default();
    let event_type = String::from_utf8_lossy(event_type);
    let lag = format!("{:7.1} ms", lag.as_secs_f64() * 1000.0);
    let mark = if duplicate {
        screen.style(Style::Yellow, "  duplicate")
    } else {
        String::new()
    };
    format!(
        "{}  {}/{}  {key:8}  {event_type:14} {}{mark}",
        screen.style(Style::Dim, &time_of_day()),
        message.topic(),
        message.partition(),
        screen.style(Style::Green, &lag),
    )
}

fn event_id(message: &BorrowedMessage<'_>) -> Option<Uuid> {
    Uuid::try_parse_ascii(header(message, "event_id")?).ok()
}

fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m [u8]> {
    let headers = message.headers()?;
    headers
        .iter()
        .find(|header| header.key == name)
        .and_then(|header| header.value)
}
