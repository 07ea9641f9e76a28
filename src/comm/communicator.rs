//! The communicator, one handle for each rank.

use std::sync::Arc;
use std::time::Duration;

use super::{RecvOp, SendOp, Ticket, Traffic};
use crate::device::Stream;
use crate::types::{Device, Error, Result};

/// How long a rank waits for its peers unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest timeout; a longer one is cut to it, so that every wait ends.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// One rank of a group of ranks that exchange bytes.
///
/// Collective calls (`start`, `finish`, `all_gather`) are made in the same order on every rank, one at a time for
/// each rank; everything else may be called from any thread at any time.
///
/// Between two ranks messages keep their order: the k-th one sent is the k-th one received, also across exchanges
/// and all-gathers. Messages of 0 bytes count like any other.
///
/// A communicator ends when a rank aborts it, fails, waits longer than its timeout, leaves while others wait for
/// it, or when two ranks disagree about a message. The first cause wins; every call that waits is woken and every
/// later call fails at once, with
/// * `Status::Aborted` on every rank after `abort`;
/// * `Status::Timeout` on the rank that waited too long, `Status::CommFailed` on the others;
/// * `Status::CommFailed` on every rank otherwise.
///
/// In a process forked after the library's first use every fallible call fails with `Status::Forked`.
pub trait Communicator: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Where the bytes that it moves lie.
    fn device(&self) -> Device;

    /// The stream of its own on which exchanges run, one after the other; `None` where they run on no device.
    fn own_stream(&self) -> Option<Stream> {
        None
    }

    /// Starts one grouped exchange. Never waits for a peer. Sources must be ready on `stream`; on a local
    /// communicator they are copied, and may be reused when `start` returns.
    ///
    /// Fails with `Status::InvalidArgument` (peer out of range), `Status::NullPointer` (null with bytes) or
    /// `Status::OutOfMemory` before anything was sent: the call may be repeated. Otherwise as the trait says.
    ///
    /// # Safety
    /// Every source must be readable and every destination writable, for its length, until the ticket was finished
    /// or dropped; until then nobody else may write a source or touch a destination.
    unsafe fn start(&self, sends: &[SendOp], recvs: &[RecvOp], stream: Stream) -> Result<Ticket>;

    /// Waits until every receive of the exchange has its bytes. Several tickets may be outstanding and are
    /// finished in any order. Fails with `Status::InvalidArgument` for a ticket of another communicator; otherwise
    /// as the trait says, and then destinations are undefined.
    fn finish(&self, ticket: Ticket, stream: Stream) -> Result<()>;

    /// Lets what comes next on `stream` wait until the turn of the exchange has come on the device: what moves it is then
    /// launched no later, and being urgent is served first, so that a kernel on `stream` may take all that it leaves. Nothing
    /// where exchanges need no device. Errors as `finish`.
    fn hold(&self, _ticket: &Ticket, _stream: Stream) -> Result<()> {
        Ok(())
    }

    /// Opens the ways to `peers`, each of which names this rank in its own call at the same place in the order of calls: later
    /// exchanges with them then wait for nobody on the host. May wait, and allocate. Nothing where no way needs opening.
    fn connect(&self, _peers: &[usize]) -> Result<()> {
        Ok(())
    }

    /// Every rank's bytes, by rank. Lengths may differ. Fails with `Status::OutOfMemory` before anything was sent;
    /// otherwise as the trait says.
    fn all_gather(&self, mine: &[u8], stream: Stream) -> Result<Vec<Vec<u8>>>;

    /// The communicator of `members`, ranks of this one in the order of their new ranks, this one among them. Collective;
    /// each rank names its own part, and the parts share no rank. Fails with `Status::InvalidArgument` when a rank is not
    /// in its part or, where that is seen, when ranks disagree; then this communicator stays good. Otherwise as the trait
    /// says. The timeout is inherited.
    fn split(&self, members: &[usize]) -> Result<Arc<dyn Communicator>>;

    /// Sets how long this rank's calls wait for peers, from the next wait on; at most `MAX_TIMEOUT`.
    fn set_timeout(&self, timeout: Duration);

    /// How long this rank's calls wait for peers.
    fn timeout(&self) -> Duration;

    /// Bytes that this rank sent to and received from others in exchanges, counted when they start.
    fn traffic(&self) -> Traffic;

    /// Why the communicator ended, as this rank sees it; `None` while it is good.
    fn async_error(&self) -> Option<Error>;

    /// Ends the communicator on purpose: every rank gets `Status::Aborted` with this rank and `why`.
    fn abort(&self, why: &str);

    /// Ends the communicator because this rank failed: every rank gets `Status::CommFailed` with this rank and
    /// `error`.
    fn fail(&self, error: &Error);

    /// Gives up this rank's part, as dropping its last handle does. What it sent still arrives; peers that wait
    /// for more, or send to it, get `Status::CommFailed`. Its own later calls get `Status::CommDestroyed`.
    fn leave(&self);
}
