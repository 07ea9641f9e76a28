//! What other placements of the same mask would come to.

use super::{Explanation, microseconds, percent};
use crate::plan::{Placement, Stats};
use crate::types::draw::thousands;
use crate::types::{Config, Effort, PlacementKind, Result, Side};

/// A table of this placement and others, and what it won over the one by area alone.
pub(super) fn compare(lines: &mut Vec<String>, of: &Explanation<'_>) -> Result<()> {
    let chunk_size = of.plan.placement.side(Side::Q).chunk_size();
    let by_area = Config {
        placement: PlacementKind::Balanced,
        effort: Effort::Balance,
        chunk_size,
        ..*of.config
    };
    let plain = |placement| Config {
        placement,
        chunk_size: 0,
        ..*of.config
    };
    lines
        .push("  against other placements of this mask, times as predicted for the slowest rank:".to_owned());
    lines.push(format!(
        "  {:>18} {:>10} {:>16} {:>15} {:>15}",
        "", "balance", "keys that travel", "forward", "backward"
    ));
    row(lines, "this one", of.stats);
    let mut others = Vec::new();
    for (name, config) in [
        ("by area alone", by_area),
        ("contiguous blocks", plain(PlacementKind::Sequential)),
        ("zigzag", plain(PlacementKind::Zigzag)),
    ] {
        let placement = Placement::new(of.mask, of.plan.world, &config)?;
        if placement == *of.plan.placement {
            lines.push(format!("  {name:>18} the same"));
            others.push(None);
            continue;
        }
        let stats = Stats::new(of.mask, &placement, of.shape, of.config)?;
        row(lines, name, &stats);
        others.push(Some(stats));
    }
    if let Some(Some(other)) = others.first() {
        lines.push(verdict(of.stats, other));
    }
    Ok(())
}

fn row(lines: &mut Vec<String>, name: &str, stats: &Stats) {
    let most = |times: &[i64]| microseconds(times.iter().copied().max().unwrap_or(0));
    lines.push(format!(
        "  {name:>18} {:>10.4} {:>16} {:>15} {:>15}",
        stats.balance,
        thousands(stats.volume[0].keys),
        most(&stats.forward_ns),
        most(&stats.backward_ns)
    ));
}

/// What travels and is computed on this placement against that by area alone.
fn verdict(this: &Stats, by_area: &Stats) -> String {
    let (this_volume, other) = (&this.volume[0], &by_area.volume[0]);
    let queries = this_volume.queries + other.queries > 0;
    // Keys alone do not tell how much travels where queries do too.
    let (what, moved, by) = if queries {
        ("bytes", this_volume.bytes(), other.bytes())
    } else {
        ("keys", this_volume.keys, other.keys)
    };
    let keys = match by - moved {
        0 => format!("as many {what} travel as by area alone"),
        _ if by == 0 => format!("{what} travel, and none by area alone"),
        saved @ 1.. => format!(
            "{:.1}% fewer {what} travel than by area alone",
            percent(saved, by)
        ),
        more => format!("{:.1}% more {what} travel than by area alone", percent(-more, by)),
    };
    let over = 100.0 * (this.balance / by_area.balance - 1.0);
    let how = if over < 0.0 { "fewer" } else { "more" };
    format!(
        "  {keys}; the busiest rank computes {:.2}% {how} cells",
        over.abs()
    )
}
