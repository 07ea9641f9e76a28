//! The stages of a pass in words.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{count, microseconds, percent, several};
use crate::plan::{Pass, Stage, Timeline};
use crate::types::draw::thousands;
use crate::types::{Transfer, TwoLevel, piece_rows};

/// What each stage of `rank` waits for and computes, and when.
pub(super) fn describe(lines: &mut Vec<String>, name: &str, pass: &Pass, timeline: &Timeline, rank: usize) {
    let total: i64 = pass.stages.iter().map(Stage::cells).sum();
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
            count(stage.cells(), "cell"),
            count(
                (stage.slices.len() + stage.guests.slices.len()) as i64,
                "local slice"
            ),
            percent(stage.cells(), total)
        );
        let fetches = |s: &Stage| !s.recv.is_empty() || !s.guests.recv.is_empty();
        if pass.stages.get(i + 1).is_some_and(fetches) {
            // Writing to a String cannot fail.
            let _ = write!(line, " while stage {} travels", i + 1);
        }
        if name == "backward" && !stage.recv.is_empty() {
            line.push_str("; then the gradients of its keys go back");
        }
        if !stage.guests.recv.is_empty() {
            let what = if name == "backward" {
                "gradients"
            } else {
                "outputs"
            };
            // Writing to a String cannot fail.
            let _ = write!(line, "; then the {what} of its queries go home");
        }
        lines.push(line);
        if let Some(plan) = stage.two_level.as_ref().filter(|t| !t.is_empty()) {
            lines.push(levels(plan));
        }
        lines.push(when(timeline, rank, i));
    }
}

/// The keys and queries that a stage cannot start without.
fn needs(stage: &Stage) -> String {
    let (keys, queries) = (&stage.transfer, &stage.guests.transfer);
    let parts = [
        (keys, count(keys.recv_rows, "key")),
        (queries, several(queries.recv_rows, "query", "queries")),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(transfer, _)| transfer.recv_rows > 0)
        .map(|(transfer, rows)| format!("{rows}: {}", origins(transfer)))
        .collect();
    if parts.is_empty() {
        return "waits for nothing".to_owned();
    }
    format!("waits for {}", parts.join(", and for "))
}

/// "12 from rank 3, 4 from rank 5": where the rows of a transfer come from.
fn origins(transfer: &Transfer) -> String {
    let mut from: BTreeMap<u32, i64> = BTreeMap::new();
    for piece in &transfer.recvs {
        *from.entry(piece.peer).or_default() += piece.rows.len();
    }
    let list = from
        .iter()
        .map(|(peer, n)| format!("{} from rank {peer}", thousands(*n)));
    list.collect::<Vec<String>>().join(", ")
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
    let guests = |s: usize| timeline.stages[s][rank].queries_received > 0;
    let what = if guests(stage) {
        "its keys and queries"
    } else {
        "its keys"
    };
    let back = |s: usize| if guests(s) { "results" } else { "gradients" };
    let mut line = String::from("    predicted: ");
    if !times.fetch.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(line, "{what} are there at {}, ", microseconds(times.fetch.end));
    }
    let (start, end) = (microseconds(times.compute.start), microseconds(times.compute.end));
    // Writing to a String cannot fail.
    let _ = write!(line, "computed from {start} to {end}");
    let wait = timeline.wait(rank, stage);
    if wait > 0 {
        // A stage starts when its keys are there and gradients of the stage before the last are back.
        let reason = if times.fetch.end == times.compute.start {
            what.to_owned()
        } else {
            let before = stage.saturating_sub(2);
            format!("the {} of stage {before}", back(before))
        };
        let _ = write!(line, " after a wait of {} for {reason}", microseconds(wait));
    }
    if !times.reduce.is_empty() {
        let _ = write!(
            line,
            ", {} back at {}",
            back(stage),
            microseconds(times.reduce.end)
        );
    }
    line
}
