//! What calls on a key are measured to do: marks in the order of the streams, read when somebody asks.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::key::Key;
use super::on_stream::OnStream;
use crate::device::Stream;
use crate::device::cuda::{Event, Gpu};
use crate::plan::{Measured, StageTimes, Travel, Wait};
use crate::types::{Range, Result};

/// Most marks of a stage: five exchanges (over a mesh two for a fetch and two for its reduction, one for results of guests),
/// each with three for itself, two where it is held and two where it is waited for, and two around the kernels.
const MARKS: usize = 5 * 7 + 2;

/// The last measured call of one pass.
pub(super) struct Tape {
    /// "forward" or "backward".
    pub name: &'static str,
    stages: usize,
    reel: Mutex<Reel>,
}

/// A place on a tape.
#[derive(Clone, Copy)]
struct Mark(usize);

/// Where every tape begins.
const START: Mark = Mark(0);

/// An exchange of a stage.
struct Exchange {
    of: (Travel, usize),
    /// What it needs is there, on the call's stream.
    ready: Mark,
    /// Those before it are over, on the communicator's stream.
    begun: Mark,
    /// It is over, on the communicator's stream if it has one.
    done: Option<Mark>,
    /// The call's stream has waited for it.
    taken: Option<Mark>,
}

/// What is on a tape.
#[derive(Default)]
struct Reel {
    clock: Clock,
    /// The pass came to its end, at this mark.
    end: Option<Mark>,
    /// The stage whose turn it is.
    turn: usize,
    /// What exchanges that are started now belong to.
    of: Option<(Travel, usize)>,
    /// Stage, start and end of the kernels.
    computed: Vec<(usize, Mark, Mark)>,
    exchanges: Vec<Exchange>,
    /// What the call's stream waited for, from when to when.
    waits: Vec<((Travel, usize), Mark, Mark)>,
}

/// Makes marks and tells what lies between them.
enum Clock {
    /// By the host's clock: calls have finished when they return.
    Host(Vec<Instant>),
    /// By events of a device, the first so many of which are on the tape.
    Device(Arc<Gpu>, Vec<Event>, usize),
}

impl Default for Clock {
    fn default() -> Self {
        Clock::Host(Vec::new())
    }
}

impl Clock {
    /// Forgets all marks; events are kept. The clock of another device begins anew.
    fn rewind(&mut self, on: &OnStream) {
        match (self, on.cuda()) {
            (Clock::Device(_, _, used), Some(_)) => *used = 0,
            (Clock::Host(marks), None) => marks.clear(),
            (clock, None) => *clock = Clock::Host(Vec::new()),
            (clock, Some(cuda)) => *clock = Clock::Device(Arc::clone(cuda.gpu()), Vec::new(), 0),
        }
    }

    /// Makes events ahead.
    fn reserve(&mut self, marks: usize) -> Result<()> {
        if let Clock::Device(gpu, events, _) = self {
            while events.len() < marks {
                events.push(Event::timed(gpu)?);
            }
        }
        Ok(())
    }

    fn mark(&mut self, stream: Stream) -> Result<Mark> {
        match self {
            Clock::Host(marks) => {
                marks.push(Instant::now());
                Ok(Mark(marks.len() - 1))
            }
            Clock::Device(gpu, events, used) => {
                if *used == events.len() {
                    events.push(Event::timed(gpu)?);
                }
                events[*used].record(stream)?;
                *used += 1;
                Ok(Mark(*used - 1))
            }
        }
    }

    /// Waits until the device has come to every mark.
    fn wait(&self) -> Result<()> {
        match self {
            Clock::Host(_) => Ok(()),
            Clock::Device(_, events, used) => events[..*used].iter().try_for_each(Event::synchronize),
        }
    }

    /// Nanoseconds from the start of `first` to `mark`. Clocks of one key are of one kind.
    fn since(&self, first: &Clock, mark: Mark) -> Result<i64> {
        match (first, self) {
            (Clock::Host(first), Clock::Host(marks)) => {
                let (from, to) = (first[START.0], marks[mark.0]);
                let ns = |d: std::time::Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
                Ok(match to.checked_duration_since(from) {
                    Some(later) => ns(later),
                    None => -ns(from.duration_since(to)),
                })
            }
            (Clock::Device(_, first, _), Clock::Device(_, events, _)) => {
                events[mark.0].ns_since(&first[START.0])
            }
            _ => Ok(0),
        }
    }
}

impl Tape {
    pub fn new(name: &'static str, stages: usize) -> Tape {
        Tape {
            name,
            stages,
            reel: Mutex::new(Reel::default()),
        }
    }

    /// Makes what marks need ahead of the calls.
    pub fn reserve(&self, on: &OnStream) -> Result<()> {
        let clock = &mut self.reel.lock().clock;
        clock.rewind(on);
        clock.reserve(MARKS * self.stages + 2)
    }

    /// Forgets the last call; the next one begins here.
    pub fn begin(&self, on: &OnStream, stream: Stream) -> Result<()> {
        let mut reel = self.reel.lock();
        let mut clock = std::mem::take(&mut reel.clock);
        clock.rewind(on);
        *reel = Reel {
            clock,
            ..Reel::default()
        };
        reel.clock.mark(stream).map(drop)
    }

    /// The call ends here.
    pub fn end(&self, stream: Stream) -> Result<()> {
        let mut reel = self.reel.lock();
        reel.end = Some(reel.clock.mark(stream)?);
        Ok(())
    }

    /// It is the turn of `stage`.
    pub fn turn(&self, stage: usize) {
        self.reel.lock().turn = stage;
    }

    /// The stage whose turn it is.
    pub fn stage(&self) -> usize {
        self.reel.lock().turn
    }

    /// What is started next belongs to the fetch of `stage`.
    pub fn fetches(&self, stage: usize) {
        self.reel.lock().of = Some((Travel::Fetch, stage));
    }

    /// What is started next belongs to the reduction of the stage whose turn it is.
    pub fn reduces(&self) {
        let mut reel = self.reel.lock();
        reel.of = Some((Travel::Reduce, reel.turn));
    }

    /// What is started next belongs to what exchange `number` belongs to; what that is.
    pub fn continues(&self, number: usize) -> (Travel, usize) {
        let mut reel = self.reel.lock();
        let of = reel.exchanges[number].of;
        reel.of = Some(of);
        of
    }

    /// The kernels of the stage whose turn it is begin, or end.
    pub fn computes(&self, stream: Stream, end: bool) -> Result<()> {
        let mut reel = self.reel.lock();
        let (stage, mark) = (reel.turn, reel.clock.mark(stream)?);
        match reel.computed.last_mut() {
            Some(last) if end => last.2 = mark,
            _ => reel.computed.push((stage, mark, mark)),
        }
        Ok(())
    }

    /// What the next exchange belongs to.
    pub fn of(&self) -> Option<(Travel, usize)> {
        self.reel.lock().of
    }

    /// An exchange is about to start on a communicator with this stream of its own; its number.
    pub fn starts(&self, stream: Stream, own: Option<Stream>) -> Result<Option<usize>> {
        let mut reel = self.reel.lock();
        let Some(of) = reel.of else { return Ok(None) };
        let ready = reel.clock.mark(stream)?;
        let begun = match own {
            Some(own) => reel.clock.mark(own)?,
            None => ready,
        };
        reel.exchanges.push(Exchange {
            of,
            ready,
            begun,
            done: None,
            taken: None,
        });
        Ok(Some(reel.exchanges.len() - 1))
    }

    /// It was started, and what comes next on its stream comes behind it.
    pub fn started(&self, number: usize, own: Option<Stream>) -> Result<()> {
        if let Some(own) = own {
            let mut reel = self.reel.lock();
            reel.exchanges[number].done = Some(reel.clock.mark(own)?);
        }
        Ok(())
    }

    /// What `stream` does in `waiting` is to wait for an exchange: for its turn, or with `end` for its end.
    pub fn waits(
        &self,
        (number, end): (usize, bool),
        stream: Stream,
        waiting: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let from = self.reel.lock().clock.mark(stream)?;
        waiting()?;
        let mut reel = self.reel.lock();
        let to = reel.clock.mark(stream)?;
        let exchange = &mut reel.exchanges[number];
        if end {
            exchange.taken = Some(to);
        }
        let of = exchange.of;
        reel.waits.push((of, from, to));
        Ok(())
    }

    /// What was measured, once the device is done; `None` unless a call came to its end.
    pub fn measured(&self) -> Result<Option<Measured>> {
        let reel = self.reel.lock();
        let Some(end) = reel.end else { return Ok(None) };
        reel.clock.wait()?;
        let at = |mark: Mark| reel.clock.since(&reel.clock, mark);
        // Events of a device are rounded one by one.
        let range = |from: i64, to: i64| Range::new(from, to.max(from));
        let mut stages = vec![StageTimes::default(); self.stages];
        for &(stage, from, to) in &reel.computed {
            stages[stage].compute = range(at(from)?, at(to)?);
        }
        for x in &reel.exchanges {
            let from = at(x.ready)?.max(at(x.begun)?);
            // The mark on the communicator's stream comes a moment behind what is waited for.
            let ends = [x.done, x.taken].into_iter().flatten().map(at);
            let end = ends.collect::<Result<Vec<i64>>>()?.into_iter().min();
            let one = range(from, end.unwrap_or(from));
            let (travel, stage) = x.of;
            let all = match travel {
                Travel::Fetch => &mut stages[stage].fetch,
                Travel::Reduce => &mut stages[stage].reduce,
            };
            *all = match all.is_empty() {
                true => one,
                false => range(all.start.min(one.start), all.end.max(one.end)),
            };
        }
        let mut waits = Vec::with_capacity(reel.waits.len());
        for &((travel, stage), from, to) in &reel.waits {
            let at = range(at(from)?, at(to)?);
            waits.push(Wait { travel, stage, at });
        }
        Ok(Some(Measured {
            stages,
            waits,
            end: at(end)?,
        }))
    }

    /// Nanoseconds from the start of `first`'s call to this one's; both were measured.
    fn since(&self, first: &Tape) -> Result<i64> {
        let clock = &first.reel.lock().clock;
        if std::ptr::eq(self, first) {
            return Ok(0);
        }
        self.reel.lock().clock.since(clock, START)
    }
}

/// The tapes of a key that is measured.
pub(super) struct Tapes(pub [Arc<Tape>; 2]);

impl Tapes {
    /// The measured passes, forward first, and when each began, from the start of the first that there is.
    pub fn measured(&self) -> Result<Vec<(usize, Measured, i64)>> {
        let mut all = Vec::new();
        for (i, tape) in self.0.iter().enumerate() {
            if let Some(measured) = tape.measured()? {
                let first = all
                    .first()
                    .map_or(i, |(first, ..): &(usize, Measured, i64)| *first);
                all.push((i, measured, tape.since(&self.0[first])?));
            }
        }
        let first = all.iter().map(|m| m.2).min().unwrap_or(0);
        all.iter_mut().for_each(|m| m.2 -= first);
        Ok(all)
    }
}

/// Makes what measuring `key` needs ahead of its calls.
pub(super) fn reserve(key: &Key, on: &OnStream) -> Result<()> {
    let tapes = key.data().tapes.iter().flat_map(|t| &t.0);
    tapes.into_iter().try_for_each(|tape| tape.reserve(on))
}
