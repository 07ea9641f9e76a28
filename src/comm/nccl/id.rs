//! What one rank makes and all ranks get, by whatever way the program has, so that they find each other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;

use super::frame::Cookie;
use super::hub::Hub;
use crate::types::{Error, Result, Status};

/// Bytes of an id; the rest is zero.
pub const ID_BYTES: usize = 256;

const MAGIC: [u8; 8] = *b"magiid_1";

/// Bytes of one address: its family and 16 more.
const ADDRESS: usize = 17;

/// Most addresses of a host that an id has room for.
const MOST_ADDRESSES: usize = 12;

const _: () = assert!(8 + 16 + 16 + 2 + 1 + MOST_ADDRESSES * ADDRESS <= ID_BYTES);

/// Where the ranks of one communicator meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueId {
    /// Its hub's.
    pub cookie: Cookie,
    /// The host of the hub.
    host: [u8; 16],
    port: u16,
    addresses: Vec<IpAddr>,
}

/// Hubs that this process has opened and that have not ended.
static HUBS: Mutex<BTreeMap<Cookie, Arc<Hub>>> = Mutex::new(BTreeMap::new());

/// The hub that this process has opened for `cookie`.
pub fn own_hub(cookie: &Cookie) -> Option<Arc<Hub>> {
    let mut hubs = HUBS.lock();
    hubs.retain(|_, hub| !hub.is_done());
    hubs.get(cookie).cloned()
}

/// Notes a hub for the ranks of this process.
pub fn keep(cookie: Cookie, hub: Arc<Hub>) {
    HUBS.lock().insert(cookie, hub);
}

/// Random bytes from the system.
fn random() -> Result<Cookie> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| Error::new(Status::ResourceExhausted, format!("/dev/urandom: {e}")))?;
    Ok(bytes)
}

/// What tells this host from another, as it was started; zero where the system does not say.
fn this_host() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    let mut host = [0; 16];
    for (byte, pair) in host.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (pair[0] * 16 + pair[1]) as u8;
    }
    host
}

/// Addresses by which other hosts may reach this one, those of the older kind first.
fn own_addresses() -> Vec<IpAddr> {
    let mut first = std::ptr::null_mut();
    // SAFETY: the pointer is good for a list, which is freed below.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut at = first;
    while !at.is_null() {
        // SAFETY: an element of the list that the system made; the next one is null or another.
        let entry = unsafe { &*at };
        at = entry.ifa_next;
        let up = entry.ifa_flags & libc::IFF_UP as libc::c_uint != 0;
        if up && !entry.ifa_addr.is_null() {
            // SAFETY: not null; the family says of which type the address is.
            found.extend(unsafe { address_of(entry.ifa_addr) });
        }
    }
    // SAFETY: the list of getifaddrs, freed once.
    unsafe { libc::freeifaddrs(first) };
    found.retain(|a| match a {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    });
    found.sort_by_key(IpAddr::is_ipv6);
    found.truncate(MOST_ADDRESSES);
    found
}

/// # Safety
/// `at` points to an address of the type that its family says.
unsafe fn address_of(at: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    unsafe {
        match libc::c_int::from((*at).sa_family) {
            libc::AF_INET => {
                let v4 = at.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = at.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

impl UniqueId {
    /// Opens a hub in this process and gives the way to it. The hub stays until all ranks have come and left.
    pub fn create() -> Result<UniqueId> {
        let cookie = random()?;
        let hub = Hub::open(0, true, cookie, None)?;
        let port = hub.port();
        keep(cookie, Arc::new(hub));
        Ok(UniqueId {
            cookie,
            host: this_host(),
            port,
            addresses: own_addresses(),
        })
    }

    /// Where to look for the hub, in order. On its own host the loopback comes first.
    pub fn places(&self) -> Vec<SocketAddr> {
        let here = self.host == this_host();
        let loopback = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        let own = loopback.into_iter().filter(|_| here);
        own.chain(self.addresses.iter().copied())
            .map(|a| SocketAddr::new(a, self.port))
            .collect()
    }

    /// As it travels.
    pub fn to_bytes(&self) -> [u8; ID_BYTES] {
        let mut bytes = Vec::with_capacity(ID_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.cookie);
        bytes.extend(self.host);
        bytes.extend(self.port.to_le_bytes());
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            match address {
                IpAddr::V4(a) => {
                    bytes.push(4);
                    bytes.extend(a.octets());
                    bytes.extend([0; 12]);
                }
                IpAddr::V6(a) => {
                    bytes.push(6);
                    bytes.extend(a.octets());
                }
            }
        }
        let mut out = [0; ID_BYTES];
        out[..bytes.len()].copy_from_slice(&bytes);
        out
    }

    /// What travelled; `Status::InvalidArgument` when it is no id.
    pub fn from_bytes(bytes: &[u8; ID_BYTES]) -> Result<UniqueId> {
        let bad = || Error::argument("id is not one that magi_unique_id_create made");
        let part = |at: usize| {
            let mut part = [0; 16];
            part.copy_from_slice(&bytes[at..at + 16]);
            part
        };
        let count = usize::from(bytes[42]);
        if bytes[..8] != MAGIC || count > MOST_ADDRESSES {
            return Err(bad());
        }
        let address = |i: usize| {
            let at = 43 + i * ADDRESS;
            let octets = part(at + 1);
            match bytes[at] {
                4 => Ok(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
                6 => Ok(Ipv6Addr::from(octets).into()),
                _ => Err(bad()),
            }
        };
        let id = UniqueId {
            cookie: part(8),
            host: part(24),
            port: u16::from_le_bytes([bytes[40], bytes[41]]),
            addresses: (0..count).map(address).collect::<Result<_>>()?,
        };
        // What is left must be zero, so that a damaged id is noticed.
        if id.to_bytes() != *bytes || id.port == 0 {
            return Err(bad());
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> UniqueId {
        UniqueId {
            cookie: [3; 16],
            host: this_host(),
            port: 1234,
            addresses: vec![
                Ipv4Addr::new(10, 0, 0, 7).into(),
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9).into(),
            ],
        }
    }

    #[test]
    fn ids_survive_the_way_and_damage_is_noticed() {
        let bytes = id().to_bytes();
        assert_eq!(UniqueId::from_bytes(&bytes).unwrap(), id());
        for at in [0, 7, 42, 43, 43 + 10, 43 + ADDRESS, 200, 255] {
            let mut damaged = bytes;
            damaged[at] ^= 0x55;
            let error = UniqueId::from_bytes(&damaged).unwrap_err();
            assert_eq!(error.status, Status::InvalidArgument, "{at}");
        }
        assert!(UniqueId::from_bytes(&[0; ID_BYTES]).is_err());
    }

    #[test]
    fn only_the_own_host_is_asked_by_its_loopback() {
        let here = id();
        assert_ne!(here.host, [0; 16]);
        assert_eq!(here.places()[0], "127.0.0.1:1234".parse().unwrap());
        assert_eq!(here.places().len(), 4);
        let other = UniqueId {
            host: [1; 16],
            ..here
        };
        let want: Vec<SocketAddr> = vec![
            "10.0.0.7:1234".parse().unwrap(),
            "[fd00::9]:1234".parse().unwrap(),
        ];
        assert_eq!(other.places(), want);
    }

    #[test]
    fn a_hub_of_this_process_is_found_by_its_cookie() {
        let id = UniqueId::create().unwrap();
        let hub = own_hub(&id.cookie).unwrap();
        assert_eq!(hub.port(), id.port);
        assert_ne!(UniqueId::create().unwrap().cookie, id.cookie);
        hub.stop();
        assert!(own_hub(&id.cookie).is_none());
    }
}
