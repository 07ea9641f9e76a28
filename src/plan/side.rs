//! One side's tokens spread over ranks.

use super::hash::Hasher;
use crate::types::{Error, Range, Ranges, Result};

/// A contiguous run of tokens that one rank owns, as long as it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedRun {
    /// Global tokens.
    pub tokens: Range,
    /// The rank that stores them.
    pub owner: u32,
    /// Row of that rank's local tensor that holds `tokens.start`.
    pub row: i64,
}

/// Which rank stores which tokens of one side, chunk by chunk.
///
/// A rank stores its tokens in ascending global order, so every run of it is one run of local rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidePlacement {
    total: i64,
    chunk_size: i64,
    bounds: Vec<i64>,
    owners: Vec<u32>,
    chunks: Vec<Vec<u32>>,
    runs: Vec<Ranges>,
    tokens: Vec<i64>,
    all_runs: Vec<OwnedRun>,
    hash: u64,
}

impl SidePlacement {
    /// Most ranks.
    pub const MAX_WORLD: usize = 1024;
    /// Most chunks of one side: what placing them costs grows with their number.
    pub const MAX_CHUNKS: i64 = 1 << 22;

    /// Any partition: chunk `i` is tokens `[i, i + 1) * chunk_size` (the last may be short) and belongs to rank
    /// `owners[i]`. `Status::InvalidArgument` unless there is one owner below `world` for every chunk.
    pub fn from_owners(total: i64, chunk_size: i64, owners: &[u32], world: usize) -> Result<SidePlacement> {
        let bounds = uniform_bounds(total, chunk_size)?;
        Self::from_bounds(bounds, chunk_size, owners.to_vec(), world)
    }

    /// Contiguous shares, one a rank, whose sizes differ by at most one token; with fewer tokens than ranks the
    /// last ranks own none. `Status::InvalidArgument` or `InvalidRange` for a world size or total that cannot be.
    pub fn shares(total: i64, world: usize) -> Result<SidePlacement> {
        check_world(world)?;
        check_total(total)?;
        let bounds = share_bounds(total, world as i64);
        let owners = (0..bounds.len() as u32 - 1).collect();
        Self::from_bounds(bounds, total.div_ceil_by(world as i64).max(1), owners, world)
    }

    /// Chunk `i` is `[bounds[i], bounds[i + 1])`, none of them empty, the first from 0.
    pub(super) fn from_bounds(
        bounds: Vec<i64>,
        chunk_size: i64,
        owners: Vec<u32>,
        world: usize,
    ) -> Result<SidePlacement> {
        check_world(world)?;
        let chunks = bounds.len() - 1;
        if owners.len() != chunks {
            let message = format!(
                "owners has {} entries; it must have one for each of {chunks} chunks",
                owners.len()
            );
            return Err(Error::argument(message));
        }
        if let Some(i) = owners.iter().position(|&o| o as usize >= world) {
            let message = format!(
                "owners[{i}] is {}; it must be below the world size {world}",
                owners[i]
            );
            return Err(Error::argument(message));
        }
        let mut placed = SidePlacement {
            total: bounds[chunks],
            chunk_size,
            chunks: vec![Vec::new(); world],
            runs: Vec::new(),
            tokens: vec![0; world],
            all_runs: Vec::new(),
            hash: 0,
            bounds,
            owners,
        };
        placed.derive();
        Ok(placed)
    }

    /// Fills everything that follows from bounds and owners.
    fn derive(&mut self) {
        let mut runs = vec![Vec::new(); self.tokens.len()];
        let mut hasher = Hasher::new();
        hasher.words([self.total, self.tokens.len() as i64, self.owners.len() as i64]);
        for (i, &owner) in self.owners.iter().enumerate() {
            let tokens = Range::new(self.bounds[i], self.bounds[i + 1]);
            let rank = owner as usize;
            hasher.words([tokens.end, i64::from(owner)]);
            self.chunks[rank].push(i as u32);
            match self.all_runs.last_mut() {
                Some(run) if run.owner == owner => run.tokens.end = tokens.end,
                _ => {
                    let row = self.tokens[rank];
                    self.all_runs.push(OwnedRun { tokens, owner, row });
                }
            }
            self.tokens[rank] += tokens.len();
        }
        for run in &self.all_runs {
            runs[run.owner as usize].push(run.tokens);
        }
        self.runs = runs.into_iter().map(Ranges::from_unsorted).collect();
        self.hash = hasher.finish();
    }

    /// Number of tokens of the side.
    pub fn total(&self) -> i64 {
        self.total
    }

    /// Tokens of the longest chunk that the placement was made for, at least 1.
    pub fn chunk_size(&self) -> i64 {
        self.chunk_size
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.tokens.len()
    }

    /// The rank that stores each chunk.
    pub fn owners(&self) -> &[u32] {
        &self.owners
    }

    /// Chunks that `rank` stores, ascending.
    pub fn chunks(&self, rank: usize) -> &[u32] {
        &self.chunks[rank]
    }

    /// Global tokens of a chunk.
    pub fn chunk(&self, chunk: usize) -> Range {
        Range::new(self.bounds[chunk], self.bounds[chunk + 1])
    }

    /// Where chunks begin, and the total: one entry more than there are chunks.
    pub fn bounds(&self) -> &[i64] {
        &self.bounds
    }

    /// Global tokens that `rank` stores; local rows are these tokens in ascending order.
    pub fn runs(&self, rank: usize) -> &Ranges {
        &self.runs[rank]
    }

    /// The runs of all ranks, in ascending order of tokens; together they are the whole side.
    pub fn all_runs(&self) -> &[OwnedRun] {
        &self.all_runs
    }

    /// Number of tokens that `rank` stores.
    pub fn tokens(&self, rank: usize) -> i64 {
        self.tokens[rank]
    }

    /// Index in `all_runs` of the first run that ends after `token`.
    pub(super) fn first_run_after(&self, token: i64) -> usize {
        self.all_runs.partition_point(|r| r.tokens.end <= token)
    }

    /// The rank that stores `token`, which must be inside the total.
    pub fn owner(&self, token: i64) -> usize {
        self.all_runs[self.first_run_after(token)].owner as usize
    }

    /// Local row of `token`; `None` when `rank` does not store it.
    pub fn to_local(&self, rank: usize, token: i64) -> Option<i64> {
        let run = self.all_runs.get(self.first_run_after(token))?;
        (run.owner as usize == rank && run.tokens.contains(token)).then(|| run.row + token - run.tokens.start)
    }

    /// Local rows of `tokens`; `None` unless they are at least one and lie inside one run of `rank`.
    pub fn to_local_range(&self, rank: usize, tokens: Range) -> Option<Range> {
        let run = self.all_runs.get(self.first_run_after(tokens.start))?;
        let inside = !tokens.is_empty() && run.tokens.contains(tokens.start) && tokens.end <= run.tokens.end;
        (inside && run.owner as usize == rank).then(|| tokens.shift(run.row - run.tokens.start))
    }

    /// Hash of who owns what; the same on every rank and machine.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// Bounds of chunks of `chunk_size` tokens: 0, chunk_size, ..., total.
pub(super) fn uniform_bounds(total: i64, chunk_size: i64) -> Result<Vec<i64>> {
    check_total(total)?;
    let least = total.div_ceil_by(SidePlacement::MAX_CHUNKS).max(1);
    if chunk_size < least {
        let message = format!("chunk_size is {chunk_size}; with {total} tokens it must be at least {least}");
        return Err(Error::argument(message));
    }
    let chunks = total.div_ceil_by(chunk_size);
    Ok((0..=chunks)
        .map(|i| i.saturating_mul(chunk_size).min(total))
        .collect())
}

/// Bounds of contiguous shares whose sizes differ by at most one token; with fewer tokens than `pieces`, of one token.
pub(super) fn share_bounds(total: i64, pieces: i64) -> Vec<i64> {
    let (base, extra) = (total / pieces, total % pieces);
    (0..=total.min(pieces)).map(|i| i * base + i.min(extra)).collect()
}

fn check_total(total: i64) -> Result<()> {
    if total >= 0 {
        return Ok(());
    }
    Err(Error::range(format!(
        "the total is {total}; it must not be negative"
    )))
}

/// `Status::InvalidArgument` unless there can be so many ranks.
pub(super) fn check_world(world: usize) -> Result<()> {
    if (1..=SidePlacement::MAX_WORLD).contains(&world) {
        return Ok(());
    }
    let most = SidePlacement::MAX_WORLD;
    Err(Error::argument(format!(
        "the world size is {world}; it must be 1 to {most}"
    )))
}

/// Division that rounds up; signed integers have none in the standard library yet.
pub(super) trait DivCeil {
    /// `self / by`, rounded up, for `self >= 0` and `by > 0`.
    fn div_ceil_by(self, by: i64) -> i64;
}

impl DivCeil for i64 {
    fn div_ceil_by(self, by: i64) -> i64 {
        self / by + i64::from(self % by != 0)
    }
}

/// A run of tokens and the row of a tensor that holds its first token.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedRun {
    pub tokens: Range,
    pub row: i64,
}

/// The ascending concatenation of `runs` as rows of one tensor.
pub(super) fn concatenate(runs: &[Range]) -> Vec<PlacedRun> {
    let mut row = 0;
    runs.iter()
        .map(|&tokens| {
            let placed = PlacedRun { tokens, row };
            row += tokens.len();
            placed
        })
        .collect()
}
