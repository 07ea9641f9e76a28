//! What queries that travel save, and what planning them takes: `cargo bench --bench travel`.
//!
//! Times are CPU time of the one thread that plans, the least of several runs, so that other processes hardly count.

use magi_attn::plan::{Placement, Plan, Stats};
use magi_attn::types::*;
use std::sync::Arc;

fn slice(q: (i64, i64), k: (i64, i64), mask_type: MaskType) -> TypedSlice {
    TypedSlice {
        q: Range::new(q.0, q.1),
        k: Range::new(k.0, k.1),
        mask_type,
    }
}

/// A causal window of 1,024 keys over `total` tokens, and `rows` rows in the middle that see everything before and
/// after.
fn global_rows(total: i64, rows: i64) -> Mask {
    let (at, all) = (total / 2, Range::new(0, total));
    let window = |q: Range| Slice::new(q, all, Band::new(-1023, 0));
    let slices = vec![
        window(Range::new(0, at)),
        Slice::new(Range::new(at, at + rows), all, Band::FULL),
        window(Range::new(at + rows, total)),
    ];
    Mask::from_slices(slices, total, total).unwrap()
}

/// Documents of `keys` keys that `queries` queries each read.
fn retrieval(documents: i64, queries: i64, keys: i64) -> Mask {
    let one = |i: i64| {
        slice(
            (i * queries, (i + 1) * queries),
            (i * keys, (i + 1) * keys),
            MaskType::Full,
        )
    };
    let all: Vec<TypedSlice> = (0..documents).map(one).collect();
    Mask::new(&all, documents * queries, documents * keys).unwrap()
}

fn masks() -> Vec<(&'static str, Mask)> {
    let causal = |n: i64| Mask::new(&[slice((0, n), (0, n), MaskType::Causal)], n, n).unwrap();
    let few = |q: i64, k: i64| Mask::new(&[slice((0, q), (0, k), MaskType::Full)], q, k).unwrap();
    let lengths: Vec<i64> = (0..96).map(|i| 256 * (1 + i * i % 37 * (i % 3))).collect();
    let packed = |lengths: &[i64]| {
        let (mut at, mut all) = (0, Vec::new());
        for len in lengths {
            all.push(slice((at, at + len), (at, at + len), MaskType::Causal));
            at += len;
        }
        Mask::new(&all, at, at).unwrap()
    };
    vec![
        ("4,096 queries, 262,144 keys", few(4096, 262_144)),
        (
            "retrieval: 48 x 256 queries, 8,192 keys",
            retrieval(48, 256, 8192),
        ),
        (
            "window 1,024 and 256 global rows, 131,072 tokens",
            global_rows(131_072, 256),
        ),
        (
            "question of 65,536, 128 answers of 512",
            Mask::from_share_question(65_536, &[512; 128]).unwrap(),
        ),
        ("causal, 131,072 tokens", causal(131_072)),
        ("96 documents, causal", packed(&lengths)),
    ]
}

/// CPU time of this thread in milliseconds.
fn cpu_ms() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a timespec that the call may write.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 * 1e-6
}

fn least_ms(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let before = cpu_ms();
        run();
        cpu_ms() - before
    };
    (0..3).map(time).fold(f64::INFINITY, f64::min)
}

fn main() {
    println!(
        "| mask | heads | ranks | queries moved | forward of keys only | backward of keys only | most of a rank, forward | balance | plan ms, keys only | plan ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, mask) in masks() {
        for (heads_q, heads_kv) in [(32, 32), (32, 8)] {
            for world in [8, 64] {
                let shape = AttnShape {
                    heads_q,
                    heads_kv,
                    head_dim: 128,
                    head_dim_v: 128,
                    dtype: DType::Bf16,
                };
                let keys_only = Config::default();
                let config = Config {
                    qo_comm: true,
                    ..keys_only
                };
                let placement = Arc::new(Placement::new(&mask, world, &config).unwrap());
                let stats = Stats::new(&mask, &placement, &shape, &config).unwrap();
                let ms = |config: &Config| {
                    least_ms(|| {
                        let placement = Arc::clone(&placement);
                        Plan::with_placement(&mask, &shape, placement, 1, config).unwrap();
                    })
                };
                let [forward, backward] = &stats.volume;
                let share = |a: i64, b: i64| a as f64 / b.max(1) as f64;
                println!(
                    "| {name} | {heads_q}:{heads_kv} | {world} | {} | {:.3} | {:.3} | {:.3} | {:.4} | {:.2} | {:.2} |",
                    forward.queries,
                    share(forward.bytes(), forward.keys_only_bytes),
                    share(backward.bytes(), backward.keys_only_bytes),
                    share(forward.most_bytes(), forward.keys_only_most_bytes),
                    stats.balance,
                    ms(&keys_only),
                    ms(&config)
                );
            }
        }
    }
}
