//! What plans cost and how good placements are: `cargo bench --bench plan [-- section...]`.
//!
//! Sections: `times`, `growth`, `masks`, `packed`, `exact`; all without arguments, in about two minutes. Times are CPU
//! time of the one thread that plans, the least of several runs, so that other processes hardly count.

#[path = "plan_support/mod.rs"]
mod plan_support;

use magi_attn::plan::{Placement, Plan, Stats};
use magi_attn::types::*;
use plan_support::bound::{greedy, least_received};
use plan_support::masks::*;

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

/// The most memory that this process had resident so far, in MiB.
fn peak_mib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0i64) / 1024
}

fn times() {
    println!("\n## times: place and plan for one rank (degrees 1 and automatic), statistics of all ranks");
    let by_default = Config {
        degree_forward: 1,
        degree_backward: 1,
        ..Config::default()
    };
    let automatic = Config {
        degree_forward: Config::AUTO_DEGREE,
        degree_backward: Config::AUTO_DEGREE,
        ..by_default
    };
    println!(
        "| case | ranks | chunk | by area ms | plan ms | automatic ms | statistics ms | balance | bound | received mean / max | over by area | sent max / mean | peak MiB so far |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let tokens = 10_000_000;
    let mut masks: Vec<(String, usize, Mask, i64)> = Vec::new();
    for case in cases() {
        masks.push((case.name.clone(), case.cp, case.mask(), 0));
        masks.push((format!("{}, theirs", case.name), case.cp, case.mask(), case.chunk));
    }
    masks.push(("10M, 20,000 documents".into(), 1024, documents(tokens, || 500), 0));
    let mut random = Random(3);
    let varied = documents(tokens, || {
        ((280.0 * (1.2 * random.normal()).exp()) as i64).clamp(8, 100_000)
    });
    let name = format!("10M, {} log-normal documents", varied.slices().len());
    masks.push((name, 1024, varied, 0));
    for (name, world, mask, chunk_size) in &masks {
        let sized = |config: Config| Config {
            chunk_size: *chunk_size,
            ..config
        };
        let by_area = sized(Config {
            effort: Effort::Balance,
            ..by_default
        });
        let ours = sized(by_default);
        let plain = plan_ms(mask, *world, &by_area, 3);
        let plan = plan_ms(mask, *world, &ours, 5);
        let auto = plan_ms(mask, *world, &sized(automatic), 3);
        let placement = Placement::new(mask, *world, &ours).unwrap();
        let (all, s) = timed(2, || Stats::new(mask, &placement, &shape(), &ours).unwrap());
        let greedy = placed(mask, *world, &by_area);
        println!(
            "| {name} | {world} | {} | {plain:.3} | {plan:.3} | {auto:.3} | {all:.2} | {:.4} | {:.4} | {} / {} | {:.3} | {:.2} | {} |",
            placement.side(Side::Q).chunk_size(),
            s.balance,
            s.balance_bound,
            s.ideal_volume / *world as i64,
            s.received.iter().max().unwrap(),
            s.ideal_volume as f64 / greedy.ideal_volume.max(1) as f64,
            most_over_mean(&s.sent),
            peak_mib(),
        );
    }
    println!("{PEER}");
}

/// MagiAttention on the same masks, its chunk sizes as in the rows `theirs`.
const PEER: &str = "
MagiAttention, key creation without a cache, 64 cores, one process a rank:
| case | Python ms | repaired C++ ms | balance | received mean / max, thousands |
|---|---|---|---|---|
| a | 17.8 | - | 1.000 | 28.7 / 28.7 |
| b1 | 16.1 | - | 1.032 | 13.9 / 17.4 |
| b2 | 33.5 | - | 1.001 | 39.2 / 47.8 |
| c | 463 | 241 | 1.869 | 11.9 / 22.9 |
| d | 695 | 486 | 1.000 | 968 / 1032 |";

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

/// Received tokens of all ranks, on the chunks of the default placement.
struct Reference {
    /// Longest chunk first.
    greedy: i64,
    /// The fewest found by far longer searches, and by contiguous blocks where these are as even.
    best: i64,
    /// No placement as even has fewer.
    least: i64,
}

impl Reference {
    fn new(mask: &Mask, world: usize, config: &Config, times: u64) -> Reference {
        let ours = Placement::new(mask, world, config).unwrap();
        let of = |p: &Placement| Stats::new(mask, p, &shape(), config).unwrap();
        let chunk_size = ours.side(Side::Q).chunk_size();
        let with = |effort, placement| Config {
            chunk_size,
            effort,
            placement,
            ..*config
        };
        let thorough = with(Effort::Thorough, PlacementKind::Balanced);
        let long = of(&Placement::new_longer(mask, world, &thorough, times).unwrap());
        let blocks =
            of(&Placement::new(mask, world, &with(Effort::Fast, PlacementKind::Sequential)).unwrap());
        let now = of(&ours);
        let limit = now.balance.max(1.0 + config.balance_slack as f64 / 1000.0);
        let as_even = [&long, &blocks, &now].into_iter().filter(|s| s.balance <= limit);
        let most = (limit * mask.area() as f64 / world as f64) as i64 + 1;
        Reference {
            greedy: of(&greedy(mask, &ours)).ideal_volume,
            best: as_even.map(|s| s.ideal_volume).min().unwrap(),
            least: least_received(mask, &ours, most),
        }
    }
}

fn masks() {
    println!(
        "\n## masks: 8,192 tokens a rank (at most 2M), default config; best known of a search of 64, 16, 4, 1 times `thorough`"
    );
    println!(
        "| mask | ranks | plan ms | balance | bound | received a rank | over by area | over longest first | over best known | over its bound | over all-gather | sent max / mean | automatic degrees |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
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
            let by_area = placed(mask, world, &by_area);
            let r = Reference::new(
                mask,
                world,
                &config,
                [64, 16, 4, 1][world.ilog(8).min(3) as usize],
            );
            let over = |volume: i64| s.ideal_volume as f64 / volume.max(1) as f64;
            println!(
                "| {name} | {world} | {plan:.3} | {:.4} | {:.4} | {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.2} | {}, {} |",
                s.balance,
                s.balance_bound,
                s.ideal_volume / world as i64,
                over(by_area.ideal_volume),
                over(r.greedy),
                over(r.best.min(s.ideal_volume)),
                over(r.least),
                over(s.all_gather_volume),
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
        "Over what longest first moves; best known of 16 times `thorough`; the bound for the same balance."
    );
    println!(
        "| ranks | effort | received longest first | over it | over best known | best known over it | bound over it | balance | sent max / mean | place ms |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    let mut by_batch = String::new();
    for world in [8usize, 16, 64] {
        let with = |effort| Config {
            chunk_size: 1024,
            effort,
            ..Config::default()
        };
        let masks: Vec<Mask> = (1..=10).map(|seed| packed(seed, 8192 * world as i64)).collect();
        let known: Vec<Reference> = masks
            .iter()
            .map(|m| Reference::new(m, world, &with(Effort::Fast), 16))
            .collect();
        for effort in [Effort::Fast, Effort::Thorough] {
            let [
                mut ratio,
                mut best,
                mut known_ratio,
                mut least,
                mut balance,
                mut sent,
                mut ms,
                mut plain,
            ] = [(0.0f64, 0.0f64); 8];
            for (i, (mask, r)) in masks.iter().zip(&known).enumerate() {
                let s = placed(mask, world, &with(effort));
                let time = timed(2, || Placement::new(mask, world, &with(effort)).unwrap()).0;
                let greedy = r.greedy as f64;
                let best_known = r.best.min(s.ideal_volume) as f64;
                let figures = [
                    (&mut ratio, s.ideal_volume as f64 / greedy),
                    (&mut best, s.ideal_volume as f64 / best_known),
                    (&mut known_ratio, best_known / greedy),
                    (&mut least, r.least as f64 / greedy),
                    (&mut balance, s.balance),
                    (&mut sent, most_over_mean(&s.sent)),
                    (&mut ms, time),
                    (&mut plain, greedy / world as f64),
                ];
                for (sum, value) in figures {
                    *sum = (sum.0 + value / 10.0, sum.1.max(value));
                }
                by_batch += &format!(
                    "| {world} | {effort:?} | {} | {:.3} | {:.3} | {:.3} |\n",
                    i + 1,
                    s.ideal_volume as f64 / greedy,
                    best_known / greedy,
                    r.least as f64 / greedy
                );
            }
            let two = |f: (f64, f64)| format!("{:.3} ({:.3})", f.0, f.1);
            println!(
                "| {world} | {effort:?} | {:.0} | {} | {} | {} | {} | {:.4} ({:.4}) | {:.2} ({:.2}) | {} |",
                plain.0,
                two(ratio),
                two(best),
                two(known_ratio),
                two(least),
                balance.0,
                balance.1,
                sent.0,
                sent.1,
                two(ms)
            );
        }
    }
    println!(
        "\n| ranks | effort | seed | over longest first | best known over it | bound over it |\n|---|---|---|---|---|---|"
    );
    print!("{by_batch}");
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
