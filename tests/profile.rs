//! Measured calls over local ranks, by the host's clock. Those on CUDA devices are in tests/ranks_profile.rs.

mod common_backend;
mod common_profile;
mod common_ranks;
mod common_reference;

use std::sync::{Arc, Barrier};
use std::time::Duration;

use common_backend::{Random, operands, shape};
use common_profile::{check_drawing, check_trace, checked, fetch_wait};
use common_ranks::{Host, Job, over_ranks, parts, rank_on};
use common_reference::Operands;
use magi_attn::comm::local;
use magi_attn::runtime::{Context, Key};
use magi_attn::types::{DType, Mask, Status};

fn causal(tokens: i64) -> Mask {
    Mask::from_sliding_window(tokens, tokens, (-1, 0), 0).unwrap()
}

fn job(mask: &Mask, world: usize, degree: i32) -> (Job, Operands) {
    let s = shape(2, 1, 8, 16, DType::F64);
    let mut job = Job::new(mask, s, world, degree, 8);
    job.config.compute.profile = true;
    let o = operands(&mut Random(5), mask, &s);
    (job, o)
}

/// Runs the job, and `check` on every rank's key.
fn after(job: &Job, o: &Operands, check: impl Fn(&Key) + Sync) {
    local::run(job.world, |_, comm| {
        let context = Context::new(comm);
        if let Some((inter, intra)) = job.mesh {
            context.set_mesh(inter, intra)?;
        }
        let key = Key::create(&context, &job.mask, job.shape, job.config)?;
        rank_on(&Host, job, o, &key)?;
        check(&key);
        Ok(())
    })
    .unwrap();
}

fn check_all(key: &Key) {
    let passes = [checked(key, 0), checked(key, 1)];
    check_trace(key, [&passes[0], &passes[1]]);
    check_drawing(key);
    // Asking changes nothing.
    assert_eq!([checked(key, 0), checked(key, 1)], passes);
}

#[test]
fn stages_follow_each_other() {
    for (world, degree) in [(1, 1), (2, 0), (3, 1), (4, 3)] {
        let (job, o) = job(&causal(160), world, degree);
        after(&job, &o, check_all);
    }
}

#[test]
fn both_exchanges_of_a_mesh_and_queries_that_travel_are_measured() {
    let (mut mesh, o) = job(&causal(160), 4, 2);
    mesh.config.hierarchical_comm = true;
    mesh.mesh = Some((2, 2));
    after(&mesh, &o, check_all);

    let few = Mask::from_sliding_window(24, 480, (-1, -1), 0).unwrap();
    let (mut travel, o) = job(&few, 4, 1);
    travel.config.qo_comm = true;
    after(&travel, &o, |key| {
        check_all(key);
        let guests = key
            .plan()
            .forward
            .stages
            .iter()
            .any(|s| !s.guests.transfer.is_empty());
        assert!(guests, "no queries travel");
    });
}

#[test]
fn results_and_plans_are_those_of_calls_that_are_not_measured() {
    let (mut job, o) = job(&causal(96), 3, 2);
    let measured = over_ranks(&job, &o);
    let hash = |job: &Job| {
        let context = Context::new(local::create(1).unwrap().remove(0));
        let key = Key::create(&context, &job.mask, job.shape, job.config).unwrap();
        key.hash().unwrap()
    };
    let with = hash(&job);
    job.config.compute.profile = false;
    assert_eq!(with, hash(&job));
    let plain = over_ranks(&job, &o);
    for ((name, a), (_, b)) in parts(&measured).into_iter().zip(parts(&plain)) {
        assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
    }
}

#[test]
fn a_rank_that_is_late_is_waited_for() {
    let (job, o) = job(&causal(96), 2, 1);
    let together = Barrier::new(2);
    local::run(2, |rank, comm| {
        let key = Key::create(&Context::new(comm), &job.mask, job.shape, job.config)?;
        rank_on(&Host, &job, &o, &key)?;
        together.wait();
        let late = Duration::from_millis(300);
        if rank == 1 {
            std::thread::sleep(late);
        }
        rank_on(&Host, &job, &o, &key)?;
        let measured = checked(&key, 0);
        // Dispatching waits for nobody, so rank 0 comes to its fetch at once.
        if rank == 0 {
            assert!(
                fetch_wait(&measured, 1) * 4 > late.as_nanos() as i64,
                "{measured:?}"
            );
        }
        together.wait();
        Ok(())
    })
    .unwrap();
}

#[test]
fn without_the_flag_or_a_call_there_is_nothing_to_tell() {
    let (mut job, o) = job(&causal(48), 1, 1);
    let context = Context::new(local::create(1).unwrap().remove(0));
    let key = |job: &Job| Key::create(&context, &job.mask, job.shape, job.config).unwrap();
    let refused = |key: &Arc<Key>, part: &str| {
        let errors = [
            key.measured(0).unwrap_err(),
            key.trace().unwrap_err(),
            key.draw_measured().unwrap_err(),
        ];
        for e in errors {
            assert_eq!(e.status, Status::InvalidArgument);
            assert!(e.message.contains(part), "{e}");
        }
    };
    let measured = key(&job);
    refused(&measured, "call on this key has come to its end");
    job.config.compute.profile = false;
    let plain = key(&job);
    assert!(!plain.shares_plan(&measured));
    rank_on(&Host, &job, &o, &plain).unwrap();
    refused(&plain, "MAGI_ATTENTION_PROFILE_MODE");
    // Equal requests share what was measured.
    job.config.compute.profile = true;
    let twin = key(&job);
    rank_on(&Host, &job, &o, &twin).unwrap();
    assert_eq!(checked(&measured, 1), checked(&twin, 1));
}
