//! Arithmetic on a CUDA device.
//!
//! Kernels (kernels/*.cu) are embedded in the library: as cubins for compute capability 9.0 where nvcc was there when it
//! was built, and as sources, which NVRTC compiles on first use everywhere else (`compile`). Calls enqueue on the stream
//! and return; nothing is allocated or waited for, except in `CudaBackend::new` and `has_nan`.

pub mod backward;
pub mod backward_kernel;
pub mod backward_launch;
pub mod backward_maps;
pub mod backward_params;
pub mod backward_queries;
pub mod backward_queries_params;
pub mod backward_ranges;
pub mod backward_rows;
pub mod backward_tiles;
pub mod cache;
pub mod compile;
pub mod cubin_file;
pub mod digest;
pub mod embedded;
pub mod forward;
pub mod forward_kernel;
pub mod forward_launch;
pub mod forward_maps;
pub mod forward_params;
pub mod forward_ranges;
pub mod kernels;
pub mod nvrtc;
pub mod nvrtc_places;
pub mod pieces;
pub mod range_tiles;
pub mod ranges;
mod section;
pub mod source;
pub mod textbook;
pub mod textbook_params;
pub mod tickets;
pub mod tile_lists;
pub mod variant;
pub mod walk;

pub mod attention;
mod check;
mod elementwise;
mod running;

use std::sync::Arc;

use super::{Backend, BackwardArgs, ForwardArgs};
use crate::device::Stream;
use crate::device::cuda::{Arguments, Gpu, Launch, stream};
use crate::types::{Error, Range, Result, Status, Tensor};
use attention::Attention;
use kernels::Kernels;

/// Threads of a block of the helper kernels.
const THREADS: i64 = 256;

/// Blocks for each multiprocessor of launches that walk over their work: enough to fill it, few enough to start quickly.
const BLOCKS: i64 = 16;

/// The helper kernels of a device, by the names of their variants.
#[derive(Clone, Debug)]
struct Helpers {
    elementwise: Arc<Kernels>,
    ranges: Arc<Kernels>,
    running: Arc<Kernels>,
}

/// Computes on one device, on one stream.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    gpu: Arc<Gpu>,
    stream: Stream,
    helpers: Helpers,
    attention: Option<Attention>,
}

impl CudaBackend {
    /// A backend on the caller's stream, which must belong to the device (`Status::DeviceMismatch`). The first one for a device
    /// loads the helper kernels: it may compile, allocate and wait, so it is refused (`Status::NotSupported`) while the stream is
    /// captured. Later ones cost some look-ups.
    pub fn new(gpu: &Arc<Gpu>, stream: Stream) -> Result<CudaBackend> {
        stream::expect_on(gpu, stream)?;
        let load = |name: &str| {
            let variant = embedded::listed(name)?;
            if let Some(kernels) = kernels::loaded(gpu, variant) {
                return Ok(kernels);
            }
            if stream::is_capturing(gpu, stream)? {
                let message = "the kernels of this device are not loaded yet, which is not possible while the stream is \
                               captured into a graph; make the call once before, or prepare";
                return Err(Error::new(Status::NotSupported, message));
            }
            kernels::load(gpu, variant)
        };
        let helpers = Helpers {
            elementwise: load("elementwise")?,
            ranges: load("ranges")?,
            running: load("running")?,
        };
        Ok(CudaBackend {
            gpu: gpu.clone(),
            stream,
            helpers,
            attention: None,
        })
    }

    /// Where it computes.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// What it enqueues on.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Enqueues a helper kernel.
    ///
    /// # Safety
    /// As `Launch::run`.
    unsafe fn launch(
        &self,
        variant: &str,
        entry: &str,
        launch: &Launch,
        arguments: &mut Arguments<'_>,
    ) -> Result<()> {
        let kernels = match variant {
            "elementwise" => &self.helpers.elementwise,
            "ranges" => &self.helpers.ranges,
            "running" => &self.helpers.running,
            other => return Err(Error::internal(format!("no helper kernels are called {other}"))),
        };
        // SAFETY: the caller's promise.
        unsafe { launch.run(&self.gpu, kernels.function(entry)?, self.stream, arguments) }
    }

    /// Enqueues a helper kernel that walks over `threads` pieces of work with as many threads, or fewer that take turns.
    ///
    /// # Safety
    /// As `Launch::run`.
    unsafe fn launch_over(
        &self,
        variant: &str,
        entry: &str,
        threads: i64,
        arguments: &mut Arguments<'_>,
    ) -> Result<()> {
        let most = i64::from(self.gpu.properties().multiprocessors) * BLOCKS;
        let blocks = (threads.max(0) as u64)
            .div_ceil(THREADS as u64)
            .min(most.max(1) as u64);
        let launch = Launch::linear(blocks as u32, THREADS as u32);
        // SAFETY: the caller's promise.
        unsafe { self.launch(variant, entry, &launch, arguments) }
    }
}

impl Backend for CudaBackend {
    fn attn_init(
        &self,
        out: Tensor,
        lse: Tensor,
        max_logits: Option<Tensor>,
        sink: Option<Tensor>,
    ) -> Result<()> {
        self.init(&out, &lse, max_logits.as_ref(), sink.as_ref())
    }

    fn attn_forward(&self, args: &ForwardArgs<'_>) -> Result<()> {
        self.forward(args)
    }

    fn attn_delta(&self, out: Tensor, dout: Tensor, delta: Tensor) -> Result<()> {
        self.delta(&out, &dout, &delta)
    }

    fn sink_backward(&self, sink: Tensor, lse: Tensor, delta: Tensor, dsink: Tensor) -> Result<()> {
        self.sink_gradient(&sink, &lse, &delta, &dsink)
    }

    fn stand_by(&self) -> Result<()> {
        self.pass_time()
    }

    fn max_rows(&self, src: Tensor, dst: Tensor) -> Result<()> {
        self.largest_of_rows(&src, &dst)
    }

    fn attn_backward(&self, args: &BackwardArgs<'_>) -> Result<()> {
        self.backward(args)
    }

    fn range_gather(&self, src: Tensor, ranges: &[Range], dst: Tensor) -> Result<()> {
        self.copy_rows(("src", &src), ("dst", &dst), ranges, false)
    }

    fn range_scatter(&self, src: Tensor, dst: Tensor, ranges: &[Range]) -> Result<()> {
        self.copy_rows(("dst", &dst), ("src", &src), ranges, true)
    }

    fn range_reduce(&self, src: Tensor, dst: Tensor, ranges: &[Range]) -> Result<()> {
        self.reduce_rows(&src, &dst, ranges)
    }

    fn lse_reduce(
        &self,
        out_src: Tensor,
        lse_src: Tensor,
        out_dst: Tensor,
        lse_dst: Tensor,
        ranges: &[Range],
    ) -> Result<()> {
        self.merge_rows((&out_src, &lse_src), (&out_dst, &lse_dst), ranges)
    }

    fn divide(&self, dst: Tensor, by: i64) -> Result<()> {
        self.divide_by(&dst, by)
    }

    fn cast(&self, src: Tensor, dst: Tensor, accumulate: bool) -> Result<()> {
        self.convert(&src, &dst, accumulate)
    }

    fn fill_zero(&self, dst: Tensor) -> Result<()> {
        self.zero(&dst)
    }

    fn has_nan(&self, tensor: Tensor) -> Result<bool> {
        self.search_nan(&tensor)
    }
}
