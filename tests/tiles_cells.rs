//! Tile lists against the cells of the slices that they were made of, one by one, walked as a kernel walks them.

mod plan_common;

use magi_attn::plan::Plan;
use magi_attn::plan::tiles::{StageRows, key_tiles, query_tiles};
use magi_attn::types::*;
use plan_common::{Cells, Random, random_mask};

/// Visible cells `[source][query][key]`.
fn cells(slices: &[StageSlice], rows: &StageRows) -> [Cells; 2] {
    let mut all = rows.k.map(|k| vec![vec![0; k as usize]; rows.q as usize]);
    for s in slices {
        for q in s.slice.q.start..s.slice.q.end {
            for k in s.slice.k.start..s.slice.k.end {
                all[usize::from(s.source)][q as usize][k as usize] += u32::from(s.slice.contains(q, k));
            }
        }
    }
    all
}

/// The sentence of kernels/params.h about what a row sees.
fn sees(list: &TileList, tile: &Tile, item: &Item, r: i32, t: i32) -> bool {
    let offset = t - (tile.row0 + r);
    let limited = item.limits >= 0 && {
        let limits = list.limits[(item.limits + r) as usize];
        t < limits.lo || limits.hi <= t
    };
    (item.row0..item.row1).contains(&r)
        && (item.run0..item.run1).contains(&t)
        && (item.lo..=item.hi).contains(&offset)
        && !limited
}

/// Walks one item; marks what it sees with `mark(row, token)`; returns its steps and cells.
fn walk(list: &TileList, tile: &Tile, item: &Item, mark: &mut dyn FnMut(i32, i32)) -> (i32, i64) {
    let step = list.shape.step;
    assert!(item.run0 < item.run1 && item.row0 < item.row1);
    assert!(item.row0 >= 0 && item.row1 <= tile.rows);
    assert_eq!(item.start, item.run0);
    assert_eq!((item.full0 - item.start) % step, 0);
    assert_eq!((item.full1 - item.start) % step, 0);
    assert!(item.start <= item.full0 && item.full0 <= item.full1 && item.full1 <= item.run1);
    let (mut steps, mut found) = (0, 0);
    for first in (item.start..item.run1).step_by(step as usize) {
        steps += 1;
        let mut here = 0;
        for r in 0..tile.rows {
            for t in first..first + step {
                if sees(list, tile, item, r, t) {
                    mark(r, t);
                    here += 1;
                }
            }
        }
        assert!(here > 0, "a step of {item:?} that sees nothing");
        // Full steps need no look at any limit, and every step that could go without is one.
        let full = (item.full0..item.full1).contains(&first);
        assert_eq!(full, here == tile.rows * step, "step {first} of {item:?}");
        found += i64::from(here);
    }
    for t in item.run0..item.run1 {
        let seen = (0..tile.rows).any(|r| sees(list, tile, item, r, t));
        assert!(seen, "no row sees token {t} of {item:?}");
    }
    for r in 0..tile.rows {
        let row: Vec<i64> = (item.run0..item.run1)
            .filter(|&t| sees(list, tile, item, r, t))
            .map(i64::from)
            .collect();
        let told = list.seen(tile, item, r);
        assert_eq!(row, (told.start..told.end).collect::<Vec<_>>());
        assert!(!row.is_empty() || (r != item.row0 && r != item.row1 - 1));
    }
    (steps, found)
}

/// Checks everything that a list promises; returns its cells `[tile source][run source][row][token]`.
fn check(list: &TileList, rows: [i64; 2], tokens: [i64; 2]) -> [[Cells; 2]; 2] {
    let mut all = rows.map(|r| tokens.map(|t| vec![vec![0; t as usize]; r as usize]));
    let (mut next_row, mut next_item, mut next_limits) = ([0; 2], 0, 0);
    for (i, tile) in list.tiles.iter().enumerate() {
        let source = tile.source as usize;
        assert_eq!(i64::from(tile.row0), next_row[source]);
        assert!(source == 1 || next_row[1] == 0, "tiles of source 0 come first");
        let left = rows[source] - next_row[source];
        assert_eq!(i64::from(tile.rows), left.min(list.shape.rows.into()));
        next_row[source] += i64::from(tile.rows);
        assert_eq!((tile.item0, tile.slot, tile.pieces), (next_item, 0, 0));
        next_item += tile.items;
        let (mut steps, mut area) = (0, 0);
        let items = list.items_of(i);
        for item in items {
            let row0 = tile.row0;
            let into = &mut all[source][item.source as usize];
            let mut mark = |r: i32, t: i32| into[(row0 + r) as usize][t as usize] += 1;
            let (s, cells) = walk(list, tile, item, &mut mark);
            assert_eq!(list.item_area(tile, item), cells);
            steps += s;
            area += cells;
            assert_eq!(item.reserved, 0);
            if item.limits != Item::NO_LIMITS {
                assert_eq!(item.limits, next_limits);
                next_limits += list.shape.rows;
                let block = &list.limits[item.limits as usize..next_limits as usize];
                assert!(block[tile.rows as usize..].iter().all(|l| l.lo == l.hi));
            }
        }
        assert!(items.is_sorted_by_key(|it| (it.source, it.run0)));
        for pair in items.windows(2) {
            let key = |it: &Item| (it.source, it.row0, it.row1, it.lo, it.hi, it.limits);
            let touch = pair[0].run1 == pair[1].run0;
            assert!(!(touch && key(&pair[0]) == key(&pair[1])), "{pair:?} are one");
        }
        assert_eq!((tile.steps, list.areas[i]), (steps, area));
    }
    assert_eq!(next_row, rows);
    assert_eq!(next_item as usize, list.items.len());
    assert_eq!(next_limits as usize, list.limits.len());
    let cost = |&i: &i32| std::cmp::Reverse(list.tiles[i as usize].steps);
    assert!(list.order.is_sorted_by_key(|i| (cost(i), *i)));
    let mut order = list.order.clone();
    order.sort_unstable();
    assert_eq!(order, (0..list.tiles.len() as i32).collect::<Vec<_>>());
    check_without_idle(list);
    all
}

/// The busy tiles of `list`, in the order of the work, and what belongs to them; nothing else.
fn check_without_idle(list: &TileList) {
    let busy = list.clone().without_idle();
    let work = |l: &TileList| -> Vec<(Tile, i64)> {
        let of = |&i: &i32| (l.tiles[i as usize], l.areas[i as usize]);
        l.order.iter().map(of).filter(|(t, _)| t.items > 0).collect()
    };
    assert_eq!(work(&busy), work(list));
    assert_eq!(busy.order.len(), busy.tiles.len(), "each tile once");
    assert!(busy.tiles.iter().all(|t| t.items > 0));
    assert_eq!(busy.areas.len(), busy.tiles.len());
    assert_eq!(
        (&busy.items, &busy.limits, busy.area()),
        (&list.items, &list.limits, list.area())
    );
}

fn turned(cells: &Cells, keys: i64) -> Cells {
    (0..keys as usize)
        .map(|k| cells.iter().map(|row| row[k]).collect())
        .collect()
}

/// Both lists of `slices` against their cells; returns them.
fn check_both(slices: &[StageSlice], rows: &StageRows, shape: &TileShape) -> (TileList, TileList) {
    let want = cells(slices, rows);
    let forward = query_tiles(slices, rows, shape).unwrap();
    let [have, nothing] = check(&forward, [rows.q, 0], rows.k);
    assert_eq!(have, want);
    assert!(nothing.iter().all(Vec::is_empty));
    let backward = key_tiles(slices, rows, shape).unwrap();
    let have = check(&backward, rows.k, [rows.q, 0]);
    for source in 0..2 {
        assert_eq!(have[source][0], turned(&want[source], rows.k[source]));
    }
    assert_eq!(forward.area(), backward.area());
    (forward, backward)
}

/// Cuts slices at random rows and keys, which leaves their cells.
fn cut(random: &mut Random, slices: Vec<StageSlice>) -> Vec<StageSlice> {
    let mut out = Vec::new();
    for s in slices {
        let (q, k) = (s.slice.q, s.slice.k);
        let (row, key) = (
            random.within(q.start, q.end.max(q.start)),
            random.within(k.start, k.end.max(k.start)),
        );
        for rows in [Range::new(q.start, row), Range::new(row, q.end)] {
            for keys in [Range::new(k.start, key), Range::new(key, k.end)] {
                out.push(StageSlice {
                    slice: s.slice.cut(&rows, &keys),
                    ..s
                });
            }
        }
    }
    out
}

fn shuffle(random: &mut Random, slices: &mut [StageSlice]) {
    for i in (1..slices.len()).rev() {
        slices.swap(i, random.within(0, i as i64) as usize);
    }
}

fn random_shape(random: &mut Random) -> TileShape {
    let step = random.within(1, 17) as i32;
    TileShape::new(random.within(1, 19) as i32, step)
}

#[test]
fn lists_hold_the_cells_of_random_slices() {
    let mut random = Random::new(1);
    let (mut limited, mut banded) = (0, 0);
    for round in 0..600 {
        let rows = StageRows {
            q: random.within(0, 40),
            k: [random.within(0, 40), random.within(0, 40)],
        };
        let tries = random.within(0, 12) as usize;
        let mut slices = Vec::new();
        for source in 0..2u8 {
            let mask = random_mask(&mut random, rows.q, rows.k[usize::from(source)], tries);
            slices.extend(mask.slices().iter().map(|&slice| StageSlice { slice, source }));
        }
        let shape = random_shape(&mut random);
        let lists = check_both(&slices, &rows, &shape);
        limited += usize::from(!lists.0.limits.is_empty());
        banded += usize::from(
            lists
                .0
                .items
                .iter()
                .any(|i| i.limits == Item::NO_LIMITS && i.lo > Item::NO_LO),
        );
        if round % 3 == 0 {
            let mut pieces = cut(&mut random, slices.clone());
            check_both(&pieces, &rows, &shape);
            let ordered = query_tiles(&pieces, &rows, &shape).unwrap();
            shuffle(&mut random, &mut pieces);
            assert_eq!(query_tiles(&pieces, &rows, &shape).unwrap(), ordered);
        }
    }
    assert!(limited > 100 && banded > 100, "{limited} {banded}");
}

/// Documents, blocks that share a prefix, windows: what masks are made of, on tiles that do not divide them.
#[test]
fn lists_hold_the_cells_of_common_masks() {
    let mut random = Random::new(2);
    for _ in 0..150 {
        let total = random.within(1, 90);
        let mut slices = Vec::new();
        let (mut start, prefix) = (0, random.within(0, 20).min(total));
        while start < total {
            let end = total.min(start + random.within(1, 12));
            let (q, own) = (Range::new(start, end), Range::new(start, end));
            let mut push = |k: Range, mask_type| {
                let typed = TypedSlice { q, k, mask_type };
                slices.push(StageSlice {
                    slice: Slice::from_typed(&typed),
                    source: 0,
                });
            };
            match random.within(0, 3) {
                0 => push(Range::new(0, end), MaskType::Full),
                1 => push(own, MaskType::Causal),
                2 => push(Range::new((start - 7).max(0), end), MaskType::BiCausal),
                _ => {
                    push(Range::new(0, prefix.min(start)), MaskType::Full);
                    push(own, MaskType::Causal);
                }
            }
            start = end;
        }
        let rows = StageRows {
            q: total,
            k: [total, 0],
        };
        check_both(&slices, &rows, &random_shape(&mut random));
    }
}

/// What plans really hand over: local rows, receive buffers, one launch over both.
#[test]
fn stages_of_plans_become_lists() {
    let mut random = Random::new(3);
    for round in 0..40 {
        let (q, k) = (random.within(1, 60), random.within(1, 60));
        let mask = random_mask(&mut random, q, k, 8);
        let shape = AttnShape {
            heads_q: 2,
            heads_kv: 1,
            head_dim: 8,
            head_dim_v: 8,
            dtype: DType::F32,
        };
        let config = Config {
            degree_forward: round % 3,
            chunk_size: 5,
            ..Config::default()
        };
        for rank in 0..3 {
            let plan = Plan::new(&mask, &shape, 3, rank, &config).unwrap();
            for stage in &plan.forward.stages {
                let rows = StageRows {
                    q: plan.placement.side(Side::Q).tokens(rank),
                    k: [
                        plan.placement.side(Side::K).tokens(rank),
                        stage.transfer.recv_rows,
                    ],
                };
                let (forward, _) = check_both(&stage.slices, &rows, &random_shape(&mut random));
                assert_eq!(forward.area(), stage.area);
            }
        }
    }
}

fn one(q: (i64, i64), k: (i64, i64), band: Band) -> StageSlice {
    StageSlice {
        slice: Slice::new(Range::new(q.0, q.1), Range::new(k.0, k.1), band),
        source: 0,
    }
}

#[test]
fn a_causal_tile_is_full_up_to_its_diagonal() {
    let rows = StageRows { q: 300, k: [300, 0] };
    let causal = [one((0, 300), (0, 300), Band::new(Band::NO_LO, 0))];
    let list = query_tiles(&causal, &rows, &TileShape::new(128, 64)).unwrap();
    let items: Vec<_> = list
        .items
        .iter()
        .map(|i| (i.run0, i.run1, i.full0, i.full1, i.lo, i.hi))
        .collect();
    let lo = Item::NO_LO;
    assert_eq!(
        items,
        [
            (0, 128, 0, 0, lo, 0),
            (0, 256, 0, 128, lo, 0),
            (0, 300, 0, 256, lo, 0)
        ]
    );
    assert_eq!(list.order, [2, 1, 0]);
    assert_eq!(list.tiles[2].rows, 44);
    // The window of 100 keys of rows 128..256 begins at key 29; all rows see keys [156, 129): no full step.
    let window = [one((0, 300), (0, 300), Band::new(-99, 0))];
    let list = query_tiles(&window, &rows, &TileShape::new(128, 64)).unwrap();
    let item = list.items[1];
    assert_eq!(
        (item.run0, item.run1, item.start, item.full0, item.full1),
        (29, 256, 29, 29, 29)
    );
    assert_eq!(list.tiles[1].steps, 4);
}

#[test]
fn pieces_of_one_band_become_one_item() {
    let causal = Band::new(Band::NO_LO, 0);
    let rows = StageRows { q: 64, k: [64, 0] };
    // The triangle of a tile in four pieces: two halves of its rows, the lower one cut at two keys.
    let pieces = [
        one((32, 64), (40, 64), causal),
        one((0, 32), (0, 32), causal),
        one((32, 64), (0, 10), Band::FULL),
        one((32, 64), (10, 40), causal),
    ];
    let whole = [one((0, 64), (0, 64), causal)];
    let shape = TileShape::new(64, 32);
    let list = query_tiles(&pieces, &rows, &shape).unwrap();
    assert_eq!(list.items.len(), 1);
    assert_eq!(list, query_tiles(&whole, &rows, &shape).unwrap());
    assert_eq!(
        key_tiles(&pieces, &rows, &shape),
        key_tiles(&whole, &rows, &shape)
    );
}

#[test]
fn rows_of_two_blocks_walk_their_prefix_once() {
    // Rows 0..60 see 1,000 keys, rows 60..128 see 1,300: 8 + 11 steps of masked keys, or 11, of which 7 are full.
    let rows = StageRows { q: 128, k: [1300, 0] };
    let blocks = [
        one((0, 60), (0, 1000), Band::FULL),
        one((60, 128), (0, 1300), Band::FULL),
    ];
    let list = query_tiles(&blocks, &rows, &TileShape::new(128, 128)).unwrap();
    let [item] = list.items[..] else {
        panic!("{:?}", list.items)
    };
    assert_eq!((item.full0, item.full1), (0, 896));
    assert_eq!((list.tiles[0].steps, list.limits.len()), (11, 128));
    assert_eq!((list.limits[59].hi, list.limits[60].hi), (1000, 1300));
    // A gap in the run would bring in keys that nobody sees: two items.
    let apart = [
        one((0, 60), (0, 30), Band::FULL),
        one((60, 128), (31, 61), Band::FULL),
    ];
    let list = query_tiles(&apart, &rows, &TileShape::new(128, 128)).unwrap();
    assert_eq!((list.items.len(), list.limits.len()), (2, 0));
}

#[test]
fn what_does_not_fit_is_refused() {
    let rows = StageRows { q: 10, k: [10, 4] };
    let shape = TileShape::new(4, 4);
    let bad = |s: StageSlice, rows: &StageRows, shape: &TileShape| {
        let errors = [query_tiles(&[s], rows, shape), key_tiles(&[s], rows, shape)].map(Result::unwrap_err);
        assert_eq!(errors[0], errors[1]);
        (errors[0].status, errors[0].message.clone())
    };
    let inside = one((0, 10), (0, 10), Band::FULL);
    let (status, message) = bad(StageSlice { source: 2, ..inside }, &rows, &shape);
    assert_eq!(status, Status::InvalidArgument);
    assert!(message.contains("slices[0] has source 2"), "{message}");
    let (status, message) = bad(StageSlice { source: 1, ..inside }, &rows, &shape);
    assert_eq!(status, Status::InvalidRange);
    assert!(
        message.contains("keys [0, 10)") && message.contains("4 keys"),
        "{message}"
    );
    assert_eq!(
        bad(one((5, 11), (0, 1), Band::FULL), &rows, &shape).0,
        Status::InvalidRange
    );
    assert_eq!(
        bad(one((-1, 3), (0, 1), Band::FULL), &rows, &shape).0,
        Status::InvalidRange
    );
    for q in [-1, TileList::MAX_TOKENS + 1] {
        assert_eq!(
            bad(inside, &StageRows { q, ..rows }, &shape).0,
            Status::InvalidRange
        );
    }
    let shapes = [
        TileShape::new(0, 4),
        TileShape::new(4, TileShape::MAX + 1),
        TileShape::new(4, 0),
    ];
    for shape in shapes {
        assert_eq!(bad(inside, &rows, &shape).0, Status::InvalidArgument);
    }
    // Nothing visible outside: a band may point there.
    let list = query_tiles(
        &[one((0, 10), (0, 90), Band::new(Band::NO_LO, -9))],
        &rows,
        &shape,
    )
    .unwrap();
    assert_eq!((list.area(), list.items.len()), (1, 1));
}
