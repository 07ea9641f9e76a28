//! Masks: what is refused and why, and that area, cells and spelling of what is taken agree.

use crate::bytes::Bytes;
use crate::masks::{Request, request};
use magi_attn::types::{Band, Error, Mask, Range, Slice, Status};

/// Masks of at most so many tokens on either side are compared cell by cell.
const SMALL: i64 = 64;

/// One mask.
pub fn run(data: &[u8]) {
    let request = request(&mut Bytes::new(data));
    let asked = match &request {
        Request::Typed(slices, q, k) => {
            let ranges = slices.iter().map(|s| (s.q, s.k, Band::FULL)).collect();
            expected(ranges, *q, *k).map(|()| slices.iter().map(Slice::from_typed).collect())
        }
        Request::Banded(slices, q, k) => {
            let ranges = slices.iter().map(|s| (s.q, s.k, s.band)).collect();
            expected(ranges, *q, *k).map(|()| slices.clone())
        }
        Request::Built(_) => Err(Status::Ok),
    };
    let answer = request.answer();
    match (asked, &answer) {
        (Ok(slices), _) => check_overlap(&slices, &answer),
        (Err(Status::Ok), Err(e)) => assert!(
            matches!(e.status, Status::InvalidArgument | Status::InvalidRange),
            "a builder answers {e:?}"
        ),
        (Err(Status::Ok), Ok(_)) => {}
        (Err(status), answer) => assert_eq!(answer.as_ref().map_err(|e| e.status).err(), Some(status)),
    }
    if let Ok(mask) = answer {
        check(&mask);
    }
}

/// Whether totals, rectangles and bands are in their bounds.
fn expected(slices: Vec<(Range, Range, Band)>, total_q: i64, total_k: i64) -> Result<(), Status> {
    let totals = [total_q, total_k].iter().all(|t| (0..=1 << 31).contains(t));
    let inside = |r: &Range, total: i64| 0 <= r.start && r.start <= r.end && r.end <= total;
    let bound = |x: i64| (i64::MIN / 4..=i64::MAX / 4).contains(&x);
    let fine = |(q, k, band): &(Range, Range, Band)| {
        inside(q, total_q) && inside(k, total_k) && bound(band.lo) && bound(band.hi)
    };
    if totals && slices.iter().all(fine) {
        Ok(())
    } else {
        Err(Status::InvalidRange)
    }
}

fn is_small(total_q: i64, total_k: i64) -> bool {
    total_q.max(total_k) <= SMALL
}

/// How many slices cover each cell.
fn cells(slices: &[Slice], total_q: i64, total_k: i64) -> Vec<u8> {
    let mut cells = vec![0u8; (total_q * total_k) as usize];
    for s in slices {
        for q in s.q.start..s.q.end {
            for k in s.k.start..s.k.end {
                cells[(q * total_k + k) as usize] += u8::from(s.band.contains(q, k));
            }
        }
    }
    cells
}

/// An overlap is reported exactly when there is one; the message names a cell and two slices that cover it.
fn check_overlap(slices: &[Slice], answer: &Result<Mask, Error>) {
    let (q, k) = slices
        .iter()
        .fold((0, 0), |(q, k), s| (s.q.end.max(q), s.k.end.max(k)));
    let known = is_small(q, k).then(|| cells(slices, q, k).iter().any(|&n| n > 1));
    match answer {
        Ok(_) => assert_ne!(known, Some(true), "an overlap was missed"),
        Err(e) => {
            assert_eq!(e.status, Status::MaskOverlap, "{e}");
            assert_ne!(known, Some(false), "{e}");
            let words = e
                .message
                .split(|c: char| !c.is_ascii_digit())
                .filter(|w| !w.is_empty());
            let n: Vec<i64> = words.map(|w| w.parse().unwrap()).collect();
            let [i, j, q, k] = n[..] else { panic!("{e}") };
            assert!(
                i != j && [i, j].iter().all(|&i| slices[i as usize].contains(q, k)),
                "{e}"
            );
        }
    }
}

/// Typed slices spell the same cells, each once.
fn check(mask: &Mask) {
    let (total_q, total_k) = (mask.total_q(), mask.total_k());
    let typed = mask.to_typed();
    let again = Mask::new(&typed, total_q, total_k).unwrap_or_else(|e| panic!("{typed:?}: {e}"));
    let printed: i64 = typed.iter().map(|t| Slice::from_typed(t).area()).sum();
    assert_eq!((mask.area(), mask.area()), (printed, again.area()));
    assert!(
        typed.iter().all(|t| Slice::from_typed(t).area() > 0),
        "an empty slice is printed"
    );
    if is_small(total_q, total_k) {
        let seen = cells(mask.slices(), total_q, total_k);
        assert_eq!(seen, cells(again.slices(), total_q, total_k));
        assert_eq!(seen.iter().map(|&n| i64::from(n)).sum::<i64>(), mask.area());
    }
}
