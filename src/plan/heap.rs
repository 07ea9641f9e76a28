//! Longest chunk first, to the rank near the bottom of the loads that already sees its keys.

use super::reach::{Held, Reaches};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Each chunk goes to that one of the least loaded `percent` of the ranks with room where it adds fewest received
/// tokens; of equals to the least loaded. O(chunks x ranks compared x log runs).
pub(super) fn top_heap(reaches: &Reaches, areas: &[i64], world: usize, percent: i64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..areas.len() as u32).collect();
    order.sort_unstable_by_key(|&c| (Reverse(areas[c as usize]), c));
    let even = areas.len() / world;
    let mut extras = areas.len() % world;
    let mut count = vec![0; world];
    let mut held: Vec<Held> = (0..world).map(|r| Held::new(reaches, r)).collect();
    let mut ranks: BTreeSet<(i64, u32)> = (0..world as u32).map(|r| (0, r)).collect();
    let mut owners = vec![0; areas.len()];
    for c in order {
        let area = areas[c as usize];
        let compared = (ranks.len() * percent as usize).div_ceil(100).max(1);
        let added = |r: &(i64, u32)| held[r.1 as usize].added(reaches, c);
        let chosen = ranks.iter().take(compared).copied().min_by_key(added);
        // Ranks leave the set when they have no room, and there are no more chunks than places.
        let Some(chosen) = chosen else { return owners };
        ranks.remove(&chosen);
        let rank = chosen.1 as usize;
        owners[c as usize] = chosen.1;
        held[rank].add(reaches, c);
        count[rank] += 1;
        if count[rank] > even {
            extras -= 1;
        }
        if count[rank] < even || (count[rank] == even && extras > 0) {
            ranks.insert((chosen.0 + area, chosen.1));
        }
        if extras == 0 && count[rank] > even {
            ranks.retain(|r| count[r.1 as usize] < even);
        }
    }
    owners
}
