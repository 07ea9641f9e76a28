//! The backward kernel on the processor against f64: its source with other wrappers (tests/wrappers), threads as
//! coroutines, products as late and copies as irregular as they may be. It shows what indices and barriers are worth, not
//! what instructions do.

mod backward_emulated;

use backward_emulated::Variant;
use backward_emulated::case::Case;
use backward_emulated::keys::{dense, masks, window};

const PLAIN: Case = Case {
    heads: (4, 2),
    dims: (128, 128),
    splits: 1,
    added: false,
    softcap: 0.0,
};

#[test]
fn both_warpgroups_with_keys_of_their_own() {
    let v = Variant {
        name: "128",
        head_dim: 128,
        head_dim_v: 128,
        f16: false,
        defines: &[],
    };
    masks(&v, &PLAIN, 6);
    masks(
        &v,
        &Case {
            heads: (4, 1),
            splits: 2,
            added: true,
            ..PLAIN
        },
        3,
    );
}

#[test]
fn last_blocks_begin_at_any_query() {
    let v = Variant {
        name: "64_window",
        head_dim: 64,
        head_dim_v: 64,
        f16: false,
        defines: &[],
    };
    window(
        &v,
        &Case {
            dims: (64, 64),
            ..PLAIN
        },
    );
    let v = Variant {
        name: "128_window",
        head_dim: 128,
        head_dim_v: 128,
        ..v
    };
    window(&v, &PLAIN);
    let v = Variant {
        name: "256_window",
        head_dim: 256,
        head_dim_v: 256,
        ..v
    };
    window(
        &v,
        &Case {
            heads: (1, 1),
            dims: (256, 256),
            ..PLAIN
        },
    );
}

#[test]
fn tiles_by_parts_of_their_queries() {
    let v = Variant {
        name: "128_parts",
        head_dim: 128,
        head_dim_v: 128,
        f16: false,
        defines: &["-DPART_LEAST=1", "-DWAVE=2"],
    };
    masks(
        &v,
        &Case {
            heads: (6, 2),
            ..PLAIN
        },
        6,
    );
    masks(
        &v,
        &Case {
            heads: (4, 1),
            dims: (120, 72),
            splits: 2,
            ..PLAIN
        },
        3,
    );
}

/// A small cache: thread blocks begin parts together. Two, one after the other: the first waits in vain.
#[test]
fn parts_that_thread_blocks_begin_together() {
    let alone = Variant {
        name: "128_alone",
        head_dim: 128,
        head_dim_v: 128,
        f16: false,
        defines: &["-DPART_LEAST=1", "-DCACHE=4096", "-DBLOCKS=1"],
    };
    dense(&alone, &PLAIN);
    let in_vain = Variant {
        name: "128_in_vain",
        defines: &["-DPART_LEAST=1", "-DCACHE=4096"],
        ..alone
    };
    dense(&in_vain, &PLAIN);
    masks(&in_vain, &PLAIN, 3);
}

#[test]
fn every_lane_arrives_where_races_are_looked_for() {
    let v = Variant {
        name: "64_racecheck",
        head_dim: 64,
        head_dim_v: 64,
        f16: false,
        defines: &["-DRACECHECK=1"],
    };
    masks(
        &v,
        &Case {
            heads: (2, 1),
            dims: (64, 64),
            ..PLAIN
        },
        3,
    );
}

#[test]
fn small_and_padded_heads_in_f16() {
    let v = Variant {
        name: "64",
        head_dim: 64,
        head_dim_v: 64,
        f16: true,
        defines: &[],
    };
    masks(
        &v,
        &Case {
            dims: (64, 64),
            ..PLAIN
        },
        3,
    );
    masks(
        &v,
        &Case {
            heads: (2, 1),
            dims: (40, 56),
            ..PLAIN
        },
        3,
    );
}

#[test]
fn wide_heads_share_columns() {
    let v = Variant {
        name: "192_128",
        head_dim: 192,
        head_dim_v: 128,
        f16: false,
        defines: &[],
    };
    masks(
        &v,
        &Case {
            heads: (2, 1),
            dims: (192, 128),
            splits: 2,
            ..PLAIN
        },
        4,
    );
}

#[test]
fn widest_heads_have_one_stage_of_gradients() {
    let v = Variant {
        name: "256",
        head_dim: 256,
        head_dim_v: 256,
        f16: true,
        defines: &[],
    };
    masks(
        &v,
        &Case {
            heads: (2, 1),
            dims: (256, 256),
            ..PLAIN
        },
        3,
    );
    masks(
        &v,
        &Case {
            heads: (4, 1),
            dims: (200, 168),
            splits: 2,
            added: true,
            ..PLAIN
        },
        4,
    );
}

#[test]
fn wide_heads_with_softcap() {
    let v = Variant {
        name: "192_capped",
        head_dim: 192,
        head_dim_v: 192,
        f16: false,
        defines: &["-DSOFTCAP=1"],
    };
    masks(
        &v,
        &Case {
            heads: (2, 1),
            dims: (192, 192),
            softcap: 1.5,
            ..PLAIN
        },
        3,
    );
}

/// Warpgroups that share nothing but stages: one runs ahead of the other.
#[test]
fn keys_alone() {
    let v = Variant {
        name: "128_keys",
        head_dim: 128,
        head_dim_v: 128,
        f16: false,
        defines: &["-DDQ=0"],
    };
    masks(&v, &PLAIN, 8);
    let shared_out = Case {
        heads: (4, 1),
        splits: 2,
        added: true,
        ..PLAIN
    };
    masks(&v, &shared_out, 3);
    window(&v, &PLAIN);
    let v = Variant {
        name: "64_keys",
        head_dim: 64,
        head_dim_v: 64,
        f16: true,
        ..v
    };
    let small = Case {
        dims: (64, 64),
        ..PLAIN
    };
    masks(&v, &small, 8);
    let every_lane = Variant {
        name: "96_keys",
        head_dim: 96,
        head_dim_v: 96,
        f16: false,
        defines: &["-DDQ=0", "-DRACECHECK=1"],
    };
    let padded = Case {
        dims: (80, 96),
        ..PLAIN
    };
    masks(&every_lane, &padded, 4);
}

#[test]
fn keys_of_the_widest_heads_alone() {
    let v = Variant {
        name: "256_keys",
        head_dim: 256,
        head_dim_v: 256,
        f16: false,
        defines: &["-DDQ=0"],
    };
    masks(
        &v,
        &Case {
            heads: (2, 2),
            dims: (256, 256),
            ..PLAIN
        },
        6,
    );
}

#[test]
fn softcap_and_keys_alone() {
    let v = Variant {
        name: "capped",
        head_dim: 128,
        head_dim_v: 128,
        f16: false,
        defines: &["-DSOFTCAP=1", "-DDQ=0"],
    };
    masks(
        &v,
        &Case {
            heads: (2, 2),
            softcap: 1.5,
            ..PLAIN
        },
        4,
    );
}
