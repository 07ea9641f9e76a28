//! Forward calls on a stream that is being captured into a graph, over masks and over ranges on the device, by the fast and the
//! textbook kernels: what is not prepared is refused, what is prepared does nothing that would spoil the capture. On the
//! processor, with the driver for tests (tests/host_driver), which counts what the driver would take for a mistake.

mod common_backend;
#[allow(dead_code)] // its own part of it
mod common_calls;
mod common_cuda;
mod common_reference;

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use common_backend::{Buffer, Layout, Random, random_mask};
use common_calls::{Lists, equal};
use common_cuda::{Copy, hopper, run_on_the_processor};
use magi_attn::device::Stream;
use magi_attn::device::cuda::{DeviceMemory, Gpu};
use magi_attn::runtime::attn_args::Forward;
use magi_attn::runtime::device_mask::DeviceMask;
use magi_attn::runtime::single::{self, Choice, Options, Source};
use magi_attn::types::{DType, Status, Tensor};

const TOKENS: (i64, i64) = (40, 60);
const HEADS: (i64, i64) = (4, 2);

/// A number that the driver for tests has under this name.
fn number(name: &CStr) -> *mut i32 {
    // SAFETY: the library is loaded already, both strings end with zero bytes.
    let at: *mut c_void = unsafe {
        let handle = libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW);
        libc::dlsym(handle, name.as_ptr())
    };
    assert!(!at.is_null(), "{name:?}");
    at.cast()
}

/// The result of `f` while streams say that they are being captured. Nothing in it may spoil the capture.
fn captured<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let (wish, spoilt) = (number(c"fake_capturing"), number(c"fake_spoilt"));
    // SAFETY: two integers of the driver for tests, which knows one thread.
    let (result, spoilt) = unsafe {
        spoilt.write_volatile(0);
        wish.write_volatile(1);
        let result = f();
        wish.write_volatile(0);
        (result, spoilt.read_volatile())
    };
    assert_eq!(spoilt, 0, "{what}: calls that spoil a capture");
    result
}

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
struct Case {
    backend: Choice,
    ranges: bool,
    sink: bool,
    /// With many queries for a key head these share tiles; long ones are cut.
    tokens: (i64, i64),
}

fn check(gpu: &Arc<Gpu>, r: &mut Random, c: Case) {
    let ((tq, tk), (hq, hkv)) = (c.tokens, HEADS);
    let mask = random_mask(r, tq, tk, 4);
    let mut make = |shape: &[i64], dtype: DType| {
        let values = r.normals(shape.iter().product::<i64>() as usize, 1.0, dtype);
        Buffer::new(&values, shape, dtype, Layout::Dense)
    };
    let mut host = [
        make(&[tq, hq, 64], DType::Bf16),
        make(&[tk, hkv, 64], DType::Bf16),
        make(&[tk, hkv, 64], DType::Bf16),
        make(&[2, hq], DType::F32),
        Buffer::poisoned(&[tq, hq, 64], DType::Bf16, Layout::Dense),
    ];
    let copies = host.each_mut().map(|b| Copy::of(gpu, b.tensor()));
    let t: Vec<Tensor> = copies.iter().map(Copy::tensor).collect();
    let a = Forward {
        q: t[0],
        k: t[1],
        v: t[2],
        sink: c.sink.then_some(t[3]),
        softmax_scale: 0.0,
        softcap: 0.0,
        out: t[4],
        lse: None,
        max_logits: None,
    };
    let mut options = Options {
        backend: c.backend,
        accumulate: false,
        deterministic: false,
        sm_margin: 0,
        max_items: 0,
        workspace: null_mut(),
        workspace_bytes: 0,
    };
    let lists = Lists::new(gpu, &mask);
    let lists = lists.lists();
    let kept = DeviceMask::default();
    let source = || match c.ranges {
        true => Source::Ranges(&lists),
        false => Source::Mask(&mask, &kept),
    };
    let out = || {
        copies[4].fetch();
        host[4].values()
    };
    let size = |o: &Options| single::forward_workspace(c.ranges.then_some(&lists), &a, o);

    let unprepared = captured(&format!("{c:?} unprepared"), || {
        single::forward(source(), &a, &options, Stream::NULL)
    });
    let e = unprepared.unwrap_err();
    assert_eq!(e.status, Status::NotSupported, "{c:?}: {e}");
    assert!(e.message.contains("prepare"), "{c:?}: {e}");
    assert!(
        out().iter().all(|x| x.is_nan()),
        "{c:?}: a refused call wrote something"
    );

    single::forward_prepare(source(), &a, &options, Stream::NULL).unwrap();
    let bytes = captured(&format!("{c:?}, its size"), || size(&options)).unwrap();
    assert_eq!(size(&options).unwrap(), bytes, "{c:?}");
    let space = DeviceMemory::new(gpu, bytes).unwrap();
    (options.workspace, options.workspace_bytes) = (space.as_ptr(), bytes);
    captured(&format!("{c:?} prepared"), || {
        single::forward(source(), &a, &options, Stream::NULL)
    })
    .unwrap();
    let first = out();
    assert!(first.iter().all(|x| !x.is_nan()), "{c:?}");
    single::forward(source(), &a, &options, Stream::NULL).unwrap();
    assert!(equal(&first, &out()), "{c:?}: other bits outside of a capture");
}

#[test]
fn prepared_calls_spoil_no_capture() {
    let Some(gpu) = hopper() else { return };
    if gpu.properties().name != "the processor" {
        return println!("skipped: a stream of a real device is not captured by a wish");
    }
    let mut r = Random(11);
    let few = (3, 400);
    for (backend, ranges, sink, tokens) in [
        (Choice::Ffa, false, false, TOKENS),
        (Choice::Ffa, false, true, few),
        (Choice::Ffa, true, false, TOKENS),
        (Choice::Ffa, true, true, TOKENS),
        (Choice::Sdpa, false, true, TOKENS),
    ] {
        let c = Case {
            backend,
            ranges,
            sink,
            tokens,
        };
        check(&gpu, &mut r, c);
    }
}

#[test]
fn the_same_on_the_processor() {
    run_on_the_processor("captured_calls", &[], 2);
}
