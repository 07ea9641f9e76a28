//! Measured stages above what was predicted of them, on one line of time.

use super::axis::{AXIS, Axis, STEP, duration};
use super::lanes::{COMPUTE, FETCH, GAP, HEADING, Lane, Lanes, REDUCE, TITLE};
use super::{APART, CHART, LEFT, RIGHT, WIDTH};
use crate::plan::{Measured, StageTimes, Timeline};
use crate::types::Range;
use crate::types::draw::{Anchor, Svg};

/// Where the first pass begins.
const FIRST: f64 = 78.0;

/// One pass of the rank that is drawn.
pub struct MeasuredPass<'a> {
    /// "forward" or "backward".
    pub name: &'static str,
    /// What the rank did.
    pub measured: &'a Measured,
    /// What every rank was to do.
    pub predicted: &'a Timeline,
}

/// Passes of rank `rank` of `world`: when each stage was computed, fetched and reduced, above the prediction, waits hatched.
pub fn draw_measured(rank: usize, world: usize, passes: &[MeasuredPass<'_>]) -> String {
    let height = FIRST + passes.iter().map(|p| p.height(rank) + APART).sum::<f64>();
    let mut svg = Svg::new(WIDTH, height as i64);
    svg.heading(
        24.0,
        30.0,
        &format!("rank {rank} of {world}, measured above predicted"),
    );
    let words = "hatched: nothing could be computed, because a transfer was waited for (predicted: or was still to end)";
    svg.text(24.0, 49.0, Anchor::Start, "dim", words);
    let mut y = FIRST;
    for pass in passes {
        pass.draw(&mut svg, rank, y);
        y += pass.height(rank) + APART;
    }
    svg.finish()
}

impl MeasuredPass<'_> {
    fn predicted(&self, rank: usize) -> Vec<StageTimes> {
        self.predicted.stages.iter().map(|s| s[rank].times).collect()
    }

    /// The reductions have a lane where there are any, so that the lanes of both are the same.
    fn lanes(&self, rank: usize) -> &'static [Lane] {
        let mut both = self.predicted(rank);
        both.extend(&self.measured.stages);
        if both.iter().any(|s| !s.reduce.is_empty()) {
            &[COMPUTE, FETCH, REDUCE]
        } else {
            &[COMPUTE, FETCH]
        }
    }

    fn height(&self, rank: usize) -> f64 {
        HEADING + 2.0 * (TITLE + STEP * self.lanes(rank).len() as f64) + GAP + AXIS
    }

    /// Draws below `top`, where its heading stands.
    fn draw(&self, svg: &mut Svg, rank: usize, top: f64) {
        let (measured, predicted) = (self.measured, self.predicted);
        svg.heading(LEFT, top, &format!("{} pass, in stages", self.name));
        let axis = Axis {
            left: LEFT,
            width: RIGHT + CHART - LEFT,
            span: measured.end.max(predicted.end(rank)).max(1),
        };
        let y = top + HEADING;
        let words = format!("measured: {}", spent(measured.end, measured.exposed()));
        let waits = measured.waits.iter().map(|w| w.at).filter(|at| !at.is_empty());
        self.block(svg, rank, &axis, y, (&words, &measured.stages), waits);
        let y = y + TITLE + STEP * self.lanes(rank).len() as f64 + GAP;
        let words = format!(
            "predicted by the config's rates: {}",
            spent(predicted.end(rank), predicted.waits(rank))
        );
        let waits = Lanes::waits(predicted, rank);
        self.block(svg, rank, &axis, y, (&words, &self.predicted(rank)), waits);
        axis.draw(svg, y + TITLE + STEP * self.lanes(rank).len() as f64);
    }

    fn block(
        &self,
        svg: &mut Svg,
        rank: usize,
        axis: &Axis,
        y: f64,
        (words, stages): (&str, &[StageTimes]),
        waits: impl Iterator<Item = Range>,
    ) {
        svg.text(LEFT, y + 13.0, Anchor::Start, "dim", words);
        let y = y + TITLE;
        for (i, (name, of)) in self.lanes(rank).iter().enumerate() {
            axis.lane(svg, name, stages.iter().map(of), y + STEP * i as f64);
        }
        for at in waits {
            axis.wait(svg, at, y);
        }
    }
}

/// How long, and how much of it waiting.
fn spent(all: i64, waiting: i64) -> String {
    if waiting == 0 {
        return format!("{}, none of it waiting", duration(all));
    }
    let share = 100.0 * waiting as f64 / all.max(1) as f64;
    format!(
        "{}, {} of it waiting ({share:.1}%)",
        duration(all),
        duration(waiting)
    )
}
