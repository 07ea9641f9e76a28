//! What the local communicator delivers.

mod comm_support;

use std::sync::Arc;

use comm_support::{Random, exchange, on_ranks, payload, receive, send, start};
use magi_attn::comm::local::{LocalComm, create, run};
use magi_attn::comm::{Communicator, DEFAULT_TIMEOUT, MAX_TIMEOUT, RecvOp, SendOp};
use magi_attn::device::Stream;
use magi_attn::types::{Device, Status};

/// Length of message `number` of an all-to-all; some are 0.
fn length(from: usize, to: usize, number: usize, limit: usize) -> usize {
    Random::of(&[from, to, number])
        .below(limit)
        .saturating_sub(limit / 8)
}

fn all_to_all(rank: usize, comm: &LocalComm, round: usize, limit: usize) {
    let pairs = |f: &dyn Fn(usize, usize) -> (usize, Vec<u8>)| -> Vec<(usize, Vec<u8>)> {
        let mut list = Vec::new();
        for number in [2 * round, 2 * round + 1] {
            for peer in 0..comm.size() {
                list.push(f(peer, number));
            }
        }
        list
    };
    let bytes_from = |from, to, number| payload(from, to, number, length(from, to, number, limit));
    let sends = pairs(&|peer, number| (peer, bytes_from(rank, peer, number)));
    let want = pairs(&|peer, number| (peer, bytes_from(peer, rank, number)));
    let mut recvs: Vec<_> = want
        .iter()
        .map(|(peer, bytes)| (*peer, vec![0xEE; bytes.len()]))
        .collect();
    exchange(comm, &sends, &mut recvs).unwrap();
    assert!(recvs == want, "rank {rank} round {round}");
}

#[test]
fn all_to_all_on_any_number_of_ranks() {
    for (size, rounds, limit) in [
        (1, 3, 3000),
        (2, 20, 3000),
        (3, 20, 3000),
        (8, 5, 3000),
        (64, 2, 300),
    ] {
        on_ranks(size, |rank, comm| {
            assert_eq!((comm.rank(), comm.size()), (rank, size));
            for round in 0..rounds {
                all_to_all(rank, comm, round, limit);
            }
            assert_eq!(comm.async_error(), None);
        });
    }
}

#[test]
fn tickets_finish_in_any_order() {
    const SIZE: usize = 4;
    const TICKETS: usize = 60;
    on_ranks(SIZE, |rank, comm| {
        let mut open = Vec::new();
        for number in 0..TICKETS {
            let peer = (rank + 1 + number % (SIZE - 1)) % SIZE;
            let from = (rank + SIZE - 1 - number % (SIZE - 1)) % SIZE;
            let mut recvs = vec![(from, vec![0; 40 + number])];
            let sends = [(peer, payload(rank, peer, number, 40 + number))];
            let ticket = start(comm, &sends, &mut recvs).unwrap();
            open.push((number, recvs, ticket));
        }
        Random::of(&[rank]).shuffle(&mut open);
        for (number, recvs, ticket) in open {
            comm.finish(ticket, Stream::NULL).unwrap();
            let (from, bytes) = &recvs[0];
            assert!(
                *bytes == payload(*from, rank, number, 40 + number),
                "ticket {number}"
            );
        }
    });
}

#[test]
fn all_gather_of_unequal_lengths_beside_open_tickets() {
    for size in [1, 2, 5, 64] {
        on_ranks(size, |rank, comm| {
            let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
            for round in 0..6 {
                let mut recvs = [(previous, vec![0; 9])];
                let ticket = start(comm, &[(next, payload(rank, next, round, 9))], &mut recvs).unwrap();
                let bytes = |from| payload(from, 1000, round, length(from, 1000, round, 200));
                let all = comm.all_gather(&bytes(rank), Stream::NULL).unwrap();
                let want: Vec<_> = (0..size).map(bytes).collect();
                assert!(all == want, "rank {rank} of {size}, round {round}");
                comm.finish(ticket, Stream::NULL).unwrap();
                assert!(recvs[0].1 == payload(previous, rank, round, 9));
            }
        });
    }
}

#[test]
fn sources_may_be_reused_when_start_returns() {
    on_ranks(2, |rank, comm| {
        if rank == 0 {
            let mut source = vec![5u8; 100_000];
            let op = SendOp {
                peer: 1,
                data: source.as_ptr(),
                bytes: source.len(),
            };
            // SAFETY: `source` is readable while `start` runs, which is all that the local communicator needs.
            let ticket = unsafe { comm.start(&[op], &[], Stream::NULL) }.unwrap();
            source.fill(6);
            send(comm, 1, b"changed").unwrap();
            comm.finish(ticket, Stream::NULL).unwrap();
        } else {
            let mut recvs = [(0, vec![0; 100_000]), (0, vec![0; 7])];
            exchange(comm, &[], &mut recvs).unwrap();
            assert!(recvs[0].1.iter().all(|&b| b == 5));
            assert_eq!(recvs[1].1, b"changed");
        }
    });
}

#[test]
fn a_dropped_ticket_writes_nothing_and_keeps_the_order() {
    on_ranks(2, |rank, comm| {
        let peer = 1 - rank;
        let mut given_up = [(peer, vec![7; 3])];
        drop(start(comm, &[(peer, vec![1; 3])], &mut given_up).unwrap());
        let mut kept = [(peer, vec![0; 2])];
        exchange(comm, &[(peer, vec![2; 2])], &mut kept).unwrap();
        assert_eq!(kept[0].1, [2, 2]);
        assert_eq!(given_up[0].1, [7; 3]);
    });
}

#[test]
fn argument_errors_send_nothing_and_can_be_repeated() {
    let comms = create(2).unwrap();
    let stranger = &create(2).unwrap()[0];
    let error = start(&comms[0], &[(1, vec![1]), (2, vec![1])], &mut []).unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument);
    assert!(error.message.contains("rank 2 of 2"), "{error}");
    let error = start(&comms[0], &[(1, vec![1])], &mut [(9, vec![])]).unwrap_err();
    assert!(error.message.contains("receive peer is rank 9"), "{error}");

    let null = RecvOp {
        peer: 1,
        data: std::ptr::null_mut(),
        bytes: 4,
    };
    // SAFETY: nothing is read or written: the call is refused, which is what is tested.
    let error = unsafe { comms[0].start(&[], &[null], Stream::NULL) }.unwrap_err();
    assert_eq!(error.status, Status::NullPointer);

    let ticket = start(stranger, &[], &mut []).unwrap();
    let error = comms[0].finish(ticket, Stream::NULL).unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument);
    let ticket = start(&comms[1], &[], &mut []).unwrap();
    assert!(comms[0].finish(ticket, Stream::NULL).is_err(), "another rank's");

    let empty = SendOp {
        peer: 1,
        data: std::ptr::null(),
        bytes: 0,
    };
    // SAFETY: a send of 0 bytes is read nowhere.
    let ticket = unsafe { comms[0].start(&[empty], &[], Stream::NULL) }.unwrap();
    comms[0].finish(ticket, Stream::NULL).unwrap();
    send(&comms[0], 1, b"good").unwrap();
    assert_eq!(receive(&comms[1], 0, 0).unwrap(), b"");
    assert_eq!(receive(&comms[1], 0, 4).unwrap(), b"good");
}

#[test]
fn create_and_settings() {
    for size in [0, 65, usize::MAX] {
        let error = create(size).unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument);
        assert!(
            error.message.contains(&size.to_string()) && error.message.contains("1 to 64"),
            "{error}"
        );
        assert_eq!(
            run(size, |_, _| Ok(())).unwrap_err().status,
            Status::InvalidArgument
        );
    }
    let comms = create(64).unwrap();
    assert_eq!(comms.len(), 64);
    assert_eq!(comms[63].device(), Device::Cpu);
    assert_eq!(comms[0].timeout(), DEFAULT_TIMEOUT);
    comms[0].set_timeout(std::time::Duration::MAX);
    assert_eq!(comms[0].timeout(), MAX_TIMEOUT);
    assert_eq!(comms[1].timeout(), DEFAULT_TIMEOUT, "every rank has its own");
}

#[test]
fn run_calls_every_rank_once_and_together() {
    let seen = parking_lot::Mutex::new(Vec::new());
    run(9, |rank, comm: Arc<LocalComm>| {
        comm.all_gather(&[], Stream::NULL)?;
        seen.lock().push((rank, comm.rank()));
        Ok(())
    })
    .unwrap();
    let mut seen = seen.into_inner();
    seen.sort_unstable();
    assert_eq!(seen, (0..9).map(|r| (r, r)).collect::<Vec<_>>());
}

#[test]
fn parts_are_communicators_of_their_own() {
    run(4, |rank, comm| {
        for bad in [vec![], vec![(rank + 1) % 4], vec![rank, rank], vec![rank, 4]] {
            let error = comm.split(&bad).err().unwrap();
            assert_eq!(error.status, Status::InvalidArgument, "{bad:?}");
        }
        comm.set_timeout(std::time::Duration::from_secs(7));
        // Twice, in an order of their own: the second is none of the first's.
        let members = if rank % 2 == 0 { [2, 0] } else { [1, 3] };
        let (first, second) = (comm.split(&members)?, comm.split(&members)?);
        assert_eq!(first.timeout(), std::time::Duration::from_secs(7));
        let place = members.iter().position(|&m| m == rank).unwrap();
        assert_eq!((first.rank(), first.size()), (place, 2));
        let all = second.all_gather(&[rank as u8], Stream::NULL)?;
        assert_eq!(all, members.map(|m| vec![m as u8]));
        let all = first.all_gather(&[10 + rank as u8], Stream::NULL)?;
        assert_eq!(all, members.map(|m| vec![10 + m as u8]));
        // The end of a part is not the end of the whole. Nobody is in the part's call any more.
        second.all_gather(b"", Stream::NULL)?;
        if place == 0 {
            first.abort("a test");
        }
        assert_eq!(
            first.all_gather(b"", Stream::NULL).unwrap_err().status,
            Status::Aborted
        );
        second.all_gather(b"", Stream::NULL)?;
        comm.all_gather(b"", Stream::NULL).map(drop)
    })
    .unwrap();
}
