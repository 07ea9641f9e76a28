//! Keys: a mask, an attention shape and a config, planned for this rank.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::context::{Context, Session};
use super::order::Order;
use super::packing::PassPacking;
use super::profile::{Tape, Tapes};
use super::request::{Joint, Placer, Request};
use super::stage_tiles::PassTiles;
use super::workspace::{self, Dims, KernelBytes};
use super::{check, key_device, prepare};
use crate::device::cuda::free_behind;
use crate::device::{Stream, fault};
use crate::plan::{
    Explanation, HostVolume, Origin, Placement, Plan, SidePlacement, Stats, draw_key, explain,
};
use crate::types::{AttnShape, Config, Device, Error, KernelChoice, Mask, Result, Side, Status};

/// A request and what was planned for it; shared by the cache and every handle.
pub(super) struct KeyData {
    pub request: Request,
    pub plan: Plan,
    pub dims: Dims,
    pub prepared: AtomicBool,
    /// How keys travel.
    pub forward_packing: PassPacking,
    pub backward_packing: PassPacking,
    /// On a CUDA device: tiles of the stages.
    pub forward_tiles: PassTiles,
    pub backward_tiles: PassTiles,
    /// In which the calls that use them follow each other.
    order: Arc<Order>,
    /// What kernels work in; `None` while tiles for plain calls have not been made.
    pub kernel_bytes: Mutex<Option<KernelBytes>>,
    /// What calls were measured to do, where they are.
    pub tapes: Option<Tapes>,
    stats: OnceLock<Stats>,
    /// What crosses the hosts of the mesh that was asked about last.
    hosts: Mutex<Option<Arc<HostVolume>>>,
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
                placer: Placer::Planner,
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
                placer: Placer::Given(Origin::Caller, Arc::new(placement)),
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
                placer: Placer::Given(Origin::OtherKey, placement),
            },
        )
    }

    /// The key that was made last on `context`, from its cache or anew, as a handle of its own.
    /// `Status::InvalidArgument` when none was made.
    pub fn last(context: &Arc<Context>) -> Result<Arc<Key>> {
        let turn = context.enter()?;
        let last = turn.state.last.as_ref();
        let data = last.ok_or_else(|| Error::argument("no key was made on this communicator yet"))?;
        Ok(Arc::new(Key {
            context: Arc::clone(context),
            data: Arc::clone(data),
        }))
    }

    /// One key for each mask, all on one placement that balances the masks together: areas and received tokens count by
    /// weight, the number of layers that have the mask. Each key is as if made by `create` otherwise. All or none.
    ///
    /// Errors as `create`, and `Status::InvalidArgument` without masks, with different totals, with a weight below 1, and
    /// when the weighted areas come to more than 2^62 cells or the weights times the longer total to more than 2^42.
    pub fn create_joint(
        context: &Arc<Context>,
        masks: Vec<(Arc<Mask>, i64)>,
        shape: AttnShape,
        config: Config,
    ) -> Result<Vec<Arc<Key>>> {
        if masks.is_empty() {
            return Err(Error::argument(
                "there are no masks; a placement needs at least one",
            ));
        }
        let joint: Joint = Arc::new(masks);
        let of = |(mask, _): &(Arc<Mask>, i64)| Request {
            mask: Arc::clone(mask),
            shape,
            config,
            placer: Placer::Joint(Arc::clone(&joint)),
        };
        Key::find_or_plan_all(context, joint.iter().map(of).collect())
    }

    fn find_or_plan(context: &Arc<Context>, request: Request) -> Result<Arc<Key>> {
        let made = Key::find_or_plan_all(context, vec![request])?;
        // One request gives one key.
        made.into_iter()
            .next()
            .ok_or_else(|| Error::internal("no key was made"))
    }

    /// Keys for requests that place tokens alike, the last of them being the one made last.
    fn find_or_plan_all(context: &Arc<Context>, requests: Vec<Request>) -> Result<Vec<Arc<Key>>> {
        let mut turn = context.enter()?;
        fault::point("key_create", context.rank())?;
        let mut placement: Option<Arc<Placement>> = None;
        let mut found = Vec::with_capacity(requests.len());
        for request in requests {
            let config = Config {
                mesh: context.mesh_for(request.config.hierarchical_comm)?,
                ..request.config
            };
            let request = Request { config, ..request };
            let hash = request.hash();
            let data = turn.state.cache.find(hash, &request);
            if let Some(data) = &data {
                placement = Some(Arc::clone(&data.plan.placement));
            }
            found.push((hash, request, data));
        }
        let mut made: Vec<(u64, Arc<KeyData>, Option<usize>)> = Vec::with_capacity(found.len());
        for (hash, request, data) in found {
            let limit = request.config.cache_size;
            // A mask may be named twice.
            let twin = made.iter().find(|(h, d, _)| *h == hash && d.request == request);
            let (data, new) = match data.or_else(|| twin.map(|t| Arc::clone(&t.1))) {
                Some(data) => (data, false),
                None => {
                    let placed = match &placement {
                        Some(placed) => Arc::clone(placed),
                        None => request.place(context.size())?,
                    };
                    placement = Some(Arc::clone(&placed));
                    (Arc::new(KeyData::new(context, request, placed)?), true)
                }
            };
            made.push((hash, data, new.then_some(limit)));
        }
        // Only now, so that a failure leaves the cache as it was.
        let keys = made.into_iter().map(|(hash, data, limit)| {
            if let Some(limit) = limit {
                turn.state.cache.insert(hash, Arc::clone(&data), limit);
            }
            turn.state.last = Some(Arc::clone(&data));
            Arc::new(Key {
                context: Arc::clone(context),
                data,
            })
        });
        Ok(keys.collect())
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
        check::stream(self.context.device(), stream)?;
        self.collective(stream).map(drop)
    }

    /// Starts a collective call: a session on a prepared key.
    pub(super) fn collective(&self, stream: Stream) -> Result<Session<'_>> {
        let mut session = self.context.enter_on(stream)?;
        let prepared = self.data.prepared.load(Ordering::Acquire);
        session.expect_collective(prepared)?;
        if !prepared {
            prepare::run(&mut session, self, stream)?;
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

    /// What crosses hosts, and what stays inside one, on the mesh that the key was made for, or else on that of its
    /// communicator; `None` while nobody said which ranks share a host. Kept until the mesh changes.
    pub fn host_volume(&self) -> Result<Option<Arc<HostVolume>>> {
        self.context.check_open()?;
        let r = &self.data.request;
        let Some(mesh) = r.config.mesh.or_else(|| self.context.mesh()) else {
            return Ok(None);
        };
        let mut kept = self.data.hosts.lock();
        if let Some(volume) = kept.as_ref().filter(|v| v.mesh == mesh) {
            return Ok(Some(Arc::clone(volume)));
        }
        let placement = &self.data.plan.placement;
        let made = Arc::new(HostVolume::new(&r.mask, placement, &r.shape, &r.config, mesh)?);
        *kept = Some(Arc::clone(&made));
        Ok(Some(made))
    }

    /// Why the plan is as it is, what each stage waits for: text for people.
    pub fn explain(&self) -> Result<String> {
        let r = &self.data.request;
        explain(&Explanation {
            plan: &self.data.plan,
            mask: &r.mask,
            shape: &r.shape,
            config: &r.config,
            origin: r.placer.origin(),
            stats: self.stats()?,
            hosts: self.host_volume()?.as_deref(),
        })
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

    /// Bytes of workspace that forward and backward need, the larger of the two. On a CUDA device what kernels need is part
    /// of it, so the first call plans tiles, uploads them and may compile, as `prepare` does.
    pub fn workspace_bytes(&self) -> Result<usize> {
        self.context.check_open()?;
        self.workspace_on(Stream::NULL)
    }

    /// The same, unless `on` is being captured and tiles are missing.
    pub(super) fn workspace_on(&self, on: Stream) -> Result<usize> {
        workspace::bytes(self.dims(), key_device::kernel_bytes(self, on)?)
    }

    /// What is shared by keys of equal requests.
    pub(super) fn data(&self) -> &KeyData {
        &self.data
    }

    /// On a CUDA device: tiles of the forward pass.
    pub(super) fn forward_tiles(&self) -> &PassTiles {
        &self.data.forward_tiles
    }

    /// The same of the backward pass.
    pub(super) fn backward_tiles(&self) -> &PassTiles {
        &self.data.backward_tiles
    }

    /// Where calls of a pass are measured, 0 forward and 1 backward, if they are.
    pub(super) fn tape(&self, pass: usize) -> Option<&Arc<Tape>> {
        self.data.tapes.as_ref().map(|t| &t.0[pass])
    }

    /// The plan's hash, equal on ranks that planned the same.
    pub fn hash(&self) -> Result<u64> {
        self.context.check_open()?;
        Ok(self.data.plan.hash)
    }
}

impl Drop for KeyData {
    fn drop(&mut self) {
        // Calls with these tiles may be under way still; the host does not wait for them.
        if let Some(last) = self.order.last() {
            free_behind(last, || {
                self.forward_tiles.clear();
                self.backward_tiles.clear();
            });
        }
    }
}

impl KeyData {
    fn new(context: &Context, request: Request, placement: Arc<Placement>) -> Result<KeyData> {
        let Request {
            mask, shape, config, ..
        } = &request;
        if config.compute.kernels == KernelChoice::Ffa && context.device() == Device::Cpu {
            let message = "config.backend ffa: the fast kernels need a CUDA device, and the communicator's ranks are in host \
                           memory; use the default or sdpa";
            return Err(Error::new(Status::NotSupported, message));
        }
        let plan = Plan::with_placement(mask, shape, placement, context.rank(), config)?;
        let (forward_packing, backward_packing) =
            (PassPacking::new(&plan.forward), PassPacking::new(&plan.backward));
        let packings = [&forward_packing, &backward_packing];
        let dims = Dims::new(&plan, packings, (shape, config), context.device());
        let kernel_bytes = (dims.device == Device::Cpu).then(KernelBytes::default);
        workspace::bytes(&dims, KernelBytes::default())?;
        let tape = |name, stages: usize| Arc::new(Tape::new(name, stages));
        let tapes = config.compute.profile.then(|| {
            Tapes([
                tape("forward", plan.forward.stages.len()),
                tape("backward", plan.backward.stages.len()),
            ])
        });
        Ok(KeyData {
            forward_packing,
            backward_packing,
            forward_tiles: PassTiles::new(&plan.forward),
            backward_tiles: PassTiles::new(&plan.backward),
            request,
            plan,
            dims,
            prepared: AtomicBool::new(false),
            order: Arc::clone(context.order()),
            kernel_bytes: Mutex::new(kernel_bytes),
            tapes,
            stats: OnceLock::new(),
            hosts: Mutex::new(None),
        })
    }
}
