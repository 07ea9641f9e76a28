//! bf16, f16 and f32 attention over ranks: no less accurate than textbook arithmetic in f32, head by head, on any number
//! of ranks and stages.

mod common;
mod common_backend;
mod common_ranks;
mod common_reference;

use common::{Case, load_cases};
use common_backend::{Layout, Random, distance, operands, peak, random_mask, random_sink, shape};
use common_ranks::{Job, over_ranks};
use common_reference::{Answer, Arithmetic, Operands, attention, round, visible_keys};
use magi_attn::types::{AttnShape, Config, DType, Mask};

/// Cases of at most so many tokens, every one of them, take part.
const SMALL: i64 = 900;

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

/// Longest row.
fn norm(x: &[f64], width: usize) -> f64 {
    let rows = x
        .chunks(width)
        .map(|r| r.iter().map(|x| x * x).sum::<f64>().sqrt());
    rows.fold(0.0, f64::max)
}

/// Standard deviation of the gradient of one head's shared sinks when nothing but out is rounded. There are so few of
/// them that the textbook's error is now and then small by chance. 0 for sinks of single tokens.
fn dsink_deviation(o: &Operands, exact: &Answer, dtype: DType, head: usize) -> f64 {
    let Some(sink) = o.sink.as_ref().filter(|z| !z.per_token) else {
        return 0.0;
    };
    let of_sink = |z: f64| {
        let row = |i: usize| {
            let weight = (z - exact.lse[i]).exp();
            let terms = (i * o.dv..(i + 1) * o.dv).map(|e| (weight * exact.out[e] * o.dout[e]).powi(2));
            terms.sum::<f64>()
        };
        (head..exact.lse.len())
            .step_by(o.heads_q)
            .map(row)
            .sum::<f64>()
            .sqrt()
    };
    // Rounding moves a number by at most half an ulp, evenly spread.
    let rounding = ulp(dtype) / 12f64.sqrt();
    let logits = sink.logits.iter().skip(head).step_by(o.heads_q);
    logits.map(|&z| rounding * of_sink(z)).fold(0.0, f64::max)
}

/// Name, tensor of an answer, heads, width, multiple of the textbook's error that is allowed.
type Field = (&'static str, fn(&Answer) -> &Vec<f64>, usize, usize, f64);

/// `noise`: dq and dk are nothing but what rounding left, and bounded as such.
fn check(o: &Operands, dtype: DType, answers: [&Answer; 3], noise: bool, what: &str) {
    let [got, exact, textbook] = answers;
    let (exact_answer, got_lse) = (exact, &got.lse);
    for (got, want) in got.lse.iter().zip(&exact.lse) {
        let bound = 1e-4 + 1e-6 * want.abs();
        assert!(
            got == want || (got - want).abs() <= bound,
            "{what}: lse {got} is not {want}"
        );
    }
    let fields: [Field; 5] = [
        ("out", |a| &a.out, o.heads_q, o.dv, 2.0),
        ("dq", |a| &a.dq, o.heads_q, o.d, 3.0),
        ("dk", |a| &a.dk, o.heads_kv, o.d, 3.0),
        ("dv", |a| &a.dv, o.heads_kv, o.dv, 3.0),
        ("dsink", |a| &a.dsink, o.heads_q, 1, 3.0),
    ];
    for (name, field, heads, width, factor) in fields {
        for h in 0..heads {
            let of = |a: &Answer| head(field(a), heads, width, h);
            let (got, exact, textbook) = (of(got), of(exact), of(textbook));
            let mut bound = factor * distance(&textbook, &exact) + ulp(dtype) * peak(&exact) / 4.0;
            if name == "dsink" {
                bound = bound.max(3.0 * dsink_deviation(o, exact_answer, dtype, h));
            }
            if noise && name == "dv" {
                // lse is kept in f32, and the probability is made from it again.
                let finite = got_lse
                    .iter()
                    .copied()
                    .filter(|x| x.is_finite())
                    .collect::<Vec<f64>>();
                bound = bound.max(2f64.powi(-23) * (1.0 + peak(&finite)) * peak(&o.dout));
            }
            if noise && (name == "dq" || name == "dk") {
                bound = ulp(dtype)
                    * norm(&o.dout, o.dv)
                    * norm(&o.v, o.dv)
                    * norm(&o.k, o.d).max(norm(&o.q, o.d));
            }
            let error = distance(&got, &exact);
            assert!(
                error <= bound,
                "{what}: {name} of head {h} is off by {error:e}, bound {bound:e}"
            );
            // Under a sink of +100 everything is smaller than the dtype's least number: no direction is left.
            if !["out", "dsink"].contains(&name) && peak(&exact) > 1e-3 {
                let least = if dtype == DType::Bf16 { 0.999 } else { 0.9999 };
                let turn = cosine(&got, &exact);
                assert!(turn > least, "{what}: {name} of head {h} has cosine {turn}");
            }
        }
    }
}

/// Ranks, degree, partial gradients in high precision, outputs in the input dtype, layout.
type Run = (usize, i32, bool, bool, Layout);

const RUNS: [Run; 6] = [
    (1, 1, false, true, Layout::Dense),
    (3, 0, false, false, Layout::Padded),
    (3, 2, true, true, Layout::HeadsFirst),
    (4, 1, false, true, Layout::Dense),
    (4, 2, false, true, Layout::Backwards),
    (4, 0, true, false, Layout::Dense),
];

fn run(case: &Case, s: AttnShape, o: &Operands, noise: bool, what: &str) {
    let exact = attention(&case.mask, o, Arithmetic::Exact);
    let textbook = attention(&case.mask, o, Arithmetic::Textbook(s.dtype));
    // Every other run for every other case: two cases see them all.
    let first = usize::from(s.head_dim == 16);
    for (world, degree, high, rounded, layout) in RUNS.into_iter().skip(first).step_by(2) {
        let mut job = Job::new(&case.mask, s, world, degree, case.chunk_size);
        job.config = Config {
            backward_high_precision_reduce: high,
            ..job.config
        };
        (job.round_outputs, job.layout) = (rounded, layout);
        let what = format!("{what}, {world} ranks, degree {degree}, high {high}, rounded {rounded}");
        check(
            o,
            s.dtype,
            [&over_ranks(&job, o), &exact, &textbook],
            noise,
            &what,
        );
    }
}

/// The smallest cases of the list, and random slices with different totals.
fn cases() -> Vec<Case> {
    let small = |c: &Case| c.mask.total_q().max(c.mask.total_k()) <= SMALL && c.mask.area() > 0;
    let mut cases: Vec<Case> = load_cases().into_iter().filter(small).collect();
    cases.push(Case {
        name: "random slices".to_owned(),
        mask: random_mask(&mut Random(3), 150, 120, 9),
        chunk_size: 8,
        sink_tokens: 0,
    });
    cases
}

/// Whether no query sees two keys, so that the gradients of all logits are 0.
fn is_diagonal(mask: &Mask) -> bool {
    (0..mask.total_q()).all(|q| visible_keys(mask, q as usize).len() <= 1)
}

fn on_every_case(dtype: DType, change: impl Fn(&mut Operands, &Case, &AttnShape), noise: bool, kind: &str) {
    for (i, case) in cases().iter().enumerate() {
        let (hq, hkv, d, dv) = [(2, 1, 32, 24), (2, 2, 16, 40)][i % 2];
        let s = shape(hq, hkv, d, dv, dtype);
        let mut o = operands(&mut Random(i as u64), &case.mask, &s);
        change(&mut o, case, &s);
        let noise = noise || (o.sink.is_none() && is_diagonal(&case.mask));
        run(
            case,
            s,
            &o,
            noise,
            &format!("{} {} {kind}", case.name, dtype.name()),
        );
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

#[test]
fn there_are_cases() {
    let cases = cases();
    assert!(cases.len() >= 3 && cases.iter().any(|c| is_diagonal(&c.mask)));
}

#[test]
fn random_normal() {
    for dtype in DTYPES {
        on_every_case(dtype, |_, _, _| {}, false, "normal");
    }
}

#[test]
fn logits_of_deviation_20() {
    let steep = |o: &mut Operands, _: &Case, s: &AttnShape| {
        o.q.iter_mut().for_each(|x| *x = round(s.dtype, *x * 20.0));
    };
    for dtype in DTYPES {
        on_every_case(dtype, steep, false, "steep");
    }
}

#[test]
fn sinks_of_100() {
    let sunk = |o: &mut Operands, c: &Case, s: &AttnShape| {
        let per_token = s.head_dim == 16;
        o.sink = Some(random_sink(
            &mut Random(5),
            c.mask.total_q(),
            s.heads_q,
            3,
            per_token,
        ));
    };
    for dtype in DTYPES {
        on_every_case(dtype, sunk, false, "sinks");
    }
}

#[test]
fn constant_tensors() {
    let constant = |o: &mut Operands, _: &Case, _: &AttnShape| {
        for x in [&mut o.q, &mut o.k, &mut o.v, &mut o.dout] {
            x.fill(0.5);
        }
    };
    for dtype in DTYPES {
        on_every_case(dtype, constant, true, "constant");
    }
}

/// Every case of the list on so many ranks and stages: those of at most 2,100 tokens in `cargo test`, and all of them on
/// every number of ranks and every degree with `MAGI_TEST_MATRIX=full`.
#[test]
fn every_listed_case() {
    let whole = std::env::var("MAGI_TEST_MATRIX").is_ok_and(|v| v == "full");
    let (worlds, degrees): (&[usize], &[i32]) = if whole {
        (&[1, 2, 3, 4, 5, 8], &[0, 1, 2, 4])
    } else {
        (&[1, 4, 8], &[0, 2])
    };
    for dtype in [DType::Bf16, DType::F16] {
        for (i, case) in load_cases().iter().enumerate() {
            let large = case.mask.total_q().max(case.mask.total_k()) > 2_100;
            if case.mask.area() == 0 || (large && !whole) {
                continue;
            }
            let s = shape(if large { 1 } else { 2 }, 1, 16, 16, dtype);
            let o = operands(&mut Random(i as u64), &case.mask, &s);
            let exact = attention(&case.mask, &o, Arithmetic::Exact);
            let textbook = attention(&case.mask, &o, Arithmetic::Textbook(dtype));
            let noise = is_diagonal(&case.mask);
            for &world in worlds {
                for &degree in degrees {
                    let mut job = Job::new(&case.mask, s, world, degree, case.chunk_size);
                    job.round_outputs = true;
                    let what = format!("{} {} on {world} ranks, degree {degree}", case.name, dtype.name());
                    check(
                        &o,
                        dtype,
                        [&over_ranks(&job, &o), &exact, &textbook],
                        noise,
                        &what,
                    );
                }
            }
        }
    }
}
