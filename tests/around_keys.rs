//! Keys on placements that exist already, and the key made last.

use std::sync::Arc;

use magi_attn::comm::local;
use magi_attn::plan::{Placement, SidePlacement};
use magi_attn::runtime::{Context, Key};
use magi_attn::types::{AttnShape, Config, DType, Mask, Side, Status};

const SHAPE: AttnShape = AttnShape {
    heads_q: 2,
    heads_kv: 1,
    head_dim: 8,
    head_dim_v: 8,
    dtype: DType::F32,
};

fn causal(total: i64) -> Arc<Mask> {
    Arc::new(Mask::from_sliding_window(total, total, (-1, 0), 0).unwrap())
}

fn config() -> Config {
    Config {
        chunk_size: 4,
        sanity_check: true,
        ..Config::default()
    }
}

#[test]
fn a_second_mask_keeps_the_placement() {
    local::run(4, |_, comm| {
        let context = Context::new(comm);
        let first = Key::create(&context, &causal(96), SHAPE, config())?;
        let window = Arc::new(Mask::from_sliding_window(96, 96, (9, 0), 0).unwrap());
        let second = first.create_for_new_mask(&window, SHAPE, config())?;
        for side in [Side::Q, Side::K] {
            assert!(first.position_ids(side)?.eq(second.position_ids(side)?));
        }
        // Balanced for the window it would lie elsewhere.
        let own = Key::create(&context, &window, SHAPE, config())?;
        assert_ne!(own.placement(Side::Q), second.placement(Side::Q));
        assert_ne!(own.hash()?, second.hash()?);
        assert!(second.shares_plan(first.create_for_new_mask(&window, SHAPE, config())?.as_ref()));
        assert!(!second.shares_plan(&own));
        let e = first
            .create_for_new_mask(&causal(95), SHAPE, config())
            .err()
            .unwrap();
        assert_eq!(e.status, Status::InvalidArgument);
        second.prepare(magi_attn::device::Stream::NULL)
    })
    .unwrap();
}

#[test]
fn a_callers_placement_is_taken_as_it_is() {
    let owners = [2, 2, 0, 2, 0, 1, 1, 2];
    let placement = || Placement::shared(Arc::new(SidePlacement::from_owners(30, 4, &owners, 3).unwrap()));
    local::run(3, |rank, comm| {
        let context = Context::new(comm);
        let key = Key::create_with_placement(&context, &causal(30), SHAPE, config(), placement())?;
        let want: Vec<i64> = (0..30)
            .filter(|t| owners[*t as usize / 4] == rank as u32)
            .collect();
        assert_eq!(key.position_ids(Side::Q)?.collect::<Vec<_>>(), want);
        let again = Key::create_with_placement(&context, &causal(30), SHAPE, config(), placement())?;
        assert!(key.shares_plan(&again));
        assert!(!key.shares_plan(Key::create(&context, &causal(30), SHAPE, config())?.as_ref()));
        let two = Placement::shared(Arc::new(SidePlacement::shares(30, 2)?));
        let e = Key::create_with_placement(&context, &causal(30), SHAPE, config(), two)
            .err()
            .unwrap();
        assert!(
            e.message.contains("2 ranks") && e.message.contains("has 3"),
            "{}",
            e.message
        );
        let e = Key::create_with_placement(&context, &causal(31), SHAPE, config(), placement())
            .err()
            .unwrap();
        assert_eq!(e.status, Status::InvalidArgument);
        key.prepare(magi_attn::device::Stream::NULL)
    })
    .unwrap();
}

#[test]
fn the_last_key_is_the_one_made_or_found_last() {
    local::run(2, |_, comm| {
        let context = Context::new(comm);
        let e = Key::last(&context).err().unwrap();
        assert_eq!(e.status, Status::InvalidArgument);
        // Also where the cache keeps none.
        let config = Config {
            cache_size: 0,
            ..config()
        };
        let a = Key::create(&context, &causal(40), SHAPE, config)?;
        assert!(Key::last(&context)?.shares_plan(&a));
        let b = a.create_for_new_mask(&causal(40), SHAPE, self::config())?;
        assert!(Key::last(&context)?.shares_plan(&b) && !Key::last(&context)?.shares_plan(&a));
        drop((a, b));
        assert_eq!(Key::last(&context)?.local_tokens(Side::Q)?, 20);
        Key::create(&context, &causal(41), SHAPE, self::config())?;
        let found = Key::create(&context, &causal(40), SHAPE, self::config())?;
        assert!(Key::last(&context)?.shares_plan(&found));
        // Handles outlive the communicator, and say so.
        context.close();
        assert_eq!(Key::last(&context).err().unwrap().status, Status::CommDestroyed);
        Ok(())
    })
    .unwrap();
}

#[test]
fn several_masks_share_a_placement_that_balances_them_together() {
    let masks = |weights: [i64; 3]| {
        let list = [
            causal(600),
            Arc::new(Mask::from_sliding_window(600, 600, (40, 0), 0).unwrap()),
            Arc::new(Mask::from_cu_seqlens(&[0, 350, 600], &[0, 350, 600], true, (-1, -1), 0).unwrap()),
        ];
        list.into_iter().zip(weights).collect::<Vec<_>>()
    };
    local::run(4, |_, comm| {
        let context = Context::new(comm);
        let keys = Key::create_joint(&context, masks([2, 30, 1]), SHAPE, config())?;
        assert_eq!(keys.len(), 3);
        assert!(Key::last(&context)?.shares_plan(&keys[2]));
        let list = masks([2, 30, 1]);
        let pairs: Vec<(&Mask, i64)> = list.iter().map(|(m, w)| (m.as_ref(), *w)).collect();
        let want = Placement::new_joint(&pairs, 4, &config())?;
        for (key, (mask, _)) in keys.iter().zip(&list) {
            assert_eq!(*key.plan().placement, want);
            // In all other ways as a key made by itself on that placement.
            let alone = Key::create_with_placement(&context, mask, SHAPE, config(), want.clone())?;
            assert_eq!(key.plan(), alone.plan());
            assert!(key.explain()?.contains("this mask and others together"));
            key.prepare(magi_attn::device::Stream::NULL)?;
        }
        let again = Key::create_joint(&context, masks([2, 30, 1]), SHAPE, config())?;
        assert!(keys.iter().zip(&again).all(|(a, b)| a.shares_plan(b)));
        let others = Key::create_joint(&context, masks([2, 3, 1]), SHAPE, config())?;
        assert!(keys.iter().zip(&others).all(|(a, b)| !a.shares_plan(b)));
        // One mask alone is placed as by itself; a mask that is named twice is planned once.
        let one = Key::create_joint(&context, vec![(causal(600), 1)], SHAPE, config())?;
        assert_eq!(
            one[0].hash()?,
            Key::create(&context, &causal(600), SHAPE, config())?.hash()?
        );
        let twice = Key::create_joint(
            &context,
            vec![(causal(601), 1), (causal(601), 1)],
            SHAPE,
            config(),
        )?;
        assert!(twice[0].shares_plan(&twice[1]));
        Ok(())
    })
    .unwrap();
}

#[test]
fn masks_that_cannot_share_a_placement_make_no_key() {
    local::run(2, |_, comm| {
        let context = Context::new(comm);
        for (masks, word) in [
            (vec![], "no masks"),
            (vec![(causal(40), 1), (causal(41), 1)], "masks[1]"),
            (vec![(causal(40), 1), (causal(40), 0)], "weight of masks[1]"),
            (vec![(causal(1 << 20), i64::MAX)], "2^62"),
        ] {
            let e = Key::create_joint(&context, masks, SHAPE, Config::default())
                .err()
                .unwrap();
            assert_eq!(e.status, Status::InvalidArgument);
            assert!(e.message.contains(word), "{}", e.message);
        }
        assert!(Key::last(&context).is_err());
        Ok(())
    })
    .unwrap();
}

/// A flat key tells what crosses hosts as soon as somebody says which ranks share one.
#[test]
fn volumes_follow_the_mesh() {
    local::run(4, |_, comm| {
        let context = Context::new(comm);
        let key = Key::create(&context, &causal(96), SHAPE, config())?;
        assert!(key.host_volume()?.is_none());
        context.set_mesh(2, 2)?;
        let volume = key.host_volume()?.unwrap();
        let moved = key.stats()?.ideal_volume;
        assert_eq!(volume.inter() + volume.intra(), moved);
        assert!(volume.inter() > 0 && volume.intra() > 0);
        assert!(Arc::ptr_eq(&volume, &key.host_volume()?.unwrap()));
        context.set_mesh(1, 4)?;
        let volume = key.host_volume()?.unwrap();
        assert_eq!((volume.inter(), volume.intra()), (0, moved));
        Ok(())
    })
    .unwrap();
}
