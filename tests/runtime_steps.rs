//! Ranks that are out of step are told so, at once.

mod common_backend;
mod common_reference;

use std::sync::{Arc, Mutex};

use common_backend::{Buffer, Layout, shape};
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, Key, attn_args, forward};
use magi_attn::types::{Config, DType, Error, Mask, Side, Status};

/// Forward with max_logits or without, then the comparison of another key.
fn steps(key: &Key, other: &Key, with_max: bool) -> Result<(), Error> {
    let s = key.shape();
    let (tq, tk) = (key.local_tokens(Side::Q)?, key.local_tokens(Side::K)?);
    let dense = |shape: &[i64]| {
        let values = vec![0.5; shape.iter().product::<i64>() as usize];
        Buffer::new(&values, shape, s.dtype, Layout::Dense)
    };
    let mut q = dense(&[tq, s.heads_q, s.head_dim]);
    let (mut k, mut v) = (
        dense(&[tk, s.heads_kv, s.head_dim]),
        dense(&[tk, s.heads_kv, s.head_dim_v]),
    );
    let mut out = dense(&[tq, s.heads_q, s.head_dim_v]);
    let mut max_logits = Buffer::poisoned(&[s.heads_q], DType::F32, Layout::Dense);
    let args = attn_args::Forward {
        q: q.tensor(),
        k: k.tensor(),
        v: v.tensor(),
        sink: None,
        softmax_scale: 0.0,
        softcap: 0.0,
        out: out.tensor(),
        lse: None,
        max_logits: with_max.then(|| max_logits.tensor()),
    };
    forward::run(key, &args, Stream::NULL)?;
    other.prepare(Stream::NULL)
}

#[test]
fn a_gather_for_one_thing_is_not_taken_for_another() {
    // Six maxima are as many bytes as a comparison of plans.
    let s = shape(6, 1, 8, 8, DType::F32);
    let errors = Mutex::new(Vec::new());
    let _ = local::run(2, |rank, comm| {
        let context = Context::new(comm);
        let mask = |total| Arc::new(Mask::from_sliding_window(total, total, (-1, 0), 0).unwrap());
        let key = Key::create(&context, &mask(16), s, Config::default())?;
        let other = Key::create(&context, &mask(24), s, Config::default())?;
        key.prepare(Stream::NULL)?;
        let outcome = steps(&key, &other, rank == 0);
        errors.lock().unwrap().push(outcome.clone().unwrap_err());
        outcome
    });
    let errors = errors.into_inner().unwrap();
    assert_eq!(errors.len(), 2);
    for e in &errors {
        assert_eq!(e.status, Status::CommFailed, "{e}");
        assert!(e.message.contains("out of step"), "{e}");
    }
}
