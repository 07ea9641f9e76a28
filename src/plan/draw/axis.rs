//! A line of time, with lanes on it.

use std::fmt::Write;

use crate::types::Range;
use crate::types::draw::{Anchor, Svg, rank_colour, thousands};

/// Height of a lane, and from one to the next.
pub(super) const LANE: f64 = 17.0;
pub(super) const STEP: f64 = 21.0;
/// Height of the axis.
pub(super) const AXIS: f64 = 20.0;
/// Bars from this width on say their stage.
const NUMBERED: f64 = 15.0;
/// Width of a letter, as far as it can be known.
const LETTER: f64 = 7.4;
/// From one label of the axis to the next at least, and between lines of a hatched wait.
const TICK: f64 = 80.0;
const HATCH: f64 = 7.0;

/// Where the line lies, and the nanoseconds that its width stands for, 1 or more.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    pub left: f64,
    pub width: f64,
    pub span: i64,
}

impl Axis {
    fn x(&self, ns: i64) -> f64 {
        self.left + self.width * ns as f64 / self.span as f64
    }

    /// A lane whose top is `y`: when each stage is worked on.
    pub fn lane(&self, svg: &mut Svg, name: &str, stages: impl Iterator<Item = Range>, y: f64) {
        svg.rect([self.left, y, self.width, LANE], "plot");
        svg.text(self.left - 7.0, y + 13.0, Anchor::End, "dim", name);
        for (i, at) in stages.enumerate().filter(|(_, at)| !at.is_empty()) {
            let (x, w) = (self.x(at.start), self.x(at.end) - self.x(at.start));
            // A hairline where it is too short to be seen.
            svg.rect([x, y, w.max(0.5), LANE], &rank_colour(i));
            if w >= NUMBERED {
                svg.text(x + w / 2.0, y + 13.0, Anchor::Middle, "on", &i.to_string());
            }
        }
    }

    /// A wait in the lane whose top is `y`: hatched.
    pub fn wait(&self, svg: &mut Svg, at: Range, y: f64) {
        let (from, to) = (self.x(at.start), self.x(at.end));
        svg.path(&hatch(from, to, y), "class=\"line\"");
        let words = format!("waits {}", duration(at.len()));
        let (middle, half) = ((from + to) / 2.0, LETTER / 2.0 * words.len() as f64 + 3.0);
        if to - from >= 2.0 * half {
            svg.rect([middle - half, y + 1.0, 2.0 * half, LANE - 2.0], "plot");
            svg.text(middle, y + 13.0, Anchor::Middle, "dim", &words);
        }
    }

    /// Round times below `y`.
    pub fn draw(&self, svg: &mut Svg, y: f64) {
        let step = round_up(self.span / (self.width / TICK) as i64 + 1);
        for ns in (0..=self.span).step_by(step as usize) {
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
pub(super) fn duration(ns: i64) -> String {
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
