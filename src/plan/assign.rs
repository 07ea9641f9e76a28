//! Which rank computes which block, so that few bytes travel.
//!
//! A block costs nothing at a rank that owns both sides; its keys at the row owner; its queries and their results at the
//! column owner; both at a third rank, less what travels there anyway. Blocks move one by one while that lowers the largest
//! load of a rank, or the bytes at equal load, and two at a time where the first alone would give a rank too many cells.

use super::grid::{Block, Grid};
use super::price::Price;
use crate::types::{Range, Ranges};
use std::collections::BTreeMap;

/// Moves that are tried for every block, and in all.
const TRIES_A_BLOCK: usize = 64;
const MOST_TRIES: usize = 1 << 17;
/// Blocks that are tried as the second of two moves.
const MOST_SECONDS: usize = 48;
/// Blocks of which one leaves a rank that has too many cells.
const MOST_LEAVING: usize = 12;

fn budget(grid: &Grid) -> usize {
    (grid.blocks.len() * TRIES_A_BLOCK).min(MOST_TRIES)
}

/// What a rank holds of another's tokens, for the sake of these blocks.
#[derive(Clone, Debug, Default)]
struct Held {
    blocks: Vec<u32>,
    tokens: Ranges,
    count: i64,
}

/// What every rank holds of every other's tokens of one side, by (owner, holder).
#[derive(Clone, Debug)]
struct Holdings {
    held: BTreeMap<(u32, u32), Held>,
    tokens: fn(&Block) -> &Ranges,
}

impl Holdings {
    /// Adds a block's tokens or takes them away; by how many tokens that changes what the holder needs.
    fn change(&mut self, grid: &Grid, at: (u32, u32), block: u32, add: bool) -> i64 {
        let held = self.held.entry(at).or_default();
        let before = held.count;
        let of = |&b: &u32| (self.tokens)(&grid.blocks[b as usize]);
        if add {
            held.blocks.push(block);
            held.tokens = held.tokens.union(of(&block));
        } else {
            held.blocks.retain(|&b| b != block);
            if held.blocks.is_empty() {
                self.held.remove(&at);
                return -before;
            }
            let all: Vec<Range> = held.blocks.iter().flat_map(|b| of(b).iter().copied()).collect();
            held.tokens = Ranges::from_unsorted(all);
        }
        held.count = held.tokens.tokens();
        held.count - before
    }

    /// The ranks that hold tokens of `owner`.
    fn holders(&self, owner: u32) -> impl Iterator<Item = u32> + '_ {
        self.held
            .range((owner, 0)..=(owner, u32::MAX))
            .map(|(at, _)| at.1)
    }
}

/// The most that a rank sends or receives, and what all receive, in bytes. Less is better, in this order.
pub(super) type Score = (i64, i64);

/// An assignment and what it comes to.
#[derive(Clone, Debug)]
pub(super) struct Assignment<'a> {
    grid: &'a Grid,
    price: Price,
    /// Most cells of a rank.
    limit: i64,
    /// The rank that computes each block.
    pub at: Vec<u32>,
    /// Cells that each rank computes.
    pub area: Vec<i64>,
    /// Bytes that each rank sends and receives in the pass, results included.
    pub sent: Vec<i64>,
    pub received: Vec<i64>,
    keys: Holdings,
    queries: Holdings,
    /// The blocks of each rank.
    own: Vec<Vec<u32>>,
    /// Bytes that all ranks receive.
    bytes: i64,
    /// Moves that may still be tried.
    tries: usize,
}

impl<'a> Assignment<'a> {
    /// Every block at the owner of its rows: keys travel, queries do not.
    pub fn of_rows(grid: &'a Grid, price: Price, slack: i64) -> Assignment<'a> {
        let world = grid.world;
        let mut made = Assignment {
            grid,
            price,
            limit: 0,
            at: grid.blocks.iter().map(|b| b.row_owner).collect(),
            area: vec![0; world],
            sent: vec![0; world],
            received: vec![0; world],
            keys: Holdings {
                held: BTreeMap::new(),
                tokens: |b| &b.keys,
            },
            queries: Holdings {
                held: BTreeMap::new(),
                tokens: |b| &b.rows,
            },
            own: vec![Vec::new(); world],
            bytes: 0,
            tries: budget(grid),
        };
        for b in 0..grid.blocks.len() as u32 {
            made.put(b, made.at[b as usize]);
        }
        let total: i128 = made.area.iter().map(|&a| i128::from(a)).sum();
        let most = total * i128::from(1000 + slack) / (1000 * world as i128);
        made.limit = made.most_cells().max(most as i64);
        made
    }

    /// The largest area of a rank.
    pub fn most_cells(&self) -> i64 {
        self.area.iter().copied().max().unwrap_or(0)
    }

    pub fn score(&self) -> Score {
        let most = self.sent.iter().chain(&self.received).copied().max();
        (most.unwrap_or(0), self.bytes)
    }

    /// `out` bytes go from an owner to a holder, `back` bytes return.
    fn carry(&mut self, owner: u32, holder: u32, out: i64, back: i64) {
        let (owner, holder) = (owner as usize, holder as usize);
        self.sent[owner] += out;
        self.received[holder] += out;
        self.sent[holder] += back;
        self.received[owner] += back;
        self.bytes += out + back;
    }

    /// Adds a block to a rank, or takes it away.
    fn change(&mut self, b: u32, rank: u32, add: bool) {
        let (grid, price) = (self.grid, self.price);
        let block = &grid.blocks[b as usize];
        self.area[rank as usize] += if add { block.area } else { -block.area };
        if rank != block.column_owner {
            let tokens = self.keys.change(grid, (block.column_owner, rank), b, add);
            self.carry(
                block.column_owner,
                rank,
                tokens * price.key_out,
                tokens * price.key_back,
            );
        }
        if rank != block.row_owner {
            let tokens = self.queries.change(grid, (block.row_owner, rank), b, add);
            self.carry(
                block.row_owner,
                rank,
                tokens * price.query_out,
                tokens * price.query_back,
            );
        }
    }

    fn put(&mut self, b: u32, rank: u32) {
        self.change(b, rank, true);
        self.own[rank as usize].push(b);
        self.at[b as usize] = rank;
    }

    fn shift(&mut self, b: u32, to: u32) {
        let from = self.at[b as usize];
        self.change(b, from, false);
        self.own[from as usize].retain(|&o| o != b);
        self.put(b, to);
        self.tries = self.tries.saturating_sub(1);
    }

    /// Where else a block may be computed: at the owners of its sides, and where both travel already.
    fn options(&self, b: u32) -> Vec<u32> {
        let block = &self.grid.blocks[b as usize];
        let mut options = vec![block.row_owner, block.column_owner];
        options.extend(
            self.queries
                .holders(block.row_owner)
                .filter(|&rank| self.keys.held.contains_key(&(block.column_owner, rank))),
        );
        options.retain(|&rank| rank != self.at[b as usize]);
        options.sort_unstable();
        options.dedup();
        options
    }

    /// Every block where its bytes are fewest, whatever that does to areas.
    fn cheapest(&mut self) {
        let (grid, price) = (self.grid, self.price);
        for (b, block) in grid.blocks.iter().enumerate() {
            let keys = block.keys.tokens() * (price.key_out + price.key_back);
            let queries = block.rows.tokens() * (price.query_out + price.query_back);
            if queries < keys && block.row_owner != block.column_owner {
                self.shift(b as u32, block.column_owner);
            }
        }
    }

    /// Blocks in tiles: ranks in groups of `group` have the rows of their group in common and share the columns among
    /// themselves, so that a rank holds the queries of its group and one part of the keys.
    fn tiled(&mut self, group: usize) {
        let (grid, world) = (self.grid, self.grid.world);
        for (b, block) in grid.blocks.iter().enumerate() {
            let first = block.row_owner as usize / group * group;
            let members = group.min(world - first);
            let rank = (first + block.column_owner as usize * members / world) as u32;
            if rank != self.at[b] {
                self.shift(b as u32, rank);
            }
        }
        self.tries = budget(grid);
    }

    /// Moves blocks away from ranks with too many cells, those that add fewest bytes a cell first. Whether it succeeded.
    fn relieve_all(&mut self) -> bool {
        loop {
            let Some(rank) = (0..self.grid.world).max_by_key(|&r| (self.area[r], std::cmp::Reverse(r)))
            else {
                return true;
            };
            if self.area[rank] <= self.limit {
                return true;
            }
            let least = (0..self.grid.world).min_by_key(|&r| (self.area[r], r));
            // (bytes added, cells moved, block, rank)
            let mut best: Option<(i64, i64, u32, u32)> = None;
            let excess = self.area[rank] - self.limit;
            let mut leaving = self.own[rank].clone();
            leaving.sort_by_key(|&b| ((self.grid.blocks[b as usize].area - excess).abs(), b));
            leaving.truncate(MOST_LEAVING);
            for b in leaving {
                let area = self.grid.blocks[b as usize].area;
                let mut options = self.options(b);
                options.extend(least.map(|r| r as u32).filter(|&r| r as usize != rank));
                for to in options {
                    if self.area[to as usize] + area > self.limit {
                        continue;
                    }
                    let before = self.bytes;
                    self.shift(b, to);
                    let added = self.bytes - before;
                    self.shift(b, rank as u32);
                    let fewer = best.is_none_or(|(bytes, cells, ..)| {
                        i128::from(added) * i128::from(cells) < i128::from(bytes) * i128::from(area)
                    });
                    if fewer {
                        best = Some((added, area, b, to));
                    }
                }
            }
            match best {
                Some((_, _, b, to)) if self.tries > 0 => self.shift(b, to),
                _ => return false,
            }
        }
    }

    /// Moves blocks while that makes the score better and no rank receives more bytes in all than `most`.
    fn improve(&mut self, most: i64) {
        let saved = |b: &Block| {
            let p = self.price;
            b.keys.tokens() * (p.key_out + p.key_back) - b.rows.tokens() * (p.query_out + p.query_back)
        };
        let mut order: Vec<u32> = (0..self.grid.blocks.len() as u32).collect();
        order.sort_by_key(|&b| std::cmp::Reverse(saved(&self.grid.blocks[b as usize])));
        loop {
            let mut better = false;
            for &b in &order {
                for to in self.options(b) {
                    if self.tries == 0 {
                        return;
                    }
                    better |= self.try_move(b, to, most);
                }
            }
            if !better {
                return;
            }
        }
    }

    /// Moves a block, and another one out of its way, if that is better.
    fn try_move(&mut self, b: u32, to: u32, most: i64) -> bool {
        let (from, before) = (self.at[b as usize], self.score());
        if from == to {
            return false;
        }
        self.shift(b, to);
        let after = self.score();
        if after < before
            && after.1 <= most
            && (self.area[to as usize] <= self.limit || self.second(b, before, most))
        {
            return true;
        }
        self.shift(b, from);
        false
    }

    /// Moves one more block out of the rank where `b` is now, so that it has not too many cells and the score stays below
    /// `before`.
    fn second(&mut self, b: u32, before: Score, most: i64) -> bool {
        let rank = self.at[b as usize];
        let excess = self.area[rank as usize] - self.limit;
        let heavy = |&o: &u32| o != b && self.grid.blocks[o as usize].area >= excess;
        let others: Vec<u32> = self.own[rank as usize].iter().copied().filter(heavy).collect();
        let mut best: Option<(Score, u32, u32)> = None;
        for other in others.into_iter().take(MOST_SECONDS) {
            for to in self.options(other) {
                if self.area[to as usize] + self.grid.blocks[other as usize].area > self.limit {
                    continue;
                }
                self.shift(other, to);
                let score = self.score();
                self.shift(other, rank);
                if score < before && score.1 <= most && best.is_none_or(|(least, ..)| score < least) {
                    best = Some((score, other, to));
                }
            }
        }
        if let Some((_, other, to)) = best {
            self.shift(other, to);
        }
        best.is_some()
    }

    /// The best assignment found, where it is better than `self`, all of whose blocks are at the owners of their rows: no
    /// more bytes in all, no larger load of a rank, one of the two smaller; and no rank with more cells than now or than
    /// the slack allows.
    pub fn better(&self) -> Option<Assignment<'a>> {
        let rows = self.score();
        let mut cheap = self.clone();
        cheap.cheapest();
        let mut starts = vec![cheap];
        // Where areas forbid nothing, fewest bytes is a good start; else others may lead further.
        if starts[0].most_cells() > self.limit || starts[0].bytes == rows.1 {
            starts.push(self.clone());
        }
        let tiled = (1..usize::BITS)
            .map(|bits| 1 << bits)
            .take_while(|&g| g < 2 * self.grid.world);
        let tiled = tiled.map(|group| {
            let mut start = self.clone();
            start.tiled(group);
            start
        });
        starts.extend(tiled.min_by_key(Assignment::score));
        let mut found = None;
        let mut least = rows;
        for mut start in starts {
            if start.relieve_all() && start.bytes <= rows.1 {
                start.improve(rows.1);
                if start.score() < least {
                    least = start.score();
                    found = Some(start);
                }
            }
        }
        found
    }
}
