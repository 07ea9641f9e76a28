//! What several test crates share: random masks, the list of mask cases, cells counted one by one.
#![allow(dead_code)] // Every test crate uses its own part of this module.

use magi_attn::types::{Band, Mask, MaskType, Range, Slice, TypedSlice};
use proptest::prelude::*;
use serde::Deserialize;

/// A rectangle and a band as numbers that fit any total; `slice` gives them a size.
#[derive(Clone, Debug)]
struct Proposal {
    /// Where the rectangle lies: 0..4 anywhere; 4, 5 the rows of the slice before it; 6 its columns; 7 its rectangle
    /// with the band above it.
    place: u8,
    /// 0..4: the four types; 4..8: raw bands.
    spelling: u8,
    /// Starts, lengths and band sides, in thousandths of what is possible.
    parts: [i64; 6],
    /// Lengths are halved so many times.
    halvings: u32,
}

fn any_proposal() -> impl Strategy<Value = Proposal> {
    (0..8u8, 0..8u8, prop::array::uniform6(0..=1000i64), 0..5u32).prop_map(
        |(place, spelling, parts, halvings)| Proposal {
            place,
            spelling,
            parts,
            halvings,
        },
    )
}

fn part_of(total: i64, thousandths: i64) -> i64 {
    (total * thousandths + 500) / 1000
}

fn any_range(total: i64, start: i64, len: i64, halvings: u32) -> Range {
    let start = part_of(total, start);
    Range::new(start, start + part_of(total - start, len) / (1 << halvings))
}

impl Proposal {
    fn slice(&self, before: Option<&Slice>, total_q: i64, total_k: i64) -> Slice {
        let [a, b, c, d, lo, hi] = self.parts;
        let mut q = any_range(total_q, a, b, self.halvings);
        let mut k = any_range(total_k, c, d, self.halvings);
        if let Some(before) = before {
            match self.place {
                4 | 5 => q = before.q,
                6 => k = before.k,
                7 if before.band.has_hi() => {
                    return Slice::new(before.q, before.k, Band::new(before.band.hi + 1, Band::NO_HI));
                }
                _ => {}
            }
        }
        if self.spelling < 4 {
            let mask_type = MaskType::from_i32(self.spelling.into()).expect("0 to 3 are types");
            return Slice::from_typed(&TypedSlice { q, k, mask_type });
        }
        // Bands run through the rectangle: k - q goes from k.start - q.end to k.end - q.start.
        let (least, reach) = (k.start - q.end, q.len() + k.len());
        let (lo, hi) = (least + part_of(reach, lo), least + part_of(reach, hi));
        let band = match self.spelling {
            4 => Band::new(lo, Band::NO_HI),
            5 => Band::new(Band::NO_LO, hi),
            6 => Band::new(lo.min(hi), lo.max(hi)),
            _ => Band::new(lo, hi),
        };
        Slice::new(q, k, band)
    }
}

/// Whether two slices have a cell in common, found row by row.
pub fn share_a_cell(a: &Slice, b: &Slice) -> bool {
    let rows = a.q.intersect(&b.q);
    (rows.start..rows.end).any(|q| a.k_lo(q).max(b.k_lo(q)) < a.k_hi(q).min(b.k_hi(q)))
}

/// Slices that may cover cells twice, with their totals. About half of them have equal totals; a total may be 0.
pub fn any_slices(max_total: i64, max_slices: usize) -> impl Strategy<Value = (Vec<Slice>, i64, i64)> {
    let totals = (0..=max_total, 0..=max_total, any::<bool>());
    let proposals = prop::collection::vec(any_proposal(), 0..=max_slices);
    (totals, proposals).prop_map(|((total_q, total_k, equal), proposals)| {
        let total_k = if equal { total_q } else { total_k };
        let mut slices: Vec<Slice> = Vec::new();
        for p in &proposals {
            slices.push(p.slice(slices.last(), total_q, total_k));
        }
        (slices, total_q, total_k)
    })
}

/// Masks of at most `max_slices` slices and `max_total` tokens on either side: all four types and raw bands, shared
/// query rows and key columns, empty slices, sometimes different totals, sometimes none.
pub fn any_mask(max_total: i64, max_slices: usize) -> impl Strategy<Value = Mask> {
    // Proposals that cover a cell again are dropped, so more are made than may stay.
    any_slices(max_total, 3 * max_slices).prop_map(move |(slices, total_q, total_k)| {
        let mut kept: Vec<Slice> = Vec::new();
        for s in slices {
            if kept.len() < max_slices && !kept.iter().any(|other| share_a_cell(other, &s)) {
                kept.push(s);
            }
        }
        Mask::from_slices(kept, total_q, total_k).expect("slices share no cell and lie inside the totals")
    })
}

/// How many slices cover each cell, row by row: `cells[q * total_k + k]`.
pub fn cells_of(slices: &[Slice], total_q: i64, total_k: i64) -> Vec<u8> {
    let mut cells = vec![0u8; (total_q * total_k) as usize];
    for s in slices {
        for q in s.q.start..s.q.end {
            for k in s.k.start..s.k.end {
                cells[(q * total_k + k) as usize] += u8::from(s.band.contains(q, k));
            }
        }
    }
    cells
}

/// Which cells of a small mask are visible, row by row: 0 or 1 in `cells[q * total_k + k]`.
pub fn cells(mask: &Mask) -> Vec<u8> {
    cells_of(mask.slices(), mask.total_q(), mask.total_k())
}

/// A mask of tests/cases/masks.json.
#[derive(Clone, Debug)]
pub struct Case {
    /// What messages call it.
    pub name: String,
    /// The mask.
    pub mask: Mask,
    /// Tokens of a chunk.
    pub chunk_size: i64,
    /// Sink tokens, 0 to 8.
    pub sink_tokens: i64,
}

#[derive(Deserialize)]
struct CaseText {
    name: String,
    total_seqlen_q: i64,
    total_seqlen_k: i64,
    chunk_size: i64,
    sink_tokens: i64,
    slices: Vec<SliceText>,
}

#[derive(Deserialize)]
struct SliceText {
    q: [i64; 2],
    k: [i64; 2],
    #[serde(rename = "type")]
    mask_type: String,
}

impl SliceText {
    fn typed(&self) -> TypedSlice {
        let mask_type = (0..4)
            .map(|i| MaskType::from_i32(i).expect("0 to 3 are types"))
            .find(|t| t.name() == self.mask_type)
            .unwrap_or_else(|| panic!("masks.json has a slice of type {:?}", self.mask_type));
        TypedSlice {
            q: Range::new(self.q[0], self.q[1]),
            k: Range::new(self.k[0], self.k[1]),
            mask_type,
        }
    }
}

/// All cases of tests/cases/masks.json, in its order.
pub fn load_cases() -> Vec<Case> {
    let texts: Vec<CaseText> =
        serde_json::from_str(include_str!("../cases/masks.json")).expect("masks.json parses");
    texts
        .into_iter()
        .map(|c| {
            let slices: Vec<TypedSlice> = c.slices.iter().map(SliceText::typed).collect();
            let mask = Mask::new(&slices, c.total_seqlen_q, c.total_seqlen_k)
                .unwrap_or_else(|e| panic!("{}: {e}", c.name));
            Case {
                name: c.name,
                mask,
                chunk_size: c.chunk_size,
                sink_tokens: c.sink_tokens,
            }
        })
        .collect()
}

impl Case {
    /// The case with about `most` tokens on its longer side, every length divided alike. What is shorter than one token then
    /// is gone, and two triangles that met in a square may overlap: the later one is left out.
    pub fn scaled(&self, most: i64) -> Case {
        let by = (self.mask.total_q().max(self.mask.total_k()) / most).max(1);
        let range = |r: Range| Range::new(r.start / by, r.end / by);
        let (total_q, total_k) = (self.mask.total_q() / by, self.mask.total_k() / by);
        let mut kept: Vec<TypedSlice> = Vec::new();
        for s in self.mask.to_typed() {
            let (q, k) = (range(s.q), range(s.k));
            kept.push(TypedSlice { q, k, ..s });
            if q.is_empty() || k.is_empty() || Mask::new(&kept, total_q, total_k).is_err() {
                kept.pop();
            }
        }
        Case {
            name: format!("{} / {by}", self.name),
            mask: Mask::new(&kept, total_q, total_k).expect("its slices were tried one by one"),
            chunk_size: (self.chunk_size / by).max(1),
            ..*self
        }
    }
}
