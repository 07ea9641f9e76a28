//! What is fetched and computed when.

use super::guests::Guests;
use super::hierarchy::Routes;
use super::needs::{Needs, Part};
use super::placement::Placement;
use super::sequence::{self, HostPart, Sequence, parts_in};
use super::side::{PlacedRun, concatenate};
use super::slices::local_slices;
use super::staging::Staging;
use super::transfer::transfer;
use crate::types::{Config, Mesh, Piece, Ranges, Side, StageSlice, Transfer, TwoLevel};

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
    /// Queries of other ranks that are computed for here; none unless queries travel.
    pub guests: Guests,
}

impl Stage {
    /// Cells that are computed, for this rank's queries and for its guests.
    pub fn cells(&self) -> i64 {
        self.area + self.guests.area
    }

    /// What this rank sends and receives for it, all parts together.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        let lists: [&[Piece]; 7] = match &self.two_level {
            Some(t) => [
                &t.sends,
                &t.direct,
                &t.gateway,
                &t.forwards,
                &t.relayed,
                &self.guests.transfer.sends,
                &self.guests.transfer.recvs,
            ],
            None => [
                &self.transfer.sends,
                &self.transfer.recvs,
                &self.guests.transfer.sends,
                &self.guests.transfer.recvs,
                &[],
                &[],
                &[],
            ],
        };
        lists.into_iter().flatten()
    }

    /// Whether this rank moves no keys for it, neither for itself nor for others.
    pub fn is_idle(&self) -> bool {
        self.two_level
            .as_ref()
            .map_or(self.transfer.is_empty(), TwoLevel::is_empty)
    }
}

/// The stages of a forward or backward pass.
///
/// With a degree of 1 or more there are `degree` remote stages, on every rank equally many, however empty, and the host stage,
/// for which nothing is fetched: before them, or in a backward pass perhaps behind them, or half of it at either end, on every
/// rank alike. With degree 0 there is one stage: everything is fetched, and its
/// slices use both sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// In the order of computation.
    pub stages: Vec<Stage>,
}

impl Pass {
    /// Most remote stages.
    pub const MAX_DEGREE: i32 = Config::MAX_DEGREE;

    pub(super) fn new(
        placement: &Placement,
        rank: usize,
        needs: &Needs,
        staging: &Staging,
        mesh: Option<Mesh>,
    ) -> Pass {
        let keys = placement.side(Side::K);
        let groups = &staging.groups;
        let remote: Vec<Stage> = (0..groups[rank].len())
            .map(|i| {
                let recv = groups[rank][i].clone();
                Stage {
                    transfer: transfer(keys, rank, |peer| &groups[peer][i]),
                    two_level: mesh.map(|m| Routes::new(keys, m, |peer| &groups[peer][i]).of(rank)),
                    ..stage_of(needs, recv)
                }
            })
            .collect();
        let order = (staging.degree, staging.sequence);
        Pass::around(needs, placement, rank, order, remote)
    }

    /// `remote` stages, as many as the order says (0: one that has the host stage's slices too), and the host stage of `rank`.
    pub(super) fn around(
        needs: &Needs,
        placement: &Placement,
        rank: usize,
        (degree, sequence): (i32, Sequence),
        mut remote: Vec<Stage>,
    ) -> Pass {
        let own = concatenate(placement.side(Side::K).runs(rank).as_slice());
        let boundary = sequence::boundary(placement.side(Side::Q).runs(rank));
        let host = |part| stage(&parts_in(part, &needs.parts, boundary), &own, 0);
        if let (0, Some(only)) = (degree, remote.first_mut()) {
            let host = host(HostPart::Whole);
            only.slices.splice(0..0, host.slices);
            only.area += host.area;
            return Pass { stages: remote };
        }
        Pass {
            stages: sequence.around(host, remote),
        }
    }
}

fn stage(parts: &[Part], keys: &[PlacedRun], source: u8) -> Stage {
    let slices = local_slices(parts, keys, source);
    Stage {
        area: slices.iter().map(|s| s.slice.area()).sum(),
        slices,
        ..Stage::default()
    }
}

pub(super) fn stage_of(needs: &Needs, recv: Ranges) -> Stage {
    let slices = stage(&needs.parts, &concatenate(recv.as_slice()), 1);
    Stage { recv, ..slices }
}
