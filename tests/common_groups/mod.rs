//! Random lists of a group, and what its calls on tensors must come to, one element at a time.

#![allow(dead_code)] // Every test program includes all of it and uses its own part.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::common_backend::{Layout, Random};
use crate::common_ranks::{Host, Place};
use crate::common_reference::round;
use magi_attn::comm::local;
use magi_attn::runtime::{Context, GroupPlan, GroupRequest, GroupTensor, ReduceOp, group_call};
use magi_attn::types::{DType, Mesh, Piece, Range, Result, Tensor};

/// The lists of all ranks.
#[derive(Clone, Debug)]
pub struct Lists {
    pub world: usize,
    pub local_rows: Vec<i64>,
    pub received_rows: Vec<i64>,
    pub sends: Vec<Vec<Piece>>,
    pub receives: Vec<Vec<Piece>>,
    /// Rows go over a mesh of hosts.
    pub mesh: Option<Mesh>,
}

impl Lists {
    /// As `random`, over a mesh.
    pub fn random_over(mesh: Mesh, r: &mut Random) -> Lists {
        let lists = Lists::random(mesh.inter * mesh.intra, r);
        Lists {
            mesh: Some(mesh),
            ..lists
        }
    }

    /// Rows that go to any ranks, their own too, any number of times; what comes in is put in any order, with gaps.
    pub fn random(world: usize, r: &mut Random) -> Lists {
        let mut lists = Lists {
            world,
            local_rows: (0..world).map(|_| r.below(9)).collect(),
            received_rows: vec![0; world],
            sends: vec![Vec::new(); world],
            receives: vec![Vec::new(); world],
            mesh: None,
        };
        // Of so many small pieces between two ranks that they travel packed, now and then.
        let most = [2 * world as i64 + 2, 24 * world as i64][usize::from(r.below(3) == 0)];
        for rank in 0..world {
            for _ in 0..r.below(most) {
                let rows = lists.local_rows[rank];
                let start = r.below(rows + 1);
                let end = start + r.below((rows - start).min(4) + 1);
                lists.sends[rank].push(Piece {
                    peer: r.below(world as i64) as u32,
                    rows: Range::new(start, end),
                });
            }
        }
        for rank in 0..world {
            let (receives, rows) = lists.incoming(rank, r);
            (lists.receives[rank], lists.received_rows[rank]) = (receives, rows);
        }
        lists
    }

    /// Where `rank` puts what comes in, and how many rows it has for that.
    fn incoming(&self, rank: usize, r: &mut Random) -> (Vec<Piece>, i64) {
        let mut pieces: Vec<Piece> = Vec::new();
        for (source, sends) in self.sends.iter().enumerate() {
            let lengths = sends.iter().filter(|p| p.peer as usize == rank);
            // Pieces without rows count on neither side.
            for length in lengths.map(|p| p.rows.len()).filter(|&n| n > 0) {
                pieces.push(Piece {
                    peer: source as u32,
                    rows: Range::new(0, length),
                });
            }
        }
        let mut places: Vec<usize> = (0..pieces.len()).collect();
        shuffle(&mut places, r);
        let mut at = r.below(3);
        for i in places {
            pieces[i].rows = pieces[i].rows.shift(at);
            at = pieces[i].rows.end + r.below(2) * r.below(3);
        }
        // Sources in any order, the pieces of each in theirs; a piece without rows among them.
        let mut order: Vec<u32> = (0..self.world as u32).collect();
        shuffle(&mut order, r);
        pieces.sort_by_key(|p| order[p.peer as usize]);
        pieces.push(Piece {
            peer: order[0],
            rows: Range::new(at, at),
        });
        (pieces, at)
    }

    pub fn request(&self, rank: usize, tensors: &[GroupTensor], reduce: bool, strided: bool) -> GroupRequest {
        GroupRequest {
            local_rows: self.local_rows[rank],
            received_rows: self.received_rows[rank],
            sends: self.sends[rank].clone(),
            receives: self.receives[rank].clone(),
            tensors: tensors.to_vec(),
            reduce,
            strided,
            two_level: self.mesh.is_some(),
        }
    }

    /// A plan of the lists on one rank.
    pub fn plan(
        &self,
        context: &Arc<Context>,
        tensors: &[GroupTensor],
        [reduce, strided]: [bool; 2],
    ) -> Result<GroupPlan> {
        if let Some(mesh) = self.mesh {
            context.set_mesh(mesh.inter, mesh.intra)?;
        }
        let request = self.request(context.rank(), tensors, reduce, strided);
        GroupPlan::create(context, request, None)
    }

    /// Whether rows pass through gateways.
    fn is_relayed(&self) -> bool {
        self.mesh.is_some_and(|m| m.inter > 1 && m.intra > 1)
    }

    /// Whether more than eight pieces go between `rank` and another.
    fn may_be_packed(&self, rank: usize) -> bool {
        let many = |list: &[Piece]| {
            (0..self.world).any(|peer| list.iter().filter(|p| p.peer as usize == peer).count() > 8)
        };
        many(&self.sends[rank]) || many(&self.receives[rank])
    }

    /// (rank, its received row) of every copy of a local row, in the order in which a reduction adds them.
    pub fn copies(&self, owner: usize, row: i64) -> Vec<(usize, i64)> {
        let mut found = Vec::new();
        for rank in 0..self.world {
            let sent = self.sends[owner].iter().filter(|p| p.peer as usize == rank);
            let put = self.receives[rank].iter().filter(|p| p.peer as usize == owner);
            let pairs = sent
                .filter(|p| !p.rows.is_empty())
                .zip(put.filter(|p| !p.rows.is_empty()));
            for (from, to) in pairs.filter(|(from, _)| from.rows.contains(row)) {
                found.push((rank, to.rows.start + row - from.rows.start));
            }
        }
        found
    }

    /// The same by what is added at once: of another host, over a mesh, all that its ranks have.
    pub fn sources(&self, owner: usize, row: i64) -> Vec<Vec<(usize, i64)>> {
        let mut found: Vec<Vec<(usize, i64)>> = Vec::new();
        for copy in self.copies(owner, row) {
            let together = |last: &[(usize, i64)]| {
                let host = |rank| self.mesh.map(|m| m.host(rank));
                self.is_relayed() && host(last[0].0) == host(copy.0) && host(copy.0) != host(owner)
            };
            match found.last_mut().filter(|last| together(last)) {
                Some(last) => last.push(copy),
                None => found.push(vec![copy]),
            }
        }
        found
    }
}

pub fn shuffle<T>(items: &mut [T], r: &mut Random) {
    for i in (1..items.len()).rev() {
        items.swap(i, r.below(i as i64 + 1) as usize);
    }
}

/// Heads and widths of the two tensors of a group.
pub const ROWS: [[i64; 2]; 2] = [[2, 3], [1, 5]];

pub fn elements(which: usize) -> i64 {
    ROWS[which][0] * ROWS[which][1]
}

pub fn tensors_of(dtypes: [DType; 2]) -> [GroupTensor; 2] {
    [0, 1].map(|w| GroupTensor {
        row_elements: elements(w),
        dtype: dtypes[w],
    })
}

/// Element `i` of tensor `which` of `rank`, the same for whoever asks.
pub fn value(kind: u64, rank: usize, which: usize, i: i64, dtype: DType) -> f64 {
    let seed = kind * 1_000_003 + (rank * 2 + which) as u64 * 10_007 + i as u64;
    round(dtype, Random(seed).normal())
}

/// Tensor `which` of `rank`.
pub fn filled<P: Place>(
    place: &P,
    kind: u64,
    rank: usize,
    which: usize,
    rows: i64,
    (dtype, layout): (DType, Layout),
) -> P::Held {
    let values: Vec<f64> = (0..rows * elements(which))
        .map(|i| value(kind, rank, which, i, dtype))
        .collect();
    let [heads, width] = ROWS[which];
    place.values(&values, &[rows, heads, width], dtype, layout)
}

fn tensors<P: Place>(place: &P, held: &mut [P::Held; 2]) -> [Tensor; 2] {
    held.each_mut().map(|h| place.tensor(h))
}

fn values<P: Place>(place: &P, held: &mut [P::Held; 2]) -> [Vec<f64>; 2] {
    held.each_mut().map(|h| place.read(h))
}

/// Where groups meet.
pub trait Ranks {
    type Place: Place;

    /// Calls `f` for each of so many ranks, over one communicator. What they give, by rank.
    fn each<R: Send>(
        &self,
        world: usize,
        f: impl Fn(&Self::Place, &Arc<Context>) -> Result<R> + Sync,
    ) -> Vec<R>;
}

/// Threads of this process, in host memory.
pub struct Local;

impl Ranks for Local {
    type Place = Host;

    fn each<R: Send>(&self, world: usize, f: impl Fn(&Host, &Arc<Context>) -> Result<R> + Sync) -> Vec<R> {
        let found: Mutex<BTreeMap<usize, R>> = Mutex::default();
        local::run(world, |rank, comm| {
            let one = f(&Host, &Context::new(comm))?;
            found.lock().unwrap().insert(rank, one);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
        found.into_inner().unwrap().into_values().collect()
    }
}

pub const LAYOUTS: [Layout; 4] = [
    Layout::Dense,
    Layout::Padded,
    Layout::HeadsFirst,
    Layout::Backwards,
];

/// How the tensors of one case lie.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dtypes: [DType; 2],
    pub layout: Layout,
}

pub fn check_cast(ranks: &impl Ranks, lists: &Lists, shape: Shape) {
    ranks.each(lists.world, |place, context| {
        let rank = context.rank();
        let strided = shape.layout != Layout::Dense;
        let plan = lists.plan(context, &tensors_of(shape.dtypes), [false, strided])?;
        if !lists.is_relayed() {
            assert!(strided || lists.may_be_packed(rank) || plan.workspace_bytes()? == 0);
        }
        for _ in 0..2 {
            let of = |kind, w: usize, rows: &[i64]| {
                filled(place, kind, rank, w, rows[rank], (shape.dtypes[w], shape.layout))
            };
            let mut local = [0, 1].map(|w| of(1, w, &lists.local_rows));
            let mut received = [0, 1].map(|w| of(9, w, &lists.received_rows));
            let (from, to) = (tensors(place, &mut local), tensors(place, &mut received));
            group_call::cast(&plan, &from, &to, place.stream())?;
            for (w, received) in values(place, &mut received).into_iter().enumerate() {
                assert_eq!(received, expected(lists, rank, w, shape.dtypes[w]));
            }
        }
        Ok(())
    });
}

/// What a cast leaves in tensor `which` of `rank`: rows that nobody sends keep what they held.
pub fn expected(lists: &Lists, rank: usize, which: usize, dtype: DType) -> Vec<f64> {
    let n = elements(which);
    let mut all: Vec<f64> = (0..lists.received_rows[rank] * n)
        .map(|i| value(9, rank, which, i, dtype))
        .collect();
    for owner in 0..lists.world {
        for row in 0..lists.local_rows[owner] {
            for (_, to) in lists.copies(owner, row).into_iter().filter(|&(r, _)| r == rank) {
                for e in 0..n {
                    all[(to * n + e) as usize] = value(1, owner, which, row * n + e, dtype);
                }
            }
        }
    }
    all
}

/// How one reduction is called.
#[derive(Clone, Copy, Debug)]
pub struct Reduction {
    pub op: ReduceOp,
    pub accumulate: bool,
    /// Results in the accumulator type.
    pub wide: bool,
}

fn reduce(ranks: &impl Ranks, lists: &Lists, shape: Shape, how: Reduction) -> Vec<[Vec<f64>; 2]> {
    ranks.each(lists.world, |place, context| {
        let rank = context.rank();
        let strided = shape.layout != Layout::Dense;
        let plan = lists.plan(context, &tensors_of(shape.dtypes), [true, strided])?;
        plan.prepare(place.stream())?;
        let (received, rows) = (lists.received_rows[rank], lists.local_rows[rank]);
        let mut partial =
            [0, 1].map(|w| filled(place, 2, rank, w, received, (shape.dtypes[w], shape.layout)));
        let mut local = [0, 1].map(|w| {
            filled(
                place,
                3,
                rank,
                w,
                rows,
                (result_dtype(shape, how, w), shape.layout),
            )
        });
        let (from, to) = (tensors(place, &mut partial), tensors(place, &mut local));
        group_call::reduce(&plan, how.op, &from, how.accumulate, &to, place.stream())?;
        let found = values(place, &mut local);
        // Read in the order of the stream: they go when that is done.
        values(place, &mut partial);
        Ok(found)
    })
}

pub fn result_dtype(shape: Shape, how: Reduction, which: usize) -> DType {
    let dtype = shape.dtypes[which];
    if how.wide { dtype.accumulator() } else { dtype }
}

pub fn check_sums(ranks: &impl Ranks, lists: &Lists, shape: Shape, how: Reduction) {
    let have = reduce(ranks, lists, shape, how);
    for (owner, have) in have.iter().enumerate() {
        for (w, have) in have.iter().enumerate() {
            let (n, dtype) = (elements(w), shape.dtypes[w]);
            let (acc, result) = (dtype.accumulator(), result_dtype(shape, how, w));
            let mut want = Vec::new();
            for row in 0..lists.local_rows[owner] {
                let sources = lists.sources(owner, row);
                let count = sources.iter().map(Vec::len).sum::<usize>() as i64 + i64::from(how.accumulate);
                for e in 0..n {
                    let held = value(3, owner, w, row * n + e, result);
                    let first = if how.accumulate { held } else { 0.0 };
                    let add = |sum, of: &[(usize, i64)]| {
                        of.iter().fold(sum, |sum, &(rank, at)| {
                            round(acc, sum + value(2, rank, w, at * n + e, dtype))
                        })
                    };
                    let mut sum = sources.iter().fold(first, |sum, of| match &of[..] {
                        [_] => add(sum, of),
                        together => round(acc, sum + add(0.0, together)),
                    });
                    if how.op == ReduceOp::Avg && count > 1 {
                        sum = round(acc, sum / count as f64);
                    }
                    want.push(round(result, sum));
                }
            }
            assert_eq!(have, &want, "{how:?}, owner {owner}, tensor {w}");
        }
    }
    assert_eq!(
        have,
        reduce(ranks, lists, shape, how),
        "another run gives other bits"
    );
}

pub const HEADS: i64 = 2;
pub const WIDTH: i64 = 3;

/// out and lse of `rows` rows; some lse are -inf, and with `kind` 2 the out of those is NaN, which must not be read.
pub fn pair(kind: u64, rank: usize, rows: i64, dtype: DType) -> [Vec<f64>; 2] {
    let mut r = Random(kind * 77 + rank as u64);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for _ in 0..rows * HEADS {
        let none = r.below(4) == 0;
        lse.push(if none {
            f64::NEG_INFINITY
        } else {
            round(dtype.accumulator(), 3.0 * r.normal())
        });
        let nothing = if kind == 2 { f64::NAN } else { 0.0 };
        (0..WIDTH).for_each(|_| out.push(if none { nothing } else { round(dtype, r.normal()) }));
    }
    [out, lse]
}

fn held_pair<P: Place>(place: &P, [out, lse]: &[Vec<f64>; 2], rows: i64, dtype: DType) -> [P::Held; 2] {
    [
        place.values(out, &[rows, HEADS, WIDTH], dtype, Layout::Dense),
        place.values(lse, &[rows, HEADS], dtype.accumulator(), Layout::Dense),
    ]
}

fn merge(ranks: &impl Ranks, lists: &Lists, dtype: DType, accumulate: bool) -> Vec<[Vec<f64>; 2]> {
    ranks.each(lists.world, |place, context| {
        let rank = context.rank();
        let of = |row_elements, dtype| GroupTensor { row_elements, dtype };
        let tensors_of = [of(HEADS * WIDTH, dtype), of(HEADS, dtype.accumulator())];
        let plan = lists.plan(context, &tensors_of, [true, false])?;
        let (received, rows) = (lists.received_rows[rank], lists.local_rows[rank]);
        let mut partial = held_pair(place, &pair(2, rank, received, dtype), received, dtype);
        let mut local = held_pair(place, &pair(3, rank, rows, dtype), rows, dtype);
        let (from, to) = (tensors(place, &mut partial), tensors(place, &mut local));
        group_call::reduce(&plan, ReduceOp::Lse, &from, accumulate, &to, place.stream())?;
        Ok(values(place, &mut local))
    })
}

pub fn check_lse(ranks: &impl Ranks, lists: &Lists, dtype: DType, accumulate: bool, bound: f64) {
    let have = merge(ranks, lists, dtype, accumulate);
    let partial: Vec<_> = (0..lists.world)
        .map(|r| pair(2, r, lists.received_rows[r], dtype))
        .collect();
    for (owner, have) in have.iter().enumerate() {
        let own = pair(3, owner, lists.local_rows[owner], dtype);
        for row in 0..lists.local_rows[owner] {
            for h in 0..HEADS {
                let at = (row * HEADS + h) as usize;
                let mut parts = if accumulate { vec![(&own, at)] } else { Vec::new() };
                let copies = lists.copies(owner, row);
                parts.extend(
                    copies
                        .iter()
                        .map(|&(r, i)| (&partial[r], (i * HEADS + h) as usize)),
                );
                parts.retain(|(p, i)| p[1][*i] != f64::NEG_INFINITY);
                let weight: f64 = parts.iter().map(|(p, i)| p[1][*i].exp()).sum();
                let close = |have: f64, want: f64| have == want || (have - want).abs() < bound;
                assert!(
                    close(have[1][at], weight.ln()),
                    "lse {} of {}",
                    have[1][at],
                    weight.ln()
                );
                for e in 0..WIDTH as usize {
                    let sum: f64 = parts
                        .iter()
                        .map(|(p, i)| p[1][*i].exp() * p[0][i * WIDTH as usize + e])
                        .sum();
                    let want = if parts.is_empty() { 0.0 } else { sum / weight };
                    let out = have[0][at * WIDTH as usize + e];
                    assert!(close(out, want), "out {out}, not {want}");
                }
            }
        }
    }
    assert_eq!(
        have,
        merge(ranks, lists, dtype, accumulate),
        "another run gives other bits"
    );
}
