//! kernels/helper/range_tiles.h and src/backend/cuda/range_tiles.rs describe the same bytes: a C program asserts it.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use magi_attn::backend::cuda::range_tiles::{BAD_TYPE, RangeCounters, RangeParams, THREADS, TOO_MANY};

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
        out,
        lse,
        out_token,
        out_head,
        lse_token,
        lse_head,
        count,
        tokens_q,
        tokens_k,
        rows,
        step,
        tile_count,
        max_items,
        heads,
        head_dim_v,
        out_bytes
    );
    for (name, value) in [
        ("MAGI_RANGE_THREADS", u64::from(THREADS)),
        ("MAGI_RANGE_BAD_TYPE", BAD_TYPE),
        ("MAGI_RANGE_TOO_MANY", TOO_MANY),
    ] {
        writeln!(text, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join("range_tiles.c");
    std::fs::write(&file, text).unwrap();
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"))
        .arg(&file)
        .arg("-o")
        .arg(folder.join("range_tiles.o"))
        .output()
        .expect("a C compiler is on PATH");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
}
