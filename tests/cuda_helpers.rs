//! Helper kernels against the CPU backend: on the first CUDA device where there is one, and everywhere on the processor,
//! through a driver for tests (tests/host_driver) that runs the same launches.

mod common_backend;
mod common_cuda;
mod common_reference;

use std::sync::Arc;

use common_backend::*;
use common_cuda::{Copy, gpu, run_on_the_processor};
use magi_attn::backend::{Backend, CpuBackend, CudaBackend};
use magi_attn::device::Stream;
use magi_attn::device::cuda::{DeviceMemory, Event, Gpu, StreamMemory, pointer, stream};
use magi_attn::types::{DType, Device, Range, Status, Tensor};

const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::Bf16, DType::F16];
const LAYOUTS: [Layout; 3] = [Layout::Dense, Layout::Padded, Layout::HeadsFirst];

/// Runs `f` with the CPU backend on `buffers`, and with the CUDA backend on copies of them; gives the values of buffer
/// `result` after each.
fn both(
    gpu: &Arc<Gpu>,
    buffers: &mut [&mut Buffer],
    result: usize,
    f: impl Fn(&dyn Backend, &[Tensor]),
) -> [Vec<f64>; 2] {
    let tensors: Vec<Tensor> = buffers.iter_mut().map(|b| b.tensor()).collect();
    let copies: Vec<Copy> = tensors.iter().map(|t| Copy::of(gpu, *t)).collect();
    let on_device: Vec<Tensor> = copies.iter().map(Copy::tensor).collect();
    f(&CpuBackend::new(), &tensors);
    let want = buffers[result].values();
    f(&CudaBackend::new(gpu, Stream::NULL).unwrap(), &on_device);
    stream::synchronize(gpu, Stream::NULL).unwrap();
    copies[result].fetch();
    [want, buffers[result].values()]
}

/// Equal, or NaN both.
fn same([want, got]: &[Vec<f64>; 2], what: &str) {
    assert_eq!(want.len(), got.len());
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        assert!(
            w == g || w.is_nan() && g.is_nan(),
            "{what}: element {i} is {g}, not {w}"
        );
    }
}

/// Within `tolerance` of the wanted value or of 1, whichever is larger.
fn near([want, got]: &[Vec<f64>; 2], tolerance: f64, what: &str) {
    assert_eq!(want.len(), got.len());
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let good = w == g || w.is_nan() && g.is_nan() || (w - g).abs() <= tolerance * w.abs().max(1.0);
        assert!(good, "{what}: element {i} is {g}, not {w}");
    }
}

/// Half a unit in the last place of the coarser of the types, and what f32 arithmetic adds.
fn tolerance(dtypes: &[DType]) -> f64 {
    let of = |d: &DType| match d {
        DType::F64 => 1e-14,
        DType::F32 => 1e-6,
        DType::F16 => 6e-4,
        _ => 5e-3,
    };
    dtypes.iter().map(of).fold(0.0, f64::max)
}

/// Random values with the extremes among them.
fn values(r: &mut Random, n: usize, dtype: DType) -> Vec<f64> {
    let mut all = r.normals(n, 3.0, dtype);
    let odd = [
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        0.0,
        -0.0,
        65504.0,
        1e-7,
        3.0e38,
    ];
    for (x, odd) in all.iter_mut().step_by(11).zip(odd) {
        *x = odd;
    }
    all
}

/// Ranges of `[0, 30)`, not sorted, one of them empty, some rows twice.
fn ranges() -> Vec<Range> {
    [(20, 25), (3, 4), (7, 7), (0, 9), (22, 30)]
        .map(|(a, b)| Range::new(a, b))
        .to_vec()
}

fn rows() -> i64 {
    ranges().iter().map(Range::len).sum()
}

#[test]
fn casts_round_as_the_reference_does() {
    let Some(gpu) = gpu() else {
        return;
    };
    let mut r = Random(1);
    for from in DTYPES {
        for to in DTYPES {
            for (i, &layout) in LAYOUTS.iter().enumerate() {
                for width in [16, 5] {
                    let shape = [9, 3, width];
                    let n = 27 * width as usize;
                    for add in [false, true] {
                        let mut src = Buffer::new(&values(&mut r, n, from), &shape, from, layout);
                        let mut dst = Buffer::new(&values(&mut r, n, to), &shape, to, LAYOUTS[(i + 1) % 3]);
                        let outcome = both(&gpu, &mut [&mut src, &mut dst], 1, |b, t| {
                            b.cast(t[0], t[1], add).unwrap();
                        });
                        same(
                            &outcome,
                            &format!("{from:?} to {to:?}, {layout:?}, width {width}, add {add}"),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn division_zeros_and_the_search_for_nan() {
    let Some(gpu) = gpu() else {
        return;
    };
    let mut r = Random(2);
    for dtype in DTYPES {
        for layout in LAYOUTS {
            let shape = [7, 3, 8];
            let mut x = Buffer::new(&values(&mut r, 168, dtype), &shape, dtype, layout);
            let outcome = both(&gpu, &mut [&mut x], 0, |b, t| b.divide(t[0], 7).unwrap());
            same(&outcome, &format!("divide {dtype:?} {layout:?}"));
            let outcome = both(&gpu, &mut [&mut x], 0, |b, t| b.fill_zero(t[0]).unwrap());
            assert!(outcome[1].iter().all(|&z| z == 0.0));
            for nan in [false, true] {
                let mut all = r.normals(168, 1.0, dtype);
                if nan {
                    all[101] = f64::NAN;
                }
                let mut x = Buffer::new(&all, &shape, dtype, layout);
                both(&gpu, &mut [&mut x], 0, |b, t| {
                    assert_eq!(b.has_nan(t[0]).unwrap(), nan)
                });
            }
        }
    }
}

#[test]
fn rows_are_gathered_scattered_and_reduced() {
    let Some(gpu) = gpu() else {
        return;
    };
    let mut r = Random(3);
    for dtype in DTYPES {
        for (i, &layout) in LAYOUTS.iter().enumerate() {
            for width in [5, 8] {
                let (spread, packed) = ([30, 3, width], [rows(), 3, width]);
                let (n, m) = (90 * width as usize, 3 * (rows() * width) as usize);
                let other = LAYOUTS[(i + 1) % 3];
                let mut a = Buffer::new(&values(&mut r, n, dtype), &spread, dtype, layout);
                let mut b = Buffer::poisoned(&packed, dtype, other);
                let what = format!("{dtype:?} {layout:?} {width}");
                let outcome = both(&gpu, &mut [&mut a, &mut b], 1, |backend, t| {
                    backend.range_gather(t[0], &ranges(), t[1]).unwrap();
                });
                same(&outcome, &format!("gather {what}"));
                b.set(&values(&mut r, m, dtype));
                let outcome = both(&gpu, &mut [&mut b, &mut a], 1, |backend, t| {
                    backend.range_scatter(t[0], t[1], &ranges()).unwrap();
                });
                same(&outcome, &format!("scatter {what}"));
                for from in DTYPES {
                    let mut b = Buffer::new(&values(&mut r, m, from), &packed, from, other);
                    let outcome = both(&gpu, &mut [&mut b, &mut a], 1, |backend, t| {
                        backend.range_reduce(t[0], t[1], &ranges()).unwrap();
                    });
                    same(&outcome, &format!("reduce from {from:?}, {what}"));
                }
            }
        }
    }
}

#[test]
fn long_lists_of_ranges_take_several_launches() {
    let Some(gpu) = gpu() else {
        return;
    };
    let mut r = Random(4);
    for count in [150, 1000, 4000] {
        // Rows 1, 2 of every three.
        let ranges: Vec<Range> = (0..count)
            .rev()
            .map(|i| Range::new(3 * i + 1, 3 * i + 3))
            .collect();
        let (spread, packed) = ([3 * count, 2], [2 * count, 2]);
        let n = 6 * count as usize;
        let mut a = Buffer::new(&r.normals(n, 1.0, DType::F32), &spread, DType::F32, Layout::Dense);
        let mut b = Buffer::poisoned(&packed, DType::F32, Layout::Dense);
        let outcome = both(&gpu, &mut [&mut a, &mut b], 1, |backend, t| {
            backend.range_gather(t[0], &ranges, t[1]).unwrap();
        });
        same(&outcome, "gather");
        let outcome = both(&gpu, &mut [&mut b, &mut a], 1, |backend, t| {
            backend.range_reduce(t[0], t[1], &ranges).unwrap();
        });
        same(&outcome, "reduce");
    }
}

#[test]
fn partial_results_are_merged() {
    let Some(gpu) = gpu() else {
        return;
    };
    let mut r = Random(5);
    for from in DTYPES {
        for to in DTYPES {
            for (i, &layout) in LAYOUTS.iter().enumerate() {
                let (acc_from, acc_to) = (from.accumulator(), to.accumulator());
                let mut lse = |n: usize, dtype: DType| {
                    let mut all = r.normals(n, 4.0, dtype);
                    all.iter_mut().step_by(5).for_each(|x| *x = f64::NEG_INFINITY);
                    all
                };
                let (n, m) = (30 * 2, 2 * rows() as usize);
                let (lse_a, lse_b) = (lse(n, acc_to), lse(m, acc_from));
                let out_a = r.normals(n * 40, 1.0, to);
                let mut out_b = r.normals(m * 40, 1.0, from);
                // Of an lse of -inf the output is not read.
                for (i, _) in lse_b.iter().enumerate().filter(|(_, x)| x.is_infinite()) {
                    out_b[i * 40] = f64::NAN;
                }
                let other = LAYOUTS[(i + 2) % 3];
                let mut a = Buffer::new(&out_a, &[30, 2, 40], to, layout);
                let mut b = Buffer::new(&out_b, &[rows(), 2, 40], from, other);
                let mut c = Buffer::new(&lse_a, &[30, 2], acc_to, layout);
                let mut d = Buffer::new(&lse_b, &[rows(), 2], acc_from, other);
                let what = format!("{from:?} to {to:?}, {layout:?}");
                for (result, of) in [(0, [from, to]), (2, [acc_from, acc_to])] {
                    a.set(&out_a);
                    c.set(&lse_a);
                    let outcome = both(
                        &gpu,
                        &mut [&mut a, &mut b, &mut c, &mut d],
                        result,
                        |backend, t| {
                            backend.lse_reduce(t[1], t[3], t[0], t[2], &ranges()).unwrap();
                        },
                    );
                    near(&outcome, 2.0 * tolerance(&of), &what);
                }
            }
        }
    }
}

#[test]
fn running_results_start_with_their_sinks() {
    let Some(gpu) = gpu() else {
        return;
    };
    let mut r = Random(6);
    for dtype in DTYPES {
        for shape in [vec![2, 3], vec![20, 2, 3]] {
            let acc = dtype.accumulator();
            let n = shape.iter().product::<i64>() as usize;
            let mut logits = r.normals(n, 2.0, DType::F32);
            logits[0] = f64::NEG_INFINITY;
            let mut out = Buffer::poisoned(&[20, 3, 16], dtype, Layout::Padded);
            let mut lse = Buffer::poisoned(&[20, 3], acc, Layout::HeadsFirst);
            let mut max = Buffer::poisoned(&[3], DType::F32, Layout::Dense);
            let mut sink = Buffer::new(&logits, &shape, DType::F32, Layout::Dense);
            for result in 0..3 {
                let mut buffers = [&mut out, &mut lse, &mut max, &mut sink];
                let outcome = both(&gpu, &mut buffers, result, |b, t| {
                    b.attn_init(t[0], t[1], Some(t[2]), Some(t[3])).unwrap();
                });
                near(
                    &outcome,
                    tolerance(&[acc]),
                    &format!("init {dtype:?} {shape:?}, result {result}"),
                );
            }
            let mut delta = Buffer::new(&r.normals(60, 1.0, acc), &[20, 3], acc, Layout::Padded);
            let mut dsink = Buffer::poisoned(&shape, acc, Layout::Dense);
            let outcome = both(
                &gpu,
                &mut [&mut sink, &mut lse, &mut delta, &mut dsink],
                3,
                |b, t| {
                    b.sink_backward(t[0], t[1], t[2], t[3]).unwrap();
                },
            );
            near(
                &outcome,
                2.0 * tolerance(&[acc]),
                &format!("sink_backward {dtype:?} {shape:?}"),
            );
        }
        let mut out = Buffer::poisoned(&[4, 3, 16], dtype, Layout::Dense);
        let mut lse = Buffer::poisoned(&[4, 3], dtype.accumulator(), Layout::Dense);
        let outcome = both(&gpu, &mut [&mut out, &mut lse], 1, |b, t| {
            b.attn_init(t[0], t[1], None, None).unwrap()
        });
        assert!(outcome[1].iter().all(|&x| x == f64::NEG_INFINITY));
        // A NaN among sinks is not lost, whatever stands beside it.
        for beside in [f64::NEG_INFINITY, 1.0] {
            let mut out = Buffer::poisoned(&[4, 1, 16], dtype, Layout::Dense);
            let mut lse = Buffer::new(&[0.0; 4], &[4, 1], dtype.accumulator(), Layout::Dense);
            let mut sink = Buffer::new(&[f64::NAN, beside], &[2, 1], DType::F32, Layout::Dense);
            let outcome = both(&gpu, &mut [&mut out, &mut lse, &mut sink], 1, |b, t| {
                b.attn_init(t[0], t[1], None, Some(t[2])).unwrap()
            });
            assert!(outcome.iter().flatten().all(|x| x.is_nan()), "{dtype:?} {beside}");
        }
    }
}

#[test]
fn delta_is_the_product_of_rows() {
    let Some(gpu) = gpu() else {
        return;
    };
    let mut r = Random(7);
    for a in DTYPES {
        for b in DTYPES {
            for (i, &layout) in LAYOUTS.iter().enumerate() {
                for width in [128, 20, 7] {
                    let (shape, n) = ([11, 3, width], 33 * width as usize);
                    let mut values = r.normals(n, 1.0, a);
                    let mut others = r.normals(n, 1.0, b);
                    // A row that sees nothing: its dout reaches nothing.
                    values[..width as usize].fill(0.0);
                    others[0] = f64::NAN;
                    let acc = a.accumulator();
                    let mut x = Buffer::new(&values, &shape, a, layout);
                    let mut y = Buffer::new(&others, &shape, b, LAYOUTS[(i + 1) % 3]);
                    let mut delta = Buffer::poisoned(&shape[..2], acc, layout);
                    let outcome = both(&gpu, &mut [&mut x, &mut y, &mut delta], 2, |backend, t| {
                        backend.attn_delta(t[0], t[1], t[2]).unwrap();
                    });
                    let tolerance = 20.0 * tolerance(&[acc]);
                    near(
                        &outcome,
                        tolerance,
                        &format!("delta {a:?} {b:?} {layout:?} {width}"),
                    );
                }
            }
        }
    }
}

#[test]
fn bytes_of_any_dtype_are_moved() {
    let Some(gpu) = gpu() else {
        return;
    };
    let backend = CudaBackend::new(&gpu, Stream::NULL).unwrap();
    for (dtype, row) in [
        (DType::U8, 7),
        (DType::Bool, 16),
        (DType::I16, 3),
        (DType::I32, 1),
        (DType::I64, 2),
    ] {
        let bytes = 30 * row as usize * dtype.size();
        let host: Vec<u8> = (0..bytes).map(|i| (i * 37 % 251) as u8).collect();
        let src = DeviceMemory::upload(&gpu, &host).unwrap();
        let width = row as usize * dtype.size();
        let dst = DeviceMemory::upload(&gpu, &vec![0xee; rows() as usize * width]).unwrap();
        // SAFETY: memory as long as the shapes say, and alive until the stream is done.
        let (from, to) = unsafe {
            (
                Tensor::dense(src.as_ptr(), dtype, Device::Cuda(0), &[30, row]),
                Tensor::dense(dst.as_ptr(), dtype, Device::Cuda(0), &[rows(), row]),
            )
        };
        backend.range_gather(from, &ranges(), to).unwrap();
        stream::synchronize(&gpu, Stream::NULL).unwrap();
        let mut got = vec![0; dst.bytes()];
        dst.read(0, &mut got).unwrap();
        let tokens = ranges()
            .into_iter()
            .flat_map(|r| r.start as usize..r.end as usize);
        let want: Vec<u8> = tokens.flat_map(|t| host[t * width..][..width].to_vec()).collect();
        assert_eq!(got, want, "{dtype:?}");
    }
}

#[test]
fn the_callers_context_and_memory_are_told() {
    let Some(gpu) = gpu() else {
        return;
    };
    let current = || {
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver is there; the pointer is good for a context.
        let code = unsafe { cudarc::driver::sys::cuCtxGetCurrent(&mut context) };
        assert_eq!(code as i32, 0);
        context
    };
    let before = current();
    let memory = DeviceMemory::new(&gpu, 100).unwrap();
    let backend = CudaBackend::new(&gpu, Stream::NULL).unwrap();
    assert_eq!(pointer::device_of(memory.as_ptr()).unwrap(), Some(0));
    let host = [0u8; 8];
    assert_eq!(pointer::device_of(host.as_ptr()).unwrap(), None);
    assert!(!stream::is_capturing(&gpu, Stream::NULL).unwrap());
    // SAFETY: 25 elements in 100 bytes.
    let good = unsafe { Tensor::dense(memory.as_ptr(), DType::F32, Device::Cuda(0), &[25]) };
    backend.fill_zero(good).unwrap();
    assert_eq!(current(), before);
    // SAFETY: refused before anything is read.
    let (elsewhere, odd) = unsafe {
        (
            Tensor::dense(memory.as_ptr(), DType::F32, Device::Cpu, &[25]),
            Tensor::dense(
                memory.as_ptr().wrapping_add(2),
                DType::F32,
                Device::Cuda(0),
                &[20],
            ),
        )
    };
    assert_eq!(
        backend.fill_zero(elsewhere).unwrap_err().status,
        Status::DeviceMismatch
    );
    assert_eq!(
        backend.fill_zero(odd).unwrap_err().status,
        Status::InvalidArgument
    );
    assert_eq!(current(), before);
}

#[test]
fn events_and_memory_in_the_order_of_a_stream() {
    let Some(gpu) = gpu() else {
        return;
    };
    let event = Event::new(&gpu).unwrap();
    let memory = StreamMemory::new(&gpu, 4096, Stream::NULL).unwrap();
    assert!((memory.as_ptr() as usize).is_multiple_of(256) && memory.bytes() == 4096);
    // SAFETY: as many bytes as were taken.
    let bytes = unsafe { Tensor::dense(memory.as_ptr(), DType::U8, Device::Cuda(0), &[4096]) };
    let backend = CudaBackend::new(&gpu, Stream::NULL).unwrap();
    backend.fill_zero(bytes).unwrap();
    event.record(Stream::NULL).unwrap();
    event.wait(Stream::NULL).unwrap();
    event.synchronize().unwrap();
    assert!(event.is_done().unwrap());
    drop(memory);
    let none = DeviceMemory::new(&gpu, 0).unwrap();
    assert!(none.as_ptr().is_null());
    none.write(0, &[]).unwrap();
    let some = DeviceMemory::upload(&gpu, &[1, 2, 3]).unwrap();
    assert_eq!(some.write(2, &[1, 2]).unwrap_err().status, Status::Internal);
    some.write(1, &[7]).unwrap();
    let mut got = [0; 3];
    some.read(0, &mut got).unwrap();
    assert_eq!(got, [1, 7, 3]);
    assert_eq!(Gpu::open(-1).unwrap_err().status, Status::NoDevice);
}

#[test]
fn largest_of_rows() {
    let Some(gpu) = gpu() else { return };
    let mut r = Random(41);
    for (rows, heads) in [(0, 5), (1, 1), (4, 300), (7, 64)] {
        for (i, layout) in [Layout::Dense, Layout::Padded].into_iter().enumerate() {
            let mut values = r.normals((rows * heads) as usize, 3.0, DType::F32);
            // A NaN counts for nothing, and a head may have seen nothing anywhere.
            for (at, value) in values.iter_mut().enumerate() {
                match at as i64 % heads {
                    3 => *value = f64::NEG_INFINITY,
                    2 if at as i64 / heads == 1 => *value = f64::NAN,
                    _ => {}
                }
            }
            let mut src = Buffer::new(&values, &[rows, heads], DType::F32, layout);
            let mut dst = Buffer::poisoned(&[heads], DType::F32, Layout::Dense);
            let got = both(&gpu, &mut [&mut src, &mut dst], 1, |b, t| {
                b.max_rows(t[0], t[1]).unwrap();
            });
            same(&got, &format!("{rows} rows of {heads}, layout {i}"));
            if rows == 0 {
                assert!(got[1].iter().all(|&x| x == f64::NEG_INFINITY));
            }
        }
    }
}

#[test]
fn standing_by_lets_some_time_pass() {
    let Some(gpu) = gpu() else { return };
    let b = CudaBackend::new(&gpu, Stream::NULL).unwrap();
    b.stand_by().unwrap();
    stream::synchronize(&gpu, Stream::NULL).unwrap();
    let begin = std::time::Instant::now();
    (0..100).for_each(|_| b.stand_by().unwrap());
    stream::synchronize(&gpu, Stream::NULL).unwrap();
    let passed = begin.elapsed().as_micros();
    let is_device = gpu.properties().name != "the processor";
    assert!(!is_device || (1_000..100_000).contains(&passed), "{passed} us");
}

#[test]
fn the_same_launches_give_the_same_on_the_processor() {
    run_on_the_processor("cuda_helpers", &[], 13);
}
