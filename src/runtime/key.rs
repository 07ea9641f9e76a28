//! Keys: a mask, an attention shape and a config, planned for this rank.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::context::{Context, Session};
use super::workspace::{self, Dims};
use super::{check, prepare};
use crate::device::Stream;
use crate::plan::{Plan, SidePlacement, Stats, verify};
use crate::types::{Allocator, AttnShape, Config, Mask, Result, Side};

/// What a plan is made from, on a given communicator.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub mask: Arc<Mask>,
    pub shape: AttnShape,
    pub config: Config,
}

impl Request {
    /// Everything that decides whether two requests are the same, the mask apart.
    fn settings(&self) -> impl PartialEq + Hash {
        let c = &self.config;
        let allocator = c.allocator.map(
            |Allocator {
                 alloc,
                 free,
                 userdata,
             }| { (alloc as usize, free as usize, userdata as usize) },
        );
        let plan = (
            c.chunk_size,
            c.min_chunks_per_rank,
            (c.placement, c.effort, c.balance_slack, c.top_percent),
            (c.degree_forward, c.degree_backward, c.rates),
        );
        (
            self.shape,
            plan,
            c.backward_high_precision_reduce,
            c.dsink_reduce,
            c.sanity_check,
            c.cache_size,
            allocator,
        )
    }

    /// For finding it in the cache of this process only.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.settings().hash(&mut hasher);
        self.mask.hash(&mut hasher);
        hasher.finish()
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Request) -> bool {
        self.settings() == other.settings()
            && (Arc::ptr_eq(&self.mask, &other.mask) || self.mask == other.mask)
    }
}

/// A request and what was planned for it; shared by the cache and every handle.
pub(super) struct KeyData {
    pub request: Request,
    pub plan: Plan,
    pub dims: Dims,
    pub prepared: AtomicBool,
    workspace_bytes: usize,
    stats: OnceLock<Stats>,
}

/// A plan on a communicator.
pub struct Key {
    context: Arc<Context>,
    data: Arc<KeyData>,
}

impl Key {
    /// Plans `mask` for the ranks of `context`, or takes the plan of an equal request from its cache. No communication.
    /// With `config.sanity_check` the plan is verified.
    pub fn create(
        context: &Arc<Context>,
        mask: &Arc<Mask>,
        shape: AttnShape,
        config: Config,
    ) -> Result<Arc<Key>> {
        let mut session = context.enter()?;
        let request = Request {
            mask: Arc::clone(mask),
            shape,
            config,
        };
        let hash = request.hash();
        let data = match session.state.cache.find(hash, &request) {
            Some(data) => data,
            None => {
                let data = Arc::new(KeyData::new(context, request)?);
                session
                    .state
                    .cache
                    .insert(hash, Arc::clone(&data), config.cache_size);
                data
            }
        };
        Ok(Arc::new(Key {
            context: Arc::clone(context),
            data,
        }))
    }

    /// The communicator it was made on.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// This rank's plan.
    pub fn plan(&self) -> &Plan {
        &self.data.plan
    }

    /// Whether two keys share one plan in memory, as equal requests do.
    pub fn shares_plan(&self, other: &Key) -> bool {
        Arc::ptr_eq(&self.data, &other.data)
    }

    /// The settings it was made with.
    pub fn config(&self) -> &Config {
        &self.data.request.config
    }

    /// The attention shape it was made for.
    pub fn shape(&self) -> &AttnShape {
        &self.data.request.shape
    }

    /// Compares plans with all ranks and takes workspace, unless that was done. Collective.
    pub fn prepare(&self, stream: Stream) -> Result<()> {
        check::stream(stream)?;
        self.collective(stream).map(drop)
    }

    /// Starts a collective call: a session on a prepared key.
    pub(super) fn collective(&self, stream: Stream) -> Result<Session<'_>> {
        let mut session = self.context.enter()?;
        if !self.data.prepared.load(Ordering::Acquire) {
            prepare::run(&mut session, &self.data, self.workspace_bytes()?, stream)?;
        }
        Ok(session)
    }

    /// Sizes of this rank's tensors and stages.
    pub(super) fn dims(&self) -> &Dims {
        &self.data.dims
    }

    /// The placement of one side.
    pub fn placement(&self, side: Side) -> &SidePlacement {
        self.data.plan.placement.side(side)
    }

    /// Tokens of `side` on this rank.
    pub fn local_tokens(&self, side: Side) -> Result<i64> {
        self.context.check_open()?;
        Ok(self.placement(side).tokens(self.context.rank()))
    }

    /// Global position of every local token of `side`, ascending.
    pub fn position_ids(&self, side: Side) -> Result<Vec<i64>> {
        self.context.check_open()?;
        Ok(self
            .placement(side)
            .runs(self.context.rank())
            .iter()
            .flat_map(|r| r.start..r.end)
            .collect())
    }

    /// What the plan comes to over all ranks. Made at the first call.
    pub fn stats(&self) -> Result<&Stats> {
        self.context.check_open()?;
        let r = &self.data.request;
        if let Some(stats) = self.data.stats.get() {
            return Ok(stats);
        }
        let made = Stats::new(&r.mask, &self.data.plan.placement, &r.shape, &r.config)?;
        Ok(self.data.stats.get_or_init(|| made))
    }

    /// Bytes of workspace that forward and backward need, the larger of the two.
    pub fn workspace_bytes(&self) -> Result<usize> {
        self.context.check_open()?;
        Ok(self.data.workspace_bytes)
    }

    /// The plan's hash, equal on ranks that planned the same.
    pub fn hash(&self) -> Result<u64> {
        self.context.check_open()?;
        Ok(self.data.plan.hash)
    }
}

impl KeyData {
    fn new(context: &Context, request: Request) -> Result<KeyData> {
        let Request { mask, shape, config } = &request;
        let plan = Plan::new(mask, shape, context.size(), context.rank(), config)?;
        if config.sanity_check {
            verify(&plan, mask)?;
        }
        let dims = Dims::new(&plan, shape, config);
        let workspace_bytes = workspace::bytes(&dims)?;
        let (prepared, stats) = (AtomicBool::new(false), OnceLock::new());
        Ok(KeyData {
            request,
            plan,
            dims,
            prepared,
            workspace_bytes,
            stats,
        })
    }
}
