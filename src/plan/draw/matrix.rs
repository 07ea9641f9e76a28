//! The matrix of what travels.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{LABELLED, RIGHT, TOP};
use crate::plan::traffic::Traffic;
use crate::types::draw::{Anchor, Svg, short, thousands};

/// Tokens by sender and receiver, the darker the more; `what` names them.
pub(super) fn matrix(svg: &mut Svg, traffic: &Traffic, what: &str) {
    let (left, top, n) = (RIGHT, TOP + 226.0, traffic.groups);
    let side = 224.0;
    svg.heading(left, top - 25.0, &format!("{what} that travel"));
    svg.text(left, top - 7.0, Anchor::Start, "dim", "to rank \u{2192}");
    svg.text(left - 7.0, top + 12.0, Anchor::End, "dim", "from");
    svg.text(left - 7.0, top + 28.0, Anchor::End, "dim", "rank \u{2193}");
    svg.rect([left, top, side, side], "plot");
    let cell = side / n as f64;
    let most = traffic.tokens.iter().copied().max().unwrap_or(0).max(1);
    let mut paths: BTreeMap<i64, String> = BTreeMap::new();
    for (i, &tokens) in traffic.tokens.iter().enumerate().filter(|t| *t.1 > 0) {
        let (x, y) = (left + (i % n) as f64 * cell, top + (i / n) as f64 * cell);
        // From light to full in sixteenths, so that little is seen too.
        let level = 3 + (tokens * 13 + most - 1) / most;
        // Writing to a String cannot fail.
        let _ = write!(
            paths.entry(level).or_default(),
            "M{x:.1} {y:.1}h{cell:.1}v{cell:.1}h-{cell:.1}z"
        );
    }
    for (level, path) in paths {
        let opacity = level as f64 / 16.0;
        svg.path(&path, &format!("fill=\"#4c84d4\" fill-opacity=\"{opacity:.2}\""));
    }
    for (i, &tokens) in traffic.tokens.iter().enumerate().filter(|t| *t.1 > 0) {
        if n <= 6 {
            let middle = (
                left + ((i % n) as f64 + 0.5) * cell,
                top + ((i / n) as f64 + 0.5) * cell + 4.0,
            );
            svg.text(middle.0, middle.1, Anchor::Middle, "ink", &short(tokens));
        }
    }
    if n <= LABELLED / 2 {
        for rank in 0..n {
            let x = left + (rank as f64 + 0.5) * cell;
            svg.text(x, top + side + 15.0, Anchor::Middle, "dim", &rank.to_string());
        }
    }
    let (first, last) = traffic.ranks(0);
    let mut notes = vec![
        "at most:".to_owned(),
        format!(
            "{} {}",
            thousands(most),
            if what == "keys" { what } else { "tokens" }
        ),
    ];
    if last > first {
        notes.extend(["a square:".to_owned(), format!("{} ranks each", last - first + 1)]);
    }
    for (i, note) in notes.iter().enumerate() {
        let y = top + 12.0 + 18.0 * i as f64;
        svg.text(left + side + 12.0, y, Anchor::Start, "dim", note);
    }
}
