//! Masks from bit matrices, prefix trees and videos against their definitions, cell by cell.

mod common;

use common::{any_mask, cells, load_cases};
use magi_attn::types::{Mask, Status};
use proptest::prelude::*;

/// The bit matrix of `sees`, rows of `row_bytes`, bits beyond the total set or not as `noise` says.
fn dense(
    total_q: i64,
    total_k: i64,
    extra: usize,
    noise: u8,
    sees: impl Fn(i64, i64) -> bool,
) -> (Vec<u8>, usize) {
    let row_bytes = (total_k as usize).div_ceil(8) + extra;
    let mut bits = vec![noise; row_bytes * total_q as usize];
    for q in 0..total_q {
        for k in 0..total_k {
            let byte = &mut bits[q as usize * row_bytes + k as usize / 8];
            *byte = (*byte & !(1 << (k % 8))) | u8::from(sees(q, k)) << (k % 8);
        }
    }
    (bits, row_bytes)
}

fn dense_of(mask: &Mask, extra: usize, noise: u8) -> Mask {
    let (seen, k) = (cells(mask), mask.total_k());
    let (bits, row_bytes) = dense(mask.total_q(), k, extra, noise, |q, key| {
        seen[(q * k + key) as usize] == 1
    });
    Mask::from_dense(&bits, row_bytes, mask.total_q(), k).unwrap()
}

fn expect_cells(mask: &Mask, sees: impl Fn(i64, i64) -> bool) -> Result<(), TestCaseError> {
    let got = cells(mask);
    for q in 0..mask.total_q() {
        for k in 0..mask.total_k() {
            let n = got[(q * mask.total_k() + k) as usize];
            prop_assert_eq!(n, u8::from(sees(q, k)), "query {}, key {}", q, k);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn dense_masks_have_the_same_cells(mask in any_mask(90, 8), extra in 0..3usize, noise: u8) {
        let made = dense_of(&mask, extra, noise);
        prop_assert_eq!((made.total_q(), made.total_k()), (mask.total_q(), mask.total_k()));
        prop_assert_eq!(cells(&made), cells(&mask));
        // Slices of the original that touch here and there cut each other's pieces.
        let slices = mask.slices().iter().filter(|s| !s.is_empty()).count();
        prop_assert!(made.slices().len() <= 4 * slices, "{} from {}", made.slices().len(), slices);
        // What it makes it recovers.
        prop_assert!(dense_of(&made, 0, 0).slices().len() <= made.slices().len());
    }

    #[test]
    fn dense_noise_is_exact(q in 0..20i64, k in 0..150i64, bits in prop::collection::vec(any::<bool>(), 20 * 150)) {
        let sees = |a: i64, b: i64| bits[(a * 150 + b) as usize];
        let (matrix, row_bytes) = dense(q, k, 0, 0xff, sees);
        expect_cells(&Mask::from_dense(&matrix, row_bytes, q, k).unwrap(), sees)?;
    }

    #[test]
    fn prefix_trees(nodes in prop::collection::vec((0..100u8, 0..7i64), 0..14)) {
        let parents: Vec<i64> = nodes.iter().enumerate().map(|(i, n)| i64::from(n.0) % (i as i64 + 1) - 1).collect();
        let lengths: Vec<i64> = nodes.iter().map(|n| n.1).collect();
        let mask = Mask::from_prefix_tree(&parents, &lengths).unwrap();
        let node_of: Vec<i64> = (0..nodes.len()).flat_map(|i| vec![i as i64; lengths[i] as usize]).collect();
        prop_assert_eq!((mask.total_q(), mask.total_k()), (node_of.len() as i64, node_of.len() as i64));
        expect_cells(&mask, |q, k| {
            let (of_k, mut of_q) = (node_of[k as usize], node_of[q as usize]);
            if of_k == of_q {
                return k <= q;
            }
            while of_q >= 0 && of_q != of_k {
                of_q = parents[of_q as usize];
            }
            of_q >= 0
        })?;
    }

    #[test]
    fn share_question(prefix in 0..20i64, answers in prop::collection::vec(0..9i64, 0..6)) {
        let mask = Mask::from_share_question(prefix, &answers).unwrap();
        let mut owner = vec![0; prefix as usize];
        answers.iter().enumerate().for_each(|(i, &n)| owner.extend(vec![i + 1; n as usize]));
        prop_assert_eq!(mask.total_q(), owner.len() as i64);
        prop_assert!(mask.slices().len() <= 1 + answers.len());
        expect_cells(&mask, |q, k| k <= q && (k < prefix || owner[q as usize] == owner[k as usize]))?;
    }

    #[test]
    fn videos(frames in 0..9i64, tokens in 1..6i64, window in -1..10i64, first: bool, causal: bool) {
        let mask = Mask::from_video(frames, tokens, window, first, causal).unwrap();
        prop_assert_eq!((mask.total_q(), mask.total_k()), (frames * tokens, frames * tokens));
        prop_assert!(mask.slices().len() <= frames as usize + 1);
        expect_cells(&mask, |q, k| {
            let (a, b) = (q / tokens, k / tokens);
            let near = window == -1 || (a - b).abs() <= window;
            (near && (!causal || b <= a)) || (first && b == 0)
        })?;
    }
}

#[test]
fn known_masks_are_found_again() {
    let mut compared = 0;
    for case in load_cases() {
        let mask = case.mask;
        // Row by row on this side, so that large cases stay quick: cells are compared by area and by slices instead.
        if mask.total_q() * mask.total_k() > 1 << 24 {
            continue;
        }
        let made = dense_of(&mask, 0, 0);
        assert_eq!(made.area(), mask.area(), "{}", case.name);
        assert_eq!(cells(&made), cells(&mask), "{}", case.name);
        assert!(
            made.slices().len() <= mask.slices().len() + 1,
            "{}: {}",
            case.name,
            made.slices().len()
        );
        compared += 1;
    }
    assert!(compared >= 12, "{compared}");
}

#[test]
fn named_masks_take_few_slices() {
    let cu: Vec<i64> = [0, 50, 51, 52, 90, 200, 333].to_vec();
    let tree = Mask::from_prefix_tree(&[-1, 0, 1, 1, 0, 4, -1, 6], &[40, 20, 10, 30, 25, 15, 60, 7]).unwrap();
    for (name, mask, most) in [
        (
            "packed causal",
            Mask::from_cu_seqlens(&cu, &cu, true, (-1, -1), 0),
            6,
        ),
        (
            "packed windows",
            Mask::from_cu_seqlens(&cu, &cu, true, (16, 0), 0),
            6,
        ),
        (
            "window with global keys",
            Mask::from_sliding_window(300, 300, (20, 0), 8),
            4,
        ),
        (
            "two-sided window",
            Mask::from_sliding_window(300, 300, (20, 20), 0),
            1,
        ),
        (
            "block causal",
            Mask::from_block_causal_cu_seqlens(&[0, 160, 300], 20),
            15,
        ),
        ("share question", Mask::from_share_question(100, &[30, 40, 50]), 5),
        ("prefix tree", Ok(tree), 12),
        ("video", Mask::from_video(12, 20, 2, true, false), 16),
    ] {
        let mask = mask.unwrap();
        let made = dense_of(&mask, 0, 0);
        assert_eq!(cells(&made), cells(&mask), "{name}");
        assert!(
            made.slices().len() <= most,
            "{name}: {} slices",
            made.slices().len()
        );
    }
}

#[test]
fn depth_first_trees_take_one_slice_a_node() {
    let mask = Mask::from_prefix_tree(&[-1, 0, 1, 1, 0, 4], &[40, 20, 10, 30, 25, 15]).unwrap();
    assert_eq!(mask.slices().len(), 6);
    let chain: Vec<i64> = (-1..9999).collect();
    assert_eq!(
        Mask::from_prefix_tree(&chain, &vec![3; 10_000])
            .unwrap()
            .slices()
            .len(),
        10_000
    );
}

#[test]
fn what_is_wrong_is_named() {
    let status = |m: Result<Mask, magi_attn::types::Error>, words: &str| {
        let e = m.unwrap_err();
        assert!(e.message.contains(words), "{}", e.message);
        e.status
    };
    let bits = [0xffu8; 8];
    assert_eq!(
        status(Mask::from_dense(&bits, 1, 8, 9), "row_bytes is 1"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_dense(&bits, 1, 9, 8), "9 rows need 9"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_dense(&bits, 1, -1, 8), "total_q is -1"),
        Status::InvalidRange
    );
    assert_eq!(
        status(Mask::from_dense(&bits, usize::MAX, 8, 8), "row_bytes is"),
        Status::InvalidArgument
    );
    assert_eq!(Mask::from_dense(&[], 0, 0, 0).unwrap().slices().len(), 0);
    assert_eq!(Mask::from_dense(&[], 0, 5, 0).unwrap().slices().len(), 0);
    assert_eq!(
        status(Mask::from_prefix_tree(&[-1, 1], &[1, 1]), "parents[1] is 1"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_prefix_tree(&[-2], &[1]), "parents[0] is -2"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_prefix_tree(&[-1], &[]), "lengths has 0"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_prefix_tree(&[-1], &[-1]), "lengths[0] is -1"),
        Status::InvalidRange
    );
    assert_eq!(
        status(Mask::from_prefix_tree(&[-1; 2], &[1 << 31, 1]), "lengths[1] is 1"),
        Status::InvalidRange
    );
    assert_eq!(
        status(Mask::from_share_question(-1, &[1]), "lengths[0] is -1"),
        Status::InvalidRange
    );
    assert_eq!(
        status(Mask::from_video(-1, 1, 0, false, false), "frames is -1"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_video(1, 0, 0, false, false), "tokens_per_frame is 0"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_video(1, 1, -2, false, false), "window is -2"),
        Status::InvalidArgument
    );
    assert_eq!(
        status(Mask::from_video(1 << 20, 1 << 20, 0, false, false), "at most"),
        Status::InvalidRange
    );
    assert_eq!(
        status(Mask::from_video(1 << 25, 1, 0, false, false), "frames is"),
        Status::InvalidArgument
    );
}
