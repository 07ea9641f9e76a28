//! A plan small enough to be worked out by hand: eight causal tokens on two ranks, chunks of two.
//!
//! The chunks' areas are 3, 7, 11 and 15, so longest first gives rank 0 tokens {0, 1, 6, 7} and rank 1 tokens
//! {2, 3, 4, 5}, 18 cells each. Rows 6 and 7 see all tokens before them: among rank 0's own that is causal in local
//! rows as well; of rank 1 they see everything.

mod plan_common;

use magi_attn::plan::Plan;
use magi_attn::types::*;
use plan_common::*;

fn plan(rank: usize, forward: i32, backward: i32) -> Plan {
    let mask = documents(&[8], MaskType::Causal);
    let settings = Config {
        chunk_size: 2,
        bwd_hide_tail_reduce: HostStage::First,
        ..config(forward, backward)
    };
    Plan::new(&mask, &shape(), 2, rank, &settings).unwrap()
}

fn ranges(list: &[(i64, i64)]) -> Ranges {
    list.iter().map(|&(a, b)| Range::new(a, b)).collect()
}

fn piece(peer: u32, start: i64, end: i64) -> Piece {
    Piece {
        peer,
        rows: Range::new(start, end),
    }
}

fn local(source: u8, q: (i64, i64), k: (i64, i64), band: Band) -> StageSlice {
    StageSlice {
        slice: Slice::new(Range::new(q.0, q.1), Range::new(k.0, k.1), band),
        source,
    }
}

const CAUSAL: Band = Band::new(Band::NO_LO, 0);

#[test]
fn tokens_are_placed_in_pairs_of_equal_area() {
    let plan = plan(0, 1, 1);
    let side = plan.placement.side(Side::Q);
    assert_eq!(side.chunks(0), [0, 3]);
    assert_eq!(side.chunks(1), [1, 2]);
    assert_eq!(*side.runs(0), ranges(&[(0, 2), (6, 8)]));
    assert_eq!(*side.runs(1), ranges(&[(2, 6)]));
    assert_eq!([side.tokens(0), side.tokens(1)], [4, 4]);
    assert_eq!(
        (0..8).map(|t| side.owner(t)).collect::<Vec<_>>(),
        [0, 0, 1, 1, 1, 1, 0, 0]
    );
    assert_eq!(side.to_local(0, 6), Some(2));
    assert_eq!(side.to_local(1, 6), None);
    assert_eq!(side.to_local(0, 8), None);
    assert_eq!(side.to_local_range(0, Range::new(6, 8)), Some(Range::new(2, 4)));
    assert_eq!(side.to_local_range(0, Range::new(1, 7)), None);
}

#[test]
fn one_remote_stage() {
    let zero = plan(0, 1, 1);
    let stages = &zero.forward.stages;
    assert_eq!(stages.len(), 2);
    assert_eq!(stages[0].slices, [local(0, (0, 4), (0, 4), CAUSAL)]);
    assert_eq!((stages[0].area, stages[1].area), (10, 8));
    assert_eq!(stages[1].recv, ranges(&[(2, 6)]));
    assert_eq!(stages[1].transfer.recvs, [piece(1, 0, 4)]);
    assert_eq!(stages[1].transfer.sends, [piece(1, 0, 2)]);
    assert_eq!(stages[1].slices, [local(1, (2, 4), (0, 4), Band::FULL)]);

    let one = plan(1, 1, 1);
    let stages = &one.forward.stages;
    assert_eq!(stages[0].slices, [local(0, (0, 4), (0, 4), CAUSAL)]);
    assert_eq!((stages[0].area, stages[1].area), (10, 8));
    assert_eq!(stages[1].recv, ranges(&[(0, 2)]));
    assert_eq!(stages[1].transfer.recvs, [piece(0, 0, 2)]);
    assert_eq!(stages[1].transfer.sends, [piece(0, 0, 4)]);
    assert_eq!(stages[1].slices, [local(1, (0, 4), (0, 2), Band::FULL)]);
}

#[test]
fn two_remote_stages_and_none() {
    let zero = plan(0, 2, 0);
    let stages = &zero.forward.stages;
    assert_eq!(stages[1].recv, ranges(&[(2, 4)]));
    assert_eq!(stages[2].recv, ranges(&[(4, 6)]));
    assert_eq!(stages[1].transfer.sends, [piece(1, 0, 1)]);
    assert_eq!(stages[2].transfer.sends, [piece(1, 1, 2)]);
    for stage in &stages[1..] {
        assert_eq!(stage.slices, [local(1, (2, 4), (0, 2), Band::FULL)]);
    }

    let only = &zero.backward.stages;
    assert_eq!(only.len(), 1);
    assert_eq!(only[0].area, 18);
    assert_eq!(
        only[0].slices,
        [
            local(0, (0, 4), (0, 4), CAUSAL),
            local(1, (2, 4), (0, 4), Band::FULL)
        ]
    );
    assert_eq!(only[0].transfer.recvs, [piece(1, 0, 4)]);
    assert_eq!(only[0].transfer.sends, [piece(1, 0, 2)]);
}

#[test]
fn a_window_over_contiguous_halves() {
    let all = Range::new(0, 8);
    let mask = Mask::from_slices(vec![Slice::new(all, all, Band::new(-2, 0))], 8, 8).unwrap();
    let settings = Config {
        placement: PlacementKind::Sequential,
        ..config(1, 1)
    };
    for rank in 0..2 {
        let plan = Plan::new(&mask, &shape(), 2, rank, &settings).unwrap();
        let stages = &plan.forward.stages;
        assert_eq!(stages[0].slices, [local(0, (0, 4), (0, 4), Band::new(-2, 0))]);
        // Only row 4 (keys 2 and 3) and row 5 (key 3) reach back over the boundary.
        assert_eq!(stages[1].recv, ranges(if rank == 0 { &[] } else { &[(2, 4)] }));
        if rank == 1 {
            assert_eq!(
                stages[1].slices,
                [local(1, (0, 2), (0, 2), Band::new(0, Band::NO_HI))]
            );
        }
    }
}

#[test]
fn the_hash_is_the_same_on_every_machine() {
    assert_eq!(plan(0, 1, 1).hash, 8_115_419_011_241_107_011);
    assert_eq!(plan(1, 1, 1).hash, plan(0, 1, 1).hash);
}
