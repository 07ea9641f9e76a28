//! Calls over ranges on a CUDA device that are refused before anything is enqueued, and what `magi_explain_support` says
//! there: on the first CUDA device, and everywhere on the processor (tests/host_driver).

mod common_cuda;

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use common_cuda::{hopper, run_on_the_processor};
use magi_attn::device::cuda::{DeviceMemory, Gpu};
use magi_attn::ffi::attn::{MAGI_ACCUMULATE_DK, MAGI_ACCUMULATE_DV, magi_backward_args, magi_forward_args};
use magi_attn::ffi::plain::{magi_attn_shape, magi_tensor};
use magi_attn::ffi::single::*;
use magi_attn::ffi::status::magi_last_error_message;
use magi_attn::ffi::support::*;
use magi_attn::types::{DType, Status};

const TOKENS: i64 = 32;
const WIDTH: i64 = 64;

/// Memory for every tensor of a call, all of one size.
struct Call {
    memory: DeviceMemory,
    tensors: Vec<magi_tensor>,
}

const BYTES: usize = 1 << 16;
const OPERANDS: usize = 8;

impl Call {
    fn new(gpu: &Arc<Gpu>, dtype: DType) -> Call {
        let memory = DeviceMemory::upload(gpu, &vec![0; BYTES * (OPERANDS + 3)]).unwrap();
        let mut call = Call {
            memory,
            tensors: Vec::new(),
        };
        for _ in 0..OPERANDS {
            call.push(dtype, &[TOKENS, 1, WIDTH]);
        }
        for shape in [&[2, 2][..], &[2, 2], &[2]] {
            call.push(DType::I32, shape);
        }
        call
    }

    fn push(&mut self, dtype: DType, shape: &[i64]) {
        let at = self.memory.as_ptr().wrapping_add(BYTES * self.tensors.len());
        let mut t = magi_tensor {
            data: at.cast::<c_void>(),
            dtype: dtype as i32,
            device_type: 1,
            device_index: 0,
            ndim: shape.len() as i32,
            shape: [0; 8],
            stride: [0; 8],
        };
        let mut step = 1;
        for (i, &n) in shape.iter().enumerate().rev() {
            (t.shape[i], t.stride[i]) = (n, step);
            step *= n;
        }
        self.tensors.push(t);
    }

    fn at(&self, i: usize) -> *const magi_tensor {
        &raw const self.tensors[i]
    }

    fn forward(&self) -> magi_forward_args {
        magi_forward_args {
            size: size_of::<magi_forward_args>(),
            q: self.at(0),
            k: self.at(1),
            v: self.at(2),
            sink: null(),
            softmax_scale: 0.0,
            softcap: 0.0,
            out: self.at(3),
            lse: null(),
            max_logits: null(),
        }
    }

    /// Its lse is another's.
    fn backward(&self) -> magi_backward_args {
        magi_backward_args {
            size: size_of::<magi_backward_args>(),
            q: self.at(0),
            k: self.at(1),
            v: self.at(2),
            sink: null(),
            out: self.at(3),
            lse: null(),
            dout: self.at(4),
            softmax_scale: 0.0,
            softcap: 0.0,
            dq: self.at(5),
            dk: self.at(6),
            dv: self.at(7),
            dsink: null(),
            flags: 0,
            reserved: 0,
        }
    }

    /// Backward, its preparation and its size query give `status` with `part` in the message.
    fn backward_refused(&self, a: &magi_backward_args, o: &magi_flex_options, status: Status, part: &str) {
        let mut bytes = 0usize;
        // SAFETY: every descriptor is alive; nothing is enqueued.
        unsafe {
            let call = magi_flex_flash_attn_backward(None, a, o, null_mut());
            expect(call, status, part);
            let prepare = magi_flex_flash_attn_backward_prepare(None, a, o, null_mut());
            expect(prepare, status, part);
            let query = magi_flex_flash_attn_backward_workspace_size(a, o, &mut bytes);
            expect(query, status, part);
        }
        assert_eq!(bytes, 0);
    }

    fn options(&self) -> magi_flex_options {
        magi_flex_options {
            size: size_of::<magi_flex_options>(),
            q_ranges: self.at(OPERANDS),
            k_ranges: self.at(OPERANDS + 1),
            mask_types: self.at(OPERANDS + 2),
            workspace: null_mut(),
            workspace_size: 0,
            backend: 0,
            deterministic: 0,
            sm_margin: 0,
            accumulate: 0,
            max_items: 0,
        }
    }

    /// Forward, its preparation and its size query give `status` with `part` in the message.
    fn refused(&self, o: &magi_flex_options, status: Status, part: &str) {
        let (a, mut bytes) = (self.forward(), 0usize);
        // SAFETY: every descriptor is alive; nothing is enqueued.
        unsafe {
            expect(
                magi_flex_flash_attn_forward(None, &a, o, null_mut()),
                status,
                part,
            );
            expect(
                magi_flex_flash_attn_forward_prepare(None, &a, o, null_mut()),
                status,
                part,
            );
            let query = magi_flex_flash_attn_forward_workspace_size(&a, o, &mut bytes);
            // Memory that is shared is no matter of sizes.
            if status != Status::TensorOverlap {
                expect(query, status, part);
                assert_eq!(bytes, 0);
            }
        }
    }
}

fn message() -> String {
    // SAFETY: a string that ends with a zero byte, good until the next failing call of this thread.
    unsafe { CStr::from_ptr(magi_last_error_message()) }
        .to_string_lossy()
        .into_owned()
}

fn expect(found: Status, status: Status, part: &str) {
    assert_eq!(found, status, "{}", message());
    assert!(
        message().contains(part),
        "{:?} does not mention {part:?}",
        message()
    );
}

#[test]
fn only_the_fast_kernels_take_ranges_on_the_device() {
    let Some(gpu) = hopper() else { return };
    let none = Status::NotSupported;
    let f32s = Call::new(&gpu, DType::F32);
    f32s.refused(
        &f32s.options(),
        none,
        "which only the fast kernels take, and dtype f32",
    );
    let call = Call::new(&gpu, DType::Bf16);
    let sdpa = magi_flex_options {
        backend: 2,
        ..call.options()
    };
    call.refused(&sdpa, none, "options.backend is sdpa");
    let lse = lse_of(&gpu);
    let backward = |call: &Call| magi_backward_args {
        lse: &raw const lse.tensors[4],
        ..call.backward()
    };
    call.backward_refused(&backward(&call), &sdpa, none, "options.backend is sdpa");
    f32s.backward_refused(
        &backward(&f32s),
        &f32s.options(),
        none,
        "which only the fast kernels take, and dtype f32",
    );
    let mixed = magi_backward_args {
        dv: lse.at(7),
        ..backward(&call)
    };
    call.backward_refused(
        &mixed,
        &call.options(),
        none,
        "args.dk and args.dv have two dtypes",
    );
    let added = magi_backward_args {
        flags: MAGI_ACCUMULATE_DK | MAGI_ACCUMULATE_DV,
        ..backward(&call)
    };
    call.backward_refused(&added, &call.options(), none, "args.dk of bf16 is added to");
    let one = magi_backward_args {
        flags: MAGI_ACCUMULATE_DK,
        ..backward(&call)
    };
    let ffa = magi_flex_options {
        backend: 1,
        ..call.options()
    };
    call.backward_refused(
        &one,
        &ffa,
        none,
        "options.backend ffa: one of args.dk and args.dv is added to",
    );
}

/// f32 tensors of which the fifth is a lse.
fn lse_of(gpu: &Arc<Gpu>) -> Call {
    let mut lse = Call::new(gpu, DType::F32);
    lse.tensors[4].ndim = 2;
    lse.tensors[4].shape[1] = 1;
    lse
}

#[test]
fn lists_are_checked() {
    let Some(gpu) = hopper() else { return };
    let mut call = Call::new(&gpu, DType::Bf16);
    let (q, k, types) = (OPERANDS, OPERANDS + 1, OPERANDS + 2);
    let negative = magi_flex_options {
        max_items: -1,
        ..call.options()
    };
    call.refused(&negative, Status::InvalidArgument, "options.max_items is -1");
    call.tensors[types].shape[0] = 3;
    call.refused(
        &call.options(),
        Status::ShapeMismatch,
        "options.mask_types has shape [3]; it must be [2]",
    );
    call.tensors[types].shape[0] = 2;
    call.tensors[k].shape[1] = 1;
    call.refused(
        &call.options(),
        Status::ShapeMismatch,
        "options.k_ranges has shape",
    );
    call.tensors[k].shape[1] = 2;
    call.tensors[k].stride[1] = 2;
    call.refused(
        &call.options(),
        Status::InvalidStride,
        "options.k_ranges has stride 2",
    );
    call.tensors[k].stride[1] = 1;
    call.tensors[q].dtype = DType::F32 as i32;
    call.refused(
        &call.options(),
        Status::DtypeMismatch,
        "options.q_ranges has dtype f32",
    );
    call.tensors[q].dtype = DType::I32 as i32;
    let mut host = [0i32; 2];
    let data = call.tensors[types].data;
    call.tensors[types].data = host.as_mut_ptr().cast();
    call.tensors[types].device_type = 0;
    call.refused(
        &call.options(),
        Status::DeviceMismatch,
        "options.mask_types lies in host memory",
    );
    call.tensors[types].device_type = 1;
    call.tensors[types].data = call.tensors[3].data;
    call.refused(
        &call.options(),
        Status::TensorOverlap,
        "args.out overlaps options.mask_types",
    );
    call.tensors[types].data = data;
}

/// The answer for one dtype, backend and set of flags: the words, or the message of a refusal.
fn explained(dtype: DType, backend: i32, flags: u32) -> Result<String, String> {
    let shape = magi_attn_shape {
        size: size_of::<magi_attn_shape>(),
        heads_q: 4,
        heads_kv: 1,
        head_dim: 128,
        head_dim_v: 128,
        dtype: dtype as i32,
        reserved: 0,
    };
    let (mut text, mut size) = ([0i8 as std::ffi::c_char; 8192], 8192);
    // SAFETY: the buffer is as large as it is said to be.
    let status = unsafe {
        magi_explain_support(
            1,
            0,
            &shape,
            backend,
            0.0,
            0.0,
            flags,
            text.as_mut_ptr(),
            &mut size,
        )
    };
    match status {
        // SAFETY: filled, with a zero byte at its end.
        Status::Ok => Ok(unsafe { CStr::from_ptr(text.as_ptr()) }
            .to_string_lossy()
            .into_owned()),
        Status::NotSupported => Err(message()),
        other => panic!("{other:?}: {}", message()),
    }
}

#[test]
fn support_is_explained() {
    if hopper().is_none() {
        return;
    }
    let has = |text: &str, part: &str| assert!(text.contains(part), "{text:?} does not mention {part:?}");
    let words = explained(DType::Bf16, 0, MAGI_WITH_BACKWARD).unwrap();
    has(&words, "forward: the fast kernel attn_forward_bf16_128, compiled");
    has(
        &words,
        "backward: the fast kernel attn_backward_bf16_128, compiled",
    );
    has(
        &words,
        "deterministic, or for a mask whose queries see few keys: the fast kernel attn_backward_keys_bf16_128",
    );
    has(&words, "then the fast kernel attn_backward_queries_bf16_128");
    has(&words, "\n  dropout");
    let words = explained(
        DType::F16,
        0,
        MAGI_WITH_SINK | MAGI_WITH_MAX_LOGITS | MAGI_WITH_DEVICE_RANGES,
    )
    .unwrap();
    has(
        &words,
        "the fast kernel attn_forward_general_max_logits_f16_128, compiled at the first use",
    );
    let words = explained(DType::F32, 0, MAGI_WITH_BACKWARD).unwrap();
    has(&words, "forward: textbook kernels");
    has(&words, "not the fast ones: dtype f32");
    has(&words, "backward: textbook kernels, on CUDA device 0");
    has(&explained(DType::Bf16, 2, 0).unwrap(), "the backend is sdpa");
    let flags = MAGI_WITH_DEVICE_RANGES | MAGI_WITH_BACKWARD;
    for flags in [MAGI_WITH_BACKWARD, flags] {
        let of = |backend: i32| explained(DType::Bf16, backend, flags).unwrap();
        assert_eq!(of(0), of(1), "the default is the fast kernels");
    }
    let why = explained(DType::F64, 1, MAGI_WITH_BACKWARD | MAGI_WITH_FP8).unwrap_err();
    for part in ["backend ffa: dtype f64", "fp8"] {
        has(&why, part);
    }
    let why = explained(DType::F32, 0, flags).unwrap_err();
    has(&why, "ranges on the device need the fast kernels: dtype f32");
    has(
        &explained(DType::Bf16, 2, flags).unwrap_err(),
        "ranges on the device need the fast kernels: the backend is sdpa",
    );
}

#[test]
fn the_same_is_refused_on_the_processor() {
    run_on_the_processor("range_calls", &[], 4);
}
