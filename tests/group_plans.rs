//! Group plans on random lists against a dense reference: every rank's rows written out, one element at a time.

mod common_backend;
mod common_groups;
mod common_ranks;
mod common_reference;

use std::sync::{Arc, Mutex};

use common_backend::{Buffer, Layout, Random};
use common_groups::{
    LAYOUTS, Lists, Local, Reduction, Shape, check_cast, check_lse, check_sums, expected, filled, tensors_of,
};
use common_ranks::Host;
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, GroupPlan, GroupRequest, GroupTensor, ReduceOp, group_call};
use magi_attn::types::{DType, Piece, Range, Result, Status};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_the_dense_reference(world in 1..=8usize, seed in any::<u64>(), layout in 0..4usize, accumulate: bool, wide: bool) {
        let lists = Lists::random(world, &mut Random(seed));
        let layout = LAYOUTS[layout];
        let dtypes = [DType::Bf16, DType::F64];
        check_cast(&Local, &lists, Shape { dtypes, layout });
        check_sums(&Local, &lists, Shape { dtypes, layout }, Reduction { op: ReduceOp::Sum, accumulate, wide });
        let dtypes = [DType::F16, DType::F32];
        check_sums(&Local, &lists, Shape { dtypes, layout }, Reduction { op: ReduceOp::Avg, accumulate, wide });
        check_lse(&Local, &lists, DType::F64, accumulate, 1e-12);
        check_lse(&Local, &lists, DType::Bf16, accumulate, 0.05);
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
    let buffers =
        |kind, rows| [0, 1].map(|w| filled(&Host, kind, rank, w, rows, (DType::F32, Layout::Dense)));
    let mut local = buffers(1, lists.local_rows[rank]);
    let mut received = buffers(9, lists.received_rows[rank]);
    let (from, to) = (
        local.each_mut().map(Buffer::tensor),
        received.each_mut().map(Buffer::tensor),
    );
    group_call::cast(&plan, &from, &to, Stream::NULL)?;
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
