//! Placements by area and by keys: never worse than by area alone, much better on packed documents; the exact
//! placement against trying everything; layouts of the other kinds.

mod plan_common;

use magi_attn::plan::{Placement, SidePlacement, Stats};
use magi_attn::types::*;
use plan_common::*;
use std::sync::Arc;

fn with(effort: Effort, chunk_size: i64) -> Config {
    Config {
        effort,
        chunk_size,
        ..Config::default()
    }
}

fn stats(mask: &Mask, world: usize, config: &Config) -> Stats {
    let placement = Placement::new(mask, world, config).unwrap();
    Stats::new(mask, &placement, &shape(), config).unwrap()
}

/// Lengths from 256 to a quarter of the total, short ones far more often: e to a sum of uniform numbers.
fn packed(random: &mut Random, total: i64) -> Mask {
    let (mut left, mut lengths) = (total, Vec::new());
    while left > 0 {
        let sum: i64 = (0..12).map(|_| random.within(-100, 100)).sum();
        let len = (4096.0 * (1.2 * sum as f64 / 200.0).exp()) as i64;
        lengths.push(len.min(total / 4).min(left));
        left -= lengths[lengths.len() - 1];
    }
    documents(&lengths, MaskType::Causal)
}

#[test]
fn never_more_tokens_than_by_area_alone() {
    let mut random = Random::new(31);
    for round in 0..120 {
        let total = random.within(2, 60);
        let mask = random_mask(&mut random, total, total + [0, 7][round % 2], 12);
        let world = random.within(2, 8) as usize;
        let chunk = random.within(1, 3);
        let plain = stats(&mask, world, &with(Effort::Balance, chunk));
        let most = |s: &Stats| *s.area.iter().max().unwrap();
        for effort in [Effort::Fast, Effort::Thorough] {
            for balance_slack in [0, 9, 300] {
                let settings = Config {
                    balance_slack,
                    ..with(effort, chunk)
                };
                let near = stats(&mask, world, &settings);
                assert!(near.ideal_volume <= plain.ideal_volume);
                let slack = mask.area() * (1000 + balance_slack) / (1000 * world as i64);
                assert!(most(&near) <= most(&plain).max(slack));
            }
        }
    }
}

/// Longest chunk first, each to the least loaded rank with room, blind to keys; on the chunks of `like`.
fn longest_first(mask: &Mask, like: &Placement) -> Placement {
    let side = like.side(Side::Q);
    let world = side.world();
    let bounds = side.bounds();
    let area = |c: usize| -> i64 {
        let rows = Range::new(bounds[c], bounds[c + 1]);
        mask.slices().iter().map(|s| s.cut(&rows, &s.k).area()).sum()
    };
    let areas: Vec<i64> = (0..bounds.len() - 1).map(area).collect();
    let mut order: Vec<usize> = (0..areas.len()).collect();
    order.sort_by_key(|&c| (std::cmp::Reverse(areas[c]), c));
    let (even, mut extras) = (areas.len() / world, areas.len() % world);
    let mut ranks = vec![(0, 0); world];
    let mut owners = vec![0; areas.len()];
    for c in order {
        let room = |r: &usize| ranks[*r].1 < even + usize::from(extras > 0);
        let rank = (0..world).filter(room).min_by_key(|&r| (ranks[r].0, r)).unwrap();
        extras -= usize::from(ranks[rank].1 == even);
        ranks[rank] = (ranks[rank].0 + areas[c], ranks[rank].1 + 1);
        owners[c] = rank as u32;
    }
    let q = SidePlacement::from_owners(side.total(), side.chunk_size(), &owners, world).unwrap();
    if mask.total_q() == mask.total_k() {
        return Placement::shared(Arc::new(q));
    }
    let keys = SidePlacement::shares(mask.total_k(), world).unwrap();
    Placement::from_sides(Arc::new(q), Arc::new(keys)).unwrap()
}

/// On any mask no more tokens move than greedily, and no rank has more area than there, or than the slack.
#[test]
fn never_more_tokens_than_longest_first() {
    let mut random = Random::new(37);
    let mut fewer = 0;
    for round in 0..600 {
        let world = random.within(2, 8) as usize;
        let (mask, chunk_size) = if round % 3 == 0 {
            let total = 512 * world as i64;
            (packed(&mut random, total), 64)
        } else {
            let total = random.within(2, 60);
            let total_k = total + [0, 7][round % 2];
            (random_mask(&mut random, total, total_k, 12), random.within(1, 3))
        };
        let settings = Config {
            balance_slack: [1, 9, 20][round % 3],
            ..with(Effort::Fast, chunk_size)
        };
        let placement = Placement::new(&mask, world, &settings).unwrap();
        let of = |p: &Placement| Stats::new(&mask, p, &shape(), &settings).unwrap();
        let (near, greedy) = (of(&placement), of(&longest_first(&mask, &placement)));
        assert!(near.ideal_volume <= greedy.ideal_volume);
        let most = |s: &Stats| *s.area.iter().max().unwrap();
        let slack = mask.area() * (1000 + settings.balance_slack) / (1000 * world as i64);
        assert!(most(&near) <= most(&greedy).max(slack));
        assert!(near.balance >= near.balance_bound);
        fewer += i32::from(near.ideal_volume < greedy.ideal_volume);
    }
    assert!(fewer > 300, "{fewer} of 600");
}

/// A longer search may only win; contiguous blocks are found where they are even.
#[test]
fn blocks_are_found_and_longer_searches_win() {
    let total = 16 * 4096;
    let all = Range::new(0, total);
    let window = Mask::from_slices(vec![Slice::new(all, all, Band::new(-255, 0))], total, total).unwrap();
    let equal = documents(&[4096; 16], MaskType::Causal);
    let s = stats(&window, 16, &Config::default());
    assert!(
        s.balance < 1.01 && s.ideal_volume <= 2 * 15 * 255,
        "{}",
        s.ideal_volume
    );
    let s = stats(&equal, 16, &Config::default());
    assert_eq!((s.ideal_volume, s.balance), (0, 1.0));

    let mask = packed(&mut Random::new(3), 8192 * 16);
    let settings = with(Effort::Fast, 1024);
    let volume = |times| {
        let placement = Placement::new_longer(&mask, 16, &settings, times).unwrap();
        Stats::new(&mask, &placement, &shape(), &settings)
            .unwrap()
            .ideal_volume
    };
    let [once, long] = [1, 60].map(volume);
    assert_eq!(once, stats(&mask, 16, &settings).ideal_volume);
    assert!(long < once, "{long} and {once}");
}

/// Where the caller leaves the size of chunks to the planner, areas come within a hundredth.
#[test]
fn chunks_are_fine_enough_for_even_areas() {
    let mut random = Random::new(43);
    for round in 0..12 {
        let world = [4usize, 7, 16][round % 3];
        let total = 8192 * world as i64;
        let all = Range::new(0, total);
        let mask = match round / 3 {
            0 => documents(&[total], MaskType::Causal),
            1 => Mask::from_slices(vec![Slice::new(all, all, Band::new(-1023, 0))], total, total).unwrap(),
            2 => packed(&mut random, total),
            _ => documents(&[total / 3, total - total / 3], MaskType::Full),
        };
        let s = stats(&mask, world, &Config::default());
        assert!(s.balance <= 1.01, "round {round}: {}", s.balance);
    }
}

#[test]
fn packed_documents_keep_together() {
    for (world, most_fast, most_thorough) in [(8, 0.5, 0.4), (16, 0.55, 0.45), (64, 0.6, 0.45)] {
        let mut sums = [0, 0, 0];
        for seed in 0..4 {
            let mask = packed(&mut Random::new(seed), 8192 * world as i64);
            for (sum, effort) in sums
                .iter_mut()
                .zip([Effort::Balance, Effort::Fast, Effort::Thorough])
            {
                let s = stats(&mask, world, &with(effort, 1024));
                assert!(s.balance < 1.01, "{}", s.balance);
                *sum += s.ideal_volume;
                let sent = *s.sent.iter().max().unwrap() as f64 * world as f64;
                let over = sent / s.ideal_volume as f64;
                assert!(
                    effort == Effort::Balance || over <= 2.0,
                    "{effort:?}, {world} ranks, seed {seed}: {over}"
                );
            }
        }
        let [plain, fast, thorough] = sums.map(|s| s as f64);
        assert!(fast <= most_fast * plain, "{}", fast / plain);
        assert!(thorough <= most_thorough * plain, "{}", thorough / plain);
    }
}

/// Least (largest area, received tokens) over all placements with counts that differ by at most one.
fn brute_force(mask: &Mask, chunks: usize, world: usize) -> (i64, i64) {
    let mut best = (i64::MAX, i64::MAX);
    for code in 0..world.pow(chunks as u32) {
        let owners: Vec<u32> = (0..chunks)
            .map(|c| (code / world.pow(c as u32) % world) as u32)
            .collect();
        let counts: Vec<usize> = (0..world)
            .map(|r| owners.iter().filter(|&&o| o as usize == r).count())
            .collect();
        if counts.iter().max().unwrap() - counts.iter().min().unwrap() > 1 {
            continue;
        }
        let mut area = vec![0; world];
        let mut needs = vec![vec![false; mask.total_k() as usize]; world];
        for s in mask.slices() {
            for q in s.q.start..s.q.end {
                for k in s.k.start..s.k.end {
                    if s.contains(q, k) {
                        let owner = owners[q as usize] as usize;
                        area[owner] += 1;
                        needs[owner][k as usize] |= owners[k as usize] as usize != owner;
                    }
                }
            }
        }
        let received = needs.iter().flatten().filter(|&&n| n).count() as i64;
        best = best.min((*area.iter().max().unwrap(), received));
    }
    best
}

#[test]
fn exact_is_the_optimum_and_the_planner_is_near_it() {
    let mut random = Random::new(41);
    let (mut near, mut exact_sum) = (0, 0);
    for round in 0..30 {
        let (world, chunks) = [(2, 7), (3, 6), (2, 8)][round % 3];
        let mask = random_mask(&mut random, chunks, chunks, 8);
        let settings = |placement| Config {
            placement,
            chunk_size: 1,
            balance_slack: 0,
            ..Config::default()
        };
        let exact = stats(&mask, world, &settings(PlacementKind::Exact));
        let most = |s: &Stats| *s.area.iter().max().unwrap();
        assert_eq!(
            (most(&exact), exact.ideal_volume),
            brute_force(&mask, chunks as usize, world)
        );
        let ours = stats(&mask, world, &settings(PlacementKind::Balanced));
        assert!((most(&exact)..=most(&exact) + 1).contains(&most(&ours)));
        near += ours.ideal_volume;
        exact_sum += exact.ideal_volume;
    }
    // The planner's area may be a cell more, which can save a token.
    assert!(near * 10 <= exact_sum * 11, "{near} tokens, {exact_sum} at best");
    let long = documents(&[17], MaskType::Causal);
    let settings = Config {
        placement: PlacementKind::Exact,
        chunk_size: 1,
        ..Config::default()
    };
    let error = Placement::new(&long, 2, &settings).unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument);
    assert!(error.message.contains("at most 16 chunks"), "{error}");
}

#[test]
fn zigzag_and_documents_in_turn() {
    let kind = |placement, chunk_size| Config {
        placement,
        chunk_size,
        ..Config::default()
    };
    let mask = documents(&[22], MaskType::Causal);
    let placement = Placement::new(&mask, 3, &kind(PlacementKind::Zigzag, 0)).unwrap();
    let side = placement.side(Side::Q);
    assert_eq!(side.owners(), [0, 1, 2, 2, 1, 0]);
    assert_eq!(side.bounds(), [0, 4, 8, 12, 16, 19, 22]);

    // The long document's chunks first, 0 1 2 and back 2, then the short one's.
    let mask = documents(&[4, 8], MaskType::Causal);
    let placement = Placement::new(&mask, 3, &kind(PlacementKind::ByDocument, 2)).unwrap();
    assert_eq!(placement.side(Side::Q).owners(), [1, 0, 0, 1, 2, 2]);

    // Two documents on two ranks: with all ranks to choose from each stays whole.
    let mask = documents(&[8, 8], MaskType::Causal);
    let settings = Config {
        top_percent: 100,
        ..kind(PlacementKind::TopHeap, 2)
    };
    assert_eq!(stats(&mask, 2, &settings).ideal_volume, 0);
}

#[test]
fn a_joint_placement_balances_the_sum() {
    let total = 4096;
    let all = Range::new(0, total);
    let full = documents(&[total], MaskType::Causal);
    let window = Mask::from_slices(vec![Slice::new(all, all, Band::new(-255, 0))], total, total).unwrap();
    let config = Config::default();
    let placement = Placement::new_joint(&[(&full, 1), (&window, 5)], 4, &config).unwrap();
    let [a, b] = [&full, &window].map(|m| Stats::new(m, &placement, &shape(), &config).unwrap());
    let joint: Vec<i64> = a.area.iter().zip(&b.area).map(|(a, b)| a + 5 * b).collect();
    let mean = joint.iter().sum::<i64>() / 4;
    assert!(joint.iter().all(|&area| area <= mean + mean / 100), "{joint:?}");
    assert_eq!(
        Placement::new_joint(&[(&full, 7)], 4, &config).unwrap(),
        Placement::new(&full, 4, &config).unwrap()
    );

    let refused = |masks: &[(&Mask, i64)], word: &str| {
        let error = Placement::new_joint(masks, 4, &config).unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument);
        assert!(error.message.contains(word), "{error}");
    };
    let longer = documents(&[total + 1], MaskType::Causal);
    refused(&[], "at least one");
    refused(&[(&full, 1), (&longer, 1)], "masks[1] has totals 4097");
    refused(&[(&full, 0)], "the weight of masks[0] is 0");
    refused(&[(&full, i64::MAX)], "at most 2^62");
    // Masks of few cells leave room for any weight; tokens by weight do not.
    let most = (1 << 42) / total;
    let none = Mask::new(&[], total, total).unwrap();
    refused(&[(&none, most + 1)], "more than 2^42");
    refused(&[(&full, 1), (&none, i64::MAX)], "more than 2^42");
    let row = TypedSlice {
        q: Range::new(3000, 3001),
        k: Range::new(0, total),
        mask_type: MaskType::Full,
    };
    let row = Mask::new(&[row], total, total).unwrap();
    for effort in [Effort::Fast, Effort::Thorough] {
        for world in [2, 64] {
            let masks = [(&row, most - 2), (&full, 1), (&none, 1)];
            Placement::new_joint(&masks, world, &with(effort, 0)).unwrap();
        }
    }
}

#[test]
fn areas_near_their_limit_are_dealt() {
    // A rank's free places want more cells each than an i64 holds sixteen times.
    let total = 1i64 << 31;
    let mask = documents(&[total], MaskType::Full);
    for (world, chunk_size) in [(2, 1 << 29), (2, total / 3), (3, 1 << 28)] {
        let placement = Placement::new(&mask, world, &with(Effort::Fast, chunk_size)).unwrap();
        let tokens: i64 = (0..world).map(|r| placement.side(Side::Q).tokens(r)).sum();
        assert_eq!(tokens, total);
    }
}

#[test]
fn the_longest_mask_is_placed() {
    let total = 1i64 << 31;
    let mask = Mask::from_sliding_window(total, total, (-1, -1), 0).unwrap();
    assert_eq!(mask.area(), 1 << 62);
    for world in [1, 3, 8] {
        let placement = Placement::new(&mask, world, &Config::default()).unwrap();
        let tokens: i64 = (0..world).map(|r| placement.side(Side::Q).tokens(r)).sum();
        assert_eq!(tokens, total);
    }
}
