//! Tile lists that kernels/range_tiles.cu makes of ranges on the device, against the ranges cell by cell and against
//! `plan::tiles`: on the first CUDA device where there is one, and everywhere on the processor (tests/host_driver).

mod common_backend;
mod common_cuda;
mod common_reference;

use std::sync::Arc;

use common_backend::{Buffer, Layout, Random};
use common_cuda::{Copy, gpu, run_on_the_processor};
use magi_attn::backend::cuda::range_tiles::{DeviceRanges, ListShape, ListSpace, RangeTiles};
use magi_attn::device::Stream;
use magi_attn::device::cuda::{DeviceMemory, Gpu, stream};
use magi_attn::plan::tiles::{StageRows, key_tiles, query_tiles};
use magi_attn::types::{
    Band, DType, Device, Error, Item, MaskType, Range, Slice, StageSlice, Status, Tensor, Tile, TileList,
    TileShape, TypedSlice,
};

/// A range as it is given: query ends, key ends, type.
type Given = [i32; 5];

/// What a launch left: tiles in the order of the work, items, out and lse, whether it says that it failed.
struct Made {
    list: TileList,
    out: Vec<f64>,
    lse: Vec<f64>,
    failed: bool,
}

const HEADS: i64 = 3;
const DIM: i64 = 40;

fn list_shape(tokens_q: i64, tokens_k: i64, rows: i32, step: i32, max_items: i32) -> ListShape {
    ListShape {
        tokens_q,
        tokens_k,
        of_keys: false,
        tile: TileShape::new(rows, step),
        max_items,
        words: 12,
    }
}

/// i32 in memory of the device, rows `pad` elements further apart than they are long.
fn upload(gpu: &Arc<Gpu>, rows: &[Vec<i32>], width: usize, pad: usize) -> (DeviceMemory, i64) {
    let mut all = Vec::new();
    for row in rows {
        all.extend(row);
        all.extend(vec![0x55; pad]);
    }
    let bytes: Vec<u8> = all.iter().flat_map(|x: &i32| x.to_ne_bytes()).collect();
    (DeviceMemory::upload(gpu, &bytes).unwrap(), (width + pad) as i64)
}

fn words(memory: &DeviceMemory, offset: usize, count: usize) -> Vec<i32> {
    let mut bytes = vec![0; 4 * count];
    memory.read(offset, &mut bytes).unwrap();
    bytes
        .chunks_exact(4)
        .map(|b| i32::from_ne_bytes(b.try_into().unwrap()))
        .collect()
}

fn tile_of(w: &[i32]) -> Tile {
    Tile {
        row0: w[0],
        rows: w[1],
        item0: w[2],
        items: w[3],
        steps: w[4],
        source: w[5],
        slot: w[6],
        pieces: w[7],
    }
}

fn item_of(w: &[i32]) -> Item {
    Item {
        run0: w[0],
        run1: w[1],
        start: w[2],
        full0: w[3],
        full1: w[4],
        row0: w[5],
        row1: w[6],
        lo: w[7],
        hi: w[8],
        source: w[9],
        limits: w[10],
        reserved: w[11],
    }
}

/// Makes the list of `given` in a space full of ones. `dtype` is that of out.
fn make(gpu: &Arc<Gpu>, given: &[Given], shape: &ListShape, dtype: DType, pad: usize) -> Made {
    let at = ListSpace::of(shape);
    let space = DeviceMemory::upload(gpu, &vec![0xff; at.bytes]).unwrap();
    let n = given.len() as i64;
    let part = |a: usize, b: usize| given.iter().map(|g| g[a..b].to_vec()).collect::<Vec<_>>();
    let lists = [(0, 2), (2, 4), (4, 5)].map(|(a, b)| upload(gpu, &part(a, b), b - a, pad));
    let tensor = |i: usize, extents: &[i64]| {
        let (memory, step) = &lists[i];
        let stride = [*step, 1];
        // SAFETY: as many integers as were uploaded, alive until the stream is done.
        unsafe {
            Tensor::from_raw(
                memory.as_ptr(),
                DType::I32,
                Device::Cuda(0),
                extents,
                &stride[..extents.len()],
            )
        }
    };
    let ranges = DeviceRanges {
        q: tensor(0, &[n, 2]),
        k: tensor(1, &[n, 2]),
        types: tensor(2, &[n]),
    };
    let ones = |count: i64| vec![1.0; count as usize];
    let (rows, _) = sides(shape);
    let mut out = Buffer::new(
        &ones(rows * HEADS * DIM),
        &[rows, HEADS, DIM],
        dtype,
        Layout::Padded,
    );
    let mut lse = Buffer::new(
        &ones(rows * HEADS),
        &[rows, HEADS],
        DType::F32,
        Layout::HeadsFirst,
    );
    let (host_out, host_lse) = (out.tensor(), lse.tensor());
    let copies = [host_out, host_lse].map(|t| Copy::of(gpu, t));
    let outputs = [Some(copies[0].tensor()), Some(copies[1].tensor())];
    let tiles = RangeTiles::load(gpu).unwrap();
    // SAFETY: everything stays until the stream is done.
    unsafe {
        tiles
            .enqueue(&ranges, shape, &outputs, space.as_ptr(), Stream::NULL)
            .unwrap()
    };
    stream::synchronize(gpu, Stream::NULL).unwrap();
    copies.iter().for_each(Copy::fetch);
    let offset = |p: *mut u8| p as usize - space.as_ptr() as usize;
    let count = shape.tile_count() as usize;
    let made = Made {
        list: TileList {
            shape: shape.tile,
            tiles: words(&space, 0, 8 * count).chunks_exact(8).map(tile_of).collect(),
            items: words(
                &space,
                offset(at.items(space.as_ptr()).cast()),
                12 * shape.max_items as usize,
            )
            .chunks_exact(12)
            .map(item_of)
            .collect(),
            limits: Vec::new(),
            order: Vec::new(),
            areas: Vec::new(),
        },
        out: out.values(),
        lse: lse.values(),
        failed: count > 0 && words(&space, offset(at.failed(space.as_ptr()).cast_mut().cast()), 1) != [0],
    };
    if count > 0 {
        let zeros = words(&space, offset(at.words(space.as_ptr()).cast()), shape.words);
        assert!(
            zeros.iter().all(|&w| w == 0),
            "words of the next launch: {zeros:?}"
        );
    }
    made
}

/// A range as the host takes it: clamped before its diagonals are laid through its corners.
fn slice_of(g: &Given, tokens_q: i64, tokens_k: i64) -> Slice {
    let clamp = |a: i32, b: i32, total: i64| {
        let start = i64::from(a).clamp(0, total);
        Range::new(start, i64::from(b).clamp(start, total))
    };
    Slice::from_typed(&TypedSlice {
        q: clamp(g[0], g[1], tokens_q),
        k: clamp(g[2], g[3], tokens_k),
        mask_type: MaskType::from_i32(g[4]).unwrap(),
    })
}

/// Rows and tokens of a list.
fn sides(shape: &ListShape) -> (i64, i64) {
    match shape.of_keys {
        false => (shape.tokens_q, shape.tokens_k),
        true => (shape.tokens_k, shape.tokens_q),
    }
}

/// The same with rows of the list in place of queries, tokens in place of keys.
fn seen_from(shape: &ListShape, g: &Given) -> Slice {
    let s = slice_of(g, shape.tokens_q, shape.tokens_k);
    if !shape.of_keys {
        return s;
    }
    let lo = if s.band.has_hi() { -s.band.hi } else { Band::NO_LO };
    let hi = if s.band.has_lo() { -s.band.lo } else { Band::NO_HI };
    Slice::new(s.k, s.q, Band::new(lo, hi))
}

/// How often each cell is visible, [rows, tokens].
fn dense(given: &[Given], shape: &ListShape) -> Vec<u8> {
    let (rows, tokens) = sides(shape);
    let mut cells = vec![0; (rows * tokens) as usize];
    for g in given {
        let s = slice_of(g, shape.tokens_q, shape.tokens_k);
        for q in s.q.start..s.q.end {
            for k in s.k.start..s.k.end {
                let at = if shape.of_keys {
                    k * tokens + q
                } else {
                    q * tokens + k
                };
                cells[at as usize] += u8::from((s.band.lo..=s.band.hi).contains(&(k - q)));
            }
        }
    }
    cells
}

/// The runs of a tile in the order of (first token, index of the range).
fn runs(given: &[Given], shape: &ListShape, tile: &Tile) -> Vec<[i64; 4]> {
    let (row0, row1) = (i64::from(tile.row0), i64::from(tile.row0 + tile.rows));
    let mut all: Vec<[i64; 4]> = Vec::new();
    for g in given {
        let s = seen_from(shape, g);
        let inside = Range::new(s.q.start.clamp(row0, row1), s.q.end.clamp(row0, row1));
        let part = Slice::new(inside, s.k, s.band);
        if !part.is_empty() {
            let (keys, rows) = (part.visible_keys(), part.visible_rows());
            all.push([keys.start, keys.end, rows.start - row0, rows.end - row0]);
        }
    }
    all.sort_by_key(|run| run[0]); // stable: equal ones stay in the order of the ranges
    all
}

/// Every promise of a list, and its cells against the ranges' own.
fn check(given: &[Given], shape: &ListShape, made: &Made, what: &str) {
    let mut by_row = made.list.tiles.clone();
    by_row.sort_by_key(|t| t.row0);
    let (rows, tokens) = sides(shape);
    let mut cells = vec![0u8; (rows * tokens) as usize];
    let mut row = 0;
    for tile in &by_row {
        assert_eq!(i64::from(tile.row0), row, "{what}: {tile:?}");
        assert_eq!(
            i64::from(tile.rows),
            i64::from(shape.tile.rows).min(rows - row),
            "{what}"
        );
        assert_eq!((tile.source, tile.slot, tile.pieces), (0, 0, 0), "{what}");
        row += i64::from(tile.rows);
        let items = &made.list.items[tile.item0 as usize..][..tile.items as usize];
        let found: Vec<[i64; 4]> = items
            .iter()
            .map(|i| [i.run0, i.run1, i.row0, i.row1].map(i64::from))
            .collect();
        assert_eq!(found, runs(given, shape, tile), "{what}: {tile:?}");
        let steps: i32 = items
            .iter()
            .map(|i| (i.run1 - i.start + shape.tile.step - 1) / shape.tile.step)
            .sum();
        assert_eq!(tile.steps, steps, "{what}: {tile:?}");
        for item in items {
            assert_eq!(
                (item.start, item.source, item.limits, item.reserved),
                (item.run0, 0, -1, 0),
                "{what}"
            );
            check_steps(&made.list, tile, item, what);
            for r in 0..tile.rows {
                let seen = made.list.seen(tile, item, r);
                for k in seen.start..seen.end {
                    cells[(i64::from(tile.row0 + r) * tokens + k) as usize] += 1;
                }
            }
        }
    }
    assert_eq!(row, rows, "{what}");
    assert!(cells == dense(given, shape), "{what}: cells");
    assert!(!made.failed, "{what}");
    let longest = by_row.iter().map(|t| t.steps).max().unwrap_or(0);
    for pair in made.list.tiles.windows(2) {
        // Buckets are as fine as one in a thousand of the longest.
        assert!(
            pair[0].steps + longest / 1000 >= pair[1].steps,
            "{what}: {pair:?}"
        );
        // One order, whichever thread block made a tile first.
        let place = |t: &Tile| (t.source, t.row0);
        assert!(
            pair[0].steps != pair[1].steps || place(&pair[0]) < place(&pair[1]),
            "{what}: {pair:?}"
        );
    }
    assert!(
        made.out.iter().chain(&made.lse).all(|&x| x == 1.0),
        "{what}: outputs were touched"
    );
}

/// Full steps are those that every row sees entirely, and no others.
fn check_steps(list: &TileList, tile: &Tile, item: &Item, what: &str) {
    let step = list.shape.step;
    for start in (item.start..item.run1).step_by(step as usize) {
        let whole = (0..tile.rows).all(|r| {
            let seen = list.seen(tile, item, r);
            seen.start <= i64::from(start) && i64::from(start + step) <= seen.end
        });
        let full = item.full0 <= start && start + step <= item.full1;
        assert_eq!(whole, full, "{what}: step at {start} of {item:?} in {tile:?}");
    }
    if item.full0 == item.full1 {
        assert_eq!(item.full0, item.start, "{what}: {item:?}");
    }
}

fn random_ranges(r: &mut Random, n: i64, tokens_q: i64, tokens_k: i64) -> Vec<Given> {
    let mut ends = |total: i64, wild: bool| {
        let mut pair =
            [0, 0].map(|_| (r.below(total + if wild { 21 } else { 1 }) - if wild { 10 } else { 0 }) as i32);
        // One in eight stays in the wrong order.
        if r.below(8) != 0 {
            pair.sort_unstable();
        }
        pair
    };
    let mut all = Vec::new();
    for i in 0..n {
        let (q, k) = (ends(tokens_q, i % 3 == 0), ends(tokens_k, i % 3 == 0));
        all.push([q[0], q[1], k[0], k[1], 0]);
    }
    all.iter_mut().for_each(|g| g[4] = r.below(4) as i32);
    all
}

#[test]
fn random_ranges_cell_by_cell() {
    let Some(gpu) = gpu() else { return };
    let mut r = Random(1);
    for case in 0..120 {
        let (tokens_q, tokens_k) = (1 + r.below(200), r.below(260));
        let (rows, step) = (
            [8, 16, 33, 128][r.below(4) as usize],
            [4, 16, 37, 128][r.below(4) as usize],
        );
        let n = [0, 1, 2, 5, 20, 60][r.below(6) as usize];
        let given = random_ranges(&mut r, n, tokens_q, tokens_k);
        let all = (tokens_q.max(tokens_k) + 7) / i64::from(rows.min(8)) * n;
        let mut shape = list_shape(tokens_q, tokens_k, rows, step, all as i32);
        shape.of_keys = case % 2 == 1;
        let dtype = [DType::Bf16, DType::F32][r.below(2) as usize];
        let made = make(&gpu, &given, &shape, dtype, r.below(3) as usize);
        check(
            &given,
            &shape,
            &made,
            &format!("case {case}, {shape:?}, {given:?}"),
        );
    }
}

/// Some thousand ranges over one tile, none of them in order: the sort has many passes and no length is a power of two.
#[test]
fn many_ranges_of_one_tile() {
    let Some(gpu) = gpu() else { return };
    let mut r = Random(2);
    for n in [255, 256, 257, 1000] {
        let given: Vec<Given> = (0..n)
            .map(|_| {
                let k = r.below(400) as i32;
                [r.below(8) as i32, 16, k, k + 1 + r.below(30) as i32, 0]
            })
            .collect();
        let shape = list_shape(40, 430, 16, 8, n);
        let made = make(&gpu, &given, &shape, DType::F16, 0);
        check(&given, &shape, &made, &format!("{n} ranges"));
    }
}

/// What one range comes to is what the host makes of it, item by item.
#[test]
fn one_range_is_as_planned() {
    let Some(gpu) = gpu() else { return };
    let mut r = Random(3);
    for case in 0..80 {
        let (tokens_q, tokens_k) = (1 + r.below(500), 1 + r.below(700));
        let tile = TileShape::new([16, 128][case % 2], [32, 128][case / 2 % 2]);
        let given = random_ranges(&mut r, 1, tokens_q, tokens_k);
        let shape = ListShape {
            of_keys: case / 4 % 2 == 1,
            tile,
            ..list_shape(tokens_q, tokens_k, tile.rows, tile.step, 64)
        };
        let made = make(&gpu, &given, &shape, DType::Bf16, 0);
        let slice = slice_of(&given[0], tokens_q, tokens_k);
        let rows = StageRows {
            q: tokens_q,
            k: [tokens_k, 0],
        };
        let plan = if shape.of_keys { key_tiles } else { query_tiles };
        let want = plan(&[StageSlice { slice, source: 0 }], &rows, &tile).unwrap();
        let mut tiles = made.list.tiles.clone();
        tiles.sort_by_key(|t| t.row0);
        for (i, tile) in tiles.iter().enumerate() {
            let items = &made.list.items[tile.item0 as usize..][..tile.items as usize];
            assert_eq!(items, want.items_of(i), "case {case}: {given:?}, {tile:?}");
            assert_eq!(tile.steps, want.tiles[i].steps);
        }
    }
}

/// Everything is NaN, no tile stores anything, and the next question says why, once.
fn fails(gpu: &Arc<Gpu>, given: &[Given], max_items: i32, status: Status, part: &str) {
    for (dtype, of_keys) in [(DType::Bf16, false), (DType::F16, true), (DType::F32, false)] {
        // As many tiles on both sides.
        let shape = ListShape {
            of_keys,
            ..list_shape(70, if of_keys { 80 } else { 90 }, 16, 16, max_items)
        };
        let made = make(gpu, given, &shape, dtype, 1);
        assert!(made.out.iter().chain(&made.lse).all(|x| x.is_nan()), "{part}");
        assert!(made.failed, "{part}");
        assert!(
            made.list.tiles.iter().all(|t| t.rows == 0 && t.items == 0),
            "{part}"
        );
        let tiles = RangeTiles::load(gpu).unwrap();
        let error: Error = tiles.take_error().unwrap_err();
        assert_eq!(error.status, status);
        assert!(error.message.contains(part), "{error}");
        tiles.take_error().unwrap();
    }
}

#[test]
fn lists_that_cannot_be_made_are_reported() {
    let Some(gpu) = gpu() else { return };
    // Five tiles of 16 rows and two ranges over all of them.
    let twice = [[0, 70, 0, 90, 0], [0, 70, 0, 80, 0]];
    fails(
        &gpu,
        &twice,
        9,
        Status::BufferTooSmall,
        "10 items, more than options.max_items",
    );
    fails(&gpu, &twice, 0, Status::BufferTooSmall, "10 items");
    let made = make(&gpu, &twice, &list_shape(70, 90, 16, 16, 10), DType::Bf16, 0);
    check(&twice, &list_shape(70, 90, 16, 16, 10), &made, "exactly enough");
    RangeTiles::load(&gpu).unwrap().take_error().unwrap();
    for bad in [4, -1, i32::MIN, i32::MAX] {
        let mut given = vec![[0, 9, 0, 9, 0]; 300];
        given[290][4] = bad;
        given[277][4] = bad;
        fails(&gpu, &given, 600, Status::InvalidEnum, "options.mask_types[277]");
        // Even where the range shows nothing.
        fails(
            &gpu,
            &[[5, 5, 0, 9, bad]],
            600,
            Status::InvalidEnum,
            "options.mask_types[0]",
        );
    }
}

#[test]
fn ends_of_any_size() {
    let Some(gpu) = gpu() else { return };
    let (least, most) = (i32::MIN, i32::MAX);
    let given = [
        [least, most, least, most, 1],
        [least, 30, 50, most, 3],
        [most, least, 0, 9, 0],
        [69, most, least, 1, 2],
    ];
    for of_keys in [false, true] {
        let shape = ListShape {
            of_keys,
            ..list_shape(70, 90, 16, 16, 40)
        };
        let made = make(&gpu, &given, &shape, DType::F32, 0);
        check(&given, &shape, &made, "ends of any size");
    }
}

#[test]
fn room_by_default() {
    assert_eq!(ListShape::default_items(8, 100), 408);
    assert_eq!(ListShape::default_items(8, 1), 8);
    assert_eq!(ListShape::default_items(8, 0), 1);
    assert_eq!(ListShape::default_items(i64::MAX, i64::MAX), ListShape::MAX_ITEMS);
}

#[test]
fn the_same_launches_give_the_same_on_the_processor() {
    run_on_the_processor("range_tiles", &[], 7);
}
