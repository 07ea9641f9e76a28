//! Row moves, reductions, merges and elementwise operations against naive loops.

mod common_backend;
mod common_reference;

use common_backend::*;
use magi_attn::backend::{Backend, CpuBackend, ForwardArgs};
use magi_attn::types::{DType, Device, Mask, Range, StageSlice, Status, Tensor};

const LAYOUTS: [Layout; 4] = [
    Layout::Dense,
    Layout::Padded,
    Layout::HeadsFirst,
    Layout::Backwards,
];

/// Ranges of `[0, 30)`, not sorted, one of them empty, some rows twice.
fn ranges() -> Vec<Range> {
    [(20, 25), (3, 4), (7, 7), (0, 9), (22, 30)]
        .map(|(a, b)| Range::new(a, b))
        .to_vec()
}

fn tokens() -> Vec<usize> {
    ranges()
        .iter()
        .flat_map(|r| r.start as usize..r.end as usize)
        .collect()
}

#[test]
fn rows_are_gathered_scattered_and_reduced() {
    let backend = CpuBackend::new();
    let mut r = Random(31);
    let (ranges, tokens) = (ranges(), tokens());
    let packed_shape = [tokens.len() as i64, 3, 5];
    for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
        for (i, &layout) in LAYOUTS.iter().enumerate() {
            let other = LAYOUTS[(i + 1) % 4];
            let values = r.normals(30 * 15, 1.0, dtype);
            let mut spread = Buffer::new(&values, &[30, 3, 5], dtype, layout);
            let mut packed = Buffer::poisoned(&packed_shape, dtype, other);
            backend
                .range_gather(spread.tensor(), &ranges, packed.tensor())
                .unwrap();
            let want: Vec<f64> = tokens
                .iter()
                .flat_map(|&t| values[t * 15..][..15].to_vec())
                .collect();
            assert_eq!(packed.values(), want);

            let more = r.normals(want.len(), 1.0, dtype);
            let mut more_packed = Buffer::new(&more, &packed_shape, dtype, other);
            backend
                .range_scatter(more_packed.tensor(), spread.tensor(), &ranges)
                .unwrap();
            let mut naive = values.clone();
            for (row, &t) in tokens.iter().enumerate() {
                naive[t * 15..][..15].copy_from_slice(&more[row * 15..][..15]);
            }
            assert_eq!(spread.values(), naive);

            let acc = dtype.accumulator();
            let mut sums = Buffer::new(&values, &[30, 3, 5], acc, layout);
            backend
                .range_reduce(more_packed.tensor(), sums.tensor(), &ranges)
                .unwrap();
            let mut naive = values.clone();
            for (row, &t) in tokens.iter().enumerate() {
                for (sum, x) in naive[t * 15..][..15].iter_mut().zip(&more[row * 15..]) {
                    *sum = common_reference::round(acc, *sum + x);
                }
            }
            assert_eq!(sums.values(), naive);
        }
    }
}

#[test]
fn rows_of_any_dtype_move() {
    let backend = CpuBackend::new();
    let mut from: Vec<i16> = (0..60).collect();
    let mut to = [0i16; 10];
    // SAFETY: the arrays hold these elements and outlive the tensors.
    let (src, dst) = unsafe {
        (
            Tensor::from_raw(
                from.as_mut_ptr().cast(),
                DType::I16,
                Device::Cpu,
                &[30, 2],
                &[2, 1],
            ),
            Tensor::dense(to.as_mut_ptr().cast(), DType::I16, Device::Cpu, &[5, 2]),
        )
    };
    backend
        .range_gather(src, &[Range::new(28, 30), Range::new(4, 7)], dst)
        .unwrap();
    assert_eq!(to, [56, 57, 58, 59, 8, 9, 10, 11, 12, 13]);
    // One dimension: each row is an element.
    let (src, dst) = (src.rows(0, 5), dst);
    assert_eq!(
        backend
            .range_reduce(dst, src, &[Range::new(0, 5)])
            .unwrap_err()
            .status,
        Status::DtypeMismatch
    );
}

#[test]
fn ranges_that_do_not_fit_are_refused() {
    let backend = CpuBackend::new();
    let mut src = Buffer::new(&[1.0; 40], &[10, 4], DType::F32, Layout::Dense);
    let mut dst = Buffer::poisoned(&[3, 4], DType::F32, Layout::Dense);
    for (bad, status) in [
        (Range::new(8, 11), Status::InvalidRange),
        (Range::new(-1, 2), Status::InvalidRange),
        (Range::new(0, 2), Status::ShapeMismatch),
        (Range::new(0, 4), Status::ShapeMismatch),
    ] {
        let error = backend
            .range_gather(src.tensor(), &[bad], dst.tensor())
            .unwrap_err();
        assert_eq!(error.status, status, "{bad}");
    }
    let mut wide = Buffer::poisoned(&[3, 5], DType::F32, Layout::Dense);
    let error = backend
        .range_gather(src.tensor(), &[Range::new(0, 3)], wide.tensor())
        .unwrap_err();
    assert_eq!(error.status, Status::ShapeMismatch);
}

#[test]
fn merging_pieces_gives_the_whole() {
    let backend = CpuBackend::new();
    let mut r = Random(32);
    for sink in [false, true] {
        let mask = random_mask(&mut r, 90, 120, 9);
        let s = shape(2, 1, 16, 24, DType::F64);
        let mut o = operands(&mut r, &mask, &s);
        o.q.iter_mut().for_each(|x| *x *= 20.0);
        o.sink = sink.then(|| random_sink(&mut r, 90, 2, 2, false));
        let want = compute(&mask, &o, &s, PLAIN);
        let mut q = Buffer::new(&o.q, &[90, 2, 16], DType::F64, Layout::Dense);
        let mut k = Buffer::new(&o.k, &[120, 1, 16], DType::F64, Layout::Dense);
        let mut v = Buffer::new(&o.v, &[120, 1, 24], DType::F64, Layout::Dense);
        let mut z = o
            .sink
            .as_ref()
            .map(|z| Buffer::new(&z.logits, &[2, 2], DType::F32, Layout::Dense));
        let mut whole: Option<(Buffer, Buffer)> = None;
        // Each piece sees a third of the slices, and only the first one the sink.
        for piece in 0..3 {
            let third = mask.slices().iter().skip(piece).step_by(3);
            let slices: Vec<_> = third.map(|s| StageSlice { slice: *s, source: 0 }).collect();
            let mut out = Buffer::poisoned(&[90, 2, 24], DType::F64, Layout::HeadsFirst);
            let mut lse = Buffer::poisoned(&[90, 2], DType::F64, Layout::HeadsFirst);
            let sink = z.as_mut().filter(|_| piece == 0).map(Buffer::tensor);
            backend.attn_init(out.tensor(), lse.tensor(), None, sink).unwrap();
            let args = ForwardArgs {
                q: q.tensor(),
                k: [Some(k.tensor()), None],
                v: [Some(v.tensor()), None],
                slices: &slices,
                shape: s,
                softmax_scale: o.scale,
                softcap: 0.0,
                out: out.tensor(),
                lse: lse.tensor(),
                max_logits: None,
            };
            backend.attn_forward(&args).unwrap();
            let Some((to, to_lse)) = &mut whole else {
                whole = Some((out, lse));
                continue;
            };
            // The packed side has the rows in another order: last third first.
            let order = [Range::new(60, 90), Range::new(0, 60)];
            let mut packed = Buffer::poisoned(&[90, 2, 24], DType::F64, Layout::Padded);
            let mut packed_lse = Buffer::poisoned(&[90, 2], DType::F64, Layout::Padded);
            backend
                .range_gather(out.tensor(), &order, packed.tensor())
                .unwrap();
            backend
                .range_gather(lse.tensor(), &order, packed_lse.tensor())
                .unwrap();
            let to = (to.tensor(), to_lse.tensor());
            backend
                .lse_reduce(packed.tensor(), packed_lse.tensor(), to.0, to.1, &order)
                .unwrap();
        }
        let (out, lse) = whole.unwrap();
        assert!(distance(&out.values(), &want.out) < 1e-12);
        assert!(distance(&lse.values(), &want.lse) < 1e-12 * peak(&[100.0]));
    }
}

#[test]
fn minus_infinity_weighs_nothing_when_merged() {
    let backend = CpuBackend::new();
    let (no, nan) = (f64::NEG_INFINITY, f64::NAN);
    let mut out = Buffer::new(&[nan, 2.0, 3.0, 0.0], &[4, 1, 1], DType::F32, Layout::Dense);
    let mut lse = Buffer::new(&[no, 0.5, 1000.0, no], &[4, 1], DType::F32, Layout::Dense);
    let mut to = Buffer::new(&[7.0, nan, 5.0, 0.0], &[4, 1, 1], DType::F32, Layout::Dense);
    let mut to_lse = Buffer::new(&[0.25, no, 1000.0, no], &[4, 1], DType::F32, Layout::Dense);
    let tensors = (out.tensor(), lse.tensor());
    backend
        .lse_reduce(
            tensors.0,
            tensors.1,
            to.tensor(),
            to_lse.tensor(),
            &[Range::new(0, 4)],
        )
        .unwrap();
    assert_eq!(to.values(), [7.0, 2.0, 4.0, 0.0]);
    assert_eq!(
        to_lse.values(),
        [0.25, 0.5, f64::from((1000.0 + 2f64.ln()) as f32), no]
    );
}

#[test]
fn elements_are_cast_divided_cleared_and_searched() {
    let backend = CpuBackend::new();
    let mut r = Random(33);
    let all = [DType::F64, DType::F32, DType::Bf16, DType::F16];
    for (i, from) in all.into_iter().enumerate() {
        for (j, to) in all.into_iter().enumerate() {
            let values = r.normals(6 * 4 * 3, 3.0, from);
            let start = r.normals(values.len(), 3.0, to);
            let mut src = Buffer::new(&values, &[6, 4, 3], from, LAYOUTS[i]);
            let mut dst = Buffer::poisoned(&[6, 4, 3], to, LAYOUTS[j]);
            backend.cast(src.tensor(), dst.tensor(), false).unwrap();
            // Random doubles are no ties of the narrower types, so rounding twice is rounding once.
            let want: Vec<f64> = values.iter().map(|x| common_reference::round(to, *x)).collect();
            assert_eq!(dst.values(), want);
            dst.set(&start);
            backend.cast(src.tensor(), dst.tensor(), true).unwrap();
            let ulp = [2f64.powi(-52), 2f64.powi(-23), 2f64.powi(-7), 2f64.powi(-10)][j];
            for ((got, a), b) in dst.values().iter().zip(&start).zip(&values) {
                assert!((got - (a + b)).abs() <= ulp / 2.0 * (a + b).abs());
            }
            dst.set(&start);
            backend.divide(dst.tensor(), 3).unwrap();
            for (got, a) in dst.values().iter().zip(&start) {
                assert!((got - a / 3.0).abs() <= ulp / 2.0 * (a / 3.0).abs());
            }
            // The NaN around the elements does not count.
            assert!(!backend.has_nan(dst.tensor()).unwrap());
            let mut spoiled = start.clone();
            spoiled[41] = f64::NAN;
            dst.set(&spoiled);
            assert!(backend.has_nan(dst.tensor()).unwrap());
            backend.fill_zero(dst.tensor()).unwrap();
            assert_eq!(dst.values(), vec![0.0; start.len()]);
        }
    }
    let mut one = Buffer::new(&[1.0], &[1], DType::F32, Layout::Dense);
    assert_eq!(
        backend.divide(one.tensor(), 0).unwrap_err().status,
        Status::InvalidArgument
    );
}

#[test]
fn only_elements_are_written() {
    let backend = CpuBackend::new();
    let mut padded = Buffer::new(&[1.0; 60], &[5, 4, 3], DType::F32, Layout::Padded);
    let t = padded.tensor();
    // The same memory with its padding as elements of a wider tensor.
    // SAFETY: the padding of the first four tokens lies inside the buffer.
    let wide = unsafe {
        Tensor::from_raw(
            t.data(),
            t.dtype(),
            t.device(),
            &[4, t.stride()[0]],
            &[t.stride()[0], 1],
        )
    };
    backend.fill_zero(t).unwrap();
    backend.cast(t, t, true).unwrap();
    assert!(!backend.has_nan(t).unwrap() && backend.has_nan(wide).unwrap());
}

#[test]
fn sinks_of_an_empty_rank() {
    let backend = CpuBackend::new();
    let mask = Mask::new(&[], 0, 0).unwrap();
    assert_eq!(mask.area(), 0);
    let mut lse = Buffer::poisoned(&[0, 2], DType::F32, Layout::Dense);
    let mut sink = Buffer::new(&[1.0; 6], &[3, 2], DType::F32, Layout::Dense);
    let mut dsink = Buffer::poisoned(&[3, 2], DType::F32, Layout::Dense);
    let (l, s) = (lse.tensor(), sink.tensor());
    backend.sink_backward(s, l, l, dsink.tensor()).unwrap();
    assert_eq!(dsink.values(), [0.0; 6]);
}
