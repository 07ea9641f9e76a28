//! Pictures as SVG: a writer, colours, and the plot of a mask.
//!
//! Sizes are bounded whatever is drawn: many pieces become a grid of shades.

mod mask;
mod plot;
mod svg;

pub use plot::{MOST_PIECES, Plot};
pub use svg::{Anchor, Svg, rank_colour, short, thousands};
