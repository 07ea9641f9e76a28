//! The documents keep up with the code: functions and status codes of the header, environment variables, links, and the
//! README's C example.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use magi_attn::types::Status;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The first cells of table rows in the part of `text` under the heading `heading`, without backquotes.
fn first_cells(text: &str, heading: &str) -> Vec<String> {
    cells(text, heading, 0)
}

/// The cells of column `column`, in the order of the rows.
fn cells(text: &str, heading: &str, column: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('#') {
            inside = line.trim_start_matches('#').trim() == heading;
        } else if inside && line.starts_with('|') && !line.starts_with("|---") {
            let cell = line.split('|').nth(column + 1).unwrap_or_default();
            found.push(cell.trim().trim_matches('`').to_owned());
        }
    }
    assert!(found.len() > 1, "no table under {heading:?}");
    // The first row holds the titles.
    found.remove(0);
    found
}

/// Words of `text` that begin with `prefix` and are followed by `next`.
fn words(text: &str, prefix: &str, next: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(prefix)
        .filter(|(at, _)| !text[..*at].ends_with(is_word))
        .filter_map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            rest[end..].starts_with(next).then(|| rest[..end].to_owned())
        })
        .collect()
}

/// `text` without the comments of C.
fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    for (i, part) in text.split("/*").enumerate() {
        kept += if i == 0 {
            part
        } else {
            part.split_once("*/").unwrap().1
        };
    }
    kept
}

#[test]
fn every_function_of_the_header_is_in_the_table_of_threads() {
    let functions = words(&without_comments(&read("include/magi_attn.h")), "magi_", "(");
    let listed = first_cells(&read("docs/abi.md"), "Threads");
    let table: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), table.len(), "a function is listed twice");
    assert!(functions.contains("magi_calc_attn_forward"));
    assert_eq!(functions, table);
}

#[test]
fn every_status_is_in_the_table_of_codes() {
    let text = read("docs/abi.md");
    let rows: Vec<(String, String)> = cells(&text, "Status codes", 0)
        .into_iter()
        .zip(cells(&text, "Status codes", 1))
        .collect();
    let header = read("include/magi_attn.h");
    for (value, name) in &rows {
        assert!(
            header.contains(&format!("    {name} = {value},\n")),
            "{name} = {value} is not in the header"
        );
    }
    assert_eq!(rows.len(), Status::ALL.len());
}

/// Every document of the project.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "bench"] {
        for item in fs::read_dir(root().join(folder)).unwrap() {
            let path = item.unwrap().path();
            if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() >= 8, "{found:?}");
    found
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_and_images_lead_somewhere() {
    let mut checked = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.starts_with("https://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap().join(file)
            };
            assert!(path.exists(), "{}: {target}", document.display());
            if !heading.is_empty() {
                let other = fs::read_to_string(&path).unwrap();
                let headings = other.lines().filter(|l| l.starts_with('#'));
                let found = headings.map(anchor).any(|a| a == heading);
                assert!(found, "{}: {target}", document.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links found");
}

#[test]
fn the_example_of_the_readme_is_the_file() {
    let readme = read("README.md");
    let block = readme.split("```c\n").nth(1).unwrap();
    assert_eq!(
        block.split("```").next().unwrap(),
        read("examples/readme.c"),
        "the C block of README.md must be examples/readme.c"
    );
}

/// Compiles `source` with the strictest warnings against the library of this build, which lies beside this program.
fn compile(source: &str, program: &Path) {
    let library = std::env::current_exe().unwrap().with_file_name("libmagi_attn.so");
    assert!(library.exists(), "no {}", library.display());
    let output = Command::new("cc")
        .current_dir(root())
        .args([
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pedantic",
            "-Iinclude",
        ])
        .args([
            Path::new(source),
            &library,
            Path::new("-lm"),
            Path::new("-o"),
            program,
        ])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{source}: {errors}");
    // The loader asks for the SONAME.
    let link = program.with_file_name("libmagi_attn.so.0");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(library, link).unwrap();
}

/// What a program prints, its lines in order.
fn output(source: &str, folder: &Path) -> String {
    let program = folder.join(Path::new(source).file_stem().unwrap());
    compile(source, &program);
    let output = Command::new(&program)
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{source}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn examples_compile_and_print_what_they_should() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for name in ["quickstart", "profile"] {
        compile(&format!("examples/{name}.c"), &folder.join(name));
    }
    let printed = output("examples/readme.c", folder);
    assert!(
        read("README.md").contains(&format!("`{printed}`")),
        "README.md must quote {printed:?}"
    );
    assert_eq!(
        output("examples/ranks.c", folder),
        "rank 0: 7.0000\nrank 1: 7.0000"
    );
    assert_eq!(
        output("examples/group.c", folder),
        "row 0: 2 20\nrow 1: 8 80\nrow 2: 6 60\nrow 3: 8 80"
    );
}
