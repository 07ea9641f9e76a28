//! Before the first transfer of a group: does every rank expect what the others send, and have its workspace? Over a mesh of
//! hosts: what passes through this rank?

use std::sync::atomic::Ordering;

use super::context::Session;
use super::gather::{Purpose, gather, gather_any};
use super::group_lists::{GroupTensor, Traffic};
use super::group_moves::Moves;
use super::group_plan::GroupPlan;
use super::group_routes::{Routes, leaving};
use super::prepare;
use crate::device::Stream;
use crate::plan::Hasher;
use crate::types::{Error, Mesh, Piece, Range, Result, Status};

/// What one rank tells the others. As many words on every rank.
struct Account {
    /// Number of the comparison.
    comparison: u64,
    /// Status of the reservation.
    reserved: i64,
    /// Of the tensors and of what they will be used for.
    tensors: u64,
    /// Hosts and ranks of a host; zeros where rows go straight to their ranks.
    mesh: [u64; 2],
    /// For each rank what goes to it and what comes from it.
    pairs: Vec<[Traffic; 2]>,
}

impl Account {
    fn to_bytes(&self) -> Vec<u8> {
        let [inter, intra] = self.mesh;
        let head = [self.comparison, self.reserved as u64, self.tensors, inter, intra];
        let words = |t: &Traffic| [t.pieces as u64, t.rows as u64, t.hash];
        let pairs = self.pairs.iter().flatten().flat_map(words);
        head.into_iter().chain(pairs).flat_map(u64::to_le_bytes).collect()
    }

    /// `bytes` are those of `to_bytes` on another rank: as many, as `gather` checked.
    fn from_bytes(bytes: &[u8]) -> Account {
        let words = words_of(bytes);
        let traffic = |w: &[u64]| Traffic {
            pieces: w[0] as i64,
            rows: w[1] as i64,
            hash: w[2],
        };
        Account {
            comparison: words[0],
            reserved: words[1] as i64,
            tensors: words[2],
            mesh: [words[3], words[4]],
            pairs: words[5..]
                .chunks_exact(6)
                .map(|w| [traffic(&w[..3]), traffic(&w[3..])])
                .collect(),
        }
    }
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    let word = |w: &[u8]| u64::from_le_bytes(w.try_into().unwrap_or_default());
    bytes.chunks_exact(8).map(word).collect()
}

/// Takes the workspace of `plan` and compares it with every rank. Fails on all ranks alike, with the communicator still
/// good: `Status::PlanMismatch` when they do not fit together, `Status::NotSupported` when there are too many pieces for a mesh, `Status::OutOfMemory` when one rank has no workspace.
/// Then opens the ways that its rows take.
pub(super) fn run(session: &mut Session<'_>, plan: &GroupPlan, stream: Stream) -> Result<()> {
    let reserved = plan.moves.get().map_or(Ok(()), |m| reserve(session, plan, m));
    let mine = Account {
        comparison: session.state.comparisons + 1,
        reserved: word(&reserved) as i64,
        tensors: hash(&plan.tensors, plan.reduce),
        mesh: plan.mesh.map_or([0, 0], |m| [m.inter as u64, m.intra as u64]),
        pairs: plan.lists.pairs.clone(),
    };
    let all = gather(session, Purpose::CompareGroups, &mine.to_bytes(), stream)?;
    session.state.comparisons += 1;
    let accounts: Vec<Account> = all.iter().map(|b| Account::from_bytes(b)).collect();
    if let Some(what) = mismatch(&accounts) {
        let message = format!("ranks disagree on the group: {what}");
        return Err(Error::new(Status::PlanMismatch, message));
    }
    if let Some(mesh) = plan.mesh {
        expect_few(pieces_leaving(&accounts, mesh))?;
    }
    match plan.mesh.filter(|_| plan.moves.get().is_none()) {
        None => prepare::everybody_has_workspace(reserved, accounts.iter().map(|a| a.reserved))?,
        Some(mesh) => plan.settle(route(session, plan, mesh, stream)?),
    }
    let peers = plan.moves()?.peers();
    session.in_step(|| session.context().comm().connect(&peers))?;
    plan.prepared.store(true, Ordering::Release);
    Ok(())
}

/// Pieces that leave their host, of all ranks. Every rank hears of each: 24 bytes.
const MOST_LEAVING: i64 = 1 << 22;

fn pieces_leaving(accounts: &[Account], mesh: Mesh) -> i64 {
    let pairs = accounts.iter().enumerate().flat_map(|(from, a)| {
        let away = a
            .pairs
            .iter()
            .enumerate()
            .filter(move |(to, _)| mesh.host(*to) != mesh.host(from));
        away.map(|(_, [sent, _])| sent.pieces)
    });
    pairs.fold(0, i64::saturating_add)
}

/// All ranks have the same number, so they refuse alike.
fn expect_few(leaving: i64) -> Result<()> {
    if leaving <= MOST_LEAVING {
        return Ok(());
    }
    let message = format!(
        "{leaving} pieces leave their host; a group over a mesh has at most {MOST_LEAVING}: join neighbouring pieces, or make the \
         plan without hierarchical_comm"
    );
    Err(Error::new(Status::NotSupported, message))
}

/// The status of a reservation, as ranks tell each other.
fn word(reserved: &Result<()>) -> u64 {
    reserved.as_ref().err().map_or(0, |e| e.status as u64)
}

fn reserve(session: &mut Session<'_>, plan: &GroupPlan, moves: &Moves) -> Result<()> {
    let bytes = plan.bytes_for(moves)?;
    session.state.arena.reserve(bytes, plan.allocator)
}

/// How the rows of `plan`, which every rank has found to fit, go over `mesh`, and the workspace for it. A rank that fails
/// between the gathers would leave the others waiting in the next one: that ends the communicator.
fn route(session: &mut Session<'_>, plan: &GroupPlan, mesh: Mesh, stream: Stream) -> Result<Moves> {
    let rank = plan.context().rank();
    let mine = words_of_pieces(&leaving(mesh, rank, &plan.lists.sends));
    let mut all = Vec::new();
    session.in_step(|| {
        all = gather_any(session, Purpose::RouteGroups, &mine, stream)?;
        Ok(())
    })?;
    let leaving: Vec<Vec<Piece>> = all.iter().map(|b| pieces_of(b)).collect();
    let routes = Routes {
        mesh,
        rank,
        sends: &plan.lists.sends,
        receives: &plan.lists.receives,
        received_rows: plan.received_rows,
        leaving: &leaving,
    };
    let fits = routes.passed_rows() <= most_rows(&plan.tensors);
    let moves = fits.then(|| Moves::over(mesh, rank, routes.plan(), plan.lists.keeps.clone()));
    let reserved = match &moves {
        Some(moves) => reserve(session, plan, moves),
        None => Err(Error::new(
            Status::OutOfMemory,
            "more rows pass through this rank than memory can hold",
        )),
    };
    session.in_step(|| {
        all = gather(
            session,
            Purpose::ReserveGroups,
            &word(&reserved).to_le_bytes(),
            stream,
        )?;
        Ok(())
    })?;
    let statuses = all.iter().map(|b| words_of(b)[0] as i64);
    prepare::everybody_has_workspace(reserved, statuses)?;
    moves.ok_or_else(|| Error::internal("workspace was taken for a group that has no routes"))
}

/// Rows of which every tensor can be as long, in its widest type.
fn most_rows(tensors: &[GroupTensor]) -> i128 {
    let widest = tensors.iter().map(|t| t.row_elements).max().unwrap_or(1);
    isize::MAX as i128 / (8 * i128::from(widest))
}

fn words_of_pieces(pieces: &[Piece]) -> Vec<u8> {
    let words = |p: &Piece| [u64::from(p.peer), p.rows.start as u64, p.rows.end as u64];
    pieces.iter().flat_map(words).flat_map(u64::to_le_bytes).collect()
}

/// `bytes` are those of `words_of_pieces` on another rank.
fn pieces_of(bytes: &[u8]) -> Vec<Piece> {
    let piece = |w: &[u64]| Piece {
        peer: w[0] as u32,
        rows: Range::new(w[1] as i64, w[2] as i64),
    };
    words_of(bytes).chunks_exact(3).map(piece).collect()
}

fn hash(tensors: &[GroupTensor], reduce: bool) -> u64 {
    let mut hasher = Hasher::new();
    hasher.words([i64::from(reduce), tensors.len() as i64]);
    for t in tensors {
        hasher.words([t.row_elements, t.dtype as i64]);
    }
    hasher.finish()
}

/// The first thing that does not fit, the same on every rank.
fn mismatch(all: &[Account]) -> Option<String> {
    let first = &all[0];
    if let Some(r) = all.iter().position(|a| a.comparison != first.comparison) {
        return Some(format!(
            "rank 0 compared it as number {}, rank {r} as number {}: calls are in another order",
            first.comparison, all[r].comparison
        ));
    }
    if let Some(r) = all.iter().position(|a| a.mesh != first.mesh) {
        let way = |a: &Account| match a.mesh {
            [0, _] => "straight to their ranks".to_owned(),
            [inter, intra] => format!("over {inter} hosts of {intra} ranks"),
        };
        return Some(format!(
            "rank {r} moves rows {}, rank 0 {} (config.hierarchical_comm, magi_comm_set_mesh)",
            way(&all[r]),
            way(first)
        ));
    }
    if let Some(r) = all.iter().position(|a| a.tensors != first.tensors) {
        return Some(format!(
            "rank {r} has other tensors or flags than rank 0 (their number, row_elements, dtypes, MAGI_GROUP_REDUCE)"
        ));
    }
    for (from, sender) in all.iter().enumerate() {
        for (to, receiver) in all.iter().enumerate() {
            let (sent, expected) = (sender.pairs[to][0], receiver.pairs[from][1]);
            if sent == expected {
                continue;
            }
            let lengths = if (sent.pieces, sent.rows) == (expected.pieces, expected.rows) {
                " of other lengths"
            } else {
                ""
            };
            return Some(format!(
                "rank {from} sends {} rows in {} pieces to rank {to}, which expects {} in {}{lengths}",
                sent.rows, sent.pieces, expected.rows, expected.pieces
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(pieces: &[i64]) -> Account {
        let sent = |&pieces: &i64| {
            let traffic = |pieces| Traffic {
                pieces,
                rows: pieces,
                hash: 0,
            };
            [traffic(pieces), traffic(0)]
        };
        Account {
            comparison: 1,
            reserved: 0,
            tensors: 0,
            mesh: [2, 2],
            pairs: pieces.iter().map(sent).collect(),
        }
    }

    #[test]
    fn pieces_that_leave_hosts_are_few() {
        let mesh = Mesh { inter: 2, intra: 2 };
        let all = [
            account(&[7, 100, 1, 2]),
            account(&[100, 7, 0, 4]),
            account(&[8, 16, 7, 100]),
            account(&[0, 0, 100, 7]),
        ];
        assert_eq!(pieces_leaving(&all, mesh), 1 + 2 + 4 + 8 + 16);
        assert!(expect_few(MOST_LEAVING).is_ok());
        let refused = expect_few(MOST_LEAVING + 1).unwrap_err();
        assert_eq!(refused.status, Status::NotSupported);
        assert!(
            refused.message.starts_with("4194305 pieces leave their host"),
            "{refused}"
        );
        let endless = [
            account(&[0, 0, i64::MAX, 0]),
            account(&[0, 0, i64::MAX, 0]),
            account(&[0; 4]),
            account(&[0; 4]),
        ];
        assert!(expect_few(pieces_leaving(&endless, mesh)).is_err());
    }
}
