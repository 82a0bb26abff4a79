//! The whole shop on one machine: servers if none are named, the services and their relays as processes, customers,
//! kills, and the verdict.

use std::path::PathBuf;
use std::time::Duration;

use outbox_relay::demo::servers::{StandInKafka, TemporaryPostgres};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::books::Books;
use crate::checker::faults;
use crate::customers::{self, Doors, Look, Placed};
use crate::mistakes::Mistake;
use crate::place::{KINDS, PARTITIONS, Place, Relay};
use crate::processes::{Manner, Processes};
use crate::{Failure, say};

/// How often the checker looks whether the books agree.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the books must go on agreeing: a copy that comes late may change nothing.
const CALM: Duration = Duration::from_secs(1);

/// How long the same faults must be there, once the budget is used up, to be more than late; and how long that is
/// waited for.
const STUCK: Duration = Duration::from_secs(2);
const LATE_MAX: Duration = Duration::from_secs(45);

/// Faults that are printed; more of them say the same.
const FAULTS_SHOWN: usize = 12;

/// Options of the shop.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How long customers order
    #[arg(long = "for", value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// Orders a second
    #[arg(long, value_name = "N", default_value = "20")]
    rate: u32,

    /// Kill services and relays, all the time
    #[arg(long)]
    chaos: bool,

    /// How long after the last order money, stock and read model may take to agree
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    budget: Duration,

    /// A superuser of a PostgreSQL to make databases on, and drop them; without it a temporary server is started
    #[arg(long, env = "SHOP_ADMIN_URL", hide_env_values = true)]
    admin_url: Option<String>,

    /// Brokers to make topics on, and delete them; without them Kafka is a stand-in inside this process
    #[arg(long)]
    brokers: Option<String>,

    /// What the names of databases, roles, topics and groups begin with; without it, something that nobody else has
    #[arg(long)]
    prefix: Option<String>,

    /// The relay's program; without it, the relay that is built into this one
    #[arg(long)]
    relay: Option<PathBuf>,

    /// Print the verdict as one JSON object and nothing else on standard output
    #[arg(long)]
    json: bool,

    /// Do it wrong, in one of the ways that the checker must notice
    #[arg(long, hide = true)]
    mistake: Option<Mistake>,
}

/// What was found. `--json` prints exactly these fields.
#[derive(Debug, Serialize)]
struct Verdict {
    orders: usize,
    confirmed: usize,
    out_of_stock: usize,
    payment_refused: usize,
    /// Processes that were killed.
    kills: u32,
    /// Copies of events that arrived and were passed over.
    repeats: i64,
    /// Customers who looked at once and saw their order; who were told that it is not there yet; who got no answer.
    seen_at_once: usize,
    told_late: usize,
    unanswered: usize,
    /// From writing an event to its place in the read model.
    lag_p50_ms: Option<f64>,
    lag_p99_ms: Option<f64>,
    /// From the last order until everything agreed; null if it did not within the budget.
    agreed_after_ms: Option<u128>,
    faults: Vec<String>,
}

/// What has to be taken down again.
#[derive(Default)]
struct Stage {
    postgres: Option<TemporaryPostgres>,
    kafka: Option<StandInKafka>,
    place: Option<Place>,
    processes: Option<Processes>,
}

/// Runs the shop. Returns whether everything agreed.
pub(crate) async fn run(args: Args) -> Result<bool, Failure> {
    let mut stage = Stage::default();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let played = tokio::select! {
        played = Box::pin(play(&args, &mut stage)) => played,
        _ = interrupt.recv() => Err("interrupted".into()),
        _ = terminate.recv() => Err("interrupted".into()),
    };
    let cleared = stage
        .clear(args.admin_url.is_some(), args.brokers.is_some())
        .await;
    let agreed = played?;
    cleared?;
    Ok(agreed)
}

async fn play(args: &Args, stage: &mut Stage) -> Result<bool, Failure> {
    let tell = |line: &str| say(args.json, line);
    let directory = tempfile::Builder::new().prefix("outbox-shop-").tempdir()?;
    let (place, manner) = set_up(args, stage).await?;
    let relay = Relay::new(
        args.relay.clone(),
        directory.path().to_owned(),
        &place.prefix,
    )?;
    tell(
        "· databases: orders, inventory, payments, projector; each with a role of its own, and one for its relay",
    );
    place.make_databases(&relay).await?;
    let processes = Processes::start(&place, relay, &manner, directory.path())?;
    let processes = stage.processes.insert(processes);
    tell(&format!(
        "· {} processes: four services and three relays; `PUT http://{}/orders/ID`, `GET http://{}/orders/ID`",
        processes.count(),
        processes.doors.orders,
        processes.doors.projector
    ));
    tell(&format!(
        "· customers: {} orders/s for {:?}{}",
        args.rate,
        args.duration,
        if args.chaos {
            ", while processes are killed"
        } else {
            ""
        }
    ));
    let (placed, kills, stopped) = trade(args, processes).await?;
    tell(&format!(
        "· {} orders, {kills} kills; all run again, and have {:?} to agree",
        placed.len(),
        args.budget
    ));
    let agreed = tokio::select! {
        agreed = agree(&place, &placed, args.budget, stopped) => agreed?,
        why = processes.ended() => return Err(format!("{why}{}", processes.log_tail()).into()),
    };
    let verdict = verdict(&placed, kills, agreed);
    let good = verdict.faults.is_empty();
    if !good {
        tell(&processes.log_tail());
    }
    print(args.json, &verdict)?;
    Ok(good)
}

/// The servers: the user's, or temporary ones.
async fn set_up(args: &Args, stage: &mut Stage) -> Result<(Place, Manner), Failure> {
    let tell = |line: &str| say(args.json, line);
    let mut random = Uuid::new_v4().simple().to_string();
    random.truncate(8);
    let theirs = args.admin_url.is_some() || args.brokers.is_some();
    let prefix = match &args.prefix {
        Some(prefix) => prefix.clone(),
        None if theirs => format!("shop_{random}_"),
        None => String::new(),
    };
    let admin_url = match &args.admin_url {
        Some(url) => url.clone(),
        None => {
            let server = TemporaryPostgres::start(args.json).await?;
            stage.postgres.insert(server).url().to_owned()
        }
    };
    let mut fetch_wait_ms = 100;
    let brokers = match &args.brokers {
        Some(brokers) => brokers.clone(),
        None => {
            let topics = KINDS.map(|kind| format!("{prefix}{kind}-events"));
            let kafka = StandInKafka::start(&topics, PARTITIONS).await?;
            fetch_wait_ms = StandInKafka::FETCH_WAIT_MS;
            tell(
                "· Kafka: librdkafka's mock cluster, a stand-in inside this process; --brokers names a real one",
            );
            stage.kafka.insert(kafka).brokers().to_owned()
        }
    };
    let place = Place {
        admin_url,
        brokers,
        prefix,
        password: random,
    };
    // from here on there may be something of ours on their servers
    stage.place = Some(place.clone());
    if args.brokers.is_some() {
        place.make_topics().await?;
    }
    let manner = Manner {
        fetch_wait_ms,
        mistake: args.mistake,
    };
    Ok((place, manner))
}

/// Customers order, for as long as they are to, and processes are killed meanwhile: the orders, the kills, and when
/// the time was over.
async fn trade(
    args: &Args,
    processes: &mut Processes,
) -> Result<(Vec<Placed>, u32, Instant), Failure> {
    let enough = CancellationToken::new();
    let doors = processes.doors.clone();
    let kills = async {
        if args.chaos {
            return processes.chaos(&enough, |line| say(args.json, line)).await;
        }
        match enough.run_until_cancelled(processes.ended()).await {
            Some(why) => Err(why),
            None => Ok(0),
        }
    };
    let traded = tokio::try_join!(
        customers::order(&doors, args.rate, &enough),
        kills,
        over(args.duration, &enough)
    );
    traded.map_err(|why| format!("{why}{}", processes.log_tail()).into())
}

/// Says that it is enough when the time is over. Returns when that was.
async fn over(duration: Duration, enough: &CancellationToken) -> Result<Instant, Failure> {
    sleep(duration).await;
    enough.cancel();
    Ok(Instant::now())
}

/// Reads the books until they agree, and a while longer, or until the budget is used up and nothing moves any more:
/// what is only late is told as that. The last ones, what is wrong with them, and after how long nothing was.
async fn agree(
    place: &Place,
    placed: &[Placed],
    budget: Duration,
    since: Instant,
) -> Result<(Books, Vec<String>, Option<Duration>), Failure> {
    let mut agreed: Option<Duration> = None;
    let mut stuck = (Vec::new(), Duration::ZERO);
    loop {
        let books = Books::read(place).await?;
        let mut wrong = faults(placed, &books);
        wrong.sort_unstable();
        let now = since.elapsed();
        if wrong != stuck.0 {
            stuck = (wrong.clone(), now);
        }
        let ended = now > budget && now > stuck.1 + STUCK || now > budget + LATE_MAX;
        match (wrong.is_empty(), agreed) {
            (true, None) if now > budget => {
                wrong.push(format!(
                    "all of it agrees, but only {now:.1?} after the last order"
                ));
                return Ok((books, wrong, None));
            }
            (true, None) => agreed = Some(now),
            (true, Some(at)) if now > at + CALM => return Ok((books, wrong, agreed)),
            (true, Some(_)) => {}
            // they agreed, and something has changed them
            (false, Some(_)) => return Ok((books, wrong, None)),
            (false, None) if ended => return Ok((books, wrong, None)),
            (false, None) => {}
        }
        sleep(LOOK_INTERVAL).await;
    }
}

fn verdict(
    placed: &[Placed],
    kills: u32,
    (books, faults, agreed): (Books, Vec<String>, Option<Duration>),
) -> Verdict {
    let ended = |status: &str, reason: Option<&str>| {
        let ended = |order: &&crate::books::Order| {
            order.status == status && order.reason.as_deref() == reason
        };
        books.orders.values().filter(ended).count()
    };
    let looks = |look: Look| {
        placed
            .iter()
            .filter(|one| one.accepted && one.look == look)
            .count()
    };
    Verdict {
        orders: books.orders.len(),
        confirmed: ended("confirmed", None),
        out_of_stock: ended("cancelled", Some("out of stock")),
        payment_refused: ended("cancelled", Some("payment refused")),
        kills,
        repeats: books.repeats,
        seen_at_once: looks(Look::Seen),
        told_late: looks(Look::Late),
        unanswered: looks(Look::Nobody) + placed.iter().filter(|one| !one.accepted).count(),
        lag_p50_ms: books.lag_p50_ms,
        lag_p99_ms: books.lag_p99_ms,
        agreed_after_ms: agreed.map(|after| after.as_millis()),
        faults,
    }
}

fn print(json: bool, verdict: &Verdict) -> Result<(), Failure> {
    if json {
        say(false, &serde_json::to_string(verdict)?);
        return Ok(());
    }
    let Verdict { faults, .. } = verdict;
    let heading = match verdict.agreed_after_ms {
        Some(after) => format!(
            "agreed, {after} ms after the last order: money, stock and read model, each effect once"
        ),
        None => "BROKEN".to_owned(),
    };
    say(false, &format!("\nverdict {heading}\n"));
    for (name, count, meaning) in [
        (
            "orders",
            verdict.orders,
            "of customers who were told that it is placed",
        ),
        ("confirmed", verdict.confirmed, "stock sold, money taken"),
        (
            "out of stock",
            verdict.out_of_stock,
            "cancelled; no money was touched",
        ),
        (
            "payment refused",
            verdict.payment_refused,
            "stock released, then cancelled",
        ),
        (
            "seen at once",
            verdict.seen_at_once,
            "by whoever had just ordered, with the token",
        ),
        (
            "told late",
            verdict.told_late,
            "the read model had not passed the token within 2 s",
        ),
        ("unanswered", verdict.unanswered, "for 30 s"),
    ] {
        say(false, &format!("  {name:16} {count:>8}   {meaning}"));
    }
    say(
        false,
        &format!(
            "  {:16} {:>8}   copies of events, passed over",
            "repeats", verdict.repeats
        ),
    );
    say(
        false,
        &format!(
            "  {:16} {:>8}   processes, by SIGKILL",
            "kills", verdict.kills
        ),
    );
    if let (Some(p50), Some(p99)) = (verdict.lag_p50_ms, verdict.lag_p99_ms) {
        say(
            false,
            &format!(
                "  {:16} {p50:>8.0}   ms at p50; {p99:.0} ms at p99: from an event's transaction to the read model",
                "projection lag"
            ),
        );
    }
    for fault in faults.iter().take(FAULTS_SHOWN) {
        say(false, &format!("  ✗ {fault}"));
    }
    if faults.len() > FAULTS_SHOWN {
        say(
            false,
            &format!("  … and {} more", faults.len() - FAULTS_SHOWN),
        );
    }
    Ok(())
}

impl Stage {
    /// Takes down what was set up, in the order in which one uses the other.
    async fn clear(self, their_postgres: bool, their_kafka: bool) -> Result<(), Failure> {
        if let Some(mut processes) = self.processes {
            processes.kill().await;
        }
        let mut cleared = Ok(());
        if let Some(place) = &self.place {
            if their_kafka {
                cleared = cleared.and(place.delete_topics().await);
            }
            if their_postgres {
                cleared = cleared.and(place.drop_databases().await);
            }
        }
        if let Some(kafka) = self.kafka {
            kafka.stop().await;
        }
        if let Some(postgres) = self.postgres {
            postgres.stop().await;
        }
        cleared
    }
}

/// Options of `visit`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Visit {
    #[command(flatten)]
    place: Place,

    #[command(flatten)]
    doors: Doors,

    /// How long customers order
    #[arg(long = "for", value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// Orders a second
    #[arg(long, value_name = "N", default_value = "20")]
    rate: u32,

    /// How long after the last order money, stock and read model may take to agree
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    budget: Duration,
}

/// Customers of a shop that runs elsewhere, in containers for instance, and the verdict on it.
pub(crate) async fn visit(args: Visit) -> Result<bool, Failure> {
    let enough = CancellationToken::new();
    let (placed, stopped) = tokio::try_join!(
        customers::order(&args.doors, args.rate, &enough),
        over(args.duration, &enough)
    )?;
    let agreed = agree(&args.place, &placed, args.budget, stopped).await?;
    let verdict = verdict(&placed, 0, agreed);
    print(false, &verdict)?;
    Ok(verdict.faults.is_empty())
}
