//! Where queries travel: every visible cell is computed once over all ranks, nothing travels for nothing, and never more
//! bytes or cells a rank than the settings allow.

mod plan_common;

use magi_attn::plan::{Guests, Pass, Placement, Plan, Stage, Stats, verify};
use magi_attn::types::*;
use plan_common::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Many heads of both kinds, or eight query heads a key head.
fn heads(heads_q: i64, heads_kv: i64) -> AttnShape {
    AttnShape {
        heads_q,
        heads_kv,
        head_dim: 128,
        head_dim_v: 128,
        dtype: DType::Bf16,
    }
}

fn travelling(config: Config) -> Config {
    Config {
        qo_comm: true,
        sanity_check: true,
        ..config
    }
}

fn plans_of(mask: &Mask, placement: &Arc<Placement>, shape: &AttnShape, config: &Config) -> Vec<Plan> {
    (0..placement.world())
        .map(|rank| Plan::with_placement(mask, shape, Arc::clone(placement), rank, config).unwrap())
        .collect()
}

/// Global cells that one set of slices computes, by the tokens of its query rows and of its two sources of keys.
fn add_cells(count: &mut Cells, slices: &[StageSlice], queries: &[i64], keys: [&[i64]; 2]) {
    for s in slices {
        for q in s.slice.q.start..s.slice.q.end {
            for k in s.slice.k.start..s.slice.k.end {
                if s.slice.contains(q, k) {
                    let key = keys[usize::from(s.source)][k as usize];
                    count[queries[q as usize] as usize][key as usize] += 1;
                }
            }
        }
    }
}

/// The tokens that the stages of a rank use of what they received; panics when anything else was received, when it came
/// twice, or when the rank owns it.
fn check_received<'a>(
    fetched: impl Iterator<Item = &'a Ranges>,
    used: &BTreeSet<i64>,
    own: &[i64],
    what: &str,
) {
    let all: Vec<i64> = fetched.flat_map(flat).collect();
    let distinct: BTreeSet<i64> = all.iter().copied().collect();
    assert_eq!(all.len(), distinct.len(), "{what} received twice");
    assert_eq!(&distinct, used, "{what} received and used");
    assert!(
        own.iter().all(|t| !distinct.contains(t)),
        "{what} owned and received"
    );
}

/// Counts the cells of one pass of all ranks and checks what each receives.
fn check_pass(mask: &Mask, placement: &Placement, passes: &[&Pass]) {
    let (q, k) = (
        tokens_of(placement.side(Side::Q)),
        tokens_of(placement.side(Side::K)),
    );
    let mut count = vec![vec![0; mask.total_k() as usize]; mask.total_q() as usize];
    for (rank, pass) in passes.iter().enumerate() {
        let (mut keys_used, mut queries_used) = (BTreeSet::new(), BTreeSet::new());
        for stage in &pass.stages {
            let (keys, guests) = (flat(&stage.recv), flat(&stage.guests.recv));
            add_cells(&mut count, &stage.slices, &q[rank], [&k[rank], &keys]);
            add_cells(&mut count, &stage.guests.slices, &guests, [&k[rank], &keys]);
            for s in stage
                .slices
                .iter()
                .chain(&stage.guests.slices)
                .filter(|s| s.source == 1)
            {
                let seen = s.slice.visible_keys();
                keys_used.extend((seen.start..seen.end).map(|row| keys[row as usize]));
            }
            for s in &stage.guests.slices {
                let rows = s.slice.visible_rows();
                queries_used.extend((rows.start..rows.end).map(|row| guests[row as usize]));
            }
        }
        let stages = &pass.stages;
        check_received(stages.iter().map(|s| &s.recv), &keys_used, &k[rank], "keys");
        check_received(
            stages.iter().map(|s| &s.guests.recv),
            &queries_used,
            &q[rank],
            "queries",
        );
    }
    assert_eq!(count, cells(mask));
}

/// Between two ranks, what one sends in a stage is what the other receives.
fn check_agreement(passes: &[&Pass]) {
    let sizes = |pieces: &[Piece], peer: usize| -> Vec<i64> {
        let of_peer = pieces.iter().filter(|p| p.peer as usize == peer);
        of_peer.map(|p| p.rows.len()).collect()
    };
    for i in 0..passes[0].stages.len() {
        for (a, from) in passes.iter().enumerate() {
            for (b, to) in passes.iter().enumerate() {
                for transfer in [
                    |s: &Stage| s.transfer.clone(),
                    |s: &Stage| s.guests.transfer.clone(),
                ] {
                    let (from, to) = (transfer(&from.stages[i]), transfer(&to.stages[i]));
                    assert_eq!(
                        sizes(&from.sends, b),
                        sizes(&to.recvs, a),
                        "stage {i}, {a} to {b}"
                    );
                }
            }
        }
    }
}

/// What `Stats` says of both passes against the plans and against keys alone.
fn check_stats(
    mask: &Mask,
    placement: &Placement,
    shape: &AttnShape,
    config: &Config,
    plans: &[Plan],
) -> bool {
    let stats = Stats::new(mask, placement, shape, config).unwrap();
    let keys_only = Stats::new(
        mask,
        placement,
        shape,
        &Config {
            qo_comm: false,
            ..*config
        },
    )
    .unwrap();
    let world = placement.world() as i64;
    let limit = keys_only.area.iter().max().unwrap();
    let slack = mask.area() * (1000 + config.balance_slack) / (1000 * world);
    let element = shape.dtype.size() as i64;
    let acc = shape.dtype.accumulator().size() as i64;
    let (hq, hkv, d, dv) = (shape.heads_q, shape.heads_kv, shape.head_dim, shape.head_dim_v);
    let wire = |high: bool| if high { acc } else { element };
    for (i, area) in [&stats.area, &stats.area_backward].into_iter().enumerate() {
        let volume = &stats.volume[i];
        let sum = |f: fn(&Stage) -> i64| -> i64 {
            let pass = |p: &Plan| {
                if i == 0 {
                    Arc::clone(&p.forward)
                } else {
                    Arc::clone(&p.backward)
                }
            };
            plans
                .iter()
                .map(|p| pass(p).stages.iter().map(f).sum::<i64>())
                .sum()
        };
        assert_eq!(volume.keys, sum(|s| s.transfer.recv_rows));
        assert_eq!(volume.queries, sum(|s| s.guests.transfer.recv_rows));
        // Bytes, worked out here from the shape.
        let grads = wire(config.backward_high_precision_reduce);
        let (key, out, back) = if i == 0 {
            let home = dv * wire(config.forward_high_precision_reduce) + acc;
            (hkv * (d + dv) * element, hq * d * element, hq * home)
        } else {
            let fetched = hq * ((d + dv) * element + 2 * acc);
            (hkv * (d + dv) * (element + grads), fetched, hq * d * grads)
        };
        assert_eq!(volume.key_bytes, volume.keys * key);
        assert_eq!(volume.query_bytes, volume.queries * out);
        assert_eq!(volume.output_bytes, volume.queries * back);
        assert_eq!(volume.keys_only_bytes, keys_only.ideal_volume * key);
        assert_eq!(keys_only.volume[i].bytes(), volume.keys_only_bytes);
        assert_eq!(volume.received.iter().sum::<i64>(), volume.bytes());
        assert_eq!(volume.sent.iter().sum::<i64>(), volume.bytes());
        assert!(volume.bytes() <= volume.keys_only_bytes, "{volume:?}");
        assert!(volume.most_bytes() <= volume.keys_only_most_bytes, "{volume:?}");
        if volume.queries > 0 {
            let (before, after) = (volume.keys_only_bytes, volume.bytes());
            assert!(after < before || volume.most_bytes() < volume.keys_only_most_bytes);
        }
        assert_eq!(area.iter().sum::<i64>(), mask.area());
        assert!(
            *area.iter().max().unwrap() <= slack.max(*limit),
            "{area:?}, limit {limit}, slack {slack}"
        );
    }
    for (timeline, backward) in [(&stats.forward, false), (&stats.backward, true)] {
        for (r, plan) in plans.iter().enumerate() {
            let pass = if backward { &plan.backward } else { &plan.forward };
            assert_eq!(timeline.stages.len(), pass.stages.len());
            for (told, stage) in timeline.stages.iter().zip(&pass.stages) {
                let (keys, queries) = (&stage.transfer, &stage.guests.transfer);
                assert_eq!(told[r].area, stage.cells());
                assert_eq!(
                    (told[r].received, told[r].sent),
                    (keys.recv_rows, keys.send_rows())
                );
                let have = (told[r].queries_received, told[r].queries_sent);
                assert_eq!(have, (queries.recv_rows, queries.send_rows()));
            }
        }
    }
    for (r, plan) in plans.iter().enumerate() {
        let cells = |p: &Pass| p.stages.iter().map(Stage::cells).sum::<i64>();
        assert_eq!(
            [cells(&plan.forward), cells(&plan.backward)],
            [stats.area[r], stats.area_backward[r]]
        );
        let rows = |f: fn(&Stage) -> i64| plan.forward.stages.iter().map(f).sum::<i64>();
        assert_eq!(stats.received[r], rows(|s| s.transfer.recv_rows));
        assert_eq!(stats.sent[r], rows(|s| s.transfer.send_rows()));
        assert_eq!(stats.queries_received[r], rows(|s| s.guests.transfer.recv_rows));
        assert_eq!(stats.queries_sent[r], rows(|s| s.guests.transfer.send_rows()));
    }
    stats.volume.iter().any(|v| v.queries > 0)
}

#[test]
fn random_masks_on_random_placements() {
    let mut random = Random::new(31);
    let (mut travelled, mut third) = (0, 0);
    for round in 0..500 {
        let (total_q, total_k) = (random.within(1, 30), random.within(1, 60));
        let square = round % 3 == 0;
        let mask = random_mask(&mut random, total_q, if square { total_q } else { total_k }, 8);
        let world = random.within(1, 6) as usize;
        let placement = Arc::new(random_placement(&mut random, &mask, world));
        let shape = [heads(1, 1), heads(4, 4), heads(4, 2), heads(8, 1)][round % 4];
        let degree = |random: &mut Random| random.within(-1, 8) as i32;
        let settings = travelling(Config {
            balance_slack: [0, 9, 100, 1000][random.within(0, 3) as usize],
            backward_high_precision_reduce: round % 2 == 0,
            forward_high_precision_reduce: round % 5 == 0,
            bwd_hide_tail_reduce: HostStage::numbered(round as i64 / 4 % 4 - 1).unwrap(),
            ..config(degree(&mut random), degree(&mut random))
        });
        let plans = plans_of(&mask, &placement, &shape, &settings);
        for pass in passes(&plans) {
            check_pass(&mask, &placement, &pass);
            check_agreement(&pass);
            let foreign = |s: &Stage| s.guests.slices.iter().any(|s| s.source == 1);
            third += usize::from(pass.iter().any(|p| p.stages.iter().any(foreign)));
        }
        assert!(plans.iter().all(|p| p.hash == plans[0].hash));
        travelled += usize::from(check_stats(&mask, &placement, &shape, &settings, &plans));
    }
    assert!(
        travelled > 150 && third > 5,
        "{travelled} plans move queries, {third} to a third rank"
    );
}

fn typed(q: (i64, i64), k: (i64, i64), mask_type: MaskType) -> TypedSlice {
    TypedSlice {
        q: Range::new(q.0, q.1),
        k: Range::new(k.0, k.1),
        mask_type,
    }
}

/// The masks that docs/planning.md names, their ranks and heads, and per cent of the bytes of keys alone that both passes
/// stay below.
fn named() -> Vec<(&'static str, Mask, usize, AttnShape, [i64; 2])> {
    let few = Mask::new(&[typed((0, 4096), (0, 262_144), MaskType::Full)], 4096, 262_144).unwrap();
    let all = Range::new(0, 131_072);
    let window = |start, end| Slice::new(Range::new(start, end), all, Band::new(-1023, 0));
    let global = Slice::new(Range::new(65_536, 65_792), all, Band::FULL);
    let rows = Mask::from_slices(
        vec![window(0, 65_536), global, window(65_792, all.end)],
        all.end,
        all.end,
    );
    vec![
        ("few queries", few, 8, heads(32, 8), [7, 5]),
        ("global rows", rows.unwrap(), 8, heads(32, 8), [45, 40]),
        (
            "causal",
            documents(&[65_536], MaskType::Causal),
            32,
            heads(32, 32),
            [50, 45],
        ),
    ]
}

#[test]
fn masks_of_the_documentation_move_fewer_bytes() {
    for (name, mask, world, shape, percent) in named() {
        let settings = Config {
            qo_comm: true,
            ..Config::default()
        };
        let placement = Placement::new(&mask, world, &settings).unwrap();
        let stats = Stats::new(&mask, &placement, &shape, &settings).unwrap();
        for (volume, percent) in stats.volume.iter().zip(percent) {
            let (bytes, keys_only) = (volume.bytes(), volume.keys_only_bytes);
            assert!(
                bytes * 100 < keys_only * percent,
                "{name}: {bytes} of {keys_only}"
            );
            assert!(volume.most_bytes() < volume.keys_only_most_bytes, "{name}");
            println!("{name}: {:.3}", bytes as f64 / keys_only as f64);
        }
    }
}

#[test]
fn bytes_beyond_what_can_be_counted() {
    let total = 1i64 << 31;
    let mask = documents(&[total], MaskType::Full);
    let shape = AttnShape {
        heads_q: 65_536,
        heads_kv: 65_536,
        head_dim: 1024,
        head_dim_v: 1024,
        dtype: DType::F64,
    };
    for qo_comm in [false, true] {
        let settings = Config {
            qo_comm,
            chunk_size: 1 << 24,
            ..Config::default()
        };
        let placement = Placement::new(&mask, 64, &settings).unwrap();
        let stats = Stats::new(&mask, &placement, &shape, &settings).unwrap();
        for volume in &stats.volume {
            assert_eq!((volume.bytes(), volume.keys_only_bytes), (i64::MAX, i64::MAX));
            assert_eq!(volume.queries, 0);
        }
    }
}

/// FNV-1a of everything a plan says.
fn digest(plan: &Plan) -> u64 {
    let text = format!("{:?}{:?}{:?}", plan.hash, plan.forward, plan.backward);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn plans_are_the_same_on_every_machine() {
    // A change here means that ranks of different builds no longer agree.
    let few = Mask::new(&[typed((0, 96), (0, 9000), MaskType::Full)], 96, 9000).unwrap();
    let cross = random_mask(&mut Random::new(5), 90, 300, 20);
    let causal = documents(&[20_000], MaskType::Causal);
    let masks = [
        (few, 5, 1, heads(4, 2)),
        (cross, 7, 0, heads(2, 2)),
        (causal, 16, 1, heads(4, 4)),
    ];
    // Stages asked for both ways, and backward ones that the planner chooses.
    let got = masks.map(|(mask, world, rank, shape)| {
        [3, Config::AUTO_DEGREE].map(|backward| {
            let settings = travelling(config(2, backward));
            let plan = Plan::new(&mask, &shape, world, rank, &settings).unwrap();
            assert!(plan.forward.stages.iter().any(|s| !s.guests.transfer.is_empty()));
            digest(&plan)
        })
    });
    assert_eq!(got, PINNED, "{got:#x?}");
}

/// Of few queries, of unequal totals, and of one causal document.
const PINNED: [[u64; 2]; 3] = [
    [0x2b14_74d5_2b95_dc1a, 0x949d_cde4_ba31_0b9c],
    [0x8994_b3ad_dcca_2cb4, 0x1849_a521_5044_36c6],
    [0x6c07_ad99_d75d_806f, 0xa7cb_623c_abfd_8225],
];

#[test]
fn nothing_changes_where_moving_queries_saves_nothing() {
    // Eight query heads a key head on one causal document: a query costs more than eight keys.
    let mask = documents(&[4096], MaskType::Causal);
    let shape = heads(32, 4);
    let plain = config(2, 1);
    for rank in 0..4 {
        let without = Plan::new(&mask, &shape, 4, rank, &plain).unwrap();
        let with = Plan::new(&mask, &shape, 4, rank, &travelling(plain)).unwrap();
        assert_eq!(
            (&without.forward, &without.backward),
            (&with.forward, &with.backward)
        );
        // The ranks must still agree on the setting.
        assert_ne!(without.hash, with.hash);
    }
    let alone = Plan::new(&mask, &heads(1, 1), 1, 0, &travelling(plain)).unwrap();
    assert!(alone.forward.stages.iter().all(|s| s.guests == Guests::default()));
}

#[test]
fn a_mesh_is_refused() {
    let mask = documents(&[64], MaskType::Causal);
    let mesh = Some(Mesh { inter: 2, intra: 2 });
    for settings in [
        Config {
            mesh,
            ..travelling(Config::default())
        },
        Config {
            hierarchical_comm: true,
            ..travelling(Config::default())
        },
    ] {
        let error = Plan::new(&mask, &heads(1, 1), 4, 0, &settings).unwrap_err();
        assert_eq!(error.status, Status::NotSupported);
        assert!(error.message.contains("qo_comm") && error.message.contains("hierarchical_comm"));
    }
}

/// What `verify` says about a pass, and what was done to it.
type Change = (&'static str, fn(&mut Pass));

#[test]
fn verify_finds_what_is_wrong_with_guests() {
    let mask = Mask::new(&[typed((0, 24), (0, 600), MaskType::Causal)], 24, 600).unwrap();
    let placement = Arc::new(Placement::new(&mask, 3, &config(2, 2)).unwrap());
    let settings = Config {
        balance_slack: 100,
        ..travelling(config(2, 2))
    };
    let plan = Plan::with_placement(&mask, &heads(2, 2), placement, 1, &settings).unwrap();
    verify(&plan, &mask).unwrap();
    let changes: [Change; 9] = [
        ("receives other rows", |p| {
            p.stages[1].guests.transfer.recvs[0].rows.end -= 1
        }),
        ("receives other rows", |p| {
            p.stages[1].guests.transfer.recv_rows += 1
        }),
        ("says area", |p| p.stages[1].guests.area += 1),
        ("sends rows out of order", |p| {
            p.stages[1].guests.transfer.sends.reverse()
        }),
        ("which needs", |p| _ = p.stages[2].guests.transfer.sends.pop()),
        ("not those it needs", |p| p.stages[1].guests = Guests::default()),
        ("visible cells", |p| {
            let guests = &mut p.stages[1].guests;
            guests.slices.pop();
            guests.area = guests.slices.iter().map(|s| s.slice.area()).sum();
        }),
        ("computed twice", |p| {
            let guests = &mut p.stages[1].guests;
            guests.slices.push(guests.slices[0]);
            guests.area = guests.slices.iter().map(|s| s.slice.area()).sum();
        }),
        ("leaves its tensors", |p| {
            let slice = &mut p.stages[1].guests.slices[0];
            slice.slice = slice.slice.shift(1000, 0);
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
            assert!(error.message.contains(message), "{message}: {error}");
        }
    }
    // Guests where queries stay at home.
    let home = Config {
        qo_comm: false,
        ..settings
    };
    let mut wrong = Plan::with_placement(&mask, &heads(2, 2), Arc::clone(&plan.placement), 1, &home).unwrap();
    let guests = plan.forward.stages[1].guests.clone();
    Arc::make_mut(&mut wrong.forward).stages[1].guests = guests;
    assert!(
        verify(&wrong, &mask)
            .unwrap_err()
            .message
            .contains("do not travel")
    );
}
