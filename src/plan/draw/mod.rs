//! The picture of a plan: who computes what, how evenly, and what travels.

mod axis;
mod bars;
mod lanes;
mod matrix;
mod measured;

use super::timeline::StageStats;
use super::traffic::Traffic;
use super::{Placement, Stats};
use crate::types::draw::{Anchor, MOST_PIECES, Plot, Svg, rank_colour, thousands};
use crate::types::{Mask, Side, Slice};
use bars::Bars;
use lanes::Lanes;
use matrix::matrix;
pub use measured::{MeasuredPass, draw_measured};

const WIDTH: i64 = 1000;
/// Side of the mask's plot.
const SIZE: f64 = 450.0;
/// Left edge and width of the charts beside it.
const RIGHT: f64 = 620.0;
const CHART: f64 = 350.0;
/// Left edge of the mask and of the charts below it.
const LEFT: f64 = 84.0;
/// Where the passes begin, and room between them.
const LANES: f64 = 800.0;
const APART: f64 = 32.0;
/// Top of everything below the title.
const TOP: f64 = 92.0;
/// Groups of ranks in the matrix of what travels.
const GROUPS: usize = 48;
/// Ranks that bars are labelled for.
const LABELLED: usize = 32;

/// The mask coloured by the rank that computes each part, a bar of cells for every rank, the matrix of keys and queries that travel, a
/// bar of those received, stage upon stage, for every rank, and the predicted times of two ranks; as SVG of at most some hundred
/// kilobytes. `stats` are those of `mask` on `placement`.
pub fn draw_key(placement: &Placement, mask: &Mask, stats: &Stats) -> String {
    let traffic = match &stats.work {
        Some(work) => {
            let of = |side, remote| Traffic::of(placement, side, remote, GROUPS);
            of(Side::K, &work.keys).and(&of(Side::Q, &work.queries))
        }
        None => Traffic::new(mask, placement, GROUPS),
    };
    let passes = [(&stats.forward, false), (&stats.backward, true)].map(|(timeline, backward)| Lanes {
        timeline,
        backward,
        left: LEFT,
        width: RIGHT + CHART - LEFT,
    });
    let height = LANES + passes.iter().map(|p| p.height() + APART).sum::<f64>();
    let mut svg = Svg::new(WIDTH, height as i64);
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
    let summary = format!(
        "balance {:.4} (no placement of these chunks below {:.4}); {} keys travel, {share:.1}% of an all-gather",
        stats.balance,
        stats.balance_bound,
        thousands(volume.keys)
    );
    svg.text(24.0, 49.0, Anchor::Start, "dim", &summary);
    if volume.queries > 0 {
        let bytes = 100.0 * volume.bytes() as f64 / volume.keys_only_bytes.max(1) as f64;
        let words = format!(
            "{} queries travel too: {bytes:.1}% of the bytes of keys alone",
            thousands(volume.queries)
        );
        svg.text(24.0, 66.0, Anchor::Start, "dim", &words);
    }
    parts(&mut svg, placement, mask, stats);
    areas(&mut svg, stats);
    let what = if volume.queries > 0 {
        "keys and queries"
    } else {
        "keys"
    };
    matrix(&mut svg, &traffic, what);
    received(&mut svg, stats, what);
    let mut y = LANES;
    for pass in &passes {
        pass.draw(&mut svg, y);
        y += pass.height() + APART;
    }
    svg.finish()
}

/// The mask, each part in the colour of its rank.
fn parts(svg: &mut Svg, placement: &Placement, mask: &Mask, stats: &Stats) {
    let queries = placement.side(Side::Q);
    let plot = Plot::new(LEFT, TOP, SIZE, mask.total_q(), mask.total_k());
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
            LEFT,
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

/// Tokens that each rank receives, stage upon stage; `what` names them.
fn received(svg: &mut Svg, stats: &Stats, what: &str) {
    let (left, top, width) = (LEFT, 628.0, RIGHT + CHART - LEFT);
    let heading = format!("{what} received in a forward pass, by rank");
    svg.heading(left, top - 25.0, &heading);
    let tokens = |s: &StageStats| s.received + s.queries_received;
    let stages = &stats.forward.stages;
    let world = stats.area.len();
    let apart = world * stages.len() <= MOST_PIECES;
    let bars = Bars {
        left,
        top,
        width,
        height: 110.0,
        stacks: (0..world)
            .map(|r| {
                let each = stages.iter().map(|s| tokens(&s[r]));
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
        .filter(|&s| stages[s].iter().any(|rank| tokens(rank) > 0))
    {
        svg.text(x, top - 14.0, Anchor::End, "dim", &format!("stage {stage}"));
        svg.rect([x - 69.0, top - 25.0, 12.0, 12.0], &rank_colour(stage));
        x -= 84.0;
    }
}
