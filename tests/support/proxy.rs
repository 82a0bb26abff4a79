//! A bad network: a TCP proxy between the relay and one server.
//!
//! Each direction has a [`Link`] that can be changed at any time, for connections that are open and
//! for those to come. What a link holds back is late, not lost, as on a real network: the bytes wait,
//! the sender's window closes, and they go on when the link heals. Only [`Proxy::reset`],
//! [`Link::cut_after`] and [`Proxy::lose_reply_to`] end a connection, the last two in the middle of
//! what was said.
#![allow(
    dead_code,
    reason = "a bad network is whole, whether or not a test asks for each part"
)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// One direction of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Link {
    /// How much later each byte arrives.
    pub(crate) delay: Duration,
    /// What gets through at most.
    pub(crate) bytes_per_second: Option<u64>,
    /// Nothing gets through, and nobody is told.
    pub(crate) hole: bool,
    /// Each connection is reset when this many bytes more have got through.
    pub(crate) cut_after: Option<u64>,
}

impl Link {
    /// Nothing gets through.
    pub(crate) const HOLE: Self = Self {
        delay: Duration::ZERO,
        bytes_per_second: None,
        hole: true,
        cut_after: None,
    };

    /// Each byte arrives this much later.
    pub(crate) fn late(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// So many bytes a second get through.
    pub(crate) fn slow(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: Some(bytes_per_second),
            ..Self::default()
        }
    }

    /// Each connection is reset after so many bytes.
    pub(crate) fn cut_after(bytes: u64) -> Self {
        Self {
            cut_after: Some(bytes),
            ..Self::default()
        }
    }
}

/// What is said to every connection.
#[derive(Debug, Clone, Default)]
struct Orders {
    to_server: Link,
    to_client: Link,
    /// Counts the orders to end what is open.
    resets: u64,
    /// Counts the orders to say good-bye in one direction and listen on.
    farewells_to_server: u64,
    farewells_to_client: u64,
    /// New connections are reset at once.
    refusing: bool,
}

impl Orders {
    fn link(&self, direction: Direction) -> Link {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
        }
    }

    fn farewells(&self, direction: Direction) -> u64 {
        match direction {
            Direction::ToServer => self.farewells_to_server,
            Direction::ToClient => self.farewells_to_client,
        }
    }
}

/// What the connections tell each other and the test.
#[derive(Default)]
struct Shared {
    target: Mutex<Option<SocketAddr>>,
    open: AtomicUsize,
    to_server: AtomicU64,
    to_client: AtomicU64,
    /// When this passes to the server, its reply is lost.
    fatal_request: Mutex<Option<Vec<u8>>>,
    lost_replies: AtomicUsize,
    /// Whether the server is a Postgres whose answers are to be counted.
    counting: AtomicBool,
    answers: AtomicU64,
}

/// A proxy on a port of its own. It ends, with its connections, when it is dropped.
pub(crate) struct Proxy {
    port: u16,
    orders: watch::Sender<Orders>,
    shared: Arc<Shared>,
    /// Aborted when dropped.
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port, and connects each client to `port` of the loopback.
    pub(crate) async fn to(port: u16) -> Self {
        Self::between(0, port).await
    }

    /// As [`Proxy::to`], listening on a port that is known beforehand; 0 is any.
    pub(crate) async fn between(listen: u16, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", listen)).await;
        let listener = listener.expect("a free port");
        let listening = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::default());
        let (orders, seen) = watch::channel(Orders::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared), seen));
        let proxy = Self {
            port: listening.port(),
            orders,
            shared,
            _accepting: accepting,
        };
        proxy.target(port);
        proxy
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `url` by way of this proxy; the URL names its port.
    pub(crate) fn url(&self, url: &str) -> String {
        let (scheme, rest) = url.split_once("://").expect("a URL has a scheme");
        let (authority, path) = rest.split_once('/').expect("the URL names a database");
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        format!("{scheme}://{user}127.0.0.1:{}/{path}", self.port)
    }

    /// Connects later clients to another port.
    pub(crate) fn target(&self, port: u16) {
        *self.shared.target.lock().unwrap() = Some(SocketAddr::from(([127, 0, 0, 1], port)));
    }

    /// Makes one direction as `link` says.
    pub(crate) fn set(&self, direction: Direction, link: Link) {
        self.orders.send_modify(|orders| match direction {
            Direction::ToServer => orders.to_server = link,
            Direction::ToClient => orders.to_client = link,
        });
    }

    /// Makes both directions as `link` says.
    pub(crate) fn set_both(&self, link: Link) {
        self.set(Direction::ToServer, link);
        self.set(Direction::ToClient, link);
    }

    /// A good network again. Connections that were cut stay cut.
    pub(crate) fn heal(&self) {
        self.set_both(Link::default());
        self.refuse(false);
        *self.shared.fatal_request.lock().unwrap() = None;
    }

    /// Resets every connection there is.
    pub(crate) fn reset(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Resets every new connection at once, or serves them again.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.orders.send_modify(|orders| orders.refusing = refusing);
    }

    /// Closes one direction of every connection there is, as a peer does that has nothing more to
    /// say; the other goes on.
    pub(crate) fn half_close(&self, direction: Direction) {
        self.orders.send_modify(|orders| match direction {
            Direction::ToServer => orders.farewells_to_server += 1,
            Direction::ToClient => orders.farewells_to_client += 1,
        });
    }

    /// The next time that a client sends a piece with these bytes in it, the server gets it; then
    /// its reply is thrown away and the connection is reset. Once.
    pub(crate) fn lose_reply_to(&self, request: &[u8]) {
        *self.shared.fatal_request.lock().unwrap() = Some(request.to_vec());
    }

    /// How many replies have been lost.
    pub(crate) fn lost_replies(&self) -> usize {
        self.shared.lost_replies.load(Ordering::Relaxed)
    }

    /// Counts, on each connection from now on, how often a Postgres says that it is ready for the next
    /// question: once for each round trip. The connections must not be encrypted.
    pub(crate) fn count_answers(&self) {
        self.shared.counting.store(true, Ordering::Relaxed);
    }

    /// How many answers have been counted.
    pub(crate) fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Bytes that have got through.
    pub(crate) fn bytes(&self, direction: Direction) -> u64 {
        self.shared.bytes(direction).load(Ordering::Relaxed)
    }
}

impl Shared {
    fn bytes(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }

    /// Whether this piece of a request is the one whose reply is to be lost.
    fn is_fatal(&self, piece: &[u8]) -> bool {
        let mut fatal = self.fatal_request.lock().unwrap();
        let found = fatal.as_deref().is_some_and(|request| {
            piece
                .windows(request.len())
                .any(|window| window.eq_ignore_ascii_case(request))
        });
        if found {
            *fatal = None;
        }
        found
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, orders: watch::Receiver<Orders>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        if orders.borrow().refusing {
            client.set_zero_linger().ok();
            continue;
        }
        let (shared, orders) = (Arc::clone(&shared), orders.clone());
        connections.spawn(async move {
            shared.open.fetch_add(1, Ordering::Relaxed);
            carry(client, &shared, orders).await;
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One connection, from beginning to end.
async fn carry(client: TcpStream, shared: &Shared, mut orders: watch::Receiver<Orders>) {
    let target = shared.target.lock().unwrap().expect("a proxy has a target");
    let Ok(server) = TcpStream::connect(target).await else {
        client.set_zero_linger().ok();
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).ok();
    }
    let resets = orders.borrow_and_update().resets;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // set while the reply to the fatal request is awaited
    let fatal = &watch::channel(false).0;
    let cut = &tokio_util::sync::CancellationToken::new();
    let (mut up, mut down) = (
        Pump::new(Direction::ToServer, shared, &orders, fatal, cut),
        Pump::new(Direction::ToClient, shared, &orders, fatal, cut),
    );
    // Both halves stay alive until the end: dropping one would say good-bye.
    let (mut to_server, mut to_client) = (to_server, to_client);
    let ended = async {
        tokio::join!(
            up.run(from_client, &mut to_server),
            down.run(from_server, &mut to_client)
        );
    };
    let reset = tokio::select! {
        () = ended => false,
        () = cut.cancelled() => true,
        _ = orders.wait_for(|orders| orders.resets != resets) => true,
    };
    if reset {
        for half in [to_server, to_client] {
            let stream: &TcpStream = half.as_ref();
            stream.set_zero_linger().ok();
            // dropped, it would say good-bye first
            half.forget();
        }
    }
}

/// A piece of one direction, and when it is due.
type Piece = (Instant, Vec<u8>);

/// One direction of one connection.
struct Pump<'a> {
    direction: Direction,
    shared: &'a Shared,
    orders: watch::Receiver<Orders>,
    /// The farewells that were said before this connection was made.
    farewells: u64,
    fatal: &'a watch::Sender<bool>,
    cut: &'a tokio_util::sync::CancellationToken,
}

impl<'a> Pump<'a> {
    fn new(
        direction: Direction,
        shared: &'a Shared,
        orders: &watch::Receiver<Orders>,
        fatal: &'a watch::Sender<bool>,
        cut: &'a tokio_util::sync::CancellationToken,
    ) -> Self {
        let farewells = orders.borrow().farewells(direction);
        Self {
            direction,
            shared,
            orders: orders.clone(),
            farewells,
            fatal,
            cut,
        }
    }

    async fn run(&mut self, from: OwnedReadHalf, to: &mut OwnedWriteHalf) {
        // little enough to push back on a sender whose link is slow
        const PIECES: usize = 64;
        let (pieces, due) = mpsc::channel(PIECES);
        let mut farewell = self.orders.clone();
        let (direction, said) = (self.direction, self.farewells);
        let orders = self.orders.clone();
        tokio::select! {
            () = async { tokio::join!(read(direction, from, pieces, orders), self.write(due, to)); } => {}
            _ = farewell.wait_for(|orders| orders.farewells(direction) != said) => {}
        }
        to.shutdown().await.ok();
    }

    async fn write(&mut self, mut due: mpsc::Receiver<Piece>, to: &mut OwnedWriteHalf) {
        let mut budget: Option<u64> = None;
        let counting = self.shared.counting.load(Ordering::Relaxed);
        let mut messages = Messages::default();
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            if self.direction == Direction::ToServer && self.shared.is_fatal(&piece) {
                self.fatal.send_replace(true);
            }
            let mut rest = piece.as_slice();
            while !rest.is_empty() {
                let link = self.open_link().await;
                if self.direction == Direction::ToClient && *self.fatal.borrow() {
                    self.shared.lost_replies.fetch_add(1, Ordering::Relaxed);
                    self.cut.cancel();
                    return;
                }
                let mut some = rest.len();
                if let Some(rate) = link.bytes_per_second {
                    // twenty pieces a second
                    some = some.min(usize::try_from((rate / 20).max(1)).unwrap_or(some));
                }
                match link.cut_after {
                    Some(bytes) => {
                        let left = budget.get_or_insert(bytes);
                        some = some.min(usize::try_from(*left).unwrap_or(some));
                        *left -= some as u64;
                    }
                    None => budget = None,
                }
                let (now, later) = rest.split_at(some);
                if to.write_all(now).await.is_err() {
                    return;
                }
                self.shared
                    .bytes(self.direction)
                    .fetch_add(some as u64, Ordering::Relaxed);
                if counting && self.direction == Direction::ToClient {
                    let answers = messages.answers(now);
                    self.shared.answers.fetch_add(answers, Ordering::Relaxed);
                }
                if budget == Some(0) {
                    self.cut.cancel();
                    return;
                }
                if let Some(rate) = link.bytes_per_second {
                    sleep(Duration::from_secs_f64(some as f64 / rate as f64)).await;
                }
                rest = later;
            }
        }
    }

    /// The link, once it is no hole.
    async fn open_link(&mut self) -> Link {
        let direction = self.direction;
        let open = self.orders.wait_for(|orders| !orders.link(direction).hole);
        match open.await {
            Ok(orders) => orders.link(direction),
            Err(_) => Link::default(),
        }
    }
}

/// The messages of a Postgres, however they are cut into pieces: a letter, then the length of the rest
/// with its own four bytes.
#[derive(Default)]
struct Messages {
    head: Vec<u8>,
    rest: usize,
}

impl Messages {
    /// How many times `piece` says that the server is ready for the next question.
    fn answers(&mut self, mut piece: &[u8]) -> u64 {
        let mut answers = 0;
        while !piece.is_empty() {
            if self.rest > 0 {
                let (_, next) = piece.split_at(self.rest.min(piece.len()));
                self.rest -= piece.len() - next.len();
                piece = next;
                continue;
            }
            let (head, next) = piece.split_at((5 - self.head.len()).min(piece.len()));
            self.head.extend(head);
            piece = next;
            if let [letter, length @ ..] = &*self.head
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                let ready = *letter == b'Z';
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                self.head.clear();
                answers += u64::from(ready);
            }
        }
        answers
    }
}

/// Reads pieces until the sender has no more to say. A hole is not read from: its window closes.
async fn read(
    direction: Direction,
    mut from: OwnedReadHalf,
    pieces: mpsc::Sender<Piece>,
    mut orders: watch::Receiver<Orders>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let open = orders.wait_for(|orders| !orders.link(direction).hole);
        open.await.map(drop).ok();
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let delay = orders.borrow().link(direction).delay;
        let piece = buffer.get(..read).unwrap_or_default().to_vec();
        if pieces.send((Instant::now() + delay, piece)).await.is_err() {
            return;
        }
    }
}

/// The proxy itself, against a server that sends back what it gets.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::support;

    /// A server, gone when the set is dropped, and a proxy before it.
    async fn echo() -> (Proxy, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                    to.shutdown().await.ok();
                });
            }
        });
        (Proxy::to(port).await, server)
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(("127.0.0.1", proxy.port()))
            .await
            .unwrap()
    }

    /// Sends `text` and waits a while for as much.
    async fn ask(stream: &mut TcpStream, text: &str, patience: Duration) -> Option<String> {
        stream.write_all(text.as_bytes()).await.ok()?;
        answer(stream, text.len(), patience).await
    }

    async fn answer(stream: &mut TcpStream, bytes: usize, patience: Duration) -> Option<String> {
        let mut buffer = vec![0; bytes];
        let read = tokio::time::timeout(patience, stream.read_exact(&mut buffer)).await;
        read.ok()?.ok()?;
        String::from_utf8(buffer).ok()
    }

    #[test]
    fn answers_are_counted_however_they_are_cut() {
        let row = b"D\0\0\0\x0bZ\0\0\0\x05I!";
        let ready = b"Z\0\0\0\x05I";
        let all = [&row[..], ready, row, ready].concat();
        for size in 1..=all.len() {
            let mut messages = Messages::default();
            let answers: u64 = all.chunks(size).map(|piece| messages.answers(piece)).sum();
            assert_eq!(answers, 2, "in pieces of {size}");
        }
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);

    #[test]
    fn a_hole_holds_bytes_back_and_loses_none() {
        support::block_on(async {
            let (proxy, _server) = echo().await;
            let mut stream = connect(&proxy).await;
            assert_eq!(ask(&mut stream, "one", LONG).await.unwrap(), "one");
            for direction in [Direction::ToServer, Direction::ToClient] {
                proxy.set(direction, Link::HOLE);
                assert_eq!(ask(&mut stream, "two", SHORT).await, None);
                proxy.heal();
                assert_eq!(answer(&mut stream, 3, LONG).await.unwrap(), "two");
            }
            assert_eq!(proxy.connections(), 1);
        });
    }

    #[test]
    fn late_and_slow_links_are_late_and_slow() {
        support::block_on(async {
            let (proxy, _server) = echo().await;
            let mut stream = connect(&proxy).await;
            proxy.set_both(Link::late(Duration::from_millis(60)));
            let began = Instant::now();
            ask(&mut stream, "one", LONG).await.unwrap();
            assert!(began.elapsed() >= Duration::from_millis(120));
            proxy.heal();
            proxy.set(Direction::ToServer, Link::slow(1000));
            let began = Instant::now();
            ask(&mut stream, &"x".repeat(300), LONG).await.unwrap();
            assert!(began.elapsed() >= Duration::from_millis(250));
        });
    }

    #[test]
    fn a_cut_comes_after_its_bytes_and_a_reset_at_once() {
        support::block_on(async {
            let (proxy, _server) = echo().await;
            let mut stream = connect(&proxy).await;
            proxy.set(Direction::ToClient, Link::cut_after(5));
            stream.write_all(b"0123456789").await.unwrap();
            let mut got = Vec::new();
            let ended = stream.read_to_end(&mut got).await;
            // a reset may overtake what was sent before it
            assert!(ended.is_err() && got.len() <= 5, "{ended:?} {got:?}");
            assert_eq!(proxy.bytes(Direction::ToClient), 5);
            proxy.heal();
            let mut stream = connect(&proxy).await;
            assert_eq!(ask(&mut stream, "one", LONG).await.unwrap(), "one");
            proxy.reset();
            assert!(stream.read(&mut [0]).await.is_err());
            support::eventually(LONG, "nothing is open", async || proxy.connections() == 0).await;
            proxy.refuse(true);
            // the reset may even come before the connection is known to stand
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", proxy.port())).await {
                assert!(stream.read(&mut [0]).await.is_err());
            }
        });
    }

    #[test]
    fn a_half_closed_connection_still_carries_the_other_way() {
        support::block_on(async {
            let (proxy, _server) = echo().await;
            let mut stream = connect(&proxy).await;
            assert_eq!(ask(&mut stream, "one", LONG).await.unwrap(), "one");
            proxy.set(Direction::ToClient, Link::late(Duration::from_millis(200)));
            stream.write_all(b"two").await.unwrap();
            sleep(Duration::from_millis(50)).await;
            proxy.half_close(Direction::ToServer);
            // what was under way arrives, and then the server's own end
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "two");
        });
    }

    #[test]
    fn a_lost_reply_was_a_request_that_arrived() {
        support::block_on(async {
            let (proxy, _server) = echo().await;
            let mut stream = connect(&proxy).await;
            proxy.lose_reply_to(b"commit");
            assert_eq!(ask(&mut stream, "begin", LONG).await.unwrap(), "begin");
            stream.write_all(b"COMMIT;").await.unwrap();
            assert!(stream.read(&mut [0]).await.is_err());
            assert_eq!(proxy.bytes(Direction::ToServer), 12, "the server got it");
            assert_eq!(proxy.lost_replies(), 1);
            let mut stream = connect(&proxy).await;
            assert_eq!(ask(&mut stream, "commit", LONG).await.unwrap(), "commit");
        });
    }
}
