//! Communicators over NCCL.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use super::comm::magi_comm;
use super::guard::guard;
use super::input;
use crate::comm::nccl::{self, ID_BYTES, Launch, MOST_RANKS, Nccl, NcclComm, Options, UniqueId};
use crate::runtime::Context;
use crate::types::{Error, Result, Status, env};

/// How the ranks of one communicator find each other. Made by one rank, copied to the others by whatever way the program
/// has, and used once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct magi_unique_id {
    /// Opaque.
    pub bytes: [u8; 256],
}

const _: () = assert!(ID_BYTES == 256);

/// How a communicator over NCCL is made: MAGI_NCCL_CONFIG_INIT, then change fields. NULL stands for the defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_nccl_config {
    /// sizeof(magi_nccl_config).
    pub size: usize,
    /// How long this rank waits for the others while the communicator is made, and in later calls as if by
    /// magi_comm_set_timeout: milliseconds, 1 to 86,400,000; 0: 300,000.
    pub timeout_ms: i64,
    /// Fewest thread blocks that NCCL communicates with; 0: as NCCL sees fit. Not for an adopted communicator.
    pub min_ctas: i32,
    /// Most thread blocks, likewise.
    pub max_ctas: i32,
    /// For magi_comm_create_from_env: the port on which rank 0 listens, 1 to 65535, the same on every rank; 0: MASTER_PORT + 1
    /// (docs/environment.md).
    pub port: i32,
    /// For magi_comm_adopt_nccl: 1 when the adopted communicator may be aborted once this one has ended by a failure, a
    /// timeout or an abort, else 0. Without, work that waits for a lost peer on the device waits until its owner aborts it.
    pub abort_adopted: i32,
}

/// Reads and checks a config.
///
/// # Safety
/// As `input::sized`.
unsafe fn read(param: &str, config: *const magi_nccl_config) -> Result<(Options, u16, bool)> {
    if config.is_null() {
        return Ok((Options::default(), 0, false));
    }
    // SAFETY: the caller's promise.
    let c = unsafe { input::sized(param, config) }?;
    let bad = |field: &str, value: i64, most: i64| {
        Error::argument(format!("{param}.{field} is {value}; it must be 0 to {most}"))
    };
    let within = |field: &str, value: i64, most: i64| {
        let fits = (0..=most).contains(&value);
        fits.then_some(value).ok_or_else(|| bad(field, value, most))
    };
    let mut options = Options::default();
    let milliseconds = within("timeout_ms", c.timeout_ms, 86_400_000)?;
    if milliseconds != 0 {
        options.timeout = Duration::from_millis(milliseconds as u64);
    }
    options.min_ctas = within("min_ctas", c.min_ctas.into(), 1024)? as i32;
    options.max_ctas = within("max_ctas", c.max_ctas.into(), 1024)? as i32;
    if options.max_ctas != 0 && options.max_ctas < options.min_ctas {
        let (least, most) = (options.min_ctas, options.max_ctas);
        return Err(Error::argument(format!(
            "{param}.max_ctas is {most}; it must be 0, or min_ctas ({least}) or more"
        )));
    }
    let port = within("port", c.port.into(), 65_535)? as u16;
    Ok((
        options,
        port,
        input::flag(&format!("{param}.abort_adopted"), c.abort_adopted)?,
    ))
}

/// # Safety
/// `comm` points to a pointer.
unsafe fn hand_out(comm: *mut *mut magi_comm, made: Arc<NcclComm>) -> Result<()> {
    let handle = Box::into_raw(magi_comm::new(Context::new(made)));
    // SAFETY: the caller's promise.
    unsafe { input::write_out("comm", comm, handle) }
}

/// Makes an id for a new communicator. The process listens for the ranks on a TCP port of the system's choice, and must stay
/// until they have destroyed the communicator: so let a rank make the id.
///
/// Errors: NULL_POINTER, NOT_SUPPORTED (no NCCL; the message says where it was looked for), RESOURCE_EXHAUSTED. Any thread; not
/// collective.
///
/// # Safety
/// `id` must point to a magi_unique_id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_unique_id_create(id: *mut magi_unique_id) -> Status {
    guard("magi_unique_id_create", || {
        input::check_out("id", id)?;
        Nccl::get()?;
        let bytes = UniqueId::create()?.to_bytes();
        // SAFETY: the caller's promise.
        unsafe { input::write_out("id", id, magi_unique_id { bytes }) }
    })
}

/// Makes rank `rank` of the `world_size` ranks that have the same `id`, on CUDA device `device`. Waits until all are there.
/// Ranks may be threads of one process or processes, on one host or many, each with a device of its own.
///
/// `id`: of magi_unique_id_create, for this communicator alone. `config`: may be NULL. `comm`: to be destroyed by
/// magi_comm_destroy. Errors: NULL_POINTER, INVALID_ARGUMENT, STRUCT_SIZE; NO_DEVICE; NOT_SUPPORTED (no NCCL); TIMEOUT (the
/// message names who did not come); COMM_FAILED (what does not fit, or what another rank failed with); RESOURCE_EXHAUSTED.
/// Collective; any thread.
///
/// # Safety
/// `id` must point to a magi_unique_id, `config` be NULL or point to a magi_nccl_config, `comm` point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_create_nccl(
    id: *const magi_unique_id,
    rank: i32,
    world_size: i32,
    device: i32,
    config: *const magi_nccl_config,
    comm: *mut *mut magi_comm,
) -> Status {
    guard("magi_comm_create_nccl", || {
        // SAFETY: NULL or good, by the caller's promise.
        let id = input::non_null("id", unsafe { id.as_ref() })?;
        input::check_out("comm", comm)?;
        // SAFETY: the caller's promise.
        let (options, _, _) = unsafe { read("config", config) }?;
        let world = usize::try_from(world_size)
            .ok()
            .filter(|n| (1..=MOST_RANKS).contains(n));
        let world = world.ok_or_else(|| {
            Error::argument(format!(
                "world_size is {world_size}; it must be 1 to {MOST_RANKS}"
            ))
        })?;
        let rank = input::index("rank", rank, world)?;
        if device < 0 {
            return Err(Error::argument(format!(
                "device is {device}; it must be 0 or more"
            )));
        }
        let made = nccl::from_id(&UniqueId::from_bytes(&id.bytes)?, (rank, world), device, &options)?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(comm, made) }
    })
}

/// Makes the communicator of all processes that torchrun, mpirun or srun started, this one among them, and waits until all
/// are there. Rank and number of ranks are those of the launcher; the device is the process's number on its host, or the only
/// one that it sees. Rank 0 listens on the host of MASTER_ADDR, port MASTER_PORT + 1; docs/environment.md tells what holds
/// where they are not set.
///
/// `config`: may be NULL. Errors: INVALID_ENVIRONMENT (what is missing or does not parse), and those of magi_comm_create_nccl.
/// Collective; any thread.
///
/// # Safety
/// `config` must be NULL or point to a magi_nccl_config, `comm` point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_create_from_env(
    config: *const magi_nccl_config,
    comm: *mut *mut magi_comm,
) -> Status {
    guard("magi_comm_create_from_env", || {
        input::check_out("comm", comm)?;
        // SAFETY: the caller's promise.
        let (options, port, _) = unsafe { read("config", config) }?;
        let launch = Launch::read(&|name| env::value_of(name).map(str::to_owned), port)?;
        let made = nccl::from_launch(&launch, &options)?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(comm, made) }
    })
}

/// Makes a communicator over an ncclComm_t that the program, or a framework, has: same ranks, same devices. It stays its
/// owner's, who must keep it until magi_comm_destroy, and use it from no other thread while a call on `comm` runs; work of both
/// may be under way at once only if every rank issues it in the same order.
///
/// `nccl_comm`: of the NCCL that this library finds first, which is the one the process has loaded. `config`: may be NULL.
/// Errors: NULL_POINTER, INVALID_ARGUMENT, STRUCT_SIZE, NOT_SUPPORTED (no NCCL), NO_DEVICE, TIMEOUT, COMM_FAILED, CUDA_FAILED.
/// Collective over the ranks of `nccl_comm`; any thread. After an error `nccl_comm` may have been used by some of its ranks.
///
/// # Safety
/// `nccl_comm` must be an ncclComm_t, `config` NULL or point to a magi_nccl_config, `comm` point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_adopt_nccl(
    nccl_comm: *mut c_void,
    config: *const magi_nccl_config,
    comm: *mut *mut magi_comm,
) -> Status {
    guard("magi_comm_adopt_nccl", || {
        input::check_out("nccl_comm", nccl_comm)?;
        input::check_out("comm", comm)?;
        // SAFETY: the caller's promise.
        let (options, _, abort) = unsafe { read("config", config) }?;
        // SAFETY: the caller's promise.
        let made = unsafe { nccl::adopt(nccl_comm, abort, &options) }?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(comm, made) }
    })
}
