//! Ranks that do not mean the same plan: all of them hear of it, nobody waits, and the communicator stays good.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, Key};
use magi_attn::types::{AttnShape, Config, DType, DsinkReduce, Error, Mask, PlacementKind, Result, Status};

const SHAPE: AttnShape = AttnShape {
    heads_q: 4,
    heads_kv: 2,
    head_dim: 16,
    head_dim_v: 8,
    dtype: DType::F32,
};

fn mask(window: i64) -> Arc<Mask> {
    Arc::new(Mask::from_sliding_window(96, 96, (window, 0), 0).unwrap())
}

fn good(context: &Arc<Context>) -> Result<Arc<Key>> {
    let config = Config {
        chunk_size: 4,
        ..Config::default()
    };
    Key::create(context, &mask(20), SHAPE, config)
}

/// Every rank prepares what `make` gives it, then all prepare the same; gives the hashes and errors of the first.
fn disagree(
    world: usize,
    make: impl Fn(usize, &Arc<Context>) -> Result<Arc<Key>> + Sync,
) -> Vec<(u64, Error)> {
    let told = Mutex::new(vec![None; world]);
    let start = Instant::now();
    local::run(world, |rank, comm| {
        let context = Context::new(comm);
        context.set_timeout(Duration::from_secs(20))?;
        let key = make(rank, &context)?;
        let error = key.prepare(Stream::NULL).unwrap_err();
        told.lock().unwrap()[rank] = Some((key.hash()?, error));
        assert!(context.async_error().is_none());
        good(&context)?.prepare(Stream::NULL)
    })
    .unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "somebody waited");
    told.into_inner().unwrap().into_iter().flatten().collect()
}

/// One rank, `odd`, differs from all others: every message names its hash and rank, and theirs.
fn expect_odd(what: &str, told: &[(u64, Error)], odd: usize) {
    let other = usize::from(odd == 0);
    assert_ne!(told[odd].0, told[other].0, "{what}");
    let others: Vec<String> = (0..told.len())
        .filter(|&r| r != odd)
        .map(|r| r.to_string())
        .collect();
    for (_, error) in told {
        assert_eq!(error.status, Status::PlanMismatch, "{what}");
        let plural = if others.len() == 1 { "rank" } else { "ranks" };
        for words in [
            format!("rank {odd} compared plan {:#018x}", told[odd].0),
            format!(
                "{plural} {} compared plan {:#018x}",
                others.join(", "),
                told[other].0
            ),
        ] {
            assert!(
                error.message.contains(&words),
                "{what}: {} has no {words:?}",
                error.message
            );
        }
    }
}

#[test]
fn another_mask_is_named_on_2_to_8_ranks() {
    for world in 2..=8 {
        for odd in [0, world - 1] {
            let told = disagree(world, |rank, context| {
                let window = if rank == odd { 21 } else { 20 };
                Key::create(context, &mask(window), SHAPE, Config::default())
            });
            expect_odd("mask", &told, odd);
        }
    }
}

#[test]
fn another_config_or_shape_is_named() {
    let plain = Config {
        chunk_size: 4,
        degree_forward: 1,
        degree_backward: 1,
        ..Config::default()
    };
    let with = |change: fn(&mut Config)| {
        let mut config = plain;
        change(&mut config);
        config
    };
    let configs = [
        ("chunk_size", with(|c| c.chunk_size = 8)),
        ("placement", with(|c| c.placement = PlacementKind::Sequential)),
        ("degree_forward", with(|c| c.degree_forward = 3)),
        ("degree_backward", with(|c| c.degree_backward = 0)),
        ("dsink_reduce", with(|c| c.dsink_reduce = DsinkReduce::Sum)),
        (
            "high precision",
            with(|c| c.backward_high_precision_reduce = true),
        ),
    ];
    for (i, (what, config)) in configs.into_iter().enumerate() {
        let (world, odd) = (2 + i, i);
        let told = disagree(world, |rank, context| {
            Key::create(
                context,
                &mask(20),
                SHAPE,
                if rank == odd { config } else { plain },
            )
        });
        expect_odd(what, &told, odd);
    }
    for (what, shape) in [
        ("heads", AttnShape { heads_kv: 1, ..SHAPE }),
        (
            "dtype",
            AttnShape {
                dtype: DType::F64,
                ..SHAPE
            },
        ),
    ] {
        let told = disagree(3, |rank, context| {
            Key::create(context, &mask(20), if rank == 1 { shape } else { SHAPE }, plain)
        });
        expect_odd(what, &told, 1);
    }
}

#[test]
fn another_placement_is_named() {
    let told = disagree(4, |rank, context| {
        let key = good(context)?;
        let other = if rank == 2 { mask(50) } else { mask(20) };
        let from = Key::create(context, &other, SHAPE, *key.config())?;
        from.create_for_new_mask(&mask(20), SHAPE, *key.config())
    });
    expect_odd("placement", &told, 2);
}

#[test]
fn every_rank_with_a_plan_of_its_own_is_named() {
    for world in [2, 5, 8] {
        let told = disagree(world, |rank, context| {
            Key::create(context, &mask(10 + rank as i64), SHAPE, Config::default())
        });
        for (_, error) in &told {
            for (rank, (hash, _)) in told.iter().enumerate() {
                let words = format!("rank {rank} compared plan {hash:#018x}");
                assert!(error.message.contains(&words), "{}", error.message);
            }
        }
    }
}

#[test]
fn calls_in_another_order_are_told_and_can_be_put_right() {
    for world in 2..=8 {
        local::run(world, |rank, comm| {
            let context = Context::new(comm);
            context.set_timeout(Duration::from_secs(20))?;
            let keys = [mask(5), mask(6)].map(|m| Key::create(&context, &m, SHAPE, Config::default()));
            let [a, b] = keys;
            let (a, b) = (a?, b?);
            let order = if rank == world - 1 { [&b, &a] } else { [&a, &b] };
            for key in order {
                let error = key.prepare(Stream::NULL).unwrap_err();
                assert_eq!(error.status, Status::PlanMismatch);
                for hash in [a.hash()?, b.hash()?] {
                    assert!(
                        error.message.contains(&format!("{hash:#018x}")),
                        "{}",
                        error.message
                    );
                }
            }
            a.prepare(Stream::NULL)?;
            b.prepare(Stream::NULL)
        })
        .unwrap();
    }
}
