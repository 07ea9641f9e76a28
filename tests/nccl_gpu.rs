//! The NCCL that is installed, over the devices that are there: a rank for each, at most four. Skipped without.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use magi_attn::comm::nccl::{Nccl, NcclComm, Options, UniqueId, adopt, from_id};
use magi_attn::comm::{Communicator, RecvOp, SendOp};
use magi_attn::device::cuda::{DeviceMemory, Gpu, OwnStream, driver, stream};
use magi_attn::device::{Stream, places};
use magi_attn::runtime::Context;
use magi_attn::types::{Result, Status};

const ROW: usize = 8 * 128 * 2;
const ROWS: usize = 4096;

/// Number of ranks; `None` (said aloud) where there is no device or no NCCL.
fn world() -> Option<usize> {
    let found = driver::device_count().and_then(|count| Nccl::get().map(|nccl| (count, nccl)));
    match found {
        Ok((count, nccl)) => {
            println!("NCCL {} at {}, {count} devices", nccl.version(), nccl.path());
            Some((count as usize).min(4))
        }
        Err(e) if matches!(e.status, Status::NoDevice | Status::NotSupported) => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn options() -> Options {
    Options {
        timeout: Duration::from_secs(60),
        ..Options::default()
    }
}

/// Makes a communicator with rank r on device r, and calls `f` for each rank on a thread of its own.
fn on_ranks(world: usize, f: impl Fn(usize, Result<Arc<NcclComm>>) + Sync) {
    let id = UniqueId::create().unwrap();
    thread::scope(|scope| {
        for rank in 0..world {
            let (f, id) = (&f, &id);
            scope.spawn(move || f(rank, from_id(id, (rank, world), rank as i32, &options())));
        }
    });
}

/// Byte `at` of tensor `tensor` of rank `owner`.
fn byte(tensor: usize, owner: usize, at: usize) -> u8 {
    (tensor * 91 + owner * 57 + at / 7) as u8
}

/// Every rank sends the rows of two tensors to every rank, itself too, in one group, and checks what it gets.
fn exchange(comm: &dyn Communicator, device: usize, rounds: usize) -> Duration {
    let gpu = Gpu::open(device as i32).unwrap();
    let user = OwnStream::urgent(&gpu).unwrap();
    let on = user.as_stream();
    let (rank, world) = (comm.rank(), comm.size());
    let part = ROWS / 8 * ROW;
    let local = [0, 1].map(|t| {
        let bytes: Vec<u8> = (0..ROWS * ROW).map(|i| byte(t, rank, i)).collect();
        DeviceMemory::upload(&gpu, &bytes).unwrap()
    });
    let received = [0, 1].map(|_| DeviceMemory::upload(&gpu, &vec![0xee; world * part]).unwrap());
    let mut sends = Vec::new();
    let mut recvs = Vec::new();
    for t in 0..2 {
        for peer in 0..world {
            sends.push(SendOp {
                peer,
                data: local[t].as_ptr().wrapping_add(peer * part),
                bytes: part,
            });
            recvs.push(RecvOp {
                peer,
                data: received[t].as_ptr().wrapping_add(peer * part),
                bytes: part,
            });
        }
    }
    let begun = Instant::now();
    for _ in 0..rounds {
        // SAFETY: the memory is as long as the operations say, and read when the stream is done.
        let ticket = unsafe { comm.start(&sends, &recvs, on) }.unwrap();
        comm.finish(ticket, on).unwrap();
    }
    let took = begun.elapsed() / rounds as u32;
    stream::synchronize(&gpu, on).unwrap();
    for (t, received) in received.iter().enumerate() {
        let mut got = vec![0; world * part];
        received.read(0, &mut got).unwrap();
        for owner in 0..world {
            let want: Vec<u8> = (rank * part..(rank + 1) * part)
                .map(|i| byte(t, owner, i))
                .collect();
            assert!(
                got[owner * part..][..part] == want,
                "tensor {t} from {owner} on {rank}"
            );
        }
    }
    took
}

#[test]
fn tensors_travel() {
    let Some(world) = world() else { return };
    on_ranks(world, |rank, comm| {
        let comm: Arc<dyn Communicator> = comm.unwrap();
        exchange(&*comm, rank, 1);
        let took = exchange(&*comm, rank, 50);
        println!("rank {rank}: an exchange takes {took:?} on the host");
        let all = comm.all_gather(&[rank as u8], Stream::NULL).unwrap();
        assert_eq!(all, (0..world).map(|r| vec![r as u8]).collect::<Vec<_>>());
        let [inter, intra] = Context::new(comm.clone()).split_mesh(1, world).unwrap();
        exchange(inter.comm(), rank, 1);
        exchange(intra.comm(), rank, 1);
        intra.close();
        exchange(&*comm, rank, 1);
    });
    // Again in the same process.
    on_ranks(world, |rank, comm| {
        exchange(&*comm.unwrap(), rank, 1);
    });
}

#[test]
fn a_silent_peer_holds_nobody_up() {
    let Some(world) = world() else { return };
    if world < 2 {
        println!("skipped: one device");
        return;
    }
    let barrier = Barrier::new(world);
    on_ranks(world, |rank, comm| {
        let comm = comm.unwrap();
        exchange(&*comm, rank, 1);
        barrier.wait();
        let gpu = Gpu::open(rank as i32).unwrap();
        let user = OwnStream::urgent(&gpu).unwrap();
        let memory = DeviceMemory::new(&gpu, ROW).unwrap();
        let begun = Instant::now();
        if rank == 0 {
            comm.set_timeout(Duration::from_secs(2));
            let recv = RecvOp {
                peer: 1,
                data: memory.as_ptr(),
                bytes: ROW,
            };
            // SAFETY: the memory stays until the stream is done.
            let ticket = unsafe { comm.start(&[], &[recv], user.as_stream()) }.unwrap();
            comm.finish(ticket, user.as_stream()).unwrap();
        }
        while comm.async_error().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(10));
        }
        stream::synchronize(&gpu, user.as_stream()).unwrap();
        let error = comm.async_error().unwrap();
        assert!(error.message.contains("rank 0 waited 2s"), "{error}");
        println!("rank {rank}: free after {:?}", begun.elapsed());
    });
    on_ranks(world, |rank, comm| {
        exchange(&*comm.unwrap(), rank, 1);
    });
}

#[test]
fn a_frameworks_communicator_is_adopted() {
    let Some(world) = world() else { return };
    let handle = places::open(Path::new(Nccl::get().unwrap().path()))
        .or_else(|| places::open(&Path::new(Nccl::get().unwrap().path()).join("libnccl.so.2")))
        .unwrap();
    let symbol = |name: &str| {
        let name = CString::new(name).unwrap();
        // SAFETY: a library that is loaded.
        let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
        assert!(!at.is_null());
        at
    };
    type InitAll = unsafe extern "C" fn(*mut usize, i32, *const i32) -> i32;
    type Destroy = unsafe extern "C" fn(*mut c_void) -> i32;
    // SAFETY: the types of nccl.h.
    let init: InitAll = unsafe { std::mem::transmute(symbol("ncclCommInitAll")) };
    // SAFETY: as above.
    let destroy: Destroy = unsafe { std::mem::transmute(symbol("ncclCommDestroy")) };
    let mut raw = vec![0usize; world];
    // SAFETY: there is room for so many handles.
    let code = unsafe { init(raw.as_mut_ptr(), world as i32, std::ptr::null()) };
    assert_eq!(code, 0);
    for _ in 0..2 {
        thread::scope(|scope| {
            for (rank, &raw) in raw.iter().enumerate() {
                scope.spawn(move || {
                    // SAFETY: a handle of NCCL's that stays.
                    let comm = unsafe { adopt(raw as *mut c_void, false, &options()) }.unwrap();
                    exchange(&*comm, rank, 2);
                });
            }
        });
    }
    for raw in raw {
        // SAFETY: made above, and destroyed once.
        assert_eq!(unsafe { destroy(raw as *mut c_void) }, 0);
    }
}
