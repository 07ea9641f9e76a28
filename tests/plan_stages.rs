//! Predicted times against the plans themselves, the automatic number of stages, and the order of pieces.

mod plan_common;

use magi_attn::plan::{Pass, Placement, Plan, Stats};
use magi_attn::types::*;
use plan_common::*;
use std::sync::Arc;

fn rates(link_mb_per_s: i64) -> Rates {
    Rates {
        forward_gflops: [200; 3],
        backward_gflops: [100; 3],
        link_mb_per_s,
        link_latency_ns: 700,
        kernel_latency_ns: 300,
    }
}

/// The time of a pass by its own stages on a rank with so many queries, for `shape()`: 4 heads of 16 and 16, 2 key heads,
/// 4 bytes.
fn time(pass: &Pass, degree: i32, backward: bool, link: i64, queries: i64) -> i64 {
    let (flops, per_ns) = if backward {
        (2 * 4 * 80, 100)
    } else {
        (2 * 4 * 32, 200)
    };
    // One of several kernels takes 107% forward; all but the first read and write f32 results, 1,070 bytes a ns.
    let computing: Vec<usize> = (0..pass.stages.len())
        .filter(|&i| pass.stages[i].area > 0)
        .collect();
    let several = computing.len() > 1;
    let percent = if several && !backward { 107 } else { 100 };
    let merge = queries * 4 * 16 * (4 + 4) / 1070;
    let compute = |i: usize| {
        if !computing.contains(&i) {
            return 0;
        }
        let further = if i == computing[0] { 0 } else { merge };
        pass.stages[i].area * flops * percent / (100 * per_ns) + 300 + further
    };
    let moved = |rows: i64| {
        if rows == 0 {
            0
        } else {
            rows * 2 * 32 * 4 * 1000 / link + 700
        }
    };
    let stages: Vec<(i64, i64)> = pass
        .stages
        .iter()
        .enumerate()
        .map(|(i, s)| (moved(s.transfer.recv_rows), compute(i)))
        .collect();
    if degree == 0 {
        let (fetch, kernel) = stages[0];
        return fetch + kernel + if backward { fetch } else { 0 };
    }
    // In a step a stage is computed, the next is fetched, the gradients of the one before go back.
    let at = |i: usize| stages.get(i).copied().unwrap_or_default();
    let steps = (0..stages.len()).map(|i| {
        let back = if backward && i > 0 { at(i - 1).0 } else { 0 };
        at(i).1.max(at(i + 1).0).max(back)
    });
    let last = if backward { at(stages.len() - 1).0 } else { 0 };
    at(0).0 + steps.sum::<i64>() + last
}

#[test]
fn predictions_are_those_of_the_plans() {
    let mut random = Random::new(51);
    for round in 0..24 {
        let mask = documents(
            &[
                random.within(1, 9000),
                random.within(1, 5000),
                random.within(1, 9000),
            ],
            MaskType::Causal,
        );
        let link = [50, 1000, 100_000][round % 3];
        let settings = Config {
            rates: rates(link),
            chunk_size: 512,
            bwd_hide_tail_reduce: ORDERS[round / 2 % 4],
            ..config([-1, 0, 1, 2, 5, -1][round % 6], [3, 1, -1, 0, 8, -1][round % 6])
        };
        let placement = Arc::new(Placement::new(&mask, 4, &settings).unwrap());
        let stats = Stats::new(&mask, &placement, &shape(), &settings).unwrap();
        for (rank, plan) in plans(&mask, &placement, &settings).iter().enumerate() {
            let queries = placement.side(Side::Q).tokens(rank);
            for (pass, degree, backward, got) in [
                (&plan.forward, stats.degree_forward, false, stats.forward_ns[rank]),
                (
                    &plan.backward,
                    stats.degree_backward,
                    true,
                    stats.backward_ns[rank],
                ),
            ] {
                let more = match settings.bwd_hide_tail_reduce {
                    _ if degree == 0 => 1..=1,
                    HostStage::Split if backward => 2..=2,
                    HostStage::Auto if backward => 1..=2,
                    _ => 1..=1,
                };
                assert!(more.contains(&(pass.stages.len() as i32 - degree)));
                assert_eq!(got, time(pass, degree, backward, link, queries));
            }
        }
    }
}

const ORDERS: [HostStage; 4] = [
    HostStage::Auto,
    HostStage::First,
    HostStage::Last,
    HostStage::Split,
];

/// When the slowest rank is ready with the backward pass, for each of `ORDERS`, with such settings, and on how many stages.
fn ends(mask: &Mask, world: usize, settings: &Config) -> [(i64, usize); 4] {
    let placement = Placement::new(mask, world, settings).unwrap();
    ORDERS.map(|order| {
        let settings = Config {
            bwd_hide_tail_reduce: order,
            ..*settings
        };
        let stats = Stats::new(mask, &placement, &shape(), &settings).unwrap();
        let end = stats.backward_ns.iter().max().copied().unwrap();
        (end, stats.backward.stages.len())
    })
}

#[test]
fn the_order_chosen_is_never_the_worse_one() {
    let mut random = Random::new(52);
    let mut won = [0; 4];
    for round in 0..60 {
        let mask = documents(
            &[random.within(1, 9000), random.within(1, 6000)],
            [MaskType::Causal, MaskType::Full][round % 2],
        );
        let mut settings = config(1, [1, 2, 3, -1][round % 4]);
        settings.rates = rates([50, 1000, 100_000][round % 3]);
        settings.rates.kernel_latency_ns = [300, 1_000_000][round / 3 % 2];
        settings.backward_high_precision_reduce = round % 5 < 2;
        let [(chosen, _), fixed @ ..] = ends(&mask, 1 + round % 6, &settings);
        let best = fixed.iter().map(|f| f.0).min().unwrap();
        assert_eq!(chosen, best, "{fixed:?}");
        let winner = fixed.iter().position(|f| f.0 == best).unwrap();
        won[winner] += 1;
    }
    assert!(won[0] > 0 && won[2] > 0, "{won:?}");
}

#[test]
fn the_host_stage_is_last_where_the_reduction_is_longer_than_the_fetch() {
    // Gradients of 4 bytes behind keys of 2.
    let half = AttnShape {
        dtype: DType::Bf16,
        ..shape()
    };
    let mask = documents(&[1 << 14], MaskType::Causal);
    let mut settings = Config {
        rates: rates(10_000),
        backward_high_precision_reduce: true,
        ..config(1, 1)
    };
    let chosen = |settings: &Config| {
        let plan = Plan::new(&mask, &half, 4, 1, settings).unwrap();
        let fetches: Vec<bool> = plan.backward.stages.iter().map(|s| !s.recv.is_empty()).collect();
        (fetches, plan.hash)
    };
    // A second kernel costs less than the fetch that it hides, or more.
    assert_eq!(chosen(&settings).0, [false, true, false]);
    settings.rates.kernel_latency_ns = 1_000_000_000;
    let (order, hash) = chosen(&settings);
    assert_eq!(order, [true, false]);
    settings.bwd_hide_tail_reduce = HostStage::Last;
    assert_eq!(
        chosen(&settings),
        (order, hash),
        "the same, however it came about"
    );
    settings.bwd_hide_tail_reduce = HostStage::First;
    assert_ne!(chosen(&settings).1, hash);
    settings.bwd_hide_tail_reduce = HostStage::Auto;
    settings.backward_high_precision_reduce = false;
    assert_eq!(chosen(&settings).0, [false, true]);
}

#[test]
fn the_planner_chooses_stages_that_pay() {
    let mask = documents(&[1 << 16], MaskType::Causal);
    let slowest = |forward, link| {
        let settings = Config {
            rates: rates(link),
            ..config(forward, forward)
        };
        let placement = Placement::new(&mask, 8, &settings).unwrap();
        let s = Stats::new(&mask, &placement, &shape(), &settings).unwrap();
        let most = |times: &[i64]| *times.iter().max().unwrap();
        (
            s.degree_forward,
            s.degree_backward,
            most(&s.forward_ns),
            most(&s.backward_ns),
        )
    };
    for link in [20, 200, 2_000, 200_000] {
        let chosen = slowest(-1, link);
        for degree in 0..=8 {
            let fixed = slowest(degree, link);
            // A fixed number rounds the pieces to its multiple, so a little may be won or lost.
            assert!(
                chosen.2 <= fixed.2 + fixed.2 / 20,
                "{degree} stages: {} {}",
                fixed.2,
                chosen.2
            );
            assert!(
                chosen.3 <= fixed.3 + fixed.3 / 20,
                "{degree} stages: {} {}",
                fixed.3,
                chosen.3
            );
        }
    }
    // Where the link is quick, hiding it saves less than a second kernel costs.
    let quick = slowest(-1, 200_000_000);
    assert_eq!((quick.0, quick.1), (0, 0));
    for degree in 1..=8 {
        let staged = slowest(degree, 200_000_000);
        assert!(quick.2 < staged.2 && quick.3 < staged.3, "{quick:?} {staged:?}");
    }
    // Where fetching takes as long as computing, one remote stage hides half of it and more hide most.
    let slow = slowest(-1, 50);
    assert!(slow.0 > 1 && slow.1 > 1, "{slow:?}");
    for degree in 0..=1 {
        let few = slowest(degree, 50);
        assert!(slow.2 < few.2 && slow.3 < few.3, "{slow:?} {few:?}");
    }
}

#[test]
fn stages_that_unlock_most_come_first() {
    let mask = documents(&[1 << 15], MaskType::Causal);
    let settings = config(4, 1);
    let placement = Arc::new(Placement::new(&mask, 4, &settings).unwrap());
    for plan in plans(&mask, &placement, &settings) {
        let remote = &plan.forward.stages[1..];
        assert!(remote.is_sorted_by(|a, b| a.area >= b.area));
        assert!(remote[0].area > remote[3].area);
    }
}

#[test]
fn a_degree_that_was_chosen_is_not_the_same_one_asked_for() {
    // Their stages are cut elsewhere, so ranks must not take one for the other.
    let mask = documents(&[1 << 15], MaskType::Causal);
    let mut settings = config(-1, -1);
    settings.rates = Rates {
        link_mb_per_s: 200,
        link_latency_ns: 0,
        kernel_latency_ns: 0,
        ..settings.rates
    };
    let chosen = Plan::new(&mask, &shape(), 4, 1, &settings).unwrap();
    let remote = |pass: &Arc<Pass>| pass.stages.iter().filter(|s| !s.recv.is_empty()).count() as i32;
    let degrees = [remote(&chosen.forward), remote(&chosen.backward)];
    assert!(degrees[0] > 1 && degrees[1] > 1, "{degrees:?}");
    for (forward, backward) in [(degrees[0], degrees[1]), (degrees[0], -1), (-1, degrees[1])] {
        let settings = Config {
            degree_forward: forward,
            degree_backward: backward,
            ..settings
        };
        let asked = Plan::new(&mask, &shape(), 4, 1, &settings).unwrap();
        assert_eq!(asked.forward.stages.len(), chosen.forward.stages.len());
        assert_ne!(asked.hash, chosen.hash, "degrees {forward} and {backward}");
    }
}
