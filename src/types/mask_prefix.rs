//! Masks of shared prefixes: trees of continuations, several answers to one question.

use super::{Band, Error, Mask, Range, Ranges, Result, Slice};

/// Most slices that a tree may need: siblings in an unlucky order need one for each pair.
const MAX_SLICES: usize = 1 << 20;

/// Where each node's tokens lie; checks lengths and parents.
fn place(parents: &[i64], lengths: &[i64]) -> Result<Vec<Range>> {
    if parents.len() != lengths.len() {
        return Err(Error::argument(format!(
            "lengths has {} elements; it must have as many as parents, {}",
            lengths.len(),
            parents.len()
        )));
    }
    let mut nodes = Vec::with_capacity(lengths.len());
    let mut end = 0;
    for (i, (&parent, &length)) in parents.iter().zip(lengths).enumerate() {
        if !(-1..i as i64).contains(&parent) {
            return Err(Error::argument(format!(
                "parents[{i}] is {parent}; it must be -1 (a root) or a node before it"
            )));
        }
        if !(0..=Mask::MAX_TOKENS - end).contains(&length) {
            return Err(Error::range(format!(
                "lengths[{i}] is {length}; it must be 0 or more, and all together at most {}",
                Mask::MAX_TOKENS
            )));
        }
        nodes.push(Range::new(end, end + length));
        end += length;
    }
    Ok(nodes)
}

impl Mask {
    /// A forest of token sequences that share prefixes: node i continues node `parents[i]`, or starts a tree of its
    /// own where that is -1. A token sees all tokens of its node's ancestors, and its own node up to itself.
    ///
    /// Nodes lie one after the other in the order given, node i with `lengths[i]` tokens, parents before children.
    /// In depth-first order there is one slice a node.
    ///
    /// `Status::InvalidArgument` for lists of different length, a parent that does not come before its child, and
    /// orders that need more than 2^20 slices; `Status::InvalidRange` for a negative length or too many tokens.
    pub fn from_prefix_tree(parents: &[i64], lengths: &[i64]) -> Result<Mask> {
        let nodes = place(parents, lengths)?;
        let total = nodes.last().map_or(0, |n| n.end);
        let mut below: Vec<Vec<Range>> = vec![Vec::new(); nodes.len()];
        let mut slices = Vec::new();
        // From the last node on, all that continues a node has been gathered when its turn comes.
        for (i, own) in nodes.iter().enumerate().rev() {
            let mut readers = std::mem::take(&mut below[i]);
            readers.push(*own);
            let readers = Ranges::from_unsorted(readers);
            if !own.is_empty() {
                slices.extend(readers.iter().map(|&rows| reading(rows, *own)));
            }
            if slices.len() > MAX_SLICES {
                let message = format!("this order of nodes needs more than {MAX_SLICES} slices");
                return Err(Error::argument(message));
            }
            if parents[i] >= 0 {
                below[parents[i] as usize].extend(readers.iter());
            }
        }
        slices.reverse();
        Mask::from_slices(slices, total, total)
    }

    /// One question of `prefix` tokens and several answers to it, one after the other: answers see the question and
    /// themselves, each token causally. Errors as `from_prefix_tree`, where the question is node 0.
    pub fn from_share_question(prefix: i64, answers: &[i64]) -> Result<Mask> {
        let mut parents = vec![0; answers.len() + 1];
        parents[0] = -1;
        let lengths: Vec<i64> = std::iter::once(prefix).chain(answers.iter().copied()).collect();
        Mask::from_prefix_tree(&parents, &lengths)
    }
}

/// `rows` see the keys of a node up to themselves; all of them where they lie behind it.
fn reading(rows: Range, keys: Range) -> Slice {
    Slice::new(rows, keys, Band::new(Band::NO_LO, 0)).tighten()
}
