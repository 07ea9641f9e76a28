//! Dispatch, undispatch, their gradients, the sharded forms and rolls, against index arithmetic with position ids.

mod common_movement;

use std::sync::Arc;

use common_movement::{
    Host, Kind, Memory, Order, POISON, add_partial_gradients, full, key_of, kinds, move_all,
};
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Key, movement};
use magi_attn::types::{DType, Mask, Result, Side, Status};

/// Runs `f` on every rank with a key of chunks of 4 tokens.
fn with_keys(world: usize, mask: &Arc<Mask>, f: impl Fn(usize, &Key) -> Result<()> + Sync) {
    local::run(world, |rank, comm| f(rank, &*key_of(comm, mask)?)).unwrap();
}

#[test]
fn rows_move_as_position_ids_say() {
    for world in 1..=8 {
        with_keys(world, &full(45, 45), |_, key| {
            kinds(world).try_for_each(|kind| move_all(&Host, key, kind))
        });
    }
}

#[test]
fn both_sides_have_a_placement_of_their_own() {
    with_keys(4, &full(30, 41), |_, key| {
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
        move_all(&Host, key, of_queries)?;
        move_all(&Host, key, of_keys)
    });
}

#[test]
fn ranks_without_tokens_take_part() {
    for (total, world) in [(3, 8), (1, 4), (0, 3)] {
        with_keys(world, &full(total, total), |_, key| {
            let of_queries = Kind {
                side: Side::Q,
                dtype: DType::Bf16,
                row: &[2],
                orders: [Order::Dense; 2],
            };
            let of_keys = Kind {
                side: Side::K,
                dtype: DType::U8,
                row: &[],
                orders: [Order::Dense; 2],
            };
            move_all(&Host, key, of_queries)?;
            move_all(&Host, key, of_keys)
        });
    }
}

#[test]
fn position_ids_are_a_partition() {
    for world in 1..=8 {
        let owners = std::sync::Mutex::new(vec![0; 50]);
        with_keys(world, &full(50, 50), |_, key| {
            let ids: Vec<i64> = key.position_ids(Side::Q)?.collect();
            assert_eq!(ids.len() as i64, key.local_tokens(Side::Q)?);
            assert!(ids.windows(2).all(|w| w[0] < w[1]));
            assert!(
                key.position_ids(Side::K)?.eq(ids.iter().copied()),
                "equal totals share one placement"
            );
            ids.iter().for_each(|&t| owners.lock().unwrap()[t as usize] += 1);
            Ok(())
        });
        assert_eq!(owners.into_inner().unwrap(), vec![1; 50]);
    }
}

#[test]
fn partial_gradients_are_added_in_rank_order() {
    for world in 1..=8 {
        with_keys(world, &full(37, 37), |_, key| add_partial_gradients(&Host, key));
    }
}

#[test]
fn refusals_name_the_tensor_and_touch_nothing() {
    with_keys(2, &full(20, 20), |_, key| {
        let own = key.local_tokens(Side::Q)?;
        let mut x = Memory::new(DType::F32, &[20, 4], Order::Dense);
        let mut ids = Memory::new(DType::I64, &[20, 4], Order::Dense);
        let mut short = Memory::new(DType::F32, &[own - 1, 4], Order::Dense);
        let mut wide = Memory::new(DType::F32, &[own, 5], Order::Dense);
        let mut good = Memory::new(DType::F32, &[own, 4], Order::Dense);
        let mut ids_out = Memory::new(DType::I64, &[own, 4], Order::Dense);
        let s = Stream::NULL;
        let inside = x.tensor().rows(0, own);
        for (to, status, word) in [
            (short.tensor(), Status::ShapeMismatch, "local_x"),
            (wide.tensor(), Status::ShapeMismatch, "local_x"),
            (ids_out.tensor(), Status::DtypeMismatch, "local_x"),
            (inside, Status::TensorOverlap, "local_x"),
        ] {
            let error = movement::dispatch(key, Side::Q, x.tensor(), to, s).unwrap_err();
            assert_eq!(error.status, status, "{error}");
            assert!(error.message.contains(word), "{error}");
        }
        let partial = movement::undispatch_backward_partial(key, Side::Q, ids.tensor(), ids_out.tensor(), s);
        assert_eq!(partial.unwrap_err().status, Status::DtypeMismatch);
        for b in [&x, &short, &wide, &ids_out] {
            assert!(b.memory().iter().all(|&x| x == POISON));
        }
        // Nothing was sent: the next collective call finds its peers.
        let mut back = Memory::new(DType::F32, &[20, 4], Order::Dense);
        movement::undispatch(key, Side::Q, good.tensor(), back.tensor(), ["local_x", "x"], s)?;
        Ok(())
    });
}
