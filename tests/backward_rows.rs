//! kernels/backward_rows.cu against sums in f64: on the first CUDA device where there is one, and everywhere on the processor
//! (tests/host_driver).

mod common_backend;
mod common_cuda;
mod common_reference;

use std::sync::Arc;

use common_backend::{Buffer, Layout, Random};
use common_cuda::{gpu, run_on_the_processor};
use magi_attn::backend::cuda::backward_rows::{
    BackwardRows, DeltaFrom, Pair, RowsCall, RowsSinks, RowsSums, SINKS, chunks, parts,
};
use magi_attn::device::Stream;
use magi_attn::device::cuda::{DeviceMemory, Gpu, stream};
use magi_attn::types::{DType, Device, Tensor};

/// `[tokens, heads, width]` in memory of the device, rows as far apart as `wide` elements, NaN between them.
struct Rows {
    memory: DeviceMemory,
    dtype: DType,
    shape: [i64; 3],
    wide: i64,
}

impl Rows {
    fn new(gpu: &Arc<Gpu>, values: &[f64], shape: [i64; 3], dtype: DType) -> Rows {
        // One head more than there are, and room up to a multiple of 16 bytes.
        let wide = (shape[2] + 7) / 8 * 8 + 8;
        let mut all = vec![f64::NAN; (shape[0] * (shape[1] + 1) * wide) as usize];
        for (row, part) in values.chunks(shape[2] as usize).enumerate() {
            let (token, head) = (row / shape[1] as usize, row % shape[1] as usize);
            let at = (token * (shape[1] as usize + 1) + head) * wide as usize;
            all[at..at + part.len()].copy_from_slice(part);
        }
        let memory = upload(gpu, &all, dtype);
        Rows {
            memory,
            dtype,
            shape,
            wide,
        }
    }

    fn tensor(&self) -> Tensor {
        let stride = [self.wide * (self.shape[1] + 1), self.wide, 1];
        // SAFETY: `new` made room for every element.
        unsafe {
            Tensor::from_raw(
                self.memory.as_ptr(),
                self.dtype,
                Device::Cuda(0),
                &self.shape,
                &stride,
            )
        }
    }

    fn values(&self) -> Vec<f64> {
        let all = download(
            &self.memory,
            (self.shape[0] * (self.shape[1] + 1) * self.wide) as usize,
            self.dtype,
        );
        let mut values = Vec::new();
        for token in all.chunks((self.wide * (self.shape[1] + 1)) as usize) {
            for row in token.chunks(self.wide as usize).take(self.shape[1] as usize) {
                values.extend(&row[..self.shape[2] as usize]);
                assert!(
                    row[self.shape[2] as usize..].iter().all(|x| x.is_nan()),
                    "beyond a row"
                );
            }
        }
        values
    }
}

/// Pairs of all tokens, NaN before a launch, between others that stay NaN.
struct Stats {
    memory: DeviceMemory,
    padded: i64,
    heads: i64,
}

impl Stats {
    fn new(gpu: &Arc<Gpu>, padded: i64, heads: i64) -> Stats {
        let all = vec![f64::NAN; 4 * (padded * heads + 2) as usize];
        let memory = upload(gpu, &all, DType::F32);
        Stats {
            memory,
            padded,
            heads,
        }
    }

    fn data(&self) -> *mut Pair {
        self.memory.as_ptr().cast::<Pair>().wrapping_add(1)
    }

    /// Where a token's pair begins.
    fn at(&self, head: i64, token: i64) -> usize {
        4 * ((2 * head + token % 2) * (self.padded / 2) + token / 2) as usize
    }

    fn pairs(&self) -> Vec<f64> {
        let all = download(
            &self.memory,
            4 * (self.padded * self.heads + 2) as usize,
            DType::F32,
        );
        let (before, rest) = all.split_at(4);
        let (pairs, behind) = rest.split_at(rest.len() - 4);
        assert!(
            before.iter().chain(behind).all(|x| x.is_nan()),
            "beyond the pairs"
        );
        pairs.to_vec()
    }
}

fn upload(gpu: &Arc<Gpu>, values: &[f64], dtype: DType) -> DeviceMemory {
    let mut host = Buffer::new(values, &[values.len() as i64], dtype, Layout::Dense);
    let bytes = values.len() * dtype.size();
    // SAFETY: the buffer holds these bytes.
    DeviceMemory::upload(gpu, unsafe {
        std::slice::from_raw_parts(host.tensor().data(), bytes)
    })
    .unwrap()
}

fn download(memory: &DeviceMemory, count: usize, dtype: DType) -> Vec<f64> {
    let mut host = Buffer::poisoned(&[count as i64], dtype, Layout::Dense);
    // SAFETY: the buffer has room for these bytes.
    memory
        .read(0, unsafe {
            std::slice::from_raw_parts_mut(host.tensor().data(), count * dtype.size())
        })
        .unwrap();
    host.values()
}

fn dense(memory: &DeviceMemory, dtype: DType, shape: &[i64]) -> Tensor {
    // SAFETY: callers uploaded as many elements.
    unsafe { Tensor::dense(memory.as_ptr(), dtype, Device::Cuda(0), shape) }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: i64,
    heads: i64,
    width: i64,
    dq_width: i64,
    dtype: DType,
    out_f32: bool,
    /// Number, whether all tokens share them, whether dsink is added to.
    sinks: Option<(i64, bool, bool)>,
    /// Zeros for dq, or what is there.
    clear: Option<bool>,
    failed: bool,
}

fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    let good = got == want || (got - want).abs() <= tolerance * want.abs().max(1.0);
    assert!(good, "{what}: {got}, not {want}");
}

/// Operands of a case. A row in five sees nothing: out 0, lse -inf, NaN in dout.
struct Inputs {
    out: Vec<f64>,
    dout: Vec<f64>,
    lse: Vec<f64>,
    sink: Vec<f64>,
    old: Vec<f64>,
}

fn inputs(r: &mut Random, c: &Case) -> Inputs {
    let (rows, width) = ((c.tokens * c.heads) as usize, c.width as usize);
    let mut i = Inputs {
        out: r.normals(rows * width, 1.0, c.dtype),
        dout: r.normals(rows * width, 1.0, c.dtype),
        lse: r.normals(rows, 3.0, DType::F32),
        sink: Vec::new(),
        old: Vec::new(),
    };
    for row in (2..rows).step_by(5) {
        i.out[row * width..][..width].fill(0.0);
        i.dout[row * width..][..width].fill(f64::NAN);
        i.lse[row] = f64::NEG_INFINITY;
    }
    if let Some((n, shared, _)) = c.sinks {
        let count = (n * c.heads * if shared { 1 } else { c.tokens }) as usize;
        i.sink = r.normals(count, 2.0, DType::F32);
        // Where a row has a lse of -inf its sinks are -inf; a shared one would have to be so for all.
        if shared {
            for lse in i.lse.iter_mut().filter(|x| x.is_infinite()) {
                *lse = 1.0;
            }
        } else {
            for row in (2..rows).step_by(5) {
                for s in 0..n as usize {
                    i.sink[(row / c.heads as usize * n as usize + s) * c.heads as usize
                        + row % c.heads as usize] = f64::NEG_INFINITY;
                }
            }
        }
        i.old = r.normals(count, 1.0, DType::F32);
    }
    i
}

/// delta of each row.
fn deltas(c: &Case, i: &Inputs) -> Vec<f64> {
    let rows = i
        .out
        .chunks(c.width as usize)
        .zip(i.dout.chunks(c.width as usize));
    rows.map(|(a, b)| {
        a.iter()
            .zip(b)
            .filter(|(x, _)| **x != 0.0)
            .map(|(x, y)| x * y)
            .sum()
    })
    .collect()
}

/// dsink as it should be.
fn sinks(c: &Case, i: &Inputs, delta: &[f64]) -> Vec<f64> {
    let Some((n, shared, add)) = c.sinks else {
        return Vec::new();
    };
    let mut want = if add {
        i.old.clone()
    } else {
        vec![0.0; i.old.len()]
    };
    for (row, delta) in delta.iter().enumerate() {
        let (token, head) = (row / c.heads as usize, row % c.heads as usize);
        for s in 0..n as usize {
            let at = if shared { s } else { token * n as usize + s } * c.heads as usize + head;
            if i.sink[at] != f64::NEG_INFINITY {
                want[at] -= (i.sink[at] - i.lse[row]).exp() * delta;
            }
        }
    }
    want
}

fn check(gpu: &Arc<Gpu>, r: &mut Random, c: &Case) {
    let i = inputs(r, c);
    let what = format!("{c:?}");
    let shape = [c.tokens, c.heads, c.width];
    let out = Rows::new(gpu, &i.out, shape, if c.out_f32 { DType::F32 } else { c.dtype });
    let dout = Rows::new(gpu, &i.dout, shape, c.dtype);
    let lse = upload(gpu, &i.lse, DType::F32);
    let padded = (c.tokens + 3) / 4 * 4;
    let stats = Stats::new(gpu, padded, c.heads);
    let dq_shape = [c.tokens, c.heads, c.dq_width];
    let old_dq = r.normals((c.tokens * c.heads * c.dq_width) as usize, 1.0, DType::F32);
    let dq = Rows::new(gpu, &old_dq, dq_shape, DType::F32);
    let failed = DeviceMemory::upload(gpu, &i32::from(c.failed).to_ne_bytes()).unwrap();
    let sink = upload(gpu, &i.sink, DType::F32);
    let dsink = upload(gpu, &i.old, DType::F32);
    let sums = DeviceMemory::upload(gpu, &vec![0xff; 8 * parts(padded, c.heads)]).unwrap();
    let done = DeviceMemory::upload(gpu, &vec![0; 4 * c.heads as usize]).unwrap();
    let sinks_of = |(n, shared, add): (i64, bool, bool)| {
        let all = [c.tokens, n, c.heads];
        let shape = if shared { &all[1..] } else { &all[..] };
        RowsSinks {
            sink: dense(&sink, DType::F32, shape),
            dsink: dense(&dsink, DType::F32, shape),
            add,
            parts: sums.as_ptr().cast(),
            done: done.as_ptr().cast(),
        }
    };
    let call = RowsCall {
        from: DeltaFrom::Out(out.tensor()),
        dout: dout.tensor(),
        lse: dense(&lse, DType::F32, &[c.tokens, c.heads]),
        stats: stats.data(),
        padded,
        sums: c.clear.map(|clear| RowsSums {
            dq: dq.tensor(),
            clear,
        }),
        failed: failed.as_ptr().cast(),
        sinks: c.sinks.map(sinks_of),
    };
    let kernels = BackwardRows::load(gpu, c.dtype).unwrap();
    // SAFETY: all of it is alive until the stream is done.
    unsafe { kernels.prepare(&call, Stream::NULL) }.unwrap();
    stream::synchronize(gpu, Stream::NULL).unwrap();
    let want = deltas(c, &i);
    let got = stats.pairs();
    for (head, token) in (0..c.heads).flat_map(|head| (0..padded).map(move |token| (head, token))) {
        let pair = &got[stats.at(head, token)..][..4];
        // The token's own, and those of the one behind it.
        for next in 0..2 {
            let row = ((token + next as i64) * c.heads + head) as usize;
            let (lse2, delta) = match token + (next as i64) < c.tokens {
                true if i.lse[row].is_infinite() => (f64::INFINITY, 0.0),
                true => (i.lse[row] * std::f64::consts::LOG2_E, want[row]),
                false => (f64::INFINITY, 0.0),
            };
            let place = format!("of token {token} and {next}, head {head}, {what}");
            close(pair[next], lse2, 1e-6, &format!("lse2 {place}"));
            close(pair[2 + next], delta, 2e-5, &format!("delta {place}"));
        }
    }
    for (got, want) in download(&dsink, i.old.len(), DType::F32)
        .iter()
        .zip(sinks(c, &i, &want))
    {
        close(*got, want, 2e-4, &format!("dsink, {what}"));
    }
    let dq_now = dq.values();
    match (c.clear, c.failed) {
        (None, _) | (Some(false), false) => assert_eq!(dq_now, old_dq, "{what}"),
        (Some(true), false) => assert!(dq_now.iter().all(|&x| x == 0.0), "{what}"),
        (Some(_), true) => assert!(dq_now.iter().all(|x| x.is_nan()), "{what}"),
    }
    let mut counters = vec![1; 4 * c.heads as usize];
    done.read(0, &mut counters).unwrap();
    assert!(counters.iter().all(|&x| x == 0), "counters, {what}");
    check_given(gpu, c, &call, &want, &stats);
}

/// The same rows with delta brought along.
fn check_given(gpu: &Arc<Gpu>, c: &Case, call: &RowsCall, want: &[f64], stats: &Stats) {
    let first = stats.pairs();
    let rows = (c.tokens * c.heads) as usize;
    let given = upload(gpu, &want[..rows], DType::F32);
    let stats = Stats::new(gpu, call.padded, c.heads);
    let call = RowsCall {
        from: DeltaFrom::Given(dense(&given, DType::F32, &[c.tokens, c.heads])),
        stats: stats.data(),
        sums: None,
        sinks: None,
        ..*call
    };
    let kernels = BackwardRows::load(gpu, c.dtype).unwrap();
    // SAFETY: all of it is alive until the stream is done.
    unsafe { kernels.prepare(&call, Stream::NULL) }.unwrap();
    stream::synchronize(gpu, Stream::NULL).unwrap();
    for (i, (got, want)) in stats.pairs().iter().zip(&first).enumerate() {
        let tolerance = if i % 4 < 2 { 0.0 } else { 2e-5 };
        close(*got, *want, tolerance, &format!("{i} with delta given, {c:?}"));
    }
}

#[test]
fn rows_against_sums_in_f64() {
    let Some(gpu) = gpu() else { return };
    let mut r = Random(1);
    let sinks = [
        None,
        Some((1, true, false)),
        Some((8, true, true)),
        Some((3, false, false)),
        Some((8, false, true)),
    ];
    for case in 0..60usize {
        let c = Case {
            tokens: [1, 3, 32, 37, 130, 400][case % 6],
            heads: [1, 3, 8][r.below(3) as usize],
            width: [8, 17, 64, 128, 200, 5][r.below(6) as usize],
            dq_width: [8, 33, 64, 7][r.below(4) as usize],
            dtype: [DType::Bf16, DType::F16][r.below(2) as usize],
            out_f32: r.below(2) == 0,
            sinks: sinks[r.below(5) as usize],
            clear: [None, Some(false), Some(true)][r.below(3) as usize],
            failed: r.below(6) == 0,
        };
        check(&gpu, &mut r, &c);
    }
}

/// Chunks have several rounds of rows there, and there are more of them than a block adds up at once. Of two chunks that write
/// to one pair, now the one and now the other comes first: blocks stride over them.
#[test]
fn many_rows() {
    let Some(gpu) = gpu() else { return };
    let mut r = Random(2);
    for (tokens, heads) in [(20_000, 1), (3_000, 64)] {
        let c = Case {
            tokens,
            heads,
            width: 8,
            dq_width: 4,
            dtype: DType::Bf16,
            out_f32: false,
            sinks: Some((2, true, false)),
            clear: Some(true),
            failed: false,
        };
        check(&gpu, &mut r, &c);
    }
}

#[test]
fn chunks_cover_all_rows() {
    for padded in [0, 4, 32, 36, 1000, 8192, 1 << 20, 1 << 28] {
        for heads in [1, 2, 7, 64, 1000, 100_000] {
            let (count, rows) = chunks(padded, heads);
            assert!(
                count * rows >= padded && (count - 1) * rows <= padded,
                "{padded} {heads}"
            );
            assert!(
                (1..=512).contains(&count) && rows % 32 == 0,
                "{padded} {heads}: {count} of {rows}"
            );
            assert_eq!(parts(padded, heads), (count * heads) as usize * SINKS);
        }
    }
}

#[test]
fn sums_become_dq() {
    let Some(gpu) = gpu() else { return };
    let mut r = Random(3);
    for dtype in [DType::Bf16, DType::F16] {
        for (tokens, heads, width) in [(1, 1, 8), (37, 3, 64), (5, 2, 17), (130, 4, 128), (9, 1, 3)] {
            for (add, result) in [
                (false, dtype),
                (true, dtype),
                (false, DType::F32),
                (true, DType::F32),
            ] {
                let shape = [tokens, heads, width];
                let n = (tokens * heads * width) as usize;
                let (sums, old) = (r.normals(n, 2.0, DType::F32), r.normals(n, 1.0, result));
                let (from, to) = (
                    Rows::new(&gpu, &sums, shape, DType::F32),
                    Rows::new(&gpu, &old, shape, result),
                );
                let kernels = BackwardRows::load(&gpu, dtype).unwrap();
                // SAFETY: both are alive until the stream is done.
                unsafe { kernels.convert(&from.tensor(), &to.tensor(), add, Stream::NULL) }.unwrap();
                stream::synchronize(&gpu, Stream::NULL).unwrap();
                for (i, got) in to.values().into_iter().enumerate() {
                    let exact = sums[i] + if add { old[i] } else { 0.0 };
                    let ulp = match result {
                        DType::Bf16 => 2f64.powi(-8),
                        DType::F16 => 2f64.powi(-11),
                        _ => 2f64.powi(-24),
                    };
                    let good = (got - exact).abs() <= ulp * exact.abs() + 1e-7;
                    assert!(good, "{result:?} {shape:?} {add}: {got}, not {exact}");
                }
            }
        }
    }
}

#[test]
fn the_same_launches_give_the_same_on_the_processor() {
    run_on_the_processor("backward_rows", &[], 5);
}
