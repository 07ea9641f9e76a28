//! A plan in words.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Pass, Placement, Plan, Stage, Stats};
use crate::types::draw::thousands;
use crate::types::{Config, Mask, Side, Transfer};

/// Who decided where tokens lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The planner, for this mask.
    Planner,
    /// The caller, chunk by chunk.
    Caller,
    /// Another key, whose placement this one uses.
    OtherKey,
}

/// With more ranks than this, only those at the ends and in the middle are listed.
const MOST_RANKS: usize = 16;

/// Why the plan is as it is and what every stage of its rank waits for, in lines of text for people. `stats` are those
/// of `mask` on the plan's placement.
pub fn explain(plan: &Plan, mask: &Mask, config: &Config, origin: Origin, stats: &Stats) -> String {
    let mut lines = vec![format!(
        "plan {:#018x} of rank {} among {}",
        plan.hash, plan.rank, plan.world
    )];
    let cells = mask.total_q() * mask.total_k();
    lines.push(format!(
        "mask: {} queries, {} keys, {}, {} visible cells ({:.1}% of all)",
        thousands(mask.total_q()),
        thousands(mask.total_k()),
        count(mask.slices().len() as i64, "slice"),
        thousands(mask.area()),
        percent(mask.area(), cells)
    ));
    lines.push(String::new());
    place(&mut lines, &plan.placement, config, origin);
    ranks(&mut lines, plan.rank, stats);
    balance(&mut lines, stats);
    travel(&mut lines, stats);
    lines.push(String::new());
    pass(&mut lines, "forward", &plan.forward, true);
    lines.push(String::new());
    pass(&mut lines, "backward", &plan.backward, false);
    lines.push(String::new());
    lines.join("\n")
}

fn percent(part: i64, whole: i64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// "1 key", "2 keys".
fn count(n: i64, noun: &str) -> String {
    several(n, noun, &format!("{noun}s"))
}

/// "1 query", "2 queries".
fn several(n: i64, one: &str, more: &str) -> String {
    format!("{} {}", thousands(n), if n == 1 { one } else { more })
}

/// "12 from rank 3, 4 from rank 5": where the rows of a transfer come from; empty without any.
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

/// Where tokens lie, and why there.
fn place(lines: &mut Vec<String>, placement: &Placement, config: &Config, origin: Origin) {
    let q = placement.side(Side::Q);
    let chunks = q.owners().len() as i64;
    let why = match origin {
        Origin::Planner => {
            let kind = format!("{:?}", config.placement).to_lowercase();
            let size = if config.chunk_size > 0 {
                "as the config asks"
            } else {
                "chosen by the planner"
            };
            format!("made for this mask by the rule \"{kind}\", chunk size {size}")
        }
        Origin::Caller => "given by the caller chunk by chunk; the planner moved nothing".to_owned(),
        Origin::OtherKey => "that of the key this one was made from; the planner moved nothing".to_owned(),
    };
    lines.push(format!("placement: {why}"));
    let runs = q.all_runs().len() as i64;
    lines.push(format!(
        "  {} of up to {} in {}, {:.1} a rank",
        count(chunks, "chunk"),
        count(q.chunk_size(), "query token"),
        count(runs, "contiguous run"),
        runs as f64 / placement.world() as f64
    ));
    lines.push(if q.total() == placement.side(Side::K).total() {
        "  keys lie with the queries of the same position".to_owned()
    } else {
        "  there are not as many keys as queries: each side has a placement of its own".to_owned()
    });
}

/// A table of ranks.
fn ranks(lines: &mut Vec<String>, own: usize, stats: &Stats) {
    let world = stats.area.len();
    let mean = stats.area.iter().sum::<i64>() as f64 / world as f64;
    let mut by_area: Vec<usize> = (0..world).collect();
    by_area.sort_by_key(|&r| (std::cmp::Reverse(stats.area[r]), r));
    let mut shown: Vec<(usize, &str)> = if world <= MOST_RANKS {
        (0..world).map(|r| (r, "")).collect()
    } else {
        vec![
            (by_area[0], "most"),
            (by_area[world / 2], "median"),
            (by_area[world - 1], "least"),
        ]
    };
    match shown.iter_mut().find(|s| s.0 == own) {
        Some(this) if this.1.is_empty() => this.1 = "this rank",
        Some(_) => {}
        None => shown.push((own, "this rank")),
    }
    lines.push(format!(
        "  {:>6} {:>12} {:>12} {:>20} {:>9} {:>14} {:>14}",
        "rank", "queries", "keys", "cells", "of mean", "keys sent", "keys received"
    ));
    for (r, note) in shown {
        let share = if mean > 0.0 {
            stats.area[r] as f64 / mean
        } else {
            1.0
        };
        let line = format!(
            "  {r:>6} {:>12} {:>12} {:>20} {share:>9.3} {:>14} {:>14}  {note}",
            thousands(stats.tokens_q[r]),
            thousands(stats.tokens_k[r]),
            thousands(stats.area[r]),
            thousands(stats.sent[r]),
            thousands(stats.received[r])
        );
        lines.push(line.trim_end().to_owned());
    }
}

fn balance(lines: &mut Vec<String>, stats: &Stats) {
    let most = stats.area.iter().max().copied().unwrap_or(0);
    let busiest = stats.area.iter().position(|&a| a == most).unwrap_or(0);
    let over = 100.0 * (stats.balance - 1.0);
    lines.push(format!(
        "  balance {:.4}: rank {busiest} computes most, {over:.2}% above the mean",
        stats.balance
    ));
    lines.push(if stats.balance <= stats.balance_bound * 1.0005 {
        format!(
            "  no placement of these chunks in equal counts can be below {:.4}: this one is as good as any",
            stats.balance_bound
        )
    } else {
        format!(
            "  no placement of these chunks in equal counts can be below {:.4}; smaller chunks or another rule may come closer",
            stats.balance_bound
        )
    });
}

fn travel(lines: &mut Vec<String>, stats: &Stats) {
    let forward = &stats.volume[0];
    if forward.queries > 0 || stats.volume[1].queries > 0 {
        lines.push(
            "travel: queries travel to keys where that moves fewer bytes, and their outputs or gradients come back"
                .to_owned(),
        );
        for (name, v) in [("forward", forward), ("backward", &stats.volume[1])] {
            lines.push(format!(
                "  {name}: {} and {}, each counted once for every rank it goes to; {} bytes with what comes back, {:.1}% of \
                 {} if only keys travelled; no rank sends or receives more than {} ({} if only keys travelled)",
                count(v.keys, "key"),
                several(v.queries, "query", "queries"),
                thousands(v.bytes()),
                percent(v.bytes(), v.keys_only_bytes),
                thousands(v.keys_only_bytes),
                thousands(v.most_bytes()),
                thousands(v.keys_only_most_bytes)
            ));
        }
        return;
    }
    lines.push(format!(
        "travel: {} in a forward pass, each counted once for every rank it goes to: exactly what queries see and their \
         rank does not hold; {:.1}% of what all-gather moves ({})",
        count(stats.ideal_volume, "key"),
        percent(stats.ideal_volume, stats.all_gather_volume),
        thousands(stats.all_gather_volume)
    ));
}

/// What each stage of this rank waits for and computes.
fn pass(lines: &mut Vec<String>, name: &str, pass: &Pass, forward: bool) {
    let total: i64 = pass.stages.iter().map(Stage::cells).sum();
    lines.push(format!(
        "{name} pass of this rank: {}, {} in all",
        count(pass.stages.len() as i64, "stage"),
        count(total, "cell")
    ));
    for (i, stage) in pass.stages.iter().enumerate() {
        let guests = &stage.guests;
        let from = origins(&stage.transfer);
        let mut waits = if from.is_empty() {
            "waits for nothing".to_owned()
        } else {
            format!("waits for {}: {from}", count(stage.transfer.recv_rows, "key"))
        };
        if guests.transfer.recv_rows > 0 {
            let queries = several(guests.transfer.recv_rows, "query", "queries");
            let link = if from.is_empty() { "waits for" } else { "and for" };
            let before = if from.is_empty() {
                String::new()
            } else {
                waits + ", "
            };
            waits = format!("{before}{link} {queries}: {}", origins(&guests.transfer));
        }
        let mut line = format!(
            "  stage {i}: {waits}; computes {} in {} ({:.1}%)",
            count(stage.cells(), "cell"),
            count((stage.slices.len() + guests.slices.len()) as i64, "local slice"),
            percent(stage.cells(), total)
        );
        if pass
            .stages
            .get(i + 1)
            .is_some_and(|s| !s.recv.is_empty() || !s.guests.recv.is_empty())
        {
            // Writing to a String cannot fail.
            let _ = write!(line, " while stage {} travels", i + 1);
        }
        if !forward && !from.is_empty() {
            line.push_str("; then the gradients of its keys go back");
        }
        if guests.transfer.recv_rows > 0 {
            let what = if forward { "outputs" } else { "gradients" };
            // Writing to a String cannot fail.
            let _ = write!(line, "; then the {what} of its queries go home");
        }
        lines.push(line);
    }
}
