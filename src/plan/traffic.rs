//! How many tokens go from which rank to which.

use super::needs::Needs;
use super::placement::Placement;
use super::transfer::owned_pieces;
use crate::types::{Mask, Ranges, Side};

/// Tokens sent between groups of neighbouring ranks in one forward pass; with as many groups as ranks, between ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Number of groups.
    pub groups: usize,
    /// Row: sender; column: receiver.
    pub tokens: Vec<i64>,
    world: usize,
}

impl Traffic {
    /// The keys of `mask`, whose totals are those of `placement`, between at most `most` groups.
    pub fn new(mask: &Mask, placement: &Placement, most: usize) -> Traffic {
        let needs = Needs::new(mask, placement, None);
        Traffic::of(placement, Side::K, &needs.remote, most)
    }

    /// The tokens of `side` that each rank fetches.
    pub fn of(placement: &Placement, side: Side, remote: &[Ranges], most: usize) -> Traffic {
        let (world, owners) = (placement.world(), placement.side(side));
        let groups = world.min(most);
        let group = |rank: usize| rank * groups / world;
        let mut tokens = vec![0; groups * groups];
        for (to, remote) in remote.iter().enumerate() {
            for range in remote.iter() {
                for (from, part) in owned_pieces(owners, *range) {
                    tokens[group(from as usize) * groups + group(to)] += part.len();
                }
            }
        }
        Traffic {
            groups,
            tokens,
            world,
        }
    }

    /// The same with what `other`, of the same placement and groups, counts.
    pub fn and(mut self, other: &Traffic) -> Traffic {
        for (mine, theirs) in self.tokens.iter_mut().zip(&other.tokens) {
            *mine += theirs;
        }
        self
    }

    /// First and last rank of a group.
    pub fn ranks(&self, group: usize) -> (usize, usize) {
        let first = |g: usize| (g * self.world).div_ceil(self.groups);
        (first(group), first(group + 1) - 1)
    }
}
