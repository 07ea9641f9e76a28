//! The best placement there is, for few chunks.

use super::balance::assign;
use super::reach::Reaches;
use crate::types::{Error, Range, Result};

/// Most chunks: with 16 on 4 ranks in equal counts there are 2.6 million placements up to the ranks' names.
pub(super) const MOST_CHUNKS: usize = 16;

struct Exact<'a> {
    reaches: &'a Reaches<'a>,
    areas: &'a [i64],
    even: usize,
    /// No placement has a smaller largest area.
    floor: i64,
    /// Ranks differ only by name: of empty ones the first is enough.
    alike: bool,
    own: Vec<Vec<u32>>,
    load: Vec<i64>,
    best: (i64, i64, Vec<u32>),
    scratch: Vec<Range>,
    work: u64,
}

/// The rank of every chunk with the least largest area and, of those, the fewest received tokens.
///
/// `alike` says that ranks have no keys of their own before they have chunks. `Status::InvalidArgument` with more
/// than 16 chunks.
pub(super) fn exact(reaches: &Reaches, areas: &[i64], world: usize, alike: bool) -> Result<Vec<u32>> {
    if areas.len() > MOST_CHUNKS {
        return Err(Error::argument(format!(
            "the exact placement is for at most {MOST_CHUNKS} chunks; there are {}",
            areas.len()
        )));
    }
    let start = assign(areas, world);
    let mut search = Exact {
        reaches,
        areas,
        even: areas.len() / world,
        floor: super::balance::bound(areas, world),
        alike,
        own: vec![Vec::new(); world],
        load: vec![0; world],
        best: (i64::MAX, i64::MAX, start.clone()),
        scratch: Vec::new(),
        work: 0,
    };
    // Any placement bounds the others from the start.
    for (c, &owner) in start.iter().enumerate() {
        search.own[owner as usize].push(c as u32);
        search.load[owner as usize] += areas[c];
    }
    search.offer(start);
    search.own.iter_mut().for_each(Vec::clear);
    search.load.fill(0);
    let mut owners = vec![0; areas.len()];
    search.place(areas.len(), areas.len() % world, &mut owners);
    Ok(search.best.2)
}

impl Exact<'_> {
    fn received(&mut self) -> i64 {
        let own = &self.own;
        (0..own.len())
            .map(|r| {
                self.reaches
                    .received(r, &own[r], &mut self.scratch, &mut self.work)
            })
            .sum()
    }

    /// Keeps a complete placement that is better than the best so far.
    fn offer(&mut self, owners: Vec<u32>) {
        let most = self.load.iter().copied().max().unwrap_or(0);
        if most <= self.best.0 {
            let received = self.received();
            if (most, received) < (self.best.0, self.best.1) {
                self.best = (most, received, owners);
            }
        }
    }

    /// Places chunk `left - 1` and those before it: the last see most, so they cut most branches.
    fn place(&mut self, left: usize, extras: usize, owners: &mut Vec<u32>) {
        if (self.best.0, self.best.1) == (self.floor, 0) {
            return;
        }
        let Some(c) = left.checked_sub(1) else {
            self.offer(owners.clone());
            return;
        };
        let mut empty = false;
        for r in 0..self.own.len() {
            let count = self.own[r].len();
            let extra = usize::from(count == self.even);
            let load = self.load[r] + self.areas[c];
            if count > self.even || extra > extras || load > self.best.0 || (empty && self.alike) {
                continue;
            }
            empty |= count == 0;
            self.own[r].insert(0, c as u32);
            self.load[r] = load;
            owners[c] = r as u32;
            self.place(c, extras - extra, owners);
            self.own[r].remove(0);
            self.load[r] -= self.areas[c];
        }
    }
}
