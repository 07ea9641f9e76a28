//! Over a mesh of hosts every receive buffer holds the same keys as without one, for every placement and degree.

mod plan_common;

use magi_attn::plan::{Pass, Placement};
use magi_attn::types::*;
use plan_common::*;
use std::sync::Arc;

/// Moves token ids from `from` to `to` as pieces say, the k-th sent to the k-th received between two ranks.
fn exchange(from: &[Vec<i64>], sends: &[&[Piece]], recvs: &[&[Piece]], to: &mut [Vec<i64>]) {
    for (rank, recv) in recvs.iter().enumerate() {
        for (peer, sent) in sends.iter().enumerate() {
            let sent: Vec<&Piece> = sent.iter().filter(|p| p.peer as usize == rank).collect();
            let got: Vec<&Piece> = recv.iter().filter(|p| p.peer as usize == peer).collect();
            // What a rank gets from this peer in this part may come into another buffer.
            if got.is_empty() {
                continue;
            }
            assert_eq!(sent.len(), got.len(), "pieces from {peer} to {rank}");
            for (s, r) in sent.iter().zip(got) {
                assert_eq!(s.rows.len(), r.rows.len());
                for (a, b) in (s.rows.start..s.rows.end).zip(r.rows.start..r.rows.end) {
                    assert_eq!(to[rank][b as usize], -1, "row {b} is filled twice");
                    to[rank][b as usize] = from[peer][a as usize];
                }
            }
        }
    }
}

fn check_stage(local: &[Vec<i64>], passes: &[&Pass], stage: usize) {
    let steps: Vec<&TwoLevel> = passes
        .iter()
        .filter_map(|p| p.stages[stage].two_level.as_ref())
        .collect();
    if steps.is_empty() {
        assert!(passes.iter().all(|p| p.stages[stage].recv.is_empty()));
        return;
    }
    let empty = |rows: fn(&TwoLevel) -> i64| -> Vec<Vec<i64>> {
        steps.iter().map(|s| vec![-1; rows(s) as usize]).collect()
    };
    let pieces = |of: fn(&TwoLevel) -> &Vec<Piece>| -> Vec<&[Piece]> {
        steps.iter().map(|s| of(s).as_slice()).collect()
    };
    let mut gateways = empty(|s| s.gateway_rows);
    let mut buffers = empty(|s| s.recv_rows);
    exchange(
        local,
        &pieces(|s| &s.sends),
        &pieces(|s| &s.gateway),
        &mut gateways,
    );
    exchange(local, &pieces(|s| &s.sends), &pieces(|s| &s.direct), &mut buffers);
    exchange(
        &gateways,
        &pieces(|s| &s.forwards),
        &pieces(|s| &s.relayed),
        &mut buffers,
    );
    for (rank, step) in steps.iter().enumerate() {
        for (from, to) in &step.keeps {
            for (a, b) in (from.start..from.end).zip(to.start..to.end) {
                assert_eq!(buffers[rank][b as usize], -1);
                buffers[rank][b as usize] = gateways[rank][a as usize];
            }
        }
        assert_eq!(
            buffers[rank],
            flat(&passes[rank].stages[stage].recv),
            "rank {rank}"
        );
    }
}

#[test]
fn every_placement_and_degree_over_hosts() {
    let mut random = Random::new(67);
    let kinds = [
        PlacementKind::Balanced,
        PlacementKind::Sequential,
        PlacementKind::Zigzag,
        PlacementKind::ByDocument,
        PlacementKind::TopHeap,
        PlacementKind::Exact,
    ];
    let mut moved = 0;
    for placement in kinds {
        for round in 0..30 {
            let [inter, intra] = [[2, 2], [2, 3], [3, 2]][round % 3];
            let total = random.within(8, 40);
            let total_k = total + [0, 0, 5][round % 3];
            let mask = random_mask(&mut random, total, total_k, 12);
            let few = placement == PlacementKind::Exact;
            let degree = |shift: usize| ((round + shift) % 10) as i32 - 1;
            let settings = Config {
                placement,
                chunk_size: if few { (total + 7) / 8 } else { random.within(0, 4) },
                mesh: Some(Mesh { inter, intra }),
                ..config(degree(0), degree(3))
            };
            let world = inter * intra;
            let placed = if round % 4 == 0 {
                random_placement(&mut random, &mask, world)
            } else {
                Placement::new(&mask, world, &settings).unwrap()
            };
            let placed = Arc::new(placed);
            let local = tokens_of(placed.side(Side::K));
            let plans = plans(&mask, &placed, &settings);
            for pass in passes(&plans) {
                for stage in 0..pass[0].stages.len() {
                    check_stage(&local, &pass, stage);
                    moved += pass.iter().map(|p| p.stages[stage].recv.tokens()).sum::<i64>();
                }
            }
        }
    }
    assert!(moved > 10_000, "{moved}");
}
