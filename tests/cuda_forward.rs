//! Keys from two places in one launch of the forward kernel, as a rank has them: its own and those that it fetched. Against
//! the CPU backend, on the first CUDA device of compute capability 9.0.

mod common_backend;
mod common_cuda;
mod common_reference;

use std::sync::Arc;

use common_backend::*;
use common_cuda::{Copy, hopper};
use magi_attn::backend::cuda::forward::ForwardTiles;
use magi_attn::backend::cuda::forward_kernel::{ForwardChoice, ForwardKernel};
use magi_attn::backend::cuda::forward_launch::ForwardCall;
use magi_attn::device::Stream;
use magi_attn::device::cuda::{DeviceMemory, Gpu, stream};
use magi_attn::plan::tiles::{StageRows, query_tiles};
use magi_attn::types::{DType, StageSlice, TileShape};

/// Largest difference of finite values; infinities must be in the same places.
fn assert_near(got: &[f64], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    let finite: Vec<f64> = want.iter().copied().filter(|x| x.is_finite()).collect();
    let bound = bound * peak(&finite).max(1.0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            g == w || (g - w).abs() <= bound,
            "{what}[{i}] is {g}, not {w} within {bound:e}"
        );
    }
}

/// Every slice in one launch (plain), or a launch for each third of them, merged into f32 (general). Whether a launch took
/// keys from both places.
fn check(gpu: &Arc<Gpu>, r: &mut Random, dtype: DType, dims: (i64, i64), general: bool) -> bool {
    let (tq, tk, hq, hkv) = (300, 500, 4, 2);
    let what = format!("{dtype:?}, head dims {dims:?}, general {general}");
    let mask = random_mask(r, tq, tk, 5);
    let (thirds, middle) = calls(&mask, true);
    let s = shape(hq, hkv, dims.0, dims.1, dtype);
    let o = operands(r, &mask, &s);
    let drive = Drive {
        layout: Layout::Dense,
        threads: 2,
        split: true,
    };
    let want = compute(&mask, &o, &s, drive);
    let launches: Vec<Vec<StageSlice>> = if general { thirds } else { vec![thirds.concat()] };
    let copy = |b: &mut Buffer| Copy::of(gpu, b.tensor());
    let q = copy(&mut Buffer::new(&o.q, &[tq, hq, dims.0], dtype, Layout::Dense));
    let k = sources(&o.k, [tk, hkv, dims.0], middle, dtype, Layout::Dense)
        .each_mut()
        .map(copy);
    let v = sources(&o.v, [tk, hkv, dims.1], middle, dtype, Layout::Dense)
        .each_mut()
        .map(copy);
    let out_dtype = if general { DType::F32 } else { dtype };
    let zeros = vec![0.0; (tq * hq * dims.1) as usize];
    let nothing = vec![f64::NEG_INFINITY; (tq * hq) as usize];
    let mut out_host = Buffer::new(&zeros, &[tq, hq, dims.1], out_dtype, Layout::Dense);
    let mut lse_host = Buffer::new(&nothing, &[tq, hq], DType::F32, Layout::Dense);
    let (out, lse) = (copy(&mut out_host), copy(&mut lse_host));
    let tensors = |pair: &[Copy; 2]| pair.each_ref().map(|c| Some(c.tensor()));
    let kernel = ForwardKernel::load(gpu, ForwardChoice::new(&s, false, false, general).unwrap()).unwrap();
    let rows = StageRows {
        q: tq,
        k: [middle, tk - middle],
    };
    let (mut kept, mut both) = (Vec::new(), false);
    for slices in &launches {
        let list = query_tiles(slices, &rows, &TileShape::new(kernel.block_q, kernel.block_k)).unwrap();
        let is_named = |n| list.items.iter().any(|i| i.source == n);
        both |= is_named(0) && is_named(1);
        let tiles = ForwardTiles::new(gpu, kernel.clone(), &s, &list, 1, None).unwrap();
        let workspace = DeviceMemory::new(gpu, tiles.workspace_bytes().max(256)).unwrap();
        let call = ForwardCall {
            q: q.tensor(),
            k: tensors(&k),
            v: tensors(&v),
            sink: None,
            softmax_scale: o.scale,
            softcap: 0.0,
            out: out.tensor(),
            lse: Some(lse.tensor()),
            max_logits: None,
            accumulate: general,
            earlier: None,
            sm_margin: 0,
            workspace: workspace.as_ptr().cast(),
        };
        // SAFETY: all of it lives until the device has been waited for, below; the list was made for these tensors.
        unsafe { tiles.enqueue(&call, Stream::NULL) }.unwrap();
        kept.push((tiles, workspace));
    }
    stream::synchronize(gpu, Stream::NULL).unwrap();
    out.fetch();
    lse.fetch();
    let bound = if dtype == DType::F16 { 4e-3 } else { 3e-2 };
    assert_near(&lse_host.values(), &want.lse, 1e-4, &format!("{what}: lse"));
    assert_near(&out_host.values(), &want.out, bound, &format!("{what}: out"));
    both
}

#[test]
fn keys_from_two_places() {
    let Some(gpu) = hopper() else { return };
    let mut r = Random(31);
    for dtype in [DType::Bf16, DType::F16] {
        for dims in [(64, 64), (128, 128), (192, 128), (256, 256)] {
            let both = (0..3).filter(|_| check(&gpu, &mut r, dtype, dims, false)).count();
            assert!(both > 0, "no launch took keys from both places");
        }
    }
    for dims in [(64, 64), (128, 128)] {
        for _ in 0..3 {
            check(&gpu, &mut r, DType::Bf16, dims, true);
        }
    }
}
