//! Communicators: one handle is one rank.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::guard::{self, Handle, guard, guard_destroy, guard_handle};
use super::input;
use super::plain::magi_device_type;
use crate::comm::local;
use crate::runtime::Context;
use crate::types::{Device, Error, Result, Status};

/// One rank of a communicator. One call at a time; abort and async_error may come from any thread at any time.
pub struct magi_comm {
    pub(super) context: Arc<Context>,
    poisoned: AtomicBool,
}

impl magi_comm {
    pub(super) fn new(context: Arc<Context>) -> Box<magi_comm> {
        Box::new(magi_comm {
            context,
            poisoned: AtomicBool::new(false),
        })
    }
}

impl Handle for magi_comm {
    fn poisoned(&self) -> &AtomicBool {
        &self.poisoned
    }
    fn abort(&self, why: &str) {
        self.context.fail(&Error::internal(why));
    }
}

/// What magi_local_run runs on each rank's thread: gets the rank's communicator (good until it returns), its rank and
/// userdata, returns a magi_status. Must not let a C++ exception out.
pub type magi_local_fn =
    Option<unsafe extern "C" fn(comm: *mut magi_comm, rank: i32, userdata: *mut c_void) -> i32>;

/// Makes the ranks of a communicator inside this process: host memory, no GPU.
///
/// `world_size`: 1 to 64. `comms`: `[world_size]`, each to be used by a thread of its own (collectives block) and to be
/// destroyed by magi_comm_destroy. Waits end after 300 s unless magi_comm_set_timeout says otherwise.
/// Errors: NULL_POINTER, INVALID_ARGUMENT. Any thread; not collective.
///
/// # Safety
/// `comms` must have room for `world_size` pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_create_local(world_size: i32, comms: *mut *mut magi_comm) -> Status {
    guard("magi_comm_create_local", || {
        input::check_out("comms", comms)?;
        let made = local::create(world_size_of(world_size)?)?;
        for (i, comm) in made.into_iter().enumerate() {
            let handle = Box::into_raw(magi_comm::new(Context::new(comm)));
            // SAFETY: room for world_size pointers is the caller's promise.
            unsafe { comms.add(i).write(handle) };
        }
        Ok(())
    })
}

fn world_size_of(world_size: i32) -> Result<usize> {
    usize::try_from(world_size)
        .ok()
        .filter(|n| (1..=64).contains(n))
        .ok_or_else(|| Error::argument(format!("world_size is {world_size}; local ranks can be 1 to 64")))
}

/// Userdata on its way to the ranks' threads.
struct Userdata(*mut c_void);
// SAFETY: the caller of magi_local_run promised that the function may use it from every rank's thread at once.
unsafe impl Sync for Userdata {}

/// Runs `run` for ranks 0 to world_size - 1, each on a thread of its own with a communicator of its own, and returns the
/// first error of any rank. A rank that returns an error, or panics, wakes the others with MAGI_STATUS_COMM_FAILED.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT, RESOURCE_EXHAUSTED (a thread was refused), and whatever a rank returned.
/// Any thread; waits for all ranks.
///
/// # Safety
/// `run` must be callable with `userdata` from world_size threads at once, and must not unwind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_local_run(
    world_size: i32,
    run: magi_local_fn,
    userdata: *mut c_void,
) -> Status {
    guard("magi_local_run", || {
        let run = run.ok_or_else(|| input::null("run"))?;
        let userdata = Userdata(userdata);
        local::run(world_size_of(world_size)?, |rank, comm| {
            let userdata = &userdata;
            let mut handle = magi_comm::new(Context::new(comm));
            // SAFETY: the caller's promise; the handle lives until the call returns.
            let code = unsafe { run(&raw mut *handle, rank as i32, userdata.0) };
            let outcome = rank_outcome(rank, code);
            if let Err(e) = &outcome {
                handle.context.fail(e);
            }
            handle.context.close();
            outcome
        })
    })
}

/// What a rank's return code means, with that thread's last message when it is about the same status.
fn rank_outcome(rank: usize, code: i32) -> Result<()> {
    let status = match Status::from_i32(code) {
        Some(Status::Ok) => return Ok(()),
        Some(status) => status,
        None => {
            let message = format!("rank {rank}: run returned {code}, which is no magi_status");
            return Err(Error::new(Status::InvalidEnum, message));
        }
    };
    let (last, text) = guard::last_error();
    let text = text.to_string_lossy();
    let message = if last == status {
        format!("rank {rank}: {text}")
    } else {
        format!("rank {rank} returned {code}")
    };
    Err(Error::new(status, message))
}

/// This handle's rank, 0 to world size - 1. Errors: NULL_POINTER, POISONED. Any thread.
///
/// # Safety
/// `rank` must point to an int32_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_rank(comm: Option<&magi_comm>, rank: *mut i32) -> Status {
    guard_handle("magi_comm_rank", "comm", comm, |c| {
        // SAFETY: the caller's promise.
        unsafe { input::write_out("rank", rank, c.context.rank() as i32) }
    })
}

/// Number of ranks. Errors: NULL_POINTER, POISONED. Any thread.
///
/// # Safety
/// `size` must point to an int32_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_size(comm: Option<&magi_comm>, size: *mut i32) -> Status {
    guard_handle("magi_comm_size", "comm", comm, |c| {
        // SAFETY: the caller's promise.
        unsafe { input::write_out("size", size, c.context.size() as i32) }
    })
}

/// Longest time that a call of this rank waits for a peer, in milliseconds, 1 to 86,400,000; 300,000 at first.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT, POISONED. Any thread; holds for waits that start later.
#[unsafe(no_mangle)]
pub extern "C" fn magi_comm_set_timeout(comm: Option<&magi_comm>, milliseconds: i64) -> Status {
    guard_handle("magi_comm_set_timeout", "comm", comm, |c| {
        if !(1..=86_400_000).contains(&milliseconds) {
            return Err(Error::argument(format!(
                "milliseconds is {milliseconds}; it must be 1 to 86400000"
            )));
        }
        c.context.set_timeout(Duration::from_millis(milliseconds as u64))
    })
}

/// Says how ranks lie on hosts: rank r is number r % intra_size on host r / intra_size. Keys and group plans that are made
/// later with config.hierarchical_comm then move each row to a host once and fan it out there. The same on every rank.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT (the sizes do not multiply to the number of ranks), POISONED, COMM_DESTROYED. Any
/// thread; not collective.
#[unsafe(no_mangle)]
pub extern "C" fn magi_comm_set_mesh(comm: Option<&magi_comm>, inter_size: i32, intra_size: i32) -> Status {
    guard_handle("magi_comm_set_mesh", "comm", comm, |c| {
        let (inter, intra) = (
            mesh_size("inter_size", inter_size)?,
            mesh_size("intra_size", intra_size)?,
        );
        c.context.set_mesh(inter, intra)
    })
}

fn mesh_size(name: &str, value: i32) -> Result<usize> {
    let refuse = || Error::argument(format!("{name} is {value}; it must be 1 or more"));
    usize::try_from(value).ok().filter(|&n| n > 0).ok_or_else(refuse)
}

/// Splits the communicator by the mesh of magi_comm_set_mesh: `*inter` becomes the communicator of the ranks that have this
/// one's number on every host, by host, and `*intra` that of the ranks of this one's host. Both are handles of their own, to
/// be destroyed, with the timeout of `comm`, which stays as it is.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT (the sizes do not multiply to the number of ranks, or ranks gave different ones),
/// POISONED, HANDLE_BUSY, COMM_DESTROYED, those of waiting for ranks. Collective; takes turns.
///
/// # Safety
/// `inter` and `intra` must each point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_split_mesh(
    comm: Option<&magi_comm>,
    inter_size: i32,
    intra_size: i32,
    inter: *mut *mut magi_comm,
    intra: *mut *mut magi_comm,
) -> Status {
    guard_handle("magi_comm_split_mesh", "comm", comm, |c| {
        input::check_out("inter", inter)?;
        input::check_out("intra", intra)?;
        let sizes = [("inter_size", inter_size), ("intra_size", intra_size)];
        let [across, inside] = sizes.map(|(name, value)| mesh_size(name, value));
        let [across, inside] = c.context.split_mesh(across?, inside?)?;
        // SAFETY: the caller's promise.
        unsafe {
            input::write_out("inter", inter, Box::into_raw(magi_comm::new(across)))?;
            input::write_out("intra", intra, Box::into_raw(magi_comm::new(inside)))
        }
    })
}

/// Where this rank's tensors lie: a magi_device_type and the index of the device, 0 on the CPU.
///
/// Errors: NULL_POINTER, POISONED. Any thread.
///
/// # Safety
/// `device_type` and `device_index` must each point to an int32_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_device(
    comm: Option<&magi_comm>,
    device_type: *mut i32,
    device_index: *mut i32,
) -> Status {
    guard_handle("magi_comm_device", "comm", comm, |c| {
        input::check_out("device_type", device_type)?;
        input::check_out("device_index", device_index)?;
        let (kind, index) = match c.context.device() {
            Device::Cpu => (magi_device_type::Cpu, 0),
            Device::Cuda(ordinal) => (magi_device_type::Cuda, ordinal),
        };
        // SAFETY: the caller's promise.
        unsafe {
            input::write_out("device_type", device_type, kind as i32)?;
            input::write_out("device_index", device_index, index)
        }
    })
}

/// Bytes that this rank has sent to other ranks, and received from them, in exchanges since the communicator was made:
/// what keys, movement and group collectives move, counted when it starts. A forward pass on a key adds bytes_sent and
/// bytes_received of its magi_rank_stats, and 4 bytes a query head for every other rank if max_logits is asked for on a CUDA
/// device.
///
/// Errors: NULL_POINTER, POISONED. Any thread.
///
/// # Safety
/// `sent` and `received` must each point to an int64_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_traffic(
    comm: Option<&magi_comm>,
    sent: *mut i64,
    received: *mut i64,
) -> Status {
    guard_handle("magi_comm_traffic", "comm", comm, |c| {
        input::check_out("sent", sent)?;
        input::check_out("received", received)?;
        let traffic = c.context.comm().traffic();
        // SAFETY: the caller's promise.
        unsafe {
            input::write_out("sent", sent, traffic.sent as i64)?;
            input::write_out("received", received, traffic.received as i64)
        }
    })
}

/// MAGI_STATUS_OK while the communicator is good, else what ended it, which magi_last_error_message then explains.
/// Any thread at any time.
#[unsafe(no_mangle)]
pub extern "C" fn magi_comm_async_error(comm: Option<&magi_comm>) -> Status {
    guard("magi_comm_async_error", || {
        input::non_null("comm", comm)?
            .context
            .async_error()
            .map_or(Ok(()), Err)
    })
}

/// Ends the communicator: every rank's running and later calls return MAGI_STATUS_ABORTED with `reason` (may be NULL).
/// Always returns, and does nothing to a communicator that has ended. Any thread at any time.
///
/// # Safety
/// `reason` must be NULL or a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_abort(comm: Option<&magi_comm>, reason: *const c_char) -> Status {
    guard("magi_comm_abort", || {
        let comm = input::non_null("comm", comm)?;
        let reason = if reason.is_null() {
            "no reason given".into()
        } else {
            // SAFETY: not NULL, and the caller's promise.
            unsafe { CStr::from_ptr(reason) }.to_string_lossy()
        };
        comm.context.abort(&reason);
        Ok(())
    })
}

/// Frees the handle. Later calls on its keys return MAGI_STATUS_COMM_DESTROYED; peers that wait for it get
/// MAGI_STATUS_COMM_FAILED. NULL does nothing. Not while another call on the handle runs.
#[unsafe(no_mangle)]
pub extern "C" fn magi_comm_destroy(comm: Option<Box<magi_comm>>) {
    guard_destroy(|| {
        if let Some(comm) = comm {
            comm.context.close();
        }
    });
}
