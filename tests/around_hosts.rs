//! What crosses hosts, counted from the pieces of all ranks' plans.

mod plan_common;

use magi_attn::plan::{HostVolume, Plan};
use magi_attn::types::*;
use plan_common::*;
use std::sync::Arc;

/// Adds the rows that `pieces` of `rank` send, by whether they leave its host.
fn count(volume: &mut HostVolume, rank: usize, pieces: &[Piece]) {
    for piece in pieces {
        let peer = piece.peer as usize;
        let (sent, received) = if volume.mesh.host(rank) == volume.mesh.host(peer) {
            (&mut volume.sent_intra, &mut volume.received_intra)
        } else {
            (&mut volume.sent_inter, &mut volume.received_inter)
        };
        sent[rank] += piece.rows.len();
        received[peer] += piece.rows.len();
    }
}

/// The volume of plans by what each rank sends, in one level or two.
fn counted(plans: &[Plan], mesh: Mesh) -> HostVolume {
    let none = vec![0; plans.len()];
    let mut volume = HostVolume {
        mesh,
        sent_inter: none.clone(),
        sent_intra: none.clone(),
        received_inter: none.clone(),
        received_intra: none,
        one_level: 0,
    };
    for (rank, plan) in plans.iter().enumerate() {
        for stage in &plan.forward.stages {
            match &stage.two_level {
                Some(levels) => {
                    count(&mut volume, rank, &levels.sends);
                    count(&mut volume, rank, &levels.forwards);
                }
                None => count(&mut volume, rank, &stage.transfer.sends),
            }
            let leaves = |p: &&Piece| mesh.host(rank) != mesh.host(p.peer as usize);
            let crossing = stage.transfer.sends.iter().filter(leaves);
            volume.one_level += crossing.map(|p| p.rows.len()).sum::<i64>();
        }
    }
    volume
}

#[test]
fn volumes_are_what_plans_send() {
    let mut random = Random::new(91);
    let mut saved = 0;
    for round in 0..150 {
        let mesh = Mesh {
            inter: random.within(1, 4) as usize,
            intra: random.within(1, 4) as usize,
        };
        let total = random.within(1, 70);
        let mask = random_mask(&mut random, total, total + round % 3, 8);
        let placement = Arc::new(random_placement(&mut random, &mask, mesh.inter * mesh.intra));
        for hierarchical_comm in [false, true] {
            let settings = Config {
                hierarchical_comm,
                mesh: hierarchical_comm.then_some(mesh),
                ..config([1, 0, 3][round as usize % 3], 1)
            };
            let told = HostVolume::new(&mask, &placement, &shape(), &settings, mesh).unwrap();
            let want = counted(&plans(&mask, &placement, &settings), mesh);
            assert_eq!(told, want, "{mesh:?} {settings:?}");
            assert_eq!(told.inter(), told.sent_inter.iter().sum::<i64>());
            assert_eq!(told.intra(), told.sent_intra.iter().sum::<i64>());
            assert!(told.inter() <= told.one_level);
            saved += told.one_level - told.inter();
        }
    }
    assert!(saved > 100, "two levels saved {saved} keys in all");
}

#[test]
fn other_totals_are_refused() {
    let mask = documents(&[40], MaskType::Causal);
    let placement = magi_attn::plan::Placement::new(&mask, 4, &Config::default()).unwrap();
    let mesh = Mesh { inter: 2, intra: 2 };
    let other = documents(&[41], MaskType::Causal);
    let e = HostVolume::new(&other, &placement, &shape(), &Config::default(), mesh).unwrap_err();
    assert_eq!(e.status, Status::InvalidArgument);
}
