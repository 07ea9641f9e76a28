//! The ranks with which a plan exchanges rows: both sides name each other, and nobody else is named.

mod plan_common;

use std::collections::BTreeSet;
use std::sync::Arc;

use magi_attn::types::*;
use plan_common::*;

#[test]
fn both_sides_name_each_other_and_nobody_is_left_out() {
    let mut random = Random::new(5);
    let mut partial = 0;
    for round in 0..60 {
        let total = random.within(1, 80);
        let mask = random_mask(&mut random, total, total, 6);
        let world = [2, 4, 6][round % 3];
        let placement = Arc::new(random_placement(&mut random, &mask, world));
        let mut config = config(random.within(0, 3) as i32, random.within(0, 3) as i32);
        match round % 4 {
            0 => config.qo_comm = true,
            1 => {
                config.hierarchical_comm = true;
                config.mesh = Some(Mesh {
                    inter: 2,
                    intra: world / 2,
                });
            }
            _ => {}
        }
        let plans = plans(&mask, &placement, &config);
        for plan in &plans {
            let peers = plan.peers();
            for &peer in &peers {
                assert_ne!(peer, plan.rank);
                assert!(
                    plans[peer].peers().contains(&plan.rank),
                    "{} and {peer}",
                    plan.rank
                );
            }
            // Every row that comes in comes from one of them.
            let mut from = BTreeSet::new();
            for stage in plan.forward.stages.iter().chain(&plan.backward.stages) {
                let recvs: Vec<&Piece> = match &stage.two_level {
                    Some(t) => t.direct.iter().chain(&t.gateway).chain(&t.relayed).collect(),
                    None => stage.transfer.recvs.iter().collect(),
                };
                from.extend(
                    recvs
                        .into_iter()
                        .chain(&stage.guests.transfer.recvs)
                        .map(|p| p.peer as usize),
                );
            }
            assert!(from.iter().all(|p| peers.contains(p)));
            partial += usize::from(!peers.is_empty() && peers.len() < world - 1);
        }
    }
    assert!(partial > 0, "no plan left a rank out");
}
