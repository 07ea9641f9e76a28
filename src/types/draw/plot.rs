//! The plane of queries and keys, and pieces of masks on it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::svg::{Anchor, Svg, short, thousands};
use crate::types::{Range, Slice};

/// More pieces than this are drawn as a grid of shades.
/// cbindgen:ignore
pub const MOST_PIECES: usize = 2000;
/// Rows and columns of that grid.
const GRID: i64 = 112;
/// Where a token is so many pixels wide, the steps of a diagonal are drawn.
const STEP: f64 = 4.0;
/// Pieces with both sides longer than this many pixels are parted by a line.
const PARTED: f64 = 5.0;

/// A rectangle of the picture that stands for all cells of a mask: keys to the right, queries downwards.
pub struct Plot {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    total_q: i64,
    total_k: i64,
}

impl Plot {
    /// A plot at (left, top) whose longer side is `size` pixels, in proportion to the totals as far as both sides can
    /// be seen.
    pub fn new(left: f64, top: f64, size: f64, total_q: i64, total_k: i64) -> Plot {
        let (q, k) = (total_q.max(1) as f64, total_k.max(1) as f64);
        let side = |a: f64, b: f64| size * (a / a.max(b)).max(0.2);
        Plot {
            left,
            top,
            width: side(k, q),
            height: side(q, k),
            total_q,
            total_k,
        }
    }

    /// Height in pixels.
    pub fn height(&self) -> f64 {
        self.height
    }

    fn x(&self, key: f64) -> f64 {
        self.left + key * self.width / self.total_k.max(1) as f64
    }

    fn y(&self, query: f64) -> f64 {
        self.top + query * self.height / self.total_q.max(1) as f64
    }

    /// The ground with its axes.
    pub fn frame(&self, svg: &mut Svg) {
        svg.rect([self.left, self.top, self.width, self.height], "plot");
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        svg.text(self.left, self.top - 7.0, Anchor::Start, "dim", "keys \u{2192}");
        svg.text(right, self.top - 7.0, Anchor::End, "dim", &total(self.total_k));
        let edge = self.left - 7.0;
        svg.text(edge, self.top + 12.0, Anchor::End, "dim", "queries");
        svg.text(edge, self.top + 28.0, Anchor::End, "dim", "\u{2193}");
        svg.text(edge, bottom, Anchor::End, "dim", &total(self.total_q));
    }

    /// Draws pieces, each with an index into `colours`, at most `MOST_PIECES` of them; more go to `shaded`.
    pub fn pieces(&self, svg: &mut Svg, pieces: &[(Slice, usize)], colours: &[String]) {
        self.draw(svg, pieces, colours, f64::INFINITY);
    }

    /// As `pieces`, with a thin line around each that is large enough.
    pub fn parted_pieces(&self, svg: &mut Svg, pieces: &[(Slice, usize)], colours: &[String]) {
        self.draw(svg, pieces, colours, PARTED);
    }

    fn draw(&self, svg: &mut Svg, pieces: &[(Slice, usize)], colours: &[String], parted_from: f64) {
        // One path for each colour, those of small pieces apart: a parting line would hide them.
        let mut paths: BTreeMap<(usize, bool), String> = BTreeMap::new();
        for (slice, colour) in pieces {
            let slice = slice.tighten();
            if slice.q.is_empty() {
                continue;
            }
            let parted = self.x(slice.k.len() as f64) - self.left > parted_from
                && self.y(slice.q.len() as f64) - self.top > parted_from;
            self.outline(&slice, paths.entry((*colour, parted)).or_default());
        }
        for ((colour, parted), path) in paths {
            let fill = &colours[colour];
            let look = if parted {
                format!("class=\"cut\" fill=\"{fill}\"")
            } else {
                format!("fill=\"{fill}\" stroke=\"{fill}\" stroke-width=\".5\"")
            };
            svg.path(&path, &look);
        }
    }

    /// Adds the border of a tight slice to a path.
    fn outline(&self, s: &Slice, path: &mut String) {
        let (top, bottom) = (s.q.start, s.q.end);
        let step = self.width / self.total_k.max(1) as f64 >= STEP
            && self.height / self.total_q.max(1) as f64 >= STEP
            && (s.band.has_lo() || s.band.has_hi());
        let mut points: Vec<(f64, f64)> = Vec::new();
        if step {
            for q in top..bottom {
                points.extend([(s.k_hi(q), q), (s.k_hi(q), q + 1)].map(|(k, q)| (k as f64, q as f64)));
            }
            for q in (top..bottom).rev() {
                points.extend([(s.k_lo(q), q + 1), (s.k_lo(q), q)].map(|(k, q)| (k as f64, q as f64)));
            }
        } else {
            let right = |q: i64| (s.k.end.min(q + s.band.hi + 1) as f64, q as f64);
            let left = |q: i64| (s.k.start.max(q + s.band.lo) as f64, q as f64);
            let bend = |q: i64| (top < q && q < bottom).then_some(q);
            points.push(right(top));
            points.extend(bend(s.k.end - s.band.hi - 1).map(right));
            points.push(right(bottom));
            points.push(left(bottom));
            points.extend(bend(s.k.start - s.band.lo).map(left));
            points.push(left(top));
        }
        for (i, (k, q)) in points.into_iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            // Writing to a String cannot fail.
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(k), self.y(q));
        }
        path.push('z');
    }

    /// A grid whose shades say how much of each cell is visible, in the colour of its middle row.
    pub fn shaded(
        &self,
        svg: &mut Svg,
        pieces: &[(Slice, usize)],
        colours: &[String],
        colour_of: impl Fn(i64) -> usize,
    ) {
        let (rows, columns) = (Lines::new(self.total_q), Lines::new(self.total_k));
        let mut areas = vec![0i64; (rows.count * columns.count) as usize];
        for (slice, _) in pieces {
            let slice = slice.tighten();
            for r in rows.met(&slice.q) {
                let part = slice.cut(&rows.line(r), &slice.k).tighten();
                for c in columns.met(&part.k) {
                    areas[(r * columns.count + c) as usize] += part.cut(&part.q, &columns.line(c)).area();
                }
            }
        }
        let mut paths: BTreeMap<(usize, i64), String> = BTreeMap::new();
        for r in 0..rows.count {
            let row = rows.line(r);
            let colour = colour_of(row.start + row.len() / 2);
            let shade = |c: i64| {
                let cells = (row.len() * columns.line(c).len()).max(1);
                (areas[(r * columns.count + c) as usize] * 4 + cells - 1) / cells
            };
            let mut c = 0;
            while c < columns.count {
                let (first, level) = (c, shade(c));
                while c < columns.count && shade(c) == level {
                    c += 1;
                }
                if level > 0 {
                    let (x, y) = (self.x(columns.at(first) as f64), self.y(row.start as f64));
                    let (w, h) = (self.x(columns.at(c) as f64) - x, self.y(row.end as f64) - y);
                    let path = paths.entry((colour, level)).or_default();
                    // Writing to a String cannot fail.
                    let _ = write!(path, "M{x:.1} {y:.1}h{w:.1}v{h:.1}h-{w:.1}z");
                }
            }
        }
        for ((colour, level), path) in paths {
            let look = format!(
                "fill=\"{}\" fill-opacity=\".{}\"",
                colours[colour],
                level * 22 + 11
            );
            svg.path(&path, &look);
        }
    }
}

/// A total as there is room for beside a plot; titles have all digits.
fn total(tokens: i64) -> String {
    let words = thousands(tokens);
    if words.len() > 9 { short(tokens) } else { words }
}

/// Tokens cut into at most `GRID` lines that differ by at most one token.
struct Lines {
    total: i64,
    count: i64,
}

impl Lines {
    fn new(total: i64) -> Lines {
        Lines {
            total,
            count: total.min(GRID),
        }
    }

    /// First token of a line.
    fn at(&self, line: i64) -> i64 {
        self.total * line / self.count.max(1)
    }

    fn line(&self, line: i64) -> Range {
        Range::new(self.at(line), self.at(line + 1))
    }

    /// Lines that share a token with `range`.
    fn met(&self, range: &Range) -> std::ops::Range<i64> {
        if range.is_empty() {
            return 0..0;
        }
        let holding = |token: i64| {
            let guess = token * self.count / self.total;
            if self.at(guess + 1) <= token {
                guess + 1
            } else {
                guess
            }
        };
        holding(range.start)..holding(range.end - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_hold_each_token_once() {
        for total in [1, 5, 111, 112, 113, 1000, 1 << 31] {
            let lines = Lines::new(total);
            assert_eq!((lines.at(0), lines.at(lines.count)), (0, total));
            for token in [0, 1, total / 3, total / 2, total - 2, total - 1] {
                let token = token.clamp(0, total - 1);
                let met = lines.met(&Range::new(token, token + 1));
                assert_eq!(met.end - met.start, 1);
                assert!(lines.line(met.start).contains(token), "{token} of {total}");
            }
            assert_eq!(lines.met(&Range::new(0, total)), 0..lines.count);
        }
    }
}
