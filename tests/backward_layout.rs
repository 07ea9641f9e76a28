//! The structs of the backward kernels in kernels/ and those of src/backend/cuda/backward*.rs describe the same bytes: a C
//! program asserts it.

mod common_layout;

use std::fmt::Write as _;
use std::mem::offset_of;

use common_layout::assert_compiles;
use magi_attn::backend::cuda::backward_params::BackwardParams;
use magi_attn::backend::cuda::backward_queries_params::BackwardQueriesParams;
use magi_attn::backend::cuda::backward_rows::{DqParams, Pair, RowsParams, SINKS, THREADS};

/// C assertions that the members of `$c` lie where those of `$rust` do, and that both are equally large.
macro_rules! assertions {
    ($text:ident, $rust:ty, $c:literal, $($member:ident),+) => {{
        $(
            let at = offset_of!($rust, $member);
            writeln!($text, "_Static_assert(offsetof({}, {}) == {at}, \"{} of {}\");", $c, stringify!($member),
                stringify!($member), $c).unwrap();
        )+
        let size = size_of::<$rust>();
        writeln!($text, "_Static_assert(sizeof({}) == {size}, \"size of {}\");", $c, $c).unwrap();
    }};
}

#[test]
fn host_and_device_agree() {
    let headers = ["params.h", "helper/backward_rows.h", "stddef.h"];
    let mut text: String = headers.map(|name| format!("#include \"{name}\"\n")).concat();
    assertions!(
        text,
        BackwardParams,
        "magi_attn_backward_params",
        tiles,
        items,
        limits,
        counters,
        dq,
        dk,
        dv,
        piece,
        piece_done,
        dq_token,
        dq_head,
        dk_token,
        dk_head,
        dv_token,
        dv_head,
        tile_count,
        heads_kv,
        group,
        section,
        splits,
        tokens_q,
        head_dim,
        head_dim_v,
        copies_k,
        copies_v,
        flags,
        scale_log2,
        scale,
        softcap_scale
    );
    assertions!(
        text,
        BackwardQueriesParams,
        "magi_attn_backward_queries_params",
        tiles,
        items,
        limits,
        counters,
        dq,
        dq_token,
        dq_head,
        tile_count,
        units,
        group,
        section,
        tokens_k,
        head_dim,
        flags,
        copies_k,
        copies_v,
        scale,
        scale_log2,
        softcap_scale,
        reserved0
    );
    assertions!(
        text,
        RowsParams,
        "magi_backward_rows",
        out,
        dout,
        lse,
        stats,
        dq,
        failed,
        sink,
        dsink,
        parts,
        done,
        out_token,
        out_head,
        dout_token,
        dout_head,
        lse_token,
        lse_head,
        dq_token,
        dq_head,
        sink_token,
        sink_row,
        sink_head,
        dsink_token,
        dsink_row,
        dsink_head,
        tokens,
        padded,
        heads,
        width,
        dq_width,
        sinks,
        chunks,
        chunk,
        flags,
        reserved
    );
    assertions!(text, Pair, "magi_backward_pair", lse2, delta);
    assertions!(
        text,
        DqParams,
        "magi_backward_dq",
        from,
        to,
        from_token,
        from_head,
        to_token,
        to_head,
        tokens,
        heads,
        width,
        add,
        reserved
    );
    for (name, value) in [
        ("MAGI_BACKWARD_ROWS_THREADS", i64::from(THREADS)),
        ("MAGI_BACKWARD_ROWS_SINKS", SINKS as i64),
        ("MAGI_BACKWARD_ROWS_CLEAR", RowsParams::CLEAR.into()),
        ("MAGI_BACKWARD_ROWS_SHARED", RowsParams::SHARED.into()),
        ("MAGI_BACKWARD_ROWS_ADD_DSINK", RowsParams::ADD_DSINK.into()),
        ("MAGI_BACKWARD_ROWS_GIVEN", RowsParams::GIVEN.into()),
        ("MAGI_BACKWARD_OUT_F32", BackwardParams::OUT_F32.into()),
        ("MAGI_BACKWARD_ACCUMULATE", BackwardParams::ACCUMULATE.into()),
        ("MAGI_BACKWARD_QUERIES_F32", BackwardQueriesParams::F32.into()),
        (
            "MAGI_BACKWARD_QUERIES_ACCUMULATE",
            BackwardQueriesParams::ACCUMULATE.into(),
        ),
    ] {
        writeln!(text, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    assert_compiles("backward_layout", &text);
}
