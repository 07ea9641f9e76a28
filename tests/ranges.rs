//! Set operations on ranges against a bitmap.

use magi_attn::types::{Range, Ranges};
use proptest::prelude::*;

const TOTAL: i64 = 40;

type Bits = [bool; TOTAL as usize];

fn bits(ranges: &[Range]) -> Bits {
    std::array::from_fn(|t| ranges.iter().any(|r| r.start <= t as i64 && (t as i64) < r.end))
}

/// Ranges in any order, some touching, overlapping, empty or backwards.
fn any_ranges() -> impl Strategy<Value = Vec<Range>> {
    let any_range =
        (0..=TOTAL, -3..9i64).prop_map(|(start, len)| Range::new(start, (start + len).min(TOTAL)));
    prop::collection::vec(any_range, 0..9)
}

/// The set is `want`, in normal form.
fn expect(set: &Ranges, want: Bits) -> Result<(), TestCaseError> {
    prop_assert_eq!(bits(set.as_slice()), want);
    prop_assert!(set.iter().all(|r| r.start < r.end));
    prop_assert!(set.as_slice().windows(2).all(|w| w[0].end < w[1].start));
    prop_assert_eq!(set.tokens(), want.iter().filter(|&&b| b).count() as i64);
    prop_assert_eq!(set.is_empty(), !want.contains(&true));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn set_operations_agree_with_a_bitmap(a in any_ranges(), b in any_ranges()) {
        let (x, y) = (bits(&a), bits(&b));
        let (sa, sb) = (Ranges::from_unsorted(a.clone()), b.into_iter().collect::<Ranges>());
        let each = |f: fn(bool, bool) -> bool| -> Bits { std::array::from_fn(|t| f(x[t], y[t])) };
        expect(&sa, x)?;
        expect(&sb, y)?;
        expect(&sa.union(&sb), each(|p, q| p || q))?;
        expect(&sa.intersect(&sb), each(|p, q| p && q))?;
        expect(&sa.subtract(&sb), each(|p, q| p && !q))?;
        expect(&sa.complement(TOTAL), each(|p, _| !p))?;
        for t in 0..TOTAL {
            prop_assert_eq!(sa.contains(t), x[t as usize]);
            let run = sa.first_run_after(t);
            prop_assert!(sa.as_slice()[..run].iter().all(|r| r.end <= t));
            prop_assert!(sa.as_slice()[run..].iter().all(|r| r.end > t));
        }
    }

    #[test]
    fn one_range(a in any_ranges(), by in -9..9i64) {
        for r in &a {
            prop_assert_eq!(r.len(), bits(&[*r]).iter().filter(|&&b| b).count() as i64);
            prop_assert_eq!(r.is_empty(), r.start >= r.end);
            for s in &a {
                let both = r.intersect(s);
                prop_assert!((0..TOTAL).all(|t| both.contains(t) == (r.contains(t) && s.contains(t))));
            }
            prop_assert!((0..TOTAL).all(|t| r.shift(by).contains(t + by) == r.contains(t)));
        }
    }
}
