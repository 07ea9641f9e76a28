//! Masks against cells counted one by one: overlap, printing, cutting, edge cases.

mod common;

use std::time::Instant;

use common::{any_mask, any_slices, cells, cells_of, load_cases, share_a_cell};
use magi_attn::types::{Band, Mask, MaskType, Range, Slice, Status, TypedSlice};
use proptest::prelude::*;

fn typed(q: (i64, i64), k: (i64, i64), mask_type: MaskType) -> TypedSlice {
    TypedSlice {
        q: Range::new(q.0, q.1),
        k: Range::new(k.0, k.1),
        mask_type,
    }
}

/// Reads `slices[a] and slices[b] both cover query q, key k`.
fn parse_overlap(message: &str) -> (usize, usize, i64, i64) {
    let numbers: Vec<i64> = message
        .split(|c: char| !c.is_ascii_digit())
        .filter(|s| !s.is_empty())
        .map(|s| s.parse().unwrap())
        .collect();
    let [a, b, q, k] = numbers[..] else {
        panic!("{message:?} does not hold four numbers")
    };
    let want = format!("slices[{a}] and slices[{b}] both cover query {q}, key {k}");
    assert_eq!(message, want);
    (a as usize, b as usize, q, k)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn overlap_is_found_exactly_when_a_cell_is_covered_twice((slices, tq, tk) in any_slices(24, 7)) {
        let twice = cells_of(&slices, tq, tk).iter().any(|&n| n > 1);
        match Mask::from_slices(slices.clone(), tq, tk) {
            Ok(_) => prop_assert!(!twice),
            Err(e) => {
                prop_assert_eq!(e.status, Status::MaskOverlap);
                let (a, b, q, k) = parse_overlap(&e.message);
                prop_assert!(a < b && slices[a].contains(q, k) && slices[b].contains(q, k));
            }
        }
    }

    // Thin slices side by side, upright or slanting: they run into each other far below the row where both begin,
    // some of them after a slice between them has ended.
    #[test]
    fn overlap_that_begins_late_is_found(
        thin in prop::collection::vec((0..20i64, 1..24i64, 1..4i64, any::<bool>()), 2..8),
    ) {
        let total = 60;
        let slices: Vec<Slice> = thin.iter().enumerate().map(|(i, &(start, rows, width, slants))| {
            let (q, left) = (Range::new(start, start + rows), 4 * i as i64);
            if slants {
                let band = Band::new(left - start, left - start + width - 1);
                Slice::new(q, Range::new(0, total), band)
            } else {
                Slice::new(q, Range::new(left, left + width), Band::FULL)
            }
        }).collect();
        let twice = cells_of(&slices, total, total).iter().any(|&n| n > 1);
        prop_assert_eq!(Mask::from_slices(slices, total, total).is_err(), twice);
    }

    #[test]
    fn printed_slices_parse_back_to_the_same_cells((slices, tq, tk) in any_slices(20, 1)) {
        for s in &slices {
            let printed = s.to_typed();
            prop_assert!(printed.len() <= 3);
            prop_assert!(printed.windows(2).all(|p| p[0].q.end <= p[1].q.start));
            let back: Vec<Slice> = printed.iter().map(Slice::from_typed).collect();
            prop_assert!(back.iter().all(|b| !b.is_empty()));
            prop_assert_eq!(cells_of(&back, tq, tk), cells_of(&[*s], tq, tk));
        }
    }
}

proptest! {
    // Masks that are disjoint by construction, but for one cell that is covered again.
    #[test]
    fn one_cell_too_many_is_found(mask in any_mask(40, 40), at in any::<prop::sample::Index>(), last in any::<bool>()) {
        let (tq, tk) = (mask.total_q(), mask.total_k());
        let covered: Vec<usize> = cells(&mask).iter().enumerate().filter(|c| *c.1 > 0).map(|c| c.0).collect();
        if !covered.is_empty() {
            let cell = covered[at.index(covered.len())] as i64;
            let (q, k) = (cell / tk, cell % tk);
            let extra = Slice::new(Range::new(q, q + 1), Range::new(k, k + 1), Band::FULL);
            let mut slices = mask.slices().to_vec();
            let place = if last { slices.len() } else { 0 };
            slices.insert(place, extra);
            let error = Mask::from_slices(slices.clone(), tq, tk).unwrap_err();
            let (a, b, eq, ek) = parse_overlap(&error.message);
            prop_assert!(a == place || b == place);
            prop_assert_eq!((eq, ek), (q, k));
        }
    }

    #[test]
    fn random_masks_cover_no_cell_twice_and_print_as_they_are(mask in any_mask(40, 40)) {
        let want = cells(&mask);
        prop_assert!(want.iter().all(|&n| n <= 1));
        prop_assert_eq!(mask.area(), want.iter().map(|&n| i64::from(n)).sum::<i64>());
        let back = Mask::new(&mask.to_typed(), mask.total_q(), mask.total_k()).unwrap();
        prop_assert_eq!(cells(&back), want);
        prop_assert_eq!(back.area(), mask.area());
    }

    #[test]
    fn cut_then_area_is_area_then_cut(
        mask in any_mask(60, 20),
        q_cuts in prop::collection::vec(0..=60i64, 0..6),
        k_cuts in prop::collection::vec(0..=60i64, 0..6),
    ) {
        let pieces = |mut cuts: Vec<i64>, total: i64| {
            cuts.extend([0, total]);
            cuts.iter_mut().for_each(|c| *c = (*c).min(total));
            cuts.sort_unstable();
            cuts.windows(2).map(|w| Range::new(w[0], w[1])).collect::<Vec<_>>()
        };
        let visible = cells(&mask);
        let mut sum = 0;
        for q in pieces(q_cuts, mask.total_q()) {
            for k in pieces(k_cuts.clone(), mask.total_k()) {
                let area: i64 = mask.slices().iter().map(|s| s.cut(&q, &k).area()).sum();
                let counted: i64 = (q.start..q.end)
                    .map(|q| (k.start..k.end).map(|k| i64::from(visible[(q * mask.total_k() + k) as usize])).sum::<i64>())
                    .sum();
                prop_assert_eq!(area, counted);
                sum += area;
            }
        }
        prop_assert_eq!(sum, mask.area());
    }
}

#[test]
fn random_masks_have_what_they_promise() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let strategy = any_mask(300, 40);
    let masks: Vec<Mask> = (0..200)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect();
    let some = |f: &dyn Fn(&Mask) -> bool| masks.iter().filter(|m| f(m)).count();
    let pair = |m: &Mask, f: &dyn Fn(&Slice, &Slice) -> bool| {
        let live: Vec<&Slice> = m.slices().iter().filter(|s| !s.is_empty()).collect();
        (0..live.len()).any(|i| live[..i].iter().any(|a| f(a, live[i])))
    };
    let rows_meet = |a: &Slice, b: &Slice| !a.visible_rows().intersect(&b.visible_rows()).is_empty();
    let keys_meet = |a: &Slice, b: &Slice| !a.visible_keys().intersect(&b.visible_keys()).is_empty();
    assert!(some(&|m| m.total_q() != m.total_k()) > 50);
    assert!(some(&|m| m.slices().len() >= 20) > 20);
    assert!(some(&|m| m.slices().iter().any(Slice::is_empty)) > 20);
    assert!(some(&|m| pair(m, &rows_meet)) > 50);
    assert!(some(&|m| pair(m, &keys_meet)) > 50);
    assert!(
        some(&|m| pair(m, &|a, b| rows_meet(a, b)
            && keys_meet(a, b)
            && !share_a_cell(a, b)))
            > 20
    );
    assert!(some(&|m| m.slices().iter().any(|s| s.to_typed().len() == 3)) > 20);
    for t in 0..4 {
        let t = MaskType::from_i32(t).unwrap();
        assert!(
            some(&|m| m.to_typed().iter().any(|s| s.mask_type == t)) > 50,
            "{t:?}"
        );
    }
}

#[test]
fn overlap_message_names_slices_and_cell() {
    let slices = [
        typed((0, 4), (0, 4), MaskType::Full),
        typed((9, 9), (0, 4), MaskType::Full),
        typed((4, 8), (0, 8), MaskType::Causal),
        typed((0, 6), (4, 6), MaskType::Full),
    ];
    let error = Mask::new(&slices, 9, 9).unwrap_err();
    assert_eq!(error.status, Status::MaskOverlap);
    assert_eq!(error.message, "slices[2] and slices[3] both cover query 4, key 4");
}

#[test]
fn neighbours_that_a_leaving_slice_uncovers_are_compared() {
    // Between the two bands stands a third slice until row 4; they meet only at row 8, after the last slice began.
    let left = Slice::new(Range::new(0, 10), Range::new(0, 20), Band::new(0, 0));
    let middle = Slice::new(Range::new(0, 4), Range::new(6, 7), Band::FULL);
    let right = Slice::new(Range::new(0, 10), Range::new(8, 20), Band::new(-20, 10));
    let error = Mask::from_slices(vec![left, middle, right], 20, 20).unwrap_err();
    assert_eq!(error.message, "slices[0] and slices[2] both cover query 8, key 8");
    let apart = Slice::new(Range::new(0, 10), Range::new(10, 20), Band::FULL);
    assert!(Mask::from_slices(vec![left, middle, apart], 20, 20).is_ok());
}

#[test]
fn bands_that_complete_each_other_share_no_cell() {
    let rect = (Range::new(0, 100), Range::new(0, 100));
    let strips: Vec<Slice> = (-20..20)
        .map(|i| Slice::new(rect.0, rect.1, Band::new(5 * i, 5 * i + 4)))
        .collect();
    assert_eq!(
        Mask::from_slices(strips.clone(), 100, 100).unwrap().area(),
        100 * 100
    );
    let mut wide = strips;
    wide[3].band.hi += 1;
    let error = Mask::from_slices(wide, 100, 100).unwrap_err();
    let (a, b, q, k) = parse_overlap(&error.message);
    assert_eq!((a, b, k - q), (3, 4, -80));
}

#[test]
fn bounds_that_would_overflow_are_refused() {
    let rect = (Range::new(0, 1), Range::new(0, 1));
    for (band, text) in [
        (
            Band::new(i64::MIN, 0),
            "slices[0].band.lo is -9223372036854775808; ",
        ),
        (
            Band::new(0, i64::MAX),
            "slices[0].band.hi is 9223372036854775807; ",
        ),
    ] {
        let error = Mask::from_slices(vec![Slice::new(rect.0, rect.1, band)], 1, 1).unwrap_err();
        assert_eq!(error.status, Status::InvalidRange);
        assert!(error.message.starts_with(text), "{}", error.message);
    }
    let least = Slice::new(rect.0, rect.1, Band::new(Band::NO_LO, Band::NO_LO));
    let most = Slice::new(rect.0, rect.1, Band::new(Band::NO_HI, Band::NO_HI));
    assert_eq!(Mask::from_slices(vec![least, most], 1, 1).unwrap().area(), 0);
}

#[test]
fn ranges_out_of_order_or_outside_are_refused_by_name() {
    for (q, k, text) in [
        ((3, 2), (0, 1), "slices[1].q is [3, 2); "),
        ((-1, 2), (0, 1), "slices[1].q is [-1, 2); "),
        ((0, 9), (0, 1), "slices[1].q is [0, 9); "),
        ((0, 1), (5, 10), "slices[1].k is [5, 10); "),
    ] {
        let slices = [typed((0, 0), (0, 0), MaskType::Full), typed(q, k, MaskType::Full)];
        let error = Mask::new(&slices, 8, 9).unwrap_err();
        assert_eq!(error.status, Status::InvalidRange);
        assert!(error.message.starts_with(text), "{}", error.message);
    }
    for (tq, tk, text) in [
        (-1, 0, "total_q is -1; "),
        (0, Mask::MAX_TOKENS + 1, "total_k is 2147483649; "),
    ] {
        let error = Mask::new(&[], tq, tk).unwrap_err();
        assert!(
            error.status == Status::InvalidRange && error.message.starts_with(text),
            "{}",
            error.message
        );
    }
}

#[test]
fn edge_cases() {
    // More queries than keys, causal: the first sq - sk rows see nothing, the last sees all.
    let m = Mask::new(&[typed((0, 9), (0, 4), MaskType::Causal)], 9, 4).unwrap();
    assert_eq!(m.slices()[0].visible_rows(), Range::new(5, 9));
    assert_eq!(m.to_typed(), [typed((5, 9), (0, 4), MaskType::Causal)]);
    // Equal sides, both bounds: the diagonal.
    let m = Mask::new(&[typed((2, 9), (1, 8), MaskType::BiCausal)], 9, 8).unwrap();
    assert_eq!(m.area(), 7);
    assert!((0..7).all(|i| m.slices()[0].contains(2 + i, 1 + i)));
    assert_eq!(m.to_typed(), [typed((2, 9), (1, 8), MaskType::BiCausal)]);
    // More queries than keys, both bounds: nothing.
    let m = Mask::new(&[typed((0, 9), (0, 8), MaskType::BiCausal)], 9, 8).unwrap();
    assert!(m.area() == 0 && m.to_typed().is_empty());
    // One-token documents of every type: each token sees itself.
    let types = [
        MaskType::Full,
        MaskType::Causal,
        MaskType::InvCausal,
        MaskType::BiCausal,
    ];
    let documents: Vec<TypedSlice> = (0..8)
        .map(|i| typed((i, i + 1), (i, i + 1), types[i as usize % 4]))
        .collect();
    let m = Mask::new(&documents, 8, 8).unwrap();
    assert_eq!(m.area(), 8);
    assert!(m.to_typed().iter().all(|t| t.mask_type == MaskType::Full));
    // No slice, no token on one side, no token at all.
    for (tq, tk) in [(5, 7), (0, 7), (5, 0), (0, 0)] {
        let m = Mask::new(&[], tq, tk).unwrap();
        assert_eq!((m.area(), m.total_q(), m.total_k()), (0, tq, tk));
        let nothing = typed((tq, tq), (0, tk), MaskType::Causal);
        assert_eq!(Mask::new(&[nothing, nothing], tq, tk).unwrap().area(), 0);
    }
    // A band that a rectangle cuts on both sides takes all three shapes, narrow and wide.
    let rect = |lo, hi| Slice::new(Range::new(0, 10), Range::new(0, 10), Band::new(lo, hi)).to_typed();
    let shapes = |t: Vec<TypedSlice>| t.iter().map(|t| t.mask_type).collect::<Vec<_>>();
    use MaskType::*;
    assert_eq!(shapes(rect(-2, 2)), [Causal, BiCausal, InvCausal]);
    assert_eq!(shapes(rect(-7, 7)), [Causal, Full, InvCausal]);
}

#[test]
fn cases_load_and_print_back() {
    let cases = load_cases();
    assert_eq!(cases.len(), 25);
    for case in cases {
        let m = &case.mask;
        let back = Mask::new(&m.to_typed(), m.total_q(), m.total_k()).unwrap();
        assert_eq!(back.area(), m.area(), "{}", case.name);
        assert!(
            case.chunk_size > 0 && (0..=8).contains(&case.sink_tokens),
            "{}",
            case.name
        );
    }
}

/// Time of `from_slices` for `n` slices, the best of three.
fn seconds(make: impl Fn(i64) -> (Vec<Slice>, i64), n: i64) -> f64 {
    let (slices, total) = make(n);
    (0..3)
        .map(|_| {
            let start = Instant::now();
            Mask::from_slices(slices.clone(), total, total).unwrap();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn many_slices_of_any_arrangement_take_little_time() {
    let full =
        |q: (i64, i64), k: (i64, i64)| Slice::new(Range::new(q.0, q.1), Range::new(k.0, k.1), Band::FULL);
    type Make<'a> = &'a dyn Fn(i64) -> (Vec<Slice>, i64);
    let patterns: [(&str, Make); 5] = [
        ("packed documents", &|n| {
            let slice = |i| {
                Slice::from_typed(&typed(
                    (50 * i, 50 * i + 50),
                    (50 * i, 50 * i + 50),
                    MaskType::Causal,
                ))
            };
            ((0..n).map(slice).collect(), 50 * n)
        }),
        ("shared rows", &|n| {
            ((0..n).map(|i| full((0, n), (i, i + 1))).collect(), n)
        }),
        ("shared columns", &|n| {
            ((0..n).map(|i| full((i, i + 1), (0, n))).collect(), n)
        }),
        ("staircase of shared rows", &|n| {
            ((0..n).map(|i| full((i, n), (i, i + 1))).collect(), n)
        }),
        ("bands of one square", &|n| {
            let square = Range::new(0, n);
            let band = |i: i64| Slice::new(square, square, Band::new(2 * i - n, 2 * i - n + 1));
            ((0..n).map(band).collect(), n)
        }),
    ];
    for (name, make) in patterns {
        let (short, long) = (seconds(make, 10_000), seconds(make, 40_000));
        println!(
            "{name}: 10,000 slices in {:.2} ms, 40,000 in {:.2} ms",
            1e3 * short,
            1e3 * long
        );
        // All pairs of 40,000 slices would take seconds; the bound leaves room for a busy machine.
        assert!(long < 1.0, "{name}: {long} s");
    }
}
