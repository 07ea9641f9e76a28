//! `verify` accepts what the planner makes and nothing that computes or moves anything else; hashes tell plans apart.

mod plan_common;

use magi_attn::plan::{Pass, Placement, Plan, SidePlacement, verify};
use magi_attn::types::*;
use plan_common::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Count = BTreeMap<(i64, i64), u32>;

/// How often the forward pass computes each global cell; `None` when a slice leaves its tensors.
fn computed(plan: &Plan) -> Option<Count> {
    let queries = &tokens_of(plan.placement.side(Side::Q))[plan.rank];
    let own = &tokens_of(plan.placement.side(Side::K))[plan.rank];
    let mut count = Count::new();
    for stage in &plan.forward.stages {
        let received = flat(&stage.recv);
        for s in &stage.slices {
            let source = if s.source == 0 { own } else { &received };
            for q in s.slice.q.start..s.slice.q.end {
                for k in s.slice.k.start..s.slice.k.end {
                    if s.slice.contains(q, k) {
                        let q = queries.get(usize::try_from(q).ok()?)?;
                        let k = source.get(usize::try_from(k).ok()?)?;
                        *count.entry((*q, *k)).or_default() += 1;
                    }
                }
            }
        }
    }
    Some(count)
}

/// Changes one number of one slice, or drops or repeats a slice, and keeps the stage's area honest.
fn mutate(random: &mut Random, plan: &mut Plan) -> bool {
    let forward: &mut Pass = Arc::make_mut(&mut plan.forward);
    let full: Vec<usize> = (0..forward.stages.len())
        .filter(|&i| !forward.stages[i].slices.is_empty())
        .collect();
    if full.is_empty() {
        return false;
    }
    let stage = &mut forward.stages[full[random.within(0, full.len() as i64 - 1) as usize]];
    let at = random.within(0, stage.slices.len() as i64 - 1) as usize;
    let by = [-1, 1][random.within(0, 1) as usize];
    let slice = &mut stage.slices[at].slice;
    match random.within(0, 8) {
        0 => slice.q.start += by,
        1 => slice.q.end += by,
        2 => slice.k.start += by,
        3 => slice.k.end += by,
        4 if slice.band.has_lo() => slice.band.lo += by,
        5 if slice.band.has_hi() => slice.band.hi += by,
        6 => *slice = slice.shift(0, by),
        7 => _ = stage.slices.remove(at),
        8 => stage.slices.push(stage.slices[at]),
        _ => stage.slices[at].source ^= 1,
    }
    stage.area = stage.slices.iter().map(|s| s.slice.area()).sum();
    true
}

#[test]
fn a_changed_slice_is_found_exactly_when_it_changes_a_cell() {
    let mut random = Random::new(23);
    let (mut bad, mut good) = (0, 0);
    for round in 0..1500 {
        let total = random.within(1, 24);
        let mask = random_mask(&mut random, total, total, 8);
        let world = random.within(1, 4) as usize;
        let placement = Arc::new(random_placement(&mut random, &mask, world));
        let settings = config([0, 1, 2][round % 3], 1);
        let rank = random.within(0, world as i64 - 1) as usize;
        let mut plan = Plan::with_placement(&mask, &shape(), placement, rank, &settings).unwrap();
        let before = computed(&plan).unwrap();
        if !mutate(&mut random, &mut plan) {
            continue;
        }
        // A slice of received keys in a stage that says "local" is as wrong as one that sees other cells.
        match computed(&plan) {
            Some(after) if after == before => {
                verify(&plan, &mask).unwrap();
                good += 1;
            }
            _ => {
                let error = verify(&plan, &mask).unwrap_err();
                assert_eq!(error.status, Status::Internal);
                bad += 1;
            }
        }
    }
    assert!(
        bad > 500 && good > 20,
        "{bad} changes that matter, {good} that do not"
    );
}

/// What `verify` says about a pass, and what was done to it.
type Change = (&'static str, fn(&mut Pass));

#[test]
fn a_changed_transfer_is_found() {
    let mask = documents(&[40], MaskType::Causal);
    let settings = Config {
        chunk_size: 3,
        // By area alone: every rank then receives and sends in every stage, so that there is something to change.
        effort: Effort::Balance,
        ..config(2, 2)
    };
    let plan = Plan::new(&mask, &shape(), 3, 1, &settings).unwrap();
    verify(&plan, &mask).unwrap();
    let changes: [Change; 9] = [
        ("receives other rows", |p| {
            p.stages[1].transfer.recvs[0].rows.end -= 1
        }),
        ("receives other rows", |p| p.stages[1].transfer.recvs[0].peer = 1),
        ("receives other rows", |p| p.stages[1].transfer.recvs.swap(0, 1)),
        ("receives other rows", |p| p.stages[1].transfer.recv_rows += 1),
        ("says area", |p| p.stages[0].area += 1),
        ("sends rows out of order", |p| {
            p.stages[2].transfer.sends.swap(0, 1)
        }),
        ("sends rows out of order", |p| {
            p.stages[1].transfer.sends[0].rows = Range::new(-1, 1)
        }),
        ("which needs", |p| _ = p.stages[2].transfer.sends.pop()),
        ("not those it needs", |p| {
            p.stages[1].recv = Ranges::new();
            p.stages[1].transfer = Transfer::default();
            p.stages[1].slices.clear();
            p.stages[1].area = 0;
        }),
    ];
    for (message, change) in changes {
        for backward in [false, true] {
            let mut wrong = plan.clone();
            let pass = if backward {
                &mut wrong.backward
            } else {
                &mut wrong.forward
            };
            change(Arc::make_mut(pass));
            let error = verify(&wrong, &mask).unwrap_err();
            assert_eq!(error.status, Status::Internal);
            assert!(error.message.contains(message), "{error}");
            assert!(
                error
                    .message
                    .starts_with(if backward { "backward" } else { "forward" }),
                "{error}"
            );
        }
    }
}

#[test]
fn another_mask_is_found() {
    let settings = Config {
        sanity_check: true,
        ..config(1, 1)
    };
    let causal = documents(&[64], MaskType::Causal);
    for rank in 0..4 {
        let plan = Plan::new(&causal, &shape(), 4, rank, &settings).unwrap();
        assert!(verify(&plan, &documents(&[64], MaskType::Full)).is_err());
        assert!(verify(&plan, &documents(&[32, 32], MaskType::Causal)).is_err());
    }
}

#[test]
fn hashes_differ_when_anything_that_shapes_a_plan_differs() {
    let mask = documents(&[30, 34], MaskType::Causal);
    let base = Config {
        bwd_hide_tail_reduce: HostStage::First,
        ..config(1, 1)
    };
    let hash = |mask: &Mask, shape: AttnShape, world: usize, config: &Config| {
        let of = |rank| Plan::new(mask, &shape, world, rank, config).unwrap().hash;
        let first = of(0);
        assert!((1..world).all(|rank| of(rank) == first));
        first
    };
    let mut hashes = vec![
        hash(&mask, shape(), 4, &base),
        hash(&mask, shape(), 3, &base),
        hash(&documents(&[34, 30], MaskType::Causal), shape(), 4, &base),
        hash(&documents(&[30, 34], MaskType::Full), shape(), 4, &base),
        hash(&documents(&[30, 35], MaskType::Causal), shape(), 4, &base),
    ];
    let settings: [fn(&mut Config); 10] = [
        |c| c.chunk_size = 5,
        |c| c.placement = PlacementKind::Sequential,
        |c| c.degree_forward = 2,
        |c| c.degree_backward = 2,
        |c| c.backward_high_precision_reduce = true,
        |c| c.dsink_reduce = DsinkReduce::Sum,
        |c| c.dsink_reduce = DsinkReduce::Avg,
        |c| (c.degree_forward, c.degree_backward) = (2, 2),
        |c| c.bwd_hide_tail_reduce = HostStage::Last,
        |c| c.bwd_hide_tail_reduce = HostStage::Split,
    ];
    for change in settings {
        let mut config = base;
        change(&mut config);
        hashes.push(hash(&mask, shape(), 4, &config));
    }
    let shapes: [fn(&mut AttnShape); 5] = [
        |s| s.heads_q = 8,
        |s| s.heads_kv = 1,
        |s| s.head_dim = 32,
        |s| s.head_dim_v = 32,
        |s| s.dtype = DType::Bf16,
    ];
    for change in shapes {
        let mut other = shape();
        change(&mut other);
        hashes.push(hash(&mask, other, 4, &base));
    }
    let side = SidePlacement::from_owners(64, 16, &[3, 2, 1, 0], 4).unwrap();
    let placement = Arc::new(Placement::shared(Arc::new(side)));
    hashes.push(
        Plan::with_placement(&mask, &shape(), placement, 0, &base)
            .unwrap()
            .hash,
    );
    // Shapes no plan, but ranks that keep different numbers of keys would prepare at different times.
    let cache = Config {
        cache_size: 3,
        ..base
    };
    hashes.push(hash(&mask, shape(), 4, &cache));
    let distinct: BTreeSet<u64> = hashes.iter().copied().collect();
    assert_eq!(distinct.len(), hashes.len());

    let unrelated = Config {
        sanity_check: true,
        ..base
    };
    assert_eq!(hash(&mask, shape(), 4, &unrelated), hashes[0]);
}

#[test]
fn equal_stages_share_a_pass() {
    let mask = documents(&[64], MaskType::Causal);
    let shared = |bwd_hide_tail_reduce| {
        let settings = Config {
            bwd_hide_tail_reduce,
            ..config(2, 2)
        };
        let plan = Plan::new(&mask, &shape(), 4, 2, &settings).unwrap();
        Arc::ptr_eq(&plan.forward, &plan.backward)
    };
    assert!(shared(HostStage::First));
    assert!(!shared(HostStage::Last) && !shared(HostStage::Split));
}
