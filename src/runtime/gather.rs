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
}

impl Purpose {
    fn name(tag: Option<u8>) -> &'static str {
        match tag {
            Some(1) => "compares plans",
            Some(2) => "reduces max_logits",
            Some(3) => "reduces the gradient of a sink",
            Some(4) => "compares group plans",
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
    let context = session.context();
    let mut all = context
        .comm()
        .all_gather(&[&[purpose as u8], bytes].concat(), stream)?;
    for (rank, theirs) in all.iter_mut().enumerate() {
        let tag = theirs.first().copied();
        if tag == Some(purpose as u8) && theirs.len() == bytes.len() + 1 {
            theirs.remove(0);
            continue;
        }
        let what = if tag == Some(purpose as u8) {
            format!(
                "gathered {} bytes where this rank has {}",
                theirs.len() - 1,
                bytes.len()
            )
        } else {
            format!(
                "{} where this rank {}",
                Purpose::name(tag),
                Purpose::name(Some(purpose as u8))
            )
        };
        let error = Error::new(
            Status::CommFailed,
            format!("rank {rank} {what}: calls are out of step"),
        );
        context.fail(&error);
        return Err(error);
    }
    Ok(all)
}
