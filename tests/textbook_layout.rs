//! kernels/params.h and src/backend/cuda/textbook_params.rs describe the same bytes: a C program asserts it.

mod common_layout;

use std::fmt::Write as _;
use std::mem::offset_of;

use common_layout::assert_compiles;
use magi_attn::backend::cuda::textbook_params::{ROWS, ROWS_F64, TextbookParams, TextbookRows};

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
    let mut text = "#include \"params.h\"\n#include <stddef.h>\n".to_owned();
    assertions!(text, TextbookRows, "magi_textbook_rows", data, token, head);
    assertions!(
        text,
        TextbookParams,
        "magi_textbook_params",
        tiles,
        items,
        limits,
        q,
        k,
        v,
        lse,
        out,
        dout,
        delta,
        dq,
        dk,
        dv,
        max_logits,
        max_logits_head,
        scale,
        factor,
        softcap,
        capped,
        tile_count,
        heads_q,
        heads_kv,
        head_dim,
        head_dim_v
    );
    for (name, value) in [("MAGI_TEXTBOOK_ROWS", ROWS), ("MAGI_TEXTBOOK_ROWS_F64", ROWS_F64)] {
        writeln!(text, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    assert_compiles("textbook", &text);
}
