//! Cutting long tiles, so that a few of them fill a device.

use crate::types::{Item, Tile, TileList};
use std::cmp::Reverse;

/// Pieces shorter than this gain nothing: leaving and joining one costs about a step.
const LEAST_STEPS: i64 = 8;

/// The most steps that a tile should have when `units` times the tiles of `list` share `processors` multiprocessors:
/// `None` when no tile needs to be cut. Depends on the list, the heads and the device type alone, so the same call gives
/// the same bits whatever else runs.
pub fn limit(list: &TileList, units: i64, processors: i64) -> Option<i32> {
    let longest = list.tiles.iter().map(|t| i64::from(t.steps)).max()?;
    let share = list.steps() * units / processors.max(1);
    let limit = share.max(LEAST_STEPS);
    (longest > limit + limit / 4).then_some(limit.min(i64::from(i32::MAX)) as i32)
}

/// The same list with tiles of more than `limit` steps cut into pieces of about equal length, and the number of places
/// that pieces need in a workspace. The pieces of a tile stand one after the other in `tiles`, and have
/// `Tile::pieces` and `Tile::slot`. `areas` are empty: pieces have none of their own.
pub fn cut(list: &TileList, limit: i32) -> (TileList, i64) {
    let mut out = TileList {
        shape: list.shape,
        tiles: Vec::with_capacity(list.tiles.len()),
        items: Vec::with_capacity(list.items.len()),
        limits: list.limits.clone(),
        order: Vec::new(),
        areas: Vec::new(),
    };
    let mut slots = 0;
    for (i, tile) in list.tiles.iter().enumerate() {
        let limit = limit.max(1);
        let count = ((tile.steps + limit - 1) / limit).clamp(1, 0x7FFF);
        if count == 1 {
            push(&mut out, tile, list.items_of(i), 0, 0);
            continue;
        }
        let mut walk = Walk::new(list.items_of(i), list.shape.step);
        for piece in 0..count {
            let steps = tile.steps / count + i32::from(piece < tile.steps % count);
            let items = walk.take(steps);
            push(&mut out, tile, &items, slots, count << 16 | piece);
        }
        slots += count;
    }
    out.order = (0..out.tiles.len() as i32).collect();
    out.order.sort_by_key(|&i| Reverse(out.tiles[i as usize].steps));
    (out, i64::from(slots))
}

fn push(out: &mut TileList, tile: &Tile, items: &[Item], slot: i32, pieces: i32) {
    let steps = items
        .iter()
        .map(|it| (it.run1 - it.start + out.shape.step - 1) / out.shape.step);
    out.tiles.push(Tile {
        item0: out.items.len() as i32,
        items: items.len() as i32,
        steps: steps.sum(),
        slot,
        pieces,
        ..*tile
    });
    out.items.extend_from_slice(items);
}

/// A walk over the steps of a tile's items.
struct Walk<'a> {
    items: &'a [Item],
    step: i32,
    /// Where the next step of the first item begins.
    at: i32,
}

impl<'a> Walk<'a> {
    fn new(items: &'a [Item], step: i32) -> Walk<'a> {
        let at = items.first().map_or(0, |it| it.start);
        Walk { items, step, at }
    }

    /// The items of the next `steps` steps.
    fn take(&mut self, mut steps: i32) -> Vec<Item> {
        let mut taken = Vec::new();
        while steps > 0 {
            let Some((item, rest)) = self.items.split_first() else {
                break;
            };
            let left = (item.run1 - self.at + self.step - 1) / self.step;
            let end = if left <= steps {
                item.run1
            } else {
                self.at + steps * self.step
            };
            taken.push(part(item, self.at, end));
            steps -= left.min(steps);
            if end == item.run1 {
                self.items = rest;
                self.at = rest.first().map_or(0, |it| it.start);
            } else {
                self.at = end;
            }
        }
        taken
    }
}

/// The steps of an item from `start` to `end`, both of which steps begin or end at.
fn part(item: &Item, start: i32, end: i32) -> Item {
    let (full0, full1) = (item.full0.max(start), item.full1.min(end));
    let (full0, full1) = if full0 < full1 {
        (full0, full1)
    } else {
        (start, start)
    };
    Item {
        run0: item.run0.max(start),
        run1: end,
        start,
        full0,
        full1,
        ..*item
    }
}
