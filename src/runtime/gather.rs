//! All-gathers that know what they are for, so that ranks out of step are told so instead of reading each other's bytes.

use super::context::Session;
use crate::device::Stream;
use crate::types::{Error, Result, Status};

/// What the ranks gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Purpose {
    /// Hashes of plans, before the first transfer of a key.
    ComparePlans = 1,
    /// The largest logit of every head.
    MaxLogits = 2,
    /// Partial gradients of a shared sink.
    SinkGradient = 3,
    /// What goes from rank to rank in a group, before its first transfer.
    CompareGroups = 4,
    /// What leaves each rank's host in a group over a mesh.
    RouteGroups = 5,
    /// Whether each rank has its workspace for what it passes on.
    ReserveGroups = 6,
}

impl Purpose {
    fn name(tag: Option<u8>) -> &'static str {
        match tag {
            Some(1) => "compares plans",
            Some(2) => "reduces max_logits",
            Some(3) => "reduces the gradient of a sink",
            Some(4) => "compares group plans",
            Some(5) => "tells what leaves its host in a group",
            Some(6) => "takes workspace for a group",
            _ => "runs another version of the library",
        }
    }
}

/// Every rank's `bytes`, by rank, all of one length. `Status::CommFailed`, and the end of the communicator, when a rank
/// gathers something else.
pub(super) fn gather(
    session: &Session<'_>,
    purpose: Purpose,
    bytes: &[u8],
    stream: Stream,
) -> Result<Vec<Vec<u8>>> {
    let all = gather_any(session, purpose, bytes, stream)?;
    match all.iter().position(|theirs| theirs.len() != bytes.len()) {
        None => Ok(all),
        Some(rank) => {
            let (theirs, mine) = (all[rank].len(), bytes.len());
            let what = format!("gathered {theirs} bytes where this rank has {mine}");
            Err(out_of_step(session, rank, &what))
        }
    }
}

/// As `gather`, of any lengths.
pub(super) fn gather_any(
    session: &Session<'_>,
    purpose: Purpose,
    bytes: &[u8],
    stream: Stream,
) -> Result<Vec<Vec<u8>>> {
    let comm = session.context().comm();
    let mut all = comm.all_gather(&[&[purpose as u8], bytes].concat(), stream)?;
    for (rank, theirs) in all.iter_mut().enumerate() {
        let tag = theirs.first().copied();
        if tag != Some(purpose as u8) {
            let (has, mine) = (Purpose::name(tag), Purpose::name(Some(purpose as u8)));
            return Err(out_of_step(
                session,
                rank,
                &format!("{has} where this rank {mine}"),
            ));
        }
        theirs.remove(0);
    }
    Ok(all)
}

/// Ends the communicator; what the call returns.
fn out_of_step(session: &Session<'_>, rank: usize, what: &str) -> Error {
    let message = format!("rank {rank} {what}: calls are out of step");
    let error = Error::new(Status::CommFailed, message);
    session.context().fail(&error);
    error
}
