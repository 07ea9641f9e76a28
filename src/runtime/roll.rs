//! Cyclic shifts along the token dimension, whatever rank a token is on.

use super::redistribute::Redistribution;
use super::{check, key::Key, movement};
use crate::device::Stream;
use crate::types::{Error, Result, Side, Tensor};

/// Moves the first `valid` tokens `shift` places along, those at their end to the front: `y[(i + shift) mod valid] = x[i]`
/// in global positions. Tokens behind them, a caller's padding, stay. `local_x` and `local_y`: `[local tokens of side, ..]`,
/// same dtype and trailing shape. `shift` may be anything, also negative; `valid` is 0 to the side's total, or -1 for all.
/// Collective. The gradient is the roll of the gradients by `-shift`.
pub fn roll(
    key: &Key,
    side: Side,
    local_x: Tensor,
    shift: i64,
    valid: i64,
    local_y: Tensor,
    stream: Stream,
) -> Result<()> {
    check::rolled(key, side, &local_x, &local_y, stream)?;
    let total = key.placement(side).total();
    let valid = match valid {
        -1 => total,
        n if (0..=total).contains(&n) => n,
        n => {
            return Err(Error::argument(format!(
                "valid is {n}; it must be 0 to {total}, the tokens of this side, or -1 for all of them"
            )));
        }
    };
    let session = key.collective(stream)?;
    let shift = if valid == 0 { 0 } else { shift.rem_euclid(valid) };
    let plan = Redistribution::rolled(key.context().rank(), &movement::layout(key, side), valid, shift);
    movement::carry_out(&session, &plan, &local_x, &local_y, stream)
}

/// The least number of tokens to add to `total` so that chunks of `chunk_size` tokens divide it evenly and every one
/// of `world` ranks gets equally many of them. `Status::InvalidArgument` for a negative total, a chunk size or world
/// size below 1, and a result beyond what an i64 holds.
pub fn pad_size(total: i64, chunk_size: i64, world: i64) -> Result<i64> {
    for (name, value, least) in [
        ("total", total, 0),
        ("chunk_size", chunk_size, 1),
        ("world_size", world, 1),
    ] {
        if value < least {
            return Err(Error::argument(format!(
                "{name} is {value}; it must be {least} or more"
            )));
        }
    }
    let padded = |unit: i64| {
        let pad = (unit - total % unit) % unit;
        total.checked_add(pad).map(|_| pad)
    };
    chunk_size.checked_mul(world).and_then(padded).ok_or_else(|| {
        Error::argument(format!(
            "chunk_size x world_size is {chunk_size} x {world}; with {total} tokens that is too much"
        ))
    })
}
