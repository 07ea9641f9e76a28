//! The sums of a reduction: what comes back for local rows, and over a mesh of hosts what a gateway adds up for another host.

use super::group::ReduceOp;
use super::group_moves::{Contribution, Source};
use crate::backend::Backend;
use crate::types::{Result, Tensor};

/// How a group is added up, and where what is added lies. One tensor of each for every tensor of the group.
pub(super) struct Sums<'a> {
    pub op: ReduceOp,
    /// This rank's own partial tensors.
    pub partial: &'a [Tensor],
    /// What other ranks sent, in the type that travels.
    pub staging: Vec<Tensor>,
    /// What other hosts summed, in the accumulator type.
    pub hosts: Vec<Tensor>,
    /// In the accumulator type.
    pub target: Vec<Tensor>,
}

impl Sums<'_> {
    /// What is there before the first contribution: nothing.
    pub fn clear(&self, backend: &dyn Backend) -> Result<()> {
        if self.op == ReduceOp::Lse {
            let mut pairs = self.target.chunks_exact(2);
            return pairs.try_for_each(|pair| backend.attn_init(pair[0], pair[1], None, None));
        }
        self.target.iter().try_for_each(|sum| backend.fill_zero(*sum))
    }

    /// Adds the contributions, one after the other.
    pub fn add(&self, backend: &dyn Backend, contributions: &[Contribution]) -> Result<()> {
        contributions.iter().try_for_each(|c| self.merge(backend, c))
    }

    fn merge(&self, backend: &dyn Backend, c: &Contribution) -> Result<()> {
        let sources = match c.source {
            Source::Rank => &self.staging,
            Source::Host => &self.hosts,
            Source::Own => self.partial,
        };
        let part = |t: &Tensor| t.rows(c.from.start, c.from.end);
        if self.op == ReduceOp::Lse {
            let pairs = sources.chunks_exact(2).zip(self.target.chunks_exact(2));
            for (new, sum) in pairs {
                backend.lse_reduce(part(&new[0]), part(&new[1]), sum[0], sum[1], &c.to)?;
            }
            return Ok(());
        }
        let mut each = sources.iter().zip(&self.target);
        each.try_for_each(|(new, sum)| backend.range_reduce(part(new), *sum, &c.to))
    }
}
