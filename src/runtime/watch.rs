//! A call that is measured: its communicator, with marks around what it does.

use std::sync::Arc;
use std::time::Duration;

use super::context::Session;
use super::profile::Tape;
use crate::comm::{Communicator, RecvOp, SendOp, Ticket, Traffic};
use crate::device::Stream;
use crate::device::nvtx::NvtxRange;
use crate::plan::Travel;
use crate::types::{Device, Error, Result};

/// The communicator of a call, and where the call is recorded.
pub(super) struct Watch {
    pub comm: Arc<dyn Communicator>,
    pub tape: Arc<Tape>,
    pub stream: Stream,
}

/// An exchange that was started.
struct Watched {
    ticket: Ticket,
    /// Its number on the tape, if it is one of a stage.
    number: Option<usize>,
}

impl Watch {
    /// A range in profilers.
    fn range(&self, stage: usize, what: &str) -> NvtxRange {
        NvtxRange::begin(|| format!("magi {} stage {stage}: {what}", self.tape.name))
    }

    fn range_of(&self, of: Option<(Travel, usize)>, prefix: &str) -> Option<NvtxRange> {
        of.map(|(travel, stage)| self.range(stage, &format!("{prefix}{}", travel.name())))
    }
}

/// The kernels of a stage being enqueued, in a call that is measured or not.
#[must_use = "kernels end somewhere"]
pub(super) struct Computing<'a>(Option<(&'a Watch, NvtxRange)>);

impl Computing<'_> {
    /// All are.
    pub fn end(self) -> Result<()> {
        match self.0 {
            Some((watch, _)) => watch.tape.computes(watch.stream, true),
            None => Ok(()),
        }
    }
}

/// In a call that is not measured, none of these does anything.
impl Session<'_> {
    /// It is the turn of `stage`.
    pub(super) fn turn(&self, stage: usize) {
        if let Some(w) = self.watch() {
            w.tape.turn(stage);
        }
    }

    /// What is started next belongs to the fetch of `stage`.
    pub(super) fn fetches(&self, stage: usize) {
        if let Some(w) = self.watch() {
            w.tape.fetches(stage);
        }
    }

    /// What is started next belongs to the reduction of the stage whose turn it is.
    pub(super) fn reduces(&self) {
        if let Some(w) = self.watch() {
            w.tape.reduces();
        }
    }

    /// The kernels of the stage whose turn it is begin.
    pub(super) fn computing(&self) -> Result<Computing<'_>> {
        let Some(w) = self.watch() else {
            return Ok(Computing(None));
        };
        w.tape.computes(w.stream, false)?;
        Ok(Computing(Some((w, w.range(w.tape.stage(), "compute")))))
    }

    /// The call ends here.
    pub(super) fn recorded(&self) -> Result<()> {
        self.watch().map_or(Ok(()), |w| w.tape.end(w.stream))
    }
}

fn watched(ticket: &Ticket) -> Result<&Watched> {
    let foreign = || Error::argument("ticket is one of another communicator or rank");
    ticket.inner().ok_or_else(foreign)
}

impl Communicator for Watch {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.size()
    }

    fn device(&self) -> Device {
        self.comm.device()
    }

    fn own_stream(&self) -> Option<Stream> {
        self.comm.own_stream()
    }

    unsafe fn start(&self, sends: &[SendOp], recvs: &[RecvOp], stream: Stream) -> Result<Ticket> {
        let (tape, own) = (&self.tape, self.comm.own_stream());
        let _range = self.range_of(tape.of(), "");
        let number = tape.starts(stream, own)?;
        // SAFETY: the caller's promise.
        let ticket = unsafe { self.comm.start(sends, recvs, stream) }?;
        if let Some(number) = number {
            tape.started(number, own)?;
        }
        Ok(Ticket::new(Watched { ticket, number }))
    }

    fn finish(&self, ticket: Ticket, stream: Stream) -> Result<()> {
        let number = watched(&ticket)?.number;
        let Some(inner) = ticket.into_inner::<Watched>() else {
            return Err(Error::internal("a ticket that was looked at is gone"));
        };
        let Some(number) = number else {
            return self.comm.finish(inner.ticket, stream);
        };
        // Over a mesh an exchange that is finished is followed by another one for the same.
        let of = self.tape.continues(number);
        let _range = self.range_of(Some(of), "wait for ");
        self.tape
            .waits((number, true), stream, || self.comm.finish(inner.ticket, stream))
    }

    fn hold(&self, ticket: &Ticket, stream: Stream) -> Result<()> {
        let Watched { ticket, number } = watched(ticket)?;
        match (number, self.comm.own_stream()) {
            (Some(number), Some(_)) => self
                .tape
                .waits((*number, false), stream, || self.comm.hold(ticket, stream)),
            _ => self.comm.hold(ticket, stream),
        }
    }

    fn connect(&self, peers: &[usize]) -> Result<()> {
        self.comm.connect(peers)
    }

    fn all_gather(&self, mine: &[u8], stream: Stream) -> Result<Vec<Vec<u8>>> {
        self.comm.all_gather(mine, stream)
    }

    fn split(&self, members: &[usize]) -> Result<Arc<dyn Communicator>> {
        self.comm.split(members)
    }

    fn set_timeout(&self, timeout: Duration) {
        self.comm.set_timeout(timeout);
    }

    fn timeout(&self) -> Duration {
        self.comm.timeout()
    }

    fn traffic(&self) -> Traffic {
        self.comm.traffic()
    }

    fn async_error(&self) -> Option<Error> {
        self.comm.async_error()
    }

    fn abort(&self, why: &str) {
        self.comm.abort(why);
    }

    fn fail(&self, error: &Error) {
        self.comm.fail(error);
    }

    fn leave(&self) {
        self.comm.leave();
    }
}
