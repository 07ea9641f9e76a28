//! Structs that host and device share: what Rust sees is asserted in C, against kernels/.

use std::path::Path;
use std::process::Command;

/// Compiles `text`, C11 that includes headers of kernels/ and asserts what Rust knows of them. `name` is the file's, unique
/// among the tests.
pub fn assert_compiles(name: &str, text: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("{name}.c"));
    std::fs::write(&file, text).unwrap();
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"))
        .arg(&file)
        .arg("-o")
        .arg(folder.join(format!("{name}.o")))
        .output()
        .expect("a C compiler is on PATH");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
}
