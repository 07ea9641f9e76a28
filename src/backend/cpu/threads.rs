//! Threads for one call. None outlives it, because the library may be unloaded between calls.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Multiplications that are worth a thread: about 0.3 ms of work against some 0.05 ms to start one.
const WORK_PER_THREAD: f64 = 2e6;

/// How many threads `work` multiplications in `units` pieces are worth, at most `cap`.
pub(super) fn worth(cap: usize, units: usize, work: f64) -> usize {
    cap.min(units).min((work / WORK_PER_THREAD) as usize).max(1)
}

/// Calls `f(state, unit)` once for every unit, on the caller's thread and one more for every further state.
///
/// Which thread takes a unit is left to chance: `f` must give the same result on any.
pub(super) fn run<S: Send>(states: &mut [S], units: usize, f: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = |state: &mut S| {
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                break;
            }
            f(state, unit);
        }
    };
    let Some((own, others)) = states.split_first_mut() else {
        return;
    };
    std::thread::scope(|scope| {
        for state in others {
            let builder = std::thread::Builder::new().name("magi-cpu".into());
            if builder.spawn_scoped(scope, || work(state)).is_err() {
                // The system refuses more threads: those there are do the rest.
                break;
            }
        }
        work(own);
    });
}
