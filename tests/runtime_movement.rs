//! Dispatch, undispatch, their gradients and the sharded forms, against index arithmetic with position ids.

use std::sync::Arc;

use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, Key, movement};
use magi_attn::types::{
    AttnShape, Config, DType, Device, Mask, MaskType, Range, Result, Side, Status, Tensor, TypedSlice,
};

/// A tensor of any dtype with its memory. Elements are known by number: element `i` of a row-major count holds `tag(i)`.
struct Memory {
    bytes: Vec<u64>,
    offset: i64,
    dtype: DType,
    shape: Vec<i64>,
    stride: Vec<i64>,
}

/// How the first dimensions lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Dense,
    /// Unused elements behind every index of every dimension but the last.
    Padded,
    /// The last row first.
    Backwards,
}

const ORDERS: [Order; 3] = [Order::Dense, Order::Padded, Order::Backwards];
const POISON: u8 = 0xa5;

impl Memory {
    fn new(dtype: DType, shape: &[i64], order: Order) -> Memory {
        let mut stride = vec![1i64; shape.len()];
        for i in (0..shape.len() - 1).rev() {
            let pad = i64::from(order == Order::Padded) * 2;
            stride[i] = stride[i + 1] * shape[i + 1].max(1) + pad;
        }
        // A vector of more than one element has to keep stride 1.
        let offset = if order == Order::Backwards && shape.len() > 1 {
            stride[0] = -stride[0];
            -stride[0] * (shape[0] - 1).max(0)
        } else {
            0
        };
        let reach: i64 = shape
            .iter()
            .zip(&stride)
            .map(|(n, s)| (n - 1).max(0) * s.abs())
            .sum();
        let words = ((reach + 1) as usize * dtype.size()).div_ceil(8);
        Memory {
            bytes: vec![u64::from_ne_bytes([POISON; 8]); words],
            offset,
            dtype,
            shape: shape.to_vec(),
            stride,
        }
    }

    fn at(&self, mut i: i64) -> usize {
        let mut at = self.offset;
        for (&n, &s) in self.shape.iter().zip(&self.stride).rev() {
            at += i % n * s;
            i /= n;
        }
        at as usize * self.dtype.size()
    }

    fn count(&self) -> i64 {
        self.shape.iter().product()
    }

    fn memory(&self) -> &[u8] {
        // SAFETY: words are initialised bytes.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() * 8) }
    }

    fn element(&self, i: i64) -> &[u8] {
        &self.memory()[self.at(i)..][..self.dtype.size()]
    }

    fn set(&mut self, i: i64, to: &[u8]) {
        let (at, size) = (self.at(i), self.dtype.size());
        // SAFETY: as in `memory`; any bytes are valid words.
        let all = unsafe {
            std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast::<u8>(), self.bytes.len() * 8)
        };
        all[at..at + size].copy_from_slice(&to[..size]);
    }

    fn tensor(&mut self) -> Tensor {
        let first = self.bytes.as_mut_ptr().cast::<u8>();
        let first = first.wrapping_add(self.offset as usize * self.dtype.size());
        // SAFETY: `new` made room for every element; tests keep the memory while the tensor is used.
        unsafe { Tensor::from_raw(first, self.dtype, Device::Cpu, &self.shape, &self.stride) }
    }
}

/// Bytes of global element `i`: different for neighbours in every dtype.
fn tag(i: i64) -> [u8; 8] {
    ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()
}

/// A tensor whose row `r` holds the elements of global row `rows[r]`; poison where that is `None`.
fn filled(dtype: DType, rows: &[Option<i64>], row: &[i64], order: Order) -> Memory {
    let mut b = Memory::new(dtype, &[&[rows.len() as i64], row].concat(), order);
    let width: i64 = row.iter().product();
    for (r, from) in rows.iter().enumerate() {
        for e in 0..width {
            if let Some(from) = from {
                b.set(r as i64 * width + e, &tag(from * width + e));
            }
        }
    }
    b
}

fn some(rows: impl IntoIterator<Item = i64>) -> Vec<Option<i64>> {
    rows.into_iter().map(Some).collect()
}

fn assert_rows(have: &Memory, rows: &[i64], row: &[i64], what: &str) {
    let want = filled(have.dtype, &some(rows.iter().copied()), row, Order::Dense);
    assert_eq!(have.count(), want.count(), "{what}");
    for i in 0..want.count() {
        assert_eq!(
            have.element(i),
            want.element(i),
            "{what}: element {i} of {:?}",
            have.shape
        );
    }
}

fn full(total_q: i64, total_k: i64) -> Arc<Mask> {
    let typed = TypedSlice {
        q: Range::new(0, total_q),
        k: Range::new(0, total_k),
        mask_type: MaskType::Causal,
    };
    Arc::new(Mask::new(&[typed], total_q, total_k).unwrap())
}

fn shape() -> AttnShape {
    AttnShape {
        heads_q: 1,
        heads_kv: 1,
        head_dim: 8,
        head_dim_v: 8,
        dtype: DType::F32,
    }
}

/// Runs `f` on every rank with a key of chunks of 4 tokens.
fn with_keys(world: usize, mask: &Arc<Mask>, f: impl Fn(usize, &Key) -> Result<()> + Sync) {
    let config = Config {
        chunk_size: 4,
        ..Config::default()
    };
    local::run(world, |rank, comm| {
        let key = Key::create(&Context::new(comm), mask, shape(), config)?;
        f(rank, &key)
    })
    .unwrap();
}

/// Rows of the contiguous share of `rank`.
fn share(total: i64, world: usize, rank: usize) -> Vec<i64> {
    let (each, extra) = (total / world as i64, total % world as i64);
    let start = |r: i64| r * each + r.min(extra);
    (start(rank as i64)..start(rank as i64 + 1)).collect()
}

const DTYPES: [DType; 5] = [DType::I64, DType::U8, DType::Bf16, DType::F64, DType::Bool];
const ROWS: [&[i64]; 4] = [&[], &[3], &[2, 5], &[2, 1, 4]];

/// Every function that only moves rows, once.
fn move_all(
    rank: usize,
    world: usize,
    key: &Key,
    side: Side,
    dtype: DType,
    row: &[i64],
    orders: [Order; 2],
) -> Result<()> {
    let own: Vec<i64> = key.position_ids(side)?.collect();
    let total = key.placement(side).total();
    let what = format!(
        "rank {rank} of {world}, {side:?}, {}, {row:?}, {orders:?}",
        dtype.name()
    );
    let all: Vec<i64> = (0..total).collect();
    let mine = share(total, world, rank);
    let global = || filled(dtype, &some(all.iter().copied()), row, orders[0]);
    let parts = || filled(dtype, &some(own.iter().copied()), row, orders[0]);
    let empty = |rows: usize| filled(dtype, &vec![None; rows], row, orders[1]);
    let s = Stream::NULL;

    let (mut x, mut to) = (global(), empty(own.len()));
    movement::dispatch(key, side, x.tensor(), to.tensor(), s)?;
    assert_rows(&to, &own, row, &format!("dispatch, {what}"));

    let (mut x, mut to) = (parts(), empty(all.len()));
    movement::undispatch(key, side, x.tensor(), to.tensor(), ["local_x", "x"], s)?;
    assert_rows(&to, &all, row, &format!("undispatch, {what}"));

    let (mut x, mut to) = (global(), empty(own.len()));
    movement::undispatch_backward_full(key, side, x.tensor(), to.tensor(), s)?;
    assert_rows(&to, &own, row, &format!("undispatch_backward, {what}"));

    let mut x = filled(dtype, &some(mine.iter().copied()), row, orders[0]);
    let mut to = empty(own.len());
    movement::dispatch_sharded(key, side, x.tensor(), to.tensor(), s)?;
    assert_rows(&to, &own, row, &format!("dispatch_sharded, {what}"));

    let mut back = empty(mine.len());
    movement::undispatch_sharded(key, side, to.tensor(), back.tensor(), s)?;
    assert_rows(&back, &mine, row, &format!("undispatch_sharded, {what}"));
    Ok(())
}

#[test]
fn rows_move_as_position_ids_say() {
    for world in 1..=8 {
        let mask = full(45, 45);
        with_keys(world, &mask, |rank, key| {
            for (i, dtype) in DTYPES.into_iter().enumerate() {
                for (j, row) in ROWS.into_iter().enumerate() {
                    let orders = [ORDERS[(i + j) % 3], ORDERS[(i + 2 * j + world) % 3]];
                    move_all(rank, world, key, Side::Q, dtype, row, orders)?;
                }
            }
            Ok(())
        });
    }
}

#[test]
fn both_sides_have_a_placement_of_their_own() {
    with_keys(4, &full(30, 41), |rank, key| {
        move_all(
            rank,
            4,
            key,
            Side::Q,
            DType::F64,
            &[2, 2],
            [Order::Dense, Order::Padded],
        )?;
        move_all(
            rank,
            4,
            key,
            Side::K,
            DType::I64,
            &[3],
            [Order::Backwards, Order::Dense],
        )
    });
}

#[test]
fn ranks_without_tokens_take_part() {
    for (total, world) in [(3, 8), (1, 4), (0, 3)] {
        with_keys(world, &full(total, total), |rank, key| {
            move_all(
                rank,
                world,
                key,
                Side::Q,
                DType::Bf16,
                &[2],
                [Order::Dense, Order::Dense],
            )?;
            move_all(
                rank,
                world,
                key,
                Side::K,
                DType::U8,
                &[],
                [Order::Dense, Order::Dense],
            )
        });
    }
}

#[test]
fn position_ids_are_a_partition() {
    for world in 1..=8 {
        let owners = std::sync::Mutex::new(vec![0; 50]);
        with_keys(world, &full(50, 50), |_, key| {
            let ids: Vec<i64> = key.position_ids(Side::Q)?.collect();
            assert_eq!(ids.len() as i64, key.local_tokens(Side::Q)?);
            assert!(ids.windows(2).all(|w| w[0] < w[1]));
            assert!(
                key.position_ids(Side::K)?.eq(ids.iter().copied()),
                "equal totals share one placement"
            );
            ids.iter().for_each(|&t| owners.lock().unwrap()[t as usize] += 1);
            Ok(())
        });
        assert_eq!(owners.into_inner().unwrap(), vec![1; 50]);
    }
}

/// Contribution of `rank` to the gradient of element `i`: exact in f32, rounded differently in every order in f64 sums of
/// thirds.
fn part(rank: usize, i: i64) -> f64 {
    (i as f64 + 1.0) / 3.0 * (1.0 + rank as f64 * 0.37)
}

#[test]
fn partial_gradients_are_added_in_rank_order() {
    for world in 1..=8 {
        with_keys(world, &full(37, 37), |rank, key| {
            let own: Vec<i64> = key.position_ids(Side::Q)?.collect();
            for orders in [[Order::Dense, Order::Padded], [Order::Backwards, Order::Dense]] {
                for dtype in [DType::F64, DType::F32] {
                    let mut dx = Memory::new(dtype, &[37, 3], orders[0]);
                    let mut local_dx = Memory::new(dtype, &[own.len() as i64, 3], orders[1]);
                    let bytes = |x: f64| match dtype {
                        DType::F64 => x.to_ne_bytes(),
                        _ => {
                            let b = (x as f32).to_ne_bytes();
                            [b[0], b[1], b[2], b[3], 0, 0, 0, 0]
                        }
                    };
                    (0..37 * 3).for_each(|i| dx.set(i, &bytes(part(rank, i))));
                    movement::undispatch_backward_partial(
                        key,
                        Side::Q,
                        dx.tensor(),
                        local_dx.tensor(),
                        Stream::NULL,
                    )?;
                    for (r, token) in own.iter().enumerate() {
                        for e in 0..3 {
                            let i = token * 3 + e;
                            let sum = match dtype {
                                DType::F64 => (0..world).fold(0.0, |sum, r| sum + part(r, i)),
                                _ => f64::from((0..world).fold(0f32, |sum, r| sum + part(r, i) as f32)),
                            };
                            let have = local_dx.element(r as i64 * 3 + e);
                            assert_eq!(have, &bytes(sum)[..dtype.size()], "{world} ranks, element {i}");
                        }
                    }
                }
            }
            Ok(())
        });
    }
}

#[test]
fn refusals_name_the_tensor_and_touch_nothing() {
    with_keys(2, &full(20, 20), |_, key| {
        let own = key.local_tokens(Side::Q)?;
        let mut x = Memory::new(DType::F32, &[20, 4], Order::Dense);
        let mut ids = Memory::new(DType::I64, &[20, 4], Order::Dense);
        let mut short = Memory::new(DType::F32, &[own - 1, 4], Order::Dense);
        let mut wide = Memory::new(DType::F32, &[own, 5], Order::Dense);
        let mut good = Memory::new(DType::F32, &[own, 4], Order::Dense);
        let mut ids_out = Memory::new(DType::I64, &[own, 4], Order::Dense);
        let s = Stream::NULL;
        let inside = x.tensor().rows(0, own);
        for (to, status, word) in [
            (short.tensor(), Status::ShapeMismatch, "local_x"),
            (wide.tensor(), Status::ShapeMismatch, "local_x"),
            (ids_out.tensor(), Status::DtypeMismatch, "local_x"),
            (inside, Status::TensorOverlap, "local_x"),
        ] {
            let error = movement::dispatch(key, Side::Q, x.tensor(), to, s).unwrap_err();
            assert_eq!(error.status, status, "{error}");
            assert!(error.message.contains(word), "{error}");
        }
        let partial = movement::undispatch_backward_partial(key, Side::Q, ids.tensor(), ids_out.tensor(), s);
        assert_eq!(partial.unwrap_err().status, Status::DtypeMismatch);
        for b in [&x, &short, &wide, &ids_out] {
            assert!(b.memory().iter().all(|&x| x == POISON));
        }
        // Nothing was sent: the next collective call finds its peers.
        let mut back = Memory::new(DType::F32, &[20, 4], Order::Dense);
        movement::undispatch(key, Side::Q, good.tensor(), back.tensor(), ["local_x", "x"], s)?;
        Ok(())
    });
}
