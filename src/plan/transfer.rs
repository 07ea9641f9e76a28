//! Who sends which rows to whom.

use super::side::{SidePlacement, concatenate};
use crate::types::{Piece, Range, Ranges, Transfer};

/// The transfer of one stage, as `rank` sees it. `fetched(peer)` is what that rank fetches in the stage.
///
/// A piece is where a fetched range meets an owned run; sender and receiver both find it that way, so they agree on
/// the number, order and length of pieces without a message.
pub(super) fn transfer<'a>(
    keys: &SidePlacement,
    rank: usize,
    fetched: impl Fn(usize) -> &'a Ranges,
) -> Transfer {
    let own = concatenate(keys.runs(rank).as_slice());
    let mut sends = Vec::new();
    for peer in (0..keys.world()).filter(|&p| p != rank) {
        let wanted = fetched(peer).as_slice();
        let mut next = 0;
        for run in &own {
            next += wanted[next..].partition_point(|w| w.end <= run.tokens.start);
            for range in wanted[next..].iter().take_while(|w| w.start < run.tokens.end) {
                let rows = range.intersect(&run.tokens).shift(run.row - run.tokens.start);
                let peer = peer as u32;
                sends.push(Piece { peer, rows });
            }
        }
    }
    let mut recvs = Vec::new();
    let mut recv_rows = 0;
    for buffer in concatenate(fetched(rank).as_slice()) {
        for (peer, tokens) in owned_pieces(keys, buffer.tokens) {
            let rows = tokens.shift(buffer.row - buffer.tokens.start);
            recvs.push(Piece { peer, rows });
        }
        recv_rows = buffer.row + buffer.tokens.len();
    }
    recvs.sort_unstable_by_key(|p| (p.peer, p.rows));
    Transfer {
        sends,
        recvs,
        recv_rows,
    }
}

/// `tokens` cut at the ends of owned runs, with the owner of each piece.
pub(super) fn owned_pieces(keys: &SidePlacement, tokens: Range) -> impl Iterator<Item = (u32, Range)> {
    keys.all_runs()[keys.first_run_after(tokens.start)..]
        .iter()
        .take_while(move |run| run.tokens.start < tokens.end)
        .map(move |run| (run.owner, run.tokens.intersect(&tokens)))
}
