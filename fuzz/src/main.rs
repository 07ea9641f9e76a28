//! Feeds mutated bytes to the targets in `targets/` until the time is up, and fails on the first panic, signal or hang.
//!
//! `scripts/fuzz.sh` builds it with coverage counters, on a stable toolchain; inputs that reach new code are then kept
//! in fuzz/corpus and mutated further. Built without counters it mutates the seeds only.
//!
//! ```text
//! magi_attn_fuzz [--seconds N] [--seed N] [target...]   every target, or those named, N seconds each
//! magi_attn_fuzz --input FILE target                    one input, to reproduce a crash
//! ```

mod bytes;
mod corpus;
mod coverage;
mod crash;
mod masks;
mod mutate;
mod targets;

use corpus::Corpus;
use mutate::Random;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use targets::{TARGETS, Target};

/// What the command line says.
struct Options {
    seconds: f64,
    seed: u64,
    input: Option<PathBuf>,
    targets: Vec<&'static Target>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        seconds: 5.0,
        seed: 1,
        input: None,
        targets: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--seconds" => options.seconds = value()?.parse().map_err(|e| format!("--seconds: {e}"))?,
            "--seed" => options.seed = value()?.parse().map_err(|e| format!("--seed: {e}"))?,
            "--input" => options.input = Some(value()?.into()),
            name => {
                let target = TARGETS.iter().find(|t| t.name == name).ok_or_else(|| {
                    let known: Vec<_> = TARGETS.iter().map(|t| t.name).collect();
                    format!("no target {name}; there are {}", known.join(", "))
                })?;
                options.targets.push(target);
            }
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.iter().collect();
    }
    Ok(options)
}

/// Mutates inputs of one target for `seconds`, starting from its seeds.
fn fuzz(target: &'static Target, seconds: f64, seed: u64) -> Result<(), String> {
    let mut corpus = Corpus::load(target.name)?;
    let mut random = Random::new(seed);
    let counters = coverage::counters();
    let mut reached = coverage::Reached::new();
    for input in corpus.inputs() {
        crash::run(target, input)?;
        reached.update();
    }
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let mut runs = 0u64;
    while Instant::now() < end {
        // The clock is asked once for many runs of a fast target.
        for _ in 0..16 {
            let input = mutate::mutate(corpus.pick(&mut random), corpus.pick(&mut random), &mut random);
            reached.clear();
            crash::run(target, &input)?;
            runs += 1;
            if reached.update() {
                corpus.keep(input)?;
            }
        }
    }
    println!(
        "{:<16} {runs} runs in {:.1} s, {} of {counters} counters reached, {} inputs kept",
        target.name,
        start.elapsed().as_secs_f64(),
        reached.count(),
        corpus.inputs().len()
    );
    Ok(())
}

fn run() -> Result<(), String> {
    let options = options()?;
    crash::install(&options.targets)?;
    if let Some(path) = &options.input {
        let input = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        return options.targets.iter().try_for_each(|t| crash::run(t, &input));
    }
    if coverage::counters() == 0 {
        println!("built without coverage counters (scripts/fuzz.sh has them): the seeds are mutated blindly");
    }
    options
        .targets
        .iter()
        .try_for_each(|t| fuzz(t, options.seconds, options.seed))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaks_on_a_large_first_byte(data: &[u8]) {
        assert!(data.first().is_none_or(|&b| b < 200));
    }

    static BROKEN: Target = Target {
        name: "self_test",
        run: breaks_on_a_large_first_byte,
    };

    #[test]
    fn a_broken_promise_is_found_and_saved() {
        let folder = corpus::folder("artifacts", BROKEN.name);
        std::fs::create_dir_all(&folder).unwrap();
        let saved = folder.join("crash");
        let message = fuzz(&BROKEN, 20.0, 7).unwrap_err();
        assert!(
            message.contains(BROKEN.name) && message.contains(saved.to_str().unwrap()),
            "{message}"
        );
        let input = std::fs::read(&saved).unwrap();
        assert!(input[0] >= 200);
        assert!(crash::run(&BROKEN, &input).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
