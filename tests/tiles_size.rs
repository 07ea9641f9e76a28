//! Tile lists of long masks: how large they are, how many steps they take, and how long they take to make.
//!
//! `cargo test --release --test tiles_size -- --nocapture --test-threads 1` prints the figures.

mod plan_common;

use magi_attn::plan::tiles::{StageRows, key_tiles, query_tiles};
use magi_attn::types::*;
use plan_common::{Random, documents};
use std::time::Duration;

const MILLION: i64 = 1 << 20;
const SHAPE: TileShape = TileShape::new(128, 128);

/// Time this thread spent on a core: other tests may hold the machine.
fn cpu_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a timespec to write to, and the clock exists wherever threads do.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    assert_eq!(failed, 0);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Makes both lists a few times; the query tiles, and the shortest time of either.
fn make(name: &str, mask: &Mask) -> (TileList, Duration) {
    let slices: Vec<StageSlice> = mask
        .slices()
        .iter()
        .map(|&slice| StageSlice { slice, source: 0 })
        .collect();
    let rows = StageRows {
        q: mask.total_q(),
        k: [mask.total_k(), 0],
    };
    let time = |make: &dyn Fn() -> TileList| {
        let runs = (0..10).map(|_| {
            let start = cpu_time();
            let list = make();
            (cpu_time() - start, list)
        });
        runs.min_by_key(|r| r.0).unwrap()
    };
    let (forward, list) = time(&|| query_tiles(&slices, &rows, &SHAPE).unwrap());
    let (backward, turned) = time(&|| key_tiles(&slices, &rows, &SHAPE).unwrap());
    assert_eq!(list.area(), mask.area());
    assert_eq!(turned.area(), mask.area());
    let limited = list.limits.len() / SHAPE.rows as usize;
    println!(
        "{name}: {} slices, {} tiles, {} items, {limited} with limits, {} steps, {:.2} MiB; queries {:.2} ms, keys {:.2} ms",
        slices.len(),
        list.tiles.len(),
        list.items.len(),
        list.steps(),
        list.bytes() as f64 / (1 << 20) as f64,
        forward.as_secs_f64() * 1e3,
        backward.as_secs_f64() * 1e3,
    );
    (list, forward.max(backward))
}

/// Documents of random lengths around `mean` that add up to a million tokens.
fn packed(count: i64) -> Mask {
    let mut random = Random::new(count as u64);
    let mut cuts: Vec<i64> = (1..count).map(|_| random.within(1, MILLION - 1)).collect();
    cuts.extend([0, MILLION]);
    cuts.sort_unstable();
    cuts.dedup();
    let lengths: Vec<i64> = cuts.windows(2).map(|c| c[1] - c[0]).collect();
    documents(&lengths, MaskType::Causal)
}

/// Generous, as a slow machine must pass: far below what a list that grows with keys, or a sweep that looks at every
/// slice for every tile, would need.
const PATIENCE: Duration = Duration::from_millis(100);

/// Wanted of 1,000 documents in a million tokens: 5 ms, and what unoptimised code takes for that. Time on the core and the best
/// of ten runs leave a factor of five (docs/performance.md).
const WANTED: Duration = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 5 });

#[test]
fn one_item_a_tile_however_many_keys() {
    for (name, mask_type) in [("full, 1M", MaskType::Full), ("causal, 1M", MaskType::Causal)] {
        let (list, time) = make(name, &documents(&[MILLION], mask_type));
        let tiles = (MILLION / 128) as usize;
        assert_eq!(
            (list.tiles.len(), list.items.len(), list.limits.len()),
            (tiles, tiles, 0)
        );
        assert!(time < PATIENCE, "{name} took {time:?}");
    }
    let (list, _) = make("causal, 16M", &documents(&[16 * MILLION], MaskType::Causal));
    let last = list.items.last().unwrap();
    assert_eq!((last.run1, last.full1), (1 << 24, (1 << 24) - 128));
    assert_eq!(list.areas.last(), Some(&(128 * (1 << 24) - 127 * 64)));
}

#[test]
fn packed_documents_fit() {
    for count in [1_000, 20_000] {
        let mask = packed(count);
        let name = format!("{count} documents, 1M");
        let (list, time) = make(&name, &mask);
        let meet = list.tiles.len() + mask.slices().len();
        assert!(list.items.len() <= meet, "{} items", list.items.len());
        assert!(count > 1_000 || list.bytes() < 8 << 20, "{} bytes", list.bytes());
        assert!(
            time < if count > 1_000 { PATIENCE } else { WANTED },
            "{name} took {time:?}"
        );
    }
}

#[test]
fn window_of_a_million_tokens() {
    let slices = vec![Slice::new(
        Range::new(0, MILLION),
        Range::new(0, MILLION),
        Band::new(-1023, 0),
    )];
    let mask = Mask::from_slices(slices, MILLION, MILLION).unwrap();
    let (list, _) = make("window 1,024, 1M", &mask);
    // 1,151 keys from one that is no multiple of anything: 9 steps, the first and the last of them partial.
    let item = list.items[100];
    assert_eq!(list.tiles[100].steps, 9);
    assert_eq!((item.full1 - item.full0) / 128, 7);
}

/// 2,500 documents of 50 tokens: a step for every document of a tile would be 1.8 times as many.
#[test]
fn tiny_documents_share_steps() {
    let mask = documents(&[50; 2_500], MaskType::Full);
    let (list, _) = make("2,500 documents of 50", &mask);
    let alone: i64 = (0..list.tiles.len() as i64)
        .map(|t| (((t + 1) * 128).min(125_000) + 49) / 50 - t * 128 / 50)
        .sum();
    assert!(
        alone * 10 > list.steps() * 17,
        "{} steps instead of {alone}",
        list.steps()
    );
}
