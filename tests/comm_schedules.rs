//! Random schedules of exchanges against a sequential model.

mod comm_support;

use std::collections::{HashMap, VecDeque};

use comm_support::{Random, on_ranks, payload, start};
use magi_attn::comm::Communicator;
use magi_attn::comm::local::LocalComm;
use magi_attn::device::Stream;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Step {
    from: usize,
    to: usize,
    bytes: usize,
}

/// (peer, bytes) of one receive after the other.
type Received = Vec<(usize, Vec<u8>)>;

/// What each rank receives, in order, when one message after the other is sent and received: one queue for each
/// pair, receives taken in the order that each rank posts them.
fn model(steps: &[Step], size: usize) -> Vec<Received> {
    let mut queues: HashMap<(usize, usize), VecDeque<Vec<u8>>> = HashMap::new();
    let mut received = vec![Vec::new(); size];
    for (number, step) in steps.iter().enumerate() {
        let queue = queues.entry((step.from, step.to)).or_default();
        queue.push_back(payload(step.from, step.to, number, step.bytes));
    }
    for step in steps {
        let bytes = queues
            .get_mut(&(step.from, step.to))
            .and_then(VecDeque::pop_front);
        received[step.to].push((step.from, bytes.unwrap()));
    }
    received
}

/// Plays one rank: its operations in the order of `steps`, grouped into exchanges at random, tickets finished at
/// random times in random order.
///
/// No schedule of this kind can lock up: whatever an exchange waits for comes earlier in `steps`, or in the same
/// exchange, than anything that its sender could still be waiting for.
fn play(rank: usize, comm: &LocalComm, steps: &[Step], seed: usize) -> Received {
    let mut random = Random::of(&[seed, rank]);
    let mut open = Vec::new();
    let mut done: Vec<(usize, Received)> = Vec::new();
    let (mut sends, mut recvs, mut exchanges) = (Vec::new(), Vec::new(), 0);
    for (number, step) in steps.iter().enumerate() {
        if step.from == rank {
            sends.push((step.to, payload(step.from, step.to, number, step.bytes)));
        }
        if step.to == rank {
            recvs.push((step.from, vec![0; step.bytes]));
        }
        if random.below(4) == 0 || number + 1 == steps.len() {
            let mut recvs = std::mem::take(&mut recvs);
            let ticket = start(comm, &std::mem::take(&mut sends), &mut recvs).unwrap();
            open.push((exchanges, recvs, ticket));
            exchanges += 1;
        }
        while !open.is_empty() && random.below(5) == 0 {
            let (at, recvs, ticket) = open.swap_remove(random.below(open.len()));
            comm.finish(ticket, Stream::NULL).unwrap();
            done.push((at, recvs));
        }
    }
    random.shuffle(&mut open);
    for (at, recvs, ticket) in open {
        comm.finish(ticket, Stream::NULL).unwrap();
        done.push((at, recvs));
    }
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().flat_map(|(_, recvs)| recvs).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_schedule_delivers_what_the_model_does(
        size in 1usize..6,
        steps in prop::collection::vec((0usize..6, 0usize..6, 0usize..90), 1..80),
        seed in 0usize..1_000_000,
    ) {
        let steps: Vec<Step> = steps
            .into_iter()
            .map(|(from, to, bytes)| Step { from: from % size, to: to % size, bytes: bytes.saturating_sub(10) })
            .collect();
        let received = on_ranks(size, |rank, comm| play(rank, comm, &steps, seed));
        prop_assert!(received == model(&steps, size));
    }
}
