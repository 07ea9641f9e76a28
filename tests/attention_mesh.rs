//! Group collectives over a mesh of hosts give what the flat ones give.

mod common;
mod common_backend;
mod common_ranks;
mod common_reference;

use common::load_cases;
use common_backend::{Layout, Random, operands, random_sink, shape};
use common_ranks::{Job, assert_close, over_ranks};
use common_reference::{Arithmetic, attention};
use magi_attn::plan::Plan;
use magi_attn::types::{Config, DType, Mask, MaskType, Mesh, Range, TypedSlice, piece_rows};

/// (hosts, ranks of a host): squares, one host, hosts of one rank, and odd numbers.
const MESHES: [(usize, usize); 6] = [(2, 2), (1, 4), (3, 1), (2, 3), (3, 2), (4, 2)];

#[test]
fn every_small_case_equals_dense_attention() {
    let s = shape(2, 1, 8, 16, DType::F64);
    let cases = load_cases();
    for (i, case) in cases
        .iter()
        .enumerate()
        .filter(|(_, c)| c.mask.total_q().max(c.mask.total_k()) <= 1_100)
    {
        let mut random = Random(i as u64);
        let mut o = operands(&mut random, &case.mask, &s);
        o.sink = Some(random_sink(
            &mut random,
            case.mask.total_q(),
            s.heads_q,
            2,
            i % 2 == 0,
        ));
        let want = attention(&case.mask, &o, Arithmetic::Exact);
        for (m, mesh) in MESHES.into_iter().enumerate() {
            for degree in [0, 1, 3] {
                let mut job = Job::new(&case.mask, s, mesh.0 * mesh.1, degree, case.chunk_size);
                job.mesh = Some(mesh);
                job.config.hierarchical_comm = true;
                job.layout = if m % 2 == 0 { Layout::Dense } else { Layout::Padded };
                let name = format!("{} on {mesh:?}, degree {degree}", case.name);
                assert_close(&name, &over_ranks(&job, &o), &want, 1e-10);
            }
        }
    }
}

#[test]
fn low_precision_stays_close_to_one_rank() {
    let s = shape(4, 2, 16, 16, DType::Bf16);
    let cases = load_cases();
    let case = cases
        .iter()
        .find(|c| c.name == "varlen_block_causal_960")
        .unwrap();
    let o = operands(&mut Random(7), &case.mask, &s);
    let one = over_ranks(&Job::new(&case.mask, s, 1, 0, case.chunk_size), &o);
    for high in [false, true] {
        let mut job = Job::new(&case.mask, s, 6, 2, case.chunk_size);
        job.mesh = Some((2, 3));
        job.config.hierarchical_comm = true;
        job.config.backward_high_precision_reduce = high;
        // bf16 keeps 8 bits; a gradient is rounded at most twice on its way.
        assert_close(
            "bf16",
            &over_ranks(&job, &o),
            &one,
            if high { 1e-5 } else { 2.0 / 256.0 },
        );
    }
}

#[test]
fn fewer_tokens_cross_between_hosts() {
    let s = shape(1, 1, 8, 8, DType::F64);
    let (mesh, cases) = (Mesh { inter: 2, intra: 4 }, load_cases());
    let mut fewer = 0;
    for case in &cases {
        let crossing = |mesh_of: Option<Mesh>| -> i64 {
            let config = Config {
                chunk_size: case.chunk_size,
                degree_forward: 1,
                mesh: mesh_of,
                ..Config::default()
            };
            let rank = |r: usize| -> i64 {
                let plan = Plan::new(&case.mask, &s, 8, r, &config).unwrap();
                let across = |p: &&magi_attn::types::Piece| mesh.host(p.peer as usize) != mesh.host(r);
                let rows = |stage: &magi_attn::plan::Stage| {
                    let sends = stage
                        .two_level
                        .as_ref()
                        .map_or(&stage.transfer.sends, |t| &t.sends);
                    piece_rows(&sends.iter().filter(across).copied().collect::<Vec<_>>())
                };
                plan.forward.stages.iter().map(rows).sum()
            };
            (0..8).map(rank).sum()
        };
        let (flat, two_level) = (crossing(None), crossing(Some(mesh)));
        assert!(
            two_level <= flat,
            "{}: {two_level} tokens cross instead of {flat}",
            case.name
        );
        fewer += usize::from(two_level < flat);
    }
    assert!(fewer > cases.len() / 3, "only {fewer} cases gain");
}

/// So few keys in so many stages that ranks are idle in different ones. What goes from one rank to another still has to
/// come in one order.
#[test]
fn ranks_that_are_idle_in_different_stages() {
    let s = shape(2, 1, 8, 16, DType::F64);
    let typed = |q: (i64, i64), k: (i64, i64), mask_type| TypedSlice {
        q: Range::new(q.0, q.1),
        k: Range::new(k.0, k.1),
        mask_type,
    };
    let few_rows = Mask::new(&[typed((1, 5), (5, 43), MaskType::Full)], 7, 43).unwrap();
    let two = [
        typed((0, 9), (0, 30), MaskType::Causal),
        typed((20, 41), (7, 57), MaskType::InvCausal),
    ];
    let two = Mask::new(&two, 41, 59).unwrap();
    for (m, mask) in [few_rows, two].into_iter().enumerate() {
        let o = operands(&mut Random(m as u64), &mask, &s);
        let want = attention(&mask, &o, Arithmetic::Exact);
        for mesh in [(2, 2), (1, 4), (1, 7), (3, 2), (4, 2)] {
            for degree in 4..=8 {
                for chunk_size in 1..=3 {
                    let mut job = Job::new(&mask, s, mesh.0 * mesh.1, degree, chunk_size);
                    job.mesh = Some(mesh);
                    job.config.hierarchical_comm = true;
                    let name = format!("mask {m} on {mesh:?}, degree {degree}, chunks of {chunk_size}");
                    assert_close(&name, &over_ranks(&job, &o), &want, 1e-10);
                }
            }
        }
    }
}
