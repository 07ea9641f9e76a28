//! What holds bit by bit or not at all: the same bits on every run, unseen tokens that never matter, gradients that are
//! added to, sinks that count once, reductions over ranks.

mod common_backend;
mod common_ranks;
mod common_reference;

use std::sync::{Arc, Mutex};

use common_backend::*;
use common_ranks::{Job, assert_close, gather, local, over_ranks, parts};
use common_reference::{Answer, Arithmetic, Operands, attention, round, visible_keys};
use magi_attn::comm::local as ranks;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, Key, attn_args, backward, forward};
use magi_attn::types::{
    AttnShape, Config, DType, DsinkReduce, Mask, MaskType, PlacementKind, Range, Result, Side, TypedSlice,
};

fn typed(q: (i64, i64), k: (i64, i64), mask_type: MaskType) -> TypedSlice {
    TypedSlice {
        q: Range::new(q.0, q.1),
        k: Range::new(k.0, k.1),
        mask_type,
    }
}

fn assert_same_bits(a: &Answer, b: &Answer, what: &str) {
    for ((name, a), (_, b)) in parts(a).into_iter().zip(parts(b)) {
        assert_eq!(a.len(), b.len(), "{what}: {name}");
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert_eq!(x.to_bits(), y.to_bits(), "{what}: {name}[{i}] is {x:e} and {y:e}");
        }
    }
}

#[test]
fn every_run_gives_the_same_bits() {
    let mask = random_mask(&mut Random(1), 180, 160, 12);
    for (i, dtype) in [DType::F64, DType::F32, DType::Bf16].into_iter().enumerate() {
        let s = shape(4, 2, 16, 24, dtype);
        let mut o = operands(&mut Random(2), &mask, &s);
        o.sink = Some(random_sink(&mut Random(3), 180, 4, 2, i == 1));
        let mut job = Job::new(&mask, s, 5, i as i32, 8);
        job.round_outputs = i == 2;
        let first = over_ranks(&job, &o);
        for run in 0..3 {
            assert_same_bits(
                &first,
                &over_ranks(&job, &o),
                &format!("{} run {run}", dtype.name()),
            );
        }
    }
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let mask = random_mask(&mut Random(4), 300, 280, 10);
    let s = shape(4, 2, 64, 32, DType::F32);
    let o = operands(&mut Random(5), &mask, &s);
    let with = |threads| compute(&mask, &o, &s, Drive { threads, ..PLAIN });
    let one = with(1);
    for threads in [2, 3, 8] {
        assert_same_bits(&one, &with(threads), &format!("{threads} threads"));
    }
}

/// Sets the rows of a `[tokens, ..]` tensor whose token `is` says to `value`.
fn set_rows(x: &mut [f64], tokens: usize, is: &[bool], value: f64) {
    let row = x.len() / tokens;
    for (t, row) in x.chunks_mut(row).enumerate() {
        if is[t] {
            row.fill(value);
        }
    }
}

#[test]
fn nan_in_what_nothing_sees_reaches_nothing() {
    let slices = [
        typed((0, 30), (5, 25), MaskType::Full),
        typed((40, 70), (30, 55), MaskType::Causal),
        typed((80, 95), (60, 90), MaskType::InvCausal),
    ];
    let mask = Mask::new(&slices, 100, 100).unwrap();
    let seen: Vec<Vec<usize>> = (0..100).map(|q| visible_keys(&mask, q)).collect();
    let blind: Vec<bool> = seen.iter().map(Vec::is_empty).collect();
    let unseen: Vec<bool> = (0..100)
        .map(|k| !seen.iter().flatten().any(|&s| s == k))
        .collect();
    assert!(blind.contains(&true) && unseen.contains(&true));
    for dtype in [DType::F64, DType::Bf16] {
        let s = shape(2, 1, 16, 8, dtype);
        let mut o = operands(&mut Random(6), &mask, &s);
        let with = |o: &mut Operands, value: f64| {
            set_rows(&mut o.q, 100, &blind, value);
            set_rows(&mut o.dout, 100, &blind, value);
            set_rows(&mut o.k, 100, &unseen, value);
            set_rows(&mut o.v, 100, &unseen, value);
        };
        for (world, degree, rounded) in [(1, 1, false), (3, 0, true), (4, 2, false), (7, 1, true)] {
            o.sink = match world {
                1 => None,
                _ => Some(random_sink(&mut Random(world as u64), 100, 2, 3, world == 4)),
            };
            let mut job = Job::new(&mask, s, world, degree, 4);
            // The sanity check would refuse them.
            job.config.sanity_check = false;
            job.round_outputs = rounded;
            with(&mut o, 0.0);
            let zeros = over_ranks(&job, &o);
            with(&mut o, f64::NAN);
            let what = format!("{} on {world} ranks", dtype.name());
            assert_same_bits(&zeros, &over_ranks(&job, &o), &what);
            assert!(
                parts(&zeros).iter().all(|(_, x)| x.iter().all(|x| !x.is_nan())),
                "{what}"
            );
        }
    }
}

/// Results of one rank in its own tokens.
#[derive(Clone, Default)]
struct Gradients {
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    dsink: Vec<f64>,
}

/// What gradients hold before the call.
#[derive(Clone, Copy)]
enum Before {
    /// NaN, to be overwritten.
    Poison,
    /// Numbers, to be added to.
    Numbers,
}

/// The same numbers for every element of every rank and call.
fn numbers(count: usize, dtype: DType) -> Vec<f64> {
    Random(count as u64).normals(count, 1.0, dtype)
}

/// Forward and backward on one rank with a shared sink; gradients in `result`.
fn pass(key: &Key, o: &Operands, result: DType, before: Before) -> Result<Gradients> {
    let (s, acc) = (*key.shape(), key.shape().dtype.accumulator());
    let add = matches!(before, Before::Numbers);
    let input = |side, x: &[f64], row: &[i64]| local(key, side, Some(x), row, s.dtype, Layout::Dense);
    let output = |side, row: &[i64], dtype| -> Result<Buffer> {
        let mut b = local(key, side, None, row, dtype, Layout::Padded)?;
        if add {
            let count = b.shape.iter().product::<i64>() as usize;
            b.set(&numbers(count, dtype));
        }
        Ok(b)
    };
    let (q_row, k_row) = ([s.heads_q, s.head_dim], [s.heads_kv, s.head_dim]);
    let (o_row, v_row) = ([s.heads_q, s.head_dim_v], [s.heads_kv, s.head_dim_v]);
    let (mut q, mut k) = (input(Side::Q, &o.q, &q_row)?, input(Side::K, &o.k, &k_row)?);
    let (mut v, mut dout) = (input(Side::K, &o.v, &v_row)?, input(Side::Q, &o.dout, &o_row)?);
    let mut out = local(key, Side::Q, None, &o_row, acc, Layout::Dense)?;
    let mut lse = local(key, Side::Q, None, &[s.heads_q], acc, Layout::Dense)?;
    let sink = o.sink.as_ref().expect("problems of these tests have a sink");
    let sink_row = [sink.count as i64, s.heads_q];
    let mut z = Buffer::new(&sink.logits, &sink_row, DType::F32, Layout::Dense);
    let mut dz = Buffer::poisoned(&sink_row, acc, Layout::Dense);
    if add {
        dz.set(&numbers(sink.logits.len(), acc));
    }
    let f = attn_args::Forward {
        q: q.tensor(),
        k: k.tensor(),
        v: v.tensor(),
        sink: Some(z.tensor()),
        softmax_scale: o.scale,
        softcap: o.cap,
        out: out.tensor(),
        lse: Some(lse.tensor()),
        max_logits: None,
    };
    forward::run(key, &f, Stream::NULL)?;
    let (mut dq, mut dk) = (output(Side::Q, &q_row, result)?, output(Side::K, &k_row, result)?);
    let mut dv = output(Side::K, &v_row, result)?;
    let b = attn_args::Backward {
        q: f.q,
        k: f.k,
        v: f.v,
        sink: f.sink,
        out: f.out,
        lse: lse.tensor(),
        dout: dout.tensor(),
        softmax_scale: o.scale,
        softcap: o.cap,
        dq: dq.tensor(),
        dk: dk.tensor(),
        dv: dv.tensor(),
        dsink: Some(dz.tensor()),
        accumulate_dq: add,
        accumulate_dk: add,
        accumulate_dv: add,
        accumulate_dsink: add,
    };
    backward::run(key, &b, Stream::NULL)?;
    Ok(Gradients {
        dq: dq.values(),
        dk: dk.values(),
        dv: dv.values(),
        dsink: dz.values(),
    })
}

/// `pass` on every rank; the results by rank.
fn on_ranks(
    mask: &Mask,
    s: AttnShape,
    world: usize,
    config: Config,
    f: impl Fn(&Key) -> Result<Gradients> + Sync,
) -> Vec<Gradients> {
    let mask = Arc::new(mask.clone());
    let all = Mutex::new(vec![Gradients::default(); world]);
    ranks::run(world, |rank, comm| {
        let context = Context::new(comm);
        let key = Key::create(&context, &mask, s, config)?;
        let mine = f(&key)?;
        all.lock().unwrap()[rank] = mine;
        Ok(())
    })
    .unwrap();
    all.into_inner().unwrap()
}

#[test]
fn accumulated_gradients_are_what_was_there_and_the_gradient() {
    let mask = random_mask(&mut Random(7), 90, 70, 8);
    for dtype in [DType::F64, DType::F32, DType::F16] {
        let (s, acc) = (shape(2, 1, 16, 8, dtype), dtype.accumulator());
        let mut o = operands(&mut Random(8), &mask, &s);
        o.sink = Some(random_sink(&mut Random(9), 90, 2, 2, false));
        let config = Config {
            chunk_size: 5,
            degree_forward: 1,
            degree_backward: 2,
            ..Config::default()
        };
        for result in [dtype, acc] {
            let alone = on_ranks(&mask, s, 3, config, |key| pass(key, &o, acc, Before::Poison));
            let added = on_ranks(&mask, s, 3, config, |key| pass(key, &o, result, Before::Numbers));
            let what = format!("{} in {}", dtype.name(), result.name());
            for (alone, added) in alone.iter().zip(&added) {
                for (name, alone, added, into) in [
                    ("dq", &alone.dq, &added.dq, result),
                    ("dk", &alone.dk, &added.dk, result),
                    ("dv", &alone.dv, &added.dv, result),
                    ("dsink", &alone.dsink, &added.dsink, acc),
                ] {
                    let there = numbers(alone.len(), into);
                    let want: Vec<f64> = there.iter().zip(alone).map(|(a, b)| a + b).collect();
                    if into != acc || name == "dsink" {
                        // One addition, rounded once.
                        let want: Vec<f64> = want.iter().map(|&x| round(into, x)).collect();
                        assert_eq!(added, &want, "{what}: {name}");
                        continue;
                    }
                    // What was there is the first summand of many.
                    let eps = if acc == DType::F64 { 1e-14 } else { 1e-6 };
                    let error = distance(added, &want);
                    assert!(
                        error <= eps * (1.0 + peak(&want)),
                        "{what}: {name} is off by {error:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn sinks_count_once_where_the_host_stage_is_empty() {
    // Two contiguous halves that see each other only.
    let slices = [
        typed((0, 24), (24, 48), MaskType::Full),
        typed((24, 48), (0, 24), MaskType::Causal),
    ];
    let mask = Mask::new(&slices, 48, 48).unwrap();
    let s = shape(2, 2, 8, 8, DType::F64);
    for per_token in [false, true] {
        let mut o = operands(&mut Random(10), &mask, &s);
        o.sink = Some(random_sink(&mut Random(11), 48, 2, 3, per_token));
        let want = attention(&mask, &o, Arithmetic::Exact);
        for (world, degree) in [(2, 0), (2, 1), (2, 4), (4, 2)] {
            let mut job = Job::new(&mask, s, world, degree, 0);
            job.config.placement = PlacementKind::Sequential;
            assert_close(
                &format!("{world} ranks, degree {degree}"),
                &over_ranks(&job, &o),
                &want,
                1e-10,
            );
        }
    }
}

#[test]
fn dsink_is_a_part_a_sum_or_a_mean() {
    let mask = random_mask(&mut Random(12), 60, 60, 6);
    let s = shape(2, 1, 8, 8, DType::F64);
    let mut o = operands(&mut Random(13), &mask, &s);
    o.sink = Some(random_sink(&mut Random(14), 60, 2, 2, false));
    let want = attention(&mask, &o, Arithmetic::Exact).dsink;
    for world in [1, 3, 6] {
        let with = |dsink_reduce| {
            let config = Config {
                chunk_size: 4,
                dsink_reduce,
                degree_forward: 1,
                degree_backward: 1,
                ..Config::default()
            };
            on_ranks(&mask, s, world, config, |key| {
                pass(key, &o, DType::F64, Before::Poison)
            })
        };
        let near = |have: &[f64], want: &[f64]| distance(have, want) <= 1e-10 * peak(want).max(1e-3);
        let mut sum = vec![0.0; want.len()];
        for part in with(DsinkReduce::None) {
            assert!(world == 1 || !near(&part.dsink, &want), "a part is not the whole");
            sum.iter_mut().zip(&part.dsink).for_each(|(a, b)| *a += b);
        }
        assert!(near(&sum, &want), "{world} ranks: parts");
        let mean: Vec<f64> = want.iter().map(|x| x / world as f64).collect();
        for (reduce, want) in [(DsinkReduce::Sum, &want), (DsinkReduce::Avg, &mean)] {
            let all = with(reduce);
            assert!(
                all.iter()
                    .all(|g| near(&g.dsink, want) && g.dsink == all[0].dsink),
                "{world} ranks: {reduce:?}"
            );
        }
    }
}

#[test]
fn per_token_sinks_where_ranks_own_nothing() {
    let mask = Mask::new(&[typed((0, 3), (0, 3), MaskType::Causal)], 3, 3).unwrap();
    let s = shape(2, 1, 8, 8, DType::F64);
    let mut o = operands(&mut Random(15), &mask, &s);
    o.sink = Some(random_sink(&mut Random(16), 3, 2, 8, true));
    let want = attention(&mask, &o, Arithmetic::Exact);
    for (world, reduce) in [(5, DsinkReduce::None), (8, DsinkReduce::Avg)] {
        let mut job = Job::new(&mask, s, world, 1, 1);
        job.config.dsink_reduce = reduce;
        assert_close(&format!("{world} ranks"), &over_ranks(&job, &o), &want, 1e-10);
    }
}

#[test]
fn max_logits_is_the_largest_of_all_ranks() {
    // One query of the last rank has by far the largest logit of head 0; head 1 sees it nowhere.
    let mask = Mask::new(&[typed((0, 40), (0, 40), MaskType::Causal)], 40, 40).unwrap();
    let s = shape(2, 2, 8, 8, DType::F32);
    let mut o = operands(&mut Random(17), &mask, &s);
    o.q[39 * 16..39 * 16 + 8].fill(50.0);
    o.k[2 * 16..2 * 16 + 8].fill(3.0);
    let mut job = Job::new(&mask, s, 4, 2, 0);
    job.config.placement = PlacementKind::Sequential;
    let got = over_ranks(&job, &o).max_logits;
    let top = 8.0 * 150.0 * o.scale;
    assert!((got[0] - top).abs() < 1e-3 && got[1] < 20.0, "{got:?}, {top}");
    let nothing = Mask::new(&[], 40, 40).unwrap();
    let job = Job::new(&nothing, s, 4, 2, 0);
    assert_eq!(over_ranks(&job, &o).max_logits, [f64::NEG_INFINITY; 2]);
}

#[test]
fn gathered_rows_keep_their_bits() {
    // The helper that every other test relies on: what is dispatched comes back as it was.
    let mask = Mask::new(&[], 33, 33).unwrap();
    let values = numbers(33 * 5, DType::F32);
    on_ranks(
        &mask,
        shape(1, 1, 8, 8, DType::F32),
        4,
        Config::default(),
        |key| {
            let mut part = local(key, Side::Q, Some(&values), &[5], DType::F32, Layout::Padded)?;
            assert_eq!(gather(key, Side::Q, &mut part)?, values);
            Ok(Gradients::default())
        },
    );
}
