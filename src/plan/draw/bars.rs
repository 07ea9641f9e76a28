//! A chart of bars.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::LABELLED;
use crate::types::draw::{Anchor, Svg, short};

/// A chart of one bar for each rank; `stacks[i]` are the parts of rank i's bar, from the bottom.
pub(super) struct Bars<'a> {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub stacks: Vec<Vec<i64>>,
    pub look: &'a dyn Fn(usize, usize) -> String,
}

impl Bars<'_> {
    /// The longest bar.
    fn most(&self) -> i64 {
        let sums = self.stacks.iter().map(|s| s.iter().sum::<i64>());
        sums.max().unwrap_or(0).max(1)
    }

    /// Where `value` lies.
    pub fn y(&self, value: f64) -> f64 {
        self.top + self.height * (1.0 - value / self.most() as f64)
    }

    pub fn draw(&self, svg: &mut Svg) {
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
