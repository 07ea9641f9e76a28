//! group_cast and group_reduce on random transfers against a sequential model.

mod common_backend;
mod common_reference;

use std::sync::Mutex;

use common_backend::{Buffer, Layout, Random};
use common_reference::round;
use magi_attn::backend::CpuBackend;
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{ReduceOp, group_cast, group_reduce};
use magi_attn::types::{DType, Piece, Range, Transfer};
use proptest::prelude::*;

/// Which rows of which owner each rank fetches.
#[derive(Clone, Debug)]
struct Needs {
    world: usize,
    /// Rows of each rank's local tensor.
    rows: Vec<i64>,
    /// `[rank][owner]`: disjoint ascending runs of the owner's rows.
    fetched: Vec<Vec<Vec<Range>>>,
}

impl Needs {
    fn new(world: usize, seed: u64) -> Needs {
        let mut r = Random(seed);
        let rows: Vec<i64> = (0..world).map(|_| r.below(13)).collect();
        let mut runs = |owner: usize| {
            let (mut at, mut runs) = (r.below(4), Vec::new());
            while at < rows[owner] {
                let end = (at + 1 + r.below(4)).min(rows[owner]);
                runs.push(Range::new(at, end));
                at = end + 1 + r.below(6);
            }
            runs
        };
        let of = |rank: usize, owner: usize, runs: Vec<Range>| if rank == owner { Vec::new() } else { runs };
        let fetched = (0..world)
            .map(|rank| (0..world).map(|owner| of(rank, owner, runs(owner))).collect())
            .collect();
        Needs { world, rows, fetched }
    }

    /// What `rank` sends and receives; receive buffers hold one owner after the other.
    fn transfer(&self, rank: usize) -> Transfer {
        let mut t = Transfer::default();
        for peer in 0..self.world {
            for &rows in &self.fetched[peer][rank] {
                t.sends.push(Piece {
                    peer: peer as u32,
                    rows,
                });
            }
            for run in &self.fetched[rank][peer] {
                let rows = Range::new(t.recv_rows, t.recv_rows + run.len());
                t.recvs.push(Piece {
                    peer: peer as u32,
                    rows,
                });
                t.recv_rows = rows.end;
            }
        }
        t
    }

    /// (owner, row) of every row that `rank` receives.
    fn sources(&self, rank: usize) -> Vec<(usize, i64)> {
        let of = |owner: usize| {
            self.fetched[rank][owner]
                .iter()
                .flat_map(move |r| (r.start..r.end).map(move |i| (owner, i)))
        };
        (0..self.world).flat_map(of).collect()
    }
}

/// Elements of a row, of each of two tensors.
const WIDTHS: [i64; 2] = [3, 5];

/// Element of tensor `which`, the same for whoever computes it.
fn value(kind: u64, rank: usize, which: usize, i: i64, dtype: DType) -> f64 {
    round(
        dtype,
        Random(kind * 1_000_003 + (rank * 2 + which) as u64 * 10_007 + i as u64).normal(),
    )
}

fn tensor(kind: u64, rank: usize, which: usize, rows: i64, dtype: DType) -> Buffer {
    let values: Vec<f64> = (0..rows * WIDTHS[which])
        .map(|i| value(kind, rank, which, i, dtype))
        .collect();
    Buffer::new(&values, &[rows, WIDTHS[which]], dtype, Layout::Dense)
}

fn check_cast(needs: &Needs, dtype: DType) {
    local::run(needs.world, |rank, comm| {
        let transfer = needs.transfer(rank);
        let mut local = [0, 1].map(|w| tensor(1, rank, w, needs.rows[rank], dtype));
        let mut received =
            [0, 1].map(|w| Buffer::poisoned(&[transfer.recv_rows, WIDTHS[w]], dtype, Layout::Dense));
        let (from, to) = (
            local.each_mut().map(Buffer::tensor),
            received.each_mut().map(Buffer::tensor),
        );
        let ticket = group_cast(&*comm, &transfer, &from, &to, Stream::NULL)?;
        magi_attn::comm::Communicator::finish(&*comm, ticket, Stream::NULL)?;
        for w in 0..2 {
            let of = |(owner, row): (usize, i64)| {
                (0..WIDTHS[w]).map(move |e| value(1, owner, w, row * WIDTHS[w] + e, dtype))
            };
            let want: Vec<f64> = needs.sources(rank).into_iter().flat_map(of).collect();
            assert_eq!(received[w].values(), want, "rank {rank}");
        }
        Ok(())
    })
    .unwrap();
}

/// Contributions to row `row` of `owner` by ascending rank: (rank, row of its receive buffer).
fn contributions(needs: &Needs, owner: usize, row: i64) -> Vec<(usize, i64)> {
    let of = |rank: usize| {
        let found = needs.sources(rank).iter().position(|&s| s == (owner, row));
        found.map(|i| (rank, i as i64))
    };
    (0..needs.world).filter_map(of).collect()
}

/// The local tensors of all ranks after a reduction in `wire`, accumulated in `acc`.
fn reduce(needs: &Needs, op: ReduceOp, wire: DType, acc: DType) -> Vec<[Vec<f64>; 2]> {
    let results = Mutex::new(vec![[Vec::new(), Vec::new()]; needs.world]);
    local::run(needs.world, |rank, comm| {
        let transfer = needs.transfer(rank);
        let mut partial = [0, 1].map(|w| tensor(2, rank, w, transfer.recv_rows, wire));
        let mut staging =
            [0, 1].map(|w| Buffer::poisoned(&[transfer.send_rows(), WIDTHS[w]], wire, Layout::Dense));
        let mut local = [0, 1].map(|w| tensor(3, rank, w, needs.rows[rank], acc));
        let pending = group_reduce(
            &*comm,
            &transfer,
            op,
            &partial.each_mut().map(Buffer::tensor),
            &staging.each_mut().map(Buffer::tensor),
            &local.each_mut().map(Buffer::tensor),
            Stream::NULL,
        )?;
        pending.finish(&*comm, &CpuBackend::new(), Stream::NULL)?;
        results.lock().unwrap()[rank] = local.each_ref().map(Buffer::values);
        Ok(())
    })
    .unwrap();
    results.into_inner().unwrap()
}

fn check_sums(needs: &Needs, op: ReduceOp, wire: DType, acc: DType) {
    let have = reduce(needs, op, wire, acc);
    for (owner, have) in have.iter().enumerate() {
        for w in 0..2 {
            let mut want = Vec::new();
            for row in 0..needs.rows[owner] {
                let others = contributions(needs, owner, row);
                for e in 0..WIDTHS[w] {
                    let own = value(3, owner, w, row * WIDTHS[w] + e, acc);
                    let add = |sum, &(rank, at): &(usize, i64)| {
                        round(acc, sum + value(2, rank, w, at * WIDTHS[w] + e, wire))
                    };
                    let sum = others.iter().fold(own, add);
                    let by = if op == ReduceOp::Avg { others.len() + 1 } else { 1 };
                    want.push(round(acc, sum / by as f64));
                }
            }
            assert_eq!(have[w], want, "{op:?}, owner {owner}, tensor {w}");
        }
    }
    assert_eq!(have, reduce(needs, op, wire, acc), "another run gives other bits");
}

/// (out, lse) pairs of `heads` heads; every fifth lse is -inf, and its out NaN where it must not be read.
fn pair(kind: u64, rank: usize, rows: i64, heads: i64, width: i64) -> (Vec<f64>, Vec<f64>) {
    let mut r = Random(kind * 77 + rank as u64);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for _ in 0..rows * heads {
        let none = r.below(5) == 0;
        lse.push(if none { f64::NEG_INFINITY } else { 3.0 * r.normal() });
        let nothing = if kind == 2 { f64::NAN } else { 0.0 };
        (0..width).for_each(|_| out.push(if none { nothing } else { r.normal() }));
    }
    (out, lse)
}

fn check_lse(needs: &Needs) {
    let (heads, width) = (2, 4);
    let run = || {
        let results = Mutex::new(vec![(Vec::new(), Vec::new()); needs.world]);
        local::run(needs.world, |rank, comm| {
            let transfer = needs.transfer(rank);
            let buffers = |(out, lse): (Vec<f64>, Vec<f64>), rows: i64| {
                [
                    Buffer::new(&out, &[rows, heads, width], DType::F64, Layout::Dense),
                    Buffer::new(&lse, &[rows, heads], DType::F64, Layout::Dense),
                ]
            };
            let (sent, rows) = (transfer.send_rows(), needs.rows[rank]);
            let mut partial = buffers(
                pair(2, rank, transfer.recv_rows, heads, width),
                transfer.recv_rows,
            );
            let mut staging = [vec![sent, heads, width], vec![sent, heads]]
                .map(|s| Buffer::poisoned(&s, DType::F64, Layout::Dense));
            let mut local = buffers(pair(3, rank, rows, heads, width), rows);
            let pending = group_reduce(
                &*comm,
                &transfer,
                ReduceOp::Lse,
                &partial.each_mut().map(Buffer::tensor),
                &staging.each_mut().map(Buffer::tensor),
                &local.each_mut().map(Buffer::tensor),
                Stream::NULL,
            )?;
            pending.finish(&*comm, &CpuBackend::new(), Stream::NULL)?;
            results.lock().unwrap()[rank] = (local[0].values(), local[1].values());
            Ok(())
        })
        .unwrap();
        results.into_inner().unwrap()
    };
    let have = run();
    let all: Vec<_> = (0..needs.world)
        .map(|r| pair(2, r, needs.transfer(r).recv_rows, heads, width))
        .collect();
    for (owner, have) in have.iter().enumerate() {
        let own = pair(3, owner, needs.rows[owner], heads, width);
        for row in 0..needs.rows[owner] {
            for h in 0..heads {
                let mut parts = vec![(&own, (row * heads + h) as usize)];
                parts.extend(
                    contributions(needs, owner, row)
                        .iter()
                        .map(|&(r, at)| (&all[r], (at * heads + h) as usize)),
                );
                let weight: f64 = parts.iter().map(|(p, i)| p.1[*i].exp()).sum();
                let at = (row * heads + h) as usize;
                let lse = have.1[at];
                assert!(
                    lse == weight.ln() || (lse - weight.ln()).abs() < 1e-12,
                    "lse {lse}, {}",
                    weight.ln()
                );
                for e in 0..width as usize {
                    let seen = parts.iter().filter(|(p, i)| p.1[*i] != f64::NEG_INFINITY);
                    let sum: f64 = seen
                        .map(|(p, i)| p.1[*i].exp() * p.0[i * width as usize + e])
                        .sum();
                    let want = if weight == 0.0 { 0.0 } else { sum / weight };
                    let out = have.0[at * width as usize + e];
                    assert!((out - want).abs() < 1e-12, "out {out}, {want}");
                }
            }
        }
    }
    assert_eq!(have, run(), "another run gives other bits");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_the_sequential_model(world in 1..=8usize, seed in any::<u64>()) {
        let needs = Needs::new(world, seed);
        check_cast(&needs, DType::Bf16);
        check_sums(&needs, ReduceOp::Sum, DType::F64, DType::F64);
        check_sums(&needs, ReduceOp::Sum, DType::Bf16, DType::F32);
        check_sums(&needs, ReduceOp::Avg, DType::F32, DType::F32);
        check_lse(&needs);
    }
}
