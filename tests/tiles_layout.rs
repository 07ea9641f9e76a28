//! kernels/params.h and src/types/tiles.rs describe the same bytes: a C program prints what it sees.

use magi_attn::types::{Item, RowLimits, Tile, TileList};
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

/// C name of a struct, its size in Rust, and (C name, offset in Rust) of each member.
type Layout = (&'static str, usize, Vec<(&'static str, usize)>);

macro_rules! layout {
    ($rust:ty, $c:literal, $($member:literal => $field:ident),+) => {
        ($c, size_of::<$rust>(), vec![$(($member, offset_of!($rust, $field))),+])
    };
}

fn layouts() -> Vec<Layout> {
    vec![
        layout!(Tile, "magi_tile", "row0" => row0, "rows" => rows, "item0" => item0, "items" => items,
            "steps" => steps, "source" => source, "slot" => slot, "pieces" => pieces),
        layout!(Item, "magi_item", "run0" => run0, "run1" => run1, "start" => start, "full0" => full0,
            "full1" => full1, "row0" => row0, "row1" => row1, "lo" => lo, "hi" => hi, "source" => source,
            "limits" => limits, "reserved0" => reserved),
        layout!(RowLimits, "magi_row_limits", "lo" => lo, "hi" => hi),
    ]
}

/// Compiles `source` as `language` against kernels/, runs it and returns what it prints.
fn output(language: &str, standard: &str, source: &str) -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (file, program) = (
        folder.join(format!("params.{language}")),
        folder.join(format!("params_{language}")),
    );
    std::fs::write(&file, source).unwrap();
    let compiled = Command::new("cc")
        .args([
            "-x",
            language,
            standard,
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pedantic",
            "-I",
        ])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"))
        .arg(&file)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("a C compiler is on PATH");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    String::from_utf8(Command::new(program).output().unwrap().stdout).unwrap()
}

#[test]
fn host_and_device_agree() {
    // The header stands alone: it comes first, and includes nothing.
    let mut source =
        "#include \"params.h\"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n".to_owned();
    let mut want = String::new();
    for (name, size, members) in layouts() {
        writeln!(source, "printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        writeln!(want, "{name} {size}").unwrap();
        for (member, offset) in members {
            writeln!(
                source,
                "printf(\"{name}.{member} %zu %zu\\n\", offsetof({name}, {member}), sizeof((({name} *)0)->{member}));"
            )
            .unwrap();
            writeln!(want, "{name}.{member} {offset} 4").unwrap();
        }
    }
    let constants = [
        ("MAGI_TILES_VERSION", TileList::VERSION),
        ("MAGI_TILES_NO_LO", Item::NO_LO),
        ("MAGI_TILES_NO_HI", Item::NO_HI),
    ];
    for (name, value) in constants {
        writeln!(source, "printf(\"{name} %d\\n\", {name});").unwrap();
        writeln!(want, "{name} {value}").unwrap();
    }
    source.push_str("return 0;\n}\n");
    assert_eq!(output("c", "-std=c11", &source), want);
    assert_eq!(output("c++", "-std=c++17", &source), want);
}

#[test]
fn the_header_includes_nothing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/params.h");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.contains("#include"));
    // Vector loads of 16 bytes: whole tiles and items.
    assert_eq!((size_of::<Tile>() % 16, size_of::<Item>() % 16), (0, 0));
}
