//! What the driver for ranks (tests/host_ranks) promises to tests: launches in the order of streams and events, copied
//! parameters, and memory that shows mistakes.

mod common_backend;
mod common_cuda;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use common_backend::Layout;
use magi_attn::backend::cuda::walk::Walk;
use magi_attn::backend::cuda::{embedded, kernels};
use magi_attn::backend::{Backend, CudaBackend};
use magi_attn::device::cuda::{Arguments, DeviceMemory, Event, Launch, StreamMemory, pointer};
use magi_attn::types::{DType, Device, Status, Tensor};
use nccl_support::UserStream;
use ranks_support::{DeviceTensor, Gate, Rank, fails_inside, inside, on_ranks};

#[test]
fn launches_wait_for_events_and_for_nothing_else() {
    inside("launches_wait_for_events_and_for_nothing_else", &[], || {
        on_ranks(2, |r| {
            let (reader, other) = (UserStream::new(r.rank), UserStream::new(r.rank));
            let ones = |n: i64| r.values(&vec![1.0; n as usize], &[n], DType::F32, Layout::Dense);
            let x = ones(8);
            let [late, early] = [0; 2].map(|_| r.unwritten(&[8], DType::F32, Layout::Dense));
            let at = x.tensor().data() as usize;
            // SAFETY: device memory is the host's here, and nobody touches x while the gate opens.
            let write = move || unsafe { std::slice::from_raw_parts_mut(at as *mut f32, 8).fill(2.0) };
            let gate = Gate::then(&r.user, write);
            let event = Event::new(&r.gpu).unwrap();
            event.record(r.stream()).unwrap();
            event.wait(reader.stream).unwrap();
            let copy = |on: &UserStream, to: &DeviceTensor| {
                let backend = CudaBackend::new(&r.gpu, on.stream).unwrap();
                backend.cast(x.tensor(), to.tensor(), false).unwrap();
            };
            copy(&reader, &late);
            copy(&other, &early);
            other.synchronize();
            assert_eq!(early.read(), [1.0; 8]);
            assert!(!event.is_done().unwrap());
            assert!(late.read().iter().all(|x| x.is_nan()));
            gate.open();
            reader.synchronize();
            assert_eq!(late.read(), [2.0; 8]);
            assert!(event.is_done().unwrap());
        });
    });
}

#[test]
fn parameters_are_copied_when_a_kernel_is_launched() {
    inside("parameters_are_copied_when_a_kernel_is_launched", &[], || {
        on_ranks(2, |r| {
            let [a, b] = [0; 2].map(|_| r.values(&[1.0; 8], &[8], DType::F32, Layout::Dense));
            let variant = embedded::listed("elementwise").unwrap();
            let fill = kernels::load(&r.gpu, variant)
                .unwrap()
                .function("fill_zero")
                .unwrap();
            let mut walk = Walk::moving(&[&a.tensor()], 0, &[0]);
            let mut at = a.tensor().data();
            let gate = Gate::on(&r.user);
            let mut arguments = Arguments::new();
            arguments.push(&walk).push(&at);
            // SAFETY: the parameters of fill_zero, on memory that stays.
            unsafe { Launch::linear(1, 256).run(&r.gpu, fill, r.stream(), &mut arguments) }.unwrap();
            (walk.units, at) = (0, b.tensor().data());
            gate.open();
            assert_eq!(r.download(&a), [0.0; 8]);
            assert_eq!(r.download(&b), [1.0; 8]);
            assert_eq!((walk.units, at), (0, b.tensor().data()));
        });
    });
}

#[test]
fn memory_lives_as_long_as_its_stream_uses_it() {
    inside("memory_lives_as_long_as_its_stream_uses_it", &[], || {
        on_ranks(4, |r| {
            let x = r.values(&[3.0; 8], &[8], DType::F32, Layout::Dense);
            let y = r.unwritten(&[8], DType::F32, Layout::Dense);
            let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
            let gate = Gate::on(&r.user);
            let memory = StreamMemory::new(&r.gpu, 32, r.stream()).unwrap();
            let (at, device) = (memory.as_ptr(), Device::Cuda(r.rank as i32));
            // SAFETY: 8 elements in 32 bytes, which the stream frees behind their uses.
            let between = unsafe { Tensor::dense(at, DType::F32, device, &[8]) };
            backend.cast(x.tensor(), between, false).unwrap();
            backend.cast(between, y.tensor(), false).unwrap();
            assert_eq!(pointer::device_of(at).unwrap(), Some(r.rank as i32));
            drop(memory);
            assert_eq!(pointer::device_of(at).unwrap(), None);
            gate.open();
            assert_eq!(r.download(&y), [3.0; 8]);
            // SAFETY: the driver keeps what was freed for a while.
            assert_eq!(unsafe { std::slice::from_raw_parts(at, 32) }, [0xa5; 32]);
            let fresh = DeviceMemory::new(&r.gpu, 32).unwrap();
            let mut bytes = [0; 32];
            fresh.read(0, &mut bytes).unwrap();
            assert_eq!(bytes, [0xff; 32]);
        });
    });
}

#[test]
fn streams_and_kernels_of_another_device_are_refused() {
    inside("streams_and_kernels_of_another_device_are_refused", &[], || {
        on_ranks(2, |r| {
            let theirs = UserStream::new(1 - r.rank);
            let error = CudaBackend::new(&r.gpu, theirs.stream).unwrap_err();
            assert_eq!(error.status, Status::DeviceMismatch);
            let a = r.values(&[1.0; 8], &[8], DType::F32, Layout::Dense);
            let variant = embedded::listed("elementwise").unwrap();
            let fill = kernels::load(&r.gpu, variant)
                .unwrap()
                .function("fill_zero")
                .unwrap();
            let (walk, at) = (Walk::moving(&[&a.tensor()], 0, &[0]), a.tensor().data());
            let mut arguments = Arguments::new();
            arguments.push(&walk).push(&at);
            // SAFETY: refused before anything runs.
            let refused = unsafe { Launch::linear(1, 256).run(&r.gpu, fill, theirs.stream, &mut arguments) };
            assert_eq!(refused.unwrap_err().status, Status::CudaFailed);
            let event = Event::new(&r.gpu).unwrap();
            assert_eq!(
                event.record(theirs.stream).unwrap_err().status,
                Status::CudaFailed
            );
            assert_eq!(r.download(&a), [1.0; 8]);
        });
    });
}

/// Zeros to `elements` floats where there is memory for 8.
fn zeros(r: &Rank, memory: &DeviceMemory, elements: i64) -> Tensor {
    let device = Device::Cuda(r.rank as i32);
    // SAFETY: what is behind the memory, or was freed, is kept by the driver, which is what is tested.
    unsafe { Tensor::dense(memory.as_ptr(), DType::F32, device, &[elements]) }
}

#[test]
fn writing_behind_the_end_is_seen() {
    fails_inside("writing_behind_the_end_is_seen", "behind its end", || {
        on_ranks(1, |r| {
            let memory = DeviceMemory::new(&r.gpu, 32).unwrap();
            let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
            backend.fill_zero(zeros(r, &memory, 9)).unwrap();
            r.user.synchronize();
        });
    });
}

#[test]
fn writing_to_freed_memory_is_seen() {
    fails_inside("writing_to_freed_memory_is_seen", "after it was freed", || {
        on_ranks(1, |r| {
            let memory = DeviceMemory::new(&r.gpu, 32).unwrap();
            let tensor = zeros(r, &memory, 8);
            let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
            drop(memory);
            backend.fill_zero(tensor).unwrap();
            r.user.synchronize();
        });
    });
}
