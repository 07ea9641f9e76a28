//! The predicted stages of a pass on a line of time.

use std::fmt::Write;

use crate::plan::{StageStats, StageTimes, Timeline};
use crate::types::Range;
use crate::types::draw::{Anchor, Svg, rank_colour, thousands};

/// Height of a lane, and from one to the next.
const LANE: f64 = 17.0;
const STEP: f64 = 21.0;
/// From the heading's baseline to the first rank, height of the text above the lanes of a rank, and of the axis.
const HEADING: f64 = 6.0;
const TITLE: f64 = 20.0;
const AXIS: f64 = 20.0;
/// Room between ranks.
const GAP: f64 = 10.0;
/// Bars from this width on say their stage.
const NUMBERED: f64 = 15.0;
/// Width of a letter, as far as it can be known.
const LETTER: f64 = 7.4;
/// From one label of the axis to the next at least, and between lines of a hatched wait.
const TICK: f64 = 80.0;
const HATCH: f64 = 7.0;

/// What goes on at once: name, and when it does in a stage.
type Lane = (&'static str, fn(&StageTimes) -> Range);
const COMPUTE: Lane = ("compute", |t| t.compute);
const FETCH: Lane = ("fetch", |t| t.fetch);
const REDUCE: Lane = ("reduce", |t| t.reduce);

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

    /// Nanoseconds that the width stands for.
    fn span(&self) -> i64 {
        self.timeline.end(self.timeline.slowest()).max(1)
    }

    fn x(&self, ns: i64) -> f64 {
        self.left + self.width * ns as f64 / self.span() as f64
    }

    /// Draws below `top`, where its heading stands.
    pub fn draw(&self, svg: &mut Svg, top: f64) {
        let name = if self.backward { "backward" } else { "forward" };
        let words = format!("{name} pass as predicted, in stages");
        svg.heading(self.left, top, &words);
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
            for (i, lane) in self.lanes().iter().enumerate() {
                self.lane(svg, rank, *lane, y + STEP * i as f64);
            }
            self.waits(svg, rank, y);
            y += STEP * self.lanes().len() as f64 + GAP;
        }
        self.axis(svg, y - GAP);
    }

    fn lane(&self, svg: &mut Svg, rank: usize, (name, of): Lane, y: f64) {
        svg.rect([self.left, y, self.width, LANE], "plot");
        svg.text(self.left - 7.0, y + 13.0, Anchor::End, "dim", name);
        for (i, stage) in self.timeline.stages.iter().enumerate() {
            let at = of(&stage[rank].times);
            if at.is_empty() {
                continue;
            }
            let (x, w) = (self.x(at.start), self.x(at.end) - self.x(at.start));
            // A hairline where it is too short to be seen.
            svg.rect([x, y, w.max(0.5), LANE], &rank_colour(i));
            if w >= NUMBERED {
                svg.text(x + w / 2.0, y + 13.0, Anchor::Middle, "on", &i.to_string());
            }
        }
    }

    /// Where nothing is computed between the start and the end of the rank's pass: hatched.
    fn waits(&self, svg: &mut Svg, rank: usize, y: f64) {
        let mut free = 0;
        let mut gaps = Vec::new();
        for stage in &self.timeline.stages {
            let at = stage[rank].times.compute;
            gaps.push((free, at.start));
            free = free.max(at.end);
        }
        gaps.push((free, self.timeline.end(rank)));
        for (start, end) in gaps.into_iter().filter(|g| g.0 < g.1) {
            let (from, to) = (self.x(start), self.x(end));
            svg.path(&hatch(from, to, y), "class=\"line\"");
            let words = format!("waits {}", duration(end - start));
            let (middle, half) = ((from + to) / 2.0, LETTER / 2.0 * words.len() as f64 + 3.0);
            if to - from >= 2.0 * half {
                svg.rect([middle - half, y + 1.0, 2.0 * half, LANE - 2.0], "plot");
                svg.text(middle, y + 13.0, Anchor::Middle, "dim", &words);
            }
        }
    }

    /// Round microseconds below `y`.
    fn axis(&self, svg: &mut Svg, y: f64) {
        let step = round_up(self.span() / (self.width / TICK) as i64 + 1);
        for ns in (0..=self.span()).step_by(step as usize) {
            let x = self.x(ns);
            svg.line([x, y, x, y + 5.0], false);
            svg.text(x, y + 18.0, Anchor::Middle, "dim", &duration(ns));
        }
    }
}

/// Lines from the lower left to the upper right that fill a lane from `from` to `to`.
fn hatch(from: f64, to: f64, y: f64) -> String {
    let mut path = String::new();
    let mut x = from;
    while x < to {
        // The part of the line at 45 degrees that lies left of `to`.
        let run = LANE.min(to - x);
        // Writing to a String cannot fail.
        let _ = write!(
            path,
            "M{x:.1} {:.1}L{:.1} {:.1}",
            y + LANE,
            x + run,
            y + LANE - run
        );
        x += HATCH;
    }
    path
}

/// The least 1, 2 or 5 times a power of ten that is not below `n`, for `n` of 1 or more.
fn round_up(n: i64) -> i64 {
    let mut power = 1i64;
    loop {
        for factor in [1, 2, 5] {
            match power.checked_mul(factor) {
                Some(round) if round < n => {}
                Some(round) => return round,
                None => return n,
            }
        }
        power = power.saturating_mul(10);
    }
}

/// Nanoseconds in the largest unit in which they are 1 or more.
fn duration(ns: i64) -> String {
    let (unit, name) = match ns {
        0 => return "0".to_owned(),
        1..=999 => (1, "ns"),
        1_000..=999_999 => (1_000, "us"),
        1_000_000..=999_999_999 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    // Three digits at least.
    let (whole, hundredths) = (ns / unit, ns % unit * 100 / unit);
    let digits = match whole {
        0..=9 => format!("{whole}.{hundredths:02}"),
        10..=99 => format!("{whole}.{}", hundredths / 10),
        _ => return format!("{} {name}", thousands(whole)),
    };
    let short = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{short} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        let steps: Vec<i64> = [1, 2, 3, 6, 11, 99, 501, 100_001].map(round_up).to_vec();
        assert_eq!(steps, [1, 2, 5, 10, 20, 100, 1000, 200_000]);
        assert_eq!(round_up(i64::MAX), i64::MAX);
    }

    #[test]
    fn durations_have_a_unit() {
        let words = [
            0,
            7,
            999,
            1000,
            12_345,
            123_456,
            9_990_000,
            20_000_000,
            61_000_000_000,
        ]
        .map(duration);
        assert_eq!(
            words,
            [
                "0", "7 ns", "999 ns", "1 us", "12.3 us", "123 us", "9.99 ms", "20 ms", "61 s"
            ]
        );
    }
}
