//! One launch of the dq kernel over query tiles: its parameters, from a call and the list that it walks.

use super::backward_kernel::BackwardKernel;
use super::backward_launch::{DeviceList, Operands};
use super::backward_maps::{self, BackwardMaps};
use super::backward_queries_params::BackwardQueriesParams;
use super::section;
use crate::device::Stream;
use crate::device::cuda::{Arguments, Gpu, Launch};
use crate::types::{AttnShape, Result, Tensor};

/// Words that a launch counts in: 0 before it, and after it.
pub const WORDS: usize = 4;

/// The kernel over a list of query tiles.
#[derive(Debug)]
pub struct QueriesLaunch<'a> {
    /// Where.
    pub gpu: &'a Gpu,
    /// What.
    pub kernel: &'a BackwardKernel,
    /// What the list was made for.
    pub shape: &'a AttnShape,
    /// What is walked.
    pub list: DeviceList,
    /// `WORDS` of them.
    pub words: *mut u32,
    /// The kernel before it on the stream is that over key tiles, of which it reads nothing: it takes the multiprocessors
    /// that are left at its end.
    pub behind_keys: bool,
}

impl QueriesLaunch<'_> {
    /// Enqueues the launch, which neither allocates nor waits and may be captured. `dq` is of the input dtype or f32, and is
    /// added to, if it is f32, with `accumulate`.
    ///
    /// # Safety
    /// As `KeysLaunch::enqueue`.
    pub unsafe fn enqueue(&self, o: &Operands, dq: &Tensor, accumulate: bool, on: Stream) -> Result<()> {
        let work = i64::from(self.list.count) * self.shape.heads_q;
        if work == 0 {
            return Ok(());
        }
        let current = self.gpu.enter()?;
        let maps = backward_maps::of_queries(&current, o, self.kernel)?;
        let params = self.params(o, dq, accumulate, &maps);
        let processors = i64::from(self.gpu.properties().multiprocessors - o.sm_margin).max(1);
        let launch = Launch {
            shared_bytes: self.kernel.shared_bytes,
            overlap_previous: self.behind_keys,
            ..Launch::linear(work.min(processors) as u32, self.kernel.threads)
        };
        let mut arguments = Arguments::new();
        arguments.push(&maps.maps).push(&params);
        // SAFETY: the kernel's two parameters; the rest is the caller's promise.
        unsafe { launch.run(self.gpu, self.kernel.function, on, &mut arguments) }
    }

    fn params(
        &self,
        o: &Operands,
        dq: &Tensor,
        accumulate: bool,
        maps: &BackwardMaps,
    ) -> BackwardQueriesParams {
        let shape = self.shape;
        let tokens = |t: &Option<Tensor>| t.map_or(0, |t| t.tokens() as i32);
        let mut flags = 0;
        if dq.dtype() != shape.dtype {
            flags |= BackwardQueriesParams::F32;
        }
        if accumulate {
            flags |= BackwardQueriesParams::ACCUMULATE;
        }
        BackwardQueriesParams {
            tiles: self.list.tiles,
            items: self.list.items,
            limits: self.list.limits,
            counters: self.words.cast(),
            dq: dq.data(),
            dq_token: dq.stride()[0],
            dq_head: dq.stride()[1],
            tile_count: self.list.count,
            units: shape.heads_q as i32,
            group: shape.group() as i32,
            section: self.section(o) as i32,
            tokens_k: [tokens(&o.k[0]), tokens(&o.k[1])],
            head_dim: shape.head_dim as i32,
            flags,
            copies_k: maps.copies_k,
            copies_v: maps.copies_v,
            scale: o.softmax_scale as f32,
            scale_log2: o.scale_log2(),
            softcap_scale: o.softcap_scale(),
            reserved0: 0,
        }
    }

    /// Query heads whose keys and values stay in the L2 cache together: those of a divisor of the key heads.
    fn section(&self, o: &Operands) -> i64 {
        section::key_heads(self.gpu, self.shape.heads_kv, &o.k, &o.v) * self.shape.group()
    }
}
