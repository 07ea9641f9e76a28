//! Small tensors that every rank has, reduced over ranks: the largest logits, gradients of a shared sink.

use super::context::Session;
use super::gather::{Purpose, gather};
use super::group::{Lane, start};
use super::scratch::Scratch;
use crate::device::Stream;
use crate::types::{Piece, Range, Result, Tensor};

/// The maximum over ranks of each of the f32 `[heads]`. On a CUDA device `space` is `[ranks, heads]`.
pub(super) fn maximum(session: &Session<'_>, mine: &Tensor, space: Tensor, stream: Stream) -> Result<()> {
    let all = gathered(session, Purpose::MaxLogits, mine, space, stream)?;
    session.backend().max_rows(all.by_rank(), *mine)
}

/// The sum over ranks, in rank order, of a dense tensor in the accumulator type; their mean with `mean`. On a CUDA device
/// `space` has as many elements for every rank as `mine`, or more.
pub(super) fn sum(
    session: &Session<'_>,
    mine: Tensor,
    mean: bool,
    space: Tensor,
    stream: Stream,
) -> Result<()> {
    let (world, rows) = (session.context().size() as i64, mine.tokens());
    let all = gathered(session, Purpose::SinkGradient, &mine, space, stream)?;
    let backend = session.backend();
    backend.fill_zero(mine)?;
    for rank in 0..world {
        let part = all.tensor.rows(rank * rows, (rank + 1) * rows);
        backend.range_reduce(part, mine, &[Range::new(0, rows)])?;
    }
    if mean {
        backend.divide(mine, world)?;
    }
    Ok(())
}

/// A tensor of every rank, one after the other by rank.
struct Gathered {
    tensor: Tensor,
    world: i64,
    /// Holds the elements in host memory.
    _host: Option<Scratch>,
}

impl Gathered {
    /// `[ranks, elements of a rank]`.
    fn by_rank(&self) -> Tensor {
        let t = &self.tensor;
        let shape = [self.world, t.elements() / self.world];
        // SAFETY: the same elements, which lie side by side.
        unsafe { Tensor::dense(t.data(), t.dtype(), t.device(), &shape) }
    }
}

/// `mine` of every rank. In host memory ranks that gather something else are told so; on a CUDA device nobody waits.
fn gathered(
    session: &Session<'_>,
    purpose: Purpose,
    mine: &Tensor,
    space: Tensor,
    stream: Stream,
) -> Result<Gathered> {
    let (context, backend) = (session.context(), session.backend());
    let (world, rows) = (context.size() as i64, mine.tokens());
    let mut shape = mine.shape().to_vec();
    shape[0] *= world;
    let everything = [Range::new(0, rows)];
    if session.on().cuda().is_none() {
        let mut packed = Scratch::rows_like(session.on(), rows, mine)?;
        backend.range_gather(*mine, &everything, packed.tensor())?;
        let mut host = Scratch::new(session.on(), mine.dtype(), shape)?;
        let all = gather(session, purpose, packed.host_bytes(), stream)?;
        host.host_bytes_mut().copy_from_slice(&all.concat());
        return Ok(Gathered {
            tensor: host.tensor(),
            world,
            _host: Some(host),
        });
    }
    // SAFETY: `space` holds as many elements, for this call alone.
    let all = unsafe { Tensor::dense(space.data(), mine.dtype(), mine.device(), &shape) };
    let of = |rank: i64| Range::new(rank * rows, (rank + 1) * rows);
    let own = of(context.rank() as i64);
    backend.range_gather(*mine, &everything, all.rows(own.start, own.end))?;
    let peers = || (0..world).filter(|&p| p != context.rank() as i64);
    let piece = |peer: i64, rows: Range| Piece {
        peer: peer as u32,
        rows,
    };
    let sends: Vec<Piece> = peers().map(|p| piece(p, own)).collect();
    let recvs: Vec<Piece> = peers().map(|p| piece(p, of(p))).collect();
    let lane = |pieces| Lane { tensor: all, pieces };
    // Of no stage, and so not measured as one's.
    let ticket = start(context.comm(), &[lane(&sends)], &[lane(&recvs)], stream)?;
    context.comm().finish(ticket, stream)?;
    Ok(Gathered {
        tensor: all,
        world,
        _host: None,
    })
}
