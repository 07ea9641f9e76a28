//! A plan in words.

mod others;
mod pass;

use super::{HostVolume, Placement, Plan, Stats};
use crate::types::draw::thousands;
use crate::types::{AttnShape, Config, Mask, Result, Side};

/// Who decided where tokens lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The planner, for this mask.
    Planner,
    /// The caller, chunk by chunk.
    Caller,
    /// Another key, whose placement this one uses.
    OtherKey,
    /// The planner, for several masks together, this one among them.
    Joint,
}

/// A plan and what it was made from.
#[derive(Clone, Copy, Debug)]
pub struct Explanation<'a> {
    /// The plan of one rank.
    pub plan: &'a Plan,
    /// Its mask.
    pub mask: &'a Mask,
    /// The attention it is for.
    pub shape: &'a AttnShape,
    /// The settings it was made with.
    pub config: &'a Config,
    /// Who placed tokens.
    pub origin: Origin,
    /// The figures of `mask` on the plan's placement.
    pub stats: &'a Stats,
    /// What crosses hosts, where it is known which ranks share one.
    pub hosts: Option<&'a HostVolume>,
}

/// With more ranks than this, only those at the ends and in the middle are listed.
const MOST_RANKS: usize = 16;

/// Why the plan is as it is, what other placements would come to, and what every stage of its rank waits for, in lines of
/// text for people. Errors as `Placement::new` for the other placements.
pub fn explain(of: &Explanation<'_>) -> Result<String> {
    let (plan, mask, stats) = (of.plan, of.mask, of.stats);
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
    place(&mut lines, &plan.placement, of.config, of.origin);
    ranks(&mut lines, plan.rank, stats);
    balance(&mut lines, stats);
    others::compare(&mut lines, of)?;
    lines.push(String::new());
    travel(&mut lines, stats);
    if let Some(volume) = of.hosts {
        hosts(&mut lines, volume, of.config.hierarchical_comm);
    }
    for (name, pass, timeline) in [
        ("forward", &plan.forward, &stats.forward),
        ("backward", &plan.backward, &stats.backward),
    ] {
        lines.push(String::new());
        pass::describe(&mut lines, name, pass, timeline, plan.rank);
    }
    lines.push(String::new());
    Ok(lines.join("\n"))
}

fn percent(part: i64, whole: i64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// "1 key", "2 keys".
fn count(n: i64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(n))
}

/// Where tokens lie, and why there.
fn place(lines: &mut Vec<String>, placement: &Placement, config: &Config, origin: Origin) {
    let q = placement.side(Side::Q);
    let chunks = q.owners().len() as i64;
    let why = match origin {
        Origin::Planner | Origin::Joint => {
            let kind = format!("{:?}", config.placement).to_lowercase();
            let size = if config.chunk_size > 0 {
                "as the config asks"
            } else {
                "chosen by the planner"
            };
            let masks = if origin == Origin::Joint {
                "this mask and others together, areas and keys by weight,"
            } else {
                "this mask"
            };
            format!("made for {masks} by the rule \"{kind}\", chunk size {size}")
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
    lines.push(format!(
        "travel: {} in a forward pass, each counted once for every rank it goes to: exactly what queries see and their \
         rank does not hold; {:.1}% of what all-gather moves ({})",
        count(stats.ideal_volume, "key"),
        percent(stats.ideal_volume, stats.all_gather_volume),
        thousands(stats.all_gather_volume)
    ));
}

/// What crosses hosts, and what stays inside one.
fn hosts(lines: &mut Vec<String>, volume: &HostVolume, two_level: bool) {
    let mesh = volume.mesh;
    let (inter, intra) = (volume.inter(), volume.intra());
    let shape = format!(
        "hosts: {} of {}",
        count(mesh.inter as i64, "host"),
        count(mesh.intra as i64, "rank")
    );
    if two_level {
        lines.push(format!(
            "{shape}; {} cross hosts, each once for every host that needs it, to the rank there with its owner's number, \
             which passes it on",
            count(inter, "key")
        ));
        lines.push(format!(
            "  straight to every rank that needs them {} would cross, {:.2} times as many; inside hosts {} from rank to \
             rank",
            thousands(volume.one_level),
            volume.one_level as f64 / inter.max(1) as f64,
            if intra == 1 { "1 key goes".to_owned() } else { format!("{} keys go", thousands(intra)) }
        ));
    } else {
        lines.push(format!(
            "{shape}; {} cross hosts, each once for every rank that needs it; {} from rank to rank inside hosts",
            count(inter, "key"),
            if intra == 1 { "1 goes".to_owned() } else { format!("{} go", thousands(intra)) }
        ));
    }
}

/// Nanoseconds as microseconds.
fn microseconds(ns: i64) -> String {
    format!("{}.{} us", thousands(ns / 1000), ns % 1000 / 100)
}
