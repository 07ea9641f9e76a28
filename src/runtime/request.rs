//! What a key is asked to be.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::plan::{Origin, Placement};
use crate::types::{AttnShape, Config, Mask, Result, Side};

/// Masks that are placed together, with their weights.
pub(super) type Joint = Arc<Vec<(Arc<Mask>, i64)>>;

/// Who places tokens.
#[derive(Clone, Debug)]
pub(super) enum Placer {
    /// The planner, for the mask.
    Planner,
    /// The planner, for several masks together.
    Joint(Joint),
    /// Somebody else did.
    Given(Origin, Arc<Placement>),
}

impl Placer {
    /// The same in words for people.
    pub fn origin(&self) -> Origin {
        match self {
            Placer::Planner => Origin::Planner,
            Placer::Joint(_) => Origin::Joint,
            Placer::Given(origin, _) => *origin,
        }
    }
}

impl PartialEq for Placer {
    fn eq(&self, other: &Placer) -> bool {
        match (self, other) {
            (Placer::Planner, Placer::Planner) => true,
            (Placer::Joint(a), Placer::Joint(b)) => Arc::ptr_eq(a, b) || a == b,
            (Placer::Given(a, x), Placer::Given(b, y)) => a == b && (Arc::ptr_eq(x, y) || x == y),
            _ => false,
        }
    }
}

/// What a plan is made from, on a given communicator.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub mask: Arc<Mask>,
    pub shape: AttnShape,
    pub config: Config,
    pub placer: Placer,
}

impl Request {
    /// For finding it in the cache of this process only.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.mask, self.shape, self.config).hash(&mut hasher);
        match &self.placer {
            Placer::Planner => {}
            Placer::Joint(masks) => masks.hash(&mut hasher),
            Placer::Given(origin, placement) => {
                origin.hash(&mut hasher);
                for side in [Side::Q, Side::K] {
                    placement.side(side).hash().hash(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    /// Where tokens lie among `world` ranks. Errors as `Placement::new_joint`.
    pub fn place(&self, world: usize) -> Result<Arc<Placement>> {
        match &self.placer {
            Placer::Planner => Placement::new(&self.mask, world, &self.config).map(Arc::new),
            Placer::Joint(masks) => {
                let masks: Vec<(&Mask, i64)> = masks.iter().map(|(m, w)| (m.as_ref(), *w)).collect();
                Placement::new_joint(&masks, world, &self.config).map(Arc::new)
            }
            Placer::Given(_, placement) => Ok(Arc::clone(placement)),
        }
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Request) -> bool {
        (self.shape, self.config) == (other.shape, other.config)
            && (Arc::ptr_eq(&self.mask, &other.mask) || self.mask == other.mask)
            && self.placer == other.placer
    }
}
