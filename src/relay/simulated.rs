//! The loop, run thousands of times against an outbox and a sink in memory that fail, hang and lie,
//! with relays that stop and die at any await. One seed makes all the choices, and the clock is not
//! the wall's, so a run that went wrong goes wrong again.
//!
//! What is promised is checked after each run, and at each commit that the outbox has what it marks
//! in the log. Real servers do this again, slower, in tests/faults/.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::lane::{End, Lane};
use super::{Drain, Status};
use crate::event::Event;
use crate::ops::controls::Controls;
use crate::outcome::{Outcome, Reason};
use crate::route::{Router, Template};
use crate::settle::{Policies, Policy, Verdict};
use crate::sink::scripted::{Reply, ScriptedSink};
use crate::source::scripted::{Entry, Fate, Fault, Place, ScriptedOutbox, ScriptedSource, Step};

/// How long a worker may take, after its drain's deadline, to settle what it has.
const SETTLING: Duration = Duration::from_millis(200);
/// When a run that has only to finish must have finished.
const FOR_EVER: Duration = Duration::from_secs(60);

/// Numbers that look random and are the same for the same seed (splitmix64), for everybody in a run.
#[derive(Debug, Clone)]
struct Dice(Arc<Mutex<u64>>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// A number below `limit`.
    fn below(&self, limit: u64) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn between(&self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time below `limit` milliseconds, none at all half of the time.
    fn ms(&self, limit: u64) -> Duration {
        match self.percent(50) {
            true => Duration::ZERO,
            false => Duration::from_millis(self.below(limit)),
        }
    }
}

/// How much goes wrong, each in a hundred.
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    /// Events whose first attempts fail in some way.
    replies: u64,
    /// Claims and commits that fail.
    steps: u64,
    /// Workers that die.
    deaths: u64,
    /// Events that nobody can publish.
    hopeless: u64,
    /// Whether the sink and its topics go away and come back, and deadlines are short.
    outages: bool,
}

impl Trouble {
    fn of(dice: &Dice) -> Self {
        let some = |most| [0, most / 4, most][usize::try_from(dice.below(3)).unwrap_or(0)];
        Self {
            replies: some(40),
            steps: some(30),
            deaths: some(50),
            hopeless: some(10),
            outages: dice.percent(50),
        }
    }
}

/// One run: what everybody in it shares.
#[derive(Debug, Clone)]
struct Run {
    dice: Dice,
    trouble: Trouble,
    policies: Policies,
    outbox: ScriptedOutbox,
    sink: ScriptedSink,
    found: Arc<Mutex<Found>>,
}

/// What was noticed while it ran.
#[derive(Debug, Default)]
struct Found {
    faults: Vec<String>,
    /// How long the log was when a row was last about to be parked.
    parked_at: HashMap<i64, usize>,
    /// Events that must end parked.
    hopeless: HashSet<Uuid>,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    faults: Vec<String>,
    history: Vec<Entry>,
    written: Vec<String>,
}

const TOPICS: [&str; 2] = ["one", "two"];
const EVENT_TYPES: [&str; 2] = ["Changed", "Noted"];

impl Run {
    fn new(seed: u64, trouble: impl FnOnce(&Dice) -> Trouble) -> Self {
        let dice = Dice::new(seed);
        let trouble = trouble(&dice);
        let policy = || match dice.percent(60) {
            true => Policy::Block,
            false => Policy::DeadLetter,
        };
        let policies = Policies {
            usual: policy(),
            by_event_type: BTreeMap::from([(EVENT_TYPES[1].to_owned(), policy())]),
        };
        let outbox = ScriptedOutbox::new(1 << dice.below(3));
        let sink = ScriptedSink::new();
        let run = Self {
            dice,
            trouble,
            policies,
            outbox,
            sink,
            found: Arc::default(),
        };
        let script = run.clone();
        run.outbox
            .set_script(Some(Box::new(move |step| script.fate(&step))));
        let pace = run.dice.clone();
        run.sink.set_pace(move || pace.ms(12));
        run
    }

    fn found<T>(&self, act: impl FnOnce(&mut Found) -> T) -> T {
        act(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fault(&self, text: String) {
        self.found(|found| found.faults.push(text));
    }

    /// Looks at what is about to be settled, and says how that will go.
    fn fate(&self, step: &Step<'_>) -> Fate {
        if let Step::Settle(judged) = step {
            let written = self.sink.written_ids();
            for (event, verdict) in judged.events.iter().zip(judged.verdicts) {
                match verdict {
                    Verdict::Done if !written.contains(&event.id.to_string()) => {
                        self.fault(format!("row {} is done and not in the log", event.seq));
                    }
                    Verdict::Park(..) => {
                        let at = written.len();
                        self.found(|found| found.parked_at.insert(event.seq, at));
                    }
                    _ => {}
                }
            }
        }
        let fault = self
            .dice
            .percent(self.trouble.steps)
            .then(|| match self.dice.percent(50) {
                true => Fault::Undone,
                false => Fault::Unheard,
            });
        let pause = self.dice.ms(30);
        Fate { pause, fault }
    }

    /// All of it: writers, relays that come and go, trouble; then peace, and what is left is
    /// published.
    async fn run(&self) -> Ended {
        let mut writers = JoinSet::new();
        for n in 0..self.dice.between(1, 5) {
            let writer = self.clone();
            writers.spawn(async move { writer.write(n).await });
        }
        let mut relays = JoinSet::new();
        for _ in 0..self.dice.between(1, 3) {
            let relay = self.clone();
            relays.spawn(async move { relay.relay().await });
        }
        let mut outages = JoinSet::new();
        let trouble = self.clone();
        outages.spawn(async move { trouble.outages().await });
        join(relays).await;
        join(writers).await;
        outages.shutdown().await;

        if self.outbox.locked() > 0 {
            self.fault("nobody is there, and a lane is held".to_owned());
        }
        let calm = Self {
            trouble: Trouble::default(),
            ..self.clone()
        };
        let calm = move |step: Step<'_>| calm.fate(&step);
        self.outbox.set_script(Some(Box::new(calm)));
        self.sink.heal();
        let drain = Drain::new();
        let lane = self.lane(&drain);
        let mut last = JoinSet::new();
        for _ in 0..2 {
            last.spawn(self.worker(&lane, true));
        }
        match timeout(FOR_EVER, join(last)).await {
            Ok(ends) if ends.iter().all(|end| *end == End::Empty) => {}
            Ok(ends) => self.fault(format!("with all well the workers ended {ends:?}")),
            Err(_) => self.fault("with all well the outbox does not become empty".to_owned()),
        }
        self.check()
    }

    /// The transactions of one aggregate, one after another.
    async fn write(&self, aggregate: u64) {
        let key = format!("aggregate-{aggregate}");
        for _ in 0..self.dice.below(6) {
            sleep(self.dice.ms(120)).await;
            let mut seqs = Vec::new();
            for _ in 0..self.dice.between(1, 4) {
                seqs.push(self.outbox.insert(self.event(&key)));
                sleep(self.dice.ms(10)).await;
            }
            match self.dice.percent(15) {
                true => self.outbox.roll_back(&seqs),
                false => self.outbox.commit(&seqs),
            }
        }
    }

    fn event(&self, key: &str) -> Event {
        let topic = TOPICS[usize::from(self.dice.percent(30))];
        let (high, low) = (self.dice.below(u64::MAX), self.dice.below(u64::MAX));
        let mut event = Event {
            seq: 0,
            id: Uuid::from_u64_pair(high, low),
            aggregate_type: "Order".into(),
            aggregate_id: Some(key.into()),
            event_type: EVENT_TYPES[usize::from(self.dice.percent(30))].into(),
            payload: None,
            headers: None,
            topic: Some(topic.into()),
            created_at_us: None,
            parked: None,
        };
        let id = event.id.to_string();
        if self.dice.percent(self.trouble.hopeless) {
            self.found(|found| found.hopeless.insert(event.id));
            match self.dice.below(3) {
                0 => event.topic = Some("no such/topic".into()),
                1 => event.headers = Some("[]".into()),
                _ => self.sink.on_event(&id, vec![Reply::Poison(reason()); 1000]),
            }
        } else if self.dice.percent(self.trouble.replies) {
            let replies: Vec<Reply> = (0..self.dice.between(1, 4)).map(|_| self.reply()).collect();
            self.sink.on_event(&id, replies);
        }
        event
    }

    fn reply(&self) -> Reply {
        match self.dice.below(8) {
            0 => Reply::Deliver,
            1 => Reply::Hang,
            2 => Reply::Refuse(Outcome::Unfinished),
            3 => Reply::Refuse(Outcome::Suspect),
            4 => Reply::Refuse(Outcome::Paused),
            5 if self.dice.percent(30) => Reply::Refuse(Outcome::Rejected(reason())),
            _ => Reply::LoseTheWord,
        }
    }

    /// A relay that is started, stopped and killed, a few times.
    async fn relay(&self) {
        for _ in 0..self.dice.between(1, 3) {
            sleep(self.dice.ms(100)).await;
            let drain = Drain::new();
            let lane = self.lane(&drain);
            let mut workers = JoinSet::new();
            for _ in 0..self.dice.between(1, 3) {
                let polls = match self.dice.percent(self.trouble.deaths) {
                    true => self.dice.below(200),
                    false => u64::MAX,
                };
                let worker = self.worker(&lane, false);
                workers.spawn(dying(polls, worker));
            }
            sleep(self.dice.ms(400)).await;
            let deadline = match self.trouble.outages {
                true => self.dice.ms(300),
                false => FOR_EVER,
            };
            let mut draining = JoinSet::new();
            let begun = drain.clone();
            draining.spawn(async move { begun.begin(deadline).await });
            match timeout(deadline + SETTLING, join(workers)).await {
                Ok(_) => {}
                Err(_) => self.fault(format!("a relay did not stop within {deadline:?}")),
            }
            draining.shutdown().await;
        }
    }

    fn lane(&self, drain: &Drain) -> Arc<Lane> {
        let publish_timeout = match self.trouble.outages {
            true => Duration::from_millis(self.dice.between(5, 2000)),
            false => Duration::from_secs(60),
        };
        let template = Template::parse("${aggregate_type}").unwrap_or_else(|e| panic!("{e}"));
        Arc::new(Lane {
            router: Router::new(template),
            policies: self.policies.clone(),
            encoding: crate::record::Encoding::default(),
            publish_timeout,
            patience: None,
            drain: drain.clone(),
            status: Arc::new(Status::new("simulated".to_owned())),
            suspects: Mutex::default(),
            controls: Arc::new(Controls::new(None)),
        })
    }

    /// A worker that goes on after a failure, as the relay's do.
    fn worker(&self, lane: &Arc<Lane>, until_empty: bool) -> impl Future<Output = End> + use<> {
        let rows_max = usize::try_from(self.dice.between(1, 12)).unwrap_or(1);
        let lanes_max = usize::try_from(self.dice.between(1, 4)).unwrap_or(1);
        let mut source = ScriptedSource::new(&self.outbox, rows_max, lanes_max, until_empty);
        let (mut sink, lane) = (self.sink.clone(), Arc::clone(lane));
        async move {
            let progress = lane.status.loops.begin("worker");
            loop {
                match lane.serve(&mut source, &mut sink, &progress).await {
                    Ok(end) => return end,
                    Err(_) => tokio::select! {
                        biased;
                        () = lane.drain.stopping().cancelled() => return End::Stopped,
                        () = sleep(Duration::from_millis(20)) => {}
                    },
                }
            }
        }
    }

    /// The sink and its topics go away and come back.
    async fn outages(&self) {
        if !self.trouble.outages {
            return;
        }
        loop {
            sleep(Duration::from_millis(self.dice.between(1, 200))).await;
            let away = Duration::from_millis(self.dice.between(1, 600));
            let topic = TOPICS[usize::from(self.dice.percent(50))];
            if self.dice.percent(50) {
                self.sink.on_topic(topic, Reply::Refuse(Outcome::Paused));
                sleep(away).await;
                self.sink.on_topic(topic, Reply::Deliver);
            } else {
                self.sink.set_down(true);
                sleep(away).await;
                self.sink.set_down(false);
            }
        }
    }

    fn check(&self) -> Ended {
        let rows = self.outbox.rows();
        let history = self.outbox.history();
        let written = self.sink.written_ids();
        let mut faults = self.found(|found| std::mem::take(&mut found.faults));
        let parked_at = self.found(|found| found.parked_at.clone());
        let hopeless = self.found(|found| found.hopeless.clone());

        let mut first = HashMap::new();
        for (at, id) in written.iter().enumerate() {
            first.entry(id.as_str()).or_insert(at);
        }
        let committed: HashSet<String> =
            rows.iter().map(|(event, _)| event.id.to_string()).collect();
        for id in first.keys().filter(|id| !committed.contains(**id)) {
            faults.push(format!("{id} was rolled back, and is in the log"));
        }
        // Where the last first occurrence of each stream stands.
        let mut streams: HashMap<(&str, Option<&str>), usize> = HashMap::new();
        // How long the log was when each aggregate was blocked.
        let mut blocked: HashMap<&str, usize> = HashMap::new();
        for (event, place) in &rows {
            let (seq, id) = (event.seq, event.id.to_string());
            let first = first.get(id.as_str()).copied();
            match place {
                Place::Done if first.is_none() => faults.push(format!("row {seq} is lost")),
                Place::Uncommitted | Place::Pending => {
                    faults.push(format!("row {seq} is {place:?} for ever"));
                }
                Place::Done if hopeless.contains(&event.id) => {
                    faults.push(format!("row {seq} cannot be published, and is done"));
                }
                _ => {}
            }
            if let Some(first) = first {
                let stream = (event.key(), event.topic.as_deref());
                match streams.insert(stream, first) {
                    Some(before) if before > first => {
                        faults.push(format!("row {seq} is in the log before an older one"));
                    }
                    _ => {}
                }
            }
            if let Some(since) = blocked.get(event.key())
                && written.iter().skip(*since).any(|later| *later == id)
            {
                faults.push(format!("row {seq} was published behind a parked one"));
            }
            if *place == Place::Parked {
                let at = parked_at.get(&seq).copied().expect("somebody parked it");
                blocked.entry(event.key()).or_insert(at);
            }
        }
        faults.extend(check_claims(&history, &rows, &written));
        Ended {
            faults,
            history,
            written,
        }
    }
}

/// Each claim ended once, and only those that did not end well have made duplicates.
fn check_claims(history: &[Entry], rows: &[(Event, Place)], written: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut open: BTreeMap<u64, &Vec<i64>> = BTreeMap::new();
    let mut claims: HashMap<i64, usize> = HashMap::new();
    let mut window = 0;
    for entry in history {
        let ended = match entry {
            Entry::Claimed(claim, seqs) => {
                for seq in seqs {
                    *claims.entry(*seq).or_default() += 1;
                }
                open.insert(*claim, seqs);
                continue;
            }
            Entry::Settled(claim, settled) => {
                let left = |(_, verdict): &&(i64, Verdict)| *verdict == Verdict::Release;
                window += settled.iter().filter(left).count();
                (claim, open.remove(claim))
            }
            Entry::Dropped(claim) => {
                let seqs = open.remove(claim);
                window += seqs.map_or(0, Vec::len);
                (claim, seqs)
            }
            Entry::Broken(text) => {
                faults.push(text.clone());
                continue;
            }
        };
        if let (claim, None) = ended {
            faults.push(format!("claim {claim} ended twice"));
        }
    }
    for claim in open.keys() {
        faults.push(format!("claim {claim} never ended"));
    }
    let mut copies: HashMap<&str, usize> = HashMap::new();
    for id in written {
        *copies.entry(id).or_default() += 1;
    }
    let repeated = written.len() - copies.len();
    if repeated > window {
        faults.push(format!("{repeated} duplicates, and {window} in flight"));
    }
    for (event, _) in rows {
        let copies = copies.get(event.id.to_string().as_str()).copied();
        let claims = claims.get(&event.seq).copied();
        if copies > claims {
            let seq = event.seq;
            faults.push(format!("row {seq}: {copies:?} copies, {claims:?} claims"));
        }
    }
    faults
}

fn reason() -> Reason {
    Reason::new("invalid_record", "for the test")
}

async fn join<T: 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(task) = tasks.join_next().await {
        match task {
            Ok(done) => all.push(done),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    all
}

/// `future`, dropped after so many polls, wherever it waits then.
async fn dying<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut left = polls;
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        let polled = future.as_mut().poll(context).map(Some);
        if left == 0 && polled.is_pending() {
            // nothing else may come that would wake it
            context.waker().wake_by_ref();
        }
        polled
    })
    .await
}

/// Runs with `seed`, on a clock of its own.
fn simulate(seed: u64, trouble: impl FnOnce(&Dice) -> Trouble) -> Ended {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("a runtime can be made: {error}"));
    runtime.block_on(Run::new(seed, trouble).run())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of a test: `short` of them, always the same, or the one of `OUTBOX_TEST_SEED`, or
    /// a hundred times as many that no run had before under `OUTBOX_TEST_SOAK=1`.
    fn seeds(short: u64) -> std::ops::Range<u64> {
        let given = |name: &str| std::env::var(name).ok().filter(|it| !it.is_empty());
        if let Some(seed) = given("OUTBOX_TEST_SEED") {
            let seed = seed.parse().expect("OUTBOX_TEST_SEED is a number");
            return seed..seed + 1;
        }
        if given("OUTBOX_TEST_SOAK").is_some_and(|it| it != "0") {
            let start = u64::from(crate::ops::random()) << 24;
            return start..start + 100 * short;
        }
        1..1 + short
    }

    fn fail(seed: u64, faults: &[String]) -> ! {
        panic!(
            "OUTBOX_TEST_SEED={seed} does it again:\n{}",
            faults.join("\n")
        )
    }

    #[test]
    fn whatever_fails_and_whoever_dies_nothing_is_lost_out_of_order_or_settled_twice() {
        let (mut duplicates, mut parked) = (0, 0);
        let seeds = seeds(4000);
        let runs = seeds.end - seeds.start;
        for seed in seeds {
            let ended = simulate(seed, Trouble::of);
            if !ended.faults.is_empty() {
                fail(seed, &ended.faults);
            }
            let distinct: HashSet<&String> = ended.written.iter().collect();
            duplicates += ended.written.len() - distinct.len();
            let park = |entry: &Entry| match entry {
                Entry::Settled(_, settled) => {
                    let parked =
                        |(_, verdict): &&(i64, Verdict)| matches!(verdict, Verdict::Park(..));
                    settled.iter().filter(parked).count()
                }
                _ => 0,
            };
            parked += ended.history.iter().map(park).sum::<usize>();
        }
        // or the trouble was none
        assert!(
            runs < 1000 || (duplicates > 1000 && parked > 1000),
            "{duplicates} {parked}"
        );
    }

    #[test]
    fn a_stop_at_any_moment_leaves_no_claim_open_and_makes_no_duplicate() {
        for seed in seeds(4000) {
            let mut ended = simulate(seed, |_| Trouble::default());
            let distinct: HashSet<&String> = ended.written.iter().collect();
            if distinct.len() < ended.written.len() {
                ended.faults.push("a stop made a duplicate".to_owned());
            }
            let badly = |entry: &&Entry| match entry {
                Entry::Dropped(_) => true,
                Entry::Settled(_, settled) => settled.iter().any(|(_, v)| *v == Verdict::Release),
                _ => false,
            };
            let badly = ended.history.iter().filter(badly);
            let badly = badly.map(|entry| format!("nothing was wrong, and {entry:?}"));
            ended.faults.extend(badly);
            if !ended.faults.is_empty() {
                fail(seed, &ended.faults);
            }
        }
    }

    #[test]
    fn a_seed_makes_the_same_run_again() {
        for seed in 1..50 {
            assert_eq!(simulate(seed, Trouble::of), simulate(seed, Trouble::of));
        }
    }
}
