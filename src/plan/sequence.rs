//! When a pass computes the host stage: before the remote stages, behind them, or half of it at either end.

use super::cost::{Direction, Load};
use super::needs::Part;
use crate::types::{Config, HostStage, Range, Ranges};

/// Rows that the cut of a host stage is a multiple of, where it has as many: kernels take queries in tiles of so many or
/// fewer.
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
    /// The first half of the rank's queries: kernels whose thread blocks own keys are as well filled by each half as by both.
    Front,
    /// The other half.
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

/// The global token at which the host stage of a rank that owns `queries` is cut: those below are in front.
pub(super) fn boundary(queries: &Ranges) -> i64 {
    let half = queries.tokens() / 2;
    let mut row = if half < TILE { half } else { half - half % TILE };
    for run in queries.iter() {
        if row < run.len() {
            return run.start + row;
        }
        row -= run.len();
    }
    0
}

/// The parts of `q` below `boundary` and from there on, each with the number of its half; none that is empty.
pub(super) fn halves(q: Range, boundary: i64) -> impl Iterator<Item = (usize, Range)> {
    let cut = boundary.clamp(q.start, q.end);
    let both = [Range::new(q.start, cut), Range::new(cut, q.end)];
    both.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty())
}

/// What of `parts` a part of the host stage has.
pub(super) fn parts_in(part: HostPart, parts: &[Part], boundary: i64) -> Vec<Part> {
    let half = match part {
        HostPart::Whole => return parts.to_vec(),
        HostPart::Front => 0,
        HostPart::Back => 1,
    };
    let cut = |p: &Part| {
        let (_, rows) = halves(p.slice.q, boundary).find(|h| h.0 == half)?;
        let slice = p.slice.cut(&rows, &p.slice.k).tighten();
        (!slice.is_empty()).then_some(Part { slice, ..*p })
    };
    parts.iter().filter_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Band, Slice};

    #[test]
    fn halves_are_all_of_it_and_cut_at_a_tile() {
        for (lengths, front) in [
            (vec![300, 5, 400], 256),
            (vec![100, 51], 75),
            (vec![2, 2], 2),
            (vec![1], 0),
            (vec![], 0),
        ] {
            let mut at = 7;
            let runs: Vec<Range> = lengths
                .iter()
                .map(|n| {
                    at += 2 * n;
                    Range::new(at - n, at)
                })
                .collect();
            let cut = boundary(&Ranges::from_unsorted(runs.clone()));
            let mut tokens = [0, 0];
            for run in &runs {
                let parts: Vec<_> = halves(*run, cut).collect();
                parts.iter().for_each(|(half, rows)| tokens[*half] += rows.len());
                assert_eq!(parts[0].1.start, run.start);
                assert_eq!(parts[parts.len() - 1].1.end, run.end);
            }
            assert_eq!(tokens, [front, lengths.iter().sum::<i64>() - front]);
        }
    }

    #[test]
    fn parts_of_a_stage_have_its_cells() {
        let q = Range::new(10, 30);
        let slice = Slice::new(q, Range::new(0, 25), Band::new(-30, -4)).tighten();
        let all = [Part {
            slice,
            run: 1,
            row_shift: -5,
        }];
        let area = |part, at| {
            parts_in(part, &all, at)
                .iter()
                .map(|p| p.slice.area())
                .sum::<i64>()
        };
        for at in [0, 10, 11, 17, 30, 99] {
            assert_eq!(area(HostPart::Whole, at), slice.area());
            let front = area(HostPart::Front, at);
            assert_eq!(front + area(HostPart::Back, at), slice.area());
            let below = Range::new(10, at.clamp(10, 30));
            assert_eq!(front, slice.cut(&below, &slice.k).area());
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
