//! Textbook attention against the CPU backend: on the first CUDA device where there is one, and in part everywhere on the
//! processor, through a driver for tests (tests/host_driver) that runs the same launches.

mod common_backend;
mod common_cuda;
mod common_reference;

use std::sync::Arc;

use common_backend::*;
use common_cuda::{Copy, gpu, run_on_the_processor};
use common_reference::{Answer, Operands, round};
use magi_attn::backend::cuda::textbook::Textbook;
use magi_attn::backend::cuda::textbook_params::tile_shape;
use magi_attn::backend::cuda::tile_lists::DeviceTiles;
use magi_attn::backend::{Backend, BackwardArgs, CudaBackend, ForwardArgs};
use magi_attn::device::Stream;
use magi_attn::device::cuda::{Gpu, stream};
use magi_attn::plan::tiles::{StageRows, key_tiles, query_tiles};
use magi_attn::types::{
    AttnShape, DType, Mask, MaskType, Range, Slice, StageSlice, Status, Tensor, TypedSlice,
};

/// What a problem is computed in, on the device.
struct Space {
    gpu: Arc<Gpu>,
    backend: CudaBackend,
    textbook: Textbook,
}

impl Space {
    fn new(gpu: &Arc<Gpu>) -> Space {
        Space {
            gpu: gpu.clone(),
            backend: CudaBackend::new(gpu, Stream::NULL).unwrap(),
            textbook: Textbook::load(gpu).unwrap(),
        }
    }

    fn copy(&self, buffer: &mut Buffer) -> Copy {
        Copy::of(&self.gpu, buffer.tensor())
    }

    /// What is in `copy`, read through the buffer that it was made from.
    fn values(&self, copy: &Copy, buffer: &Buffer) -> Vec<f64> {
        stream::synchronize(&self.gpu, Stream::NULL).unwrap();
        copy.fetch();
        buffer.values()
    }

    fn tiles(&self, slices: &[StageSlice], rows: &StageRows, dtype: DType) -> [DeviceTiles; 2] {
        let shape = tile_shape(dtype);
        [
            query_tiles(slices, rows, &shape).unwrap(),
            key_tiles(slices, rows, &shape).unwrap(),
        ]
        .map(|list| DeviceTiles::upload(&self.gpu, &list).unwrap())
    }
}

/// `common_backend::compute`, by the textbook kernels.
fn on_device(space: &Space, mask: &Mask, o: &Operands, s: &AttnShape, drive: Drive) -> Answer {
    let (tq, tk) = (mask.total_q(), mask.total_k());
    let (hq, hkv, d, dv, dtype) = (s.heads_q, s.heads_kv, s.head_dim, s.head_dim_v, s.dtype);
    let (acc, layout) = (dtype.accumulator(), drive.layout);
    let backend = &space.backend;
    let (calls, middle) = calls(mask, drive.split);
    let rows = StageRows {
        q: tq,
        k: [middle, tk - middle],
    };
    let lists: Vec<[DeviceTiles; 2]> = calls.iter().map(|c| space.tiles(c, &rows, dtype)).collect();
    let copy = |b: &mut Buffer| space.copy(b);
    let q = copy(&mut Buffer::new(&o.q, &[tq, hq, d], dtype, layout));
    let dout = copy(&mut Buffer::new(&o.dout, &[tq, hq, dv], dtype, layout));
    let k = sources(&o.k, [tk, hkv, d], middle, dtype, layout)
        .each_mut()
        .map(copy);
    let v = sources(&o.v, [tk, hkv, dv], middle, dtype, layout)
        .each_mut()
        .map(copy);
    let mut out_host = Buffer::poisoned(&[tq, hq, dv], acc, layout);
    let mut lse_host = Buffer::poisoned(&[tq, hq], acc, layout);
    let mut max_host = Buffer::poisoned(&[hq], DType::F32, Layout::Dense);
    let mut final_host = Buffer::poisoned(&[tq, hq, dv], dtype, layout);
    let (out, lse) = (copy(&mut out_host), copy(&mut lse_host));
    let (max, final_out) = (copy(&mut max_host), copy(&mut final_host));
    let tensors = |pair: &[Copy; 2]| pair.each_ref().map(|c| Some(c.tensor()));
    backend
        .attn_init(out.tensor(), lse.tensor(), Some(max.tensor()), None)
        .unwrap();
    for (slices, [tiles, _]) in calls.iter().zip(&lists) {
        let args = ForwardArgs {
            q: q.tensor(),
            k: tensors(&k),
            v: tensors(&v),
            slices,
            shape: *s,
            softmax_scale: o.scale,
            softcap: o.cap,
            out: out.tensor(),
            lse: lse.tensor(),
            max_logits: Some(max.tensor()),
        };
        space.textbook.forward(Stream::NULL, tiles, &args).unwrap();
    }
    backend.cast(out.tensor(), final_out.tensor(), false).unwrap();
    let mut answer = Answer {
        out: space.values(&final_out, &final_host),
        lse: space.values(&lse, &lse_host),
        max_logits: space.values(&max, &max_host),
        ..Answer::default()
    };
    let mut delta_host = Buffer::poisoned(&[tq, hq], acc, layout);
    let delta = copy(&mut delta_host);
    backend
        .attn_delta(final_out.tensor(), dout.tensor(), delta.tensor())
        .unwrap();
    let zeros = vec![0.0; (tq * hq * d) as usize];
    let mut dq_host = Buffer::new(&zeros, &[tq, hq, d], acc, layout);
    let mut dk_host = sources(&[], [tk, hkv, d], middle, acc, layout);
    let mut dv_host = sources(&[], [tk, hkv, dv], middle, acc, layout);
    let dq = copy(&mut dq_host);
    let (dk, dv) = (dk_host.each_mut().map(copy), dv_host.each_mut().map(copy));
    for (slices, [queries, keys]) in calls.iter().zip(&lists) {
        let args = BackwardArgs {
            q: q.tensor(),
            k: tensors(&k),
            v: tensors(&v),
            dout: dout.tensor(),
            lse: lse.tensor(),
            delta: delta.tensor(),
            slices,
            shape: *s,
            softmax_scale: o.scale,
            softcap: o.cap,
            dq: dq.tensor(),
            dk: tensors(&dk),
            dv: tensors(&dv),
        };
        space
            .textbook
            .backward(Stream::NULL, queries, keys, &args)
            .unwrap();
    }
    let rounded = |x: Vec<f64>| x.into_iter().map(|x| round(dtype, x)).collect();
    let both = |copies: &[Copy; 2], hosts: &[Buffer; 2]| -> Vec<f64> {
        let each = copies.iter().zip(hosts);
        each.flat_map(|(c, h)| space.values(c, h)).collect()
    };
    answer.dq = rounded(space.values(&dq, &dq_host));
    answer.dk = rounded(both(&dk, &dk_host));
    answer.dv = rounded(both(&dv, &dv_host));
    answer
}

/// Every result within `bound` of its largest finite value, or of 1; infinities and NaN in the same places.
fn assert_near(got: &Answer, want: &Answer, bound: f64, what: &str) {
    for (name, got, want) in [
        ("out", &got.out, &want.out),
        ("lse", &got.lse, &want.lse),
        ("max_logits", &got.max_logits, &want.max_logits),
        ("dq", &got.dq, &want.dq),
        ("dk", &got.dk, &want.dk),
        ("dv", &got.dv, &want.dv),
    ] {
        assert_eq!(got.len(), want.len());
        let finite: Vec<f64> = want.iter().copied().filter(|x| x.is_finite()).collect();
        let bound = if name == "max_logits" {
            bound.max(1e-6)
        } else {
            bound
        } * peak(&finite).max(1.0);
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let good = g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= bound;
            assert!(good, "{what}: {name}[{i}] is {g}, not {w} within {bound:e}");
        }
    }
}

/// Both backends on one problem.
fn check(space: &Space, mask: &Mask, o: &Operands, s: &AttnShape, drive: Drive, what: &str) {
    let bound = match s.dtype {
        DType::F64 => 1e-11,
        DType::F32 => 2e-5,
        // One rounding of out, which gradients take in.
        DType::F16 => 4e-3,
        _ => 3e-2,
    };
    let what = format!("{what}, {s:?}, {:?}, split {}", drive.layout, drive.split);
    let want = compute(mask, o, s, drive);
    let got = on_device(space, mask, o, s, drive);
    assert_near(&got, &want, bound, &what);
    let again = on_device(space, mask, o, s, drive);
    let bits = |a: &Answer| -> Vec<u64> {
        let all = [&a.out, &a.lse, &a.max_logits, &a.dq, &a.dk, &a.dv];
        all.iter().flat_map(|x| x.iter().map(|x| x.to_bits())).collect()
    };
    assert!(bits(&got) == bits(&again), "{what}: two runs differ");
}

const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::Bf16, DType::F16];
const LAYOUTS: [Layout; 4] = [
    Layout::Dense,
    Layout::Padded,
    Layout::HeadsFirst,
    Layout::Backwards,
];

fn drive(layout: Layout, split: bool) -> Drive {
    Drive {
        layout,
        threads: 2,
        split,
    }
}

/// One slice over everything.
fn whole(tokens_q: i64, tokens_k: i64, mask_type: MaskType) -> Mask {
    let (q, k) = (Range::new(0, tokens_q), Range::new(0, tokens_k));
    Mask::new(&[TypedSlice { q, k, mask_type }], tokens_q, tokens_k).unwrap()
}

#[test]
fn every_dtype_layout_and_mask() {
    let Some(gpu) = gpu() else { return };
    let (space, mut r) = (Space::new(&gpu), Random(11));
    for dtype in DTYPES {
        for (i, heads) in [(4, 2), (3, 1), (2, 2), (6, 2)].into_iter().enumerate() {
            let mask = random_mask(&mut r, 150 + 37 * i as i64, 190 - 29 * i as i64, 5);
            let s = shape(heads.0, heads.1, 40, 24, dtype);
            let mut o = operands(&mut r, &mask, &s);
            if i % 2 == 1 {
                (o.cap, o.scale) = (1.5, 0.6);
            }
            check(&space, &mask, &o, &s, drive(LAYOUTS[i], false), "random mask");
            check(
                &space,
                &mask,
                &o,
                &s,
                drive(LAYOUTS[(i + 1) % 4], true),
                "random mask",
            );
        }
    }
}

#[test]
fn every_type_of_slice_over_ends_of_tiles() {
    let Some(gpu) = gpu() else { return };
    let (space, mut r) = (Space::new(&gpu), Random(12));
    for dtype in [DType::F64, DType::Bf16] {
        for n in 0..4 {
            let mask_type = MaskType::from_i32(n).unwrap();
            for (tq, tk) in [(64, 64), (65, 200), (200, 63), (1, 130), (130, 1)] {
                let mask = whole(tq, tk, mask_type);
                let s = shape(2, 1, 16, 8, dtype);
                let o = operands(&mut r, &mask, &s);
                check(&space, &mask, &o, &s, PLAIN, &format!("{mask_type:?}"));
            }
        }
    }
}

#[test]
fn head_dims_to_the_largest() {
    let Some(gpu) = gpu() else { return };
    let (space, mut r) = (Space::new(&gpu), Random(13));
    for dtype in DTYPES {
        for (d, dv) in [(8, 9), (33, 128), (128, 64), (129, 300), (512, 512), (1024, 8)] {
            let mask = whole(70, 90, MaskType::Causal);
            let s = shape(2, 1, d, dv, dtype);
            let o = operands(&mut r, &mask, &s);
            check(&space, &mask, &o, &s, PLAIN, "head dims");
        }
    }
}

#[test]
fn scales_of_any_sign_and_extreme_softcaps() {
    let Some(gpu) = gpu() else { return };
    let (space, mut r) = (Space::new(&gpu), Random(14));
    for dtype in [DType::F64, DType::F32, DType::F16] {
        for (scale, cap) in [
            (-0.3, 0.0),
            (0.0, 0.0),
            (-0.5, 2.0),
            (5.0, 0.0),
            (0.2, 1e4),
            (0.2, 1e-60),
        ] {
            let mask = random_mask(&mut r, 60, 70, 4);
            let s = shape(2, 1, 16, 16, dtype);
            let mut o = operands(&mut r, &mask, &s);
            (o.scale, o.cap) = (scale, cap);
            let what = format!("scale {scale}, softcap {cap}");
            check(&space, &mask, &o, &s, drive(Layout::Dense, true), &what);
        }
    }
}

/// Sets the rows that `pick` names to NaN.
fn poison(x: &mut [f64], row: usize, pick: impl Fn(usize) -> bool) {
    for (token, x) in x.chunks_mut(row).enumerate() {
        if pick(token) {
            x.fill(f64::NAN);
        }
    }
}

#[test]
fn tokens_that_a_row_does_not_see_leave_no_trace() {
    let Some(gpu) = gpu() else { return };
    let (space, mut r) = (Space::new(&gpu), Random(15));
    for dtype in DTYPES {
        for split in [false, true] {
            let mask = random_mask(&mut r, 140, 150, 3);
            let s = shape(2, 1, 24, 16, dtype);
            let mut o = operands(&mut r, &mask, &s);
            let sees = |q: usize| !common_reference::visible_keys(&mask, q).is_empty();
            let seen = |k: i64| {
                mask.slices()
                    .iter()
                    .any(|s| (s.q.start..s.q.end).any(|q| s.contains(q, k)))
            };
            poison(&mut o.q, 48, |t| !sees(t));
            poison(&mut o.dout, 32, |t| !sees(t));
            poison(&mut o.k, 24, |t| !seen(t as i64));
            poison(&mut o.v, 16, |t| !seen(t as i64));
            check(
                &space,
                &mask,
                &o,
                &s,
                drive(Layout::Dense, split),
                "NaN that nothing sees",
            );
            // Some rows of a tile see these, others do not.
            let mask = whole(100, 100, MaskType::Causal);
            let mut o = operands(&mut r, &mask, &s);
            poison(&mut o.v, 16, |t| t == 70);
            poison(&mut o.dout, 32, |t| t == 40);
            check(
                &space,
                &mask,
                &o,
                &s,
                drive(Layout::Dense, split),
                "NaN that some rows see",
            );
        }
    }
}

#[test]
fn empty_problems_and_lists_that_do_not_fit() {
    let Some(gpu) = gpu() else { return };
    let (space, mut r) = (Space::new(&gpu), Random(16));
    let s = shape(2, 1, 16, 16, DType::F32);
    for (tq, tk) in [(0, 0), (0, 9), (9, 0), (9, 9)] {
        let mask = Mask::new(&[], tq, tk).unwrap();
        let o = operands(&mut r, &mask, &s);
        check(&space, &mask, &o, &s, PLAIN, "empty");
    }
    let copy = |shape: &[i64]| space.copy(&mut Buffer::poisoned(shape, DType::F32, Layout::Dense));
    let (q, k, out, lse) = (
        copy(&[9, 2, 16]),
        copy(&[9, 1, 16]),
        copy(&[9, 2, 16]),
        copy(&[9, 2]),
    );
    let full = Slice::from_typed(&TypedSlice {
        q: Range::new(0, 9),
        k: Range::new(0, 10),
        mask_type: MaskType::Full,
    });
    let slices = [StageSlice {
        slice: full,
        source: 0,
    }];
    let forward = |tiles: &DeviceTiles, keys: Option<Tensor>| {
        let args = ForwardArgs {
            q: q.tensor(),
            k: [keys, None],
            v: [Some(k.tensor()), None],
            slices: &slices,
            shape: s,
            softmax_scale: 1.0,
            softcap: 0.0,
            out: out.tensor(),
            lse: lse.tensor(),
            max_logits: None,
        };
        space.textbook.forward(Stream::NULL, tiles, &args).unwrap_err()
    };
    let rows = StageRows { q: 9, k: [10, 0] };
    let [tiles, _] = space.tiles(&slices, &rows, DType::F32);
    let error = forward(&tiles, Some(k.tensor()));
    assert_eq!(error.status, Status::InvalidRange);
    assert!(error.message.contains("keys below 10"), "{error}");
    let [tiles, _] = space.tiles(&slices, &rows, DType::F64);
    assert_eq!(forward(&tiles, Some(k.tensor())).status, Status::Internal);
    let [tiles, _] = space.tiles(&[], &rows, DType::F32);
    assert_eq!(forward(&tiles, Some(q.tensor())).status, Status::ShapeMismatch);
}

#[test]
fn the_same_launches_give_the_same_on_the_processor() {
    // The others take half a minute there.
    let quick = [
        "every_type_of",
        "tokens_that",
        "scales_of",
        "empty_problems",
        "the_same_launches",
    ];
    run_on_the_processor("cuda_textbook", &quick, quick.len());
}
