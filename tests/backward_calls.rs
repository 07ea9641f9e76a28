//! Whole backward calls by the fast kernels, over masks and over ranges on the device, against the CPU backend: on the first
//! CUDA device of compute capability 9.0, and everywhere on the processor, where stand-ins take the place of the attention
//! kernels (tests/host_driver/attention.h).

mod common_backend;
mod common_calls;
mod common_cuda;
mod common_reference;

use std::collections::BTreeSet;
use std::ptr::null_mut;
use std::sync::Arc;

use common_backend::{Buffer, Layout, Random, random_mask};
use common_calls::{HostSpace, Lists, equal, hide, misplaced, seen};
use common_cuda::{Copy, hopper, launches, run_on_the_processor};
use magi_attn::backend::cuda::backward_kernel::BackwardChoice;
use magi_attn::device::Stream;
use magi_attn::device::cuda::{DeviceMemory, Gpu, stream};
use magi_attn::runtime::attn_args::{Backward, Forward};
use magi_attn::runtime::device_mask::DeviceMask;
use magi_attn::runtime::single::{self, Choice, Options, RangeLists, Source};
use magi_attn::types::{AttnShape, DType, Mask, Status, Tensor};

/// What a call computes, beside its mask.
#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: (i64, i64),
    heads: (i64, i64),
    dims: (i64, i64),
    dtype: DType,
    softcap: f64,
    layout: Layout,
    deterministic: bool,
    /// Number, whether all tokens share them.
    sinks: Option<(i64, bool)>,
    out_f32: bool,
    dq_f32: bool,
    keys_f32: bool,
    add_dq: bool,
    /// To dk, dv and dsink.
    add: bool,
    ranges: bool,
}

impl Case {
    /// Rows, gradients, dq in its dtype; dq apart is a launch of its own, which writes its dtype but adds to f32 alone. Before
    /// them, one for each list of ranges.
    fn most_launches(&self) -> i32 {
        let apart = i32::from(self.deterministic);
        let converted = !self.dq_f32 && (!self.deterministic || self.add_dq);
        let lists = if self.ranges { 1 + apart } else { 0 };
        2 + apart + i32::from(converted) + lists
    }
}

/// Host tensors of a call.
struct Tensors {
    /// q, k, v, dout.
    inputs: [Buffer; 4],
    sink: Option<Buffer>,
    out: Buffer,
    lse: Buffer,
    /// dq, dk, dv and, with sinks, dsink.
    outputs: Vec<Buffer>,
}

const NAMES: [&str; 4] = ["dq", "dk", "dv", "dsink"];

/// Operands of a case, with what forward gives for them on the CPU.
fn tensors(r: &mut Random, c: &Case, mask: &Mask) -> Tensors {
    let ((tq, tk), (hq, hkv), (d, dv)) = (c.tokens, c.heads, c.dims);
    let [rows, keys] = seen(mask);
    let mut make = |shape: [i64; 3], sees: &[bool]| {
        let mut values = r.normals(shape.iter().product::<i64>() as usize, 1.0, c.dtype);
        hide(&mut values, (shape[1] * shape[2]) as usize, sees);
        Buffer::new(&values, &shape, c.dtype, c.layout)
    };
    let inputs = [
        make([tq, hq, d], &rows),
        make([tk, hkv, d], &keys),
        make([tk, hkv, dv], &keys),
        make([tq, hq, dv], &rows),
    ];
    let sink = c.sinks.map(|(n, shared)| {
        let shape = [tq, n, hq];
        let shape = if shared { &shape[1..] } else { &shape[..] };
        let values = r.normals(shape.iter().product::<i64>() as usize, 2.0, DType::F32);
        Buffer::new(&values, shape, DType::F32, Layout::Dense)
    });
    let of = |f32: bool| if f32 { DType::F32 } else { c.dtype };
    let mut outputs = Vec::new();
    for (i, (f32, add)) in [(c.dq_f32, c.add_dq), (c.keys_f32, c.add), (c.keys_f32, c.add)]
        .into_iter()
        .enumerate()
    {
        let shape = &inputs[i].shape;
        let values = r.normals(shape.iter().product::<i64>() as usize, 1.0, of(f32));
        let mut buffer = Buffer::poisoned(shape, of(f32), c.layout);
        if add {
            buffer.set(&values);
        }
        outputs.push(buffer);
    }
    if let Some(sink) = &sink {
        let values = r.normals(sink.values().len(), 1.0, DType::F32);
        outputs.push(Buffer::new(&values, &sink.shape, DType::F32, Layout::Dense));
    }
    let mut t = Tensors {
        inputs,
        sink,
        out: Buffer::poisoned(&[tq, hq, dv], of(c.out_f32), c.layout),
        lse: Buffer::poisoned(&[tq, hq], DType::F32, Layout::Dense),
        outputs,
    };
    let [q, k, v, _] = t.inputs.each_mut().map(Buffer::tensor);
    let forward = Forward {
        q,
        k,
        v,
        sink: t.sink.as_mut().map(Buffer::tensor),
        softmax_scale: 0.0,
        softcap: c.softcap,
        out: t.out.tensor(),
        lse: Some(t.lse.tensor()),
        max_logits: None,
    };
    let bytes = single::forward_workspace(None, &forward, &options(c, null_mut(), 0)).unwrap();
    let mut space = HostSpace::new(bytes);
    let at = space.at();
    let source = Source::Mask(mask, &DeviceMask::default());
    single::forward(source, &forward, &options(c, at, bytes), Stream::NULL).unwrap();
    t
}

fn options(c: &Case, workspace: *mut u8, workspace_bytes: usize) -> Options {
    Options {
        backend: Choice::Default,
        accumulate: false,
        deterministic: c.deterministic,
        sm_margin: 0,
        max_items: 0,
        workspace,
        workspace_bytes,
    }
}

/// Bytes of workspace of a call on the device, where the default is the fast kernels.
fn device_workspace(c: &Case, ranges: Option<&RangeLists>, a: &Backward) -> usize {
    let of = |backend: Choice| {
        let o = Options {
            backend,
            ..options(c, null_mut(), 0)
        };
        single::backward_workspace(ranges, a, &o).unwrap()
    };
    let bytes = of(Choice::Default);
    assert_eq!(bytes, of(Choice::Ffa), "{c:?}");
    bytes
}

/// Arguments over tensors in the order inputs, out, lse, sink, outputs.
fn args(c: &Case, t: &[Tensor]) -> Backward {
    let sinks = usize::from(c.sinks.is_some());
    let outputs = &t[6 + sinks..];
    Backward {
        q: t[0],
        k: t[1],
        v: t[2],
        sink: (sinks == 1).then(|| t[6]),
        out: t[4],
        lse: t[5],
        dout: t[3],
        softmax_scale: 0.0,
        softcap: c.softcap,
        dq: outputs[0],
        dk: outputs[1],
        dv: outputs[2],
        dsink: outputs.get(3).copied(),
        accumulate_dq: c.add_dq,
        accumulate_dk: c.add,
        accumulate_dv: c.add,
        accumulate_dsink: c.add && sinks == 1,
    }
}

impl Tensors {
    fn all(&mut self) -> Vec<Tensor> {
        let mut all: Vec<Tensor> = self.inputs.iter_mut().map(Buffer::tensor).collect();
        all.push(self.out.tensor());
        all.push(self.lse.tensor());
        all.extend(self.sink.iter_mut().map(Buffer::tensor));
        all.extend(self.outputs.iter_mut().map(Buffer::tensor));
        all
    }

    fn values(&self) -> Vec<Vec<f64>> {
        self.outputs.iter().map(Buffer::values).collect()
    }
}

/// The gradients by the CPU backend.
fn on_the_cpu(c: &Case, mask: &Mask, t: &mut Tensors) -> Vec<Vec<f64>> {
    let a = args(c, &t.all());
    let bytes = single::backward_workspace(None, &a, &options(c, null_mut(), 0)).unwrap();
    let mut space = HostSpace::new(bytes);
    let at = space.at();
    let source = Source::Mask(mask, &DeviceMask::default());
    single::backward(source, &a, &options(c, at, bytes), Stream::NULL).unwrap();
    t.values()
}

/// The same by the device, twice from the same outputs; every run has the same result.
fn on_the_device(gpu: &Arc<Gpu>, c: &Case, mask: &Mask, t: &mut Tensors) -> Vec<Vec<f64>> {
    let host = t.all();
    let lists = Lists::new(gpu, mask);
    let range_lists = lists.lists();
    let kept = DeviceMask::default();
    let inputs: Vec<Copy> = host.iter().map(|t| Copy::of(gpu, *t)).collect();
    let mut first: Option<Vec<Vec<f64>>> = None;
    for _ in 0..2 {
        // Copies of the outputs are new each time; those of the inputs stay.
        let outputs = host.len() - t.outputs.len();
        let fresh: Vec<Copy> = host[outputs..].iter().map(|t| Copy::of(gpu, *t)).collect();
        let tensors = inputs[..outputs].iter().chain(&fresh).map(Copy::tensor);
        let a = args(c, &tensors.collect::<Vec<_>>());
        let source = match c.ranges {
            true => Source::Ranges(&range_lists),
            false => Source::Mask(mask, &kept),
        };
        let ranges = c.ranges.then_some(&range_lists);
        let bytes = device_workspace(c, ranges, &a);
        let space = DeviceMemory::upload(gpu, &vec![0xff; bytes]).unwrap();
        let o = options(c, space.as_ptr(), bytes);
        let begun = launches();
        single::backward(source, &a, &o, Stream::NULL).unwrap();
        if let (Some(begun), Some(ended)) = (begun, launches()) {
            assert!(
                ended - begun <= c.most_launches(),
                "{c:?}: {} launches",
                ended - begun
            );
        }
        stream::synchronize(gpu, Stream::NULL).unwrap();
        // Results go over the host's outputs, which are put back for the next run.
        let before = t.values();
        fresh.iter().for_each(Copy::fetch);
        let found = t.values();
        for (buffer, values) in t.outputs.iter_mut().zip(&before) {
            buffer.set(values);
        }
        let fixed = |i: usize| i != 0 || c.deterministic;
        if let Some(first) = &first {
            for i in (0..found.len()).filter(|&i| fixed(i)) {
                assert!(equal(&first[i], &found[i]), "{c:?}: {} of another run", NAMES[i]);
            }
        }
        first = Some(found);
    }
    first.unwrap()
}

fn check(gpu: &Arc<Gpu>, r: &mut Random, c: &Case) {
    let mask = random_mask(r, c.tokens.0, c.tokens.1, 4);
    let mut t = tensors(r, c, &mask);
    let got = on_the_device(gpu, c, &mask, &mut t);
    let want = on_the_cpu(c, &mask, &mut t);
    // A GPU rounds P and dS on its way; the processor does not.
    let inner = if gpu.properties().name == "the processor" {
        0.0
    } else {
        2e-2
    };
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let f32 = t.outputs[i].dtype == DType::F32;
        let tolerance: f64 = if f32 { 1e-4 } else { 5e-3 };
        let most = want.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        for (at, (x, y)) in got.iter().zip(want).enumerate() {
            let close = (x - y).abs() <= tolerance * y.abs().max(1.0) + inner * most;
            assert!(
                close,
                "{c:?}, {} slices: {}[{at}] is {x}, not {y}",
                mask.slices().len(),
                NAMES[i]
            );
        }
    }
}

#[test]
fn calls_against_the_cpu() {
    let Some(gpu) = hopper() else { return };
    let mut r = Random(1);
    for case in 0..48 {
        let mut flag = || r.below(2) == 0;
        let (keys_f32, deterministic) = (flag(), flag());
        let c = Case {
            deterministic,
            out_f32: flag(),
            dq_f32: flag(),
            keys_f32,
            add_dq: flag(),
            add: keys_f32 && flag(),
            ranges: flag(),
            layout: if flag() { Layout::Dense } else { Layout::HeadsFirst },
            sinks: [None, Some((1, true)), Some((8, true)), Some((3, false))][case % 4],
            tokens: (1 + r.below(70), 1 + r.below(70)),
            heads: [(1, 1), (4, 2), (3, 1)][case % 3],
            dims: [(128, 128), (104, 112), (40, 64), (96, 72), (128, 97)][case % 5],
            ..PLAIN
        };
        // Rows must begin at multiples of 16 bytes.
        let c = if c.layout == Layout::Dense && c.dims.1 == 97 {
            Case { dims: (128, 96), ..c }
        } else {
            Case {
                dims: (c.dims.0, c.dims.1 / 8 * 8),
                ..c
            }
        };
        check(&gpu, &mut r, &c);
    }
}

const PLAIN: Case = Case {
    tokens: (33, 40),
    heads: (4, 2),
    dims: (128, 128),
    dtype: DType::Bf16,
    softcap: 0.0,
    layout: Layout::Dense,
    deterministic: false,
    sinks: None,
    out_f32: false,
    dq_f32: false,
    keys_f32: false,
    add_dq: false,
    add: false,
    ranges: false,
};

/// Every form of the kernels, over several tiles.
fn forms() -> Vec<Case> {
    let all_dims = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)];
    let plain = all_dims.map(|dims| (dims, DType::Bf16, 0.0));
    let others = [
        ((96, 96), DType::F16, 0.0),
        ((192, 192), DType::F16, 0.0),
        ((128, 128), DType::Bf16, 15.0),
        ((256, 256), DType::Bf16, 15.0),
    ];
    let form = |(i, (dims, dtype, softcap))| {
        [false, true].map(|deterministic| Case {
            tokens: (100, 140),
            heads: (2, 1),
            dims,
            dtype,
            softcap,
            deterministic,
            ranges: (i % 2 == 0) == deterministic,
            keys_f32: i % 3 == 0,
            add: i % 3 == 0,
            ..PLAIN
        })
    };
    plain
        .into_iter()
        .chain(others)
        .enumerate()
        .flat_map(form)
        .collect()
}

#[test]
fn every_form_against_the_cpu() {
    let Some(gpu) = hopper() else { return };
    let mut r = Random(5);
    for c in forms() {
        check(&gpu, &mut r, &c);
    }
}

/// Compiling a kernel takes seconds where it was not compiled ahead of time, so those of few dtypes and softcaps are asked for.
#[test]
fn forms_are_all_kernels() {
    let of_case = |c: &Case| {
        let shape = AttnShape {
            heads_q: c.heads.0,
            heads_kv: c.heads.1,
            head_dim: c.dims.0,
            head_dim_v: c.dims.1,
            dtype: c.dtype,
        };
        let choice = BackwardChoice::new(&shape, c.softcap > 0.0, c.deterministic).unwrap();
        choice.kernels().iter().map(move |&g| choice.variant(g).name)
    };
    let names: BTreeSet<String> = forms().iter().flat_map(of_case).collect();
    assert_eq!(names.len(), 30, "{names:?}");
    for part in ["", "_keys", "_queries"] {
        for dims in ["64", "96", "128", "192_128", "192", "256"] {
            assert!(
                names.contains(&format!("attn_backward{part}_bf16_{dims}")),
                "{part} {dims}"
            );
        }
    }
}

#[test]
fn sides_without_tokens() {
    let Some(gpu) = hopper() else { return };
    let mut r = Random(2);
    for tokens in [(0, 5), (5, 0), (0, 0)] {
        for bits in 0..4 {
            let c = Case {
                tokens,
                sinks: Some((2, true)),
                deterministic: bits & 1 != 0,
                ranges: bits & 2 != 0,
                ..PLAIN
            };
            check(&gpu, &mut r, &c);
        }
    }
}

/// What is found before anything is enqueued.
#[test]
fn calls_that_are_refused() {
    let Some(gpu) = hopper() else { return };
    let mut r = Random(3);
    let mask = random_mask(&mut r, 33, 40, 4);
    let mut t = tensors(&mut r, &PLAIN, &mask);
    let copies: Vec<Copy> = t.all().into_iter().map(|t| Copy::of(&gpu, t)).collect();
    let a = args(&PLAIN, &copies.iter().map(Copy::tensor).collect::<Vec<_>>());
    let needed = device_workspace(&PLAIN, None, &a);
    // Row sums, parts of dsink, sums of dq.
    assert!(needed >= 4 * (2 * 36 * 4 + 33 * 4 * 128), "{needed}");
    let space = DeviceMemory::new(&gpu, needed + 256).unwrap();
    let kept = DeviceMask::default();
    let refused = |a: &Backward, o: Options, status: Status, part: &str| {
        let e = single::backward(Source::Mask(&mask, &kept), a, &o, Stream::NULL).unwrap_err();
        assert_eq!(e.status, status, "{e}");
        assert!(e.message.contains(part), "{e} does not mention {part:?}");
    };
    let with = |at: *mut u8, bytes: usize| options(&PLAIN, at, bytes);
    let at = space.as_ptr();
    let small = format!("this call needs {needed} bytes");
    refused(&a, with(at, needed - 1), Status::BufferTooSmall, &small);
    refused(
        &a,
        with(null_mut(), needed),
        Status::NullPointer,
        "options.workspace",
    );
    refused(
        &a,
        with(at.wrapping_add(16), needed),
        Status::InvalidArgument,
        "aligned to 256",
    );
    refused(
        &a,
        with(a.dk.data(), needed),
        Status::TensorOverlap,
        "options.workspace overlaps",
    );
    let accumulating = Options {
        accumulate: true,
        ..with(at, needed)
    };
    refused(
        &a,
        accumulating,
        Status::InvalidArgument,
        "options.accumulate is for forward",
    );
    single::backward_prepare(Source::Mask(&mask, &kept), &a, &with(at, needed), Stream::NULL).unwrap();
    single::backward(Source::Mask(&mask, &kept), &a, &with(at, needed), Stream::NULL).unwrap();
    stream::synchronize(&gpu, Stream::NULL).unwrap();
}

#[test]
fn strides_that_are_refused() {
    let Some(gpu) = hopper() else { return };
    let c = Case {
        tokens: (9, 9),
        heads: (2, 2),
        layout: Layout::Spaced,
        ..PLAIN
    };
    let mut r = Random(4);
    let mask = random_mask(&mut r, 9, 9, 3);
    let mut t = tensors(&mut r, &c, &mask);
    let copies: Vec<Copy> = t.all().into_iter().map(|t| Copy::of(&gpu, t)).collect();
    let good: Vec<Tensor> = copies.iter().map(Copy::tensor).collect();
    let kept = DeviceMask::default();
    let prepare = |all: &[Tensor]| {
        let options = options(&c, null_mut(), 0);
        single::backward_prepare(Source::Mask(&mask, &kept), &args(&c, all), &options, Stream::NULL)
    };
    prepare(&good).unwrap();
    let names = ["args.q", "args.k", "args.v", "args.dout", "args.out"].into_iter();
    let places = names
        .enumerate()
        .chain([(6, "args.dq"), (7, "args.dk"), (8, "args.dv")]);
    for (at, name) in places {
        for (bad, says) in misplaced(&good[at]) {
            let mut all = good.clone();
            all[at] = bad;
            let e = prepare(&all).unwrap_err();
            assert_eq!(e.status, Status::InvalidStride, "{e}");
            assert!(e.message.starts_with(name) && e.message.contains(says), "{e}");
        }
    }
}

#[test]
fn the_same_on_the_processor() {
    run_on_the_processor("backward_calls", &[], 7);
}
