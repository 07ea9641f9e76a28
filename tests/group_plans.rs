//! Group plans on random lists against a dense reference: every rank's rows written out, one element at a time.

mod common_backend;
mod common_reference;

use std::sync::{Arc, Mutex};

use common_backend::{Buffer, Layout, Random};
use common_reference::round;
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, GroupPlan, GroupRequest, GroupTensor, ReduceOp, group_call};
use magi_attn::types::{DType, Piece, Range, Result, Status, Tensor};
use proptest::prelude::*;

/// The lists of all ranks.
#[derive(Clone, Debug)]
struct Lists {
    world: usize,
    local_rows: Vec<i64>,
    received_rows: Vec<i64>,
    sends: Vec<Vec<Piece>>,
    receives: Vec<Vec<Piece>>,
}

impl Lists {
    /// Rows that go to any ranks, their own too, any number of times; what comes in is put in any order, with gaps.
    fn random(world: usize, r: &mut Random) -> Lists {
        let mut lists = Lists {
            world,
            local_rows: (0..world).map(|_| r.below(9)).collect(),
            received_rows: vec![0; world],
            sends: vec![Vec::new(); world],
            receives: vec![Vec::new(); world],
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

    fn request(&self, rank: usize, tensors: &[GroupTensor], reduce: bool, strided: bool) -> GroupRequest {
        GroupRequest {
            local_rows: self.local_rows[rank],
            received_rows: self.received_rows[rank],
            sends: self.sends[rank].clone(),
            receives: self.receives[rank].clone(),
            tensors: tensors.to_vec(),
            reduce,
            strided,
        }
    }

    /// Whether more than eight pieces go between `rank` and another.
    fn may_be_packed(&self, rank: usize) -> bool {
        let many = |list: &[Piece]| {
            (0..self.world).any(|peer| list.iter().filter(|p| p.peer as usize == peer).count() > 8)
        };
        many(&self.sends[rank]) || many(&self.receives[rank])
    }

    /// (rank, its received row) of every copy of a local row, in the order in which a reduction adds them.
    fn copies(&self, owner: usize, row: i64) -> Vec<(usize, i64)> {
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
}

fn shuffle<T>(items: &mut [T], r: &mut Random) {
    for i in (1..items.len()).rev() {
        items.swap(i, r.below(i as i64 + 1) as usize);
    }
}

/// Heads and widths of the two tensors of a group.
const ROWS: [[i64; 2]; 2] = [[2, 3], [1, 5]];

fn elements(which: usize) -> i64 {
    ROWS[which][0] * ROWS[which][1]
}

fn tensors_of(dtypes: [DType; 2]) -> [GroupTensor; 2] {
    [0, 1].map(|w| GroupTensor {
        row_elements: elements(w),
        dtype: dtypes[w],
    })
}

/// Element `i` of tensor `which` of `rank`, the same for whoever asks.
fn value(kind: u64, rank: usize, which: usize, i: i64, dtype: DType) -> f64 {
    let seed = kind * 1_000_003 + (rank * 2 + which) as u64 * 10_007 + i as u64;
    round(dtype, Random(seed).normal())
}

fn filled(kind: u64, rank: usize, which: usize, rows: i64, dtype: DType, layout: Layout) -> Buffer {
    let values: Vec<f64> = (0..rows * elements(which))
        .map(|i| value(kind, rank, which, i, dtype))
        .collect();
    let [heads, width] = ROWS[which];
    Buffer::new(&values, &[rows, heads, width], dtype, layout)
}

fn tensors(buffers: &mut [Buffer; 2]) -> [Tensor; 2] {
    buffers.each_mut().map(Buffer::tensor)
}

const LAYOUTS: [Layout; 4] = [
    Layout::Dense,
    Layout::Padded,
    Layout::HeadsFirst,
    Layout::Backwards,
];

/// How the tensors of one case lie.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dtypes: [DType; 2],
    layout: Layout,
}

fn check_cast(lists: &Lists, shape: Shape) {
    local::run(lists.world, |rank, comm| {
        let strided = shape.layout != Layout::Dense;
        let request = lists.request(rank, &tensors_of(shape.dtypes), false, strided);
        let plan = GroupPlan::create(&Context::new(comm), request, None)?;
        assert!(strided || lists.may_be_packed(rank) || plan.workspace_bytes()? == 0);
        for _ in 0..2 {
            let mut local =
                [0, 1].map(|w| filled(1, rank, w, lists.local_rows[rank], shape.dtypes[w], shape.layout));
            let mut received = [0, 1].map(|w| {
                filled(
                    9,
                    rank,
                    w,
                    lists.received_rows[rank],
                    shape.dtypes[w],
                    shape.layout,
                )
            });
            group_call::cast(&plan, &tensors(&mut local), &tensors(&mut received), Stream::NULL)?;
            for (w, received) in received.iter().enumerate() {
                assert_eq!(received.values(), expected(lists, rank, w, shape.dtypes[w]));
            }
        }
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

/// What a cast leaves in tensor `which` of `rank`: rows that nobody sends keep what they held.
fn expected(lists: &Lists, rank: usize, which: usize, dtype: DType) -> Vec<f64> {
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
struct Reduction {
    op: ReduceOp,
    accumulate: bool,
    /// Results in the accumulator type.
    wide: bool,
}

fn reduce(lists: &Lists, shape: Shape, how: Reduction) -> Vec<[Vec<f64>; 2]> {
    let results = Mutex::new(vec![[Vec::new(), Vec::new()]; lists.world]);
    local::run(lists.world, |rank, comm| {
        let strided = shape.layout != Layout::Dense;
        let request = lists.request(rank, &tensors_of(shape.dtypes), true, strided);
        let plan = GroupPlan::create(&Context::new(comm), request, None)?;
        plan.prepare(Stream::NULL)?;
        let mut partial = [0, 1].map(|w| {
            filled(
                2,
                rank,
                w,
                lists.received_rows[rank],
                shape.dtypes[w],
                shape.layout,
            )
        });
        let mut local = [0, 1].map(|w| {
            filled(
                3,
                rank,
                w,
                lists.local_rows[rank],
                result_dtype(shape, how, w),
                shape.layout,
            )
        });
        group_call::reduce(
            &plan,
            how.op,
            &tensors(&mut partial),
            how.accumulate,
            &tensors(&mut local),
            Stream::NULL,
        )?;
        results.lock().unwrap()[rank] = local.each_ref().map(Buffer::values);
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
    results.into_inner().unwrap()
}

fn result_dtype(shape: Shape, how: Reduction, which: usize) -> DType {
    let dtype = shape.dtypes[which];
    if how.wide { dtype.accumulator() } else { dtype }
}

fn check_sums(lists: &Lists, shape: Shape, how: Reduction) {
    let have = reduce(lists, shape, how);
    for (owner, have) in have.iter().enumerate() {
        for (w, have) in have.iter().enumerate() {
            let (n, dtype) = (elements(w), shape.dtypes[w]);
            let (acc, result) = (dtype.accumulator(), result_dtype(shape, how, w));
            let mut want = Vec::new();
            for row in 0..lists.local_rows[owner] {
                let copies = lists.copies(owner, row);
                let count = copies.len() as i64 + i64::from(how.accumulate);
                for e in 0..n {
                    let held = value(3, owner, w, row * n + e, result);
                    let first = if how.accumulate { held } else { 0.0 };
                    let mut sum = copies.iter().fold(first, |sum, &(rank, at)| {
                        round(acc, sum + value(2, rank, w, at * n + e, dtype))
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
    assert_eq!(have, reduce(lists, shape, how), "another run gives other bits");
}

const HEADS: i64 = 2;
const WIDTH: i64 = 3;

/// out and lse of `rows` rows; some lse are -inf, and with `kind` 2 the out of those is NaN, which must not be read.
fn pair(kind: u64, rank: usize, rows: i64, dtype: DType) -> [Vec<f64>; 2] {
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

fn pair_buffers([out, lse]: &[Vec<f64>; 2], rows: i64, dtype: DType) -> [Buffer; 2] {
    [
        Buffer::new(out, &[rows, HEADS, WIDTH], dtype, Layout::Dense),
        Buffer::new(lse, &[rows, HEADS], dtype.accumulator(), Layout::Dense),
    ]
}

fn merge(lists: &Lists, dtype: DType, accumulate: bool) -> Vec<[Vec<f64>; 2]> {
    let results = Mutex::new(vec![[Vec::new(), Vec::new()]; lists.world]);
    local::run(lists.world, |rank, comm| {
        let of = |row_elements, dtype| GroupTensor { row_elements, dtype };
        let tensors_of = [of(HEADS * WIDTH, dtype), of(HEADS, dtype.accumulator())];
        let request = lists.request(rank, &tensors_of, true, false);
        let plan = GroupPlan::create(&Context::new(comm), request, None)?;
        let (received, rows) = (lists.received_rows[rank], lists.local_rows[rank]);
        let mut partial = pair_buffers(&pair(2, rank, received, dtype), received, dtype);
        let mut local = pair_buffers(&pair(3, rank, rows, dtype), rows, dtype);
        let (from, to) = (tensors(&mut partial), tensors(&mut local));
        group_call::reduce(&plan, ReduceOp::Lse, &from, accumulate, &to, Stream::NULL)?;
        results.lock().unwrap()[rank] = local.each_ref().map(Buffer::values);
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
    results.into_inner().unwrap()
}

fn check_lse(lists: &Lists, dtype: DType, accumulate: bool, bound: f64) {
    let have = merge(lists, dtype, accumulate);
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
        merge(lists, dtype, accumulate),
        "another run gives other bits"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_the_dense_reference(world in 1..=8usize, seed in any::<u64>(), layout in 0..4usize, accumulate: bool, wide: bool) {
        let lists = Lists::random(world, &mut Random(seed));
        let layout = LAYOUTS[layout];
        let dtypes = [DType::Bf16, DType::F64];
        check_cast(&lists, Shape { dtypes, layout });
        check_sums(&lists, Shape { dtypes, layout }, Reduction { op: ReduceOp::Sum, accumulate, wide });
        let dtypes = [DType::F16, DType::F32];
        check_sums(&lists, Shape { dtypes, layout }, Reduction { op: ReduceOp::Avg, accumulate, wide });
        check_lse(&lists, DType::F64, accumulate, 1e-12);
        check_lse(&lists, DType::Bf16, accumulate, 0.05);
    }

    #[test]
    fn ranks_that_do_not_fit_together_all_learn_it(world in 1..=8usize, seed in any::<u64>(), how in 0..4u64) {
        let mut r = Random(seed);
        let lists = Lists::random(world, &mut r);
        let (odd, seen) = (r.below(world as i64) as usize, Mutex::new(Vec::new()));
        local::run(world, |rank, comm| {
            let context = Context::new(comm);
            let tensors = tensors_of([DType::F32; 2]);
            let right = lists.request(rank, &tensors, how == 3, false);
            let mut wrong = right.clone();
            if rank == odd {
                spoil(&mut wrong, how);
            }
            let spoiled = GroupPlan::create(&context, wrong, None)?;
            // Tensors and flags are compared among ranks: one rank alone agrees with itself.
            if world > 1 || how < 2 {
                let e = spoiled.prepare(Stream::NULL).unwrap_err();
                assert_eq!(e.status, Status::PlanMismatch, "{e}");
                seen.lock().unwrap().push(e.message);
            }
            assert!(context.async_error().is_none());
            cast_works(&context, &lists, rank, right)
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let mut seen = seen.into_inner().unwrap();
        seen.dedup();
        prop_assert!(seen.len() <= 1, "ranks say different things: {:?}", seen);
    }
}

/// Makes a request differ from what the other ranks expect.
fn spoil(request: &mut GroupRequest, how: u64) {
    let extra = Piece {
        peer: 0,
        rows: Range::new(request.received_rows, request.received_rows + 1),
    };
    match how {
        0 => {
            request.receives.push(extra);
            request.received_rows += 1;
        }
        1 => match request.receives.iter().position(|p| !p.rows.is_empty()) {
            Some(i) => request.receives[i].rows.end -= 1,
            None => {
                request.receives.push(extra);
                request.received_rows += 1;
            }
        },
        2 => request.tensors[1].dtype = DType::F64,
        _ => request.reduce = false,
    }
}

fn cast_works(context: &Arc<Context>, lists: &Lists, rank: usize, request: GroupRequest) -> Result<()> {
    let plan = GroupPlan::create(context, request, None)?;
    let buffers = |kind, rows| [0, 1].map(|w| filled(kind, rank, w, rows, DType::F32, Layout::Dense));
    let mut local = buffers(1, lists.local_rows[rank]);
    let mut received = buffers(9, lists.received_rows[rank]);
    group_call::cast(&plan, &tensors(&mut local), &tensors(&mut received), Stream::NULL)?;
    for (w, received) in received.iter().enumerate() {
        assert_eq!(received.values(), expected(lists, rank, w, DType::F32));
    }
    Ok(())
}

#[test]
fn the_lengths_of_pieces_count_not_only_their_rows() {
    local::run(2, |rank, comm| {
        let pieces = |ends: [i64; 3]| {
            let piece = |i: usize| Piece {
                peer: 1 - rank as u32,
                rows: Range::new(ends[i], ends[i + 1]),
            };
            vec![piece(0), piece(1)]
        };
        let request = GroupRequest {
            local_rows: 5,
            received_rows: 5,
            sends: pieces([0, 2, 5]),
            receives: pieces(if rank == 0 { [0, 3, 5] } else { [0, 2, 5] }),
            tensors: tensors_of([DType::I64; 2]).to_vec(),
            ..GroupRequest::default()
        };
        let plan = GroupPlan::create(&Context::new(comm), request, None)?;
        let e = plan.prepare(Stream::NULL).unwrap_err();
        assert_eq!(e.status, Status::PlanMismatch);
        let want = "rank 1 sends 5 rows in 2 pieces to rank 0, which expects 5 in 2 of other lengths";
        assert!(e.message.ends_with(want), "{e}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn two_plans_in_another_order_are_found() {
    local::run(3, |rank, comm| {
        let context = Context::new(comm);
        let request = |elements| GroupRequest {
            tensors: vec![GroupTensor {
                row_elements: elements,
                dtype: DType::U8,
            }],
            ..GroupRequest::default()
        };
        let a = GroupPlan::create(&context, request(1), None)?;
        let b = GroupPlan::create(&context, request(2), None)?;
        let first = if rank == 2 { &b } else { &a };
        let e = first.prepare(Stream::NULL).unwrap_err();
        assert_eq!(e.status, Status::PlanMismatch);
        assert!(e.message.contains("rank 2 has other tensors"), "{e}");
        a.prepare(Stream::NULL)?;
        b.prepare(Stream::NULL)
    })
    .unwrap();
}
