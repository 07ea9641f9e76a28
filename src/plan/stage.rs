//! What is fetched and computed when.

use super::hierarchy::Routes;
use super::needs::Needs;
use super::placement::Placement;
use super::side::{PlacedRun, concatenate};
use super::slices::local_slices;
use super::transfer::transfer;
use crate::types::{Error, Mesh, Range, Ranges, Result, Side, StageSlice, Transfer, TwoLevel};

/// One step of a pass: a fetch, and the slices that can be computed when it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// Rows of key-side tensors that move before the stage's slices are computed. Its transpose moves gradients back.
    pub transfer: Transfer,
    /// The same movement over a mesh of hosts, where there is one. It fills the same receive buffer.
    pub two_level: Option<TwoLevel>,
    /// Global keys of the receive buffer; its rows are these keys in ascending order.
    pub recv: Ranges,
    /// What to compute, in local rows.
    pub slices: Vec<StageSlice>,
    /// Visible cells of the slices.
    pub area: i64,
}

impl Stage {
    /// Whether this rank moves nothing for it, neither for itself nor for others.
    pub fn is_idle(&self) -> bool {
        self.two_level
            .as_ref()
            .map_or(self.transfer.is_empty(), TwoLevel::is_empty)
    }
}

/// The stages of a forward or backward pass.
///
/// With a degree of 1 or more, `stages[0]` is the host stage (nothing is fetched for it) and `degree` remote stages
/// follow, on every rank equally many, however empty. With degree 0 there is one stage: everything is fetched, and its
/// slices use both sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// In the order of computation.
    pub stages: Vec<Stage>,
}

impl Pass {
    /// Most remote stages.
    pub const MAX_DEGREE: i32 = 8;

    pub(super) fn new(
        placement: &Placement,
        rank: usize,
        needs: &Needs,
        degree: i32,
        mesh: Option<Mesh>,
    ) -> Pass {
        let keys = placement.side(Side::K);
        let own = concatenate(keys.runs(rank).as_slice());
        let host = stage(needs, &own, 0);
        let groups: Vec<Vec<Ranges>> = needs.remote.iter().map(|r| cut_even(r, degree)).collect();
        let mut remote: Vec<Stage> = (0..groups[rank].len())
            .map(|i| {
                let recv = groups[rank][i].clone();
                Stage {
                    transfer: transfer(keys, rank, |peer| &groups[peer][i]),
                    two_level: mesh.map(|m| Routes::new(keys, m, |peer| &groups[peer][i]).of(rank)),
                    ..stage_of(needs, recv)
                }
            })
            .collect();
        match (degree, remote.first_mut()) {
            (0, Some(only)) => {
                only.slices.splice(0..0, host.slices);
                only.area += host.area;
            }
            _ => remote.insert(0, host),
        }
        Pass { stages: remote }
    }
}

/// The stages' number must fit the schedule; names the config field that does not.
pub(super) fn check_degree(name: &str, degree: i32) -> Result<()> {
    if (0..=Pass::MAX_DEGREE).contains(&degree) {
        return Ok(());
    }
    let most = Pass::MAX_DEGREE;
    Err(Error::argument(format!(
        "{name} is {degree}; it must be 0 to {most}"
    )))
}

fn stage(needs: &Needs, keys: &[PlacedRun], source: u8) -> Stage {
    let slices = local_slices(&needs.parts, keys, source);
    Stage {
        area: slices.iter().map(|s| s.slice.area()).sum(),
        slices,
        ..Stage::default()
    }
}

fn stage_of(needs: &Needs, recv: Ranges) -> Stage {
    let slices = stage(needs, &concatenate(recv.as_slice()), 1);
    Stage { recv, ..slices }
}

/// What a rank fetches, cut into one group for each remote stage: contiguous, and equal to a token, so that each has
/// 512 tokens or more whenever all of them can. Degree 0 is one group.
pub(super) fn cut_even(remote: &Ranges, degree: i32) -> Vec<Ranges> {
    let groups = i64::from(degree.max(1));
    if groups == 1 {
        return vec![remote.clone()];
    }
    let total = remote.tokens();
    let mut runs = remote.iter().copied();
    let mut run = Range::default();
    let mut taken = 0;
    (1..=groups)
        .map(|i| {
            let end = total * i / groups;
            let mut group = Vec::new();
            while taken < end {
                if run.is_empty() {
                    let Some(next) = runs.next() else { break };
                    run = next;
                }
                let cut = Range::new(run.start, run.end.min(run.start + end - taken));
                group.push(cut);
                taken += cut.len();
                run.start = cut.end;
            }
            Ranges::from_unsorted(group)
        })
        .collect()
}
