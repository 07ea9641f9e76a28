//! Measured calls on pretended devices (tests/host_ranks): times by events of their streams, ranges for profilers, captured calls.

mod common_backend;
mod common_cuda;
mod common_profile;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::sync::Mutex;
use std::time::Duration;

use common_backend::{Layout, shape};
use common_profile::{check_drawing, check_trace, checked, fetch_wait};
use common_ranks::{Job, agreed, assert_close, local_on, problem, rank_on};
use common_reference::Operands;
use magi_attn::runtime::{Key, attn_args, forward};
use magi_attn::types::{DType, Mask, Side};
use ranks_support::{DeviceTensor, Gate, Rank, inside, key_of, on_ranks, over_devices, ranges, timed_events};

/// Events of the streams, of one exchange after the other, of both parts over a mesh, and of queries that travel. Nothing is
/// made in a call, and nothing without the flag.
#[test]
fn calls_are_measured_by_events() {
    let name = "calls_are_measured_by_events";
    inside(name, &[], || {
        let s = shape(2, 1, 8, 16, DType::F64);
        let causal = Mask::from_sliding_window(160, 160, (-1, 0), 0).unwrap();
        let few = Mask::from_sliding_window(24, 480, (-1, -1), 0).unwrap();
        for (mask, world, degree, mesh) in [
            (&causal, 1, 1, None),
            (&causal, 2, 0, None),
            (&causal, 4, 2, None),
            (&causal, 4, 2, Some((2, 2))),
            (&few, 4, 1, None),
        ] {
            let o = problem(mask, &s, 4, 1);
            let mut job = Job::new(mask, s, world, degree, 8);
            job.mesh = mesh;
            job.config.hierarchical_comm = mesh.is_some();
            job.config.qo_comm = mesh.is_none();
            let before = timed_events();
            let plain = over_devices(&job, &o, 1);
            assert_eq!(timed_events(), before);
            job.config.compute.profile = true;
            let answers = on_ranks(world, |r| {
                let key = key_of(&job, r);
                key.prepare(r.stream()).unwrap();
                key.context().comm().all_gather(&[], r.stream()).unwrap();
                let made = timed_events();
                let answer = rank_on(r, &job, &o, &key).unwrap();
                let passes = [checked(&key, 0), checked(&key, 1)];
                check_trace(&key, [&passes[0], &passes[1]]);
                check_drawing(&key);
                rank_on(r, &job, &o, &key).unwrap();
                assert!(checked(&key, 0) != passes[0], "the last call counts");
                assert_eq!(timed_events(), made);
                answer
            });
            assert_close("measured", &agreed(answers), &plain, 0.0);
        }
    });
}

/// A rank's q, k, v and out, of 2 query heads and 1 key head of 8.
fn local_tensors(r: &Rank, key: &Key, o: &Operands) -> [DeviceTensor; 4] {
    let of = |side, values: &[f64], heads| {
        local_on(
            r,
            key,
            side,
            Some(values),
            &[heads, 8],
            (DType::F64, Layout::Dense),
        )
        .unwrap()
    };
    let tokens = key.local_tokens(Side::Q).unwrap();
    [
        of(Side::Q, &o.q, 2),
        of(Side::K, &o.k, 1),
        of(Side::K, &o.v, 1),
        r.unwritten(&[tokens, 2, 8], DType::F64, Layout::Dense),
    ]
}

fn forward_of([q, k, v, out]: &[DeviceTensor; 4]) -> attn_args::Forward {
    attn_args::Forward {
        q: q.tensor(),
        k: k.tensor(),
        v: v.tensor(),
        sink: None,
        softmax_scale: 0.0,
        softcap: 0.0,
        out: out.tensor(),
        lse: None,
        max_logits: None,
    }
}

/// The first rank enqueues its call at once; its device then waits for the other one's keys.
#[test]
fn a_device_that_is_late_is_waited_for() {
    inside("a_device_that_is_late_is_waited_for", &[], || {
        let s = shape(2, 1, 8, 8, DType::F64);
        let mask = Mask::from_sliding_window(64, 64, (-1, -1), 0).unwrap();
        let o = problem(&mask, &s, 4, 0);
        let mut job = Job::new(&mask, s, 2, 1, 8);
        job.config.compute.profile = true;
        // Looking for NaN waits for the stream.
        job.config.sanity_check = false;
        let gate = Mutex::new(None);
        on_ranks(2, |r| {
            let key = key_of(&job, r);
            key.prepare(r.stream()).unwrap();
            let tensors = local_tensors(r, &key, &o);
            if r.rank == 1 {
                *gate.lock().unwrap() = Some(Gate::on(&r.user));
            }
            let together = || key.context().comm().all_gather(&[], r.stream()).unwrap();
            together();
            forward::run(&key, &forward_of(&tensors), r.stream()).unwrap();
            together();
            let late = Duration::from_millis(200);
            if r.rank == 0 {
                std::thread::sleep(late);
                gate.lock().unwrap().take().unwrap().open();
            }
            let measured = checked(&key, 0);
            let computed = measured.stages[1].compute;
            if r.rank == 0 {
                assert!(computed.start * 2 > late.as_nanos() as i64, "{measured:?}");
                let wait = fetch_wait(&measured, 1);
                // All but the host stage and the moments between.
                let busy = measured.stages[0].compute.end + late.as_nanos() as i64 / 4;
                assert!(wait + busy > computed.start, "{measured:?}");
                assert!(measured.stages[1].fetch.len() >= wait, "{measured:?}");
            }
            r.download(&tensors[3]);
        });
    });
}

#[test]
fn profilers_see_ranges() {
    inside("profilers_see_ranges", &[], || {
        let s = shape(2, 1, 8, 8, DType::F64);
        let mask = Mask::from_sliding_window(64, 64, (-1, -1), 0).unwrap();
        let o = problem(&mask, &s, 4, 0);
        let mut job = Job::new(&mask, s, 2, 1, 8);
        over_devices(&job, &o, 1);
        assert_eq!(ranges(), [""; 0]);
        job.config.compute.profile = true;
        over_devices(&job, &o, 1);
        let mut of_a_rank = vec![];
        for name in ["forward", "backward"] {
            let stage = |n: usize, what: &str| format!("magi {name} stage {n}: {what}");
            of_a_rank.extend([stage(0, "compute"), stage(1, "compute")]);
            of_a_rank.extend([stage(1, "fetch"), stage(1, "wait for fetch")]);
        }
        let backward = |what: &str| format!("magi backward stage 1: {what}");
        of_a_rank.extend([backward("reduce"), backward("wait for reduce")]);
        let mut want = [of_a_rank.clone(), of_a_rank].concat();
        want.sort();
        assert_eq!(ranges(), want);
    });
}

/// A graph has no times of its own: the call before it stays the last one.
#[test]
fn captured_calls_are_not_measured() {
    inside("captured_calls_are_not_measured", &[], || {
        let s = shape(2, 1, 8, 8, DType::F64);
        let mask = Mask::from_sliding_window(64, 64, (-1, -1), 0).unwrap();
        let o = problem(&mask, &s, 4, 0);
        let mut job = Job::new(&mask, s, 1, 1, 8);
        job.config.compute.profile = true;
        job.config.sanity_check = false;
        on_ranks(1, |r| {
            let key = key_of(&job, r);
            let tensors = local_tensors(r, &key, &o);
            forward::run(&key, &forward_of(&tensors), r.stream()).unwrap();
            let measured = checked(&key, 0);
            let made = timed_events();
            let capturing = |on: i32| {
                // SAFETY: the variable of tests/host_nccl/streams.h; one rank, and so one thread, uses it.
                unsafe { *nccl_support::symbol(&["libcuda.so"], "fake_capturing").cast::<i32>() = on };
            };
            capturing(1);
            forward::run(&key, &forward_of(&tensors), r.stream()).unwrap();
            capturing(0);
            assert_eq!(checked(&key, 0), measured);
            assert_eq!(timed_events(), made);
        });
    });
}
