//! Group plans of ranks on CUDA devices over NCCL, by the checks that local ranks are put to. With devices of the machine where there
//! are any, else with those of tests/host_ranks.

mod common_backend;
mod common_cuda;
mod common_groups;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::sync::Arc;

use common_backend::Random;
use common_groups::{LAYOUTS, Lists, Ranks, Reduction, Shape, check_cast, check_lse, check_sums, tensors_of};
use magi_attn::comm::Communicator;
use magi_attn::runtime::{Context, GroupPlan, ReduceOp};
use magi_attn::types::{DType, Result, Status};
use ranks_support::{Rank, here, on_ranks, worlds};

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

/// Calls `f` with lists for each number of ranks, and a number to choose by.
fn each_list(worlds_: &[usize], count: u64, f: impl Fn(&Lists, usize)) {
    for world in worlds(worlds_) {
        for seed in 0..count {
            let lists = Lists::random(world, &mut Random(100 * world as u64 + seed));
            f(&lists, seed as usize);
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
                let right = lists.request(r.rank, &tensors_of([DType::F32; 2]), true, false);
                let mut wrong = right.clone();
                wrong.reduce = r.rank != 1;
                let spoiled = GroupPlan::create(context, wrong, None)?;
                let refused = spoiled.prepare(r.stream()).unwrap_err();
                assert_eq!(refused.status, Status::PlanMismatch, "{refused}");
                assert!(context.async_error().is_none());
                GroupPlan::create(context, right, None)?.prepare(r.stream())
            });
        });
    });
}
