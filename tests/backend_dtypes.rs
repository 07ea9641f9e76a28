//! f32, bf16 and f16 attention of the CPU backend against f64, beside textbook arithmetic in f32.

mod common_backend;
mod common_reference;

use common_backend::*;
use common_reference::{Answer, Arithmetic, Operands, attention};
use magi_attn::types::{AttnShape, DType, Mask, Range, TypedSlice};
use magi_attn::types::{Band, MaskType, Slice};

/// Distance from 1 to the next number.
fn ulp(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-23),
    }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The elements of one head of a `[tokens, heads, width]` tensor.
fn head(x: &[f64], heads: usize, width: usize, head: usize) -> Vec<f64> {
    let rows = x.chunks(width).enumerate().filter(|(i, _)| i % heads == head);
    rows.flat_map(|(_, row)| row.iter().copied()).collect()
}

fn check(mask: &Mask, o: &Operands, s: &AttnShape, what: &str) {
    let exact = attention(mask, o, Arithmetic::Exact);
    let textbook = attention(mask, o, Arithmetic::Textbook(s.dtype));
    let drive = Drive { split: true, ..PLAIN };
    let got = compute(mask, o, s, drive);
    for (got, want) in got.lse.iter().zip(&exact.lse) {
        let bound = 1e-4 + 1e-6 * want.abs();
        assert!(
            got == want || (got - want).abs() <= bound,
            "{what}: lse {got} is not {want}"
        );
    }
    type Field = fn(&Answer) -> &Vec<f64>;
    let (hq, hkv) = (o.heads_q, o.heads_kv);
    let fields: [(&str, Field, usize, usize, f64); 4] = [
        ("out", |a| &a.out, hq, o.dv, 2.0),
        ("dq", |a| &a.dq, hq, o.d, 3.0),
        ("dk", |a| &a.dk, hkv, o.d, 3.0),
        ("dv", |a| &a.dv, hkv, o.dv, 3.0),
    ];
    for (name, field, heads, width, factor) in fields {
        for h in 0..heads {
            let of = |a: &Answer| head(field(a), heads, width, h);
            let (got, exact, textbook) = (of(&got), of(&exact), of(&textbook));
            let bound = factor * distance(&textbook, &exact) + ulp(s.dtype) * peak(&exact) / 4.0;
            let error = distance(&got, &exact);
            assert!(
                error <= bound,
                "{what}: {name} of head {h} is off by {error:e}, bound {bound:e}"
            );
            // Under a sink of +100 everything is smaller than the dtype's least number: no direction is left.
            if name != "out" && peak(&exact) > 1e-3 {
                let least = if s.dtype == DType::Bf16 { 0.999 } else { 0.9999 };
                assert!(
                    cosine(&got, &exact) > least,
                    "{what}: {name} of head {h} points elsewhere"
                );
            }
        }
    }
    let bound = 3.0 * distance(&textbook.dsink, &exact.dsink) + ulp(s.dtype) * peak(&exact.dsink) / 4.0;
    assert!(distance(&got.dsink, &exact.dsink) <= bound, "{what}: dsink");
}

#[test]
fn no_less_accurate_than_the_textbook() {
    let mut r = Random(11);
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for (i, (hq, hkv, d, dv)) in [(2, 2, 64, 64), (4, 1, 72, 40), (2, 1, 16, 128)]
            .into_iter()
            .enumerate()
        {
            // A window over everything, so that no row is left out, and random slices beside it.
            let (q, k) = (Range::new(0, 200), Range::new(0, 190));
            let mut slices = vec![Slice::new(q, k, Band::new(-40, 3))];
            slices.push(Slice::new(
                Range::new(60, 200),
                Range::new(0, 15),
                Band::new(Band::NO_LO, -41),
            ));
            let mask = Mask::from_slices(slices, 200, 190).unwrap();
            let s = shape(hq, hkv, d, dv, dtype);
            let mut o = operands(&mut r, &mask, &s);
            if i == 1 {
                o.sink = Some(random_sink(&mut r, 200, hq, 2, dtype == DType::F16));
            }
            if i == 2 {
                o.cap = 5.0;
            }
            check(&mask, &o, &s, &format!("{} shape {i}", dtype.name()));
            // Rounding q again keeps it representable in the dtype.
            o.q.iter_mut()
                .for_each(|x| *x = common_reference::round(dtype, *x * 20.0));
            check(&mask, &o, &s, &format!("{} shape {i} steep", dtype.name()));
        }
    }
}

#[test]
fn one_visible_key() {
    // The gradient of the logits is exactly 0: only rounding noise may be left in dq and dk.
    let mut r = Random(12);
    for dtype in [DType::F32, DType::Bf16, DType::F16, DType::F64] {
        let (q, k) = (Range::new(0, 50), Range::new(0, 50));
        let diagonal = TypedSlice {
            q,
            k,
            mask_type: MaskType::BiCausal,
        };
        let mask = Mask::new(&[diagonal], 50, 50).unwrap();
        let s = shape(1, 1, 32, 32, dtype);
        let o = operands(&mut r, &mask, &s);
        let got = compute(&mask, &o, &s, PLAIN);
        let eps = if dtype == DType::F64 {
            2f64.powi(-52)
        } else {
            ulp(dtype)
        };
        // lse is rounded to the accumulator type, and the probability 1 is recovered from it.
        let eps_acc = if dtype == DType::F64 { eps } else { 2f64.powi(-23) };
        let lse = 1.0 + peak(&got.lse);
        assert!(distance(&got.out, &o.v) == 0.0, "{}: out", dtype.name());
        assert!(
            distance(&got.dv, &o.dout) <= eps_acc * lse * peak(&o.dout),
            "{}: dv",
            dtype.name()
        );
        let norm = |x: &[f64]| {
            x.chunks(32)
                .map(|r| r.iter().map(|x| x * x).sum::<f64>().sqrt())
                .fold(0.0, f64::max)
        };
        let bound = eps * norm(&o.dout) * norm(&o.v) * norm(&o.k).max(norm(&o.q));
        assert!(
            peak(&got.dq) <= bound && peak(&got.dk) <= bound,
            "{}",
            dtype.name()
        );
    }
}

#[test]
fn constant_tensors() {
    // Every weight is equal: out is the constant, lse is the logarithm of the number of keys plus the logit.
    for dtype in [DType::F32, DType::Bf16, DType::F16, DType::F64] {
        let (q, k) = (Range::new(0, 40), Range::new(0, 64));
        let full = TypedSlice {
            q,
            k,
            mask_type: MaskType::Full,
        };
        let mask = Mask::new(&[full], 40, 64).unwrap();
        let s = shape(1, 1, 16, 16, dtype);
        let mut r = Random(13);
        let mut o = operands(&mut r, &mask, &s);
        for x in [&mut o.q, &mut o.k, &mut o.v, &mut o.dout] {
            x.fill(0.5);
        }
        let got = compute(&mask, &o, &s, PLAIN);
        assert_eq!(got.out, vec![0.5; 40 * 16]);
        assert!(got.lse.iter().all(|x| (x - (1.0 + 64f64.ln())).abs() < 1e-6));
        assert_eq!((peak(&got.dq), peak(&got.dk)), (0.0, 0.0));
        assert!(got.dv.iter().all(|x| (x - 0.5 * 40.0 / 64.0).abs() < 1e-6));
    }
}
