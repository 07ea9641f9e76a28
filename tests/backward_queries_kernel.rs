//! The dq kernel on the processor against f64, as tests/backward_kernel.rs runs the backward kernel.

mod backward_emulated;

use backward_emulated::Variant;
use backward_emulated::case::Case;
use backward_emulated::masks::{Slices, slice};
use backward_emulated::queries::{Kernel, LeftOut, Output, has_limits, left_out, step};

const PLAIN: Case = Case {
    heads: (4, 2),
    dims: (128, 128),
    splits: 1,
    added: false,
    softcap: 0.0,
};
const V128: Variant = Variant {
    name: "128",
    head_dim: 128,
    head_dim_v: 128,
    f16: false,
    defines: &[],
};
const V64: Variant = Variant {
    name: "64_racecheck",
    head_dim: 64,
    head_dim_v: 64,
    f16: false,
    defines: &["-DRACECHECK=1"],
};
const CAUSAL: i64 = 1;
const FROM_BELOW: i64 = 2;
const ALL: LeftOut = LeftOut {
    last: true,
    two_in_a_row: true,
    middle: true,
};

/// Causal documents of 192: a tile has parts of two of them, of which each warpgroup sees one.
fn documents() -> Slices {
    let document = |a: i64| slice(a, a + 192, a, a + 192, CAUSAL, 0);
    ([0, 192, 384].map(document).into(), 576, [576, 0])
}

/// Runs that all rows of a tile see, with gaps between them, and longer ones that one warpgroup sees; a tile that sees
/// nothing; keys of two sources.
fn apart() -> Slices {
    let first = |q0, q1| slice(q0, q1, 0, 100, 0, 0);
    let long = |q0, q1| slice(q0, q1, 110, 390, 0, 0);
    let received = |q0, q1| slice(q0, q1, 5, 90, 0, 1);
    let slices = vec![
        first(0, 128),
        long(64, 128),
        received(0, 128),
        first(128, 192),
        long(192, 256),
        first(256, 384),
        long(256, 320),
        received(384, 512),
        first(384, 512),
        long(384, 448),
    ];
    (slices, 601, [400, 100])
}

/// A window whose rows see 100 keys at most; the last tile has five rows.
fn window() -> Slices {
    let mut window = slice(0, 261, 0, 261, CAUSAL, 0);
    window.slice.band.lo = -99;
    (vec![window], 261, [261, 0])
}

/// Blocks of which one row of a warpgroup sees one key, the first or the last one, and items of which a warpgroup has one
/// row; `step`: keys of a block.
fn edges(step: i32) -> Slices {
    let slices = vec![
        slice(0, 128, 0, i64::from(step) + 65, CAUSAL, 0),
        slice(0, 128, 300, 365, FROM_BELOW, 0),
        slice(63, 128, 400, 470, 0, 0),
        slice(0, 65, 500, 560, 0, 0),
    ];
    (slices, 128, [600, 0])
}

/// Documents of 20 and, at last, of 10: rows with limits of their own.
fn short_documents() -> Slices {
    let document = |a: i64| slice(a, (a + 20).min(150), a, (a + 20).min(150), a / 20 % 2, 0);
    ((0..150).step_by(20).map(document).collect(), 150, [150, 0])
}

#[test]
fn short_documents_have_limits() {
    for v in [&V64, &V128] {
        assert!(has_limits(v, &short_documents()));
    }
}

#[test]
fn masks_leave_out_what_they_are_made_for() {
    for v in [&V64, &V128] {
        assert_eq!(left_out(v, &apart()), [ALL, ALL]);
        let [first, second] = left_out(v, &documents());
        assert!(first.last && second.last, "{first:?}, {second:?}");
    }
    let [first, _] = left_out(&V128, &window());
    assert!(first.last, "{first:?}");
}

#[test]
fn two_stages_of_queries() {
    let kernel = Kernel::build(&V128);
    kernel.masks(&PLAIN, Output::Same, 5);
    let one = Case {
        heads: (1, 1),
        ..PLAIN
    };
    kernel.chosen(&one, Output::Same, &apart(), 3);
    kernel.chosen(&one, Output::Same, &documents(), 3);
    kernel.chosen(&one, Output::F32, &window(), 2);
    kernel.chosen(&one, Output::Same, &edges(step(&V128)), 1);
    kernel.chosen(&one, Output::Added, &short_documents(), 2);
}

#[test]
fn every_lane_arrives_where_races_are_looked_for() {
    let kernel = Kernel::build(&V64);
    let c = Case {
        heads: (2, 1),
        dims: (64, 64),
        ..PLAIN
    };
    kernel.masks(&c, Output::Same, 4);
    kernel.chosen(&c, Output::Added, &apart(), 2);
    kernel.chosen(&c, Output::Same, &documents(), 2);
    kernel.chosen(&c, Output::F32, &edges(step(&V64)), 1);
}

#[test]
fn padded_heads_in_f16() {
    let v = Variant {
        name: "96",
        head_dim: 96,
        head_dim_v: 96,
        f16: true,
        ..V128
    };
    let kernel = Kernel::build(&v);
    let c = Case {
        heads: (4, 1),
        dims: (96, 96),
        ..PLAIN
    };
    kernel.masks(&c, Output::Added, 3);
    for output in [Output::Same, Output::F32] {
        let dims = (69, 76);
        kernel.masks(&Case { dims, ..c }, output, 2);
    }
}

#[test]
fn softcap() {
    let v = Variant {
        name: "128_capped",
        f16: true,
        defines: &["-DSOFTCAP=1"],
        ..V128
    };
    let kernel = Kernel::build(&v);
    let c = Case {
        heads: (2, 2),
        softcap: 1.5,
        ..PLAIN
    };
    kernel.masks(&c, Output::Same, 4);
}

#[test]
fn wide_heads_begin_with_scores() {
    let v = Variant {
        name: "192_128",
        head_dim: 192,
        ..V128
    };
    let kernel = Kernel::build(&v);
    let c = Case {
        heads: (2, 1),
        dims: (192, 128),
        ..PLAIN
    };
    kernel.masks(&c, Output::Same, 4);
    kernel.masks(&c, Output::Added, 1);
    kernel.chosen(&Case { heads: (1, 1), ..c }, Output::F32, &documents(), 1);
}

#[test]
fn widest_heads_have_barriers_for_values() {
    let v = Variant {
        name: "256",
        head_dim: 256,
        head_dim_v: 256,
        f16: true,
        ..V128
    };
    let kernel = Kernel::build(&v);
    let c = Case {
        heads: (2, 1),
        dims: (256, 256),
        ..PLAIN
    };
    kernel.masks(&c, Output::Same, 3);
    let dims = (200, 168);
    kernel.masks(&Case { dims, ..c }, Output::Added, 2);
    let one = Case { heads: (1, 1), ..c };
    kernel.chosen(&one, Output::Same, &apart(), 1);
    kernel.chosen(&one, Output::F32, &short_documents(), 1);
}
