//! Masks that training code asks for by name: packed documents, windows, blocks.

use super::{Band, Error, Mask, Range, Result, Slice};

/// Which keys the queries of one document see, before its position in the batch is known.
struct Pattern {
    /// Keys visible to the left of the diagonal; `None` for all.
    left: Option<i64>,
    /// Keys visible to the right of the diagonal; `None` for all.
    right: Option<i64>,
    /// Whether the right side bounds the global keys too.
    causal: bool,
    /// Keys at the start of the document that every query sees.
    global: i64,
}

impl Pattern {
    fn new(causal: bool, window: (i64, i64), global_window: i64) -> Result<Pattern> {
        let side = |name: &str, value: i64| match value {
            -1 => Ok(None),
            0.. => Ok(Some(value.min(Mask::MAX_TOKENS))),
            _ => Err(Error::argument(format!(
                "{name} is {value}; it must be -1 (unlimited) or more"
            ))),
        };
        let left = side("window_left", window.0)?;
        let right = side("window_right", window.1)?;
        if global_window < 0 {
            return Err(Error::argument(format!(
                "global_window is {global_window}; it must be 0 or more"
            )));
        }
        Ok(Pattern {
            left,
            right: if causal { Some(0) } else { right },
            causal,
            global: global_window,
        })
    }

    /// Adds the slices of the document with queries `q` and keys `k`.
    fn push(&self, q: Range, k: Range, out: &mut Vec<Slice>) {
        let diagonal = k.end - q.end;
        let window = Band::new(
            self.left.map_or(Band::NO_LO, |n| diagonal - n),
            self.right.map_or(Band::NO_HI, |n| diagonal + n),
        );
        let seen_by_all = if self.causal {
            Band::new(Band::NO_LO, window.hi)
        } else {
            Band::FULL
        };
        // Where the window hides nothing from the global keys, one slice says it all.
        let global = if window == seen_by_all { 0 } else { self.global };
        let split = k.start + global.min(k.len());
        for slice in [
            Slice::new(q, Range::new(k.start, split), seen_by_all),
            Slice::new(q, Range::new(split, k.end), window),
        ] {
            if !slice.is_empty() {
                out.push(slice.tighten());
            }
        }
    }
}

/// Most slices that a block-causal builder makes: a slice is 48 bytes, and a total of `Mask::MAX_TOKENS` in small
/// blocks would otherwise take all memory of the machine.
const MAX_BLOCK_SLICES: u64 = 1 << 20;

/// `cu` must start at 0 and never fall; gives the last element.
fn check_cu_seqlens(name: &str, cu: &[i64]) -> Result<i64> {
    let (Some(&first), Some(&last)) = (cu.first(), cu.last()) else {
        return Err(Error::argument(format!(
            "{name} has 0 elements; it must have at least 1, the leading 0"
        )));
    };
    if first != 0 {
        return Err(Error::range(format!("{name}[0] is {first}; it must be 0")));
    }
    if let Some(i) = (1..cu.len()).find(|&i| cu[i] < cu[i - 1]) {
        return Err(Error::range(format!(
            "{name}[{i}] is {}; it must be at least {name}[{}], which is {}",
            cu[i],
            i - 1,
            cu[i - 1]
        )));
    }
    if last > Mask::MAX_TOKENS {
        return Err(Error::range(format!(
            "{name}[{}] is {last}; it must be at most {}",
            cu.len() - 1,
            Mask::MAX_TOKENS
        )));
    }
    Ok(last)
}

impl Mask {
    /// Packed documents: the queries `cu_seqlens_q[i]..cu_seqlens_q[i + 1]` see keys of
    /// `cu_seqlens_k[i]..cu_seqlens_k[i + 1]` only. The totals are the last elements.
    ///
    /// Positions compare along the diagonal that ends in the document's bottom-right corner. `causal` hides the keys
    /// right of it. `window` = (left, right) shows that many keys on either side of it, -1 meaning all; a causal
    /// window of w keys is (w - 1, 0). With `causal`, right counts as 0. The first `global_window` keys of each
    /// document are visible to every query of the document, except those that `causal` hides.
    ///
    /// Lists of different length, an empty list, and windows below -1 are `Status::InvalidArgument`; a list that does
    /// not start at 0, that falls, or that ends above `Mask::MAX_TOKENS` is `Status::InvalidRange`.
    pub fn from_cu_seqlens(
        cu_seqlens_q: &[i64],
        cu_seqlens_k: &[i64],
        causal: bool,
        window: (i64, i64),
        global_window: i64,
    ) -> Result<Mask> {
        let total_q = check_cu_seqlens("cu_seqlens_q", cu_seqlens_q)?;
        let total_k = check_cu_seqlens("cu_seqlens_k", cu_seqlens_k)?;
        if cu_seqlens_q.len() != cu_seqlens_k.len() {
            return Err(Error::argument(format!(
                "cu_seqlens_k has {} elements; it must have as many as cu_seqlens_q, {}",
                cu_seqlens_k.len(),
                cu_seqlens_q.len()
            )));
        }
        let pattern = Pattern::new(causal, window, global_window)?;
        let mut slices = Vec::with_capacity(cu_seqlens_q.len());
        for (q, k) in cu_seqlens_q.windows(2).zip(cu_seqlens_k.windows(2)) {
            pattern.push(Range::new(q[0], q[1]), Range::new(k[0], k[1]), &mut slices);
        }
        Mask::from_slices(slices, total_q, total_k)
    }

    /// One document of `total_q` queries and `total_k` keys; `window` and `global_window` as in `from_cu_seqlens`
    /// without `causal`.
    pub fn from_sliding_window(
        total_q: i64,
        total_k: i64,
        window: (i64, i64),
        global_window: i64,
    ) -> Result<Mask> {
        Mask::check_totals(total_q, total_k)?;
        let mut slices = Vec::new();
        Pattern::new(false, window, global_window)?.push(
            Range::new(0, total_q),
            Range::new(0, total_k),
            &mut slices,
        );
        Mask::from_slices(slices, total_q, total_k)
    }

    /// `total` tokens in blocks of `block`, the last one perhaps short: a token sees its own block and all before it.
    ///
    /// `block` below 1, or so small that more than 2^20 slices would be needed, is `Status::InvalidArgument`.
    pub fn from_block_causal(total: i64, block: i64) -> Result<Mask> {
        if !(0..=Mask::MAX_TOKENS).contains(&total) {
            return Err(Error::range(format!(
                "total is {total}; it must be 0 to {}",
                Mask::MAX_TOKENS
            )));
        }
        Mask::from_block_causal_cu_seqlens(&[0, total], block)
    }

    /// Packed documents, each block-causal in itself as in `from_block_causal`; queries and keys are cut alike.
    /// Errors of the list as in `from_cu_seqlens`.
    pub fn from_block_causal_cu_seqlens(cu_seqlens: &[i64], block: i64) -> Result<Mask> {
        let total = check_cu_seqlens("cu_seqlens", cu_seqlens)?;
        if block < 1 {
            return Err(Error::argument(format!("block is {block}; it must be 1 or more")));
        }
        // Blocks of one token are the causal mask, which needs one slice a document.
        if block == 1 {
            return Mask::from_cu_seqlens(cu_seqlens, cu_seqlens, true, (-1, -1), 0);
        }
        let blocks = |d: &[i64]| (d[1] - d[0]).unsigned_abs().div_ceil(block.unsigned_abs());
        let count: u64 = cu_seqlens.windows(2).map(blocks).sum();
        if count > MAX_BLOCK_SLICES {
            return Err(Error::argument(format!(
                "block is {block}, which makes {count} slices of {total} tokens; at most {MAX_BLOCK_SLICES} are made"
            )));
        }
        let mut slices = Vec::with_capacity(count as usize);
        for d in cu_seqlens.windows(2) {
            let mut start = d[0];
            while start < d[1] {
                let end = start + block.min(d[1] - start);
                slices.push(Slice::new(
                    Range::new(start, end),
                    Range::new(d[0], end),
                    Band::FULL,
                ));
                start = end;
            }
        }
        Mask::from_slices(slices, total, total)
    }
}
