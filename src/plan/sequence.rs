//! When a pass computes the host stage: before the remote stages, behind them, or half of it at either end.

use super::cost::{Direction, Load};
use super::side::PlacedRun;
use crate::types::{Config, HostStage, Range, Ranges};

/// Rows that the cut of a host stage is a multiple of, where it has as many: kernels take keys in tiles of so many.
const TILE: i64 = 128;

/// The order of a pass's stages, the same on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sequence {
    /// The host stage hides the first fetch.
    #[default]
    First = 0,
    /// It hides the last reduction.
    Last = 1,
    /// Half of it hides the one, half of it the other.
    Split = 2,
}

/// What is computed of a host stage at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostPart {
    Whole,
    /// Keys of the first half of the rank's rows.
    Front,
    /// The other keys.
    Back,
}

impl Sequence {
    /// Those to choose from, the simplest first: for equal ends it is the one taken.
    pub fn choices(config: &Config, direction: Direction) -> &'static [Sequence] {
        match (direction, config.bwd_hide_tail_reduce) {
            (Direction::Forward, _) | (_, HostStage::First) => &[Sequence::First],
            (_, HostStage::Last) => &[Sequence::Last],
            (_, HostStage::Split) => &[Sequence::Split],
            (_, HostStage::Auto) => &[Sequence::First, Sequence::Last, Sequence::Split],
        }
    }

    /// What is computed of the host stage before the remote stages, and behind them.
    fn parts(self) -> [Option<HostPart>; 2] {
        match self {
            Sequence::First => [Some(HostPart::Whole), None],
            Sequence::Last => [None, Some(HostPart::Whole)],
            Sequence::Split => [Some(HostPart::Front), Some(HostPart::Back)],
        }
    }

    /// Stages before the first remote one.
    pub fn before(self) -> usize {
        usize::from(self.parts()[0].is_some())
    }

    /// Stages of a pass with so many remote ones, at least one.
    pub fn stages(self, degree: usize) -> usize {
        degree + self.parts().iter().flatten().count()
    }

    /// All stages in their order: what `host` makes of the host stage's parts, and `remote`.
    pub fn around<T>(self, host: impl Fn(HostPart) -> T, remote: impl IntoIterator<Item = T>) -> Vec<T> {
        let [before, behind] = self.parts().map(|part| part.map(&host));
        before.into_iter().chain(remote).chain(behind).collect()
    }

    /// The loads of all stages, with a host stage whose halves have so many cells.
    pub fn loads(self, halves: [i64; 2], remote: impl IntoIterator<Item = Load>) -> Vec<Load> {
        let host = |part| Load {
            area: match part {
                HostPart::Whole => halves[0] + halves[1],
                HostPart::Front => halves[0],
                HostPart::Back => halves[1],
            },
            ..Load::default()
        };
        self.around(host, remote)
    }
}

/// The row at which `rows` own keys are cut in two.
fn middle(rows: i64) -> i64 {
    let half = rows / 2;
    if half < TILE { half } else { half - half % TILE }
}

/// Those of a rank's keys that a part of its host stage has. `own`: all of them, in rows from 0.
pub(super) fn keys_of(part: HostPart, own: &[PlacedRun]) -> Vec<PlacedRun> {
    let rows = own.last().map_or(0, |run| run.row + run.tokens.len());
    let part = match part {
        HostPart::Whole => Range::new(0, rows),
        HostPart::Front => Range::new(0, middle(rows)),
        HostPart::Back => Range::new(middle(rows), rows),
    };
    let cut = |run: &PlacedRun| {
        let shift = run.row - run.tokens.start;
        let rows = run.tokens.shift(shift).intersect(&part);
        PlacedRun {
            tokens: rows.shift(-shift),
            row: rows.start,
        }
    };
    own.iter().map(cut).filter(|run| !run.tokens.is_empty()).collect()
}

/// The keys of `own` that are in the front half.
pub(super) fn front(own: &Ranges) -> Vec<Range> {
    let placed = super::side::concatenate(own.as_slice());
    let kept = keys_of(HostPart::Front, &placed);
    kept.into_iter().map(|run| run.tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::side::concatenate;

    #[test]
    fn halves_are_all_of_it_and_cut_at_a_tile() {
        for (lengths, cut) in [
            (vec![300, 5, 400], 256),
            (vec![100, 51], 75),
            (vec![1], 0),
            (vec![], 0),
        ] {
            let mut at = 7;
            let tokens: Vec<Range> = lengths
                .iter()
                .map(|n| {
                    at += 2 * n;
                    Range::new(at - n, at)
                })
                .collect();
            let own = concatenate(&tokens);
            let [front_keys, back] = [HostPart::Front, HostPart::Back].map(|part| keys_of(part, &own));
            assert_eq!(front_keys.iter().map(|r| r.tokens.len()).sum::<i64>(), cut);
            let both: Ranges = front_keys.iter().chain(&back).map(|r| r.tokens).collect();
            assert_eq!(both.as_slice(), tokens);
            assert!(back.first().is_none_or(|r| r.row == cut));
            let rows = |runs: &[PlacedRun]| -> Vec<_> { runs.iter().map(|r| (r.tokens, r.row)).collect() };
            assert_eq!(rows(&keys_of(HostPart::Whole, &own)), rows(&own));
            let ranges = Ranges::from_unsorted(tokens);
            assert_eq!(front(&ranges).iter().map(Range::len).sum::<i64>(), cut);
        }
    }

    #[test]
    fn remote_stages_stand_where_the_order_says() {
        let order = |s: Sequence| s.around(|part| format!("{part:?}"), ["1".to_owned(), "2".to_owned()]);
        assert_eq!(order(Sequence::First), ["Whole", "1", "2"]);
        assert_eq!(order(Sequence::Last), ["1", "2", "Whole"]);
        assert_eq!(order(Sequence::Split), ["Front", "1", "2", "Back"]);
        for s in [Sequence::First, Sequence::Last, Sequence::Split] {
            assert_eq!(order(s)[s.before()], "1");
            assert_eq!(order(s).len(), s.stages(2));
        }
    }
}
