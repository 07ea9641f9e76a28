//! What a key says about its measured calls.

use super::key::Key;
use crate::plan::{Measured, MeasuredPass, Traced, draw_measured, trace};
use crate::types::{Error, Result};

const NAMES: [&str; 2] = ["forward", "backward"];

impl Key {
    /// The passes whose last call was measured, forward (0) before backward (1), each with the nanoseconds from the start of
    /// the first to its own. Waits until the device has done what was enqueued.
    fn measured_passes(&self) -> Result<Vec<(usize, Measured, i64)>> {
        let _turn = self.context().enter()?;
        let tapes = self.data().tapes.as_ref().ok_or_else(|| {
            Error::argument(
                "the key was made without config.profile; set it, or MAGI_ATTENTION_PROFILE_MODE, before the key is made",
            )
        })?;
        tapes.measured()
    }

    /// The last call of `pass`, 0 forward and 1 backward. `Status::InvalidArgument` unless it was measured.
    pub fn measured(&self, pass: usize) -> Result<Measured> {
        let found = self.measured_passes()?.into_iter().find(|m| m.0 == pass);
        found.map(|m| m.1).ok_or_else(|| {
            Error::argument(format!(
                "no {} call on this key has come to its end; make one first",
                NAMES[pass]
            ))
        })
    }

    /// As `measured_passes`, of which there are some.
    fn some_measured(&self) -> Result<Vec<(usize, Measured, i64)>> {
        let found = self.measured_passes()?;
        if found.is_empty() {
            let message = "no attention call on this key has come to its end; make one first";
            return Err(Error::argument(message));
        }
        Ok(found)
    }

    /// The last measured calls in the trace event format. Errors as `measured`.
    pub fn trace(&self) -> Result<String> {
        let found = self.some_measured()?;
        let plans = [&self.plan().forward, &self.plan().backward];
        let traced: Vec<Traced<'_>> = found
            .iter()
            .map(|(pass, measured, from)| Traced {
                name: NAMES[*pass],
                pass: plans[*pass],
                measured,
                from: *from,
            })
            .collect();
        Ok(trace(self.context().rank(), &traced))
    }

    /// The last measured calls above what was predicted of them, as SVG. Errors as `measured`.
    pub fn draw_measured(&self) -> Result<String> {
        let found = self.some_measured()?;
        let stats = self.stats()?;
        let predicted = [&stats.forward, &stats.backward];
        let passes: Vec<MeasuredPass<'_>> = found
            .iter()
            .map(|(pass, measured, _)| MeasuredPass {
                name: NAMES[*pass],
                measured,
                predicted: predicted[*pass],
            })
            .collect();
        let context = self.context();
        Ok(draw_measured(context.rank(), context.size(), &passes))
    }
}
