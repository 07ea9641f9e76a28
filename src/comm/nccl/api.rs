//! NCCL's library: where it is, and the functions of it that are called.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use crate::device::places::{self, Place, Wanted};
use crate::types::{Error, Result, Status};

/// Oldest version that is enough, as NCCL counts.
const OLDEST: c_int = 22_200;

/// The library's file names. Wheels and runtime packages have the first one only.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// ncclComm_t.
pub type RawComm = *mut c_void;

/// A number that stands for "as NCCL sees fit".
const UNDEFINED: c_int = c_int::MIN;

/// ncclInt8: bytes travel as they are.
const BYTES: c_int = 0;

/// Results of calls that are told apart.
pub const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;
/// The call goes on in the background.
pub const IN_PROGRESS: c_int = 7;

/// ncclUniqueId.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawId(pub [u8; 128]);

/// ncclConfig_t as of 2.17, which every later version takes by its size and version.
#[repr(C)]
#[derive(Debug)]
pub struct RawConfig {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl RawConfig {
    /// Calls that return at once, with so many thread blocks for communication (0: as NCCL sees fit).
    pub fn new(min_ctas: i32, max_ctas: i32) -> RawConfig {
        let chosen = |n| if n == 0 { UNDEFINED } else { n };
        RawConfig {
            size: size_of::<RawConfig>(),
            magic: 0xcafe_beef,
            version: OLDEST as u32,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: chosen(min_ctas),
            max_ctas: chosen(max_ctas),
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

type Stream = *mut c_void;

/// NCCL's functions, with the types of nccl.h.
#[derive(Debug)]
pub(super) struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut RawId) -> c_int,
    pub init: unsafe extern "C" fn(*mut RawComm, c_int, RawId, c_int, *mut RawConfig) -> c_int,
    pub split: unsafe extern "C" fn(RawComm, c_int, c_int, *mut RawComm, *mut RawConfig) -> c_int,
    pub finalize: unsafe extern "C" fn(RawComm) -> c_int,
    pub destroy: unsafe extern "C" fn(RawComm) -> c_int,
    pub abort: unsafe extern "C" fn(RawComm) -> c_int,
    pub async_error: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int,
    last_error: unsafe extern "C" fn(RawComm) -> *const c_char,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub count: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int,
    pub device: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int,
    pub rank: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int,
    pub group_start: unsafe extern "C" fn() -> c_int,
    pub group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, RawComm, Stream) -> c_int,
    recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, RawComm, Stream) -> c_int,
    broadcast:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, Stream) -> c_int,
}

/// A loaded NCCL. Stays loaded to the end of the process.
#[derive(Debug)]
pub struct Nccl {
    pub(super) functions: Functions,
    version: c_int,
    path: String,
}

/// `version` as people write it.
fn written(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

impl Nccl {
    /// The NCCL of this process, looked for at the first call. `Status::NotSupported` lists what was tried; the answer of the
    /// first call stands.
    pub fn get() -> Result<&'static Nccl> {
        static FOUND: OnceLock<Result<Nccl>> = OnceLock::new();
        let wanted = Wanted {
            names: &NAMES,
            wheels: &["nvidia/nccl/lib"],
            usual: "/usr/local/nccl/lib",
        };
        let found = FOUND.get_or_init(|| Nccl::load(&places::places(&wanted)));
        found.as_ref().map_err(Clone::clone)
    }

    /// The first NCCL among `places` that loads and is new enough.
    pub fn load(places: &[Place]) -> Result<Nccl> {
        let mut tried = Vec::new();
        for place in places {
            match place.open(&NAMES) {
                Some(handle) => match Nccl::of(handle, place.to_string()) {
                    Ok(nccl) => return Ok(nccl),
                    Err(why) => tried.push(format!("{place} ({why})")),
                },
                None => tried.push(place.to_string()),
            }
        }
        let message = format!(
            "NCCL {} or later was not found; tried {}. Install it (pip install nvidia-nccl-cu12 or -cu13), or set \
             LD_LIBRARY_PATH or CUDA_HOME",
            written(OLDEST),
            tried.join(", ")
        );
        Err(Error::new(Status::NotSupported, message))
    }

    fn of(handle: *mut c_void, path: String) -> std::result::Result<Nccl, String> {
        let symbol = |name: &CStr| {
            // SAFETY: `handle` is that of a loaded library.
            let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if at.is_null() {
                return Err(format!("lacks {}", name.to_string_lossy()));
            }
            Ok(at)
        };
        // SAFETY: a function of every NCCL, with the type of nccl.h.
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int =
            unsafe { function(symbol(c"ncclGetVersion")?) };
        let mut version = 0;
        // SAFETY: the pointer is good for an int.
        let code = unsafe { get_version(&mut version) };
        if code != SUCCESS || version < OLDEST {
            return Err(format!("version {} is too old", written(version)));
        }
        // SAFETY: these are NCCL's functions, and the types are those of nccl.h, unchanged since 2.18.
        let functions = unsafe {
            Functions {
                get_unique_id: function(symbol(c"ncclGetUniqueId")?),
                init: function(symbol(c"ncclCommInitRankConfig")?),
                split: function(symbol(c"ncclCommSplit")?),
                finalize: function(symbol(c"ncclCommFinalize")?),
                destroy: function(symbol(c"ncclCommDestroy")?),
                abort: function(symbol(c"ncclCommAbort")?),
                async_error: function(symbol(c"ncclCommGetAsyncError")?),
                last_error: function(symbol(c"ncclGetLastError")?),
                error_string: function(symbol(c"ncclGetErrorString")?),
                count: function(symbol(c"ncclCommCount")?),
                device: function(symbol(c"ncclCommCuDevice")?),
                rank: function(symbol(c"ncclCommUserRank")?),
                group_start: function(symbol(c"ncclGroupStart")?),
                group_end: function(symbol(c"ncclGroupEnd")?),
                send: function(symbol(c"ncclSend")?),
                recv: function(symbol(c"ncclRecv")?),
                broadcast: function(symbol(c"ncclBroadcast")?),
            }
        };
        Ok(Nccl {
            functions,
            version,
            path,
        })
    }

    /// Version, such as 22809.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Where it was found.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// An id for a new communicator.
    pub fn unique_id(&self) -> Result<RawId> {
        let mut id = RawId([0; 128]);
        // SAFETY: the pointer is good for an id.
        let code = unsafe { (self.functions.get_unique_id)(&mut id) };
        self.check(code, "ncclGetUniqueId").map(|()| id)
    }

    /// What a code means, and what NCCL said last on this thread.
    pub fn explain(&self, code: c_int) -> String {
        let text = |at: *const c_char| {
            // SAFETY: NCCL gives static strings, or null.
            (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
        };
        // SAFETY: takes every number.
        let meaning = text(unsafe { (self.functions.error_string)(code) });
        // SAFETY: takes null for "whatever communicator".
        let last = text(unsafe { (self.functions.last_error)(std::ptr::null_mut()) });
        let meaning = meaning.unwrap_or_else(|| format!("NCCL error {code}"));
        match last.filter(|l| !l.trim().is_empty()) {
            Some(last) => format!("{meaning}: {}", last.trim()),
            None => meaning,
        }
    }

    /// The error that `code` of the call `what` is; `Ok` for success and for what goes on in the background.
    pub fn check(&self, code: c_int, what: &str) -> Result<()> {
        let status = match code {
            SUCCESS | IN_PROGRESS => return Ok(()),
            INVALID_ARGUMENT | INVALID_USAGE => Status::InvalidArgument,
            _ => Status::CommFailed,
        };
        Err(Error::new(status, format!("{what}: {}", self.explain(code))))
    }

    /// Enqueues sending bytes.
    ///
    /// # Safety
    /// `comm` and `stream` live, and the bytes until the stream has come so far.
    pub unsafe fn send(
        &self,
        data: *const u8,
        bytes: usize,
        peer: usize,
        comm: RawComm,
        on: Stream,
    ) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { (self.functions.send)(data.cast(), bytes, BYTES, peer as c_int, comm, on) }
    }

    /// Enqueues receiving bytes.
    ///
    /// # Safety
    /// As `send`; nobody else uses the bytes.
    pub unsafe fn recv(&self, data: *mut u8, bytes: usize, peer: usize, comm: RawComm, on: Stream) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { (self.functions.recv)(data.cast(), bytes, BYTES, peer as c_int, comm, on) }
    }

    /// Enqueues giving the bytes of rank 0 to every rank.
    ///
    /// # Safety
    /// As `recv`.
    pub unsafe fn broadcast(&self, data: *mut u8, bytes: usize, comm: RawComm, on: Stream) -> c_int {
        // SAFETY: the caller's promise; in place is allowed.
        unsafe { (self.functions.broadcast)(data.cast(), data.cast(), bytes, BYTES, 0, comm, on) }
    }
}

/// # Safety
/// `at` is the address of a function of type `F`.
unsafe fn function<F: Copy>(at: *mut c_void) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) }
    // SAFETY: both are pointers; the caller's promise.
    unsafe { std::mem::transmute_copy(&at) }
}
