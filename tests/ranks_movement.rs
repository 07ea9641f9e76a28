//! Movement between ranks on CUDA devices over NCCL, by the checks that local ranks are put to. With devices of the machine where
//! there are any, else with those of tests/host_ranks.

mod common_backend;
mod common_cuda;
mod common_movement;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::sync::Arc;

use common_cuda::Copy;
use common_movement::{Kind, Memory, Order, Site, add_partial_gradients, full, key_of, kinds, move_all};
use magi_attn::device::Stream;
use magi_attn::runtime::{Key, movement};
use magi_attn::types::{DType, Mask, Result, Side, Status, Tensor};
use ranks_support::{Rank, here, on_ranks, worlds};

impl Site for Rank {
    fn with(&self, all: &mut [&mut Memory], f: &dyn Fn(&[Tensor], Stream) -> Result<()>) -> Result<()> {
        let copies: Vec<Copy> = all.iter_mut().map(|m| Copy::of(&self.gpu, m.tensor())).collect();
        let tensors: Vec<Tensor> = copies.iter().map(Copy::tensor).collect();
        f(&tensors, self.stream())?;
        self.user.synchronize();
        copies.iter().for_each(Copy::fetch);
        Ok(())
    }
}

/// Runs `f` on every rank with a key of chunks of 4 tokens.
fn with_keys(world: usize, mask: &Arc<Mask>, f: impl Fn(&Rank, &Key) -> Result<()> + Sync) {
    on_ranks(world, |r| {
        let key = key_of(r.comm.clone(), mask).unwrap();
        f(r, &key).unwrap_or_else(|e| panic!("rank {}: {e}", r.rank));
    });
}

#[test]
fn rows_move_as_position_ids_say() {
    here("rows_move_as_position_ids_say", &[], || {
        for world in worlds(&[1, 2, 3, 4]) {
            with_keys(world, &full(45, 45), |r, key| {
                kinds(world).try_for_each(|kind| move_all(r, key, kind))
            });
        }
    });
}

#[test]
fn both_sides_have_a_placement_of_their_own() {
    here("both_sides_have_a_placement_of_their_own", &[], || {
        for world in worlds(&[2, 4]) {
            with_keys(world, &full(30, 41), |r, key| {
                let of_queries = Kind {
                    side: Side::Q,
                    dtype: DType::F64,
                    row: &[2, 2],
                    orders: [Order::Dense, Order::Padded],
                };
                let of_keys = Kind {
                    side: Side::K,
                    dtype: DType::I64,
                    row: &[3],
                    orders: [Order::Backwards, Order::Dense],
                };
                move_all(r, key, of_queries)?;
                move_all(r, key, of_keys)
            });
        }
    });
}

#[test]
fn ranks_without_tokens_take_part() {
    here("ranks_without_tokens_take_part", &[], || {
        for (total, world) in [(3, 4), (1, 4), (1, 2), (0, 3), (0, 1)] {
            if worlds(&[world]).next().is_none() {
                continue;
            }
            with_keys(world, &full(total, total), |r, key| {
                for orders in [[Order::Dense; 2], [Order::Padded, Order::Backwards]] {
                    for (side, dtype) in [(Side::Q, DType::Bf16), (Side::K, DType::U8)] {
                        move_all(
                            r,
                            key,
                            Kind {
                                side,
                                dtype,
                                row: &[2],
                                orders,
                            },
                        )?;
                    }
                }
                Ok(())
            });
        }
    });
}

#[test]
fn partial_gradients_are_added_in_rank_order() {
    here("partial_gradients_are_added_in_rank_order", &[], || {
        for world in worlds(&[1, 2, 3, 4]) {
            with_keys(world, &full(37, 37), add_partial_gradients);
        }
    });
}

#[test]
fn refusals_leave_the_communicator_good() {
    here("refusals_leave_the_communicator_good", &[], || {
        for world in worlds(&[2]) {
            with_keys(world, &full(20, 20), |r, key| {
                let own = key.local_tokens(Side::Q)?;
                let mut x = Memory::new(DType::F32, &[20, 4], Order::Dense);
                for (rows, dtype, status) in [
                    (own - 1, DType::F32, Status::ShapeMismatch),
                    (own, DType::I64, Status::DtypeMismatch),
                ] {
                    let mut y = Memory::new(dtype, &[rows, 4], Order::Dense);
                    let refused = r.with(&mut [&mut x, &mut y], &|t, stream| {
                        movement::undispatch(key, Side::Q, t[1], t[0], ["local_x", "x"], stream)
                    });
                    assert_eq!(refused.unwrap_err().status, status);
                }
                // Another device's stream is found before anything is done.
                let theirs = nccl_support::UserStream::new(1 - r.rank);
                let mut y = Memory::new(DType::F32, &[own, 4], Order::Dense);
                let refused = r.with(&mut [&mut x, &mut y], &|t, _| {
                    movement::undispatch(key, Side::Q, t[1], t[0], ["local_x", "x"], theirs.stream)
                });
                assert_eq!(refused.unwrap_err().status, Status::DeviceMismatch);
                let (side, dtype, row, orders) = (Side::Q, DType::F32, &[4][..], [Order::Dense; 2]);
                move_all(
                    r,
                    key,
                    Kind {
                        side,
                        dtype,
                        row,
                        orders,
                    },
                )
            });
        }
    });
}
