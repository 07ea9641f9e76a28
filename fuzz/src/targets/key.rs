//! Plans of any mask, shape, config and number of ranks: refused with an argument error, or right.

use crate::bytes::Bytes;
use crate::masks::request;
use magi_attn::plan::{Plan, Stage, Stats, verify};
use magi_attn::types::{AttnShape, Config, DType, DsinkReduce, HostStage, Mask, PlacementKind, Status};

/// Most chunks that are planned: what verifying them takes grows with their square.
const MAX_CHUNKS: i128 = 160;

/// One plan.
pub fn run(data: &[u8]) {
    let mut b = Bytes::new(data);
    let (world, rank) = (b.number() as usize, b.number() as usize);
    // Ranks are taken into the world more often than not.
    let rank = if b.u8() & 7 == 7 {
        rank
    } else {
        rank % world.max(1)
    };
    let (mut config, shape) = (config(&mut b), shape(&mut b));
    let Ok(mask) = request(&mut b).answer() else {
        return;
    };
    let most = mask.total_q().max(mask.total_k());
    // Left to itself the planner makes many chunks of many tokens.
    if config.chunk_size == 0 && most > 1 << 13 {
        config.chunk_size = most / 32;
    }
    if chunks(&mask, world, &config) > MAX_CHUNKS {
        return;
    }
    match Plan::new(&mask, &shape, world, rank, &config) {
        Ok(plan) => check(&plan, &mask, &shape, &config),
        Err(e) => assert!(
            matches!(
                e.status,
                Status::InvalidArgument | Status::InvalidRange | Status::DtypeMismatch
            ),
            "{e:?}"
        ),
    }
}

/// Chunks that the plan may have, at least.
fn chunks(mask: &Mask, world: usize, config: &Config) -> i128 {
    let total = i128::from(mask.total_q().max(mask.total_k()));
    match config.chunk_size {
        0 => (i128::from(config.min_chunks_per_rank) * world as i128).min(total),
        size => total / i128::from(size.max(1)),
    }
}

fn config(b: &mut Bytes) -> Config {
    let flags = b.u8();
    Config {
        chunk_size: b.number(),
        min_chunks_per_rank: b.mostly(2),
        placement: [
            PlacementKind::Balanced,
            PlacementKind::Sequential,
            PlacementKind::Zigzag,
            PlacementKind::ByDocument,
            PlacementKind::TopHeap,
        ][usize::from(flags) % 5],
        degree_forward: (b.number().wrapping_sub(1)) as i32 & 15,
        degree_backward: b.small_number(),
        bwd_hide_tail_reduce: HostStage::numbered(i64::from(flags & 3) - 1).unwrap_or_default(),
        backward_high_precision_reduce: flags & 2 != 0,
        dsink_reduce: [DsinkReduce::None, DsinkReduce::Sum, DsinkReduce::Avg][usize::from(flags >> 2) % 3],
        sanity_check: flags & 32 != 0,
        qo_comm: flags & 64 != 0,
        forward_high_precision_reduce: flags & 128 != 0,
        ..Config::default()
    }
}

fn shape(b: &mut Bytes) -> AttnShape {
    AttnShape {
        heads_q: b.mostly(4),
        heads_kv: b.mostly(2),
        head_dim: b.mostly(8),
        head_dim_v: b.mostly(16),
        dtype: DType::from_i32(b.mostly(2) as i32 % 10).unwrap_or(DType::F64),
    }
}

fn check(plan: &Plan, mask: &Mask, shape: &AttnShape, config: &Config) {
    verify(plan, mask).unwrap_or_else(|e| panic!("{e}"));
    let stats = Stats::new(mask, &plan.placement, shape, config).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(stats.area.iter().sum::<i64>(), mask.area());
    assert_eq!(stats.tokens_q.iter().sum::<i64>(), mask.total_q());
    assert_eq!(stats.tokens_k.iter().sum::<i64>(), mask.total_k());
    assert_eq!(stats.area_backward.iter().sum::<i64>(), mask.area());
    for volume in &stats.volume {
        assert!(volume.bytes() <= volume.keys_only_bytes, "{volume:?}");
        assert!(volume.most_bytes() <= volume.keys_only_most_bytes, "{volume:?}");
        assert_eq!(volume.received.iter().sum::<i64>(), volume.bytes());
        assert_eq!(volume.sent.iter().sum::<i64>(), volume.bytes());
    }
    if stats.volume[0].queries == 0 {
        assert_eq!(stats.volume[0].keys, stats.ideal_volume);
    }
    assert_eq!(stats.sent.iter().sum::<i64>(), stats.volume[0].keys);
    assert_eq!(stats.received.iter().sum::<i64>(), stats.volume[0].keys);
    assert!(stats.balance_bound <= stats.balance * (1.0 + 1e-12), "{stats:?}");
    let received: i64 = plan.forward.stages.iter().map(|s| s.transfer.recv_rows).sum();
    assert_eq!(received, stats.received[plan.rank]);
    let guests = |s: &Stage| s.guests.transfer.recv_rows;
    let guests: i64 = plan.forward.stages.iter().map(guests).sum();
    assert_eq!(guests, stats.queries_received[plan.rank]);
    let other = Plan::new(mask, shape, plan.world, plan.world - 1, config).unwrap();
    assert_eq!((plan.hash, &plan.placement), (other.hash, &other.placement));
}
