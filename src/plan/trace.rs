//! Measured passes in the trace event format, which trace viewers of browsers read.

use std::fmt::Write;

use super::measured::{Measured, Travel};
use super::stage::{Pass, Stage};
use crate::types::Range;

/// A pass to be written.
pub struct Traced<'a> {
    /// "forward" or "backward".
    pub name: &'static str,
    /// Its plan.
    pub pass: &'a Pass,
    /// When it did what.
    pub measured: &'a Measured,
    /// Nanoseconds from the start of the trace to its start, 0 or more.
    pub from: i64,
}

/// Rows of a rank, by number.
const ROWS: [&str; 3] = ["compute", Travel::Fetch.name(), Travel::Reduce.name()];
const COMPUTE: usize = 0;

// Writing to a String cannot fail, so the results of `write!` are dropped throughout.
/// Rank `rank` of the trace, a process of its own with a thread for what is computed, fetched and reduced.
pub fn trace(rank: usize, passes: &[Traced<'_>]) -> String {
    let mut text = String::from("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n");
    let mut name = |kind: &str, tid: usize, name: &str| {
        let _ = writeln!(
            text,
            "{{\"ph\":\"M\",\"name\":\"{kind}\",\"pid\":{rank},\"tid\":{tid},\"args\":{{\"name\":\"{name}\"}}}},"
        );
    };
    name("process_name", 0, &format!("rank {rank}"));
    for (tid, row) in ROWS.into_iter().enumerate() {
        name("thread_name", tid, row);
    }
    let mut events = Vec::new();
    for traced in passes {
        pass(&mut events, rank, traced);
    }
    text.push_str(&events.join(",\n"));
    text.push_str("\n]}\n");
    text
}

/// All of one pass.
fn pass(events: &mut Vec<String>, rank: usize, traced: &Traced<'_>) {
    let Traced {
        name,
        pass,
        measured,
        from,
    } = traced;
    let mut add = |row: usize, what: String, at: Range, args: String| {
        let (ts, dur) = (microseconds(from + at.start), microseconds(at.len()));
        events.push(format!(
            "{{\"ph\":\"X\",\"name\":\"{what}\",\"cat\":\"{name}\",\"ts\":{ts},\"dur\":{dur},\"pid\":{rank},\"tid\":{row},\
             \"args\":{{{args}}}}}"
        ));
    };
    let exposed = microseconds(measured.exposed());
    let args = format!("\"exposed_us\":{exposed}");
    add(COMPUTE, (*name).to_owned(), Range::new(0, measured.end), args);
    for (i, (stage, times)) in pass.stages.iter().zip(&measured.stages).enumerate() {
        let rows = [times.compute, times.fetch, times.reduce];
        for (row, at) in rows.into_iter().enumerate().filter(|(_, at)| !at.is_empty()) {
            let args = if row == COMPUTE {
                format!("\"cells\":{}", stage.cells())
            } else {
                tokens(stage)
            };
            add(row, format!("{name} stage {i}: {}", ROWS[row]), at, args);
        }
    }
    for wait in measured.waits.iter().filter(|w| !w.at.is_empty()) {
        let (stage, travel) = (wait.stage, wait.travel.name());
        let args = format!("\"stage\":{stage}");
        add(
            COMPUTE,
            format!("{name} stage {stage}: wait for {travel}"),
            wait.at,
            args,
        );
    }
}

/// What travels for a stage of this rank.
fn tokens(stage: &Stage) -> String {
    let (keys, queries) = (&stage.transfer, &stage.guests.transfer);
    format!(
        "\"keys_received\":{},\"keys_sent\":{},\"queries_received\":{},\"queries_sent\":{}",
        keys.recv_rows,
        keys.send_rows(),
        queries.recv_rows,
        queries.send_rows()
    )
}

/// Nanoseconds, 0 or more, as microseconds.
fn microseconds(ns: i64) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}
