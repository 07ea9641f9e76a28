//! Tensors of any dtype and layout whose elements are known by number, and what moving them between ranks must come to.

#![allow(dead_code)] // Every test program includes all of it and uses its own part.
use std::sync::Arc;

use magi_attn::comm::Communicator;
use magi_attn::device::Stream;
use magi_attn::runtime::roll::roll;
use magi_attn::runtime::{Context, Key, movement};
use magi_attn::types::{
    AttnShape, Config, DType, Device, Mask, MaskType, Range, Result, Side, Tensor, TypedSlice,
};

/// A tensor of any dtype with its memory. Elements are known by number: element `i` of a row-major count holds `tag(i)`.
pub struct Memory {
    bytes: Vec<u64>,
    offset: i64,
    pub dtype: DType,
    pub shape: Vec<i64>,
    stride: Vec<i64>,
}

/// How the first dimensions lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    Dense,
    /// Unused elements behind every index of every dimension but the last.
    Padded,
    /// The last row first.
    Backwards,
}

pub const ORDERS: [Order; 3] = [Order::Dense, Order::Padded, Order::Backwards];
pub const POISON: u8 = 0xa5;

impl Memory {
    pub fn new(dtype: DType, shape: &[i64], order: Order) -> Memory {
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

    pub fn at(&self, mut i: i64) -> usize {
        let mut at = self.offset;
        for (&n, &s) in self.shape.iter().zip(&self.stride).rev() {
            at += i % n * s;
            i /= n;
        }
        at as usize * self.dtype.size()
    }

    pub fn count(&self) -> i64 {
        self.shape.iter().product()
    }

    pub fn memory(&self) -> &[u8] {
        // SAFETY: words are initialised bytes.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() * 8) }
    }

    pub fn element(&self, i: i64) -> &[u8] {
        &self.memory()[self.at(i)..][..self.dtype.size()]
    }

    pub fn set(&mut self, i: i64, to: &[u8]) {
        let (at, size) = (self.at(i), self.dtype.size());
        // SAFETY: as in `memory`; any bytes are valid words.
        let all = unsafe {
            std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast::<u8>(), self.bytes.len() * 8)
        };
        all[at..at + size].copy_from_slice(&to[..size]);
    }

    pub fn tensor(&mut self) -> Tensor {
        let first = self.bytes.as_mut_ptr().cast::<u8>();
        let first = first.wrapping_add(self.offset as usize * self.dtype.size());
        // SAFETY: `new` made room for every element; tests keep the memory while the tensor is used.
        unsafe { Tensor::from_raw(first, self.dtype, Device::Cpu, &self.shape, &self.stride) }
    }
}

/// Bytes of global element `i`: different for neighbours in every dtype.
pub fn tag(i: i64) -> [u8; 8] {
    ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()
}

/// A tensor whose row `r` holds the elements of global row `rows[r]`; poison where that is `None`.
pub fn filled(dtype: DType, rows: &[Option<i64>], row: &[i64], order: Order) -> Memory {
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

pub fn some(rows: impl IntoIterator<Item = i64>) -> Vec<Option<i64>> {
    rows.into_iter().map(Some).collect()
}

pub fn assert_rows(have: &Memory, rows: &[i64], row: &[i64], what: &str) {
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

/// Where the ranks of a test have their tensors.
pub trait Site {
    /// Calls `f` with tensors there that hold what these do. They hold what it wrote when this returns.
    fn with(&self, all: &mut [&mut Memory], f: &dyn Fn(&[Tensor], Stream) -> Result<()>) -> Result<()>;
}

/// Host memory.
pub struct Host;

impl Site for Host {
    fn with(&self, all: &mut [&mut Memory], f: &dyn Fn(&[Tensor], Stream) -> Result<()>) -> Result<()> {
        let tensors: Vec<Tensor> = all.iter_mut().map(|m| m.tensor()).collect();
        f(&tensors, Stream::NULL)
    }
}

pub fn full(total_q: i64, total_k: i64) -> Arc<Mask> {
    let typed = TypedSlice {
        q: Range::new(0, total_q),
        k: Range::new(0, total_k),
        mask_type: MaskType::Causal,
    };
    Arc::new(Mask::new(&[typed], total_q, total_k).unwrap())
}

pub fn shape() -> AttnShape {
    AttnShape {
        heads_q: 1,
        heads_kv: 1,
        head_dim: 8,
        head_dim_v: 8,
        dtype: DType::F32,
    }
}

/// A key of chunks of 4 tokens.
pub fn key_of(comm: Arc<dyn Communicator>, mask: &Arc<Mask>) -> Result<Arc<Key>> {
    let config = Config {
        chunk_size: 4,
        ..Config::default()
    };
    Key::create(&Context::new(comm), mask, shape(), config)
}

/// Rows of the contiguous share of `rank`.
pub fn share(total: i64, world: usize, rank: usize) -> Vec<i64> {
    let (each, extra) = (total / world as i64, total % world as i64);
    let start = |r: i64| r * each + r.min(extra);
    (start(rank as i64)..start(rank as i64 + 1)).collect()
}

pub const DTYPES: [DType; 5] = [DType::I64, DType::U8, DType::Bf16, DType::F64, DType::Bool];
pub const ROWS: [&[i64]; 4] = [&[], &[3], &[2, 5], &[2, 1, 4]];

/// Tensors of one kind on one rank.
#[derive(Clone, Copy, Debug)]
pub struct Kind<'a> {
    pub side: Side,
    pub dtype: DType,
    /// Shape of a row.
    pub row: &'a [i64],
    /// How inputs and outputs lie.
    pub orders: [Order; 2],
}

/// One call that only moves rows.
struct Move<'a> {
    name: &'a str,
    /// Global rows of the input, and those that the output must hold.
    from: &'a [i64],
    to: &'a [i64],
    call: &'a dyn Fn([Tensor; 2], Stream) -> Result<()>,
}

impl Move<'_> {
    fn check(&self, site: &impl Site, kind: &Kind<'_>, rank: usize) -> Result<()> {
        let (dtype, row) = (kind.dtype, kind.row);
        let mut x = filled(dtype, &some(self.from.iter().copied()), row, kind.orders[0]);
        let mut y = filled(dtype, &vec![None; self.to.len()], row, kind.orders[1]);
        site.with(&mut [&mut x, &mut y], &|t, stream| {
            (self.call)([t[0], t[1]], stream)
        })?;
        let what = format!("{} on rank {rank}, {kind:?}", self.name);
        assert_rows(&y, self.to, row, &what);
        // What lies between elements is nobody's.
        let want = filled(dtype, &some(self.to.iter().copied()), row, kind.orders[1]);
        assert!(y.memory() == want.memory(), "{what}: written beside the tensor");
        Ok(())
    }
}

/// Every function that only moves rows, once.
pub fn move_all(site: &impl Site, key: &Key, kind: Kind<'_>) -> Result<()> {
    let (side, rank, world) = (kind.side, key.context().rank(), key.context().size());
    let own: Vec<i64> = key.position_ids(side)?.collect();
    let total = key.placement(side).total();
    let all: Vec<i64> = (0..total).collect();
    let mine = share(total, world, rank);
    let check = |name: &str, from: &[i64], to: &[i64], call: &dyn Fn([Tensor; 2], Stream) -> Result<()>| {
        Move { name, from, to, call }.check(site, &kind, rank)
    };
    check("dispatch", &all, &own, &|[x, y], s| {
        movement::dispatch(key, side, x, y, s)
    })?;
    check("undispatch", &own, &all, &|[x, y], s| {
        movement::undispatch(key, side, x, y, ["local_x", "x"], s)
    })?;
    check("undispatch_backward", &all, &own, &|[x, y], s| {
        movement::undispatch_backward_full(key, side, x, y, s)
    })?;
    check("dispatch_sharded", &mine, &own, &|[x, y], s| {
        movement::dispatch_sharded(key, side, x, y, s)
    })?;
    check("undispatch_sharded", &own, &mine, &|[x, y], s| {
        movement::undispatch_sharded(key, side, x, y, s)
    })?;
    for (shift, valid) in [(1, -1), (-5, total / 2), (3 * total + 2, total)] {
        let n = if valid < 0 { total } else { valid };
        let before = |&t: &i64| if t < n { (t - shift).rem_euclid(n) } else { t };
        let rolled: Vec<i64> = own.iter().map(before).collect();
        check("roll", &own, &rolled, &|[x, y], s| {
            roll(key, side, x, shift, valid, y, s)
        })?;
    }
    Ok(())
}

/// Contribution of `rank` to the gradient of element `i`: exact in f32, rounded differently in every order in f64 sums of
/// thirds.
pub fn part(rank: usize, i: i64) -> f64 {
    (i as f64 + 1.0) / 3.0 * (1.0 + rank as f64 * 0.37)
}

/// Gradients of 37 tokens that every rank has a part of.
pub fn add_partial_gradients(site: &impl Site, key: &Key) -> Result<()> {
    let (rank, world) = (key.context().rank(), key.context().size());
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
            site.with(&mut [&mut dx, &mut local_dx], &|t, stream| {
                movement::undispatch_backward_partial(key, Side::Q, t[0], t[1], stream)
            })?;
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
}

/// Every dtype and row shape, with orders that differ from one to the next and with the number of ranks.
pub fn kinds(world: usize) -> impl Iterator<Item = Kind<'static>> {
    let rows = move |(i, dtype)| {
        ROWS.into_iter().enumerate().map(move |(j, row)| Kind {
            side: Side::Q,
            dtype,
            row,
            orders: [ORDERS[(i + j) % 3], ORDERS[(i + 2 * j + world) % 3]],
        })
    };
    DTYPES.into_iter().enumerate().flat_map(rows)
}
