//! Exchanges over NCCL: what travels, in what order, and that nobody waits but streams. NCCL and the driver are those of
//! tests/host_nccl.

mod nccl_support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use magi_attn::comm::nccl::Nccl;
use magi_attn::comm::{Communicator, RecvOp, SendOp};
use magi_attn::device::Stream;
use magi_attn::device::places::Place;
use magi_attn::runtime::Context;
use magi_attn::types::{Device, Status};
use nccl_support::{Bytes, LONG, UserStream, driver, greet_all, inside, on_ranks, record};

#[test]
fn ranges_of_several_tensors_travel_in_one_group() {
    inside("ranges_of_several_tensors_travel_in_one_group", &[], || {
        on_ranks(3, LONG, |rank, comm| {
            let comm = comm.unwrap();
            assert_eq!((comm.rank(), comm.size()), (rank, 3));
            assert_eq!(comm.device(), Device::Cuda(rank as i32));
            let user = UserStream::new(rank);
            // Two tensors of 12 rows of 100 bytes; rows 4 p to 4 p + 3 of each go to rank p, two ranges for each.
            let fill = |tensor: usize, owner: usize, row: usize| (tensor * 100 + owner * 20 + row) as u8;
            let local = [0, 1].map(|t| {
                let rows = (0..12).flat_map(|row| vec![fill(t, rank, row); 100]);
                Bytes::new(&rows.collect::<Vec<u8>>())
            });
            for _ in 0..3 {
                let mut received = [0, 1].map(|_| Bytes::new(&[0xee; 1200]));
                let mut sends = Vec::new();
                let mut recvs = Vec::new();
                for t in 0..2 {
                    for peer in 0..3 {
                        for (from, rows) in [(0, 3), (3, 1)] {
                            sends.push(local[t].send(peer, (4 * peer + from) * 100, rows * 100));
                            recvs.push(received[t].recv(peer, (4 * peer + from) * 100, rows * 100));
                        }
                        sends.push(local[t].send(peer, 0, 0));
                        recvs.push(received[t].recv(peer, 0, 0));
                    }
                }
                // SAFETY: the bytes stay, and nobody looks at them before the stream is done.
                let ticket = unsafe { comm.start(&sends, &recvs, user.stream) }.unwrap();
                comm.finish(ticket, user.stream).unwrap();
                user.synchronize();
                for (t, received) in received.iter().enumerate() {
                    for owner in 0..3 {
                        for row in 0..4 {
                            let got = &received.get()[(4 * owner + row) * 100..][..100];
                            assert_eq!(got, [fill(t, owner, 4 * rank + row); 100]);
                        }
                    }
                }
            }
        });
        let want: Vec<String> = ["destroy", "finalize"]
            .iter()
            .flat_map(|what| (0..3).map(move |rank| format!("{what} {rank}")))
            .collect();
        assert_eq!(record(), want);
    });
}

#[test]
fn the_host_waits_for_no_peer_and_streams_for_their_tensors() {
    inside(
        "the_host_waits_for_no_peer_and_streams_for_their_tensors",
        &[],
        || {
            on_ranks(2, LONG, |rank, comm| {
                let comm = comm.unwrap();
                let user = UserStream::new(rank);
                if rank == 1 {
                    // Its source is written by the stream, late.
                    thread::sleep(Duration::from_millis(300));
                    let mut source = Bytes::new(&[0]);
                    let at = source.at() as usize;
                    user.enqueue(move || {
                        thread::sleep(Duration::from_millis(300));
                        // SAFETY: leaked bytes that the exchange reads after this.
                        unsafe { (at as *mut u8).write(77) }
                    });
                    // SAFETY: the byte stays.
                    let ticket = unsafe { comm.start(&[source.send(0, 0, 1)], &[], user.stream) }.unwrap();
                    comm.finish(ticket, user.stream).unwrap();
                    return;
                }
                let mut target = Bytes::new(&[0]);
                let begun = Instant::now();
                // SAFETY: as above.
                let ticket = unsafe { comm.start(&[], &[target.recv(1, 0, 1)], user.stream) }.unwrap();
                comm.finish(ticket, user.stream).unwrap();
                let seen = Arc::new(AtomicU8::new(0));
                let (at, theirs) = (target.at() as usize, Arc::clone(&seen));
                // SAFETY: enqueued behind the exchange, which wrote the byte.
                user.enqueue(move || theirs.store(unsafe { (at as *const u8).read() }, Ordering::Release));
                assert!(
                    begun.elapsed() < Duration::from_millis(250),
                    "{:?}",
                    begun.elapsed()
                );
                user.synchronize();
                assert!(begun.elapsed() >= Duration::from_millis(500));
                assert_eq!(seen.load(Ordering::Acquire), 77);
            });
        },
    );
}

#[test]
fn many_exchanges_are_finished_in_any_order_and_on_any_stream() {
    inside(
        "many_exchanges_are_finished_in_any_order_and_on_any_stream",
        &[],
        || {
            on_ranks(2, LONG, |rank, comm| {
                let comm = comm.unwrap();
                let (first, second) = (UserStream::new(rank), UserStream::new(rank));
                let peer = 1 - rank;
                // More than there are events at the start.
                let mut all: Vec<(Bytes, Bytes)> = (0..100u8)
                    .map(|i| (Bytes::new(&[i, rank as u8]), Bytes::new(&[0xee; 2])))
                    .collect();
                let mut tickets: Vec<_> = all
                    .iter_mut()
                    .enumerate()
                    .map(|(i, (source, target))| {
                        let on = [first.stream, Stream::NULL][i % 2];
                        // SAFETY: the bytes stay, and are looked at when all is done.
                        unsafe { comm.start(&[source.send(peer, 0, 2)], &[target.recv(peer, 0, 2)], on) }
                            .unwrap()
                    })
                    .collect();
                // A dropped ticket's exchange is over when the drop returns.
                drop(tickets.remove(40));
                assert_eq!(all[40].1.get(), [40, peer as u8]);
                tickets.reverse();
                for ticket in tickets {
                    comm.finish(ticket, second.stream).unwrap();
                }
                second.synchronize();
                for (i, (_, target)) in all.iter().enumerate() {
                    assert_eq!(target.get(), [i as u8, peer as u8]);
                }
            });
        },
    );
}

#[test]
fn what_cannot_be_is_refused_before_anything_travels() {
    inside("what_cannot_be_is_refused_before_anything_travels", &[], || {
        let barrier = Barrier::new(2);
        on_ranks(2, LONG, |rank, comm| {
            let comm = comm.unwrap();
            let user = UserStream::new(rank);
            let refuse = |sends: &[SendOp], recvs: &[RecvOp], on: Stream, status: Status, part: &str| {
                // SAFETY: refused before any byte is touched.
                let error = unsafe { comm.start(sends, recvs, on) }.unwrap_err();
                assert_eq!(error.status, status);
                assert!(error.message.contains(part), "{error}");
            };
            let null = SendOp {
                peer: 0,
                data: std::ptr::null(),
                bytes: 1,
            };
            refuse(&[null], &[], user.stream, Status::NullPointer, "data NULL");
            let far = SendOp { peer: 2, ..null };
            refuse(
                &[far],
                &[],
                user.stream,
                Status::InvalidArgument,
                "rank 2 of 2 ranks",
            );
            let foreign = UserStream::new(3);
            let status = Status::DeviceMismatch;
            refuse(&[], &[], foreign.stream, status, "does not belong");
            barrier.wait();
            if rank == 0 {
                // SAFETY: an int of the driver for tests.
                let capturing: *mut i32 = unsafe { driver("fake_capturing") };
                // SAFETY: the other rank makes no call meanwhile.
                unsafe { capturing.write(1) };
                refuse(&[], &[], user.stream, Status::NotSupported, "being captured");
                // SAFETY: as above.
                unsafe { capturing.write(0) };
            }
            barrier.wait();
            greet_all(&*comm, rank);
            // A ticket of the other rank is none of this one's.
            // SAFETY: nothing travels.
            let ticket = unsafe { comm.start(&[], &[], user.stream) }.unwrap();
            comm.finish(ticket, user.stream).unwrap();
        });
    });
}

#[test]
fn a_mesh_is_two_communicators_of_their_own() {
    inside("a_mesh_is_two_communicators_of_their_own", &[], || {
        on_ranks(4, LONG, |rank, comm| {
            let comm: Arc<dyn Communicator> = comm.unwrap();
            // Ranks that name different parts all hear of it, and go on.
            let odd = if rank < 2 { vec![0, 1] } else { vec![0, 1, 2, 3] };
            let error = comm.split(&odd).err().unwrap();
            assert_eq!(error.status, Status::InvalidArgument);
            assert!(error.message.contains("disagree"), "{error}");

            let context = Context::new(comm.clone());
            let [inter, intra] = context.split_mesh(2, 2).unwrap();
            assert_eq!((inter.size(), inter.rank()), (2, rank / 2));
            assert_eq!((intra.size(), intra.rank()), (2, rank % 2));
            greet_all(inter.comm(), rank);
            greet_all(intra.comm(), rank);
            greet_all(&*comm, rank);
            let all = inter.comm().all_gather(&[rank as u8], Stream::NULL).unwrap();
            assert_eq!(all, [vec![rank as u8 % 2], vec![rank as u8 % 2 + 2]]);
            // One that goes takes none of the others along.
            inter.close();
            greet_all(intra.comm(), rank);
            intra.close();
            greet_all(&*comm, rank);
        });
        assert!(record().iter().all(|call| !call.contains("abort")));
    });
}

#[test]
fn the_library_is_the_one_that_the_loader_finds() {
    inside("the_library_is_the_one_that_the_loader_finds", &[], || {
        let nccl = Nccl::get().unwrap();
        assert_eq!((nccl.version(), nccl.path()), (22200, "libnccl.so.2"));
        // It is not asked for again.
        assert!(std::ptr::eq(nccl, Nccl::get().unwrap()));
    });
}

#[test]
fn what_is_no_nccl_is_passed_over() {
    inside("what_is_no_nccl_is_passed_over", &[], || {
        let folder = PathBuf::from(std::env::var_os("LD_LIBRARY_PATH").unwrap());
        let wrong = folder.join("wrong");
        std::fs::create_dir_all(&wrong).unwrap();
        // A library, but another one; and a file that is no library.
        std::fs::copy(folder.join("libcuda.so"), wrong.join("libnccl.so.2")).unwrap();
        std::fs::write(wrong.join("libnccl.so"), "GROUP ( libnccl.so.2 )").unwrap();
        let places = [Place::Folder("/nowhere".into()), Place::Folder(wrong)];
        let error = Nccl::load(&places).unwrap_err();
        assert_eq!(error.status, Status::NotSupported);
        for part in ["tried /nowhere, ", "wrong (lacks ncclGetVersion)"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
        let [nowhere, wrong] = places;
        let nccl = Nccl::load(&[nowhere, wrong, Place::Folder(folder.clone())]).unwrap();
        assert_eq!((nccl.version(), nccl.path()), (22200, &*folder.to_string_lossy()));
    });
}

#[test]
fn a_library_that_is_too_old_is_not_taken() {
    let name = "a_library_that_is_too_old_is_not_taken";
    inside(name, &[("FAKE_NCCL_VERSION", "22105")], || {
        let error = Nccl::get().unwrap_err();
        assert_eq!(error.status, Status::NotSupported);
        for part in [
            "NCCL 2.22.0 or later",
            "libnccl.so.2 (version 2.21.5 is too old)",
            "libnccl.so,",
            "pip install nvidia-nccl-cu12",
        ] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
    });
}
