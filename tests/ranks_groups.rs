//! Group plans of ranks on CUDA devices over NCCL, by the checks that local ranks are put to. With devices of the machine where there
//! are any, else with those of tests/host_ranks.

mod common_backend;
mod common_cuda;
mod common_groups;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::sync::{Arc, Barrier};

use common_backend::{Layout, Random};
use common_groups::{
    LAYOUTS, Lists, Ranks, Reduction, Shape, check_cast, check_lse, check_sums, filled, tensors_of,
};
use magi_attn::comm::Communicator;
use magi_attn::runtime::{Context, GroupPlan, ReduceOp, group_call};
use magi_attn::types::{DType, Mesh, Result, Status};
use ranks_support::{DeviceTensor, Rank, allocations, here, inside, on_ranks, worlds};

/// CUDA devices.
struct Devices;

impl Ranks for Devices {
    type Place = Rank;

    fn each<R: Send>(&self, world: usize, f: impl Fn(&Rank, &Arc<Context>) -> Result<R> + Sync) -> Vec<R> {
        on_ranks(world, |r| {
            let comm: Arc<dyn Communicator> = r.comm.clone();
            f(r, &Context::new(comm)).unwrap_or_else(|e| panic!("rank {}: {e}", r.rank))
        })
    }
}

/// Two hosts of two ranks.
const MESH: Mesh = Mesh { inter: 2, intra: 2 };

/// Calls `f` with lists for each number of ranks, of four also over a mesh, and a number to choose by. On devices of the machine
/// fewer: each has communicators of its own there, which take one or two seconds to make; tests/gpu/ranks/groups_on_ranks.py has many lists.
fn each_list(worlds_: &[usize], count: u64, f: impl Fn(&Lists, usize)) {
    let count = if nccl_support::is_inside_any() {
        count
    } else {
        count.min(2)
    };
    for world in worlds(worlds_) {
        for seed in 0..count {
            let random = || Random(100 * world as u64 + seed);
            f(&Lists::random(world, &mut random()), seed as usize);
            if world == 4 {
                f(&Lists::random_over(MESH, &mut random()), seed as usize);
            }
        }
    }
}

#[test]
fn casts_equal_the_dense_reference() {
    here("casts_equal_the_dense_reference", &[], || {
        each_list(&[1, 2, 3, 4], 6, |lists, i| {
            let dtypes = [[DType::Bf16, DType::F64], [DType::F16, DType::F32]][i % 2];
            let layout = LAYOUTS[i % LAYOUTS.len()];
            check_cast(&Devices, lists, Shape { dtypes, layout });
        });
    });
}

#[test]
fn sums_and_means_equal_the_dense_reference() {
    here("sums_and_means_equal_the_dense_reference", &[], || {
        each_list(&[1, 2, 3, 4], 8, |lists, i| {
            let op = [ReduceOp::Sum, ReduceOp::Avg][i % 2];
            let dtypes = [[DType::Bf16, DType::F64], [DType::F16, DType::F32]][i / 2 % 2];
            let (accumulate, wide) = (i % 3 == 0, i % 4 < 2);
            let layout = LAYOUTS[i % LAYOUTS.len()];
            check_sums(
                &Devices,
                lists,
                Shape { dtypes, layout },
                Reduction { op, accumulate, wide },
            );
        });
    });
}

#[test]
fn merges_equal_the_dense_reference() {
    here("merges_equal_the_dense_reference", &[], || {
        each_list(&[1, 2, 4], 4, |lists, i| {
            check_lse(&Devices, lists, DType::F64, i % 2 == 0, 1e-12);
            check_lse(&Devices, lists, DType::F32, i % 2 == 1, 1e-5);
        });
    });
}

#[test]
fn lists_that_do_not_fit_are_found_on_every_rank() {
    here("lists_that_do_not_fit_are_found_on_every_rank", &[], || {
        each_list(&[2, 4], 2, |lists, _| {
            Devices.each(lists.world, |r, context| {
                let tensors = tensors_of([DType::F32; 2]);
                let spoiled = lists.plan(context, &tensors, [r.rank != 1, false])?;
                let refused = spoiled.prepare(r.stream()).unwrap_err();
                assert_eq!(refused.status, Status::PlanMismatch, "{refused}");
                if lists.mesh.is_some() {
                    let mut straight = lists.request(r.rank, &tensors, true, false);
                    straight.two_level = r.rank != 2;
                    let refused = GroupPlan::create(context, straight, None)?.prepare(r.stream());
                    let refused = refused.unwrap_err();
                    assert!(
                        refused.message.contains("rank 2 moves rows straight"),
                        "{refused}"
                    );
                }
                assert!(context.async_error().is_none());
                lists.plan(context, &tensors, [true, false])?.prepare(r.stream())
            });
        });
    });
}

#[test]
fn a_prepared_group_takes_no_memory_of_its_device() {
    inside("a_prepared_group_takes_no_memory_of_its_device", &[], || {
        each_list(&[4], 3, |lists, i| {
            let together = Barrier::new(lists.world);
            let layout = LAYOUTS[i % 2];
            Devices.each(lists.world, |r, context| {
                let strided = layout != Layout::Dense;
                let plan = lists.plan(context, &tensors_of([DType::Bf16; 2]), [true, strided])?;
                plan.prepare(r.stream())?;
                let of = |rows: &[i64]| {
                    [0, 1].map(|w| filled(r, 1, r.rank, w, rows[r.rank], (DType::Bf16, layout)))
                };
                let (local, received) = (of(&lists.local_rows), of(&lists.received_rows));
                let tensors = |held: &[DeviceTensor; 2]| held.each_ref().map(DeviceTensor::tensor);
                let (from, to) = (tensors(&local), tensors(&received));
                let count = || {
                    r.user.synchronize();
                    together.wait();
                    let count = allocations();
                    together.wait();
                    count
                };
                let before = count();
                for op in [ReduceOp::Sum, ReduceOp::Avg] {
                    group_call::cast(&plan, &from, &to, r.stream())?;
                    group_call::reduce(&plan, op, &to, false, &from, r.stream())?;
                }
                assert_eq!(count(), before);
                Ok(())
            });
        });
    });
}
