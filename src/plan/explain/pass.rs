//! The stages of a pass in words.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{count, microseconds, percent};
use crate::plan::{Pass, Stage, Timeline};
use crate::types::draw::thousands;
use crate::types::{TwoLevel, piece_rows};

/// What each stage of `rank` waits for and computes, and when.
pub(super) fn describe(lines: &mut Vec<String>, name: &str, pass: &Pass, timeline: &Timeline, rank: usize) {
    let total: i64 = pass.stages.iter().map(|s| s.area).sum();
    lines.push(format!(
        "{name} pass of this rank: {}, {} in all",
        count(pass.stages.len() as i64, "stage"),
        count(total, "cell")
    ));
    let slowest = timeline.slowest();
    lines.push(format!(
        "  predicted: {}, in {} of them it computes nothing; the slowest rank is {slowest} with {}",
        microseconds(timeline.end(rank)),
        microseconds(timeline.waits(rank)),
        microseconds(timeline.end(slowest))
    ));
    for (i, stage) in pass.stages.iter().enumerate() {
        let mut line = format!(
            "  stage {i}: {}; computes {} in {} ({:.1}%)",
            needs(stage),
            count(stage.area, "cell"),
            count(stage.slices.len() as i64, "local slice"),
            percent(stage.area, total)
        );
        if pass.stages.get(i + 1).is_some_and(|s| !s.recv.is_empty()) {
            // Writing to a String cannot fail.
            let _ = write!(line, " while stage {} travels", i + 1);
        }
        if name == "backward" && !stage.recv.is_empty() {
            line.push_str("; then the gradients of its keys go back");
        }
        lines.push(line);
        if let Some(plan) = stage.two_level.as_ref().filter(|t| !t.is_empty()) {
            lines.push(levels(plan));
        }
        lines.push(when(timeline, rank, i));
    }
}

/// The keys that a stage cannot start without.
fn needs(stage: &Stage) -> String {
    let mut from: BTreeMap<u32, i64> = BTreeMap::new();
    for piece in &stage.transfer.recvs {
        *from.entry(piece.peer).or_default() += piece.rows.len();
    }
    if from.is_empty() {
        return "waits for nothing".to_owned();
    }
    let list: Vec<String> = from
        .iter()
        .map(|(peer, n)| format!("{} from rank {peer}", thousands(*n)))
        .collect();
    let keys = count(stage.transfer.recv_rows, "key");
    format!("waits for {keys}: {}", list.join(", "))
}

/// What this rank does between hosts and inside its own.
fn levels(plan: &TwoLevel) -> String {
    let kept: i64 = plan.keeps.iter().map(|(from, _)| from.len()).sum();
    format!(
        "    over two levels: {} from ranks of this host; takes in {} of other hosts for its own, each once, keeps {} and \
         passes on {}; {} through other ranks of this host",
        count(piece_rows(&plan.direct), "key"),
        thousands(plan.gateway_rows),
        thousands(kept),
        thousands(piece_rows(&plan.forwards)),
        thousands(piece_rows(&plan.relayed))
    )
}

/// When a stage is worked on, and what it waited for.
fn when(timeline: &Timeline, rank: usize, stage: usize) -> String {
    let times = timeline.stages[stage][rank].times;
    let mut line = String::from("    predicted: ");
    if !times.fetch.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(line, "its keys are there at {}, ", microseconds(times.fetch.end));
    }
    let (start, end) = (microseconds(times.compute.start), microseconds(times.compute.end));
    // Writing to a String cannot fail.
    let _ = write!(line, "computed from {start} to {end}");
    let wait = timeline.wait(rank, stage);
    if wait > 0 {
        // A stage starts when its keys are there and gradients of the stage before the last are back.
        let reason = if times.fetch.end == times.compute.start {
            "its keys".to_owned()
        } else {
            format!("the gradients of stage {}", stage.saturating_sub(2))
        };
        let _ = write!(line, " after a wait of {} for {reason}", microseconds(wait));
    }
    if !times.reduce.is_empty() {
        let _ = write!(line, ", gradients back at {}", microseconds(times.reduce.end));
    }
    line
}
