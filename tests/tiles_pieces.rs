//! Long tiles cut into pieces: together they show the same cells, in pieces of the length that was asked for.

mod plan_common;

use std::collections::BTreeMap;

use magi_attn::backend::cuda::pieces;
use magi_attn::plan::tiles::{StageRows, query_tiles};
use magi_attn::types::*;
use plan_common::Random;

/// Slices that share no cell: stretches of rows, and in each of them stretches of keys.
fn random_slices(random: &mut Random, rows: &StageRows) -> Vec<StageSlice> {
    let mut slices = Vec::new();
    let mut q = 0;
    while q < rows.q {
        let q_end = rows.q.min(q + random.within(1, 90));
        for source in 0..2u8 {
            let mut k = random.within(0, 40);
            while k < rows.k[usize::from(source)] {
                let k_end = rows.k[usize::from(source)].min(k + random.within(1, 400));
                let types = [
                    MaskType::Full,
                    MaskType::Causal,
                    MaskType::InvCausal,
                    MaskType::BiCausal,
                ];
                let slice = Slice::from_typed(&TypedSlice {
                    q: Range::new(q, q_end),
                    k: Range::new(k, k_end),
                    mask_type: types[random.within(0, 3) as usize],
                });
                slices.push(StageSlice { slice, source });
                k = k_end + random.within(0, 60);
            }
        }
        q = q_end;
    }
    slices
}

/// What every row of a list's tile sees: (source, token) of each visible cell, by row.
fn seen(list: &TileList, i: usize, into: &mut BTreeMap<(i32, u32, i64), u32>) {
    let tile = &list.tiles[i];
    for item in list.items_of(i) {
        for row in 0..tile.rows {
            let tokens = list.seen(tile, item, row);
            for token in tokens.start..tokens.end {
                *into
                    .entry((tile.row0 + row, item.source as u32, token))
                    .or_default() += 1;
            }
        }
    }
}

#[test]
fn pieces_show_the_cells_of_their_tiles() {
    let mut cut_tiles = 0;
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let rows = StageRows {
            q: random.within(1, 150),
            k: [random.within(0, 900), random.within(0, 500)],
        };
        let slices = random_slices(&mut random, &rows);
        let shape = TileShape::new(32, 16);
        let list = query_tiles(&slices, &rows, &shape).unwrap();
        let limit = random.within(1, 12) as i32;
        let (cut, slots) = pieces::cut(&list, limit);
        let mut at = 0;
        let mut next_slot = 0;
        for (i, tile) in list.tiles.iter().enumerate() {
            let count = (cut.tiles[at].pieces >> 16).max(1);
            let mut want = BTreeMap::new();
            let mut got = BTreeMap::new();
            seen(&list, i, &mut want);
            let mut steps = 0;
            for piece in 0..count {
                let t = &cut.tiles[at];
                assert_eq!((t.row0, t.rows, t.source), (tile.row0, tile.rows, tile.source));
                assert!(
                    t.steps <= limit.max(1) || count == 1,
                    "{} steps of at most {limit}",
                    t.steps
                );
                if count > 1 {
                    assert_eq!((t.slot, t.pieces), (next_slot, count << 16 | piece));
                    assert!(t.steps > 0);
                }
                steps += t.steps;
                full_steps_are_full(&cut, at);
                seen(&cut, at, &mut got);
                at += 1;
            }
            assert_eq!(steps, tile.steps, "pieces walk the steps of their tile");
            assert!(got == want, "pieces of tile {i} (seed {seed}) show other cells");
            if count > 1 {
                next_slot += count;
                cut_tiles += 1;
            } else {
                assert!(tile.steps <= limit, "a tile of {} steps was not cut", tile.steps);
            }
        }
        assert_eq!((at, slots), (cut.tiles.len(), i64::from(next_slot)));
        let mut order: Vec<i32> = cut.order.clone();
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &o)| i as i32 == o));
    }
    assert!(cut_tiles > 100, "{cut_tiles} tiles were cut");
}

/// Every row sees every token of the steps that an item calls full.
fn full_steps_are_full(list: &TileList, i: usize) {
    let tile = &list.tiles[i];
    for item in list.items_of(i) {
        assert!(item.start <= item.run0 && item.run0 < item.run1, "{item:?}");
        assert!(
            (item.full0 - item.start) % list.shape.step == 0
                && (item.full1 - item.start) % list.shape.step == 0
        );
        if item.full0 < item.full1 {
            assert!(item.run0 <= item.full0 && item.full1 <= item.run1, "{item:?}");
            for row in 0..tile.rows {
                let tokens = list.seen(tile, item, row);
                assert!(tokens.start <= item.full0.into() && tokens.end >= item.full1.into());
            }
        }
    }
}

#[test]
fn tiles_are_cut_only_where_a_device_would_wait_for_them() {
    let causal = |tokens: i64| {
        let slice = Slice::from_typed(&TypedSlice {
            q: Range::new(0, tokens),
            k: Range::new(0, tokens),
            mask_type: MaskType::Causal,
        });
        let rows = StageRows {
            q: tokens,
            k: [tokens, 0],
        };
        query_tiles(
            &[StageSlice { slice, source: 0 }],
            &rows,
            &TileShape::new(128, 128),
        )
        .unwrap()
    };
    // 64 tiles of 64 heads are 31 for each processor; none is longer than what a processor gets.
    assert_eq!(pieces::limit(&causal(8192), 64, 132), None);
    // One head of 8,192 tokens leaves half of the processors idle, and the longest tile takes as long as all.
    let limit = pieces::limit(&causal(8192), 1, 132).unwrap();
    assert!((8..=20).contains(&limit), "{limit}");
    // One query tile of 1,000 keys is not worth it.
    assert_eq!(pieces::limit(&causal(1000), 1, 132), None);
}
