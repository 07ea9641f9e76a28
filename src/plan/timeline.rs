//! What every rank does in every stage of a pass, and when, as far as that can be predicted.

use crate::types::Range;

/// When a stage is worked on: nanoseconds from the start of the pass. Empty where there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Its keys come in.
    pub fetch: Range,
    /// Its slices are computed.
    pub compute: Range,
    /// Backward: the gradients of its keys go back.
    pub reduce: Range,
}

impl StageTimes {
    /// When all of it is done.
    pub fn end(&self) -> i64 {
        self.fetch.end.max(self.compute.end).max(self.reduce.end)
    }
}

/// One stage of one rank. Tokens are keys, each with its K and V rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageStats {
    /// Visible cells that the rank computes.
    pub area: i64,
    /// Tokens that it receives before.
    pub received: i64,
    /// Tokens that it sends to others for their stage of the same number, counted once for every rank they go to.
    pub sent: i64,
    /// When, by the config's rates.
    pub times: StageTimes,
}

/// The stages of one pass on all ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// `[stage][rank]`, as many stages as the pass has.
    pub stages: Vec<Vec<StageStats>>,
}

impl Timeline {
    /// When `rank` is done with the pass.
    pub fn end(&self, rank: usize) -> i64 {
        self.stages.iter().map(|s| s[rank].times.end()).max().unwrap_or(0)
    }

    /// How long `rank` computes nothing before it computes `stage`.
    pub fn wait(&self, rank: usize, stage: usize) -> i64 {
        let free = stage
            .checked_sub(1)
            .map_or(0, |s| self.stages[s][rank].times.compute.end);
        self.stages[stage][rank].times.compute.start - free
    }

    /// How long `rank` computes nothing during the pass: before its stages, and behind the last one.
    pub fn waits(&self, rank: usize) -> i64 {
        let busy: i64 = self.stages.iter().map(|s| s[rank].times.compute.len()).sum();
        self.end(rank) - busy
    }

    /// The rank that is done last; the first of equals.
    pub fn slowest(&self) -> usize {
        (0..self.world())
            .max_by_key(|&r| (self.end(r), std::cmp::Reverse(r)))
            .unwrap_or(0)
    }

    /// The rank that is done nearest to the mean of all ranks; the first of equals.
    pub fn typical(&self) -> usize {
        let world = self.world();
        let sum: i128 = (0..world).map(|r| i128::from(self.end(r))).sum();
        let off = |r: &usize| (i128::from(self.end(*r)) * world as i128 - sum).abs();
        (0..world).min_by_key(off).unwrap_or(0)
    }

    fn world(&self) -> usize {
        self.stages.first().map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(fetch: Range, compute: Range, reduce: Range) -> StageStats {
        StageStats {
            times: StageTimes {
                fetch,
                compute,
                reduce,
            },
            ..StageStats::default()
        }
    }

    #[test]
    fn waits_are_what_computing_leaves() {
        let r = Range::new;
        let none = Range::default();
        let timeline = Timeline {
            stages: vec![
                vec![stage(none, r(0, 5), none), stage(none, r(0, 2), none)],
                vec![stage(r(0, 8), r(8, 10), r(10, 19)), stage(r(0, 1), r(2, 8), none)],
            ],
        };
        assert_eq!([timeline.end(0), timeline.end(1)], [19, 8]);
        assert_eq!(
            [timeline.wait(0, 0), timeline.wait(0, 1), timeline.wait(1, 1)],
            [0, 3, 0]
        );
        assert_eq!([timeline.waits(0), timeline.waits(1)], [3 + 9, 0]);
        assert_eq!((timeline.slowest(), timeline.typical()), (0, 0));
        assert_eq!(
            (Timeline::default().slowest(), Timeline::default().typical()),
            (0, 0)
        );
    }
}
