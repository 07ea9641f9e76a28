//! What is run: a case as the program reads it, the program, and what of its results is wrong.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use magi_attn::plan::tiles::StageRows;
use magi_attn::types::TileList;

use super::reference::Reference;

/// What a case is beside its variant.
pub struct Case {
    pub heads: (usize, usize),
    pub dims: (usize, usize),
    pub splits: usize,
    /// Added to f32 gradients of one half.
    pub added: bool,
    pub softcap: f64,
}

fn bytes_of<T: Copy>(x: &[T]) -> Vec<u8> {
    // SAFETY: the slices here are of integers, floats and structs of i32: no padding, any bytes.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u8>(), size_of_val(x)) }.to_vec()
}

/// A case as the programs in tests/wrappers read it.
pub struct Written<'a> {
    pub case: &'a Case,
    pub list: &'a TileList,
    pub operands: &'a Reference,
    pub rows: StageRows,
    /// Of the kernel's params.
    pub flags: i32,
    pub seed: u64,
}

impl Written<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let (c, list, r) = (self.case, self.list, self.operands);
        let tiles: Vec<_> = list.order.iter().map(|i| list.tiles[*i as usize]).collect();
        let ((hq, hk), (d, dv), tk) = (c.heads, c.dims, self.rows.k.map(|n| n as usize));
        let numbers = [
            self.rows.q as usize,
            tk[0],
            tk[1],
            hq,
            hk,
            d,
            dv,
            c.splits,
            self.flags as usize,
            tiles.len(),
            list.items.len(),
            list.limits.len(),
            self.seed as usize,
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
}

/// The program's results.
pub fn run(program: &Path, case: Vec<u8>) -> Vec<u8> {
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
pub fn check(name: &str, got: &[f64], want: &[f64], seen: &[bool], bound: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    let most = want.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= bound * most, "{name}[{i}] is {g}, not {w}");
        let seen = seen[i / (got.len() / seen.len())];
        assert!(seen || *g == 0.0, "{name}[{i}] is {g}, but nothing sees it");
    }
}
