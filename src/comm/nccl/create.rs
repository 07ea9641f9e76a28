//! How an NCCL communicator comes to be: ranks meet at a hub, see that they fit together, then let NCCL connect them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::api::{Nccl, RawComm, RawConfig, RawId};
use super::comm::NcclComm;
use super::engine::Engine;
use super::handle::{Handle, Owner};
use super::hub::Hub;
use super::id::{self, ID_BYTES, UniqueId};
use super::launch::Launch;
use super::link::{Invitation, Link};
use crate::comm::{Communicator, DEFAULT_TIMEOUT};
use crate::device::cuda::{DeviceMemory, Event, Gpu, OwnStream, driver};
use crate::device::process;
use crate::types::{Error, Result, Status};

/// How long a rank that cannot take part tries to tell the others so.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a communicator is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long this rank waits for the others, while it is made and later.
    pub timeout: Duration,
    /// Fewest and most thread blocks that NCCL uses for communication; 0: as NCCL sees fit.
    pub min_ctas: i32,
    /// See `min_ctas`.
    pub max_ctas: i32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: DEFAULT_TIMEOUT,
            min_ctas: 0,
            max_ctas: 0,
        }
    }
}

/// What this rank needs of its own machine.
type Local = (&'static Nccl, Arc<Gpu>);

fn local(device: i32) -> Result<Local> {
    let gpu = Gpu::open(device)?;
    Ok((Nccl::get()?, gpu))
}

/// The communicator of the ranks that have the same `id`. Waits until all are there.
pub fn from_id(
    id: &UniqueId,
    (rank, world): (usize, usize),
    device: i32,
    options: &Options,
) -> Result<Arc<NcclComm>> {
    process::check()?;
    let invitation = Invitation {
        places: id.places(),
        named: None,
        cookie: id.cookie,
        rank,
        world,
    };
    let (link, local) = meet(&invitation, options.timeout, local(device))?;
    connect(link, local, options)
}

/// The communicator of the processes that a launcher started. Waits until all are there.
pub fn from_launch(launch: &Launch, options: &Options) -> Result<Arc<NcclComm>> {
    process::check()?;
    let device = driver::device_count().and_then(|n| launch.device(n.max(0) as usize));
    let local = device.and_then(|device| local(device as i32));
    if launch.world == 1 {
        // Nobody else is to find the way.
        local.as_ref().map_err(Clone::clone)?;
    }
    let (hub, invitation) = invite(launch)?;
    let met = meet(&invitation, options.timeout, local);
    if let (Err(_), Some(hub)) = (&met, &hub) {
        hub.stop();
    }
    let (link, local) = met?;
    connect(link, local, options)
}

/// The way of this process to the hub of its job, which rank 0 opens.
pub fn invite(launch: &Launch) -> Result<(Option<Arc<Hub>>, Invitation)> {
    let alone = launch.world == 1;
    let cookie = launch.cookie();
    let mut invitation = Invitation {
        places: Vec::new(),
        named: None,
        cookie,
        rank: launch.rank,
        world: launch.world,
    };
    if launch.rank != 0 {
        invitation.named = Some((launch.host.clone(), launch.port));
        return Ok((None, invitation));
    }
    let port = if alone { 0 } else { launch.port };
    let hub = Arc::new(Hub::open(port, !alone, cookie, Some(launch.world))?);
    invitation.places = vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), hub.port())];
    id::keep(cookie, hub.clone());
    Ok((Some(hub), invitation))
}

/// Joins the others. A rank that lacks something of its own tells them before it fails.
fn meet(to: &Invitation, timeout: Duration, local: Result<Local>) -> Result<(Link, Local)> {
    match local {
        Ok(local) => Ok((Link::join(to, timeout)?, local)),
        Err(error) => {
            if to.world > 1
                && let Ok(link) = Link::join(to, timeout.min(FAREWELL))
            {
                end_link(&link, &error);
            }
            Err(error)
        }
    }
}

/// Tells the others why this rank does not go on.
fn end_link(link: &Link, error: &Error) {
    let rank = link.rank();
    let seen = match error.status {
        Status::Timeout => format!("rank {rank} ended the communicator: {error}"),
        status => format!("rank {rank} failed with {status:?}: {error}"),
    };
    link.end(error, &Error::new(Status::CommFailed, seen));
}

/// What ranks tell each other before NCCL connects them.
struct Card {
    version: i32,
    /// This process's.
    token: u64,
    device: i32,
    /// Rank 0's alone.
    id: Option<RawId>,
}

/// A number that no other process has.
fn token() -> u64 {
    static TOKEN: OnceLock<u64> = OnceLock::new();
    *TOKEN.get_or_init(|| {
        // The keys of this hasher are random ones of the process.
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(std::process::id())
    })
}

impl Card {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(self.version.to_le_bytes());
        bytes.extend(self.token.to_le_bytes());
        bytes.extend(self.device.to_le_bytes());
        bytes.extend(self.id.iter().flat_map(|id| id.0));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Card> {
        let (version, rest) = bytes.split_first_chunk()?;
        let (token, rest) = rest.split_first_chunk()?;
        let (device, rest) = rest.split_first_chunk()?;
        Some(Card {
            version: i32::from_le_bytes(*version),
            token: u64::from_le_bytes(*token),
            device: i32::from_le_bytes(*device),
            id: rest.try_into().ok().map(RawId),
        })
    }
}

/// What the ranks of `cards` cannot do together.
fn misfit(cards: &[Card]) -> Option<String> {
    for (rank, card) in cards.iter().enumerate() {
        if card.version != cards[0].version {
            let (a, b) = (cards[0].version, card.version);
            return Some(format!("rank 0 has NCCL {a} and rank {rank} has NCCL {b}"));
        }
        let same = |c: &Card| (c.token, c.device) == (card.token, card.device);
        if let Some(other) = cards[..rank].iter().position(same) {
            return Some(format!(
                "ranks {other} and {rank} are both on CUDA device {} of one process; each rank needs a device of its own",
                card.device
            ));
        }
    }
    None
}

/// Lets NCCL connect ranks that have met.
fn connect(link: Link, (nccl, gpu): Local, options: &Options) -> Result<Arc<NcclComm>> {
    let handle = agree(&link, nccl, &gpu, options).inspect_err(|e| end_link(&link, e))?;
    finish(link, gpu, handle, options)
}

fn agree(link: &Link, nccl: &'static Nccl, gpu: &Arc<Gpu>, options: &Options) -> Result<Handle> {
    let until = Instant::now() + options.timeout;
    let rank = link.rank();
    let mine = Card {
        version: nccl.version(),
        token: token(),
        device: gpu.ordinal(),
        id: (rank == 0).then(|| nccl.unique_id()).transpose()?,
    };
    let cards: Option<Vec<Card>> = link
        .gather(&mine.to_bytes(), options.timeout)?
        .iter()
        .map(|bytes| Card::from_bytes(bytes))
        .collect();
    let cards =
        cards.ok_or_else(|| Error::new(Status::CommFailed, "a rank runs another version of the library"))?;
    if let Some(why) = misfit(&cards) {
        return Err(Error::new(Status::CommFailed, why));
    }
    let id = cards[0]
        .id
        .ok_or_else(|| Error::new(Status::CommFailed, "rank 0 gave no NCCL id"))?;
    let config = RawConfig::new(options.min_ctas, options.max_ctas);
    let handle = Handle::init(nccl, gpu, id, (rank, link.world()), config)?;
    settle(&handle, link, "connecting ranks", until)?;
    Ok(handle)
}

fn settle(handle: &Handle, link: &Link, what: &str, until: Instant) -> Result<()> {
    handle
        .settle(what, until, &|| link.verdict())
        .map_err(|e| Error::new(e.status, format!("rank {}: {e}", link.rank())))
}

fn finish(link: Link, gpu: Arc<Gpu>, handle: Handle, options: &Options) -> Result<Arc<NcclComm>> {
    NcclComm::start(Engine::new(link, gpu, handle, options.timeout)?)
}

/// A communicator over one that somebody else made and keeps, on whose ranks this is called together. `abort`: it may be
/// aborted when this one ends by a failure.
///
/// # Safety
/// `raw` is an `ncclComm_t` that outlives what is returned, and nobody else uses it while a call on that runs.
pub unsafe fn adopt(raw: RawComm, abort: bool, options: &Options) -> Result<Arc<NcclComm>> {
    process::check()?;
    let nccl = Nccl::get()?;
    let until = Instant::now() + options.timeout;
    let mut device = 0;
    // SAFETY: the caller's promise; the pointer is good for an int.
    let code = unsafe { (nccl.functions.device)(raw, &mut device) };
    nccl.check(code, "ncclCommCuDevice")?;
    let gpu = Gpu::open(device)?;
    let handle = Handle::new(nccl, &gpu, raw, Owner::Caller { abort });
    let (rank, world) = handle.place()?;
    let id = spread_id(&handle, &gpu, rank, until)?;
    let invitation = Invitation {
        places: id.places(),
        named: None,
        cookie: id.cookie,
        rank,
        world,
    };
    let link = Link::join(&invitation, until.saturating_duration_since(Instant::now()))?;
    finish(link, gpu, handle, options)
}

/// Rank 0's new id on every rank, by NCCL itself.
fn spread_id(handle: &Handle, gpu: &Arc<Gpu>, rank: usize, until: Instant) -> Result<UniqueId> {
    // A rank 0 that cannot open a hub spreads zeros, which are no id.
    let made = (rank == 0).then(UniqueId::create).transpose();
    let mut bytes = match &made {
        Ok(Some(id)) => id.to_bytes(),
        Ok(None) | Err(_) => [0; ID_BYTES],
    };
    let memory = DeviceMemory::upload(gpu, &bytes)?;
    let (stream, done) = (OwnStream::urgent(gpu)?, Event::new(gpu)?);
    let on = stream.as_stream();
    handle.call("ncclBroadcast", |nccl, comm| {
        // SAFETY: the memory is as long as an id and stays until the event below has come.
        unsafe { nccl.broadcast(memory.as_ptr(), ID_BYTES, comm, on.as_ptr()) }
    })?;
    handle.settle("ncclBroadcast", until, &|| None)?;
    done.record(on)?;
    while !done.is_done()? {
        if Instant::now() >= until {
            // The broadcast may still write there: the memory stays with the process.
            std::mem::forget(memory);
            let message =
                format!("rank {rank} waited in vain for the other ranks of the adopted communicator");
            return Err(Error::new(Status::Timeout, message));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    memory.read(0, &mut bytes)?;
    made?;
    UniqueId::from_bytes(&bytes).map_err(|_| {
        Error::new(
            Status::CommFailed,
            "rank 0 could not open a place for the ranks to meet",
        )
    })
}

/// The communicator of `members`, ranks of `parent` in the order that they get, among them this one. Every rank of the
/// parent takes part in one part; `Status::InvalidArgument` on all when they do not fit together.
pub(super) fn split(parent: &NcclComm, members: &[usize]) -> Result<Arc<NcclComm>> {
    parent.check()?;
    let engine = parent.engine();
    let options = Options {
        timeout: engine.timeout(),
        ..Options::default()
    };
    let until = Instant::now() + options.timeout;
    let rank = parent.rank();
    let place = members.iter().position(|&m| m == rank);
    let place = place.ok_or_else(|| Error::argument(format!("rank {rank} is not one of {members:?}")))?;
    // The first of each part opens its hub.
    let made = (place == 0).then(UniqueId::create).transpose()?;
    let mut mine: Vec<u8> = made.iter().flat_map(|id| id.to_bytes()).collect();
    mine.resize(ID_BYTES, 0);
    mine.extend(members.iter().flat_map(|&m| (m as u32).to_le_bytes()));
    let all = engine.link.gather(&mine, options.timeout)?;
    let leader = members[0];
    let fits = |bytes: &Vec<u8>| bytes.len() >= ID_BYTES;
    if !all.iter().all(fits) || !parts_fit(&all) {
        return Err(Error::argument(
            "ranks disagree on how the communicator is split; sizes must be the same on all of them",
        ));
    }
    let mut bytes = [0; ID_BYTES];
    bytes.copy_from_slice(&all[leader][..ID_BYTES]);
    let id = UniqueId::from_bytes(&bytes)?;
    let invitation = Invitation {
        places: id.places(),
        named: None,
        cookie: id.cookie,
        rank: place,
        world: members.len(),
    };
    let config = RawConfig::new(options.min_ctas, options.max_ctas);
    let link = Link::join(&invitation, options.timeout)?;
    let over = || link.verdict().or_else(|| engine.link.verdict());
    let handle = engine
        .handle
        .split((leader, place), config, until, &over)
        .map_err(|e| engine.fail(&e))?;
    finish(link, engine.gpu.clone(), handle, &options)
}

/// Whether what the ranks said are parts: each rank is in its own, and all of a part name the same ranks.
fn parts_fit(all: &[Vec<u8>]) -> bool {
    let members = |rank: usize| {
        let words = all[rank][ID_BYTES..].as_chunks::<4>().0;
        words.iter().map(|w| u32::from_le_bytes(*w) as usize)
    };
    (0..all.len()).all(|rank| {
        members(rank).any(|m| m == rank)
            && members(rank).all(|m| m < all.len() && all[m][ID_BYTES..] == all[rank][ID_BYTES..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(version: i32, token: u64, device: i32) -> Card {
        Card {
            version,
            token,
            device,
            id: None,
        }
    }

    #[test]
    fn cards_survive_the_way_and_show_what_does_not_fit() {
        let bytes = Card {
            id: Some(RawId([9; 128])),
            ..card(22809, 77, 3)
        }
        .to_bytes();
        let read = Card::from_bytes(&bytes).unwrap();
        assert_eq!((read.version, read.token, read.device), (22809, 77, 3));
        assert_eq!(read.id.unwrap().0, [9; 128]);
        assert!(Card::from_bytes(&bytes[..16]).unwrap().id.is_none());
        assert!(Card::from_bytes(&bytes[..15]).is_none());
        assert_eq!(misfit(&[card(1, 1, 0), card(1, 1, 1), card(1, 2, 0)]), None);
        let why = misfit(&[card(1, 1, 0), card(1, 1, 1), card(1, 1, 0)]).unwrap();
        assert!(why.contains("ranks 0 and 2 are both on CUDA device 0"), "{why}");
        let why = misfit(&[card(22203, 1, 0), card(22809, 2, 0)]).unwrap();
        assert_eq!(why, "rank 0 has NCCL 22203 and rank 1 has NCCL 22809");
    }

    #[test]
    fn parts_must_be_a_partition() {
        let said = |parts: &[&[u32]]| {
            let bytes = |p: &&[u32]| {
                let mut bytes = vec![0; ID_BYTES];
                bytes.extend(p.iter().flat_map(|m| m.to_le_bytes()));
                bytes
            };
            parts_fit(&parts.iter().map(bytes).collect::<Vec<_>>())
        };
        assert!(said(&[&[0, 1], &[0, 1], &[2, 3], &[2, 3]]));
        assert!(said(&[&[0, 2], &[1, 3], &[0, 2], &[1, 3]]));
        assert!(!said(&[&[0, 1], &[0, 1], &[2, 3], &[0, 1, 2, 3]]));
        assert!(!said(&[&[0, 1], &[0, 1], &[2, 3], &[2]]));
        assert!(!said(&[&[0, 1], &[1, 0]]), "another order");
        assert!(!said(&[&[0, 7]]));
    }
}
