//! The predicted stages of a pass on a line of time.

use super::axis::{AXIS, Axis, STEP, duration};
use crate::plan::{StageStats, StageTimes, Timeline};
use crate::types::Range;
use crate::types::draw::{Anchor, Svg};

/// From the heading's baseline to the first rank, and height of the text above the lanes of a rank.
pub(super) const HEADING: f64 = 6.0;
pub(super) const TITLE: f64 = 20.0;
/// Room between ranks.
pub(super) const GAP: f64 = 10.0;
/// What goes on at once: name, and when it does in a stage.
pub(super) type Lane = (&'static str, fn(&StageTimes) -> Range);
pub(super) const COMPUTE: Lane = ("compute", |t| t.compute);
pub(super) const FETCH: Lane = ("fetch", |t| t.fetch);
pub(super) const REDUCE: Lane = ("reduce", |t| t.reduce);

/// The lanes of the slowest rank and of the one nearest to the mean.
pub(super) struct Lanes<'a> {
    pub timeline: &'a Timeline,
    pub backward: bool,
    pub left: f64,
    pub width: f64,
}

impl Lanes<'_> {
    /// Forward computes and fetches; backward also returns gradients, and so does forward results where queries travel.
    fn lanes(&self) -> &'static [Lane] {
        let returns = |s: &StageStats| !s.times.reduce.is_empty();
        if self.backward || self.timeline.stages.iter().flatten().any(returns) {
            &[COMPUTE, FETCH, REDUCE]
        } else {
            &[COMPUTE, FETCH]
        }
    }

    /// Who is drawn, and as what.
    fn ranks(&self) -> Vec<(usize, &'static str)> {
        let (slowest, typical) = (self.timeline.slowest(), self.timeline.typical());
        if slowest == typical {
            return vec![(slowest, "the slowest")];
        }
        vec![(slowest, "the slowest"), (typical, "nearest to the mean")]
    }

    /// Height of all that `draw` draws.
    pub fn height(&self) -> f64 {
        let block = TITLE + STEP * self.lanes().len() as f64;
        let ranks = self.ranks().len() as f64;
        HEADING + ranks * block + (ranks - 1.0) * GAP + AXIS
    }

    /// Draws below `top`, where its heading stands.
    pub fn draw(&self, svg: &mut Svg, top: f64) {
        let name = if self.backward { "backward" } else { "forward" };
        let words = format!("{name} pass as predicted, in stages");
        svg.heading(self.left, top, &words);
        let axis = Axis {
            left: self.left,
            width: self.width,
            span: self.timeline.end(self.timeline.slowest()).max(1),
        };
        let mut y = top + HEADING;
        for (rank, note) in self.ranks() {
            let (end, waits) = (self.timeline.end(rank), self.timeline.waits(rank));
            let waiting = match waits {
                0 => "all of it computing".to_owned(),
                _ => format!("{} of it waiting", duration(waits)),
            };
            let words = format!("rank {rank}, {note}: {}, {waiting}", duration(end));
            svg.text(self.left, y + 13.0, Anchor::Start, "dim", &words);
            y += TITLE;
            for (i, (name, of)) in self.lanes().iter().enumerate() {
                let stages = self.timeline.stages.iter().map(|s| of(&s[rank].times));
                axis.lane(svg, name, stages, y + STEP * i as f64);
            }
            for at in Lanes::waits(self.timeline, rank) {
                axis.wait(svg, at, y);
            }
            y += STEP * self.lanes().len() as f64 + GAP;
        }
        axis.draw(svg, y - GAP);
    }

    /// Where nothing is computed between the start and the end of the rank's pass.
    pub fn waits(timeline: &Timeline, rank: usize) -> impl Iterator<Item = Range> {
        let mut free = 0;
        let mut gaps = Vec::new();
        for stage in &timeline.stages {
            let at = stage[rank].times.compute;
            gaps.push((free, at.start));
            free = free.max(at.end);
        }
        gaps.push((free, timeline.end(rank)));
        let waits = gaps.into_iter().filter(|g| g.0 < g.1);
        waits.map(|(start, end)| Range::new(start, end))
    }
}
