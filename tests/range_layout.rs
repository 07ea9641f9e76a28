//! kernels/helper/range_tiles.h and src/backend/cuda/range_tiles.rs describe the same bytes: a C program asserts it.

mod common_layout;

use std::fmt::Write as _;
use std::mem::offset_of;

use common_layout::assert_compiles;
use magi_attn::backend::cuda::range_tiles::{
    BAD_TYPE, RangeCounters, RangeOutput, RangeParams, THREADS, TOO_MANY,
};

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
    let mut text = "#include \"helper/range_tiles.h\"\n#include <stddef.h>\n".to_owned();
    assertions!(
        text,
        RangeCounters,
        "magi_range_counters",
        items,
        bad_type,
        steps,
        done,
        failed
    );
    assertions!(
        text,
        RangeOutput,
        "magi_range_output",
        data,
        token,
        head,
        tokens,
        heads,
        width,
        bytes,
        reserved
    );
    assertions!(
        text,
        RangeParams,
        "magi_range_params",
        q_ranges,
        k_ranges,
        mask_types,
        q_step,
        k_step,
        type_step,
        tiles,
        drawn,
        items,
        keys,
        counters,
        error,
        outputs,
        count,
        tokens_q,
        tokens_k,
        rows,
        step,
        tile_count,
        max_items,
        of_keys
    );
    for (name, value) in [
        ("MAGI_RANGE_THREADS", u64::from(THREADS)),
        ("MAGI_RANGE_BAD_TYPE", BAD_TYPE),
        ("MAGI_RANGE_TOO_MANY", TOO_MANY),
    ] {
        writeln!(text, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    assert_compiles("range_tiles", &text);
}
