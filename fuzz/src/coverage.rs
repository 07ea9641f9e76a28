//! Counters that the compiler puts on the edges of the code when asked to (`scripts/fuzz.sh` asks), and which of them
//! any input has moved so far.

use std::sync::Mutex;

/// Address and length of every module's counters.
static REGIONS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called before `main` by every instrumented module, with its counters.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    let mut regions = REGIONS.lock().unwrap();
    let region = (start as usize, stop as usize - start as usize);
    if !regions.contains(&region) {
        regions.push(region);
    }
}

/// How many counters there are; 0 in a build without coverage.
pub fn counters() -> usize {
    REGIONS.lock().unwrap().iter().map(|r| r.1).sum()
}

/// For every counter, the classes of counts that some input had: bit i is set when a count had i + 1 binary digits.
pub struct Reached {
    regions: Vec<(usize, usize)>,
    classes: Vec<u8>,
}

impl Reached {
    /// Nothing reached yet, counters at 0.
    pub fn new() -> Reached {
        let regions = REGIONS.lock().unwrap().clone();
        let classes = vec![0; regions.iter().map(|r| r.1).sum()];
        let mut reached = Reached { regions, classes };
        reached.clear();
        reached
    }

    /// Sets all counters to 0, before a run.
    pub fn clear(&mut self) {
        for &(start, len) in &self.regions {
            // SAFETY: the region is a static array of this process that the compiler made, writable for its lifetime.
            unsafe { std::ptr::write_bytes(start as *mut u8, 0, len) };
        }
    }

    /// Takes the counters of the last run in; whether any of them is in a class not seen before.
    pub fn update(&mut self) -> bool {
        let mut fresh = false;
        let mut classes = self.classes.iter_mut();
        for &(start, len) in &self.regions {
            // Threads that a target left running may still count, hence the volatile reads.
            for (address, class) in (start..start + len).zip(&mut classes) {
                // SAFETY: as in `clear`; every address of the region is readable.
                let count = unsafe { std::ptr::read_volatile(address as *const u8) };
                if count != 0 {
                    let bit = 1 << count.ilog2();
                    fresh |= *class & bit == 0;
                    *class |= bit;
                }
            }
        }
        fresh
    }

    /// Counters that some input moved.
    pub fn count(&self) -> usize {
        self.classes.iter().filter(|&&c| c != 0).count()
    }
}
