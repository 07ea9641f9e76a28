//! Pictures and words about masks and plans.

use std::sync::Arc;
use std::time::Instant;

use magi_attn::plan::{Origin, Placement, Plan, Stats, draw_key, explain};
use magi_attn::types::{AttnShape, Config, DType, Mask};

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

/// Points of all paths lie inside the picture.
fn inside(svg: &str, width: f64, height: f64) {
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
    inside(&svg, 590.0, 620.0);
    assert!(svg.contains(">causal<") && !svg.contains(">full<") && svg.contains("2 slices"));
    // Two documents, one path; steps, so that each document has more than three corners.
    let path = svg.split(" d=\"").nth(1).unwrap();
    assert_eq!(path.split('"').next().unwrap().matches('M').count(), 2);
    assert_eq!(
        path.split('"').next().unwrap().matches('L').count(),
        2 * 2 * (5 + 7) - 2
    );
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
            let svg = key_picture(&mask, world, &Config::default());
            well_formed(&svg);
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
        inside(&svg, 590.0, 620.0);
        assert!(svg.len() < MOST, "{name}: {}", svg.len());
        for world in worlds {
            let config = Config::default();
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
            inside(&svg, 1000.0, 790.0);
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
        let text = explain(&plan, &mask, &config, Origin::Planner, &stats);
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
    let of = |origin| explain(&plan, &mask, &config, origin, &stats);
    assert!(of(Origin::Caller).contains("given by the caller"));
    assert!(of(Origin::OtherKey).contains("the key this one was made from"));
}
