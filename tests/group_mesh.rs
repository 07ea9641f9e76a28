//! Group plans over a mesh of hosts: what the flat form gives, with every row across hosts once.

mod common_backend;
mod common_groups;
mod common_ranks;
mod common_reference;

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common_backend::{Buffer, Layout, Random};
use common_groups::{
    LAYOUTS, Lists, Local, ROWS, Reduction, Shape, check_cast, check_lse, check_sums, expected, filled,
    tensors_of,
};
use common_ranks::Host;
use magi_attn::comm::{Communicator, RecvOp, SendOp, Ticket, Traffic, local};
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, GroupPlan, ReduceOp, group_call};
use magi_attn::types::{Allocator, DType, Device, Error, Mesh, Piece, Range, Result, Status};
use proptest::prelude::*;

/// (hosts, ranks of a host).
const MESHES: [(usize, usize); 7] = [(2, 2), (2, 3), (3, 2), (4, 2), (2, 4), (1, 3), (3, 1)];

fn mesh_of((inter, intra): (usize, usize)) -> Mesh {
    Mesh { inter, intra }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_the_dense_reference(mesh in 0..MESHES.len(), seed in any::<u64>(), layout in 0..4usize, accumulate: bool, wide: bool) {
        let lists = Lists::random_over(mesh_of(MESHES[mesh]), &mut Random(seed));
        let layout = LAYOUTS[layout];
        let dtypes = [DType::Bf16, DType::F64];
        check_cast(&Local, &lists, Shape { dtypes, layout });
        check_sums(&Local, &lists, Shape { dtypes, layout }, Reduction { op: ReduceOp::Sum, accumulate, wide });
        let dtypes = [DType::F16, DType::F32];
        check_sums(&Local, &lists, Shape { dtypes, layout }, Reduction { op: ReduceOp::Avg, accumulate, wide });
        check_lse(&Local, &lists, DType::F64, accumulate, 1e-12);
        check_lse(&Local, &lists, DType::Bf16, accumulate, 0.05);
    }

    #[test]
    fn a_row_crosses_hosts_once(mesh in 0..MESHES.len(), seed in any::<u64>(), layout in 0..2usize) {
        let mesh = mesh_of(MESHES[mesh]);
        let mut lists = Lists::random_over(mesh, &mut Random(seed));
        let (once, often) = crossings(&lists, mesh);
        let relayed = mesh.inter > 1 && mesh.intra > 1;
        let cross = if relayed { once } else { often };
        let [wire, sums] = [DType::Bf16, DType::F32].map(|d| (ROWS[0][0] * ROWS[0][1] + ROWS[1][0] * ROWS[1][1]) as u64 * d.size() as u64);
        let back = if relayed { sums } else { wire };
        prop_assert_eq!(bytes_between_hosts(&lists, mesh, LAYOUTS[layout]), [cross * wire, cross * back]);
        lists.mesh = None;
        prop_assert_eq!(bytes_between_hosts(&lists, mesh, LAYOUTS[layout]), [often * wire, often * wire]);
    }
}

/// Rows that cross hosts: each once for every host that it goes to, and once for every time that it is sent.
fn crossings(lists: &Lists, mesh: Mesh) -> (u64, u64) {
    let (mut once, mut often) = (BTreeSet::new(), 0);
    for (owner, sends) in lists.sends.iter().enumerate() {
        let far = |p: &&Piece| mesh.host(p.peer as usize) != mesh.host(owner);
        for p in sends.iter().filter(far) {
            often += p.rows.len() as u64;
            once.extend((p.rows.start..p.rows.end).map(|row| (owner, mesh.host(p.peer as usize), row)));
        }
    }
    (once.len() as u64, often)
}

/// A communicator that counts what it sends to other hosts.
struct Counting {
    comm: Arc<dyn Communicator>,
    mesh: Mesh,
    crossed: AtomicU64,
}

impl Communicator for Counting {
    fn rank(&self) -> usize {
        self.comm.rank()
    }
    fn size(&self) -> usize {
        self.comm.size()
    }
    fn device(&self) -> Device {
        self.comm.device()
    }
    unsafe fn start(&self, sends: &[SendOp], recvs: &[RecvOp], stream: Stream) -> Result<Ticket> {
        let away = |op: &&SendOp| self.mesh.host(op.peer) != self.mesh.host(self.rank());
        let bytes: usize = sends.iter().filter(away).map(|op| op.bytes).sum();
        self.crossed.fetch_add(bytes as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.comm.start(sends, recvs, stream) }
    }
    fn finish(&self, ticket: Ticket, stream: Stream) -> Result<()> {
        self.comm.finish(ticket, stream)
    }
    fn all_gather(&self, mine: &[u8], stream: Stream) -> Result<Vec<Vec<u8>>> {
        self.comm.all_gather(mine, stream)
    }
    fn split(&self, members: &[usize]) -> Result<Arc<dyn Communicator>> {
        self.comm.split(members)
    }
    fn set_timeout(&self, timeout: Duration) {
        self.comm.set_timeout(timeout);
    }
    fn timeout(&self) -> Duration {
        self.comm.timeout()
    }
    fn traffic(&self) -> Traffic {
        self.comm.traffic()
    }
    fn async_error(&self) -> Option<Error> {
        self.comm.async_error()
    }
    fn abort(&self, why: &str) {
        self.comm.abort(why);
    }
    fn fail(&self, error: &Error) {
        self.comm.fail(error);
    }
    fn leave(&self) {
        self.comm.leave();
    }
}

/// What one cast and one reduction of bf16 send to other hosts.
fn bytes_between_hosts(lists: &Lists, mesh: Mesh, layout: Layout) -> [u64; 2] {
    let total = Mutex::new([0; 2]);
    local::run(lists.world, |rank, comm| {
        let comm = Arc::new(Counting {
            comm,
            mesh,
            crossed: AtomicU64::new(0),
        });
        let context = Context::new(comm.clone());
        let plan = lists.plan(
            &context,
            &tensors_of([DType::Bf16; 2]),
            [true, layout != Layout::Dense],
        )?;
        let of = |rows: i64| [0, 1].map(|w| filled(&Host, 1, rank, w, rows, (DType::Bf16, layout)));
        let (mut local, mut received) = (of(lists.local_rows[rank]), of(lists.received_rows[rank]));
        let (local, received) = (
            local.each_mut().map(Buffer::tensor),
            received.each_mut().map(Buffer::tensor),
        );
        group_call::cast(&plan, &local, &received, Stream::NULL)?;
        let cast = comm.crossed.swap(0, Ordering::Relaxed);
        group_call::reduce(&plan, ReduceOp::Sum, &received, false, &local, Stream::NULL)?;
        let mut total = total.lock().unwrap();
        total[0] += cast;
        total[1] += comm.crossed.load(Ordering::Relaxed);
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
    total.into_inner().unwrap()
}

/// Rank 0 sends its rows to all ranks; the other ranks send nothing.
fn broadcast(mesh: Mesh, rows: i64) -> Lists {
    let world = mesh.inter * mesh.intra;
    let to = |peer: usize| Piece {
        peer: peer as u32,
        rows: Range::new(0, rows),
    };
    let mut sends = vec![Vec::new(); world];
    sends[0] = (0..world).map(to).collect();
    Lists {
        world,
        local_rows: (0..world).map(|r| if r == 0 { rows } else { 0 }).collect(),
        received_rows: vec![rows; world],
        sends,
        receives: vec![vec![to(0)]; world],
        mesh: Some(mesh),
    }
}

fn cast_works(context: &Arc<Context>, lists: &Lists) -> Result<()> {
    let rank = context.rank();
    let plan = lists.plan(context, &tensors_of([DType::F32; 2]), [false; 2])?;
    cast(&plan, lists, rank)
}

fn cast(plan: &GroupPlan, lists: &Lists, rank: usize) -> Result<()> {
    let of = |kind, w: usize, rows| filled(&Host, kind, rank, w, rows, (DType::F32, Layout::Dense));
    let mut local = [0, 1].map(|w| of(1, w, lists.local_rows[rank]));
    let mut received = [0, 1].map(|w| of(9, w, lists.received_rows[rank]));
    let (from, to) = (
        local.each_mut().map(Buffer::tensor),
        received.each_mut().map(Buffer::tensor),
    );
    group_call::cast(plan, &from, &to, Stream::NULL)?;
    for (w, received) in received.iter().enumerate() {
        assert_eq!(received.values(), expected(lists, rank, w, DType::F32));
    }
    Ok(())
}

#[test]
fn ranks_that_disagree_about_the_mesh_all_learn_it() {
    let (square, wide, tall) = (mesh_of((2, 3)), mesh_of((3, 2)), mesh_of((1, 6)));
    let right = broadcast(square, 2);
    for (odd, mesh, what) in [
        (
            4,
            None,
            "rank 4 moves rows straight to their ranks, rank 0 over 2 hosts of 3 ranks",
        ),
        (
            1,
            Some(wide),
            "rank 1 moves rows over 3 hosts of 2 ranks, rank 0 over 2 hosts of 3 ranks",
        ),
        (
            5,
            Some(tall),
            "rank 5 moves rows over 1 hosts of 6 ranks, rank 0 over 2 hosts of 3 ranks",
        ),
        (
            0,
            None,
            "rank 1 moves rows over 2 hosts of 3 ranks, rank 0 straight to their ranks",
        ),
    ] {
        local::run(6, |rank, comm| {
            let context = Context::new(comm);
            let mut lists = right.clone();
            if rank == odd {
                lists.mesh = mesh;
            }
            let plan = lists.plan(&context, &tensors_of([DType::F32; 2]), [false; 2])?;
            let e = plan.prepare(Stream::NULL).unwrap_err();
            assert_eq!(e.status, Status::PlanMismatch);
            assert!(
                e.message.starts_with("ranks disagree on the group: ") && e.message.contains(what),
                "{e}"
            );
            assert!(context.async_error().is_none());
            cast_works(&context, &right)
        })
        .unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn a_mesh_is_needed() {
    let lists = broadcast(mesh_of((2, 2)), 1);
    let context = Context::new(local::create(4).unwrap().remove(0));
    let request = lists.request(0, &tensors_of([DType::F32; 2]), false, false);
    let e = GroupPlan::create(&context, request, None).err().unwrap();
    assert_eq!(e.status, Status::InvalidArgument);
    assert!(e.message.contains("nothing says which ranks share a host"), "{e}");
}

/// Memory that is counted, and refused when there is no more budget.
struct Budget {
    calls: AtomicUsize,
    bytes: AtomicUsize,
    budget: AtomicUsize,
}

impl Budget {
    fn new(budget: usize) -> Budget {
        Budget {
            calls: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            budget: AtomicUsize::new(budget),
        }
    }

    fn allocator(&self) -> Allocator {
        Allocator {
            alloc: take,
            free: give,
            userdata: std::ptr::from_ref(self).cast_mut().cast(),
        }
    }
}

unsafe extern "C" fn take(bytes: usize, userdata: *mut c_void) -> *mut c_void {
    // SAFETY: `Budget::allocator` gave the address of a budget that outlives the communicator.
    let budget = unsafe { &*userdata.cast::<Budget>() };
    budget.calls.fetch_add(1, Ordering::Relaxed);
    if bytes > budget.budget.load(Ordering::Relaxed) {
        return std::ptr::null_mut();
    }
    budget.bytes.store(bytes, Ordering::Relaxed);
    let layout = std::alloc::Layout::from_size_align(bytes, 256).unwrap();
    // SAFETY: the arena asks for no block without bytes.
    unsafe { std::alloc::alloc(layout).cast() }
}

unsafe extern "C" fn give(pointer: *mut c_void, bytes: usize, _userdata: *mut c_void) {
    let layout = std::alloc::Layout::from_size_align(bytes, 256).unwrap();
    // SAFETY: what `take` gave.
    unsafe { std::alloc::dealloc(pointer.cast(), layout) };
}

#[test]
fn prepare_takes_the_workspace_that_the_plan_names_and_calls_take_none() {
    let (mesh, rows) = (mesh_of((2, 2)), 40);
    let lists = broadcast(mesh, rows);
    let tensors = tensors_of([DType::Bf16; 2]);
    let budgets: Vec<Budget> = (0..4).map(|_| Budget::new(1 << 20)).collect();
    local::run(4, |rank, comm| {
        let context = Context::new(comm);
        context.set_mesh(2, 2)?;
        let request = lists.request(rank, &tensors, true, false);
        let plan = GroupPlan::create(&context, request, Some(budgets[rank].allocator()))?;
        let e = plan.workspace_bytes().unwrap_err();
        assert_eq!(e.status, Status::InvalidArgument);
        assert!(e.message.contains("is not prepared"), "{e}");
        plan.prepare(Stream::NULL)?;
        // Rounded up to 256 bytes each, for rows of 6 and of 5 elements. The owner: what its host sends (bf16), the sum of
        // the other host and its own sums (f32). The gateway: its buffer (f32), what the fourth rank sends (bf16).
        let block = |rows: i64, element: i64| -> i64 {
            [6, 5]
                .map(|n: i64| ((rows * n * element + 255) / 256) * 256)
                .iter()
                .sum()
        };
        let want = match rank {
            0 => block(rows, 2) + 2 * block(rows, 4),
            2 => block(rows, 4) + block(rows, 2),
            _ => 0,
        };
        assert_eq!(plan.workspace_bytes()? as i64, want, "rank {rank}");
        for _ in 0..3 {
            let mut local = [0, 1].map(|w| {
                filled(
                    &Host,
                    1,
                    rank,
                    w,
                    lists.local_rows[rank],
                    (DType::Bf16, Layout::Dense),
                )
            });
            let mut received = [0, 1].map(|w| filled(&Host, 9, rank, w, rows, (DType::Bf16, Layout::Dense)));
            let (from, to) = (
                local.each_mut().map(Buffer::tensor),
                received.each_mut().map(Buffer::tensor),
            );
            group_call::cast(&plan, &from, &to, Stream::NULL)?;
            group_call::reduce(&plan, ReduceOp::Avg, &to, false, &from, Stream::NULL)?;
            for (w, local) in local.iter().enumerate() {
                let sent = filled(
                    &Host,
                    1,
                    rank,
                    w,
                    lists.local_rows[rank],
                    (DType::Bf16, Layout::Dense),
                );
                assert_eq!(local.values(), sent.values(), "the mean of equal values");
            }
        }
        let budget = &budgets[rank];
        assert_eq!(budget.calls.load(Ordering::Relaxed), usize::from(want > 0));
        assert_eq!(budget.bytes.load(Ordering::Relaxed) as i64, want);
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_gateway_without_memory_is_heard_of_on_every_rank() {
    let lists = broadcast(mesh_of((2, 2)), 3);
    let tensors = tensors_of([DType::F32; 2]);
    let budgets: Vec<Budget> = (0..4)
        .map(|r| Budget::new(if r == 2 { 0 } else { 1 << 20 }))
        .collect();
    local::run(4, |rank, comm| {
        let context = Context::new(comm);
        context.set_mesh(2, 2)?;
        let request = lists.request(rank, &tensors, false, false);
        let plan = GroupPlan::create(&context, request, Some(budgets[rank].allocator()))?;
        let e = plan.prepare(Stream::NULL).unwrap_err();
        assert_eq!(e.status, Status::OutOfMemory);
        let what = if rank == 2 {
            "caller's allocator"
        } else {
            "rank 2 could not take its workspace"
        };
        assert!(e.message.contains(what), "{e}");
        assert!(context.async_error().is_none());
        budgets[rank].budget.store(1 << 20, Ordering::Relaxed);
        cast(&plan, &lists, rank)
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn one_rank_to_a_host_and_one_host_go_straight() {
    for mesh in [(1, 4), (4, 1)] {
        let lists = broadcast(mesh_of(mesh), 5);
        local::run(4, |rank, comm| {
            let context = Context::new(comm);
            let tensors = tensors_of([DType::F32; 2]);
            let plan = lists.plan(&context, &tensors, [true, false])?;
            let flat = Lists {
                mesh: None,
                ..lists.clone()
            }
            .plan(&context, &tensors, [true, false])?;
            assert_eq!(plan.workspace_bytes()?, flat.workspace_bytes()?);
            cast(&plan, &lists, rank)?;
            let sent = context.comm().traffic().sent;
            assert_eq!(sent, if rank == 0 { 3 * 5 * 11 * 4 } else { 0 });
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn gateways_send_what_the_owner_does_not() {
    let lists = broadcast(mesh_of((2, 3)), 7);
    local::run(6, |rank, comm| {
        let context = Context::new(comm);
        cast_works(&context, &lists)?;
        let rows = 7 * 11 * 4;
        // The owner: two ranks of its host, and the gateway; the gateway: two ranks of its own.
        let want = match rank {
            0 => Traffic {
                sent: 3 * rows,
                received: 0,
            },
            3 => Traffic {
                sent: 2 * rows,
                received: rows,
            },
            _ => Traffic {
                sent: 0,
                received: rows,
            },
        };
        assert_eq!(context.comm().traffic(), want, "rank {rank}");
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

/// Lists that every rank can hold, of which a gateway could not: two owners with as many rows as there can be.
#[test]
fn more_rows_than_a_gateway_can_hold() {
    let rows = isize::MAX as i64 / (8 * 6);
    let to = |peer: u32| Piece {
        peer,
        rows: Range::new(0, rows),
    };
    // Rank 6 is the gateway of ranks 0 and 2.
    let mut lists = broadcast(mesh_of((4, 2)), 0);
    (lists.sends[0], lists.receives[0]) = (vec![to(6)], Vec::new());
    lists.sends[2] = vec![to(7)];
    lists.receives = vec![Vec::new(); 8];
    (lists.receives[6], lists.receives[7]) = (vec![to(0)], vec![to(2)]);
    for rank in [0, 2] {
        lists.local_rows[rank] = rows;
    }
    lists.received_rows = (0..8).map(|r| if r < 6 { 0 } else { rows }).collect();
    local::run(8, |rank, comm| {
        let context = Context::new(comm);
        let plan = lists.plan(&context, &tensors_of([DType::Bf16; 2]), [false; 2])?;
        let e = plan.prepare(Stream::NULL).unwrap_err();
        assert_eq!(e.status, Status::OutOfMemory, "{e}");
        let what = if rank == 6 {
            "more rows pass through this rank than memory can hold"
        } else {
            "rank 6 could not take its workspace"
        };
        assert!(e.message.contains(what), "{e}");
        assert!(context.async_error().is_none());
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e}"));
}
