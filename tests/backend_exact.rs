//! f64 attention of the CPU backend against textbook loops, to 1e-10.

mod common_backend;
mod common_reference;

use common_backend::*;
use common_reference::{Arithmetic, Operands, attention};
use magi_attn::types::{AttnShape, Band, DType, Mask, MaskType, Range, Slice, TypedSlice};

const F64: DType = DType::F64;

fn check(mask: &Mask, o: &Operands, s: &AttnShape, drive: Drive, what: &str) {
    let want = attention(mask, o, Arithmetic::Exact);
    let got = compute(mask, o, s, drive);
    assert_exact(&got, &want, what);
}

#[test]
fn random_masks_heads_and_widths() {
    let mut r = Random(1);
    let shapes = [
        (1, 1, 16, 16),
        (4, 2, 8, 24),
        (6, 1, 24, 8),
        (2, 2, 96, 136),
        (8, 8, 9, 11),
        (3, 1, 136, 96),
        (1, 1, 200, 72),
        (140, 1, 8, 8),
    ];
    for (i, &(hq, hkv, d, dv)) in shapes.iter().enumerate() {
        let few = hq > 100;
        for round in 0..if few { 1 } else { 3 } {
            let (tq, tk) = if few {
                (9, 30)
            } else {
                (20 + r.below(180), 20 + r.below(180))
            };
            let mask = random_mask(&mut r, tq, tk, 12);
            let s = shape(hq, hkv, d, dv, F64);
            let mut o = operands(&mut r, &mask, &s);
            if round == 1 {
                o.cap = 0.8;
            }
            if round == 2 {
                o.sink = Some(random_sink(&mut r, tq, hq, 1 + i, i % 2 == 0));
            }
            check(&mask, &o, &s, PLAIN, &format!("shape {i} round {round}"));
        }
    }
}

#[test]
fn every_layout_and_split() {
    let mut r = Random(2);
    for layout in [
        Layout::Dense,
        Layout::Padded,
        Layout::HeadsFirst,
        Layout::Backwards,
    ] {
        for split in [false, true] {
            let mask = random_mask(&mut r, 150, 170, 10);
            let s = shape(4, 2, 24, 16, F64);
            let mut o = operands(&mut r, &mask, &s);
            o.cap = 20.0;
            o.sink = Some(random_sink(&mut r, 150, 4, 2, split));
            let drive = Drive {
                layout,
                threads: 2,
                split,
            };
            check(&mask, &o, &s, drive, &format!("{layout:?} split {split}"));
        }
    }
}

#[test]
fn the_largest_widths() {
    let mut r = Random(3);
    let typed = |q, k, mask_type| TypedSlice { q, k, mask_type };
    let slices = [
        typed(Range::new(0, 40), Range::new(0, 40), MaskType::Causal),
        typed(Range::new(40, 60), Range::new(10, 50), MaskType::BiCausal),
    ];
    let mask = Mask::new(&slices, 60, 50).unwrap();
    for (d, dv) in [(1024, 1024), (1024, 8), (8, 1024), (520, 263)] {
        let s = shape(2, 1, d, dv, F64);
        let o = operands(&mut r, &mask, &s);
        check(&mask, &o, &s, PLAIN, &format!("{d} x {dv}"));
    }
}

#[test]
fn steep_logits() {
    let mut r = Random(4);
    let mask = random_mask(&mut r, 300, 280, 20);
    let s = shape(2, 1, 16, 16, F64);
    let mut o = operands(&mut r, &mask, &s);
    o.q.iter_mut().for_each(|x| *x *= 20.0);
    check(&mask, &o, &s, PLAIN, "standard deviation 20");
    o.sink = Some(random_sink(&mut r, 300, 2, 8, false));
    check(
        &mask,
        &o,
        &s,
        Drive { split: true, ..PLAIN },
        "with sinks, in pieces",
    );
    o.q.iter_mut().for_each(|x| *x *= 50.0);
    check(&mask, &o, &s, PLAIN, "standard deviation 1000");
}

#[test]
fn tokens_seen_once_and_many_small_slices() {
    let mut r = Random(5);
    // One-token documents, then documents of 3 tokens with a window band that is none of the four types.
    let mut slices: Vec<Slice> = (0..60)
        .map(|i| Slice::new(Range::new(i, i + 1), Range::new(i, i + 1), Band::FULL))
        .collect();
    slices.push(Slice::new(
        Range::new(60, 400),
        Range::new(60, 400),
        Band::new(-3, 2),
    ));
    // Beside the band: keys from far left, which no other slice shows these rows.
    slices.push(Slice::new(
        Range::new(70, 390),
        Range::new(0, 57),
        Band::new(-300, -100),
    ));
    let mask = Mask::from_slices(slices, 400, 400).unwrap();
    let s = shape(2, 1, 8, 8, F64);
    let o = operands(&mut r, &mask, &s);
    check(&mask, &o, &s, PLAIN, "small slices");
}

#[test]
fn nothing_at_all() {
    let mut r = Random(6);
    let s = shape(2, 1, 8, 8, F64);
    for (tq, tk) in [(0, 0), (0, 5), (5, 0), (5, 5)] {
        let mask = Mask::new(&[], tq, tk).unwrap();
        let mut o = operands(&mut r, &mask, &s);
        check(&mask, &o, &s, PLAIN, "empty mask");
        o.sink = Some(random_sink(&mut r, tq, 2, 2, false));
        check(&mask, &o, &s, PLAIN, "empty mask with a shared sink");
    }
}

#[test]
fn gradients_are_those_of_the_output() {
    // Central differences of sum(out * dout), on few enough elements to try all of them.
    let mut r = Random(7);
    let mask = random_mask(&mut r, 5, 6, 3);
    let s = shape(2, 1, 8, 8, F64);
    let mut o = operands(&mut r, &mask, &s);
    o.cap = 1.5;
    o.sink = Some(common_reference::Sink {
        logits: vec![0.25, -0.5, 0.75, 0.125],
        count: 2,
        per_token: false,
    });
    let got = compute(&mask, &o, &s, PLAIN);
    let loss = |o: &Operands| -> f64 {
        let out = compute(&mask, o, &s, PLAIN).out;
        out.iter().zip(&o.dout).map(|(a, b)| a * b).sum()
    };
    // The sink is f32: its step is a power of two that f32 represents beside the logits.
    type Field = fn(&mut Operands) -> &mut Vec<f64>;
    let fields: [(Field, &Vec<f64>, f64); 4] = [
        (|o| &mut o.q, &got.dq, 1e-5),
        (|o| &mut o.k, &got.dk, 1e-5),
        (|o| &mut o.v, &got.dv, 1e-5),
        (
            |o| &mut o.sink.as_mut().unwrap().logits,
            &got.dsink,
            1.0 / 65536.0,
        ),
    ];
    for (field, gradient, step) in fields {
        for (i, want) in gradient.iter().enumerate() {
            let mut moved = o.clone();
            field(&mut moved)[i] += step;
            let up = loss(&moved);
            field(&mut moved)[i] -= 2.0 * step;
            let slope = (up - loss(&moved)) / (2.0 * step);
            assert!(
                (slope - want).abs() < 1e-8 * want.abs().max(1.0),
                "{slope} is not {want}"
            );
        }
    }
}
