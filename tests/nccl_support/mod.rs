//! NCCL and a CUDA driver for tests (tests/host_nccl): each test runs in a process of its own, with both on the loader's
//! path.

#![allow(dead_code)] // Every test program includes all of it and uses its own part.
use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use magi_attn::comm::nccl::{NcclComm, Options, UniqueId, from_id};
use magi_attn::comm::{Communicator, RecvOp, SendOp};
use magi_attn::device::Stream;
use magi_attn::types::{Error, Result};

/// Set for the process that runs a test.
const INSIDE: &str = "NCCL_TEST_INSIDE";

/// Longer than anything here takes.
pub const LONG: Duration = Duration::from_secs(60);
pub const SHORT: Duration = Duration::from_millis(400);

/// The folder of the two libraries, which are built once; `None` (said aloud) without a C++ compiler.
fn libraries() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    // Programs may build theirs at the same time.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("host_nccl")
        .join(env!("CARGO_CRATE_NAME"));
    std::fs::create_dir_all(&folder).unwrap();
    let warn = ["-std=c++17", "-O1", "-Wall", "-Wextra"].map(str::to_owned);
    let built = compile(&folder, "libcuda.so", "host_nccl/driver.cpp", &warn) && compile_nccl(&folder);
    built.then_some(folder)
}

/// Compiles NCCL for tests into `folder`, in which the driver for tests lies; false (said aloud) without a C++ compiler.
pub fn compile_nccl(folder: &Path) -> bool {
    let mut arguments = ["-std=c++17", "-O1", "-Wall", "-Wextra"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(format!("-L{}", folder.display()));
    arguments.push("-lcuda".to_owned());
    compile(folder, "libnccl.so.2", "host_nccl/nccl.cpp", &arguments)
}

/// Compiles `source` (under tests/) to the shared library `library` in `folder`; false (said aloud) without a C++ compiler.
pub fn compile(folder: &Path, library: &str, source: &str, arguments: &[String]) -> bool {
    let output = Command::new("c++")
        .args(["-fPIC", "-shared", "-pthread"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source))
        .arg("-o")
        .arg(folder.join(library))
        .arg(format!("-Wl,-soname,{library}"))
        .args(arguments)
        .output();
    match output {
        Ok(o) => assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr)),
        Err(e) => {
            println!("skipped: no C++ compiler ({e})");
            return false;
        }
    }
    true
}

/// Runs `body` in a process of its own, this program with the one test `name`, with NCCL and the driver for tests and
/// these variables.
pub fn inside(name: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    inside_with(libraries, name, variables, body);
}

/// Whether this is the process that runs the test.
pub fn is_inside(name: &str) -> bool {
    std::env::var(INSIDE).is_ok_and(|n| n == name)
}

/// Whether this is a process that runs a test with libraries of its own.
pub fn is_inside_any() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// As `inside`, with the libraries in the folder that `libraries` gives; nothing without one.
pub fn inside_with(
    libraries: impl FnOnce() -> Option<&'static Path>,
    name: &str,
    variables: &[(&str, &str)],
    body: impl FnOnce(),
) {
    if is_inside(name) {
        return body();
    }
    let Some(folder) = libraries() else {
        return;
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .env("LD_LIBRARY_PATH", folder)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success() && text(&output.stdout).contains("1 passed"),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// A function of a library that is loaded, under the first of its names that there is.
pub fn symbol(libraries: &[&str], name: &str) -> *mut c_void {
    let open = |library: &&str| {
        let library = CString::new(*library).unwrap();
        // SAFETY: the string ends with a zero byte; a library may be loaded twice.
        let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) };
        (!handle.is_null()).then_some(handle)
    };
    let handle = libraries.iter().find_map(open);
    let handle = handle.unwrap_or_else(|| panic!("none of {libraries:?}"));
    let name = CString::new(name).unwrap();
    // SAFETY: a library's handle, and a string that ends with a zero byte.
    let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
    assert!(!at.is_null(), "{name:?}");
    at
}

/// # Safety
/// `F` is the type of the function called `name`.
pub unsafe fn driver<F: Copy>(name: &str) -> F {
    // SAFETY: the caller's promise.
    unsafe { std::mem::transmute_copy(&symbol(&["libcuda.so", "libcuda.so.1"], name)) }
}

/// # Safety
/// As `driver`.
pub unsafe fn nccl<F: Copy>(name: &str) -> F {
    // SAFETY: the caller's promise.
    unsafe { std::mem::transmute_copy(&symbol(&["libnccl.so.2"], name)) }
}

/// Lets something happen to a rank.
pub fn wish(what: &str, rank: i32) {
    let what = CString::new(what).unwrap();
    // SAFETY: the type in tests/host_nccl/nccl.cpp.
    unsafe { nccl::<unsafe extern "C" fn(*const c_char, i32)>("fake_wish")(what.as_ptr(), rank) };
}

/// The calls of NCCL that end communicators, and misuse, since the last time.
pub fn record() -> Vec<String> {
    let mut text = [0u8; 4096];
    // SAFETY: the type in tests/host_nccl/nccl.cpp; the buffer is as long as it is said to be.
    unsafe {
        nccl::<unsafe extern "C" fn(*mut c_char, usize)>("fake_record")(text.as_mut_ptr().cast(), text.len())
    };
    let end = text.iter().position(|&b| b == 0).unwrap();
    let text = String::from_utf8_lossy(&text[..end]).into_owned();
    let mut calls: Vec<String> = text
        .split(", ")
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect();
    calls.sort();
    calls
}

/// A stream of the caller's on a device.
pub struct UserStream {
    device: usize,
    pub stream: Stream,
}

/// Makes a device's context current while `f` runs, as a caller may have done.
fn on_device<R>(device: usize, f: impl FnOnce() -> R) -> R {
    let mut context = std::ptr::null_mut();
    // SAFETY: the types of the driver; the device exists.
    unsafe {
        let retain: unsafe extern "C" fn(*mut *mut c_void, i32) -> i32 = driver("cuDevicePrimaryCtxRetain");
        let push: unsafe extern "C" fn(*mut c_void) -> i32 = driver("cuCtxPushCurrent_v2");
        let pop: unsafe extern "C" fn(*mut *mut c_void) -> i32 = driver("cuCtxPopCurrent_v2");
        retain(&mut context, device as i32);
        push(context);
        let result = f();
        pop(&mut context);
        result
    }
}

impl UserStream {
    pub fn new(device: usize) -> UserStream {
        let mut at = std::ptr::null_mut();
        // SAFETY: the type of the driver.
        let create: unsafe extern "C" fn(*mut *mut c_void, u32) -> i32 = unsafe { driver("cuStreamCreate") };
        // SAFETY: the pointer is good for a stream.
        assert_eq!(on_device(device, || unsafe { create(&mut at, 0) }), 0);
        UserStream {
            device,
            stream: Stream::new(at),
        }
    }

    /// Enqueues `f`, as a kernel of the caller's.
    pub fn enqueue(&self, f: impl FnOnce() + Send + 'static) {
        unsafe extern "C" fn call(data: *mut c_void) {
            // SAFETY: made by `Box::into_raw` below, and called once.
            let function = unsafe { Box::from_raw(data.cast::<Box<dyn FnOnce() + Send>>()) };
            function();
        }
        type Function = unsafe extern "C" fn(*mut c_void);
        let boxed: Box<Box<dyn FnOnce() + Send>> = Box::new(Box::new(f));
        // SAFETY: the type of the driver, and data that the function takes.
        let code = on_device(self.device, || unsafe {
            let launch: unsafe extern "C" fn(*mut c_void, Function, *mut c_void) -> i32 =
                driver("cuLaunchHostFunc");
            launch(self.stream.as_ptr(), call, Box::into_raw(boxed).cast())
        });
        assert_eq!(code, 0);
    }

    /// Waits until everything on it is done.
    pub fn synchronize(&self) {
        // SAFETY: the type of the driver.
        let code = on_device(self.device, || unsafe {
            driver::<unsafe extern "C" fn(*mut c_void) -> i32>("cuStreamSynchronize")(self.stream.as_ptr())
        });
        assert_eq!(code, 0);
    }
}

/// Bytes that streams may use after the caller has gone on.
pub struct Bytes(&'static mut [u8]);

// SAFETY: tests look at them when the streams are done.
unsafe impl Send for Bytes {}

impl Bytes {
    pub fn new(bytes: &[u8]) -> Bytes {
        Bytes(Box::leak(bytes.into()))
    }

    pub fn at(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    pub fn get(&self) -> &[u8] {
        self.0
    }

    pub fn send(&self, peer: usize, from: usize, bytes: usize) -> SendOp {
        SendOp {
            peer,
            data: self.0[from..from + bytes].as_ptr(),
            bytes,
        }
    }

    pub fn recv(&mut self, peer: usize, to: usize, bytes: usize) -> RecvOp {
        RecvOp {
            peer,
            data: self.0[to..to + bytes].as_mut_ptr(),
            bytes,
        }
    }
}

pub fn options(timeout: Duration) -> Options {
    Options {
        timeout,
        ..Options::default()
    }
}

/// Makes a communicator with rank r on device r, and calls `f` for each rank on a thread of its own.
pub fn on_ranks<R: Send>(
    world: usize,
    timeout: Duration,
    f: impl Fn(usize, Result<Arc<NcclComm>>) -> R + Sync,
) -> Vec<R> {
    let id = UniqueId::create().unwrap();
    let f = &f;
    let id = &id;
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|rank| {
                scope.spawn(move || {
                    let made = from_id(id, (rank, world), rank as i32, &options(timeout));
                    f(rank, made)
                })
            })
            .collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

/// The error that a communicator ends with, which must come long before any timeout.
pub fn ending(comm: &dyn Communicator) -> Error {
    let begun = Instant::now();
    loop {
        if let Some(error) = comm.async_error() {
            return error;
        }
        assert!(begun.elapsed() < LONG, "nothing happened");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Exchanges one byte with every other rank and checks it.
pub fn greet_all(comm: &dyn Communicator, device: usize) {
    let (rank, size) = (comm.rank(), comm.size());
    let user = UserStream::new(device);
    let mine = Bytes::new(&[rank as u8 + 1]);
    let mut theirs = Bytes::new(&vec![0; size]);
    let peers: Vec<usize> = (0..size).filter(|&p| p != rank).collect();
    let sends: Vec<SendOp> = peers.iter().map(|&p| mine.send(p, 0, 1)).collect();
    let recvs: Vec<RecvOp> = peers.iter().map(|&p| theirs.recv(p, p, 1)).collect();
    // SAFETY: the bytes stay, and are looked at when the stream is done.
    let ticket = unsafe { comm.start(&sends, &recvs, user.stream) }.unwrap();
    comm.finish(ticket, user.stream).unwrap();
    user.synchronize();
    for p in peers {
        assert_eq!(theirs.get()[p], p as u8 + 1, "from {p} on {rank}");
    }
}
