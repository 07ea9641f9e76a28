//! Writes SVG.

use std::fmt::Write;

/// Which end of a text its position names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The left end.
    Start,
    /// The middle.
    Middle,
    /// The right end.
    End,
}

/// A picture in the making. Positions are pixels from the top left.
///
/// Elements take a class or a colour: `bg` (background), `plot` (ground of a plot), `ink` and `dim` (text), `line`
/// (thin lines), `cut` (lines that part neighbours), `on` (text on a colour). Classes follow the viewer's light or dark scheme; colours are
/// chosen to be seen on both.
#[derive(Clone, Debug)]
pub struct Svg {
    text: String,
}

const STYLE: &str = "<style>.bg{fill:#fff}.plot{fill:#f1f3f6}.ink{fill:#1c2430}.dim{fill:#596474}\
.line{stroke:#aab3bf;fill:none}.cut{stroke:#fff}.on{fill:#fff}\
@media(prefers-color-scheme:dark){.bg{fill:#14181f}.plot{fill:#20262f}.ink{fill:#e6eaf0}.dim{fill:#9da8b7}\
.line{stroke:#566170;fill:none}.cut{stroke:#14181f}}</style>";

// Writing to a String cannot fail, so the results of `write!` are dropped throughout.
impl Svg {
    /// An empty picture of `width` x `height` pixels.
    pub fn new(width: i64, height: i64) -> Svg {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif\" \
             font-size=\"13\">{STYLE}<rect class=\"bg\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>"
        );
        Svg { text }
    }

    /// A rectangle (x, y, width, height) of a class, or of a colour if `look` starts with `#`.
    pub fn rect(&mut self, [x, y, w, h]: [f64; 4], look: &str) {
        let look = look_attribute(look, "fill");
        let _ = writeln!(
            self.text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" {look}/>"
        );
    }

    /// A path with the attributes given.
    pub fn path(&mut self, d: &str, attributes: &str) {
        if !d.is_empty() {
            let _ = writeln!(self.text, "<path {attributes} d=\"{d}\"/>");
        }
    }

    /// A thin line from (x, y) to (x, y).
    pub fn line(&mut self, [x0, y0, x1, y1]: [f64; 4], dashed: bool) {
        let dash = if dashed { " stroke-dasharray=\"4 3\"" } else { "" };
        let _ = writeln!(
            self.text,
            "<path class=\"line\"{dash} d=\"M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}\"/>"
        );
    }

    /// Text on the baseline `y`.
    pub fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, words: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{words}</text>"
        );
    }

    /// A heading on the baseline `y`, from `x` on.
    pub fn heading(&mut self, x: f64, y: f64, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"ink\" font-weight=\"600\">{words}</text>"
        );
    }

    /// The picture.
    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

fn look_attribute(look: &str, property: &str) -> String {
    if look.starts_with('#') {
        format!("{property}=\"{look}\"")
    } else {
        format!("class=\"{look}\"")
    }
}

/// Of the first ranks: as far apart as ten colours can be.
const FIRST: [&str; 10] = [
    "#4c84d4", "#e08b2f", "#3fa66b", "#d2555a", "#8b6fc9", "#36a9b8", "#d678b4", "#b3a332", "#9a6b52",
    "#7c8794",
];

/// The colour of a rank, seen on light and on dark grounds.
pub fn rank_colour(rank: usize) -> String {
    if let Some(colour) = FIRST.get(rank) {
        return (*colour).to_owned();
    }
    // Steps of the golden angle around the hues, in 1,536 parts: neighbours differ, and none comes twice soon.
    let hue = (rank as i64 * 949) % 1536;
    let channel = |offset: i64| {
        let h = (hue + offset).rem_euclid(1536);
        let ramp = if h < 768 { h - 256 } else { 1280 - h };
        70 + ramp.clamp(0, 256) * (215 - 70) / 256
    };
    format!("#{:02x}{:02x}{:02x}", channel(768), channel(256), channel(-256))
}

/// A number with commas between thousands.
pub fn thousands(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut out = String::new();
    if n < 0 {
        out.push('-');
    }
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number in at most five characters.
pub fn short(n: i64) -> String {
    let units = [
        (1_000_000_000_000_000, "P"),
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
    ];
    for (unit, name) in units {
        if n >= unit {
            return format!("{:.1}{name}", n as f64 / unit as f64);
        }
    }
    if n >= 10_000 {
        format!("{:.0}k", n as f64 / 1000.0)
    } else {
        n.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn thousands_have_commas() {
        for (n, want) in [(0, "0"), (999, "999"), (1000, "1,000"), (-1234567, "-1,234,567")] {
            assert_eq!(thousands(n), want);
        }
    }

    #[test]
    fn long_numbers_are_cut_short() {
        let cases = [
            (9999, "9999"),
            (12_345, "12k"),
            (1 << 31, "2.1G"),
            (i64::MAX, "9223.4P"),
        ];
        for (n, want) in cases {
            assert_eq!(short(n), want);
        }
    }

    #[test]
    fn the_first_ranks_have_colours_of_their_own() {
        let colours: HashSet<String> = (0..64).map(rank_colour).collect();
        assert_eq!(colours.len(), 64);
        assert!(colours.iter().all(|c| c.len() == 7 && c.starts_with('#')));
    }

    #[test]
    fn words_are_escaped() {
        let mut svg = Svg::new(10, 10);
        svg.text(0.0, 0.0, Anchor::Start, "ink", "a < b & c");
        assert!(svg.finish().contains(">a &lt; b &amp; c</text>"));
    }
}
