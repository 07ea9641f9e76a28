//! kernels/params.h and src/backend/cuda/forward_params.rs describe the same bytes: a C compiler asserts it.

mod common_layout;

use std::fmt::Write as _;
use std::mem::offset_of;

use common_layout::assert_compiles;
use magi_attn::backend::cuda::embedded::SOURCES;
use magi_attn::backend::cuda::forward_params::ForwardParams;

macro_rules! offsets {
    ($($member:ident),+) => {
        [$((stringify!($member), offset_of!(ForwardParams, $member))),+]
    };
}

#[test]
fn host_and_device_agree() {
    let members = offsets!(
        tiles,
        items,
        limits,
        counters,
        maxima,
        out,
        lse,
        max_logits,
        sink,
        piece_out,
        piece_lse,
        piece_done,
        earlier,
        out_token,
        out_head,
        lse_token,
        lse_head,
        sink_token,
        sink_row,
        sink_head,
        earlier_token,
        earlier_head,
        tile_count,
        units,
        group,
        section,
        pack,
        pack_inverse,
        tokens_k,
        head_dim_v,
        sinks,
        q_bytes,
        flags,
        copies_k,
        copies_v,
        scale_log2,
        softcap_scale
    );
    // No member is missing between two of these, nor behind the last: every gap is a pointer, a stride or an integer.
    for pair in members.windows(2) {
        assert!(
            pair[1].1 - pair[0].1 <= 8,
            "a member is missing behind {}",
            pair[0].0
        );
    }
    assert_eq!(size_of::<ForwardParams>() - members[members.len() - 1].1, 4);
    let name = "magi_attn_forward_params";
    let mut text = "#include \"params.h\"\n#include <stddef.h>\n".to_owned();
    for (member, at) in members {
        writeln!(
            text,
            "_Static_assert(offsetof({name}, {member}) == {at}, \"{member}\");"
        )
        .unwrap();
    }
    writeln!(
        text,
        "_Static_assert(sizeof({name}) == {}, \"size\");",
        size_of::<ForwardParams>()
    )
    .unwrap();
    for (flag, value) in [
        ("MAGI_FORWARD_OUT_F32", ForwardParams::OUT_F32),
        ("MAGI_FORWARD_ACCUMULATE", ForwardParams::ACCUMULATE),
    ] {
        writeln!(text, "_Static_assert({flag} == {value}, \"{flag}\");").unwrap();
    }
    assert_compiles("forward_layout", &text);
}

/// What `workspace_bound` takes the sizes of a general kernel for, of which it knows the plain form alone.
#[test]
fn general_kernels_have_tiles_as_small_and_steps_nearly_as_long() {
    let shape = SOURCES.iter().find(|(name, _)| *name == "attn/forward_shape.cuh");
    // Switches and sizes stand before everything else, as macros.
    let (_, sizes) = shape.unwrap().1.split_once("#ifndef SOFTCAP").unwrap();
    let mut text = format!("#ifndef SOFTCAP{}", sizes.split_once("constexpr").unwrap().0);
    for (d, dv) in [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)] {
        let head = "#undef HEAD_DIM\n#undef HEAD_DIM_V\n#undef GENERAL";
        for (form, general) in [("plain", 0), ("general", 1)] {
            writeln!(
                text,
                "{head}\n#define HEAD_DIM {d}\n#define HEAD_DIM_V {dv}\n#define GENERAL {general}\n\
                 enum {{ {form}_q_{d}_{dv} = BLOCK_Q, {form}_k_{d}_{dv} = BLOCK_K }};"
            )
            .unwrap();
        }
        writeln!(
            text,
            "_Static_assert(+general_q_{d}_{dv} <= +plain_q_{d}_{dv}, \"rows\");\n\
             _Static_assert(4 * general_k_{d}_{dv} >= 3 * plain_k_{d}_{dv}, \"keys\");"
        )
        .unwrap();
    }
    assert_compiles("forward_sizes", &text);
}
