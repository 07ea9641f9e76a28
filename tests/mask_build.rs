//! Mask builders against their definition, cell by cell.

mod common;

use common::{cells, load_cases};
use magi_attn::types::{Mask, Status};
use proptest::prelude::*;

/// Document lengths to cumulative starts.
fn cumulative(lengths: impl IntoIterator<Item = i64>) -> Vec<i64> {
    let mut out = vec![0];
    for n in lengths {
        out.push(out[out.len() - 1] + n);
    }
    out
}

/// The document that holds `token`, by looking through the list.
fn document(cu: &[i64], token: i64) -> usize {
    (0..cu.len() - 1)
        .find(|&i| cu[i] <= token && token < cu[i + 1])
        .unwrap()
}

/// What `from_cu_seqlens` promises about one cell.
fn window_sees(
    cu: (&[i64], &[i64]),
    causal: bool,
    window: (i64, i64),
    global: i64,
    (q, k): (i64, i64),
) -> bool {
    let d = document(cu.0, q);
    if document(cu.1, k) != d {
        return false;
    }
    // Positions counted from the end of the document: 0 is the last token.
    let (from_end_q, from_end_k) = (cu.0[d + 1] - 1 - q, cu.1[d + 1] - 1 - k);
    let right_of_diagonal = from_end_q - from_end_k;
    if causal && right_of_diagonal > 0 {
        return false;
    }
    let inside_left = window.0 == -1 || -right_of_diagonal <= window.0;
    let inside_right = window.1 == -1 || right_of_diagonal <= window.1 || causal;
    (inside_left && inside_right) || k - cu.1[d] < global
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
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn packed_documents(
        lengths in prop::collection::vec((0..12i64, 0..12i64, any::<bool>()), 0..5),
        causal: bool,
        left in -1..14i64,
        right in -1..14i64,
        global in 0..8i64,
    ) {
        let cu_q = cumulative(lengths.iter().map(|l| l.0));
        let cu_k = cumulative(lengths.iter().map(|l| if l.2 { l.0 } else { l.1 }));
        let mask = Mask::from_cu_seqlens(&cu_q, &cu_k, causal, (left, right), global).unwrap();
        prop_assert_eq!((mask.total_q(), mask.total_k()), (cu_q[cu_q.len() - 1], cu_k[cu_k.len() - 1]));
        prop_assert!(mask.slices().len() <= 2 * lengths.len());
        expect_cells(&mask, |q, k| window_sees((&cu_q, &cu_k), causal, (left, right), global, (q, k)))?;
    }

    #[test]
    fn one_sliding_window(tq in 0..24i64, tk in 0..24i64, left in -1..26i64, right in -1..26i64, global in 0..26i64) {
        let mask = Mask::from_sliding_window(tq, tk, (left, right), global).unwrap();
        prop_assert_eq!((mask.total_q(), mask.total_k()), (tq, tk));
        expect_cells(&mask, |q, k| window_sees((&[0, tq], &[0, tk]), false, (left, right), global, (q, k)))?;
    }

    #[test]
    fn blocks(lengths in prop::collection::vec(0..14i64, 0..4), block in 1..16i64) {
        let cu = cumulative(lengths);
        let sees = |cu: &[i64], q: i64, k: i64| {
            let d = document(cu, q);
            document(cu, k) == d && (k - cu[d]) / block <= (q - cu[d]) / block
        };
        let mask = Mask::from_block_causal_cu_seqlens(&cu, block).unwrap();
        expect_cells(&mask, |q, k| sees(&cu, q, k))?;
        let total = cu[cu.len() - 1];
        let mask = Mask::from_block_causal(total, block).unwrap();
        prop_assert_eq!((mask.total_q(), mask.total_k()), (total, total));
        expect_cells(&mask, |q, k| sees(&[0, total], q, k))?;
    }
}

#[test]
fn builders_make_the_masks_of_the_cases() {
    let cases = load_cases();
    let case = |name: &str| &cases.iter().find(|c| c.name == name).unwrap().mask;
    let blocks = Mask::from_block_causal(32_768, 4096).unwrap();
    assert_eq!(&blocks, case("quickstart_block_causal_32k"));
    let window = Mask::from_sliding_window(4096, 4096, (1023, 0), 0).unwrap();
    let rows = |m: &Mask, q: i64| {
        m.slices()
            .iter()
            .map(|s| (s.k_hi(q) - s.k_lo(q)).max(0))
            .sum::<i64>()
    };
    assert_eq!(window.area(), case("sliding_window_4k").area());
    assert!((0..4096).all(|q| rows(&window, q) == (q + 1).min(1024)));
    let causal = Mask::from_cu_seqlens(&[0, 8192], &[0, 8192], true, (-1, -1), 0).unwrap();
    assert_eq!(causal.to_typed(), case("causal_8k").to_typed());
}

#[test]
fn one_slice_where_one_says_it_all() {
    for mask in [
        Mask::from_cu_seqlens(&[0, 9], &[0, 9], true, (-1, 5), 4).unwrap(),
        Mask::from_sliding_window(9, 7, (-1, -1), 4).unwrap(),
        Mask::from_block_causal(9, 1).unwrap(),
        Mask::from_block_causal(9, i64::MAX).unwrap(),
    ] {
        assert_eq!(mask.slices().len(), 1);
    }
    // Two thousand million tokens: the builders never write per token.
    let most = Mask::MAX_TOKENS;
    let mask = Mask::from_sliding_window(most, most, (i64::MAX, 0), i64::MAX).unwrap();
    assert_eq!(mask.area(), most * most);
    assert_eq!(
        Mask::from_block_causal(most, 1).unwrap().area(),
        most * (most + 1) / 2
    );
}

#[test]
fn wrong_arguments_are_named() {
    type Make<'a> = &'a dyn Fn() -> magi_attn::types::Result<Mask>;
    let cu = |q: &'static [i64], k: &'static [i64]| move || Mask::from_cu_seqlens(q, k, false, (-1, -1), 0);
    let huge: &[i64] = &[0, 5, Mask::MAX_TOKENS + 1];
    let cases: [(Make, Status, &str); 16] = [
        (
            &cu(&[], &[]),
            Status::InvalidArgument,
            "cu_seqlens_q has 0 elements; ",
        ),
        (
            &cu(&[0], &[]),
            Status::InvalidArgument,
            "cu_seqlens_k has 0 elements; ",
        ),
        (
            &cu(&[1, 2], &[0, 2]),
            Status::InvalidRange,
            "cu_seqlens_q[0] is 1; ",
        ),
        (
            &cu(&[0, 2], &[-1, 2]),
            Status::InvalidRange,
            "cu_seqlens_k[0] is -1; ",
        ),
        (
            &cu(&[0, 4, 3], &[0, 4, 4]),
            Status::InvalidRange,
            "cu_seqlens_q[2] is 3; it must be at least cu_seqlens_q[1], which is 4",
        ),
        (
            &cu(&[0, 4, 4], &[0, -4, 4]),
            Status::InvalidRange,
            "cu_seqlens_k[1] is -4; ",
        ),
        (
            &cu(&[0, 4, 4], &[0, 4]),
            Status::InvalidArgument,
            "cu_seqlens_k has 2 elements; it must have as many as cu_seqlens_q, 3",
        ),
        (
            &|| Mask::from_cu_seqlens(huge, huge, true, (0, 0), 0),
            Status::InvalidRange,
            "cu_seqlens_q[2] is 2147483649; ",
        ),
        (
            &|| Mask::from_sliding_window(4, 4, (-2, 0), 0),
            Status::InvalidArgument,
            "window_left is -2; ",
        ),
        (
            &|| Mask::from_cu_seqlens(&[0, 4], &[0, 4], true, (0, -7), 0),
            Status::InvalidArgument,
            "window_right is -7; ",
        ),
        (
            &|| Mask::from_sliding_window(4, 4, (0, 0), -1),
            Status::InvalidArgument,
            "global_window is -1; ",
        ),
        (
            &|| Mask::from_sliding_window(-4, 4, (0, 0), 0),
            Status::InvalidRange,
            "total_q is -4; ",
        ),
        (
            &|| Mask::from_block_causal(8, 0),
            Status::InvalidArgument,
            "block is 0; ",
        ),
        (
            &|| Mask::from_block_causal(-8, 4),
            Status::InvalidRange,
            "total is -8; ",
        ),
        (
            &|| Mask::from_block_causal_cu_seqlens(&[0, 3, 1], 4),
            Status::InvalidRange,
            "cu_seqlens[2] is 1; ",
        ),
        (
            &|| Mask::from_block_causal(1 << 31, 2),
            Status::InvalidArgument,
            "block is 2, which makes 1073741824 slices ",
        ),
    ];
    for (make, status, text) in cases {
        let error = make().unwrap_err();
        assert_eq!(error.status, status, "{}", error.message);
        assert!(error.message.starts_with(text), "{} / {text}", error.message);
    }
}
