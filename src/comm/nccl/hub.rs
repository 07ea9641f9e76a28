//! Where the ranks of one communicator meet: one thread of one process, with a TCP connection to each rank.
//!
//! It brings ranks together, carries small all-gathers, and tells every rank at once what happened to another.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::frame::{self, Cookie, Down, HELLO_BODY, MAX_BODY, Next, Up};
use super::peer::Peer;
use super::table::Table;
use crate::types::{Error, Result, Status};

/// How long a connection may stay silent before it says who it is.
const SILENCE: Duration = Duration::from_secs(10);

/// Most connections that have not said who they are.
const MOST_STRANGERS: usize = 256;

/// How long a hub waits for all its ranks before it gives up.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The hub's side that stays with whoever opened it.
#[derive(Debug)]
pub struct Hub {
    port: u16,
    shared: Arc<Shared>,
    /// Ranks of this process that have joined and not left.
    guests: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: Mutex<bool>,
    changed: Condvar,
}

/// The first of `addresses` that can be listened on; the others are for hosts that lack its family of addresses.
fn listen(addresses: &[SocketAddr]) -> Result<TcpListener> {
    let mut last = None;
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(e) => {
                let taken = e.kind() == ErrorKind::AddrInUse;
                last = Some((address, e));
                if taken {
                    break;
                }
            }
        }
    }
    let (status, message) = match last {
        Some((address, e)) => {
            let hint = if e.kind() == ErrorKind::AddrInUse {
                "; another process has the port, perhaps a rank 0 that has not ended yet"
            } else {
                ""
            };
            (
                Status::ResourceExhausted,
                format!("cannot listen on {address}: {e}{hint}"),
            )
        }
        None => (Status::Internal, "no address to listen on".to_owned()),
    };
    Err(Error::new(status, message))
}

fn refused(what: &str, e: &std::io::Error) -> Error {
    Error::new(Status::ResourceExhausted, format!("{what}: {e}"))
}

impl Hub {
    /// A hub on `port` (0: any that is free), reachable from everywhere or from this host alone. `world`: how many ranks
    /// there will be, where that is known already.
    pub fn open(port: u16, everywhere: bool, cookie: Cookie, world: Option<usize>) -> Result<Hub> {
        let hosts: &[IpAddr] = if everywhere {
            &[
                IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
                IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            ]
        } else {
            &[
                IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
                IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            ]
        };
        let addresses: Vec<_> = hosts.iter().map(|&host| SocketAddr::new(host, port)).collect();
        let listener = listen(&addresses)?;
        listener
            .set_nonblocking(true)
            .map_err(|e| refused("a socket cannot be set up", &e))?;
        let port = listener
            .local_addr()
            .map_err(|e| refused("a socket has no address", &e))?
            .port();
        let shared = Arc::new(Shared::default());
        let mut room = Room {
            cookie,
            listener: Some(listener),
            peers: Vec::new(),
            table: Table::new(world),
            opened: Instant::now(),
        };
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("magi-hub".to_owned())
            .spawn(move || {
                room.run(&theirs.stop);
                drop(room);
                *theirs.done.lock() = true;
                theirs.changed.notify_all();
            })
            .map_err(|e| refused("the hub's thread was refused", &e))?;
        Ok(Hub {
            port,
            shared,
            guests: AtomicUsize::new(0),
        })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes every connection; returns when the port is free again.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wait(Duration::from_secs(5));
    }

    /// A rank of this process has joined.
    pub fn come(&self) {
        self.guests.fetch_add(1, Ordering::AcqRel);
    }

    /// A rank of this process has left; true for the last one.
    pub fn go(&self) -> bool {
        self.guests.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether its thread has ended.
    pub fn is_done(&self) -> bool {
        *self.shared.done.lock()
    }

    /// Waits until all ranks have left, or `at_most` has passed.
    pub fn wait(&self, at_most: Duration) {
        let mut done = self.shared.done.lock();
        let until = Instant::now() + at_most;
        while !*done {
            if self.shared.changed.wait_until(&mut done, until).timed_out() {
                return;
            }
        }
    }
}

/// What the hub's thread knows.
struct Room {
    cookie: Cookie,
    /// Closed once all ranks are there.
    listener: Option<TcpListener>,
    peers: Vec<Peer>,
    table: Table,
    opened: Instant,
}

impl Room {
    /// Deals with what comes, until there is nothing left to do.
    fn run(&mut self, stop: &AtomicBool) {
        loop {
            let more = self.turn();
            if !more || stop.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// Waits for news and deals with it; false when there is nothing left to do.
    fn turn(&mut self) -> bool {
        self.wait();
        self.accept();
        for i in 0..self.peers.len() {
            self.hear(i);
        }
        self.drop_strangers();
        self.say();
        let seated = self.peers.iter().any(|p| p.rank.is_some());
        if self.table.is_complete() || self.table.has_ended() {
            self.listener = None;
            return seated;
        }
        self.opened.elapsed() < STALE
    }

    /// Waits until a connection can be read or, where something is to be said, written.
    fn wait(&self) {
        let entry = |fd, more| libc::pollfd {
            fd,
            events: libc::POLLIN | more,
            revents: 0,
        };
        let mut polled: Vec<libc::pollfd> = self
            .peers
            .iter()
            .map(|p| entry(p.stream.as_raw_fd(), if p.has_more() { libc::POLLOUT } else { 0 }))
            .collect();
        polled.extend(self.listener.as_ref().map(|l| entry(l.as_raw_fd(), 0)));
        // Whoever stops the hub, and strangers that stay silent, are looked for now and then.
        let milliseconds = if self.listener.is_some() { 20 } else { 200 };
        // SAFETY: the array is as long as it is said to be.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds) };
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            let strangers = self.peers.iter().filter(|p| p.rank.is_none()).count();
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            if strangers < MOST_STRANGERS && stream.set_nonblocking(true).is_ok() {
                tune(&stream);
                self.peers.push(Peer::new(stream));
            }
        }
    }

    /// Reads what peer `i` says and acts on it.
    fn hear(&mut self, i: usize) {
        let longest = if self.peers[i].rank.is_some() {
            MAX_BODY
        } else {
            HELLO_BODY
        };
        self.peers[i].fill();
        loop {
            let peer = &mut self.peers[i];
            match frame::next(&peer.heard, longest) {
                Next::Incomplete => break,
                Next::Foreign => return self.foreign(i),
                Next::Frame { kind, length } => {
                    let up = Up::read(kind, frame::body(&peer.heard, length));
                    peer.heard.drain(..length);
                    match up {
                        Some(up) => self.act(i, up),
                        None => return self.foreign(i),
                    }
                }
            }
        }
        if self.peers[i].ended
            && let Some(rank) = self.peers[i].rank
        {
            self.table.lost(rank);
        }
    }

    /// Bytes that are no frame: from a stranger no matter, from a rank the end.
    fn foreign(&mut self, i: usize) {
        self.peers[i].ended = true;
        if let Some(rank) = self.peers[i].rank {
            self.table.confused(rank);
        }
    }

    fn act(&mut self, i: usize, up: Up) {
        let Some(rank) = self.peers[i].rank else {
            return self.greet(i, up);
        };
        if !self.table.is_seated(rank) {
            // It has left, or was given up.
            return;
        }
        match up {
            Up::Hello { .. } => self.foreign(i),
            Up::Gather { number, bytes } => self.table.gather(rank, number, bytes),
            Up::Late { number, waited } => self.table.late(rank, number, Duration::from_millis(waited)),
            Up::End(told) => self.table.end(rank, told),
            Up::Leave { exchanges } => self.table.leave(rank, &exchanges),
        }
    }

    fn greet(&mut self, i: usize, up: Up) {
        let Up::Hello { cookie, rank, world } = up else {
            return self.foreign(i);
        };
        let refusal = if cookie == self.cookie {
            self.table.seat(rank as usize, world as usize)
        } else {
            Err(Error::new(
                Status::CommFailed,
                "another job meets here: its id, or the job that the launcher names, is a different one",
            ))
        };
        let peer = &mut self.peers[i];
        match refusal {
            Ok(()) => {
                peer.rank = Some(rank as usize);
                peer.tell(&Down::Seated.to_bytes());
                self.table.welcome();
            }
            Err(e) => {
                peer.tell(&Down::Ended(frame::Told::of(&e)).to_bytes());
                peer.last_words = true;
            }
        }
    }

    fn drop_strangers(&mut self) {
        let is_welcome = |p: &Peer| p.rank.is_some() || p.since.elapsed() < SILENCE;
        self.peers
            .retain(|p| is_welcome(p) && !(p.ended && p.rank.is_none()));
    }

    /// Hands out what the table has for the ranks, and forgets connections that are over.
    fn say(&mut self) {
        for (rank, bytes) in self.table.take_mail() {
            let to = |p: &&mut Peer| p.rank == Some(rank);
            if let Some(peer) = self.peers.iter_mut().find(to) {
                peer.tell(&bytes);
            }
        }
        for peer in &mut self.peers {
            peer.flush();
        }
        self.peers.retain(|p| !p.ended && (!p.last_words || p.has_more()));
    }
}

/// Small frames go out at once, and a host that fell silent is noticed.
pub(super) fn tune(stream: &TcpStream) {
    // What the system refuses here only makes things slower.
    let _ = stream.set_nodelay(true);
    let set = |level, option, value: libc::c_int| {
        // SAFETY: the option takes an int, and the descriptor is open.
        unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    };
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 10);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3);
}

/// Reads what is there without waiting; true at the end of the stream.
pub(super) fn read_some(stream: &mut TcpStream, into: &mut Vec<u8>) -> bool {
    let mut chunk = [0u8; 1 << 16];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return true,
            Ok(n) => into.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

/// Writes what goes without waiting; the number of bytes, or `None` when the connection is broken.
pub(super) fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> Option<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match stream.write(&bytes[done..]) {
            Ok(0) => return None,
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(done)
}
