//! Ranks that meet over TCP, without CUDA: who comes, who does not, who is none of them, who is lost.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use magi_attn::comm::nccl::{Cookie, Hub, Invitation, Launch, Link, UniqueId, invite};
use magi_attn::types::{Error, Result, Status};

const COOKIE: Cookie = [5; 16];

fn local(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)]
}

fn invitation(port: u16, rank: usize, world: usize) -> Invitation {
    Invitation {
        places: local(port),
        named: None,
        cookie: COOKIE,
        rank,
        world,
    }
}

fn hub(world: usize) -> Hub {
    Hub::open(0, false, COOKIE, Some(world)).unwrap()
}

/// Joins `ranks` of `world` at once, each on a thread, and gives what came of it.
fn join(port: u16, ranks: &[usize], world: usize, timeout: Duration) -> Vec<Result<Arc<Link>>> {
    let threads: Vec<_> = ranks
        .iter()
        .map(|&rank| {
            let to = invitation(port, rank, world);
            thread::spawn(move || Link::join(&to, timeout).map(Arc::new))
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

fn all(hub: &Hub, world: usize) -> Vec<Arc<Link>> {
    let ranks: Vec<usize> = (0..world).collect();
    let links = join(hub.port(), &ranks, world, LONG);
    links.into_iter().map(|l| l.unwrap()).collect()
}

/// Waits until the link has ended, which must be long before any timeout.
fn verdict(link: &Link) -> Error {
    let begun = Instant::now();
    loop {
        if let Some(error) = link.verdict() {
            return error;
        }
        assert!(begun.elapsed() < LONG, "nothing happened");
        link.wait_for_news(Duration::from_millis(50));
    }
}

#[test]
fn all_gathers_of_any_length_keep_ranks_and_order() {
    let hub = hub(5);
    let links = all(&hub, 5);
    thread::scope(|scope| {
        for link in &links {
            scope.spawn(move || {
                for round in 0..20usize {
                    let part = |rank: usize| vec![rank as u8; rank * round * 997];
                    let got = link.gather(&part(link.rank()), LONG).unwrap();
                    assert_eq!(got, (0..5).map(part).collect::<Vec<_>>());
                }
            });
        }
    });
    for link in &links {
        link.leave(vec![0; 5]);
        link.close();
    }
    hub.wait(LONG);
    assert!(hub.is_done(), "the hub ends with its ranks");
}

#[test]
fn those_who_do_not_come_are_named() {
    let hub = hub(4);
    let begun = Instant::now();
    let results = join(hub.port(), &[0, 2], 4, SHORT);
    assert!(begun.elapsed() < LONG);
    let errors: Vec<Error> = results.into_iter().map(|r| r.unwrap_err()).collect();
    let late = errors.iter().find(|e| e.status == Status::Timeout).unwrap();
    assert!(
        late.message.contains("waited 300ms for ranks 1, 3 to come"),
        "{late}"
    );
    // The hub of that meeting is over: who comes later is told at once that nobody is there.
    let error = join(hub.port(), &[1], 4, SHORT).remove(0).unwrap_err();
    assert_eq!(error.status, Status::Timeout);
    assert!(error.message.contains("found no hub at 127.0.0.1"), "{error}");
}

#[test]
fn a_rank_may_come_before_its_hub_and_come_again() {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let early = thread::spawn(move || Link::join(&invitation(port, 1, 3), LONG));
    thread::sleep(Duration::from_millis(200));
    let hub = Hub::open(port, false, COOKIE, Some(3)).unwrap();
    // A rank whose process died before all had come: its seat is free again.
    let mut dead = TcpStream::connect(local(hub.port())[0]).unwrap();
    dead.write_all(&hello(COOKIE, 0, 3)).unwrap();
    let mut answer = [0; 5];
    dead.read_exact(&mut answer).unwrap();
    drop(dead);
    thread::sleep(Duration::from_millis(300));
    for link in join(port, &[0, 2], 3, LONG) {
        assert!(link.is_ok(), "{link:?}");
    }
    assert!(early.join().unwrap().is_ok());
}

/// A first frame, as a rank sends it.
fn hello(cookie: Cookie, rank: u32, world: u32) -> Vec<u8> {
    let mut body = vec![1];
    body.extend(b"magihub1");
    body.extend(cookie);
    body.extend(rank.to_le_bytes());
    body.extend(world.to_le_bytes());
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    frame
}

#[test]
fn strangers_are_sent_away_and_disturb_nobody() {
    let hub = hub(2);
    let place = local(hub.port())[0];
    let mut wrong_magic = hello(COOKIE, 0, 2);
    wrong_magic[7] ^= 1;
    let strangers: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        wrong_magic,
    ];
    for words in strangers {
        let mut stream = TcpStream::connect(place).unwrap();
        // It may be sent away while it still talks.
        let _ = stream.write_all(&words);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    }
    let mut silent: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(place).unwrap()).collect();
    silent[0].write_all(&[41, 0, 0]).unwrap();
    let links = all(&hub, 2);
    assert!(links.iter().all(|l| l.verdict().is_none()));

    // A rank of another job.
    let hub = Hub::open(0, false, [6; 16], Some(2)).unwrap();
    let error = join(hub.port(), &[1], 2, LONG).remove(0).unwrap_err();
    assert!(error.message.contains("another job meets here"), "{error}");
}

#[test]
fn ranks_that_do_not_fit_end_the_meeting_for_all() {
    for (rank, world, part) in [
        (1, 3, "world_size of 3, and others have 2"),
        (0, 2, "two processes or threads are rank 0"),
    ] {
        let hub = hub(2);
        let port = hub.port();
        let waiting = thread::spawn(move || Link::join(&invitation(port, 0, 2), LONG));
        // It must be the first.
        thread::sleep(Duration::from_millis(300));
        let second = join(port, &[rank], world, LONG).remove(0).unwrap_err();
        let first = waiting.join().unwrap().unwrap_err();
        for error in [first, second] {
            assert_eq!(error.status, Status::CommFailed);
            assert!(error.message.contains(part), "{error}");
        }
    }
}

#[test]
fn what_is_no_hub_is_not_taken_for_one() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    let error = Link::join(&invitation(port, 0, 1), SHORT).unwrap_err();
    assert_eq!(error.status, Status::Timeout);
    assert!(error.message.contains("found no hub"), "{error}");
    // One that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let to = invitation(silent.local_addr().unwrap().port(), 0, 1);
    assert_eq!(Link::join(&to, SHORT).unwrap_err().status, Status::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(5));
    // A name that nobody has.
    let nowhere = Invitation {
        places: Vec::new(),
        named: Some(("no-such-host.invalid".to_owned(), 1)),
        ..to
    };
    let error = Link::join(&nowhere, SHORT).unwrap_err();
    assert!(error.message.contains("no-such-host.invalid:1 within"), "{error}");
}

#[test]
fn a_silent_rank_is_a_timeout_that_names_it() {
    let hub = hub(3);
    let links = all(&hub, 3);
    let error = links[0].gather(b"x", SHORT).unwrap_err();
    assert_eq!(error.status, Status::Timeout);
    assert_eq!(
        error.message,
        "rank 0 waited 300ms for ranks 1, 2, which sent nothing"
    );
    for link in &links[1..] {
        let error = verdict(link);
        assert_eq!(error.status, Status::CommFailed);
        assert!(error.message.contains("rank 0 waited 300ms"), "{error}");
        assert_eq!(link.gather(b"x", LONG).unwrap_err(), error);
    }
}

#[test]
fn an_end_reaches_everybody_and_the_first_one_stands() {
    let hub = hub(3);
    let links = all(&hub, 3);
    let waiting = {
        let link = Arc::clone(&links[2]);
        thread::spawn(move || link.gather(b"", LONG))
    };
    let own = Error::new(Status::Aborted, "rank 1 aborted the communicator: enough");
    links[1].end(&own, &own);
    assert_eq!(waiting.join().unwrap().unwrap_err(), own);
    for link in &links {
        assert_eq!(verdict(link), own);
    }
    let other = Error::new(Status::CommFailed, "too late");
    links[0].end(&other, &other);
    assert_eq!(links[0].verdict(), Some(own));
}

#[test]
fn who_leaves_is_missed_only_by_those_who_wait() {
    let hub = hub(3);
    let links = all(&hub, 3);
    links[1].leave(vec![4, 0, 0]);
    links[1].close();
    let begun = Instant::now();
    while links[0].left(1).is_none() {
        assert!(begun.elapsed() < LONG);
        links[0].wait_for_news(Duration::from_millis(20));
    }
    assert_eq!((links[0].left(1), links[0].left(2)), (Some(4), None));
    assert_eq!(links[0].verdict(), None);
    let error = links[0].gather(b"", LONG).unwrap_err();
    assert_eq!(error.status, Status::CommFailed);
    assert!(error.message.contains("rank 1 left the communicator"), "{error}");
    assert_eq!(
        links[1].gather(b"", LONG).unwrap_err().status,
        Status::CommDestroyed
    );
}

/// Set for a process that is one rank: "rank,world,port", and then what it does.
const RANK: &str = "MEETING_RANK";

fn spawn(rank: usize, world: usize, port: u16, what: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_is_noticed_at_once", "--nocapture"])
        .env(RANK, format!("{rank},{world},{port},{what}"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a process of `spawn` does.
fn be_a_rank(told: &str) {
    let words: Vec<&str> = told.split(',').collect();
    let number = |i: usize| words[i].parse::<usize>().unwrap();
    let launch = Launch {
        rank: number(0),
        world: number(1),
        local_rank: None,
        host: "127.0.0.1".to_owned(),
        port: number(2) as u16,
        job: "test".to_owned(),
    };
    let (hub, to) = invite(&launch).unwrap();
    let link = Link::join(&to, LONG).unwrap();
    link.gather(&[launch.rank as u8], LONG).unwrap();
    if words[3] == "hang" {
        thread::sleep(LONG);
    }
    drop(link);
    drop(hub);
}

#[test]
fn a_killed_process_is_noticed_at_once() {
    if let Ok(told) = std::env::var(RANK) {
        return be_a_rank(&told);
    }
    // Rank 0 is here; of the others one is killed in the middle.
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let launch = |rank| Launch {
        rank,
        world: 3,
        local_rank: None,
        host: "127.0.0.1".to_owned(),
        port,
        job: "test".to_owned(),
    };
    let mut children = [spawn(1, 3, port, "hang"), spawn(2, 3, port, "hang")];
    let (_hub, to) = invite(&launch(0)).unwrap();
    let link = Link::join(&to, LONG).unwrap();
    assert_eq!(link.gather(&[0], LONG).unwrap(), [[0], [1], [2]]);
    let begun = Instant::now();
    children[1].kill().unwrap();
    let error = link.gather(&[0], LONG).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(error.status, Status::CommFailed);
    assert!(error.message.contains("rank 2 was lost"), "{error}");
    children[0].kill().unwrap();
    for child in &mut children {
        child.wait().unwrap();
    }
    link.leave(vec![0; 3]);
    link.close();

    // The same port again, at once, with the ranks that are left.
    let mut child = spawn(1, 2, port, "go");
    let two = Launch {
        world: 2,
        ..launch(0)
    };
    let (_hub, to) = invite(&two).unwrap();
    let link = Link::join(&to, LONG).unwrap();
    assert_eq!(link.gather(&[0], LONG).unwrap(), [[0], [1]]);
    assert!(child.wait().unwrap().success());
    drop(link);

    // Rank 0 with its hub is killed.
    let mut zero = spawn(0, 2, port, "hang");
    let one = Launch {
        world: 2,
        ..launch(1)
    };
    let link = Link::join(&invite(&one).unwrap().1, LONG).unwrap();
    link.gather(&[1], LONG).unwrap();
    zero.kill().unwrap();
    zero.wait().unwrap();
    let error = verdict(&link);
    assert!(error.message.contains("rank 1 lost its hub"), "{error}");
}

#[test]
fn an_id_is_enough_to_meet() {
    let id = UniqueId::create().unwrap();
    let bytes = id.to_bytes();
    let threads: Vec<_> = (0..3)
        .map(|rank| {
            thread::spawn(move || {
                let id = UniqueId::from_bytes(&bytes).unwrap();
                let to = Invitation {
                    places: id.places(),
                    named: None,
                    cookie: id.cookie,
                    rank,
                    world: 3,
                };
                Link::join(&to, LONG)
                    .unwrap()
                    .gather(&[rank as u8], LONG)
                    .unwrap()
            })
        })
        .collect();
    for t in threads {
        assert_eq!(t.join().unwrap(), [[0], [1], [2]]);
    }
}

#[test]
fn a_port_that_is_taken_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Hub::open(port, true, COOKIE, Some(2)).unwrap_err();
    assert_eq!(error.status, Status::ResourceExhausted);
    assert!(
        error.message.contains(&port.to_string()) && error.message.contains("another process"),
        "{error}"
    );
}
