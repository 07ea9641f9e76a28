//! What is fuzzed. A target is a function of bytes that panics when the library breaks a promise.

mod capi;
mod enums;
mod group;
mod key;
mod mask;

/// A name for the command line and the folders of seeds and corpus, and the function.
pub struct Target {
    /// Unique.
    pub name: &'static str,
    /// Runs one input. Must leave nothing behind: the next input runs in the same process.
    pub run: fn(&[u8]),
}

/// All targets, in the order in which they run. The last one replaces the process's panic hook, as every first call of
/// a C function does: panics are not printed after it.
pub const TARGETS: &[Target] = &[
    Target {
        name: "enums",
        run: enums::run,
    },
    Target {
        name: "mask",
        run: mask::run,
    },
    Target {
        name: "key",
        run: key::run,
    },
    Target {
        name: "group",
        run: group::run,
    },
    Target {
        name: "capi",
        run: capi::run,
    },
];
