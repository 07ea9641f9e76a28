//! Ranks that compute, as threads of one process: CUDA devices whose streams are threads and whose kernels run on the
//! processor (tests/host_ranks), and NCCL between them (tests/host_nccl). Each test runs in a process of its own.

#![allow(dead_code)] // Every test program includes all of it and uses its own part.
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use crate::common_backend::{Buffer, Layout};
use crate::common_cuda::{Copy, kernels_for_a_driver};
use crate::common_ranks::{Job, Place, agreed, rank_on};
use crate::common_reference::{Answer, Operands};
use crate::nccl_support::{self, LONG, UserStream, compile, compile_nccl, driver as driver_function, symbol};
use magi_attn::backend::cuda::digest::Digest;
use magi_attn::comm::nccl::NcclComm;
use magi_attn::comm::{Communicator, RecvOp, SendOp};
use magi_attn::device::Stream;
use magi_attn::device::cuda::{Gpu, driver};
use magi_attn::runtime::{Context, Key};
use magi_attn::types::{DType, Tensor};

/// Devices that there are.
pub const DEVICES: usize = 4;

/// For the variables of `inside`: devices of compute capability 8.0, for which the textbook kernels compute every dtype.
/// Without it they have 9.0, where the library asks for the kernels of the tensor cores for bf16 and f16.
pub const CAPABILITY_8: (&str, &str) = ("CUDA_TESTS_CAPABILITY", "80");

/// The folder of the libraries, which are built once; `None` (said aloud) without a C++ compiler.
fn libraries() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

/// Compiling takes longer than most tests: what is made is kept under the digest of what it is made of.
fn build() -> Option<PathBuf> {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("host_ranks");
    // Programs may build theirs at the same time.
    let folder = parent.join(format!("part-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let kernels = kernels_for_a_driver(&folder);
    let kept = parent.join(digest(&folder));
    let built = kept.exists()
        || compile(&folder, "libcuda.so", "host_ranks/driver.cpp", &kernels)
            && compile(&folder, "libnvrtc.so.13", "host_ranks/nvrtc.cpp", &[])
            && compile(&folder, "libnvToolsExt.so.1", "host_ranks/nvtx.cpp", &[])
            && compile_nccl(&folder);
    if built && !kept.exists() {
        // An error: another program was quicker.
        let _ = std::fs::rename(&folder, &kept);
    }
    let _ = std::fs::remove_dir_all(&folder);
    built.then_some(kept)
}

/// Of the sources of the libraries, the kernels in `folder` among them.
fn digest(folder: &Path) -> String {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let folders = [
        "host_driver",
        "host_nccl",
        "host_ranks",
        "common_cuda",
        "nccl_support",
    ];
    let mut files: Vec<PathBuf> = folders
        .map(|name| tests.join(name))
        .iter()
        .map(PathBuf::as_path)
        .chain([folder])
        .flat_map(|f| std::fs::read_dir(f).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    files.sort_by_key(|path| path.file_name().map(|n| n.to_owned()));
    let text = |path: &PathBuf| std::fs::read(path).unwrap();
    files
        .iter()
        .map(text)
        .fold(Digest::default(), |digest, text| digest.field(&text))
        .hex()
}

/// Runs `body` in a process of its own, this program with the one test `name`, with the devices, NCCL and these variables.
pub fn inside(name: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    // What the NVRTC for tests makes must not be kept.
    let mut all = vec![("MAGI_ATTENTION_NO_BUILD_CACHE", "1")];
    all.extend(variables);
    nccl_support::inside_with(libraries, name, &all, body);
}

/// As `inside`, for a `body` that ends its process with a message that contains `says`.
pub fn fails_inside(name: &str, says: &str, body: impl FnOnce()) {
    let outcome = catch_unwind(AssertUnwindSafe(|| inside(name, &[], body)));
    if nccl_support::is_inside(name) || libraries().is_none() {
        return;
    }
    let text = outcome
        .expect_err("nothing was said")
        .downcast::<String>()
        .unwrap();
    assert!(text.contains(says), "{text}");
}

/// Devices of the machine.
pub fn devices() -> usize {
    driver::device_count().map_or(0, |n| n as usize)
}

/// Runs `body` over the machine's devices, alone, or as `inside`. NCCL's kernels wait for those of other ranks: two
/// communicators at work on the same devices may wait for each other for ever.
pub fn here(name: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if nccl_support::is_inside(name) || devices() == 0 {
        return inside(name, variables, body);
    }
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{} devices of this machine", devices());
    body();
}

/// Those of these numbers of ranks for which there are devices.
pub fn worlds(wanted: &[usize]) -> impl Iterator<Item = usize> {
    let most = devices().min(DEVICES);
    wanted.iter().copied().filter(move |&w| w <= most)
}

/// Events with times that were made so far.
pub fn timed_events() -> i32 {
    // SAFETY: the type in tests/host_nccl/streams.h.
    unsafe { driver_function::<unsafe extern "C" fn() -> i32>("fake_timed_events")() }
}

/// Blocks of memory that were taken so far, of devices and of the host.
pub fn allocations() -> i32 {
    // SAFETY: the type in tests/host_ranks/driver.cpp.
    unsafe { driver_function::<unsafe extern "C" fn() -> i32>("fake_allocations")() }
}

/// Names of the ranges that profilers have seen, sorted.
pub fn ranges() -> Vec<String> {
    let mut text = [0u8; 16384];
    type Ranges = unsafe extern "C" fn(*mut c_char, usize);
    // SAFETY: the type in tests/host_ranks/nvtx.cpp; the buffer is as long as it is said to be.
    unsafe {
        let ranges: Ranges = std::mem::transmute(symbol(&["libnvToolsExt.so.1"], "fake_ranges"));
        ranges(text.as_mut_ptr().cast(), text.len());
    }
    let text = CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap();
    let mut names: Vec<String> = text
        .split(", ")
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

/// A rank, on the device of its number.
pub struct Rank {
    pub rank: usize,
    pub world: usize,
    pub comm: Arc<NcclComm>,
    pub gpu: Arc<Gpu>,
    /// A stream of the caller's.
    pub user: UserStream,
}

/// Calls `f` for each of `world` ranks, on threads of their own, over one communicator. What they give, by rank.
pub fn on_ranks<R: Send>(world: usize, f: impl Fn(&Rank) -> R + Sync) -> Vec<R> {
    nccl_support::on_ranks(world, LONG, |rank, comm| {
        f(&Rank::new(rank, world, comm.unwrap()))
    })
}

/// As `on_ranks`. On devices of the machine, where a communicator takes one or two seconds to make, over one that later calls
/// use again, unless a rank has panicked.
fn on_kept_ranks<R: Send>(world: usize, f: impl Fn(&Rank) -> R + Sync) -> Vec<R> {
    if nccl_support::is_inside_any() {
        return on_ranks(world, f);
    }
    static KEPT: Mutex<BTreeMap<usize, Vec<Arc<NcclComm>>>> = Mutex::new(BTreeMap::new());
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let comms = kept().remove(&world);
    let comms = comms.unwrap_or_else(|| nccl_support::on_ranks(world, LONG, |_, comm| comm.unwrap()));
    let f = &f;
    let answers = thread::scope(|scope| {
        let ranks: Vec<_> = comms
            .iter()
            .enumerate()
            .map(|(rank, comm)| scope.spawn(move || f(&Rank::new(rank, world, comm.clone()))))
            .collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    });
    kept().insert(world, comms);
    answers
}

impl Rank {
    fn new(rank: usize, world: usize, comm: Arc<NcclComm>) -> Rank {
        Rank {
            rank,
            world,
            comm,
            gpu: Gpu::open(rank as i32).unwrap(),
            user: UserStream::new(rank),
        }
    }

    /// The caller's stream.
    pub fn stream(&self) -> Stream {
        self.user.stream
    }

    /// A tensor in the device's memory with these values.
    pub fn values(&self, values: &[f64], shape: &[i64], dtype: DType, layout: Layout) -> DeviceTensor {
        self.copy(Buffer::new(values, shape, dtype, layout))
    }

    /// A tensor that nobody has written: NaN in every float dtype.
    pub fn unwritten(&self, shape: &[i64], dtype: DType, layout: Layout) -> DeviceTensor {
        self.copy(Buffer::poisoned(shape, dtype, layout))
    }

    /// A dense tensor of any dtype with these bytes.
    pub fn bytes(&self, bytes: &[u8], shape: &[i64], dtype: DType) -> DeviceTensor {
        let mut host = Buffer::poisoned(shape, dtype, Layout::Dense);
        host.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        self.copy(host)
    }

    fn copy(&self, mut host: Buffer) -> DeviceTensor {
        let copy = Copy::of(&self.gpu, host.tensor());
        DeviceTensor { host, copy }
    }

    /// The values of a tensor when everything on the caller's stream is done.
    pub fn download(&self, tensor: &DeviceTensor) -> Vec<f64> {
        self.user.synchronize();
        tensor.read()
    }

    /// As `download`, the bytes of a dense tensor.
    pub fn download_bytes(&self, tensor: &mut DeviceTensor) -> Vec<u8> {
        self.user.synchronize();
        tensor.copy.fetch();
        tensor.host.bytes_mut().to_vec()
    }

    /// Enqueues one exchange on the caller's stream, and lets the stream wait for it; the host waits for nothing.
    pub fn exchange(&self, sends: &[SendOp], recvs: &[RecvOp]) {
        // SAFETY: tests keep their tensors until they have downloaded the results.
        let ticket = unsafe { self.comm.start(sends, recvs, self.stream()) }.unwrap();
        self.comm.finish(ticket, self.stream()).unwrap();
    }
}

impl Place for Rank {
    type Held = DeviceTensor;

    fn values(&self, values: &[f64], shape: &[i64], dtype: DType, layout: Layout) -> DeviceTensor {
        Rank::values(self, values, shape, dtype, layout)
    }

    fn poisoned(&self, shape: &[i64], dtype: DType, layout: Layout) -> DeviceTensor {
        self.unwritten(shape, dtype, layout)
    }

    fn tensor(&self, held: &mut DeviceTensor) -> Tensor {
        DeviceTensor::tensor(held)
    }

    fn read(&self, held: &mut DeviceTensor) -> Vec<f64> {
        self.download(held)
    }

    fn stream(&self) -> Stream {
        Rank::stream(self)
    }
}

/// A tensor in the memory of a rank's device.
pub struct DeviceTensor {
    host: Buffer,
    copy: Copy,
}

impl DeviceTensor {
    pub fn tensor(&self) -> Tensor {
        self.copy.tensor()
    }

    /// Its values now, whatever is still on its way.
    pub fn read(&self) -> Vec<f64> {
        self.copy.fetch();
        self.host.values()
    }

    /// Bytes of a dense tensor.
    pub fn len(&self) -> usize {
        let t = self.tensor();
        t.elements() as usize * t.dtype().size()
    }

    /// All of a dense tensor, to `peer`.
    pub fn send(&self, peer: usize) -> SendOp {
        SendOp {
            peer,
            data: self.tensor().data(),
            bytes: self.len(),
        }
    }

    /// All of a dense tensor, from `peer`.
    pub fn recv(&self, peer: usize) -> RecvOp {
        RecvOp {
            peer,
            data: self.tensor().data(),
            bytes: self.len(),
        }
    }
}

/// Holds a stream: nothing that is enqueued behind it begins before it is opened.
pub struct Gate(Sender<()>);

impl Gate {
    pub fn on(stream: &UserStream) -> Gate {
        Gate::then(stream, || ())
    }

    /// The stream calls `f` when the gate is opened.
    pub fn then(stream: &UserStream, f: impl FnOnce() + Send + 'static) -> Gate {
        let (open, opened) = channel();
        stream.enqueue(move || {
            // An error: the gate was dropped, as by a test that fails.
            let _ = opened.recv();
            f();
        });
        Gate(open)
    }

    pub fn open(self) {
        self.0.send(()).unwrap();
    }
}

/// A key of the job on one rank's device.
pub fn key_of(job: &Job, r: &Rank) -> Arc<Key> {
    let comm: Arc<dyn Communicator> = r.comm.clone();
    let context = Context::new(comm);
    if let Some((inter, intra)) = job.mesh {
        context.set_mesh(inter, intra).unwrap();
    }
    Key::create(&context, &job.mask, job.shape, job.config).unwrap()
}

/// Runs the job on devices, `times` on one key; every rank and every time has the same bits.
pub fn over_devices(job: &Job, o: &Operands, times: usize) -> Answer {
    let answers = on_kept_ranks(job.world, |r| {
        let key = key_of(job, r);
        let runs: Vec<Answer> = (0..times).map(|_| rank_on(r, job, o, &key).unwrap()).collect();
        agreed(runs)
    });
    agreed(answers)
}
