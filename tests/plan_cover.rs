//! Every visible cell is computed exactly once over ranks and stages, and every key arrives where it is used.

mod plan_common;

use magi_attn::plan::{Pass, Placement, Plan, Stage, Stats, verify};
use magi_attn::types::*;
use plan_common::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Moves token ids as the stage's transfers say; returns each rank's receive buffer.
fn group_cast(local: &[Vec<i64>], transfers: &[&Transfer]) -> Vec<Vec<i64>> {
    let mut buffers = Vec::new();
    for (rank, t) in transfers.iter().enumerate() {
        let mut buffer = vec![-1; t.recv_rows as usize];
        for (peer, sender) in transfers.iter().enumerate() {
            let sends: Vec<Range> = sender
                .sends
                .iter()
                .filter(|p| p.peer as usize == rank)
                .map(|p| p.rows)
                .collect();
            let recvs: Vec<Range> = t
                .recvs
                .iter()
                .filter(|p| p.peer as usize == peer)
                .map(|p| p.rows)
                .collect();
            assert_eq!(sends.len(), recvs.len(), "pieces from {peer} to {rank}");
            assert!(peer != rank || sends.is_empty());
            for (s, r) in sends.iter().zip(&recvs) {
                assert!(
                    s.len() == r.len() && !s.is_empty(),
                    "{s} from {peer} to {rank} {r}"
                );
                for (from, to) in (s.start..s.end).zip(r.start..r.end) {
                    assert_eq!(buffer[to as usize], -1, "row {to} is received twice");
                    buffer[to as usize] = local[peer][from as usize];
                }
            }
        }
        assert!(t.sends.is_sorted_by_key(|p| (p.peer, p.rows)));
        assert!(t.recvs.is_sorted_by_key(|p| (p.peer, p.rows)));
        buffers.push(buffer);
    }
    buffers
}

/// Which of the stages of a pass with remote stages are the host stage, or halves of it.
fn host_stages(passes: &[&Pass], degree: usize) -> Vec<usize> {
    let stages = passes[0].stages.len();
    if stages == degree + 2 {
        return vec![0, stages - 1];
    }
    let has = |stage: &Stage, source| stage.slices.iter().any(|s| s.source == source);
    let is_last = |p: &&Pass| {
        let (first, last) = (&p.stages[0], &p.stages[stages - 1]);
        first.transfer != Transfer::default() || has(first, 1) || has(last, 0)
    };
    if passes.iter().any(is_last) {
        vec![stages - 1]
    } else {
        vec![0]
    }
}

/// Checks one pass of all ranks against the table of cells.
fn check_pass(mask: &Mask, placement: &Placement, passes: &[&Pass], degree: i32) {
    let visible = cells(mask);
    let queries = tokens_of(placement.side(Side::Q));
    let keys = tokens_of(placement.side(Side::K));
    let world = queries.len();
    let stages = passes[0].stages.len();
    let hosts = if degree == 0 {
        Vec::new()
    } else {
        host_stages(passes, degree as usize)
    };
    assert_eq!(
        stages,
        if degree == 0 {
            1
        } else {
            hosts.len() + degree as usize
        }
    );
    let mut computed: Cells = vec![vec![0; mask.total_k() as usize]; mask.total_q() as usize];
    let mut received: Vec<Vec<i64>> = vec![Vec::new(); world];
    let mut area = 0;
    for i in 0..stages {
        let transfers: Vec<&Transfer> = passes.iter().map(|p| &p.stages[i].transfer).collect();
        let buffers = group_cast(&keys, &transfers);
        for rank in 0..world {
            assert_eq!(passes[rank].stages.len(), stages);
            let stage = &passes[rank].stages[i];
            assert_eq!(
                buffers[rank],
                flat(&stage.recv),
                "receive buffer of rank {rank}, stage {i}"
            );
            let is_host = hosts.contains(&i);
            assert!(!is_host || stage.transfer == Transfer::default());
            received[rank].extend(&buffers[rank]);
            let mut found = 0;
            for s in &stage.slices {
                assert!(degree == 0 || usize::from(s.source) == usize::from(!is_host));
                let source = if s.source == 0 {
                    &keys[rank]
                } else {
                    &buffers[rank]
                };
                for q in s.slice.q.start..s.slice.q.end {
                    for k in s.slice.k.start..s.slice.k.end {
                        if s.slice.contains(q, k) {
                            let (q, k) = (queries[rank][q as usize], source[k as usize]);
                            computed[q as usize][k as usize] += 1;
                            found += 1;
                        }
                    }
                }
                assert_eq!(s.slice, s.slice.tighten());
                assert!(!s.slice.is_empty());
            }
            assert_eq!(stage.area, found);
            area += found;
        }
    }
    assert_eq!(computed, visible);
    assert_eq!(area, mask.area());
    for rank in 0..world {
        let own: BTreeSet<i64> = keys[rank].iter().copied().collect();
        let needed: BTreeSet<i64> = queries[rank]
            .iter()
            .flat_map(|&q| (0..mask.total_k()).map(move |k| (q, k)))
            .filter(|&(q, k)| visible[q as usize][k as usize] > 0)
            .map(|(_, k)| k)
            .filter(|k| !own.contains(k))
            .collect();
        received[rank].sort_unstable();
        assert_eq!(
            received[rank],
            needed.into_iter().collect::<Vec<_>>(),
            "keys fetched by rank {rank}"
        );
    }
}

/// Degrees and order of the stages of round `round`.
fn settings(round: usize) -> Config {
    let (forward, backward) = DEGREES[round % DEGREES.len()];
    Config {
        bwd_hide_tail_reduce: ORDERS[round / 3 % ORDERS.len()],
        ..config(forward, backward)
    }
}

fn check(mask: &Mask, placement: Placement, settings: &Config) {
    let placement = Arc::new(placement);
    let plans = plans(mask, &placement, settings);
    let degrees = [settings.degree_forward, settings.degree_backward];
    for (pass, degree) in passes(&plans).iter().zip(degrees) {
        check_pass(mask, &placement, pass, degree);
    }
    check_orders(&plans, degrees, settings);
    for plan in &plans {
        verify(plan, mask).unwrap();
        assert_eq!(plan.hash, plans[0].hash);
    }
}

/// The host stage is where the settings say; forward it is always the first.
fn check_orders(plans: &[Plan], degrees: [i32; 2], settings: &Config) {
    let [forward, backward] = degrees.map(|d| d as usize);
    for plan in plans {
        let stages = &plan.backward.stages;
        assert_eq!(plan.forward.stages.len(), forward + 1);
        if backward == 0 {
            assert_eq!(stages.len(), 1);
            continue;
        }
        let more = stages.len() - backward;
        assert!(match settings.bwd_hide_tail_reduce {
            HostStage::First | HostStage::Last => more == 1,
            HostStage::Split => more == 2,
            HostStage::Auto => more == 1 || more == 2,
        });
        let host = &plan.forward.stages[0];
        match settings.bwd_hide_tail_reduce {
            HostStage::First if forward > 0 => assert_eq!(&stages[0], host),
            HostStage::Last if forward > 0 => assert_eq!(&stages[backward], host),
            HostStage::Split if forward > 0 => {
                assert_eq!(stages[0].area + stages[backward + 1].area, host.area);
            }
            _ => {}
        }
    }
}

const ORDERS: [HostStage; 4] = [
    HostStage::Split,
    HostStage::Last,
    HostStage::Auto,
    HostStage::First,
];

const DEGREES: [(i32, i32); 6] = [(0, 1), (1, 1), (2, 4), (4, 2), (1, 0), (8, 3)];

#[test]
fn random_masks_on_random_placements() {
    let mut random = Random::new(1);
    for round in 0..250 {
        let total = random.within(1, 48);
        let mask = random_mask(&mut random, total, total, 12);
        let world = random.within(1, 9) as usize;
        let placement = random_placement(&mut random, &mask, world);
        check(&mask, placement, &settings(round));
    }
}

#[test]
fn random_masks_on_the_planners_own_placement() {
    let mut random = Random::new(2);
    for round in 0..250 {
        let total = random.within(1, 48);
        let mask = random_mask(&mut random, total, total, 12);
        let world = random.within(1, 9) as usize;
        let settings = Config {
            chunk_size: random.within(0, 7),
            ..settings(round)
        };
        check(&mask, Placement::new(&mask, world, &settings).unwrap(), &settings);
    }
}

#[test]
fn every_placement_and_every_degree() {
    let mut random = Random::new(23);
    let kinds = [
        (PlacementKind::Balanced, Effort::Fast),
        (PlacementKind::Balanced, Effort::Thorough),
        (PlacementKind::Balanced, Effort::Balance),
        (PlacementKind::Sequential, Effort::Fast),
        (PlacementKind::Zigzag, Effort::Fast),
        (PlacementKind::ByDocument, Effort::Fast),
        (PlacementKind::TopHeap, Effort::Fast),
        (PlacementKind::Exact, Effort::Fast),
    ];
    // Every degree forward and, shifted by the kind, backward; with both sides together, apart, and placed jointly.
    for (i, (placement, effort)) in kinds.into_iter().enumerate() {
        for round in 0..30 {
            let degree = |shift: usize| ((round + shift) % 10) as i32 - 1;
            let total = random.within(1, 40);
            let total_k = total + [0, 0, 5][round % 3];
            let mask = random_mask(&mut random, total, total_k, 12);
            let world = random.within(1, 5) as usize;
            let few = placement == PlacementKind::Exact;
            let settings = Config {
                placement,
                effort,
                chunk_size: if few { (total + 7) / 8 } else { random.within(0, 4) },
                bwd_hide_tail_reduce: ORDERS[round % 4],
                ..config(degree(0), degree(i + 1))
            };
            let joint = random_mask(&mut random, total, total_k, 6);
            let placement = if round % 2 == 0 {
                Placement::new(&mask, world, &settings).unwrap()
            } else {
                Placement::new_joint(&[(&joint, 3), (&mask, 2)], world, &settings).unwrap()
            };
            check_chosen(&mask, placement, &settings);
        }
    }
}

/// As `check`, with the degrees that the planner chose.
fn check_chosen(mask: &Mask, placement: Placement, settings: &Config) {
    let placement = Arc::new(placement);
    let plans = plans(mask, &placement, settings);
    let stats = Stats::new(mask, &placement, &shape(), settings).unwrap();
    let degrees = [stats.degree_forward, stats.degree_backward];
    for (asked, got) in [settings.degree_forward, settings.degree_backward]
        .into_iter()
        .zip(degrees)
    {
        assert!(if asked < 0 {
            (0..=8).contains(&got)
        } else {
            asked == got
        });
    }
    for (pass, degree) in passes(&plans).iter().zip(degrees) {
        check_pass(mask, &placement, pass, degree);
    }
    check_orders(&plans, degrees, settings);
    for plan in &plans {
        verify(plan, mask).unwrap();
        assert_eq!(plan.hash, plans[0].hash);
    }
}

#[test]
fn queries_and_keys_of_different_totals() {
    let mut random = Random::new(3);
    for round in 0..150 {
        let (total_q, total_k) = (random.within(0, 40), random.within(0, 40));
        let mask = random_mask(&mut random, total_q, total_k, 10);
        let world = random.within(1, 9) as usize;
        let placement = if round % 2 == 0 {
            Placement::new(&mask, world, &settings(round)).unwrap()
        } else {
            random_placement(&mut random, &mask, world)
        };
        check(&mask, placement, &settings(round));
    }
}

#[test]
fn regular_masks() {
    let causal = documents(&[61], MaskType::Causal);
    let full = documents(&[40], MaskType::Full);
    let packed = documents(&[1, 7, 20, 1, 13, 3], MaskType::Causal);
    let window = {
        let all = Range::new(0, 50);
        Mask::from_slices(vec![Slice::new(all, all, Band::new(-6, 0))], 50, 50).unwrap()
    };
    for mask in [causal, full, packed, window] {
        for world in 1..=9 {
            for round in 0..12 {
                let settings = Config {
                    chunk_size: 3,
                    ..settings(round)
                };
                check(&mask, Placement::new(&mask, world, &settings).unwrap(), &settings);
            }
        }
    }
}

#[test]
fn nothing_to_compute() {
    for total in [0, 1, 5, 33] {
        let mask = Mask::from_slices(vec![], total, total).unwrap();
        for world in [1, 2, 8, 40] {
            let settings = config(2, 0);
            check(&mask, Placement::new(&mask, world, &settings).unwrap(), &settings);
        }
    }
}

#[test]
fn remote_stages_are_equal_to_a_token() {
    let mask = documents(&[4096], MaskType::Full);
    let settings = Config {
        bwd_hide_tail_reduce: HostStage::Last,
        ..config(4, 3)
    };
    let placement = Arc::new(Placement::new(&mask, 4, &settings).unwrap());
    for plan in plans(&mask, &placement, &settings) {
        let rows = |pass: &Pass| -> Vec<i64> { pass.stages.iter().map(|s| s.transfer.recv_rows).collect() };
        assert_eq!(rows(&plan.forward), [0, 768, 768, 768, 768]);
        assert_eq!(rows(&plan.backward), [1024, 1024, 1024, 0]);
    }
}
