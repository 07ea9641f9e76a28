//! The kernel over key tiles, kernels/attn_backward.cu.

use std::path::Path;

use magi_attn::plan::tiles::{StageRows, key_tiles};
use magi_attn::types::{Band, Range, Slice, StageSlice, TileShape};

use super::case::{Case, Written, check, run};
use super::masks::{Slices, random_slices};
use super::reference::reference;
use super::{Dice, Variant};

/// Keys of a tile and queries of a step.
fn tile(v: &Variant) -> TileShape {
    let narrow = |d: &&str| d.starts_with("-DSOFTCAP") || *d == "-DDQ=0";
    let transposed = (65..=128).contains(&v.head_dim) && !v.defines.iter().any(narrow);
    let wide = v.head_dim > 128 || v.head_dim_v > 128;
    TileShape {
        rows: if wide { 64 } else { 128 },
        step: if transposed { 80 } else { 64 },
    }
}

/// Runs a mask; `seed` also holds up warps and copies.
fn mask(program: &Path, v: &Variant, c: &Case, of: &Slices, dice: &mut Dice, seed: u64) {
    let &(ref slices, tq, tk) = of;
    let r = reference(dice, v, c, slices, tq, tk);
    let rows = StageRows {
        q: tq as i64,
        k: tk.map(|n| n as i64),
    };
    let written = Written {
        case: c,
        list: &key_tiles(slices, &rows, &tile(v)).unwrap(),
        operands: &r,
        rows,
        flags: if c.added { 3 } else { 0 },
        seed,
    };
    let out = run(program, written.bytes());
    let ((hq, hk), (d, dv)) = (c.heads, c.dims);
    let columns = d.div_ceil(4) * 4;
    let f32_at = |i: usize| f64::from(f32::from_ne_bytes(out[4 * i..][..4].try_into().unwrap()));
    let bound = if v.f16 { 0.003 } else { 0.015 };
    if !v.defines.contains(&"-DDQ=0") {
        let dq = (0..tq * hq * d)
            .map(|i| f32_at(i / d * columns + i % d))
            .collect::<Vec<f64>>();
        check("dq", &dq, &r.dq, &r.seen_q, bound);
    }
    let mut at = 4 * tq * hq * columns;
    let mut next = |count: usize| -> Vec<f64> {
        let size = if c.added { 4 } else { 2 };
        let part = &out[at..at + count * size];
        at += count * size;
        part.chunks(size)
            .map(|x| match c.added {
                true => f64::from(f32::from_ne_bytes(x.try_into().unwrap())) - 0.5,
                false => v.widen(u16::from_ne_bytes(x.try_into().unwrap())),
            })
            .collect()
    };
    let (mut dk, mut grad_v) = (Vec::new(), Vec::new());
    for keys in tk {
        dk.extend(next(keys * hk * d));
        grad_v.extend(next(keys * hk * dv));
    }
    check("dk", &dk, &r.dk, &r.seen_k, bound);
    check("dv", &grad_v, &r.dv, &r.seen_k, bound);
}

/// Runs `count` random masks.
pub fn masks(v: &Variant, c: &Case, count: u64) {
    let Some(program) = v.build("backward") else {
        return;
    };
    for seed in 0..count {
        let mut dice = Dice(seed * 7919 + v.head_dim as u64);
        let slices = random_slices(&mut dice);
        mask(&program, v, c, &slices, &mut dice, seed);
    }
}

/// Runs a mask whose tiles all see the same queries.
pub fn dense(v: &Variant, c: &Case) {
    let Some(program) = v.build("backward") else {
        return;
    };
    let all = |keys: i64, source: u8| StageSlice {
        slice: Slice::new(Range::new(0, 330), Range::new(0, keys), Band::FULL),
        source,
    };
    let slices = (vec![all(256, 0), all(128, 1)], 330, [256, 128]);
    mask(&program, v, c, &slices, &mut Dice(3), 3);
}

/// Runs a window over the keys of one tile, whose queries end at an odd one inside the tensor.
pub fn window(v: &Variant, c: &Case) {
    let Some(program) = v.build("backward") else {
        return;
    };
    let slice = Slice::new(Range::new(0, 300), Range::new(0, 64), Band::new(-101, 0));
    let slices = (vec![StageSlice { slice, source: 0 }], 300, [64, 0]);
    mask(&program, v, c, &slices, &mut Dice(1), 1);
}
