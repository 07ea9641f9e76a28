//! Keys: a mask, an attention shape and a config, planned for this rank.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::context::{Context, Session};
use super::workspace::{self, Dims};
use super::{check, prepare};
use crate::device::{Stream, fault};
use crate::plan::{Origin, Placement, Plan, SidePlacement, Stats, draw_key, explain};
use crate::types::{AttnShape, Config, Error, Mask, Result, Side};

/// What a plan is made from, on a given communicator.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub mask: Arc<Mask>,
    pub shape: AttnShape,
    pub config: Config,
    /// Where tokens lie already, and who said so; `None` lets the planner place them.
    pub placement: Option<(Origin, Arc<Placement>)>,
}

impl Request {
    /// For finding it in the cache of this process only.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.mask, self.shape, self.config).hash(&mut hasher);
        if let Some((origin, placement)) = &self.placement {
            origin.hash(&mut hasher);
            for side in [Side::Q, Side::K] {
                placement.side(side).hash().hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Request) -> bool {
        (self.shape, self.config) == (other.shape, other.config)
            && (Arc::ptr_eq(&self.mask, &other.mask) || self.mask == other.mask)
            && match (&self.placement, &other.placement) {
                (None, None) => true,
                (Some((a, x)), Some((b, y))) => a == b && (Arc::ptr_eq(x, y) || x == y),
                _ => false,
            }
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
    /// With `config.sanity_check` the planner verifies what it made.
    pub fn create(
        context: &Arc<Context>,
        mask: &Arc<Mask>,
        shape: AttnShape,
        config: Config,
    ) -> Result<Arc<Key>> {
        Key::find_or_plan(
            context,
            Request {
                mask: Arc::clone(mask),
                shape,
                config,
                placement: None,
            },
        )
    }

    /// As `create`, with tokens placed by the caller: `placement` is for as many ranks as `context` has and for the
    /// totals of `mask`, else `Status::InvalidArgument`.
    pub fn create_with_placement(
        context: &Arc<Context>,
        mask: &Arc<Mask>,
        shape: AttnShape,
        config: Config,
        placement: Placement,
    ) -> Result<Arc<Key>> {
        if placement.world() != context.size() {
            return Err(Error::argument(format!(
                "the placement is for {} ranks and the communicator has {}; they must be equal",
                placement.world(),
                context.size()
            )));
        }
        Key::find_or_plan(
            context,
            Request {
                mask: Arc::clone(mask),
                shape,
                config,
                placement: Some((Origin::Caller, Arc::new(placement))),
            },
        )
    }

    /// Plans another mask with the same totals for tokens that lie as this key placed them. Of `config` the fields
    /// that decide about placement have no effect.
    pub fn create_for_new_mask(
        &self,
        mask: &Arc<Mask>,
        shape: AttnShape,
        config: Config,
    ) -> Result<Arc<Key>> {
        let placement = Arc::clone(&self.data.plan.placement);
        Key::find_or_plan(
            &self.context,
            Request {
                mask: Arc::clone(mask),
                shape,
                config,
                placement: Some((Origin::OtherKey, placement)),
            },
        )
    }

    /// The key that was made last on `context`, from its cache or anew, as a handle of its own.
    /// `Status::InvalidArgument` when none was made.
    pub fn last(context: &Arc<Context>) -> Result<Arc<Key>> {
        let session = context.enter()?;
        let last = session.state.last.as_ref();
        let data = last.ok_or_else(|| Error::argument("no key was made on this communicator yet"))?;
        Ok(Arc::new(Key {
            context: Arc::clone(context),
            data: Arc::clone(data),
        }))
    }

    fn find_or_plan(context: &Arc<Context>, request: Request) -> Result<Arc<Key>> {
        let mut session = context.enter()?;
        fault::point("key_create", context.rank())?;
        let config = resolve_mesh(context, request.config)?;
        let request = Request { config, ..request };
        let (hash, limit) = (request.hash(), config.cache_size);
        let data = match session.state.cache.find(hash, &request) {
            Some(data) => data,
            None => {
                let data = Arc::new(KeyData::new(context, request)?);
                session.state.cache.insert(hash, Arc::clone(&data), limit);
                data
            }
        };
        session.state.last = Some(Arc::clone(&data));
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

    /// Global position of every local token of `side`, ascending; as many as `local_tokens` says. Made one by one: a list
    /// of 2^31 of them takes 16 GiB.
    pub fn position_ids(&self, side: Side) -> Result<impl Iterator<Item = i64>> {
        self.context.check_open()?;
        let runs = self.placement(side).runs(self.context.rank());
        Ok(runs.iter().flat_map(|r| r.start..r.end))
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

    /// Why the plan is as it is, what each stage waits for: text for people.
    pub fn explain(&self) -> Result<String> {
        let stats = self.stats()?;
        let Request {
            mask,
            config,
            placement,
            ..
        } = &self.data.request;
        let origin = placement.as_ref().map_or(Origin::Planner, |p| p.0);
        Ok(explain(&self.data.plan, mask, config, origin, stats))
    }

    /// A picture of who computes what and what travels, as SVG.
    pub fn draw(&self) -> Result<String> {
        let stats = self.stats()?;
        Ok(draw_key(
            &self.data.plan.placement,
            &self.data.request.mask,
            stats,
        ))
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

/// The config with the communicator's mesh, where it asks for group collectives over one.
fn resolve_mesh(context: &Context, config: Config) -> Result<Config> {
    let mesh = if config.hierarchical_comm {
        context.mesh()
    } else {
        None
    };
    if config.hierarchical_comm && mesh.is_none() {
        let message = "config.hierarchical_comm is set, but nothing says which ranks share a host: set the mesh of the \
                       communicator first";
        return Err(Error::argument(message));
    }
    Ok(Config { mesh, ..config })
}

impl KeyData {
    fn new(context: &Context, request: Request) -> Result<KeyData> {
        let Request {
            mask, shape, config, ..
        } = &request;
        let plan = match &request.placement {
            None => Plan::new(mask, shape, context.size(), context.rank(), config)?,
            Some((_, placement)) => {
                let placement = Arc::clone(placement);
                Plan::with_placement(mask, shape, placement, context.rank(), config)?
            }
        };
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
