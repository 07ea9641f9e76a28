//! kernels/helper/backward_rows.h and src/backend/cuda/backward_rows.rs describe the same bytes: a C program asserts it.

mod common_layout;

use std::fmt::Write as _;
use std::mem::offset_of;

use common_layout::assert_compiles;
use magi_attn::backend::cuda::backward_rows::{DqParams, RowsParams, SINKS, THREADS};

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
    let mut text = "#include \"helper/backward_rows.h\"\n#include <stddef.h>\n".to_owned();
    assertions!(
        text,
        RowsParams,
        "magi_backward_rows",
        out,
        dout,
        lse,
        lse2,
        delta,
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
    ] {
        writeln!(text, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    assert_compiles("backward_rows", &text);
}
