//! Tensors in the memory of a CUDA device, for tests that are skipped where there is none; and the processor as such a
//! device, through a driver for tests (tests/host_driver).

#![allow(dead_code)] // Every test program includes all of it and uses its own part.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use magi_attn::backend::cuda::{embedded, source};
use magi_attn::device::cuda::{DeviceMemory, Gpu};
use magi_attn::types::{Device, Status, Tensor};

/// The first device, or `None` (said aloud) without one. A device that fails is no reason to skip.
pub fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(e) if e.status == Status::NoDevice => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// The same, when it is one that the fast kernels are for.
pub fn hopper() -> Option<Arc<Gpu>> {
    let gpu = gpu()?;
    let p = gpu.properties();
    if p.major != 9 {
        println!("skipped: compute capability {}.{}", p.major, p.minor);
        return None;
    }
    Some(gpu)
}

/// Kernels launched so far, which the driver for tests counts; `None` on a real device.
pub fn launches() -> Option<i32> {
    // SAFETY: strings that end with a zero byte; a library may be loaded twice, and stays.
    let at = unsafe {
        let driver = libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW);
        if driver.is_null() {
            return None;
        }
        libc::dlsym(driver, c"fake_launches".as_ptr())
    };
    if at.is_null() {
        return None;
    }
    // SAFETY: the type in tests/host_driver/driver.cpp.
    Some(unsafe { std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn() -> i32>(at)() })
}

/// A copy in device memory of everything that a tensor in host memory spans.
pub struct Copy {
    host: Tensor,
    low: usize,
    device: i32,
    memory: DeviceMemory,
}

impl Copy {
    pub fn of(gpu: &Arc<Gpu>, host: Tensor) -> Copy {
        let (low, high) = host.span().unwrap_or_default();
        let bytes = match high - low {
            0 => &[],
            // SAFETY: the tensor spans these bytes of its buffer.
            length => unsafe { std::slice::from_raw_parts(low as *const u8, length) },
        };
        let memory = DeviceMemory::upload(gpu, bytes).unwrap();
        Copy {
            host,
            low,
            device: gpu.ordinal(),
            memory,
        }
    }

    pub fn tensor(&self) -> Tensor {
        let h = &self.host;
        let data = self.memory.as_ptr().wrapping_add(h.data() as usize - self.low);
        // SAFETY: the copy is as long as what the host's tensor spans.
        unsafe { Tensor::from_raw(data, h.dtype(), Device::Cuda(self.device), h.shape(), h.stride()) }
    }

    /// Copies back, over what the host's tensor spans.
    pub fn fetch(&self) {
        if self.memory.bytes() == 0 {
            return;
        }
        // SAFETY: as in `of`; nobody else looks at the buffer meanwhile.
        let to = unsafe { std::slice::from_raw_parts_mut(self.low as *mut u8, self.memory.bytes()) };
        self.memory.read(0, to).unwrap();
    }
}

/// Set for the process that runs the tests above with the driver for tests.
const ON_HOST: &str = "CUDA_TESTS_ON_HOST";

/// The kernels that run on every device as one text for the processor, and their names.
fn kernels_for_the_processor() -> (String, String) {
    let convert =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host_driver/convert.cuh"));
    let convert = convert.unwrap();
    let all = "#include \"elementwise.cu\"\n#include \"ranges.cu\"\n#undef MINUS_INFINITY\n#include \"running.cu\"\n\
               #include \"textbook_forward.cu\"\n#include \"textbook_backward.cu\"\n#include \"range_tiles.cu\"\n\
               #include \"backward_rows.cu\"\n";
    let read = |name: &str| match name {
        "all" => Some(all),
        "ptx/convert.cuh" => Some(convert.as_str()),
        name => embedded::SOURCES
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, text)| *text),
    };
    let text = source::flatten("all", &read).unwrap();
    let variants = [
        "elementwise",
        "ranges",
        "running",
        "textbook_forward",
        "textbook_backward",
        "range_tiles",
        "backward_rows",
    ];
    let names = variants
        .iter()
        .flat_map(|name| &embedded::listed(name).unwrap().entries)
        .map(String::as_str);
    let stand_ins = [
        "magi_attn_forward",
        "magi_attn_backward",
        "magi_attn_backward_queries",
    ];
    let names = names.chain(stand_ins);
    (text, names.map(|name| format!("ENTRY({name})\n")).collect())
}

/// Writes the kernels for a driver for tests into `folder`; how its compiler is told of them, and how it compiles them.
pub fn kernels_for_a_driver(folder: &Path) -> Vec<String> {
    let (text, names) = kernels_for_the_processor();
    let (kernels, entries) = (folder.join("kernels.inc"), folder.join("entries.inc"));
    std::fs::write(&kernels, text).unwrap();
    std::fs::write(&entries, names).unwrap();
    let define = |name: &str, path: &Path| format!("-D{name}=\"{}\"", path.display());
    // Coroutines jump between stacks, which the checked longjmp takes for a mistake.
    let flags = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",
        "-w",
    ];
    let mut all = flags.map(str::to_owned).to_vec();
    all.extend([define("KERNELS", &kernels), define("ENTRIES", &entries)]);
    all
}

/// Compiles `source` (under tests/) to the shared library `library` in `folder`; false (said aloud) without a C++ compiler.
fn compile(folder: &Path, library: &str, source: &str, arguments: &[String]) -> bool {
    let output = Command::new("c++")
        .args(["-fPIC", "-shared"])
        .args(arguments)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source))
        .arg("-o")
        .arg(folder.join(library))
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

/// Builds the driver for tests, and the NVRTC of what is not compiled ahead of time, and gives their folder; `None` without a
/// C++ compiler.
fn host_driver(program: &str) -> Option<PathBuf> {
    // Programs may build theirs at the same time.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("host_driver")
        .join(program);
    std::fs::create_dir_all(&folder).unwrap();
    let kernels = kernels_for_a_driver(&folder);
    let built = compile(&folder, "libcuda.so", "host_driver/driver.cpp", &kernels)
        && compile(&folder, "libnvrtc.so.13", "host_ranks/nvrtc.cpp", &[]);
    built.then_some(folder)
}

/// Runs the tests of `program`, this one, whose names contain one of `filters` (all of them without any) on the processor;
/// `count` of them must pass, with the one that calls this.
pub fn run_on_the_processor(program: &str, filters: &[&str], count: usize) {
    run_on_processors(1, program, filters, count);
}

/// The same where the device says that it has `multiprocessors`.
pub fn run_on_processors(multiprocessors: u32, program: &str, filters: &[&str], count: usize) {
    if std::env::var_os(ON_HOST).is_some() {
        assert_eq!(gpu().unwrap().properties().name, "the processor");
        return;
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    if !tests.is_dir() {
        println!(
            "skipped: the sources of the driver for tests are not here, in {}",
            tests.display()
        );
        return;
    }
    let Some(folder) = host_driver(program) else {
        return;
    };
    let output = Command::new(std::env::current_exe().unwrap())
        // The driver for tests knows one thread.
        .args(["--test-threads", "1", "--nocapture"])
        .args(filters)
        .env(ON_HOST, "1")
        .env("CUDA_TESTS_PROCESSORS", multiprocessors.to_string())
        .env("LD_LIBRARY_PATH", folder)
        // What the NVRTC for tests makes must not be kept.
        .env("MAGI_ATTENTION_NO_BUILD_CACHE", "1")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}{err}");
    assert!(
        !out.contains("skipped") && out.contains(&format!("{count} passed")),
        "{out}"
    );
}
