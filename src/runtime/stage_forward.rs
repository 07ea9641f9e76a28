//! Attention of the stages of a forward pass, by what computes on the rank's device.

use super::attn_args::{Forward, scale};
use super::context::Session;
use super::key::Key;
use super::on_gpu;
use super::stage_tiles::{Part, cells};
use crate::backend::cuda::forward_kernel::ForwardChoice;
use crate::backend::cuda::forward_launch::ForwardCall;
use crate::backend::cuda::forward_maps;
use crate::backend::{Backend, ForwardArgs};
use crate::device::Stream;
use crate::device::cuda::Gpu;
use crate::plan::Stage;
use crate::types::{Device, Error, KernelChoice, Result, Status, Tensor};

/// Multiprocessors left to exchanges that follow each other beside a kernel, unless configured. One alone needs none left:
/// it has its multiprocessors before the kernel begins (`Communicator::hold`), and the kernel takes those over when it ends.
/// One behind it finds only what the kernel leaves.
const SM_MARGIN: i32 = 8;

/// What a kernel leaves to so many exchanges.
pub(super) fn margin(configured: Option<i32>, exchanges: usize) -> i32 {
    match (configured, exchanges) {
        (_, 0) => 0,
        (Some(margin), _) => margin,
        (None, 1) => 0,
        (None, _) => SM_MARGIN,
    }
}

/// Why the fast kernels cannot compute the stages of a key, beyond what `on_gpu::reasons` finds.
pub(super) fn key_reasons(key: &Key) -> Vec<String> {
    let s = key.shape();
    [("head_dim", s.head_dim), ("head_dim_v", s.head_dim_v)]
        .iter()
        .filter(|(_, n)| n % 8 != 0)
        .map(|(name, n)| {
            format!(
                "{name} {n}; between ranks rows lie side by side, where the fast kernels take multiples of 8"
            )
        })
        .collect()
}

/// Which kernels a key's call runs on: `chosen` of the fast ones, or `None` for textbook attention and on the CPU.
/// `Status::NotSupported` with every reason when only the fast ones will do.
pub(super) fn fast_or<C>(
    key: &Key,
    why: Vec<String>,
    chosen: impl FnOnce() -> Option<C>,
) -> Result<Option<C>> {
    match (key.config().compute.kernels, why.is_empty()) {
        (KernelChoice::Sdpa, _) | (KernelChoice::Default, false) => Ok(None),
        (KernelChoice::Ffa, false) => {
            let message = format!("config.backend ffa: {}", why.join("; "));
            Err(Error::new(Status::NotSupported, message))
        }
        (_, true) => Ok(chosen()),
    }
}

/// What a call asks of the fast kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub softmax_scale: f64,
    pub softcap: f64,
    pub max_logits: bool,
    /// It writes more than out in its input dtype.
    pub general: bool,
}

/// The fast kernel for the stages of such a call, if one computes it.
pub(super) fn choose(key: &Key, asked: Asked) -> Result<Option<ForwardChoice>> {
    let Device::Cuda(ordinal) = key.context().device() else {
        return Ok(None);
    };
    let (gpu, shape) = (Gpu::open(ordinal)?, key.shape());
    let softmax_scale = scale(asked.softmax_scale, shape.head_dim);
    let mut why = on_gpu::reasons(shape, softmax_scale, asked.softcap, &gpu);
    why.extend(key_reasons(key));
    let general = asked.general || !is_whole(key);
    fast_or(key, why, || {
        ForwardChoice::new(shape, asked.softcap > 0.0, asked.max_logits, general)
    })
}

/// The same for a call with these arguments, whose layout is checked.
pub(super) fn choose_for(key: &Key, a: &Forward) -> Result<Option<ForwardChoice>> {
    let chosen = choose(
        key,
        Asked {
            softmax_scale: a.softmax_scale,
            softcap: a.softcap,
            max_logits: a.max_logits.is_some(),
            general: a.sink.is_some() || a.out.dtype() != key.shape().dtype,
        },
    )?;
    if chosen.is_some() {
        on_gpu::check_layout(a)?;
    }
    Ok(chosen)
}

/// Whether one launch makes this rank's result: one stage, and no query computed elsewhere.
pub(super) fn is_whole(key: &Key) -> bool {
    let stages = &key.plan().forward.stages;
    stages.len() == 1 && stages.iter().all(|s| s.guests.transfer.is_empty())
}

/// Whether the last of several stages can write the result in the caller's dtype: nothing comes home after it.
fn may_finish(key: &Key) -> bool {
    let stages = &key.plan().forward.stages;
    stages.len() > 1 && stages.iter().all(|s| s.guests.transfer.is_empty())
}

/// Whether a part of stage `i` leaves rows alone that see nothing in it: not where the result begins or is finished.
pub(super) fn skips_idle(key: &Key, i: usize, part: Part) -> bool {
    let last = i + 1 == key.plan().forward.stages.len();
    part == Part::Guests || !(i == 0 || last && may_finish(key))
}

/// Computes the stages of one call.
pub(super) struct StageForward<'a> {
    pub key: &'a Key,
    pub session: &'a Session<'a>,
    pub args: &'a Forward,
    /// The fast kernel, if it computes.
    pub fast: Option<ForwardChoice>,
    /// Workspace of kernels.
    pub workspace: Tensor,
    pub stream: Stream,
}

impl StageForward<'_> {
    /// Whether results are written where the caller wants them, in his dtype.
    pub fn is_direct(&self) -> bool {
        self.fast.is_some() && is_whole(self.key)
    }

    /// Whether the last stage writes the result in the caller's dtype.
    pub fn finishes(&self) -> bool {
        let rounds = self.args.out.dtype() != self.key.shape().dtype.accumulator();
        self.fast.is_some() && rounds && may_finish(self.key)
    }

    /// What has to be there before the first stage.
    pub fn begin(&self, out: Tensor, lse: Tensor) -> Result<()> {
        if self.fast.is_some() {
            return Ok(());
        }
        let a = self.args;
        self.session.backend().attn_init(out, lse, a.max_logits, a.sink)
    }

    /// Attention of a part of stage `i`, merged into what is there, except that the fast kernel begins with stage 0.
    /// `exchanges` run meanwhile.
    pub fn run(
        &self,
        (i, stage): (usize, &Stage),
        part: Part,
        args: &ForwardArgs<'_>,
        exchanges: usize,
    ) -> Result<()> {
        let Some(cuda) = self.session.on().cuda() else {
            return self.session.backend().attn_forward(args);
        };
        let merged = i > 0 || part == Part::Guests;
        let skip_idle = skips_idle(self.key, i, part);
        if (skip_idle || self.fast.is_none()) && args.slices.is_empty() {
            return Ok(());
        }
        let finishes = merged && !skip_idle && self.finishes();
        let (dims, gpu, shape) = (self.key.dims(), cuda.gpu(), self.key.shape());
        let kept = self.key.forward_tiles().of(i, part);
        let budget = self.workspace.tokens() as usize;
        let cells = || cells(dims, stage, part, skip_idle, budget);
        let Some(choice) = self.fast else {
            let tiles = kept.textbook(cells, gpu, shape.dtype, self.stream)?;
            return cuda.clone().with_attention(tiles).attn_forward(args);
        };
        for (name, t) in [("q", args.q), ("out", args.out)] {
            forward_maps::check(name, &t)?;
        }
        let tiles = kept.forward(cells, (gpu, shape), choice, self.stream)?;
        let call = ForwardCall {
            q: args.q,
            k: args.k,
            v: args.v,
            sink: if merged { None } else { self.args.sink },
            softmax_scale: args.softmax_scale,
            softcap: args.softcap,
            out: if finishes { self.args.out } else { args.out },
            lse: Some(args.lse),
            max_logits: args.max_logits,
            accumulate: merged,
            earlier: finishes.then_some(args.out),
            sm_margin: margin(self.key.config().compute.forward_sm_margin, exchanges),
            workspace: self.workspace.data(),
        };
        // SAFETY: the tensors were checked, those of the workspace lie where the plan has room for them, and the tiles are
        // those of the slices, whose rows they hold; the key keeps the tiles and must outlive what was enqueued on it.
        unsafe { tiles.enqueue(&call, self.stream) }
    }
}
