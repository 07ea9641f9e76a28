//! The picture of a plan: who computes what, how evenly, and what travels.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::traffic::Traffic;
use super::{Placement, Stats};
use crate::types::draw::{Anchor, MOST_PIECES, Plot, Svg, rank_colour, thousands};
use crate::types::{Mask, Side, Slice};

const WIDTH: i64 = 1000;
/// Side of the mask's plot.
const SIZE: f64 = 450.0;
/// Left edge and width of the charts beside it.
const RIGHT: f64 = 620.0;
const CHART: f64 = 350.0;
/// Top of everything below the title.
const TOP: f64 = 92.0;
/// Groups of ranks in the matrix of what travels.
const GROUPS: usize = 48;
/// Ranks that bars are labelled for.
const LABELLED: usize = 32;

/// The mask coloured by the rank that computes each part, a bar of cells for every rank, the matrix of keys that
/// travel, and a bar of keys received, stage upon stage, for every rank; as SVG of at most some hundred kilobytes.
/// `stats` are those of `mask` on `placement`.
pub fn draw_key(placement: &Placement, mask: &Mask, stats: &Stats) -> String {
    let traffic = match &stats.work {
        Some(work) => Traffic::of(placement, &work.keys, GROUPS),
        None => Traffic::new(mask, placement, GROUPS),
    };
    let mut svg = Svg::new(WIDTH, 790);
    let world = placement.world();
    svg.heading(
        24.0,
        30.0,
        &format!(
            "{} queries, {} keys on {world} {}",
            thousands(mask.total_q()),
            thousands(mask.total_k()),
            if world == 1 { "rank" } else { "ranks" }
        ),
    );
    let volume = &stats.volume[0];
    let share = 100.0 * volume.keys as f64 / stats.all_gather_volume.max(1) as f64;
    let mut summary = format!(
        "balance {:.4} (no placement of these chunks below {:.4}); {} keys travel, {share:.1}% of an all-gather",
        stats.balance,
        stats.balance_bound,
        thousands(volume.keys)
    );
    if volume.queries > 0 {
        let bytes = 100.0 * volume.bytes() as f64 / volume.keys_only_bytes.max(1) as f64;
        let queries = thousands(volume.queries);
        // Writing to a String cannot fail.
        let _ = write!(
            summary,
            "; {queries} queries travel too: {bytes:.1}% of the bytes of keys alone"
        );
    }
    svg.text(24.0, 49.0, Anchor::Start, "dim", &summary);
    parts(&mut svg, placement, mask, stats);
    areas(&mut svg, stats);
    matrix(&mut svg, &traffic);
    received(&mut svg, stats);
    svg.finish()
}

/// The mask, each part in the colour of its rank.
fn parts(svg: &mut Svg, placement: &Placement, mask: &Mask, stats: &Stats) {
    let queries = placement.side(Side::Q);
    let plot = Plot::new(84.0, TOP, SIZE, mask.total_q(), mask.total_k());
    plot.frame(svg);
    let colours: Vec<String> = (0..placement.world()).map(rank_colour).collect();
    let mut pieces: Vec<(Slice, usize)> = Vec::new();
    if let Some(work) = &stats.work {
        work.for_each(mask, placement, |rank, _, slice| pieces.push((slice, rank)));
        if pieces.len() <= MOST_PIECES {
            plot.pieces(svg, &pieces, &colours);
            return;
        }
        svg.text(
            84.0,
            TOP - 7.0,
            Anchor::Start,
            "dim",
            "coloured by the owner of the query",
        );
        pieces.clear();
    }
    'all: for slice in mask.slices() {
        let rows = slice.visible_rows();
        let first = queries.first_run_after(rows.start);
        for run in queries.all_runs().iter().skip(first) {
            if run.tokens.start >= rows.end {
                break;
            }
            pieces.push((slice.cut(&run.tokens, &slice.k), run.owner as usize));
            if pieces.len() > MOST_PIECES {
                break 'all;
            }
        }
    }
    if pieces.len() > MOST_PIECES {
        // Shades take their colour from the row, so the slices need not be cut.
        pieces = mask.slices().iter().map(|s| (*s, 0)).collect();
        plot.shaded(svg, &pieces, &colours, |q| queries.owner(q));
    } else {
        plot.pieces(svg, &pieces, &colours);
    }
}

/// A chart of one bar for each rank; `stacks[i]` are the parts of rank i's bar, from the bottom.
struct Bars<'a> {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    stacks: Vec<Vec<i64>>,
    look: &'a dyn Fn(usize, usize) -> String,
}

impl Bars<'_> {
    /// The longest bar.
    fn most(&self) -> i64 {
        let sums = self.stacks.iter().map(|s| s.iter().sum::<i64>());
        sums.max().unwrap_or(0).max(1)
    }

    /// Where `value` lies.
    fn y(&self, value: f64) -> f64 {
        self.top + self.height * (1.0 - value / self.most() as f64)
    }

    fn draw(&self, svg: &mut Svg) {
        let (top, height, most) = (self.top, self.height, self.most());
        let y = |value: i64| top + height * (1.0 - value as f64 / most as f64);
        svg.rect([self.left, top, self.width, height], "plot");
        svg.text(self.left - 6.0, top + 11.0, Anchor::End, "dim", &short(most));
        svg.text(self.left - 6.0, top + height, Anchor::End, "dim", "0");
        let slot = self.width / self.stacks.len() as f64;
        // Bars of a thousand ranks leave no room for gaps.
        let gap = if slot > 5.0 { slot * 0.15 } else { 0.0 };
        let mut paths: BTreeMap<String, String> = BTreeMap::new();
        for (rank, stack) in self.stacks.iter().enumerate() {
            let x = self.left + rank as f64 * slot;
            let mut below = 0;
            for (part, &n) in stack.iter().enumerate().filter(|p| *p.1 > 0) {
                let (low, high) = (y(below), y(below + n));
                let (left, wide, tall) = (x + gap, slot - 2.0 * gap, low - high);
                let path = paths.entry((self.look)(rank, part)).or_default();
                // Writing to a String cannot fail.
                let _ = write!(path, "M{left:.1} {high:.1}h{wide:.2}v{tall:.1}h-{wide:.2}z");
                below += n;
            }
        }
        for (fill, path) in paths {
            svg.path(&path, &format!("fill=\"{fill}\""));
        }
        let world = self.stacks.len();
        let every = world.div_ceil(LABELLED / 2).next_power_of_two();
        for rank in (0..world).step_by(if world <= LABELLED / 2 { 1 } else { every }) {
            let x = self.left + (rank as f64 + 0.5) * slot;
            svg.text(x, top + height + 15.0, Anchor::Middle, "dim", &rank.to_string());
        }
    }
}

/// A number in at most five characters.
fn short(n: i64) -> String {
    let units = [
        (1_000_000_000_000_000, "P"),
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
    ];
    for (unit, name) in units {
        if n >= unit {
            return format!("{:.1}{name}", n as f64 / unit as f64);
        }
    }
    if n >= 10_000 {
        format!("{:.0}k", n as f64 / 1000.0)
    } else {
        n.to_string()
    }
}

/// Cells that each rank computes, with their mean.
fn areas(svg: &mut Svg, stats: &Stats) {
    svg.heading(RIGHT, TOP - 7.0, "cells computed, by rank");
    let bars = Bars {
        left: RIGHT,
        top: TOP,
        width: CHART,
        height: 150.0,
        stacks: stats.area.iter().map(|&a| vec![a]).collect(),
        look: &|rank, _| rank_colour(rank),
    };
    bars.draw(svg);
    let mean = stats.area.iter().sum::<i64>() as f64 / stats.area.len() as f64;
    let y = bars.y(mean);
    svg.line([RIGHT, y, RIGHT + CHART, y], true);
    svg.text(RIGHT + CHART, TOP - 7.0, Anchor::End, "dim", "dashed: mean");
}

/// Keys by sender and receiver, the darker the more.
fn matrix(svg: &mut Svg, traffic: &Traffic) {
    let (left, top, n) = (RIGHT, TOP + 226.0, traffic.groups);
    let side = 224.0;
    svg.heading(left, top - 25.0, "keys that travel");
    svg.text(left, top - 7.0, Anchor::Start, "dim", "to rank \u{2192}");
    svg.text(left - 7.0, top + 12.0, Anchor::End, "dim", "from");
    svg.text(left - 7.0, top + 28.0, Anchor::End, "dim", "rank \u{2193}");
    svg.rect([left, top, side, side], "plot");
    let cell = side / n as f64;
    let most = traffic.tokens.iter().copied().max().unwrap_or(0).max(1);
    let mut paths: BTreeMap<i64, String> = BTreeMap::new();
    for (i, &tokens) in traffic.tokens.iter().enumerate().filter(|t| *t.1 > 0) {
        let (x, y) = (left + (i % n) as f64 * cell, top + (i / n) as f64 * cell);
        // From light to full in sixteenths, so that little is seen too.
        let level = 3 + (tokens * 13 + most - 1) / most;
        // Writing to a String cannot fail.
        let _ = write!(
            paths.entry(level).or_default(),
            "M{x:.1} {y:.1}h{cell:.1}v{cell:.1}h-{cell:.1}z"
        );
    }
    for (level, path) in paths {
        let opacity = level as f64 / 16.0;
        svg.path(&path, &format!("fill=\"#4c84d4\" fill-opacity=\"{opacity:.2}\""));
    }
    for (i, &tokens) in traffic.tokens.iter().enumerate().filter(|t| *t.1 > 0) {
        if n <= 6 {
            let middle = (
                left + ((i % n) as f64 + 0.5) * cell,
                top + ((i / n) as f64 + 0.5) * cell + 4.0,
            );
            svg.text(middle.0, middle.1, Anchor::Middle, "ink", &short(tokens));
        }
    }
    if n <= LABELLED / 2 {
        for rank in 0..n {
            let x = left + (rank as f64 + 0.5) * cell;
            svg.text(x, top + side + 15.0, Anchor::Middle, "dim", &rank.to_string());
        }
    }
    let (first, last) = traffic.ranks(0);
    let mut notes = vec!["at most:".to_owned(), format!("{} keys", thousands(most))];
    if last > first {
        notes.extend(["a square:".to_owned(), format!("{} ranks each", last - first + 1)]);
    }
    for (i, note) in notes.iter().enumerate() {
        let y = top + 12.0 + 18.0 * i as f64;
        svg.text(left + side + 12.0, y, Anchor::Start, "dim", note);
    }
}

/// Keys that each rank receives, stage upon stage.
fn received(svg: &mut Svg, stats: &Stats) {
    let (left, top, width) = (84.0, 628.0, RIGHT + CHART - 84.0);
    svg.heading(left, top - 25.0, "keys received in a forward pass, by rank");
    let stages = &stats.received_by_stage;
    let world = stats.area.len();
    let apart = world * stages.len() <= MOST_PIECES;
    let bars = Bars {
        left,
        top,
        width,
        height: 110.0,
        stacks: (0..world)
            .map(|r| {
                let each = stages.iter().map(|s| s[r]);
                if apart { each.collect() } else { vec![each.sum()] }
            })
            .collect(),
        look: &|_, stage| rank_colour(stage),
    };
    bars.draw(svg);
    if !apart {
        return;
    }
    let mut x = left + width;
    for stage in (0..stages.len())
        .rev()
        .filter(|&s| stages[s].iter().any(|&n| n > 0))
    {
        svg.text(x, top - 14.0, Anchor::End, "dim", &format!("stage {stage}"));
        svg.rect([x - 69.0, top - 25.0, 12.0, 12.0], &rank_colour(stage));
        x -= 84.0;
    }
}
