//! What a pass of one rank was measured to do, and when.

use super::timeline::StageTimes;
use crate::types::Range;

/// Which way a stage's transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Travel {
    /// Keys, and queries of others, come in.
    Fetch,
    /// Gradients, and results for queries of others, go back.
    Reduce,
}

impl Travel {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Travel::Fetch => "fetch",
            Travel::Reduce => "reduce",
        }
    }
}

/// A time in which nothing could be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What was waited for.
    pub travel: Travel,
    /// Of which stage.
    pub stage: usize,
    /// Nanoseconds from the start of the pass.
    pub at: Range,
}

/// One pass of one rank, in nanoseconds from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// By stage, as predicted ones are.
    pub stages: Vec<StageTimes>,
    /// In the order of time.
    pub waits: Vec<Wait>,
    /// When the call's work was done.
    pub end: i64,
}

impl Measured {
    /// How long nothing could be computed because of one stage's fetch, or its reduction.
    pub fn waited(&self, travel: Travel, stage: usize) -> i64 {
        let of_stage = |w: &&Wait| w.travel == travel && w.stage == stage;
        self.waits.iter().filter(of_stage).map(|w| w.at.len()).sum()
    }

    /// How long nothing could be computed because of any transfer: communication that computing does not hide.
    pub fn exposed(&self) -> i64 {
        self.waits.iter().map(|w| w.at.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_added_up_by_what_they_were_for() {
        let wait = |travel, stage, start, end| Wait {
            travel,
            stage,
            at: Range::new(start, end),
        };
        let measured = Measured {
            waits: vec![
                wait(Travel::Fetch, 1, 10, 14),
                wait(Travel::Reduce, 1, 20, 21),
                wait(Travel::Fetch, 1, 30, 32),
                wait(Travel::Fetch, 2, 40, 48),
            ],
            ..Measured::default()
        };
        assert_eq!(measured.waited(Travel::Fetch, 1), 6);
        assert_eq!(measured.waited(Travel::Reduce, 1), 1);
        assert_eq!(measured.waited(Travel::Reduce, 2), 0);
        assert_eq!(measured.exposed(), 15);
    }
}
