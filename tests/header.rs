//! `include/magi_attn.h` is what cbindgen makes of src/ffi today, and keeps the promises of the ABI about headers.
//!
//! `MAGI_UPDATE_HEADER=1 cargo test --test header` writes the header instead of complaining.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header_path() -> PathBuf {
    root().join("include/magi_attn.h")
}

/// Every Rust source below `folder`, in a fixed order.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Names that `pub <keyword> <name>` declares in src/ffi at the outermost level, where `name` starts with `magi_`.
/// The fault hooks of the test-only build are no part of the header.
fn declared(keywords: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in sources(&root().join("src/ffi")) {
        for line in fs::read_to_string(path).unwrap().lines() {
            let name = keywords
                .iter()
                .find_map(|k| line.strip_prefix(&format!("pub {k} ")));
            let Some(name) = name else { continue };
            let end = name
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(name.len());
            if name.starts_with("magi_") && !name.starts_with("magi_test_") {
                names.insert(name[..end].to_owned());
            }
        }
    }
    names
}

fn generate() -> String {
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    // Enums come in as int32_t, so that cbindgen finds no function that mentions them.
    config
        .export
        .include
        .extend(declared(&["enum", "struct", "union", "type"]));
    let bindings = cbindgen::Builder::new()
        // The ABI, and the ground floor whose plain types it uses. Constants of the floors between stay out.
        .with_src(root().join("src/ffi/mod.rs"))
        .with_src(root().join("src/types/mod.rs"))
        .with_config(config)
        .generate()
        .expect("cbindgen reads src/ffi");
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).unwrap()
}

/// The first line that differs, with its number, for people.
fn first_difference(have: &str, want: &str) -> String {
    let (mut have, mut want) = (have.lines(), want.lines());
    for number in 1.. {
        match (have.next(), want.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => return format!("line {number}\n  is      {a:?}\n  must be {b:?}"),
        }
    }
    "line endings".to_owned()
}

#[test]
fn header_is_current() {
    let want = generate();
    let have = fs::read_to_string(header_path()).unwrap_or_default();
    if have == want {
        return;
    }
    if std::env::var_os("MAGI_UPDATE_HEADER").is_some_and(|v| v == "1") {
        fs::create_dir_all(header_path().parent().unwrap()).unwrap();
        fs::write(header_path(), want).unwrap();
        return;
    }
    panic!(
        "include/magi_attn.h is not what src/ffi says: {}\nMAGI_UPDATE_HEADER=1 cargo test --test header writes it anew",
        first_difference(&have, &want)
    );
}

#[test]
fn header_names_everything_public() {
    let header = generate();
    let words: BTreeSet<&str> = header.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let items = [
        "enum",
        "struct",
        "union",
        "type",
        "extern \"C\" fn",
        "unsafe extern \"C\" fn",
    ];
    let missing: Vec<_> = declared(&items)
        .into_iter()
        .filter(|n| !words.contains(n.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "public in src/ffi and not in the header: {missing:?}"
    );
}

#[test]
fn header_includes_only_what_it_promises() {
    let header = generate();
    let includes: Vec<&str> = header
        .lines()
        .filter_map(|l| l.trim().strip_prefix("#include"))
        .map(str::trim)
        .collect();
    assert_eq!(includes, ["<stddef.h>", "<stdint.h>"]);
}

#[test]
fn every_name_has_the_prefix() {
    let header = generate();
    for line in header.lines() {
        let name = line
            .strip_prefix("#define ")
            .or_else(|| line.strip_prefix("typedef struct "));
        let Some(name) = name else { continue };
        let allowed =
            name.starts_with("MAGI_") || name.starts_with("magi_") || name.starts_with("CUstream_st *");
        assert!(allowed, "a name without the prefix: {line}");
    }
}

#[test]
fn fault_hooks_are_in_no_header() {
    assert!(!generate().contains("magi_test_"));
}
