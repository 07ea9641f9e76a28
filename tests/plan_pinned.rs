//! Plans are the same on every machine and in every build: hashes of whole plans against a file.
//!
//! `MAGI_UPDATE_GOLDEN=1 cargo test --test plan_pinned` rewrites the file; run the test with and without `--release`.

mod plan_common;

use magi_attn::plan::Plan;
use magi_attn::types::*;
use plan_common::*;
use std::fmt::Write;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/plan_hashes.txt");

fn masks() -> Vec<(&'static str, Mask)> {
    let mut random = Random::new(61);
    let lengths: Vec<i64> = (0..60)
        .map(|_| random.within(1, 90) * random.within(1, 90))
        .collect();
    let all = Range::new(0, 30_000);
    let window = Mask::from_slices(vec![Slice::new(all, all, Band::new(-700, 0))], 30_000, 30_000).unwrap();
    vec![
        ("causal", documents(&[50_000], MaskType::Causal)),
        ("packed", documents(&lengths, MaskType::Causal)),
        ("window", window),
        ("random", random_mask(&mut random, 200, 200, 40)),
        ("cross", random_mask(&mut random, 120, 300, 30)),
    ]
}

/// FNV-1a of everything a plan says.
fn digest(plan: &Plan) -> u64 {
    let text = format!("{plan:?}");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Ranks, degrees and MB/s of links: stages asked for, and chosen where links are quick and slow.
const ASKED: [(usize, i32, i32, i64); 4] = [
    (3, -1, 2, 422_000),
    (8, -1, 2, 422_000),
    (8, 3, -1, 422_000),
    (8, -1, -1, 2_000),
];

#[test]
fn plans_are_those_of_the_file() {
    let kinds = [
        (PlacementKind::Balanced, Effort::Fast),
        (PlacementKind::Balanced, Effort::Thorough),
        (PlacementKind::Balanced, Effort::Balance),
        (PlacementKind::Zigzag, Effort::Fast),
        (PlacementKind::ByDocument, Effort::Fast),
        (PlacementKind::TopHeap, Effort::Fast),
    ];
    let mut text = String::from(
        "# mask, placement, effort, ranks, degrees, MB/s: hash of the plan and digest of rank 1's.\n",
    );
    for (name, mask) in masks() {
        for (placement, effort) in kinds {
            for (world, forward, backward, link_mb_per_s) in ASKED {
                let settings = Config {
                    placement,
                    effort,
                    rates: Rates {
                        link_mb_per_s,
                        ..Rates::default()
                    },
                    ..config(forward, backward)
                };
                let plan = Plan::new(&mask, &shape(), world, 1, &settings).unwrap();
                let digest = digest(&plan);
                writeln!(
                    text,
                    "{name} {placement:?} {effort:?} {world} {forward} {backward} {link_mb_per_s}: {:016x} {digest:016x}",
                    plan.hash
                )
                .unwrap();
            }
        }
    }
    if std::env::var_os("MAGI_UPDATE_GOLDEN").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let pinned = std::fs::read_to_string(FILE).unwrap();
    for (got, want) in text.lines().zip(pinned.lines()) {
        assert_eq!(got, want);
    }
    assert_eq!(text.lines().count(), pinned.lines().count());
}
