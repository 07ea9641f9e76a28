//! What must not reach a result, what must not change it, and what is refused.

mod common_backend;
mod common_reference;

use common_backend::*;
use common_reference::{Answer, Arithmetic, attention};
use magi_attn::backend::{Backend, CpuBackend, ForwardArgs};
use magi_attn::types::{
    AttnShape, Band, DType, Device, Mask, MaskType, Range, Slice, StageSlice, Status, Tensor, TypedSlice,
};

fn bits(a: &Answer) -> Vec<u64> {
    let all = [&a.out, &a.lse, &a.max_logits, &a.dq, &a.dk, &a.dv, &a.dsink];
    all.into_iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn the_same_bits_with_any_number_of_threads() {
    let mut r = Random(21);
    for dtype in [DType::F64, DType::Bf16] {
        let mask = random_mask(&mut r, 700, 800, 30);
        let s = shape(4, 2, 32, 32, dtype);
        let mut o = operands(&mut r, &mask, &s);
        o.sink = Some(random_sink(&mut r, 700, 4, 1, false));
        let one = bits(&compute(&mask, &o, &s, Drive { threads: 1, ..PLAIN }));
        for threads in [1, 2, 3, 7] {
            let again = bits(&compute(&mask, &o, &s, Drive { threads, ..PLAIN }));
            assert!(one == again, "{threads} threads");
        }
    }
}

#[test]
fn what_nothing_sees_reaches_nothing() {
    let mut r = Random(22);
    for (round, poison) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::NAN]
        .into_iter()
        .enumerate()
    {
        let mask = random_mask(&mut r, 190, 210, 6);
        let s = shape(4, 2, 16, 24, DType::F64);
        let mut o = operands(&mut r, &mask, &s);
        o.cap = if round == 3 { 2.0 } else { 0.0 };
        let want = attention(&mask, &o, Arithmetic::Exact);
        let mut seen = vec![false; 210];
        let mut unseen_queries = 0;
        for q in 0..190 {
            let keys = common_reference::visible_keys(&mask, q);
            keys.iter().for_each(|&k| seen[k] = true);
            if keys.is_empty() {
                o.q[q * 64..][..64].fill(poison);
                o.dout[q * 96..][..96].fill(poison);
                unseen_queries += 1;
            }
        }
        for k in (0..210).filter(|&k| !seen[k]) {
            o.k[k * 32..][..32].fill(poison);
            o.v[k * 48..][..48].fill(poison);
        }
        assert!(
            unseen_queries > 0 || seen.contains(&false),
            "the mask of round {round} leaves nothing out"
        );
        let got = compute(
            &mask,
            &o,
            &s,
            Drive {
                split: round % 2 == 1,
                ..PLAIN
            },
        );
        // delta of unseen queries is 0 * poison; it must not matter.
        assert_exact(&got, &want, &format!("poison {poison}"));
    }
}

#[test]
fn poison_that_one_query_sees_stays_with_it() {
    // Causal: key 20 is NaN. Queries before 20 must not notice, though they share its blocks.
    let causal = TypedSlice {
        q: Range::new(0, 64),
        k: Range::new(0, 64),
        mask_type: MaskType::Causal,
    };
    let mask = Mask::new(&[causal], 64, 64).unwrap();
    let mut r = Random(23);
    let s = shape(1, 1, 16, 16, DType::F64);
    let mut o = operands(&mut r, &mask, &s);
    let clean = compute(&mask, &o, &s, PLAIN);
    o.v[20 * 16 + 5] = f64::NAN;
    o.k[20 * 16 + 3] = f64::NAN;
    let got = compute(&mask, &o, &s, PLAIN);
    let rows = ..20 * 16;
    assert!(distance(&got.out[rows], &clean.out[rows]) < 1e-12);
    assert!(distance(&got.dq[rows], &clean.dq[rows]) < 1e-12);
    assert!(
        got.out[20 * 16..].iter().all(|x| x.is_nan()),
        "a NaN that is seen must show"
    );
    assert!(got.lse[20..].iter().all(|x| x.is_nan()));
}

#[test]
fn broadcast_inputs() {
    // One row of q, k and v for all tokens and heads, by strides of 0.
    let mut r = Random(24);
    let mask = random_mask(&mut r, 40, 50, 5);
    let s = shape(4, 2, 16, 16, DType::F64);
    let mut o = operands(&mut r, &mask, &s);
    let one = o.q[..16].to_vec();
    for x in [&mut o.q, &mut o.k, &mut o.v] {
        x.chunks_mut(16).for_each(|row| row.copy_from_slice(&one));
    }
    let want = attention(&mask, &o, Arithmetic::Exact);
    let mut row = Buffer::new(&one, &[1, 1, 16], DType::F64, Layout::Dense);
    let data = row.tensor().data();
    let spread = |tokens: i64, heads: i64| {
        // SAFETY: every index is the one row.
        unsafe { Tensor::from_raw(data, DType::F64, Device::Cpu, &[tokens, heads, 16], &[0, 0, 1]) }
    };
    let mut out = Buffer::poisoned(&[40, 4, 16], DType::F64, Layout::Dense);
    let mut lse = Buffer::poisoned(&[40, 4], DType::F64, Layout::Dense);
    let backend = CpuBackend::new();
    backend.attn_init(out.tensor(), lse.tensor(), None, None).unwrap();
    let source = |slice: &Slice| StageSlice {
        slice: *slice,
        source: 1,
    };
    let slices: Vec<_> = mask.slices().iter().map(source).collect();
    let args = ForwardArgs {
        q: spread(40, 4),
        k: [None, Some(spread(50, 2))],
        v: [None, Some(spread(50, 2))],
        slices: &slices,
        shape: s,
        softmax_scale: o.scale,
        softcap: 0.0,
        out: out.tensor(),
        lse: lse.tensor(),
        max_logits: None,
    };
    backend.attn_forward(&args).unwrap();
    assert!(distance(&out.values(), &want.out) < 1e-12 && distance(&lse.values(), &want.lse) < 1e-12);
}

#[test]
fn poison_of_a_query_stays_with_the_keys_it_sees() {
    // Causal: query 40 is NaN. Keys behind 40 must not notice.
    let causal = TypedSlice {
        q: Range::new(0, 64),
        k: Range::new(0, 64),
        mask_type: MaskType::Causal,
    };
    let mask = Mask::new(&[causal], 64, 64).unwrap();
    let mut r = Random(25);
    let s = shape(2, 1, 16, 16, DType::F64);
    let mut o = operands(&mut r, &mask, &s);
    let clean = compute(&mask, &o, &s, PLAIN);
    o.q[(40 * 2 + 1) * 16 + 3] = f64::NAN;
    let got = compute(&mask, &o, &s, PLAIN);
    let rows = 41 * 16..;
    assert!(distance(&got.dk[rows.clone()], &clean.dk[rows.clone()]) < 1e-12);
    assert!(distance(&got.dv[rows.clone()], &clean.dv[rows]) < 1e-12);
    assert!(
        got.dk[..41 * 16].iter().all(|x| x.is_nan()),
        "a NaN that is seen must show"
    );
    o.q = vec![1.0; o.q.len()];
    o.dout[40 * 2 * 16] = f64::INFINITY;
    let got = compute(&mask, &o, &s, PLAIN);
    assert!(
        got.dk[41 * 16..]
            .iter()
            .chain(&got.dv[41 * 16..])
            .all(|x| x.is_finite())
    );
}

/// A forward call on 4 tokens that `change` may spoil; outputs are poisoned before it.
fn refused(change: impl FnOnce(&mut ForwardArgs<'_>, &mut Vec<StageSlice>)) -> Status {
    let (s, dense): (AttnShape, _) = (shape(2, 1, 8, 8, DType::F32), Layout::Dense);
    let mut q = Buffer::new(&[0.5; 64], &[4, 2, 8], DType::F32, dense);
    let mut k = Buffer::new(&[0.5; 32], &[4, 1, 8], DType::F32, dense);
    let mut out = Buffer::poisoned(&[4, 2, 8], DType::F32, dense);
    let mut lse = Buffer::poisoned(&[4, 2], DType::F32, dense);
    let all = Slice::new(Range::new(0, 4), Range::new(0, 4), Band::FULL);
    let mut slices = vec![StageSlice {
        slice: all,
        source: 0,
    }];
    let mut args = ForwardArgs {
        q: q.tensor(),
        k: [Some(k.tensor()), None],
        v: [Some(k.tensor()), None],
        slices: &[],
        shape: s,
        softmax_scale: 1.0,
        softcap: 0.0,
        out: out.tensor(),
        lse: lse.tensor(),
        max_logits: None,
    };
    change(&mut args, &mut slices);
    let args = ForwardArgs {
        slices: &slices,
        ..args
    };
    let status = CpuBackend::new().attn_forward(&args).unwrap_err().status;
    assert!(
        out.values().iter().chain(&lse.values()).all(|x| x.is_nan()),
        "outputs were touched"
    );
    status
}

#[test]
fn bad_arguments_are_refused_before_anything_is_written() {
    let restride = |t: Tensor, stride: &[i64]| {
        // SAFETY: never read: the call is refused.
        unsafe { Tensor::from_raw(t.data(), t.dtype(), t.device(), t.shape(), stride) }
    };
    assert_eq!(refused(|_, s| s[0].source = 1), Status::InvalidArgument);
    assert_eq!(refused(|_, s| s[0].source = 2), Status::InvalidArgument);
    assert_eq!(
        refused(|a, _| a.v[0] = a.v[0].map(|v| v.rows(0, 3))),
        Status::ShapeMismatch
    );
    assert_eq!(refused(|a, _| a.v[1] = a.v[0]), Status::InvalidArgument);
    assert_eq!(refused(|_, s| s[0].slice.k.end = 5), Status::InvalidRange);
    assert_eq!(refused(|_, s| s[0].slice.q.start = -1), Status::InvalidRange);
    assert_eq!(refused(|a, _| a.shape.heads_q = 4), Status::ShapeMismatch);
    assert_eq!(refused(|a, _| a.shape.dtype = DType::Bf16), Status::DtypeMismatch);
    assert_eq!(
        refused(|a, _| a.q = restride(a.q, &[16, 8, 2])),
        Status::InvalidStride
    );
    assert_eq!(refused(|a, _| a.lse = a.out), Status::ShapeMismatch);
    assert_eq!(refused(|a, _| a.max_logits = Some(a.lse)), Status::ShapeMismatch);
    let elsewhere = |t: Tensor, data: *mut u8, device: Device| {
        // SAFETY: never read: the call is refused.
        unsafe { Tensor::from_raw(data, t.dtype(), device, t.shape(), t.stride()) }
    };
    assert_eq!(
        refused(|a, _| a.q = elsewhere(a.q, std::ptr::null_mut(), Device::Cpu)),
        Status::NullPointer
    );
    assert_eq!(
        refused(|a, _| a.out = elsewhere(a.out, a.out.data(), Device::Cuda(0))),
        Status::DeviceMismatch
    );
}
