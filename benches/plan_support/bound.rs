//! What placements are compared with: the longest chunks dealt first, blind to keys, and a bound of what must move.

use magi_attn::plan::{Placement, SidePlacement};
use magi_attn::types::*;
use std::cmp::Reverse;
use std::sync::Arc;

/// The same chunks, longest first, each to the least loaded rank with room.
pub fn greedy(mask: &Mask, like: &Placement) -> Placement {
    let side = like.side(Side::Q);
    let world = side.world();
    let areas = chunks(mask, side).0;
    let mut order: Vec<usize> = (0..areas.len()).collect();
    order.sort_by_key(|&c| (Reverse(areas[c]), c));
    let (even, mut extras) = (areas.len() / world, areas.len() % world);
    let mut ranks = vec![(0i64, 0usize); world];
    let mut owners = vec![0; areas.len()];
    for c in order {
        let room = |r: &usize| ranks[*r].1 < even + usize::from(extras > 0);
        let rank = (0..world).filter(room).min_by_key(|&r| (ranks[r].0, r)).unwrap();
        extras -= usize::from(ranks[rank].1 == even);
        ranks[rank] = (ranks[rank].0 + areas[c], ranks[rank].1 + 1);
        owners[c] = rank as u32;
    }
    let size = side.bounds()[1];
    let placed = SidePlacement::from_owners(side.total(), size, &owners, world).unwrap();
    Placement::shared(Arc::new(placed))
}

/// Visible cells of each chunk's rows, and the keys they see.
fn chunks(mask: &Mask, side: &SidePlacement) -> (Vec<i64>, Vec<Vec<Range>>) {
    let bounds = side.bounds();
    let count = bounds.len() - 1;
    let (mut areas, mut seen) = (vec![0; count], vec![Vec::new(); count]);
    for slice in mask.slices() {
        let rows = slice.visible_rows();
        if rows.is_empty() {
            continue;
        }
        let first = bounds.partition_point(|&b| b <= rows.start) - 1;
        for c in (first..count).take_while(|&c| bounds[c] < rows.end) {
            let cut = slice.cut(&Range::new(bounds[c], bounds[c + 1]), &slice.k);
            areas[c] += cut.area();
            seen[c].push(cut.visible_keys());
        }
    }
    (areas, seen)
}

/// Tokens that ranks receive at least on any placement of these chunks in equal counts with at most `most` cells on a
/// rank, both sides placed alike.
///
/// A key is on every rank that has a chunk that sees it, and on its owner, so all but one of these receive it. With its
/// own chunk these chunks stand on at least as many ranks as their number over the places of a rank, as their cells over
/// what fits, and, for any k, as the sum of (ceil((k + 1) x) - 1) / k over what part x of a rank each one fills: of chunks
/// that fill more than 1 / (k + 1), at most k go together. Cells of the lightest chunk are taken off everywhere, as every
/// place has at least so many.
pub fn least_received(mask: &Mask, placement: &Placement, most: i64) -> i64 {
    let side = placement.side(Side::Q);
    let (areas, mut seen) = chunks(mask, side);
    let places = areas.len().div_ceil(side.world());
    let even = areas.len() / side.world();
    let lightest = areas.iter().copied().min().unwrap_or(0);
    let room = i128::from(most - lightest * even as i64).max(1);
    let part = |c: usize, k: i128| {
        let area = i128::from(areas[c] - lightest);
        if k == 0 { area } else { ((k + 1) * area - 1) / room }
    };
    let mut ends: Vec<(i64, i128, usize)> = Vec::new();
    for (c, runs) in seen.iter_mut().enumerate() {
        runs.push(Range::new(side.bounds()[c], side.bounds()[c + 1]));
        let runs: Ranges = runs.iter().copied().collect();
        for run in runs.iter() {
            ends.extend([(run.start, 1, c), (run.end, -1, c)]);
        }
    }
    ends.sort_unstable();
    let (mut at, mut count, mut sums, mut total) = (0, 0i128, [0i128; 9], 0i64);
    for (end, sign, c) in ends {
        if end > at {
            let parts = sums.iter().enumerate().map(|(k, &sum)| {
                let unit = if k == 0 { room } else { k as i128 };
                (sum + unit - 1) / unit
            });
            let ranks = parts.fold((count + places as i128 - 1) / places as i128, i128::max);
            total += (end - at) * (ranks as i64 - 1).max(0);
            at = end;
        }
        count += sign;
        for (k, sum) in sums.iter_mut().enumerate() {
            *sum += sign * part(c, k as i128);
        }
    }
    total
}
