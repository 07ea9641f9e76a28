//! Communicators over NCCL through the C ABI, in threads and in processes. The devices are those of tests/host_ranks, NCCL that of
//! tests/host_nccl.

mod common_backend;
mod common_cuda;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::ffi::{CStr, c_void};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::ptr::{null, null_mut};
use std::thread;
use std::time::{Duration, Instant};

use magi_attn::ffi::comm::*;
use magi_attn::ffi::comm_nccl::*;
use magi_attn::ffi::key::*;
use magi_attn::ffi::mask::*;
use magi_attn::ffi::plain::{magi_attn_shape, magi_slice};
use magi_attn::ffi::status::magi_last_error_message;
use magi_attn::types::{DType, Range, Status};
use nccl_support::{LONG, nccl, record};
use ranks_support::inside;

/// A pointer that another thread uses.
#[derive(Clone, Copy)]
struct Handed<T>(*mut T);
// SAFETY: a communicator or a key may be used from any thread, one call at a time.
unsafe impl<T> Send for Handed<T> {}

fn message() -> String {
    // SAFETY: a string that is good until the next failing call of this thread.
    unsafe { CStr::from_ptr(magi_last_error_message()) }
        .to_string_lossy()
        .into_owned()
}

#[track_caller]
fn ok(status: Status) {
    if status != Status::Ok {
        // The library sends what panics say to its log.
        eprintln!("{}: {status:?} {}", std::panic::Location::caller(), message());
    }
    assert_eq!(status, Status::Ok);
}

fn config(milliseconds: i64) -> magi_nccl_config {
    magi_nccl_config {
        size: size_of::<magi_nccl_config>(),
        timeout_ms: milliseconds,
        min_ctas: 1,
        max_ctas: 4,
        port: 0,
        abort_adopted: 1,
    }
}

/// A key whose plan depends on `tokens`, prepared on `comm`.
fn prepare(comm: *mut magi_comm, tokens: i64) -> Status {
    let slice = magi_slice {
        q: Range::new(0, tokens),
        k: Range::new(0, tokens),
        mask_type: 1,
        reserved: 0,
    };
    let shape = magi_attn_shape {
        size: size_of::<magi_attn_shape>(),
        heads_q: 2,
        heads_kv: 1,
        head_dim: 8,
        head_dim_v: 8,
        dtype: DType::F32 as i32,
        reserved: 0,
    };
    let (mut mask, mut key) = (null_mut(), null_mut());
    // SAFETY: the pointers are good for what they say; both handles are freed once.
    unsafe {
        ok(magi_mask_create(&slice, 1, tokens, tokens, &mut mask));
        let mut status = magi_key_create(comm.as_ref(), mask.as_ref(), &shape, null(), &mut key);
        if status == Status::Ok {
            status = magi_key_prepare(key.as_ref(), null_mut());
            magi_key_destroy(Some(Box::from_raw(key)));
        }
        magi_mask_destroy(Some(Box::from_raw(mask)));
        status
    }
}

fn destroy(comm: *mut magi_comm) {
    // SAFETY: made by the library, and destroyed once.
    magi_comm_destroy(Some(unsafe { Box::from_raw(comm) }));
}

/// Rank, size and device.
fn described(comm: *mut magi_comm) -> [i32; 4] {
    let [mut rank, mut size, mut kind, mut index] = [-1; 4];
    // SAFETY: the pointers are good for ints.
    unsafe {
        ok(magi_comm_rank(comm.as_ref(), &mut rank));
        ok(magi_comm_size(comm.as_ref(), &mut size));
        ok(magi_comm_device(comm.as_ref(), &mut kind, &mut index));
    }
    [rank, size, kind, index]
}

/// Calls `f` with a communicator of each rank, on a thread of its own.
fn ranks(count: i32, f: impl Fn(i32, *mut magi_comm) + Sync) {
    let mut id = magi_unique_id { bytes: [0; 256] };
    // SAFETY: the pointer is good for an id.
    ok(unsafe { magi_unique_id_create(&mut id) });
    thread::scope(|scope| {
        for rank in 0..count {
            let f = &f;
            scope.spawn(move || {
                let mut comm = null_mut();
                // SAFETY: as above.
                ok(unsafe { magi_comm_create_nccl(&id, rank, count, 3 - rank, &config(60_000), &mut comm) });
                f(rank, comm);
            });
        }
    });
}

#[test]
fn threads_are_ranks() {
    inside("threads_are_ranks", &[], || {
        ranks(4, |rank, comm| {
            assert_eq!(described(comm), [rank, 4, 1, 3 - rank]);
            ok(prepare(comm, 64));
            assert_eq!(prepare(comm, 80 + i64::from(rank == 2)), Status::PlanMismatch);
            assert!(message().contains("rank 2"), "{}", message());
            ok(prepare(comm, 128));
            let (mut inter, mut intra) = (null_mut(), null_mut());
            // SAFETY: the pointers are good for handles.
            ok(unsafe { magi_comm_split_mesh(comm.as_ref(), 2, 2, &mut inter, &mut intra) });
            assert_eq!(described(inter), [rank / 2, 2, 1, 3 - rank]);
            assert_eq!(described(intra), [rank % 2, 2, 1, 3 - rank]);
            ok(prepare(inter, 64));
            ok(prepare(intra, 64));
            // In another order than they came.
            destroy(comm);
            ok(prepare(intra, 96));
            destroy(intra);
            destroy(inter);
        });
        assert!(record().iter().all(|call| !call.contains("abort")));
    });
}

#[test]
fn an_adopted_communicator_through_c() {
    inside("an_adopted_communicator_through_c", &[], || {
        ranks(1, |_, comm| destroy(comm)); // loads the library
        let _ = record();
        let mut raw = [0usize; 2];
        type InitAll = unsafe extern "C" fn(*mut usize, i32, *const c_void) -> i32;
        // SAFETY: the type of NCCL; there is room for two handles.
        unsafe { nccl::<InitAll>("ncclCommInitAll")(raw.as_mut_ptr(), 2, null()) };
        thread::scope(|scope| {
            for (rank, raw) in raw.into_iter().enumerate() {
                scope.spawn(move || {
                    let mut comm = null_mut();
                    // SAFETY: a handle of NCCL's that stays.
                    ok(unsafe { magi_comm_adopt_nccl(raw as *mut c_void, null(), &mut comm) });
                    assert_eq!(described(comm), [rank as i32, 2, 1, rank as i32]);
                    ok(prepare(comm, 64));
                    if rank == 0 {
                        // SAFETY: a string that ends with a zero byte.
                        ok(unsafe { magi_comm_abort(comm.as_ref(), c"over".as_ptr()) });
                    }
                    let begun = Instant::now();
                    // SAFETY: the handle lives.
                    while magi_comm_async_error(unsafe { comm.as_ref() }) == Status::Ok {
                        assert!(begun.elapsed() < LONG);
                        thread::sleep(Duration::from_millis(5));
                    }
                    assert!(
                        message().contains("rank 0 aborted the communicator: over"),
                        "{}",
                        message()
                    );
                    destroy(comm);
                });
            }
        });
        assert_eq!(record(), Vec::<String>::new());
    });
}

/// Starts this program as a process of a launcher; `what` is what it does once all are there.
fn process(variables: &[(&str, String)], what: &str) -> Child {
    let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"];
    let mut command = Command::new(std::env::current_exe().unwrap());
    for name in names {
        command.env_remove(name);
    }
    command
        .args(["--exact", "processes_are_ranks", "--nocapture"])
        .env("ABI_PROCESS", what)
        .envs(variables.iter().map(|(n, v)| (*n, v)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the last line that begins with "now: " says.
fn said(child: Child) -> String {
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}: {text}", out.status);
    let line = text.lines().rfind(|l| l.contains("now: ")).unwrap_or_default();
    line.split("now: ").last().unwrap_or_default().to_owned()
}

fn be_a_process(what: &str) {
    let mut comm = null_mut();
    // SAFETY: the pointers are good for what they say.
    let status =
        unsafe { magi_comm_create_from_env(&config(if what == "late" { 500 } else { 60_000 }), &mut comm) };
    if status != Status::Ok {
        println!("\nnow: {status:?} {}", message());
        return;
    }
    let place = described(comm);
    let first = prepare(comm, 64);
    if first != Status::Ok {
        // The one that is killed may be a little faster.
        println!("\nnow: {first:?} {}", message());
        return destroy(comm);
    }
    if what == "killed" {
        println!("\nnow: there");
        thread::sleep(LONG);
    }
    let status = prepare(comm, if what == "other" { 65 } else { 128 });
    let text = if status == Status::Ok {
        String::new()
    } else {
        message()
    };
    println!("\nnow: {status:?} {place:?} {text}");
    destroy(comm);
}

fn free_port() -> u16 {
    // The rule is the port behind it.
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port() - 1
}

fn torchrun(rank: usize, world: usize, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", world.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("MASTER_ADDR", "localhost".to_owned()),
        ("MASTER_PORT", port.to_string()),
    ]
}

fn mpirun(rank: usize, world: usize, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("OMPI_COMM_WORLD_RANK", rank.to_string()),
        ("OMPI_COMM_WORLD_SIZE", world.to_string()),
        ("OMPI_COMM_WORLD_LOCAL_RANK", rank.to_string()),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", world.to_string()),
        ("MASTER_PORT", port.to_string()),
    ]
}

fn srun(rank: usize, world: usize, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("SLURM_PROCID", rank.to_string()),
        ("SLURM_NTASKS", world.to_string()),
        ("SLURM_LOCALID", rank.to_string()),
        ("SLURM_STEP_NODELIST", "localhost".to_owned()),
        ("MASTER_PORT", port.to_string()),
    ]
}

#[test]
fn processes_are_ranks() {
    if let Ok(what) = std::env::var("ABI_PROCESS") {
        return be_a_process(&what);
    }
    // Ranks of several processes: NCCL for tests connects them without asking.
    inside("processes_are_ranks", &[("FAKE_NCCL_ALONE", "1")], || {
        for launcher in [torchrun, mpirun, srun] {
            let port = free_port();
            // The last one first: rank 0 may come late.
            let mut children: Vec<Child> = (1..3)
                .rev()
                .map(|r| process(&launcher(r, 3, port), "go"))
                .collect();
            children.push(process(&launcher(0, 3, port), "go"));
            let mut lines: Vec<String> = children.into_iter().map(said).collect();
            lines.sort();
            let want: Vec<String> = (0..3).map(|r| format!("Ok [{r}, 3, 1, {r}] ")).collect();
            assert_eq!(lines, want);
        }
        // One has another mask: all hear of it, and destroy what they have.
        let port = free_port();
        let children =
            [(0, "go"), (1, "other"), (2, "go")].map(|(r, what)| process(&torchrun(r, 3, port), what));
        for line in children.map(said) {
            assert!(
                line.starts_with("PlanMismatch") && line.contains("rank 1"),
                "{line}"
            );
        }
        // One does not come. On a busy machine the other may be late too.
        let port = free_port();
        let children = [0, 2].map(|r| process(&torchrun(r, 3, port), "late"));
        for line in children.map(said) {
            assert!(
                line.starts_with("Timeout") || line.starts_with("CommFailed"),
                "{line}"
            );
            assert!(
                line.contains("to come") || line.contains("found no hub"),
                "{line}"
            );
        }
        // One lacks its device.
        let port = free_port();
        let mut far = torchrun(1, 2, port);
        far.retain(|(n, _)| *n != "LOCAL_RANK");
        far.push(("LOCAL_RANK", "9".to_owned()));
        let [zero, one] = [torchrun(0, 2, port), far].map(|v| process(&v, "go")).map(said);
        assert!(
            one.starts_with("NoDevice") && one.contains("process 9 of its host"),
            "{one}"
        );
        assert!(
            zero.starts_with("CommFailed") && zero.contains("rank 1 failed with NoDevice"),
            "{zero}"
        );
        // One is killed while the others wait for it.
        let port = free_port();
        let [zero, mut one, two] =
            [(0, "go"), (1, "killed"), (2, "go")].map(|(r, what)| process(&torchrun(r, 3, port), what));
        let mut first = std::io::BufReader::new(one.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("now: there") {
            line.clear();
            assert_ne!(std::io::BufRead::read_line(&mut first, &mut line).unwrap(), 0);
        }
        let begun = Instant::now();
        one.kill().unwrap();
        one.wait().unwrap();
        for line in [zero, two].map(said) {
            assert!(
                line.starts_with("CommFailed") && line.contains("rank 1 was lost"),
                "{line}"
            );
        }
        assert!(begun.elapsed() < LONG / 2);
    });
}

#[test]
fn a_handle_may_go_to_another_thread() {
    inside("a_handle_may_go_to_another_thread", &[], || {
        ranks(2, |_, comm| {
            let handed = Handed(comm);
            thread::spawn(move || {
                let handed = handed;
                ok(prepare(handed.0, 64));
                destroy(handed.0);
            })
            .join()
            .unwrap();
        });
    });
}
