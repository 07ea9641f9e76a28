//! Rolling along the global sequence against index arithmetic.

mod common_backend;
mod common_reference;

use std::sync::Arc;

use common_backend::{Buffer, Layout};
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::roll::{pad_size, roll};
use magi_attn::runtime::{Context, Key};
use magi_attn::types::{AttnShape, Config, DType, Device, Mask, PlacementKind, Result, Side, Status, Tensor};

const SHAPE: AttnShape = AttnShape {
    heads_q: 1,
    heads_kv: 1,
    head_dim: 8,
    head_dim_v: 8,
    dtype: DType::F32,
};

fn key(
    context: &Arc<Context>,
    mask: &Arc<Mask>,
    chunk_size: i64,
    placement: PlacementKind,
) -> Result<Arc<Key>> {
    let config = Config {
        chunk_size,
        placement,
        ..Config::default()
    };
    Key::create(context, mask, SHAPE, config)
}

/// A value that names token and column.
fn value(token: i64, column: i64) -> f64 {
    (token * 4 + column) as f64
}

/// Rolls `[tokens, 3]` on one rank and checks every row by its global position.
/// The first `valid` tokens roll; -1: all.
fn check(key: &Key, side: Side, (shift, valid): (i64, i64), dtype: DType, layout: Layout) -> Result<()> {
    let ids: Vec<i64> = key.position_ids(side)?.collect();
    let total = key.placement(side).total();
    let rows = |of: &dyn Fn(i64) -> i64| -> Vec<f64> {
        ids.iter()
            .flat_map(|&t| (0..3).map(move |c| (t, c)))
            .map(|(t, c)| value(of(t), c))
            .collect()
    };
    let shape = [ids.len() as i64, 3];
    let mut x = Buffer::new(&rows(&|t| t), &shape, dtype, layout);
    let mut y = Buffer::poisoned(&shape, dtype, layout);
    roll(key, side, x.tensor(), shift, valid, y.tensor(), Stream::NULL)?;
    let valid = if valid < 0 { total } else { valid };
    let rolled = |t: i64| (i128::from(t) - i128::from(shift)).rem_euclid(i128::from(valid)) as i64;
    let want = rows(&|t| if t < valid { rolled(t) } else { t });
    assert_eq!(
        y.values(),
        want,
        "shift {shift} of {total} on rank {}",
        key.context().rank()
    );
    // The gradient goes back where it came from.
    let mut back = Buffer::poisoned(&shape, dtype, layout);
    if let Some(inverse) = shift.checked_neg() {
        roll(key, side, y.tensor(), inverse, valid, back.tensor(), Stream::NULL)?;
        assert_eq!(back.values(), x.values());
    }
    Ok(())
}

#[test]
fn every_token_moves_to_its_place() {
    for world in 1..=8 {
        // Tails shorter than a chunk, ranks without tokens, no tokens at all.
        for (total, chunk) in [(61, 4), (7, 3), (3, 1), (0, 1), (40, 5)] {
            let mask = Arc::new(Mask::from_sliding_window(total, total, (-1, 0), 0).unwrap());
            for kind in [PlacementKind::Balanced, PlacementKind::Sequential] {
                local::run(world, |_, comm| {
                    let key = key(&Context::new(comm), &mask, chunk, kind)?;
                    for shift in [0, 1, -1, 5, total, total / 2, -3 * total - 2, i64::MAX, i64::MIN] {
                        check(&key, Side::Q, (shift, -1), DType::F32, Layout::Dense)?;
                    }
                    // Padding at the end stays where it is.
                    for valid in [0, total.min(1), total / 2, total - total / 7, total] {
                        for shift in [1, -1, 3 * total + 5] {
                            check(&key, Side::Q, (shift, valid), DType::F32, Layout::Dense)?;
                        }
                    }
                    check(&key, Side::K, (2, -1), DType::F16, Layout::Padded)
                })
                .unwrap();
            }
        }
    }
}

#[test]
fn sides_of_different_length_roll_by_themselves() {
    let mask = Arc::new(Mask::from_sliding_window(29, 50, (-1, 0), 0).unwrap());
    local::run(3, |_, comm| {
        let key = key(&Context::new(comm), &mask, 2, PlacementKind::Balanced)?;
        check(&key, Side::Q, (7, -1), DType::F64, Layout::Dense)?;
        check(&key, Side::K, (7, 45), DType::Bf16, Layout::Dense)
    })
    .unwrap();
}

#[test]
fn labels_roll_in_their_own_dtype() {
    let mask = Arc::new(Mask::from_sliding_window(23, 23, (-1, 0), 0).unwrap());
    local::run(4, |_, comm| {
        let key = key(&Context::new(comm), &mask, 2, PlacementKind::Balanced)?;
        let ids: Vec<i64> = key.position_ids(Side::Q)?.collect();
        let (mut x, mut y) = (ids.clone(), vec![-1i64; ids.len()]);
        let tensor = |data: &mut Vec<i64>| {
            let shape = [data.len() as i64];
            // SAFETY: the vector outlives the call below, and nothing else touches it meanwhile.
            unsafe { Tensor::dense(data.as_mut_ptr().cast(), DType::I64, Device::Cpu, &shape) }
        };
        roll(
            &key,
            Side::Q,
            tensor(&mut x),
            -1,
            -1,
            tensor(&mut y),
            Stream::NULL,
        )?;
        let next: Vec<i64> = ids.iter().map(|t| (t + 1) % 23).collect();
        assert_eq!(y, next);
        Ok(())
    })
    .unwrap();
}

#[test]
fn wrong_tensors_are_named_before_anything_moves() {
    let mask = Arc::new(Mask::from_sliding_window(16, 16, (-1, 0), 0).unwrap());
    local::run(2, |_, comm| {
        let key = key(&Context::new(comm), &mask, 2, PlacementKind::Balanced)?;
        let mut x = Buffer::poisoned(&[8, 3], DType::F32, Layout::Dense);
        for (shape, dtype, status, words) in [
            (
                vec![7, 3],
                DType::F32,
                Status::ShapeMismatch,
                "local_y has 7 tokens",
            ),
            (vec![8, 4], DType::F32, Status::ShapeMismatch, "local_y has shape"),
            (vec![8, 3], DType::F16, Status::DtypeMismatch, "local_y has dtype"),
        ] {
            let mut y = Buffer::poisoned(&shape, dtype, Layout::Dense);
            let e = roll(&key, Side::Q, x.tensor(), 1, -1, y.tensor(), Stream::NULL).unwrap_err();
            assert_eq!(e.status, status);
            assert!(e.message.starts_with(words), "{}", e.message);
        }
        let e = roll(&key, Side::Q, x.tensor(), 1, -1, x.tensor(), Stream::NULL).unwrap_err();
        assert_eq!(e.status, Status::TensorOverlap);
        check(&key, Side::Q, (3, -1), DType::F32, Layout::Dense)
    })
    .unwrap();
}

#[test]
fn pads_to_whole_chunks_for_every_rank() {
    for total in 0..40 {
        for chunk in 1..6 {
            for world in 1..5 {
                let brute = (0..).find(|p| (total + p) % (chunk * world) == 0).unwrap();
                assert_eq!(pad_size(total, chunk, world), Ok(brute));
            }
        }
    }
    for (total, chunk, world, word) in [
        (-1, 1, 1, "total"),
        (1, 0, 1, "chunk_size"),
        (1, 1, 0, "world_size"),
    ] {
        assert!(
            pad_size(total, chunk, world)
                .unwrap_err()
                .message
                .starts_with(word)
        );
    }
    assert!(pad_size(1, i64::MAX, 2).is_err());
    assert!(pad_size(i64::MAX, 2, 1).is_err());
}
