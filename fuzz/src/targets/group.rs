//! Group plans of any lists on one to four ranks, straight or over a mesh of hosts: refused with an argument error, found not
//! to fit on all ranks alike, or what is sent comes back as often as it went.

use crate::bytes::Bytes;
use magi_attn::comm::Communicator;
use magi_attn::comm::local::{self, LocalComm};
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, GroupPlan, GroupRequest, GroupTensor, ReduceOp, group_call};
use magi_attn::types::{DType, Device, Piece, Range, Status, Tensor};
use std::sync::{Arc, Mutex};

/// Most rows of a tensor that is moved: more would only take time.
const MAX_ROWS: i64 = 512;

/// One group.
pub fn run(data: &[u8]) {
    let mut b = Bytes::new(data);
    let world = 1 + b.below(4);
    let mut requests: Vec<GroupRequest> = (0..world).map(|_| request(&mut b, world)).collect();
    // Lists that are read alone never fit together.
    if b.u8() & 3 != 3 {
        fit(&mut requests, &mut b);
    }
    let hosts = mesh(&mut requests, &mut b);
    let comms = local::create(world).unwrap_or_else(|e| panic!("{e}"));
    let mut taken = true;
    for (comm, request) in comms.into_iter().zip(&requests) {
        if let Err(e) = GroupPlan::create(&context(comm, hosts), request.clone(), None) {
            assert!(
                matches!(e.status, Status::InvalidArgument | Status::InvalidRange),
                "{e:?}"
            );
            assert!(e.message.starts_with("args."), "{e}");
            taken = false;
        }
    }
    let small = |r: &GroupRequest| r.local_rows.max(r.received_rows) <= MAX_ROWS;
    if taken && requests.iter().all(small) {
        move_rows(&requests, hosts);
    }
}

/// Sends rows over a mesh now and then, on some ranks or on all, and says of how many hosts.
fn mesh(requests: &mut [GroupRequest], b: &mut Bytes) -> usize {
    let world = requests.len();
    let choice = b.u8();
    for (rank, request) in requests.iter_mut().enumerate() {
        request.two_level = choice & 3 != 0 && (choice & 12 != 12 || choice >> 4 != rank as u8);
    }
    match choice & 3 {
        3 => world,
        2 if world == 4 => 2,
        _ => 1,
    }
}

/// A rank's context, with the mesh of so many hosts.
fn context(comm: Arc<LocalComm>, hosts: usize) -> Arc<Context> {
    let world = comm.size();
    let context = Context::new(comm);
    context
        .set_mesh(hosts, world / hosts)
        .unwrap_or_else(|e| panic!("{e}"));
    context
}

/// Lists of one rank, each number mostly sensible.
fn request(b: &mut Bytes, world: usize) -> GroupRequest {
    let (local_rows, received_rows) = (b.number(), b.number());
    let mut pieces = |n: usize| -> Vec<Piece> {
        let piece = |_| {
            let start = b.number();
            Piece {
                peer: b.mostly(0) as u32 ^ (u32::from(b.u8()) % world as u32),
                rows: Range::new(start, start.wrapping_add(b.mostly(2))),
            }
        };
        (0..n).map(piece).collect()
    };
    let (sends, receives) = (pieces(4), pieces(3));
    GroupRequest {
        local_rows,
        received_rows,
        sends,
        receives,
        tensors: vec![GroupTensor {
            row_elements: 1,
            dtype: DType::F64,
        }],
        reduce: true,
        strided: b.u8() & 1 == 1,
        two_level: false,
    }
}

/// Makes every rank receive what the others send to it, one piece below the other, with a number changed now and then.
fn fit(requests: &mut [GroupRequest], b: &mut Bytes) {
    let sends: Vec<Vec<Piece>> = requests.iter().map(|r| r.sends.clone()).collect();
    for (rank, request) in requests.iter_mut().enumerate() {
        request.receives.clear();
        let mut at = 0i64;
        for (source, list) in sends.iter().enumerate() {
            for p in list.iter().filter(|p| p.peer as usize == rank) {
                // Its ends may be any two numbers.
                let length = p.rows.end.saturating_sub(p.rows.start).max(0);
                let rows = Range::new(at, at.saturating_add(length));
                at = rows.end;
                request.receives.push(Piece {
                    peer: b.mostly(source as i64) as u32,
                    rows,
                });
            }
        }
        request.received_rows = b.mostly(at);
    }
}

fn tensor(values: &mut [f64]) -> Tensor {
    // SAFETY: the tensor is used while the values are borrowed by nobody else, in the function that owns them.
    unsafe {
        Tensor::dense(
            values.as_mut_ptr().cast(),
            DType::F64,
            Device::Cpu,
            &[values.len() as i64],
        )
    }
}

/// Casts rows and sums them up where they come from. All ranks agree that it works, or that they do not fit together.
fn move_rows(requests: &[GroupRequest], hosts: usize) {
    let answers = Mutex::new(Vec::new());
    local::run(requests.len(), |rank, comm| {
        let request = &requests[rank];
        let plan = GroupPlan::create(&context(comm, hosts), request.clone(), None)?;
        let prepared = plan.prepare(Stream::NULL);
        answers.lock().unwrap().push(prepared.clone());
        if prepared.is_err() {
            return Ok(());
        }
        let mut local: Vec<f64> = (0..request.local_rows)
            .map(|i| (rank * 1000) as f64 + i as f64)
            .collect();
        let mut received = vec![-1.0; request.received_rows as usize];
        let mut sums = vec![-1.0; local.len()];
        let (from, between, to) = ([tensor(&mut local)], [tensor(&mut received)], [tensor(&mut sums)]);
        group_call::cast(&plan, &from, &between, Stream::NULL)?;
        group_call::reduce(&plan, ReduceOp::Sum, &between, false, &to, Stream::NULL)?;
        for (row, (sum, value)) in sums.iter().zip(&local).enumerate() {
            let sent = request
                .sends
                .iter()
                .filter(|p| p.rows.contains(row as i64))
                .count();
            assert_eq!(*sum, value * sent as f64, "row {row} of rank {rank}");
        }
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e:?}"));
    let answers = answers.into_inner().unwrap();
    assert!(answers.iter().all(|a| a == &answers[0]), "{answers:?}");
    if let Err(e) = &answers[0] {
        assert_eq!(e.status, Status::PlanMismatch, "{e}");
    }
}
