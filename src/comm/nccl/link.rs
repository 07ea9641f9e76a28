//! One rank's connection to its hub.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::frame::{self, ARRIVAL, Cookie, Down, MAX_BODY, Next, Told, Up};
use super::hub::{Hub, tune};
use crate::device::process;
use crate::types::{Error, Result, Status};

/// How long one attempt to connect takes at most.
const ATTEMPT: Duration = Duration::from_secs(3);

/// How long whoever answers may take to show that it is a hub.
const GREETING: Duration = Duration::from_secs(5);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the hub may take to answer a rank that waited in vain.
const ANSWER: Duration = Duration::from_secs(2);

/// How long a rank whose process holds the hub stays for the others when it leaves.
const STAY: Duration = Duration::from_secs(10);

/// Where a hub is and who wants to join it.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// What to connect to, in order.
    pub places: Vec<SocketAddr>,
    /// A host's name to look up, and the port there, beside `places`.
    pub named: Option<(String, u16)>,
    /// The hub's.
    pub cookie: Cookie,
    /// Who wants to join.
    pub rank: usize,
    /// How many ranks there are.
    pub world: usize,
}

impl Invitation {
    /// Names resolve when they resolve: the answer may change while the ranks of a job start.
    fn resolve(&self) -> (Vec<SocketAddr>, Option<String>) {
        let mut places = self.places.clone();
        let mut why = None;
        if let Some((host, port)) = &self.named {
            match (host.as_str(), *port).to_socket_addrs() {
                Ok(found) => places.extend(found),
                Err(e) => why = Some(format!("{host}: {e}")),
            }
        }
        (places, why)
    }

    fn place(&self) -> String {
        let named = self.named.iter().map(|(host, port)| format!("{host}:{port}"));
        let places = self.places.iter().map(ToString::to_string);
        let all: Vec<String> = named.chain(places).collect();
        all.join(", ")
    }
}

#[derive(Debug, Default)]
struct News {
    welcome: bool,
    gathered: Option<(u64, Vec<Vec<u8>>)>,
    verdict: Option<Error>,
    /// Ranks that left, with the number of exchanges with this one that they took part in.
    left: Vec<(usize, u64)>,
    /// The connection is over.
    over: bool,
    /// This rank has left.
    leaving: bool,
}

#[derive(Debug, Default)]
struct Shared {
    news: Mutex<News>,
    changed: Condvar,
}

/// A rank that has joined. Everything but `gather` may be called from any thread at any time.
#[derive(Debug)]
pub struct Link {
    rank: usize,
    world: usize,
    stream: Mutex<TcpStream>,
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
    /// Number of the next all-gather.
    next: Mutex<u64>,
    /// The hub, where this process holds it.
    hub: Mutex<Option<Arc<Hub>>>,
}

/// Connects to a hub, which says that it is one.
fn connect(to: &Invitation, until: Instant) -> Result<TcpStream> {
    let begun = Instant::now();
    let mut last = "nothing answers there".to_owned();
    loop {
        let (places, why) = to.resolve();
        last = why.unwrap_or(last);
        for place in places {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&place, left.min(ATTEMPT)) {
                Ok(stream) => match greet(stream, to, left) {
                    Ok(stream) => return Ok(stream),
                    Err(Greeting::Refused(error)) => return Err(error),
                    Err(Greeting::Foreign(why)) => last = format!("{place}: {why}"),
                },
                Err(e) => last = format!("{place}: {e}"),
            }
        }
        if Instant::now() + PAUSE >= until {
            let message = format!(
                "rank {} of {} found no hub at {} within {:?} ({last}); is rank 0 running, and does a firewall let the \
                 port through?",
                to.rank,
                to.world,
                to.place(),
                begun.elapsed()
            );
            return Err(Error::new(Status::Timeout, message));
        }
        thread::sleep(PAUSE);
    }
}

enum Greeting {
    Refused(Error),
    Foreign(String),
}

/// Says who this rank is and waits until it has a seat.
fn greet(mut stream: TcpStream, to: &Invitation, left: Duration) -> std::result::Result<TcpStream, Greeting> {
    let foreign = |e: std::io::Error| Greeting::Foreign(e.to_string());
    tune(&stream);
    let patience = left.min(GREETING).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(patience)).map_err(foreign)?;
    stream.set_write_timeout(Some(GREETING)).map_err(foreign)?;
    let hello = Up::Hello {
        cookie: to.cookie,
        rank: to.rank as u32,
        world: to.world as u32,
    };
    stream.write_all(&hello.to_bytes()).map_err(foreign)?;
    let no_hub = || Greeting::Foreign("whoever answers there is no hub of this library".to_owned());
    let mut head = [0; 4];
    stream.read_exact(&mut head).map_err(foreign)?;
    let length = u32::from_le_bytes(head) as usize;
    if !(1..=1 << 16).contains(&length) {
        return Err(no_hub());
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).map_err(foreign)?;
    match Down::read(rest[0], &rest[1..]) {
        Some(Down::Seated) => stream.set_read_timeout(None).map_err(foreign).map(|()| stream),
        Some(Down::Ended(told)) => Err(Greeting::Refused(told.error())),
        _ => Err(no_hub()),
    }
}

impl Link {
    /// Joins the ranks at a hub and waits until all are there. `Status::Timeout` names those who did not come;
    /// `Status::CommFailed` says what does not fit.
    pub fn join(to: &Invitation, timeout: Duration) -> Result<Link> {
        let until = Instant::now() + timeout;
        let stream = connect(to, until)?;
        let refused =
            |e: std::io::Error| Error::new(Status::ResourceExhausted, format!("rank {}: {e}", to.rank));
        let reading = stream.try_clone().map_err(refused)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let rank = to.rank;
        let reader = thread::Builder::new()
            .name(format!("magi-link-{rank}"))
            .spawn(move || theirs.read(reading, rank))
            .map_err(refused)?;
        let link = Link {
            rank,
            world: to.world,
            stream: Mutex::new(stream),
            shared,
            reader: Mutex::new(Some(reader)),
            next: Mutex::new(0),
            hub: Mutex::new(super::id::own_hub(&to.cookie).inspect(|hub| hub.come())),
        };
        link.wait(until, timeout, ARRIVAL, |news| news.welcome.then_some(()))?;
        Ok(link)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Sends a frame. A connection that takes none is closed, because part of a frame may have gone, and the reader reports
    /// that it is over.
    fn send(&self, up: &Up) {
        let mut stream = self.stream.lock();
        if stream.write_all(&up.to_bytes()).is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until `found` finds something; tells the hub when that takes longer than until `until`.
    fn wait<T>(
        &self,
        until: Instant,
        timeout: Duration,
        number: u64,
        mut found: impl FnMut(&mut News) -> Option<T>,
    ) -> Result<T> {
        let mut news = self.shared.news.lock();
        let mut until = until;
        let mut told = false;
        loop {
            if let Some(found) = found(&mut news) {
                return Ok(found);
            }
            if let Some(verdict) = &news.verdict {
                return Err(verdict.clone());
            }
            if news.leaving {
                return Err(destroyed(self.rank));
            }
            if !self.shared.changed.wait_until(&mut news, until).timed_out() {
                continue;
            }
            if told {
                let rank = self.rank;
                let message =
                    format!("rank {rank} waited {timeout:?} for its peers, and their hub is silent");
                return Err(news
                    .verdict
                    .get_or_insert(Error::new(Status::Timeout, message))
                    .clone());
            }
            told = true;
            until = Instant::now() + ANSWER;
            drop(news);
            let waited = timeout.as_millis() as u64;
            self.send(&Up::Late { number, waited });
            news = self.shared.news.lock();
        }
    }

    /// Every rank's bytes, by rank; one call at a time. Errors as `Communicator::all_gather`.
    pub fn gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>> {
        let mut next = self.next.lock();
        self.verdict().map_or(Ok(()), Err)?;
        if mine.len() > MAX_BODY / 2 {
            let message = format!("all_gather of {} bytes; at most {}", mine.len(), MAX_BODY / 2);
            return Err(Error::argument(message));
        }
        let number = *next;
        *next += 1;
        let until = Instant::now() + timeout;
        self.send(&Up::Gather {
            number,
            bytes: mine.to_vec(),
        });
        let parts = self.wait(until, timeout, number, |news| {
            news.gathered
                .take_if(|(got, _)| *got == number)
                .map(|(_, parts)| parts)
        })?;
        if parts.len() == self.world {
            return Ok(parts);
        }
        let message = format!("the hub gave {} parts of {} ranks", parts.len(), self.world);
        Err(Error::new(Status::CommFailed, message))
    }

    /// Ends the communicator, with what this rank and what the others see. Nothing when it has ended.
    pub fn end(&self, own: &Error, others: &Error) {
        if self.shared.end(own.clone()) {
            self.send(&Up::End(Told::of(others)));
        }
    }

    /// Why the communicator ended, as this rank sees it.
    pub fn verdict(&self) -> Option<Error> {
        self.shared.news.lock().verdict.clone()
    }

    /// How many exchanges with this rank `peer` took part in, once it has left.
    pub fn left(&self, peer: usize) -> Option<u64> {
        let news = self.shared.news.lock();
        news.left.iter().find(|(p, _)| *p == peer).map(|(_, n)| *n)
    }

    /// Waits for something to happen, at most so long.
    pub fn wait_for_news(&self, at_most: Duration) {
        self.shared
            .changed
            .wait_for(&mut self.shared.news.lock(), at_most);
    }

    /// Wakes whoever waits for news.
    pub fn wake(&self) {
        self.shared.changed.notify_all();
    }

    /// Tells the others that this rank goes, after so many exchanges with each of them.
    pub fn leave(&self, exchanges: Vec<u64>) {
        if !std::mem::replace(&mut self.shared.news.lock().leaving, true) {
            self.wake();
            self.send(&Up::Leave { exchanges });
        }
    }

    /// Closes the connection of a rank that has left. The last rank of the process that holds the hub stays a while for the
    /// others, who need it.
    pub fn close(&self) {
        let Some(reader) = self.reader.lock().take() else {
            return;
        };
        let _ = self.stream.lock().shutdown(Shutdown::Write);
        let until = Instant::now() + ANSWER;
        let mut news = self.shared.news.lock();
        while !news.over && !self.shared.changed.wait_until(&mut news, until).timed_out() {}
        drop(news);
        let _ = self.stream.lock().shutdown(Shutdown::Both);
        // It ends with the connection.
        let _ = reader.join();
        if let Some(hub) = self.hub.lock().take()
            && hub.go()
        {
            hub.wait(STAY);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // In a forked child there is no reader to wait for, and the connection is the parent's.
        if process::check().is_ok() {
            self.leave(Vec::new());
            self.close();
        }
    }
}

/// What a rank gets that uses a communicator after it left.
pub(super) fn destroyed(rank: usize) -> Error {
    Error::new(
        Status::CommDestroyed,
        format!("rank {rank} has destroyed this communicator"),
    )
}

impl Shared {
    /// Sets the verdict; false when there was one.
    fn end(&self, verdict: Error) -> bool {
        let mut news = self.news.lock();
        let first = news.verdict.is_none();
        news.verdict.get_or_insert(verdict);
        self.changed.notify_all();
        first
    }

    /// Takes in what the hub says until the connection is over.
    fn read(&self, mut stream: TcpStream, rank: usize) {
        let mut heard = Vec::new();
        let mut chunk = [0u8; 1 << 16];
        'connection: loop {
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => heard.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
            loop {
                match frame::next(&heard, usize::MAX - 1) {
                    Next::Incomplete => break,
                    Next::Foreign => break 'connection,
                    Next::Frame { kind, length } => {
                        let down = Down::read(kind, frame::body(&heard, length));
                        heard.drain(..length);
                        match down {
                            Some(down) => self.take(down),
                            None => break 'connection,
                        }
                    }
                }
            }
        }
        let mut news = self.news.lock();
        news.over = true;
        if !news.leaving {
            let message = format!(
                "rank {rank} lost its hub: the process that holds it (rank 0's, or the one that made the id) ended"
            );
            news.verdict
                .get_or_insert(Error::new(Status::CommFailed, message));
        }
        drop(news);
        self.changed.notify_all();
    }

    fn take(&self, down: Down) {
        let mut news = self.news.lock();
        match down {
            Down::Seated => {}
            Down::Welcome => news.welcome = true,
            Down::Gathered { number, parts } => news.gathered = Some((number, parts)),
            Down::Ended(told) => {
                news.verdict.get_or_insert(told.error());
            }
            Down::Left { rank, exchanges } => news.left.push((rank as usize, exchanges)),
        }
        drop(news);
        self.changed.notify_all();
    }
}
