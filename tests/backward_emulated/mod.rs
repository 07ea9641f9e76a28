//! The backward kernel's source compiled for the processor, its inputs at random, and what they give in f64.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use magi_attn::backend::cuda::{embedded, source};
use magi_attn::plan::tiles::{StageRows, key_tiles};
use magi_attn::types::{Band, Range, Slice, StageSlice, TileShape};

/// A small generator of the same numbers everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: i64) -> i64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as i64
    }

    /// About normal, of deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12)
            .map(|_| self.below(1 << 20) as f64 / f64::from(1 << 20))
            .sum::<f64>()
            - 6.0
    }
}

/// One compilation of the kernel.
pub struct Variant {
    pub name: &'static str,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub f16: bool,
    pub defines: &'static [&'static str],
}

impl Variant {
    /// Builds the program that runs a case; `None` (said aloud) without a C++ compiler.
    fn build(&self) -> Option<PathBuf> {
        let wrappers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrappers");
        let replaced: Vec<(String, String)> = ["types", "barrier", "math", "memory", "wgmma", "launch"]
            .map(|name| {
                let text = std::fs::read_to_string(wrappers.join(format!("{name}.cuh"))).unwrap();
                (format!("ptx/{name}.cuh"), text)
            })
            .into();
        let read = |name: &str| {
            let ours = replaced
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, text)| text.as_str());
            let theirs = || {
                embedded::SOURCES
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, text)| *text)
            };
            ours.or_else(theirs)
        };
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("backward_kernel")
            .join(self.name);
        std::fs::create_dir_all(&folder).unwrap();
        let (kernels, program) = (folder.join("kernels.inc"), folder.join("backward"));
        std::fs::write(&kernels, source::flatten("attn_backward.cu", &read).unwrap()).unwrap();
        let output = Command::new("c++")
            .args([
                "-std=c++17",
                "-O1",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
                "-w",
            ])
            .arg(format!("-DKERNELS=\"{}\"", kernels.display()))
            .arg(format!("-DHEAD_DIM={}", self.head_dim))
            .arg(format!("-DHEAD_DIM_V={}", self.head_dim_v))
            .args(self.f16.then_some("-DDTYPE_F16"))
            .args(self.defines)
            .arg(wrappers.join("backward.cpp"))
            .arg("-o")
            .arg(&program)
            .output();
        match output {
            Ok(output) => {
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                Some(program)
            }
            Err(e) => {
                println!("skipped: no C++ compiler ({e})");
                None
            }
        }
    }

    fn round(&self, x: f64) -> u16 {
        let (bits, x) = (self.mantissa(), x as f32);
        if self.f16 {
            // Of what is drawn here nothing leaves the range of normal numbers but what is as good as 0.
            let e = x.abs().max(6.2e-5).log2().floor();
            let scaled = (x / (e - bits).exp2()).round_ties_even() as i32;
            let magnitude = scaled.unsigned_abs() as u16;
            let exponent = (e as i32 + 14) as u16;
            if magnitude < 1024 {
                0
            } else {
                u16::from(x < 0.0) << 15 | ((exponent << 10) + magnitude)
            }
        } else {
            let wide = x.to_bits();
            ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16) as u16
        }
    }

    /// Queries of a step.
    fn step(&self) -> i32 {
        let narrow = |d: &&str| d.starts_with("-DSOFTCAP") || *d == "-DDQ=0";
        let transposed = (65..=128).contains(&self.head_dim) && !self.defines.iter().any(narrow);
        if transposed { 80 } else { 64 }
    }

    fn mantissa(&self) -> f32 {
        if self.f16 { 10.0 } else { 7.0 }
    }

    fn widen(&self, bits: u16) -> f64 {
        if !self.f16 {
            return f64::from(f32::from_bits(u32::from(bits) << 16));
        }
        let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        let magnitude = match exponent {
            31 => f64::NAN,
            0 => fraction * (-24f64).exp2(),
            e => (1024.0 + fraction) * f64::from(e - 25).exp2(),
        };
        if sign == 1 { -magnitude } else { magnitude }
    }
}

/// What a case is beside its variant.
pub struct Case {
    pub heads: (usize, usize),
    pub dims: (usize, usize),
    pub splits: usize,
    /// Added to f32 gradients of one half.
    pub added: bool,
    pub softcap: f64,
}

/// Slices, and tokens of the two sides.
type Slices = (Vec<StageSlice>, usize, [usize; 2]);

/// Slices that share no cell, over up to two sources.
fn random_slices(dice: &mut Dice) -> Slices {
    const SIZES: [i64; 7] = [1, 5, 64, 100, 128, 129, 200];
    let size = |dice: &mut Dice| SIZES[dice.below(7) as usize];
    if dice.below(6) == 0 {
        // Small documents: rows with limits of their own.
        let (n, w) = (60 + dice.below(150), [7, 20, 50][dice.below(3) as usize]);
        let document = |a: i64| slice(a, (a + w).min(n), a, (a + w).min(n), dice_kind(a), 0);
        return (
            (0..n).step_by(w as usize).map(document).collect(),
            n as usize,
            [n as usize, 0],
        );
    }
    let tq = size(dice);
    let tk = [size(dice), if dice.below(3) == 0 { size(dice) } else { 0 }];
    let mut slices = Vec::new();
    for (source, &keys) in tk.iter().enumerate().filter(|(_, keys)| **keys > 0) {
        let cuts = |dice: &mut Dice, n: i64, most: i64| {
            let mut at: Vec<i64> = (0..dice.below(most))
                .map(|_| dice.below(n + 1))
                .chain([0, n])
                .collect();
            at.sort_unstable();
            at.dedup();
            at
        };
        for rows in cuts(dice, tq, 6).windows(2) {
            for columns in cuts(dice, keys, 4).windows(2) {
                if dice.below(3) > 0 {
                    let kind = dice.below(4);
                    slices.push(slice(
                        rows[0],
                        rows[1],
                        columns[0],
                        columns[1],
                        kind,
                        source as u8,
                    ));
                }
            }
        }
    }
    (slices, tq as usize, tk.map(|n| n as usize))
}

fn dice_kind(a: i64) -> i64 {
    a / 7 % 2
}

/// `kind`: 1 bounded above (causal), 2 below, 3 both.
fn slice(q0: i64, q1: i64, k0: i64, k1: i64, kind: i64, source: u8) -> StageSlice {
    let lo = if kind & 2 != 0 { k0 - q0 } else { Band::NO_LO };
    let hi = if kind & 1 != 0 { k1 - q1 } else { Band::NO_HI };
    StageSlice {
        slice: Slice::new(Range::new(q0, q1), Range::new(k0, k1), Band::new(lo, hi)),
        source,
    }
}

/// A [tokens, heads, width] tensor: bits for the kernel, values for the reference.
struct Drawn {
    bits: Vec<u16>,
    values: Vec<f64>,
    width: usize,
    heads: usize,
}

impl Drawn {
    /// What `seen` leaves out is NaN for the kernel and 0 for the reference.
    fn new(dice: &mut Dice, v: &Variant, seen: &[bool], heads: usize, width: usize) -> Drawn {
        let mut drawn = Drawn {
            bits: Vec::new(),
            values: Vec::new(),
            width,
            heads,
        };
        for &seen in seen {
            for _ in 0..heads * width {
                let bits = v.round(dice.normal());
                drawn.bits.push(if seen { bits } else { 0x7FFF });
                drawn.values.push(if seen { v.widen(bits) } else { 0.0 });
            }
        }
        drawn
    }

    fn row(&self, token: usize, head: usize) -> &[f64] {
        &self.values[(token * self.heads + head) * self.width..][..self.width]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add(to: &mut [f64], from: &[f64], factor: f64) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
}

/// One case: operands, who sees whom, and the gradients in f64.
struct Reference {
    q: Drawn,
    k: Drawn,
    v: Drawn,
    dout: Drawn,
    /// [heads_q][2][tokens padded to 4, by 2][4]: of even tokens, then of odd ones, lse and delta, each with the next one's.
    stats: Vec<f32>,
    seen_q: Vec<bool>,
    seen_k: Vec<bool>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn reference(
    dice: &mut Dice,
    v: &Variant,
    c: &Case,
    slices: &[StageSlice],
    tq: usize,
    tk: [usize; 2],
) -> Reference {
    let keys = tk[0] + tk[1];
    let ((hq, hk), (d, dv)) = (c.heads, c.dims);
    let scale = (d as f64).powf(-0.5);
    let mut sees = vec![false; tq * keys];
    for s in slices {
        for q in s.slice.q.start..s.slice.q.end {
            for k in (s.slice.k.start..s.slice.k.end).filter(|k| s.slice.contains(q, *k)) {
                sees[q as usize * keys + k as usize + if s.source == 1 { tk[0] } else { 0 }] = true;
            }
        }
    }
    let of_q: Vec<bool> = (0..tq)
        .map(|q| sees[q * keys..][..keys].contains(&true))
        .collect();
    let of_k: Vec<bool> = (0..keys).map(|k| (0..tq).any(|q| sees[q * keys + k])).collect();
    let q = Drawn::new(dice, v, &of_q, hq, d);
    let k = Drawn::new(dice, v, &of_k, hk, d);
    let values = Drawn::new(dice, v, &of_k, hk, dv);
    let dout = Drawn::new(dice, v, &of_q, hq, dv);
    let padded = tq.div_ceil(4) * 4;
    let mut r = Reference {
        stats: [f32::INFINITY, f32::INFINITY, 0.0, 0.0].repeat(hq * padded),
        dq: vec![0.0; tq * hq * d],
        dk: vec![0.0; keys * hk * d],
        dv: vec![0.0; keys * hk * dv],
        q,
        k,
        v: values,
        dout,
        seen_q: of_q,
        seen_k: of_k,
    };
    for (i, h) in (0..tq).flat_map(|i| (0..hq).map(move |h| (i, h))) {
        let g = h / (hq / hk);
        let seen: Vec<usize> = (0..keys).filter(|j| sees[i * keys + j]).collect();
        let logits: Vec<(f64, f64)> = seen
            .iter()
            .map(|&j| {
                let s = scale * dot(r.q.row(i, h), r.k.row(j, g));
                let t = (s / c.softcap).tanh();
                if c.softcap > 0.0 {
                    (c.softcap * t, 1.0 - t * t)
                } else {
                    (s, 1.0)
                }
            })
            .collect();
        let most = logits.iter().map(|l| l.0).fold(f64::NEG_INFINITY, f64::max);
        let lse = most + logits.iter().map(|l| (l.0 - most).exp()).sum::<f64>().ln();
        let (lse2, p): (f64, Vec<f64>) = match seen.is_empty() {
            true => (f64::INFINITY, Vec::new()),
            false => (
                lse * std::f64::consts::LOG2_E,
                logits.iter().map(|l| (l.0 - lse).exp()).collect(),
            ),
        };
        let dp: Vec<f64> = seen
            .iter()
            .map(|&j| dot(r.dout.row(i, h), r.v.row(j, g)))
            .collect();
        let delta = dot(&p, &dp);
        for first in i.saturating_sub(1)..=i {
            let pair = ((2 * h + first % 2) * (padded / 2) + first / 2) * 4;
            r.stats[pair + i - first] = lse2 as f32;
            r.stats[pair + i - first + 2] = delta as f32;
        }
        for (n, &j) in seen.iter().enumerate() {
            let ds = scale * p[n] * (dp[n] - delta) * logits[n].1;
            add(&mut r.dq[(i * hq + h) * d..][..d], r.k.row(j, g), ds);
            add(&mut r.dk[(j * hk + g) * d..][..d], r.q.row(i, h), ds);
            add(&mut r.dv[(j * hk + g) * dv..][..dv], r.dout.row(i, h), p[n]);
        }
    }
    r
}

fn bytes_of<T: Copy>(x: &[T]) -> Vec<u8> {
    // SAFETY: the slices here are of integers, floats and structs of i32: no padding, any bytes.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u8>(), size_of_val(x)) }.to_vec()
}

/// The case as tests/wrappers/backward.cpp reads it.
fn written(
    v: &Variant,
    c: &Case,
    slices: &[StageSlice],
    r: &Reference,
    tq: usize,
    tk: [usize; 2],
    seed: u64,
) -> Vec<u8> {
    let wide = v.head_dim > 128 || v.head_dim_v > 128;
    let shape = TileShape {
        rows: if wide { 64 } else { 128 },
        step: v.step(),
    };
    let rows = StageRows {
        q: tq as i64,
        k: tk.map(|n| n as i64),
    };
    let list = key_tiles(slices, &rows, &shape).unwrap();
    let tiles: Vec<_> = list.order.iter().map(|i| list.tiles[*i as usize]).collect();
    let ((hq, hk), (d, dv)) = (c.heads, c.dims);
    let numbers = [
        tq,
        tk[0],
        tk[1],
        hq,
        hk,
        d,
        dv,
        c.splits,
        if c.added { 3 } else { 0 },
        tiles.len(),
        list.items.len(),
        list.limits.len(),
        seed as usize,
    ];
    let scale = (d as f64).powf(-0.5);
    let capped = c.softcap > 0.0;
    let factor = if capped { c.softcap } else { scale };
    let factors = [
        factor * std::f64::consts::LOG2_E,
        scale,
        if capped { scale / c.softcap } else { 0.0 },
    ];
    let mut out = bytes_of(&numbers.map(|n| n as i32));
    out.extend(bytes_of(&factors.map(|f| f as f32)));
    out.extend([bytes_of(&tiles), bytes_of(&list.items), bytes_of(&list.limits)].concat());
    out.extend([bytes_of(&r.q.bits), bytes_of(&r.dout.bits)].concat());
    for source in 0..2 {
        let (from, to) = if source == 0 {
            (0, tk[0])
        } else {
            (tk[0], tk[0] + tk[1])
        };
        out.extend(bytes_of(&r.k.bits[from * hk * d..to * hk * d]));
        out.extend(bytes_of(&r.v.bits[from * hk * dv..to * hk * dv]));
    }
    out.extend(bytes_of(&r.stats));
    out
}

fn run(program: &Path, case: Vec<u8>) -> Vec<u8> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&case).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Errors over the largest value; `seen` of each token: what nothing sees must be exactly 0.
fn check(name: &str, got: &[f64], want: &[f64], seen: &[bool], bound: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    let most = want.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= bound * most, "{name}[{i}] is {g}, not {w}");
        let seen = seen[i / (got.len() / seen.len())];
        assert!(seen || *g == 0.0, "{name}[{i}] is {g}, but nothing sees it");
    }
}

/// Runs a mask; `seed` also holds up warps and copies.
fn mask(program: &Path, v: &Variant, c: &Case, of: &Slices, dice: &mut Dice, seed: u64) {
    let &(ref slices, tq, tk) = of;
    let r = reference(dice, v, c, slices, tq, tk);
    let out = run(program, written(v, c, slices, &r, tq, tk, seed));
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
    let Some(program) = v.build() else { return };
    for seed in 0..count {
        let mut dice = Dice(seed * 7919 + v.head_dim as u64);
        let slices = random_slices(&mut dice);
        mask(&program, v, c, &slices, &mut dice, seed);
    }
}

/// Runs a window over the keys of one tile, whose queries end at an odd one inside the tensor.
pub fn window(v: &Variant, c: &Case) {
    let Some(program) = v.build() else { return };
    let slice = Slice::new(Range::new(0, 300), Range::new(0, 64), Band::new(-101, 0));
    let slices = (vec![StageSlice { slice, source: 0 }], 300, [64, 0]);
    mask(&program, v, c, &slices, &mut Dice(1), 1);
}
