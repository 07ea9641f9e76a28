//! The picture of a mask.

use super::plot::{MOST_PIECES, Plot};
use super::svg::{Anchor, Svg, thousands};
use crate::types::{Mask, MaskType, Slice};

/// Colours of the four types, in the order of their numbers.
const COLOURS: [&str; 4] = ["#4c84d4", "#3fa66b", "#e08b2f", "#8b6fc9"];
const TYPES: [MaskType; 4] = [
    MaskType::Full,
    MaskType::Causal,
    MaskType::InvCausal,
    MaskType::BiCausal,
];

/// The plot's longer side in pixels.
const SIZE: f64 = 480.0;

impl Mask {
    /// The mask as SVG: its slices as typed pieces, coloured by type; with many slices a grid of shades. At most some
    /// hundred kilobytes.
    pub fn draw(&self) -> String {
        let plot = Plot::new(84.0, 84.0, SIZE, self.total_q(), self.total_k());
        let (width, height) = (84.0 + SIZE + 26.0, 84.0 + plot.height() + 50.0);
        let mut svg = Svg::new(width as i64, height as i64);
        let cells = self.total_q() * self.total_k();
        svg.heading(
            20.0,
            30.0,
            &format!(
                "{} queries, {} keys, {} {}",
                thousands(self.total_q()),
                thousands(self.total_k()),
                thousands(self.slices().len() as i64),
                if self.slices().len() == 1 {
                    "slice"
                } else {
                    "slices"
                }
            ),
        );
        let percent = 100.0 * self.area() as f64 / cells.max(1) as f64;
        let visible = format!("{} visible cells ({percent:.1}%)", thousands(self.area()));
        svg.text(20.0, 49.0, Anchor::Start, "dim", &visible);
        plot.frame(&mut svg);
        let pieces: Vec<(Slice, usize)> = self
            .to_typed()
            .iter()
            .map(|t| (Slice::from_typed(t), t.mask_type as usize))
            .collect();
        let colours = COLOURS.map(str::to_owned);
        if pieces.len() > MOST_PIECES {
            // Shades have no type.
            plot.shaded(&mut svg, &pieces, &colours, |_| 0);
        } else {
            plot.parted_pieces(&mut svg, &pieces, &colours);
        }
        legend(&mut svg, &pieces, 84.0 + plot.height() + 24.0);
        svg.finish()
    }
}

/// The types that occur, or what shades mean.
fn legend(svg: &mut Svg, pieces: &[(Slice, usize)], y: f64) {
    let mut x = 84.0;
    if pieces.len() > MOST_PIECES {
        let words = "too many slices to draw each: the darker, the more cells are visible";
        svg.text(x, y + 11.0, Anchor::Start, "dim", words);
        return;
    }
    for (i, mask_type) in TYPES.iter().enumerate() {
        if pieces.iter().any(|p| p.1 == i) {
            svg.rect([x, y, 13.0, 13.0], COLOURS[i]);
            svg.text(x + 19.0, y + 11.0, Anchor::Start, "ink", mask_type.name());
            x += 105.0;
        }
    }
}
