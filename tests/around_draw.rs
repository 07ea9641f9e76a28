//! Pictures and words about masks and plans.

use std::sync::Arc;
use std::time::Instant;

use magi_attn::plan::{Explanation, HostVolume, Origin, Placement, Plan, Stats, draw_key, explain};
use magi_attn::types::{AttnShape, Config, DType, Effort, Mask, Mesh, PlacementKind};

const SHAPE: AttnShape = AttnShape {
    heads_q: 1,
    heads_kv: 1,
    head_dim: 8,
    head_dim_v: 8,
    dtype: DType::F32,
};

/// Largest picture, in bytes.
const MOST: usize = 400_000;

fn key_picture(mask: &Mask, world: usize, config: &Config) -> String {
    let placement = Placement::new(mask, world, config).unwrap();
    draw_key(
        &placement,
        mask,
        &Stats::new(mask, &placement, &SHAPE, config).unwrap(),
    )
}

/// `documents` causal documents of uneven length.
fn documents(total: i64, documents: i64) -> Mask {
    let cu: Vec<i64> = (0..=documents)
        .map(|i| total * i * i / (documents * documents))
        .collect();
    Mask::from_cu_seqlens(&cu, &cu, true, (-1, -1), 0).unwrap()
}

/// Opening tags are closed, numbers are numbers.
fn well_formed(svg: &str) {
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(!svg.contains("NaN") && !svg.contains("inf,") && !svg.contains("inf "));
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let name: String = tag
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '/')
            .collect();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
        } else if !tag.split('>').next().unwrap().ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// The value of an attribute of an element.
fn attribute(element: &str, name: &str) -> f64 {
    let rest = element.split(&format!(" {name}=\"")).nth(1).unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

/// The words of an element that holds nothing but words.
fn words_of(element: &str) -> &str {
    element.split(['>', '<']).nth(1).unwrap()
}

/// Every text lies inside the picture, and no two that stand side by side on one line overlap, at 7.4 pixels a letter.
fn readable(svg: &str) {
    let (width, height) = (attribute(svg, "width"), attribute(svg, "height"));
    let mut found: Vec<(f64, f64, f64, &str)> = Vec::new();
    for element in svg.split("<text").skip(1) {
        let (x, y, words) = (
            attribute(element, "x"),
            attribute(element, "y"),
            words_of(element),
        );
        let long = 7.4 * words.chars().count() as f64;
        let left = match element.split("text-anchor=\"").nth(1).map(|a| &a[..3]) {
            Some("end") => x - long,
            Some("mid") => x - long / 2.0,
            _ => x,
        };
        assert!(
            y <= height - 4.0 && left >= 0.0 && left + long <= width,
            "{words}"
        );
        found.push((y, left, left + long, words));
    }
    for (i, a) in found.iter().enumerate() {
        for b in &found[i + 1..] {
            let apart = (a.0 - b.0).abs() >= 11.0 || a.2 <= b.1 || b.2 <= a.1;
            assert!(apart, "{:?} and {:?} overlap", a, b);
        }
    }
}

/// Points of all paths lie inside the picture.
fn inside(svg: &str) {
    let (width, height) = (attribute(svg, "width"), attribute(svg, "height"));
    let mut seen = 0;
    for d in svg
        .split(" d=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
    {
        for point in d.split(['M', 'L']).skip(1) {
            let mut numbers = point.split([' ', 'h', 'z']).map(|n| n.parse::<f64>());
            let (x, y) = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
            assert!(
                (0.0..=width).contains(&x) && (0.0..=height).contains(&y),
                "{point} of {d}"
            );
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn masks_are_drawn_in_the_colours_of_their_types() {
    let mask = Mask::from_cu_seqlens(&[0, 5, 12], &[0, 5, 12], true, (-1, -1), 0).unwrap();
    let svg = mask.draw();
    well_formed(&svg);
    inside(&svg);
    assert!(svg.contains(">causal<") && !svg.contains(">full<") && svg.contains("2 slices"));
    // Two documents, one path; steps, so that each document has more than three corners.
    let path = svg.split(" d=\"").nth(1).unwrap();
    assert_eq!(path.split('"').next().unwrap().matches('M').count(), 2);
    assert_eq!(
        path.split('"').next().unwrap().matches('L').count(),
        2 * 2 * (5 + 7) - 2
    );
}

/// One remote stage both ways, so that there are transfers to draw beside kernels.
fn one_stage() -> Config {
    Config {
        degree_forward: 1,
        degree_backward: 1,
        ..Config::default()
    }
}

#[test]
fn odd_masks_are_drawn_too() {
    for mask in [
        Mask::new(&[], 0, 0).unwrap(),
        Mask::new(&[], 7, 0).unwrap(),
        Mask::new(&[], 3, 1 << 31).unwrap(),
        Mask::from_sliding_window(1, 1, (-1, -1), 0).unwrap(),
        Mask::from_sliding_window(1 << 31, 1 << 31, (100, 0), 4).unwrap(),
        Mask::from_sliding_window(10, 100_000, (-1, 0), 0).unwrap(),
    ] {
        well_formed(&mask.draw());
        for world in [1, 3] {
            let svg = key_picture(&mask, world, &one_stage());
            well_formed(&svg);
            readable(&svg);
        }
    }
}

#[test]
fn large_masks_are_drawn_fast_and_small() {
    let packed = documents(1 << 20, 1000);
    let many = documents(10_000_000, 20_000);
    let blocks = Mask::from_block_causal_cu_seqlens(&[0, 1 << 20], 128).unwrap();
    for (name, mask, worlds) in [
        ("packed", &packed, [8, 64]),
        ("many", &many, [256, 1024]),
        ("blocks", &blocks, [2, 64]),
    ] {
        let start = Instant::now();
        let svg = mask.draw();
        println!("{name}: mask {} bytes in {:?}", svg.len(), start.elapsed());
        well_formed(&svg);
        inside(&svg);
        assert!(svg.len() < MOST, "{name}: {}", svg.len());
        for world in worlds {
            let config = one_stage();
            let placement = Placement::new(mask, world, &config).unwrap();
            let stats = Stats::new(mask, &placement, &SHAPE, &config).unwrap();
            let start = Instant::now();
            let svg = draw_key(&placement, mask, &stats);
            println!(
                "{name}: {world} ranks {} bytes in {:?}",
                svg.len(),
                start.elapsed()
            );
            well_formed(&svg);
            inside(&svg);
            assert!(svg.len() < MOST, "{name}: {}", svg.len());
        }
    }
}

#[test]
fn words_name_what_waits_for_what() {
    let mask = documents(4096, 6);
    let config = Config {
        chunk_size: 128,
        degree_forward: 2,
        ..Config::default()
    };
    let placement = Arc::new(Placement::new(&mask, 4, &config).unwrap());
    let stats = Stats::new(&mask, &placement, &SHAPE, &config).unwrap();
    for rank in 0..4 {
        let plan = Plan::with_placement(&mask, &SHAPE, Arc::clone(&placement), rank, &config).unwrap();
        let of = |origin| explanation(&plan, &mask, &config, origin, &stats);
        let text = explain(&of(Origin::Planner)).unwrap();
        println!("{text}");
        for words in [
            format!("rank {rank} among 4"),
            format!("{:#018x}", plan.hash),
            "rule \"balanced\"".to_owned(),
            "stage 0: waits for nothing".to_owned(),
            format!("balance {:.4}", stats.balance),
        ] {
            assert!(text.contains(&words), "{words}: {text}");
        }
        // Every stage's peers and tokens, from its transfer.
        for (i, stage) in plan.forward.stages.iter().enumerate().skip(1) {
            let line = text
                .lines()
                .find(|l| l.starts_with(&format!("  stage {i}:")))
                .unwrap();
            let mut from = [0; 4];
            stage
                .transfer
                .recvs
                .iter()
                .for_each(|p| from[p.peer as usize] += p.rows.len());
            for (peer, n) in from.iter().enumerate() {
                let plain = line.replace(',', "");
                assert_eq!(plain.contains(&format!("{n} from rank {peer}")), *n > 0, "{line}");
            }
        }
    }
    let plan = Plan::with_placement(&mask, &SHAPE, placement, 0, &config).unwrap();
    let of = |origin| explain(&explanation(&plan, &mask, &config, origin, &stats)).unwrap();
    assert!(of(Origin::Caller).contains("given by the caller"));
    assert!(of(Origin::OtherKey).contains("the key this one was made from"));
    assert!(of(Origin::Joint).contains("this mask and others together"));
}

fn explanation<'a>(
    plan: &'a Plan,
    mask: &'a Mask,
    config: &'a Config,
    origin: Origin,
    stats: &'a Stats,
) -> Explanation<'a> {
    Explanation {
        plan,
        mask,
        shape: &SHAPE,
        config,
        origin,
        stats,
        hosts: None,
    }
}

/// "12.3 us" of nanoseconds.
fn us(ns: i64) -> String {
    format!("{}.{} us", ns / 1000, ns % 1000 / 100)
}

#[test]
fn words_say_when_each_stage_is_ready() {
    let mask = documents(32_768, 6);
    let mut config = Config {
        degree_forward: 2,
        degree_backward: 3,
        ..Config::default()
    };
    config.rates.link_mb_per_s = 3000;
    let placement = Arc::new(Placement::new(&mask, 4, &config).unwrap());
    let stats = Stats::new(&mask, &placement, &SHAPE, &config).unwrap();
    let mut waited = 0;
    for rank in 0..4 {
        let plan = Plan::with_placement(&mask, &SHAPE, Arc::clone(&placement), rank, &config).unwrap();
        let text = explain(&explanation(&plan, &mask, &config, Origin::Planner, &stats)).unwrap();
        for (name, timeline) in [("forward", &stats.forward), ("backward", &stats.backward)] {
            let part = text.split(&format!("{name} pass of this rank")).nth(1).unwrap();
            let total = format!(
                "predicted: {}, in {} of them",
                us(timeline.end(rank)),
                us(timeline.waits(rank))
            );
            assert!(
                part.replace(',', "").contains(&total.replace(',', "")),
                "{total}: {part}"
            );
            let lines: Vec<&str> = part.lines().filter(|l| l.starts_with("    predicted")).collect();
            for (i, stage) in timeline.stages.iter().enumerate() {
                let (times, line) = (stage[rank].times, lines[i].replace(',', ""));
                let computed = format!(
                    "computed from {} to {}",
                    us(times.compute.start),
                    us(times.compute.end)
                );
                assert!(line.contains(&computed), "{computed}: {line}");
                let (back, wait) = (
                    format!("gradients back at {}", us(times.reduce.end)),
                    timeline.wait(rank, i),
                );
                assert_eq!(line.contains(&back), !times.reduce.is_empty(), "{line}");
                assert_eq!(
                    line.contains(&format!("after a wait of {}", us(wait))),
                    wait > 0,
                    "{line}"
                );
                waited += usize::from(wait > 0);
            }
        }
    }
    assert!(waited > 4, "{waited} waits");
}

#[test]
fn words_compare_with_other_placements() {
    let mask = documents(65_536, 9);
    let config = one_stage();
    let world = 8;
    let plan = Plan::new(&mask, &SHAPE, world, 0, &config).unwrap();
    let stats = Stats::new(&mask, &plan.placement, &SHAPE, &config).unwrap();
    let text = explain(&explanation(&plan, &mask, &config, Origin::Planner, &stats)).unwrap();
    println!("{text}");
    let kinds = [
        ("by area alone", PlacementKind::Balanced, Effort::Balance),
        ("contiguous blocks", PlacementKind::Sequential, Effort::Fast),
        ("zigzag", PlacementKind::Zigzag, Effort::Fast),
    ];
    for (name, placement, effort) in kinds {
        let config = Config {
            placement,
            effort,
            ..config
        };
        let other = Placement::new(&mask, world, &config).unwrap();
        let other = Stats::new(&mask, &other, &SHAPE, &config).unwrap();
        let line = text.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
        let most = |times: &[i64]| us(*times.iter().max().unwrap());
        let line = line.replace(',', "");
        for figure in [
            format!("{:.4}", other.balance),
            other.ideal_volume.to_string(),
            most(&other.forward_ns),
            most(&other.backward_ns),
        ] {
            assert!(line.contains(&figure), "{figure}: {line}");
        }
        if effort == Effort::Balance {
            let saved = 100.0 * (1.0 - stats.ideal_volume as f64 / other.ideal_volume as f64);
            assert!(
                saved > 5.0 && text.contains(&format!("{saved:.1}% fewer keys travel than by area alone"))
            );
        }
    }
    // A placement is not compared with itself.
    let config = Config {
        effort: Effort::Balance,
        ..config
    };
    let plan = Plan::new(&mask, &SHAPE, world, 0, &config).unwrap();
    let stats = Stats::new(&mask, &plan.placement, &SHAPE, &config).unwrap();
    let text = explain(&explanation(&plan, &mask, &config, Origin::Planner, &stats)).unwrap();
    assert!(text.contains("by area alone the same"), "{text}");
}

#[test]
fn words_say_what_crosses_hosts() {
    let mask = documents(4096, 5);
    let mesh = Mesh { inter: 2, intra: 2 };
    let flat = Config {
        chunk_size: 128,
        degree_forward: 1,
        ..Config::default()
    };
    let levels = Config {
        hierarchical_comm: true,
        mesh: Some(mesh),
        ..flat
    };
    let placement = Arc::new(Placement::new(&mask, 4, &flat).unwrap());
    for config in [flat, levels] {
        let stats = Stats::new(&mask, &placement, &SHAPE, &config).unwrap();
        let volume = HostVolume::new(&mask, &placement, &SHAPE, &config, mesh).unwrap();
        let plan = Plan::with_placement(&mask, &SHAPE, Arc::clone(&placement), 1, &config).unwrap();
        let of = Explanation {
            hosts: Some(&volume),
            ..explanation(&plan, &mask, &config, Origin::Planner, &stats)
        };
        let text = explain(&of).unwrap().replace(',', "");
        println!("{text}");
        assert!(text.contains(&format!(
            "hosts: 2 hosts of 2 ranks; {} keys cross hosts",
            volume.inter()
        )));
        assert!(text.contains(&format!("{} ", volume.intra())));
        assert_eq!(
            text.contains(&format!("{} would cross", volume.one_level)),
            config.hierarchical_comm
        );
        let stage = &plan.forward.stages[1];
        match &stage.two_level {
            Some(levels) => {
                assert!(text.contains(&format!("takes in {} of other hosts", levels.gateway_rows)))
            }
            None => assert!(!text.contains("over two levels")),
        }
    }
}

#[test]
fn travelling_queries_are_told_and_drawn() {
    let mask = Mask::from_sliding_window(96, 9000, (-1, -1), 0).unwrap();
    let config = Config {
        qo_comm: true,
        degree_forward: 2,
        ..Config::default()
    };
    let placement = Arc::new(Placement::new(&mask, 5, &config).unwrap());
    let stats = Stats::new(&mask, &placement, &SHAPE, &config).unwrap();
    let volume = &stats.volume[0];
    assert!(volume.queries > 0 && volume.keys < stats.ideal_volume);
    let svg = draw_key(&placement, &mask, &stats);
    well_formed(&svg);
    inside(&svg);
    readable(&svg);
    // No key travels here: the matrix and the bars show queries.
    assert_eq!(volume.keys, 0);
    assert!(svg.contains(">keys and queries that travel</text>"));
    assert!(svg.contains(">keys and queries received in a forward pass, by rank</text>"));
    let most = (0..5).map(|r| stats.queries_received[r]).max().unwrap();
    assert!(most > 0 && svg.contains(">at most:</text>") && !svg.contains(">1 tokens</text>"));
    // Results go home in the forward pass too.
    assert_eq!(
        svg.matches(">reduce</text>").count(),
        svg.matches(">fetch</text>").count()
    );
    let plan = Plan::with_placement(&mask, &SHAPE, placement, 0, &config).unwrap();
    let words = explain(&explanation(&plan, &mask, &config, Origin::Caller, &stats)).unwrap();
    let this = words
        .lines()
        .find(|l| l.trim_start().starts_with("this one"))
        .unwrap();
    assert_eq!(
        this.split_whitespace().nth(3).unwrap().replace(',', ""),
        volume.keys.to_string(),
        "{this}"
    );
    assert!(
        !words.contains("NaN") && !words.contains("keys travel than by area alone"),
        "{words}"
    );
}

#[test]
fn the_times_of_two_ranks_are_drawn_to_scale() {
    let mask = documents(65_536, 7);
    let mut config = Config {
        degree_forward: 3,
        degree_backward: 2,
        ..Config::default()
    };
    config.rates.link_mb_per_s = 2000;
    let placement = Placement::new(&mask, 8, &config).unwrap();
    let stats = Stats::new(&mask, &placement, &SHAPE, &config).unwrap();
    let svg = draw_key(&placement, &mask, &stats);
    well_formed(&svg);
    inside(&svg);
    readable(&svg);
    let parts: Vec<&str> = svg.split(" pass as predicted").collect();
    assert_eq!(parts.len(), 3, "two passes");
    for (part, timeline, lanes) in [(parts[1], &stats.forward, 2), (parts[2], &stats.backward, 3)] {
        let slowest = timeline.slowest();
        assert!(part.contains(&format!(">rank {slowest}, the slowest")));
        assert!(part.contains(&format!(">rank {}, nearest to the mean", timeline.typical())));
        let grounds: Vec<&str> = part
            .split("<rect")
            .filter(|r| r.contains("class=\"plot\"") && r.contains("height=\"17.0\""))
            .collect();
        assert_eq!(grounds.len(), 2 * lanes);
        let (left, width) = (attribute(grounds[0], "x"), attribute(grounds[0], "width"));
        // The bars of the slowest rank, lane by lane and stage by stage, from the times.
        let mut wanted = Vec::new();
        for lane in 0..lanes {
            for stage in &timeline.stages {
                let times = stage[slowest].times;
                let at = [times.compute, times.fetch, times.reduce][lane];
                if !at.is_empty() {
                    let scale = width / timeline.end(slowest) as f64;
                    wanted.push((left + at.start as f64 * scale, at.len() as f64 * scale));
                }
            }
        }
        let bars = part
            .split("<rect")
            .filter(|r| r.contains("height=\"17.0\"") && r.contains("fill=\"#"));
        let drawn: Vec<(f64, f64)> = bars.map(|r| (attribute(r, "x"), attribute(r, "width"))).collect();
        assert!(wanted.len() >= 2 * lanes - 1);
        for (have, want) in drawn.iter().zip(&wanted) {
            assert!(
                (have.0 - want.0).abs() < 0.11 && (have.1 - want.1).abs() < 0.51,
                "{have:?} {want:?}"
            );
        }
        assert!(
            timeline.waits(slowest) > 0 && part.contains(">waits "),
            "no wait is drawn"
        );
    }
}
