//! Masks of videos: frames that see a window of frames.

use super::{Band, Error, Mask, Range, Result, Slice};

/// Most slices that are made: one a frame.
const MAX_SLICES: i64 = 1 << 20;

/// A window of frames, checked.
struct Video {
    frames: i64,
    tokens: i64,
    /// Frames seen on either side; as many as there are for all.
    window: i64,
    causal: bool,
}

impl Video {
    fn new(frames: i64, tokens: i64, window: i64, causal: bool) -> Result<Video> {
        for (name, value, least) in [
            ("frames", frames, 0),
            ("tokens_per_frame", tokens, 1),
            ("window", window, -1),
        ] {
            if value < least {
                return Err(Error::argument(format!(
                    "{name} is {value}; it must be {least} or more"
                )));
            }
        }
        let total = frames.checked_mul(tokens).unwrap_or(i64::MAX);
        if total > Mask::MAX_TOKENS {
            return Err(Error::range(format!(
                "frames x tokens_per_frame is {frames} x {tokens}; it must be at most {}",
                Mask::MAX_TOKENS
            )));
        }
        if frames > MAX_SLICES {
            return Err(Error::argument(format!(
                "frames is {frames}; it must be at most {MAX_SLICES}"
            )));
        }
        let window = if window == -1 { frames } else { window.min(frames) };
        Ok(Video {
            frames,
            tokens,
            window,
            causal,
        })
    }

    /// The frames that `frame` sees in its window.
    fn seen(&self, frame: i64) -> Range {
        let after = if self.causal { 0 } else { self.window };
        Range::new((frame - self.window).max(0), (frame + after + 1).min(self.frames))
    }

    /// The tokens of `frames`.
    fn tokens(&self, frames: Range) -> Range {
        Range::new(frames.start * self.tokens, frames.end * self.tokens)
    }
}

impl Mask {
    /// `frames` frames of `tokens_per_frame` tokens each. A token sees all tokens of its own frame and of `window`
    /// frames on either side (-1 for all), of those before it only when `causal`; with `first_frame` also all tokens
    /// of the first frame, however far.
    ///
    /// `Status::InvalidArgument` for a negative number of frames or more than 2^20, no token a frame, or a window below
    /// -1; `Status::InvalidRange` for too many tokens.
    pub fn from_video(
        frames: i64,
        tokens_per_frame: i64,
        window: i64,
        first_frame: bool,
        causal: bool,
    ) -> Result<Mask> {
        let video = Video::new(frames, tokens_per_frame, window, causal)?;
        let mut slices: Vec<Slice> = Vec::new();
        let mut frame = 0;
        while frame < frames {
            // Frames that see the same others, as those of a wide window do, are one slice.
            let seen = video.seen(frame);
            let first = frame;
            while frame < frames && video.seen(frame) == seen {
                frame += 1;
            }
            let rows = video.tokens(Range::new(first, frame));
            slices.push(Slice::new(rows, video.tokens(seen), Band::FULL));
        }
        let beyond = Range::new(video.window + 1, frames);
        if first_frame && !beyond.is_empty() {
            let keys = video.tokens(Range::new(0, 1));
            slices.push(Slice::new(video.tokens(beyond), keys, Band::FULL));
        }
        let total = frames * tokens_per_frame;
        Mask::from_slices(slices, total, total)
    }
}
