//! What plans cost and how good placements are: `cargo bench --bench plan [-- section...]`.
//!
//! Sections: `times`, `growth`, `masks`, `packed`, `exact`; all without arguments. Times are CPU time of the one thread
//! that plans, the least of several runs, so that other processes hardly count.

use magi_attn::plan::{Placement, Plan, Stats};
use magi_attn::types::*;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: i64) -> i64 {
        (self.next() % n as u64) as i64
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit().max(1e-300), self.unit());
        (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }
}

fn causal(total: i64, start: i64, end: i64) -> TypedSlice {
    let r = Range::new(start, end.min(total));
    TypedSlice {
        q: r,
        k: r,
        mask_type: MaskType::Causal,
    }
}

/// Causal documents of the lengths that `next` gives, the last one cut at `total`.
fn documents(total: i64, mut next: impl FnMut() -> i64) -> Mask {
    let (mut at, mut slices) = (0, Vec::new());
    while at < total {
        let len = next();
        slices.push(causal(total, at, at + len));
        at += len;
    }
    Mask::new(&slices, total, total).unwrap()
}

/// Log-normal lengths, median 4,096, sigma 1.2, none over a quarter of the total.
fn packed(seed: u64, total: i64) -> Mask {
    let mut random = Random(seed);
    documents(total, || {
        loop {
            let len = (4096.0 * (1.2 * random.normal()).exp()) as i64;
            if (1..=total / 4).contains(&len) {
                return len;
            }
        }
    })
}

/// A binary tree of shared prefixes: every node's rows see the nodes above it, and themselves causally.
fn prefix_tree(total: i64) -> Mask {
    let levels = (total / 2048).ilog2().min(6) as i64;
    let node = total / ((1 << (levels + 1)) - 1);
    let mut slices = Vec::new();
    for i in 0..(1i64 << (levels + 1)) - 1 {
        let q = Range::new(i * node, (i + 1) * node);
        slices.push(causal(total, q.start, q.end));
        let mut up = i;
        while up > 0 {
            up = (up - 1) / 2;
            slices.push(TypedSlice {
                q,
                k: Range::new(up * node, (up + 1) * node),
                mask_type: MaskType::Full,
            });
        }
    }
    Mask::new(&slices, total, total).unwrap()
}

/// Questions with 7 answers each: an answer sees its question and itself.
fn share_question(total: i64) -> Mask {
    let group = (total / 16).min(32768);
    let part = group / 8;
    let mut slices = Vec::new();
    for start in (0..total / group).map(|g| g * group) {
        for i in 0..8 {
            let q = Range::new(start + i * part, start + (i + 1) * part);
            slices.push(causal(total, q.start, q.end));
            if i > 0 {
                let k = Range::new(start, start + part);
                let mask_type = MaskType::Full;
                slices.push(TypedSlice { q, k, mask_type });
            }
        }
    }
    Mask::new(&slices, total, total).unwrap()
}

/// Blocks of 1,024 queries that see 16 random blocks of 1,024 keys each.
fn sparse(total: i64) -> Mask {
    let mut random = Random(5);
    let blocks = total / 1024;
    let mut slices = Vec::new();
    for q in 0..blocks {
        let mut seen: Vec<i64> = (0..16).map(|_| random.below(blocks)).collect();
        seen.sort_unstable();
        seen.dedup();
        for k in seen {
            let block = |i: i64| Range::new(i * 1024, (i + 1) * 1024);
            slices.push(Slice::new(block(q), block(k), Band::FULL));
        }
    }
    Mask::from_slices(slices, total, total).unwrap()
}

fn banded(total: i64, band: Band) -> Mask {
    let all = Range::new(0, total);
    Mask::from_slices(vec![Slice::new(all, all, band)], total, total).unwrap()
}

fn block_causal(total: i64) -> Mask {
    let blocks = (0..total).step_by(4096).map(|start| {
        let end = (start + 4096).min(total);
        Slice::new(Range::new(start, end), Range::new(0, end), Band::FULL)
    });
    Mask::from_slices(blocks.collect(), total, total).unwrap()
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    cp: usize,
    tokens: i64,
    q_ranges: Vec<[i64; 2]>,
    k_ranges: Vec<[i64; 2]>,
    types: Vec<String>,
    doc_lengths: Option<Vec<i64>>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../tests/cases/plan_benchmark.json")).unwrap()
}

impl Case {
    fn mask(&self) -> Mask {
        let slices: Vec<TypedSlice> = self
            .q_ranges
            .iter()
            .zip(&self.k_ranges)
            .zip(&self.types)
            .map(|((q, k), name)| TypedSlice {
                q: Range::new(q[0], q[1]),
                k: Range::new(k[0], k[1]),
                mask_type: if name == "full" {
                    MaskType::Full
                } else {
                    MaskType::Causal
                },
            })
            .collect();
        Mask::new(&slices, self.tokens, self.tokens).unwrap()
    }
}

fn shape() -> AttnShape {
    AttnShape {
        heads_q: 64,
        heads_kv: 8,
        head_dim: 128,
        head_dim_v: 128,
        dtype: DType::Bf16,
    }
}

/// Milliseconds of CPU time that this thread has used.
fn cpu_ms() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 * 1e-6
}

/// The least time of some runs, and the last result.
fn timed<T>(runs: usize, mut work: impl FnMut() -> T) -> (f64, T) {
    let mut best = f64::MAX;
    let mut last = None;
    for _ in 0..runs {
        let start = cpu_ms();
        last = Some(work());
        best = best.min(cpu_ms() - start);
    }
    (best, last.unwrap())
}

fn placed(mask: &Mask, world: usize, config: &Config) -> Stats {
    let placement = Placement::new(mask, world, config).unwrap();
    Stats::new(mask, &placement, &shape(), config).unwrap()
}

fn most_over_mean(figures: &[i64]) -> f64 {
    let total: i64 = figures.iter().sum();
    let most = figures.iter().copied().max().unwrap_or(0);
    if total == 0 {
        1.0
    } else {
        (most * figures.len() as i64) as f64 / total as f64
    }
}

/// Time to place and plan for one rank, in ms.
fn plan_ms(mask: &Mask, world: usize, config: &Config, runs: usize) -> f64 {
    timed(runs, || {
        Plan::new(mask, &shape(), world, world / 2, config).unwrap().hash
    })
    .0
}

fn times() {
    println!("\n## times: place and plan for one rank (degrees 1 and automatic), statistics of all ranks");
    let by_default = Config::default();
    let automatic = Config {
        degree_forward: Config::AUTO_DEGREE,
        degree_backward: Config::AUTO_DEGREE,
        ..by_default
    };
    let by_area = Config {
        effort: Effort::Balance,
        ..by_default
    };
    println!(
        "| case | ranks | by area ms | plan ms | automatic ms | statistics ms | balance | bound | received mean / max | over by area | sent max / mean |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let tokens = 10_000_000;
    let mut masks: Vec<(String, usize, Mask)> =
        cases().iter().map(|c| (c.name.clone(), c.cp, c.mask())).collect();
    masks.push(("10M, 20,000 documents".into(), 1024, documents(tokens, || 500)));
    let mut random = Random(3);
    let varied = documents(tokens, || {
        ((280.0 * (1.2 * random.normal()).exp()) as i64).clamp(8, 100_000)
    });
    masks.push((
        format!("10M, {} log-normal documents", varied.slices().len()),
        1024,
        varied,
    ));
    for (name, world, mask) in &masks {
        let plain = plan_ms(mask, *world, &by_area, 3);
        let plan = plan_ms(mask, *world, &by_default, 5);
        let auto = plan_ms(mask, *world, &automatic, 3);
        let placement = Placement::new(mask, *world, &by_default).unwrap();
        let (all, s) = timed(2, || Stats::new(mask, &placement, &shape(), &by_default).unwrap());
        let greedy = placed(mask, *world, &by_area);
        println!(
            "| {name} | {world} | {plain:.3} | {plan:.3} | {auto:.3} | {all:.2} | {:.4} | {:.4} | {} / {} | {:.3} | {:.2} |",
            s.balance,
            s.balance_bound,
            s.ideal_volume / *world as i64,
            s.received.iter().max().unwrap(),
            s.ideal_volume as f64 / greedy.ideal_volume.max(1) as f64,
            most_over_mean(&s.sent),
        );
    }
}

fn growth() {
    println!("\n## growth: plan for one rank, ms, and the ratio to the row before");
    let mut last = None;
    let mut row = |name: String, ms: f64, start: bool| {
        let ratio = last
            .filter(|_| !start)
            .map_or("-".into(), |l: f64| format!("{:.2}", ms / l));
        println!("| {name} | {ms:.3} | {ratio} |");
        last = Some(ms);
    };
    println!(
        "| ranks with tokens, packed documents, 8,192 tokens a rank, chunk 1,024 | ms | ratio |\n|---|---|---|"
    );
    let config = Config {
        chunk_size: 1024,
        ..Config::default()
    };
    for world in [8, 16, 32, 64, 128, 256, 512, 1024] {
        let mask = packed(1, 8192 * world as i64);
        row(
            format!("{world} ranks"),
            plan_ms(&mask, world, &config, 5),
            world == 8,
        );
    }
    println!("\n| slices, 1M tokens, 64 ranks, equal documents | ms | ratio |\n|---|---|---|");
    for count in [500, 1000, 2000, 4000, 8000, 16000, 32000] {
        let mask = documents(1 << 20, || (1 << 20) / count);
        row(
            format!("{count} documents"),
            plan_ms(&mask, 64, &Config::default(), 5),
            count == 500,
        );
    }
}

fn masks() {
    println!("\n## masks: 8,192 tokens a rank (at most 2M), default config");
    println!(
        "| mask | ranks | plan ms | balance | bound | received a rank | over by area | over all-gather | sent max / mean | automatic degrees |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let lengths = cases()
        .into_iter()
        .find(|c| c.name == "c")
        .unwrap()
        .doc_lengths
        .unwrap();
    let config = Config::default();
    for world in [4usize, 16, 64, 256, 1024] {
        let total = (8192 * world as i64).min(1 << 21);
        let mut random = Random(9);
        let published = documents(total, || {
            lengths[random.below(lengths.len() as i64) as usize].min(total / 4)
        });
        let list = [
            ("causal", banded(total, Band::new(Band::NO_LO, 0))),
            ("block-causal 4,096", block_causal(total)),
            ("varlen, published lengths", published),
            ("window 1,024", banded(total, Band::new(-1023, 0))),
            ("prefix tree", prefix_tree(total)),
            ("share-question", share_question(total)),
            ("random sparse", sparse(total)),
        ];
        for (name, mask) in &list {
            let plan = plan_ms(mask, world, &config, 2);
            let automatic = Config {
                degree_forward: Config::AUTO_DEGREE,
                degree_backward: Config::AUTO_DEGREE,
                ..config
            };
            let s = placed(mask, world, &automatic);
            let by_area = Config {
                effort: Effort::Balance,
                ..config
            };
            let greedy = placed(mask, world, &by_area);
            println!(
                "| {name} | {world} | {plan:.3} | {:.4} | {:.4} | {} | {:.3} | {:.3} | {:.2} | {}, {} |",
                s.balance,
                s.balance_bound,
                s.ideal_volume / world as i64,
                s.ideal_volume as f64 / greedy.ideal_volume.max(1) as f64,
                s.ideal_volume as f64 / s.all_gather_volume as f64,
                most_over_mean(&s.sent),
                s.degree_forward,
                s.degree_backward,
            );
        }
    }
}

fn packed_documents() {
    println!("\n## packed: log-normal documents, 8,192 tokens a rank, chunk 1,024, 10 seeds: mean (worst)");
    println!(
        "| ranks | effort | received by area | over by area | balance | sent max / mean | place ms |\n|---|---|---|---|---|---|---|"
    );
    for world in [8usize, 16, 64] {
        for effort in [Effort::Fast, Effort::Thorough] {
            let [mut ratio, mut balance, mut sent, mut ms, mut plain] = [(0.0f64, 0.0f64); 5];
            for seed in 1..=10 {
                let mask = packed(seed, 8192 * world as i64);
                let with = |effort| Config {
                    chunk_size: 1024,
                    effort,
                    ..Config::default()
                };
                let greedy = placed(&mask, world, &with(Effort::Balance));
                let s = placed(&mask, world, &with(effort));
                let time = timed(2, || Placement::new(&mask, world, &with(effort)).unwrap()).0;
                let figures = [
                    (&mut ratio, s.ideal_volume as f64 / greedy.ideal_volume as f64),
                    (&mut balance, s.balance),
                    (&mut sent, most_over_mean(&s.sent)),
                    (&mut ms, time),
                    (&mut plain, greedy.ideal_volume as f64 / world as f64),
                ];
                for (sum, value) in figures {
                    *sum = (sum.0 + value / 10.0, sum.1.max(value));
                }
            }
            println!(
                "| {world} | {effort:?} | {:.0} | {:.3} ({:.3}) | {:.4} ({:.4}) | {:.2} ({:.2}) | {:.3} ({:.3}) |",
                plain.0, ratio.0, ratio.1, balance.0, balance.1, sent.0, sent.1, ms.0, ms.1
            );
        }
    }
}

fn exact() {
    println!(
        "\n## exact: 12 chunks on 3 ranks, 20 masks each: largest area and received tokens over the optimum's"
    );
    println!(
        "| mask | area, slack 0: mean / worst | received at the default slack: mean / worst |\n|---|---|---|"
    );
    let total = 12 * 512;
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    let worst = |list: &[f64]| list.iter().copied().fold(0.0, f64::max);
    for (name, median) in [("few long documents", 3000.0), ("many short documents", 400.0)] {
        let (mut areas, mut volumes) = (Vec::new(), Vec::new());
        for seed in 0..20 {
            let mut random = Random(seed);
            let mask = documents(total, || {
                ((median * random.normal().exp()) as i64).clamp(1, total / 2)
            });
            let with = |placement, balance_slack| Config {
                chunk_size: 512,
                placement,
                balance_slack,
                ..Config::default()
            };
            let best = placed(&mask, 3, &with(PlacementKind::Exact, 0));
            let tight = placed(&mask, 3, &with(PlacementKind::Balanced, 0));
            let ours = placed(&mask, 3, &with(PlacementKind::Balanced, 9));
            areas.push(tight.balance / best.balance);
            volumes.push(ours.ideal_volume as f64 / best.ideal_volume.max(1) as f64);
        }
        println!(
            "| {name} | {:.4} / {:.4} | {:.3} / {:.3} |",
            mean(&areas),
            worst(&areas),
            mean(&volumes),
            worst(&volumes)
        );
    }
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let sections: [(&str, fn()); 5] = [
        ("times", times),
        ("growth", growth),
        ("masks", masks),
        ("packed", packed_documents),
        ("exact", exact),
    ];
    for (name, section) in sections {
        if asked.is_empty() || asked.iter().any(|a| a == name) {
            section();
        }
    }
}
