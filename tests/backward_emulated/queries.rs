//! The kernel over query tiles, kernels/attn_backward_queries.cu.

use std::path::{Path, PathBuf};

use magi_attn::plan::tiles::{StageRows, query_tiles};
use magi_attn::types::{Item, Tile, TileList, TileShape};

use super::case::{Case, Written, check, run};
use super::masks::{Slices, random_slices};
use super::reference::{Reference, reference};
use super::{Dice, Variant};

/// Rows of a tile, and of a warpgroup.
const ROWS: i32 = 128;
const GROUP_ROWS: i32 = 64;

/// What becomes of dq.
#[derive(Clone, Copy, PartialEq)]
pub enum Output {
    /// Of the input dtype.
    Same,
    F32,
    /// Added to f32 of one half.
    Added,
}

/// Keys of a step.
pub fn step(v: &Variant) -> i32 {
    match (v.head_dim, v.head_dim_v) {
        (..=64, _) => 128,
        (..=128, _) => 96,
        (_, ..=128) => 80,
        _ => 64,
    }
}

/// Whether a warpgroup's rows see nothing of a block, as the kernel finds it out: of any of them within the band, and of
/// the item's rows being among them.
fn sees_nothing(it: &Item, tile: &Tile, key: i32, step: i32, group: i32) -> bool {
    let rows = group * GROUP_ROWS..(group + 1) * GROUP_ROWS;
    let keys = key..it.run1.min(key + step);
    let in_band = |row: i32| {
        keys.clone()
            .any(|key| (it.lo..=it.hi).contains(&(key - tile.row0 - row)))
    };
    let full = it.full0 <= key && key + step <= it.full1;
    !full && (it.row0.max(rows.start) >= it.row1.min(rows.end) || !rows.clone().any(in_band))
}

/// Of the blocks of a tile, in order, whether a warpgroup may leave them out: not the first one. Where there is nothing to
/// see there is one block.
fn unseen(list: &TileList, tile: &Tile, group: i32) -> Vec<bool> {
    let mut blocks = Vec::new();
    for it in items(list, tile) {
        let step = list.shape.step;
        let keys = (it.start..it.run1).step_by(step as usize);
        blocks.extend(keys.map(|key| sees_nothing(it, tile, key, step, group)));
    }
    match blocks.first_mut() {
        Some(first) => *first = false,
        None => blocks.push(false),
    }
    blocks
}

fn items<'a>(list: &'a TileList, tile: &Tile) -> &'a [Item] {
    &list.items[tile.item0 as usize..][..tile.items as usize]
}

/// Which blocks of a tile a warpgroup leaves out somewhere in a mask.
#[derive(Debug, PartialEq)]
pub struct LeftOut {
    pub last: bool,
    pub two_in_a_row: bool,
    /// Between two others.
    pub middle: bool,
}

impl LeftOut {
    fn of(list: &TileList, group: i32) -> LeftOut {
        let tiles: Vec<_> = list.tiles.iter().map(|t| unseen(list, t, group)).collect();
        let any = |which: fn(&[bool]) -> bool| tiles.iter().any(|blocks| which(blocks));
        LeftOut {
            last: any(|blocks| blocks.last() == Some(&true)),
            two_in_a_row: any(|blocks| blocks.windows(2).any(|two| two == [true, true])),
            middle: any(|blocks| blocks.windows(2).any(|two| two == [true, false])),
        }
    }
}

/// The list that the kernel walks, and the tokens that it is about.
fn list(v: &Variant, of: &Slices) -> (TileList, StageRows) {
    let rows = StageRows {
        q: of.1 as i64,
        k: of.2.map(|n| n as i64),
    };
    let list = query_tiles(&of.0, &rows, &TileShape::new(ROWS, step(v))).unwrap();
    (list, rows)
}

/// All but a mask.
struct Run<'a> {
    program: &'a Path,
    variant: &'a Variant,
    case: &'a Case,
    output: Output,
    /// Of timing.
    seed: u64,
}

impl Run<'_> {
    /// dq, less what it was added to. Checks how many products were computed on the way.
    fn dq(&self, list: &TileList, rows: StageRows, operands: &Reference) -> Vec<f64> {
        let written = Written {
            case: self.case,
            list,
            operands,
            rows,
            flags: self.output as i32 + i32::from(self.output == Output::Added),
            seed: self.seed,
        };
        let out = run(self.program, written.bytes());
        let (dq, computed) = out.split_at(out.len() - 8);
        for (group, bytes) in (0i32..).zip(computed.chunks(4)) {
            let computed = i32::from_ne_bytes(bytes.try_into().unwrap());
            assert_eq!(
                computed,
                self.products(list, group),
                "products of warpgroup {group}"
            );
        }
        match self.output {
            Output::Same => dq
                .chunks(2)
                .map(|x| self.variant.widen(u16::from_ne_bytes(x.try_into().unwrap())))
                .collect(),
            _ => dq
                .chunks(4)
                .map(|x| f64::from(f32::from_ne_bytes(x.try_into().unwrap())))
                .map(|x| if self.output == Output::Added { x - 0.5 } else { x })
                .collect(),
        }
    }

    /// Three of each block, and of the step that ends a thread block's work; one of a block that is left out.
    fn products(&self, list: &TileList, group: i32) -> i32 {
        let heads = self.case.heads.0 as i32;
        let leaves_out = self.variant.head_dim <= 128;
        let of_tile = |tile: &Tile| -> i32 {
            let of_block = |unseen: bool| if unseen && leaves_out { 1 } else { 3 };
            unseen(list, tile, group).into_iter().map(of_block).sum()
        };
        let thread_blocks = (list.tiles.len() as i32 * heads).min(2);
        3 * thread_blocks + heads * list.tiles.iter().map(of_tile).sum::<i32>()
    }

    fn bound(&self) -> f64 {
        if self.variant.f16 { 0.003 } else { 0.015 }
    }

    fn mask(&self, of: &Slices, dice: &mut Dice) -> Reference {
        let r = reference(dice, self.variant, self.case, &of.0, of.1, of.2);
        let (list, rows) = list(self.variant, of);
        check("dq", &self.dq(&list, rows, &r), &r.dq, &r.seen_q, self.bound());
        r
    }

    /// For each tile in turn: keys and values that none of its rows sees are NaN, which must not reach it.
    fn poisoned(&self, of: &Slices, r: &mut Reference) {
        let (list, rows) = list(self.variant, of);
        let (k, v) = (r.k.bits.clone(), r.v.bits.clone());
        for tile in &list.tiles {
            let mut seen = vec![false; of.2[0] + of.2[1]];
            for it in items(&list, tile) {
                let from = if it.source == 1 { of.2[0] } else { 0 };
                seen[from + it.run0 as usize..from + it.run1 as usize].fill(true);
            }
            for (drawn, bits) in [(&mut r.k, &k), (&mut r.v, &v)] {
                drawn.bits.clone_from(bits);
                let row = drawn.width * drawn.heads;
                for (row, _) in drawn.bits.chunks_mut(row).zip(&seen).filter(|(_, seen)| !**seen) {
                    row.fill(0x7FFF);
                }
            }
            let width = self.case.heads.0 * self.case.dims.0;
            let own = tile.row0 as usize..(tile.row0 + tile.rows) as usize;
            let of_rows = |x: &[f64]| x[own.start * width..own.end * width].to_vec();
            let dq = of_rows(&self.dq(&list, rows, r));
            check("dq", &dq, &of_rows(&r.dq), &r.seen_q[own.clone()], self.bound());
        }
    }
}

/// One compilation of the kernel.
pub struct Kernel<'a> {
    /// `None` without a C++ compiler.
    program: Option<PathBuf>,
    variant: &'a Variant,
}

impl Kernel<'_> {
    pub fn build(variant: &Variant) -> Kernel<'_> {
        Kernel {
            program: variant.build("backward_queries"),
            variant,
        }
    }

    fn run<'a>(&'a self, case: &'a Case, output: Output, seed: u64) -> Option<Run<'a>> {
        Some(Run {
            program: self.program.as_ref()?,
            variant: self.variant,
            case,
            output,
            seed,
        })
    }

    /// Runs `count` random masks.
    pub fn masks(&self, c: &Case, output: Output, count: u64) {
        for seed in 0..count {
            let Some(run) = self.run(c, output, seed) else {
                return;
            };
            let mut dice = Dice(seed * 7919 + self.variant.head_dim as u64);
            let slices = random_slices(&mut dice);
            run.mask(&slices, &mut dice);
        }
    }

    /// Runs a mask with several seeds of timing, and with NaN in what each of its tiles does not see.
    pub fn chosen(&self, c: &Case, output: Output, slices: &Slices, seeds: u64) {
        for seed in 0..seeds {
            let Some(run) = self.run(c, output, seed) else {
                return;
            };
            let mut r = run.mask(slices, &mut Dice(seed));
            if seed == 0 {
                run.poisoned(slices, &mut r);
            }
        }
    }
}

/// What each warpgroup leaves out of a mask.
pub fn left_out(v: &Variant, slices: &Slices) -> [LeftOut; 2] {
    let (list, _) = list(v, slices);
    [0, 1].map(|group| LeftOut::of(&list, group))
}

/// Whether some rows have limits of their own.
pub fn has_limits(v: &Variant, slices: &Slices) -> bool {
    !list(v, slices).0.limits.is_empty()
}
