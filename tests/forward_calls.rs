//! Whole forward calls by the fast kernel in each of its forms, over masks and over ranges on the device, against the CPU
//! backend: small ones, for compute-sanitizer too. On the first CUDA device of compute capability 9.0, and everywhere on the
//! processor, where a stand-in takes the place of the kernel (tests/host_driver/forward.h).
//!
//! Where nothing is compiled ahead of time, it compiles 19 forward kernels and range_tiles.

mod common_backend;
mod common_calls;
mod common_cuda;
mod common_reference;

use std::collections::BTreeSet;
use std::ptr::null_mut;
use std::sync::Arc;

use common_backend::{Buffer, Layout, Random, random_mask, shape};
use common_calls::{HostSpace, Lists, equal, hide, misplaced, seen};
use common_cuda::{Copy, hopper, run_on_processors};
use magi_attn::backend::cuda::forward::pack;
use magi_attn::backend::cuda::forward_kernel::ForwardChoice;
use magi_attn::device::Stream;
use magi_attn::device::cuda::{DeviceMemory, Gpu, stream};
use magi_attn::runtime::attn_args::Forward;
use magi_attn::runtime::device_mask::DeviceMask;
use magi_attn::runtime::single::{self, Choice, Options, RangeLists, Source};
use magi_attn::types::{AttnShape, DType, Mask, MaskType, Range, Status, Tensor, TypedSlice};

/// What queries see.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sight {
    /// A slice of each type, with rows between them that see nothing.
    Types,
    /// Random slices.
    Random,
    /// All rows but the last see nearly all keys: long tiles, which are cut.
    Long,
}

/// What a call computes.
#[derive(Clone, Copy, Debug)]
struct Case {
    sight: Sight,
    tokens: (i64, i64),
    heads: (i64, i64),
    dims: (i64, i64),
    dtype: DType,
    layout: Layout,
    /// 0: none.
    softcap: f64,
    max_logits: bool,
    lse: bool,
    /// Number, whether all tokens share them.
    sinks: Option<(i64, bool)>,
    out_f32: bool,
    accumulate: bool,
    ranges: bool,
}

const PLAIN: Case = Case {
    sight: Sight::Types,
    tokens: (200, 300),
    heads: (2, 1),
    dims: (128, 128),
    dtype: DType::Bf16,
    layout: Layout::Dense,
    softcap: 0.0,
    max_logits: false,
    lse: true,
    sinks: None,
    out_f32: false,
    accumulate: false,
    ranges: false,
};

/// Everything that one kernel and its general form do; `i` varies what is independent of the form.
fn cases_of(i: usize, c: Case) -> [Case; 6] {
    let sinks = [
        (1, true),
        (3, false),
        (8, true),
        (1, false),
        (3, true),
        (8, false),
    ];
    let sinks = |at: usize| Some(sinks[(i + at) % sinks.len()]);
    [
        Case {
            lse: i.is_multiple_of(2),
            ..c
        },
        Case {
            sight: Sight::Random,
            tokens: (131, 190),
            heads: [(3, 3), (4, 2), (3, 1)][i % 3],
            layout: [Layout::HeadsFirst, Layout::Spaced][i % 2],
            ranges: true,
            ..c
        },
        Case {
            heads: (2, 2),
            layout: Layout::Spaced,
            out_f32: true,
            accumulate: true,
            ranges: i.is_multiple_of(3),
            ..c
        },
        // Heads share tiles.
        Case {
            sight: Sight::Random,
            tokens: (9, 150),
            heads: [(8, 1), (16, 2), (6, 1)][i % 3],
            layout: [Layout::Dense, Layout::HeadsFirst][i % 2],
            sinks: sinks(0),
            ..c
        },
        Case {
            sight: Sight::Long,
            tokens: (5, 1600),
            heads: [(2, 2), (8, 2)][i % 2],
            layout: [Layout::HeadsFirst, Layout::Dense, Layout::Spaced][i % 3],
            out_f32: i % 2 == 1,
            sinks: sinks(2).filter(|_| i % 4 < 2),
            ..c
        },
        Case {
            tokens: (150, 259),
            heads: (3, 1),
            layout: Layout::Spaced,
            out_f32: i.is_multiple_of(2),
            sinks: sinks(4),
            ranges: i.is_multiple_of(2),
            ..c
        },
    ]
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let all_dims = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)];
    for (i, dims) in all_dims.into_iter().enumerate() {
        all.extend(cases_of(i, Case { dims, ..PLAIN }));
    }
    // Rows that end before those of the kernel do: inside 16 bytes, inside 128, behind whole copies.
    for (dims, layout) in [
        ((40, 24), Layout::HeadsFirst),
        ((88, 67), Layout::Spaced),
        ((100, 97), Layout::Spaced),
        ((136, 120), Layout::Dense),
        ((129, 191), Layout::Spaced),
        ((216, 240), Layout::Spaced),
    ] {
        let sight = Sight::Random;
        let c = Case {
            dims,
            layout,
            sight,
            ..PLAIN
        };
        all.extend([c, Case { ranges: true, ..c }]);
    }
    let other = Case {
        dtype: DType::F16,
        ..PLAIN
    };
    all.extend(cases_of(6, other));
    let (softcap, max_logits) = (15.0, true);
    all.extend(cases_of(7, Case { softcap, ..PLAIN }));
    all.extend(cases_of(8, Case { max_logits, ..PLAIN }));
    let both = Case {
        softcap,
        max_logits,
        ..PLAIN
    };
    all.extend(cases_of(9, both).into_iter().filter(|c| c.choice(false).general));
    all
}

impl Case {
    fn shape(&self) -> AttnShape {
        shape(self.heads.0, self.heads.1, self.dims.0, self.dims.1, self.dtype)
    }

    /// The kernel that is asked for, or its general form.
    fn choice(&self, general: bool) -> ForwardChoice {
        let general = general || self.out_f32 || self.accumulate || self.sinks.is_some();
        ForwardChoice::new(&self.shape(), self.softcap > 0.0, self.max_logits, general).unwrap()
    }

    fn mask(&self, r: &mut Random) -> Mask {
        let (tq, tk) = self.tokens;
        let slice = |q: Range, k: Range, mask_type: MaskType| TypedSlice { q, k, mask_type };
        let slices: Vec<TypedSlice> = match self.sight {
            Sight::Random => return random_mask(r, tq, tk, 5),
            Sight::Long => vec![slice(
                Range::new(0, tq - 1),
                Range::new(0, tk - 3),
                MaskType::Causal,
            )],
            Sight::Types => (0..4)
                .map(|i| {
                    let (q, k) = (i * tq / 4, i * tk / 8);
                    let mask_type = MaskType::from_i32(i as i32).unwrap();
                    slice(
                        Range::new(q, q + tq / 4 - 2),
                        Range::new(k, k + tk / 2),
                        mask_type,
                    )
                })
                .collect(),
        };
        Mask::new(&slices, tq, tk).unwrap()
    }

    /// Of lse and sinks: their strides need not be those of whole 16 bytes.
    fn narrow_layout(&self) -> Layout {
        match self.layout {
            Layout::Dense => Layout::Dense,
            _ => Layout::Padded,
        }
    }

    fn options(&self, sm_margin: i32, workspace: *mut u8, workspace_bytes: usize) -> Options {
        Options {
            backend: Choice::Default,
            accumulate: self.accumulate,
            deterministic: false,
            sm_margin,
            max_items: 0,
            workspace,
            workspace_bytes,
        }
    }
}

/// Host tensors of a call.
struct Tensors {
    /// q, k, v and, with sinks, those.
    inputs: Vec<Buffer>,
    /// out and, where the case has them, lse and max_logits.
    outputs: Vec<Buffer>,
}

/// Operands of a case; keys and values that nothing sees are NaN, and so are outputs that nothing is merged into.
fn tensors(r: &mut Random, c: &Case, mask: &Mask) -> Tensors {
    let ((tq, tk), (hq, hkv), (d, dv)) = (c.tokens, c.heads, c.dims);
    let [_, keys] = seen(mask);
    let mut make = |shape: [i64; 3], sees: Option<&[bool]>| {
        let mut values = r.normals(shape.iter().product::<i64>() as usize, 1.0, c.dtype);
        if let Some(sees) = sees {
            hide(&mut values, (shape[1] * shape[2]) as usize, sees);
        }
        Buffer::new(&values, &shape, c.dtype, c.layout)
    };
    let mut inputs = vec![
        make([tq, hq, d], None),
        make([tk, hkv, d], Some(&keys)),
        make([tk, hkv, dv], Some(&keys)),
    ];
    if let Some((n, shared)) = c.sinks {
        let shape = [tq, n, hq];
        let shape = if shared { &shape[1..] } else { &shape[..] };
        let values = r.normals(shape.iter().product::<i64>() as usize, 2.0, DType::F32);
        inputs.push(Buffer::new(&values, shape, DType::F32, c.narrow_layout()));
    }
    let mut outputs = vec![Buffer::poisoned(
        &[tq, hq, dv],
        if c.out_f32 { DType::F32 } else { c.dtype },
        c.layout,
    )];
    if c.lse || c.accumulate {
        outputs.push(Buffer::poisoned(&[tq, hq], DType::F32, c.narrow_layout()));
    }
    if c.max_logits {
        outputs.push(Buffer::poisoned(&[hq], DType::F32, Layout::Dense));
    }
    if c.accumulate {
        for buffer in &mut outputs {
            let n = buffer.shape.iter().product::<i64>() as usize;
            buffer.set(&r.normals(n, 1.0, DType::F32));
        }
        if c.max_logits {
            let maxima = (0..hq).map(|h| if h % 2 == 0 { 100.0 } else { -100.0 });
            outputs[2].set(&maxima.collect::<Vec<f64>>());
        }
        // Now and then the earlier call saw nothing.
        let (mut out, mut lse) = (outputs[0].values(), outputs[1].values());
        for row in (0..lse.len()).step_by(3) {
            lse[row] = f64::NEG_INFINITY;
            out[row * dv as usize..][..dv as usize].fill(0.0);
        }
        outputs[0].set(&out);
        outputs[1].set(&lse);
    }
    Tensors { inputs, outputs }
}

/// Arguments over tensors in the order inputs, outputs.
fn args(c: &Case, t: &[Tensor]) -> Forward {
    let sinks = usize::from(c.sinks.is_some());
    let mut outputs = t[3 + sinks..].iter().copied();
    let mut next = |there: bool| there.then(|| outputs.next().unwrap());
    Forward {
        q: t[0],
        k: t[1],
        v: t[2],
        sink: (sinks == 1).then(|| t[3]),
        softmax_scale: 0.0,
        softcap: c.softcap,
        out: next(true).unwrap(),
        lse: next(c.lse || c.accumulate),
        max_logits: next(c.max_logits),
    }
}

impl Tensors {
    fn all(&mut self) -> Vec<Tensor> {
        let all = self.inputs.iter_mut().chain(&mut self.outputs);
        all.map(Buffer::tensor).collect()
    }

    fn values(&self) -> Vec<Vec<f64>> {
        self.outputs.iter().map(Buffer::values).collect()
    }

    /// Nothing lies between the elements of outputs but what was there.
    fn assert_intact(&mut self, c: &Case) {
        for (i, buffer) in self.outputs.iter_mut().enumerate() {
            let layout = if i == 0 { c.layout } else { c.narrow_layout() };
            let mut fresh = Buffer::new(&buffer.values(), &buffer.shape, buffer.dtype, layout);
            let same = fresh.bytes_mut() == buffer.bytes_mut();
            assert!(same, "{c:?}: something was written beside output {i}");
        }
    }
}

/// The outputs by the CPU backend.
fn on_the_cpu(c: &Case, mask: &Mask, t: &mut Tensors) -> Vec<Vec<f64>> {
    let a = args(c, &t.all());
    let bytes = single::forward_workspace(None, &a, &c.options(0, null_mut(), 0)).unwrap();
    let mut space = HostSpace::new(bytes);
    let source = Source::Mask(mask, &DeviceMask::default());
    let options = c.options(0, space.at(), bytes);
    single::forward(source, &a, &options, Stream::NULL).unwrap();
    t.values()
}

/// The same by the device, twice, with other multiprocessors left alone: every run has the same result.
fn on_the_device(gpu: &Arc<Gpu>, c: &Case, mask: &Mask, t: &mut Tensors) -> Vec<Vec<f64>> {
    let host = t.all();
    let lists = Lists::new(gpu, mask);
    let range_lists: RangeLists = lists.lists();
    let kept = DeviceMask::default();
    let count = t.inputs.len();
    let inputs: Vec<Copy> = host[..count].iter().map(|t| Copy::of(gpu, *t)).collect();
    let run = |t: &mut Tensors, margin: i32, poison: bool| {
        let outputs: Vec<Copy> = host[count..].iter().map(|t| Copy::of(gpu, *t)).collect();
        let tensors: Vec<Tensor> = inputs.iter().chain(&outputs).map(Copy::tensor).collect();
        let a = args(c, &tensors);
        let source = match c.ranges {
            true => Source::Ranges(&range_lists),
            false => Source::Mask(mask, &kept),
        };
        let ranges = c.ranges.then_some(&range_lists);
        let size = single::forward_workspace(ranges, &a, &c.options(margin, null_mut(), 0));
        let bytes = size.unwrap_or_else(|e| panic!("{c:?}: {e}"));
        // NaN, or memory that was never written, which tools look for.
        let space = match poison {
            true => DeviceMemory::upload(gpu, &vec![0xff; bytes]),
            false => DeviceMemory::new(gpu, bytes),
        };
        let space = space.unwrap();
        let options = c.options(margin, space.as_ptr(), bytes);
        single::forward(source, &a, &options, Stream::NULL).unwrap_or_else(|e| panic!("{c:?}: {e}"));
        stream::synchronize(gpu, Stream::NULL).unwrap();
        if poison && c.sight == Sight::Long {
            let mut left = vec![0; bytes];
            space.read(0, &mut left).unwrap();
            assert!(left.iter().any(|b| *b != 0xff), "{c:?}: no tile was cut");
        }
        // Results go over the host's outputs, which are put back for the next run.
        let before = t.values();
        outputs.iter().for_each(Copy::fetch);
        let found = t.values();
        let numbers = found.iter().flatten().all(|x| !x.is_nan());
        assert!(numbers, "{c:?}: NaN");
        t.assert_intact(c);
        for (buffer, values) in t.outputs.iter_mut().zip(&before) {
            buffer.set(values);
        }
        found
    };
    let first = run(t, 0, true);
    let second = run(t, 100, false);
    for (i, (a, b)) in first.iter().zip(&second).enumerate() {
        assert!(equal(a, b), "{c:?}: output {i} of another run");
    }
    first
}

fn check(gpu: &Arc<Gpu>, r: &mut Random, c: &Case) {
    let mask = c.mask(r);
    let mut t = tensors(r, c, &mask);
    let got = on_the_device(gpu, c, &mask, &mut t);
    let want = on_the_cpu(c, &mask, &mut t);
    // A GPU rounds P to the dtype on its way; the processor does not.
    let inner = match (gpu.properties().name.as_str(), c.dtype) {
        ("the processor", _) => 0.0,
        (_, DType::F16) => 2e-3,
        _ => 1e-2,
    };
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let dtype = t.outputs[i].dtype;
        let tolerance: f64 = if dtype == DType::F32 { 1e-4 } else { 5e-3 };
        let inner = if i == 0 { inner } else { 0.0 };
        let finite = want.iter().filter(|x| x.is_finite());
        let most = finite.fold(1.0, |m: f64, x| m.max(x.abs()));
        for (at, (x, y)) in got.iter().zip(want).enumerate() {
            let close = x == y || (x - y).abs() <= tolerance * y.abs().max(1.0) + inner * most;
            assert!(close, "{c:?}: output {i}[{at}] is {x}, not {y}");
        }
    }
}

#[test]
fn calls_against_the_cpu() {
    let Some(gpu) = hopper() else { return };
    let mut r = Random(1);
    for case in cases() {
        check(&gpu, &mut r, &case);
    }
}

#[test]
fn sides_without_tokens() {
    let Some(gpu) = hopper() else { return };
    let mut r = Random(2);
    for tokens in [(0, 5), (5, 0), (0, 0)] {
        for bits in 0..4 {
            let c = Case {
                sight: Sight::Random,
                tokens,
                sinks: (bits & 1 != 0).then_some((3, true)),
                ranges: bits & 2 != 0,
                ..PLAIN
            };
            check(&gpu, &mut r, &c);
        }
    }
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
    let mut r = Random(3);
    let mask = random_mask(&mut r, 9, 9, 3);
    let mut t = tensors(&mut r, &c, &mask);
    let copies: Vec<Copy> = t.all().into_iter().map(|t| Copy::of(&gpu, t)).collect();
    let good: Vec<Tensor> = copies.iter().map(Copy::tensor).collect();
    let kept = DeviceMask::default();
    let prepare = |all: &[Tensor]| {
        let options = c.options(0, null_mut(), 0);
        single::forward_prepare(Source::Mask(&mask, &kept), &args(&c, all), &options, Stream::NULL)
    };
    prepare(&good).unwrap();
    for (at, name) in ["args.q", "args.k", "args.v", "args.out"].into_iter().enumerate() {
        for (bad, says) in misplaced(&good[at]) {
            let mut all = good.clone();
            all[at] = bad;
            let e = prepare(&all).unwrap_err();
            assert_eq!(e.status, Status::InvalidStride, "{e}");
            assert!(e.message.starts_with(name) && e.message.contains(says), "{e}");
        }
    }
}

/// Every form is among the cases, and few kernels: compiling each takes seconds where none was compiled ahead of time.
#[test]
fn cases_reach_every_form() {
    let all = cases();
    let both = |c: &Case| [c.choice(false), c.choice(true)];
    let names: BTreeSet<String> = all.iter().flat_map(both).map(|c| c.variant().name).collect();
    assert_eq!(names.len(), 19, "{names:?}");
    let asked: BTreeSet<_> = all.iter().map(|c| c.choice(false).variant().name).collect();
    for dims in ["64", "96", "128", "192_128", "192", "256"] {
        for form in ["", "general_"] {
            assert!(
                asked.contains(&format!("attn_forward_{form}bf16_{dims}")),
                "{dims}"
            );
        }
    }
    let sinks: BTreeSet<_> = all.iter().filter_map(|c| c.sinks).collect();
    assert_eq!(sinks.len(), 6, "{sinks:?}");
    for block_q in [128, 192] {
        let packed = |c: &Case| pack(&c.shape(), c.tokens.0, block_q);
        let packs: BTreeSet<i64> = all.iter().map(packed).collect();
        assert!(packs.is_superset(&BTreeSet::from([1, 4, 6, 8])), "{packs:?}");
    }
}

#[test]
fn the_same_on_the_processor() {
    run_on_processors(4, "forward_calls", &[], 5);
}
