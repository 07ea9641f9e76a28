//! What build.rs does with kernels: which it compiles ahead of time and how, as environment variables say. The program is
//! compiled and run on a small project with a compiler that only writes down what it was asked for.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Two attention variants of one source, three helpers.
const VARIANTS: &str = "\
# a comment
attn_64   attention  attn.cu    attn   HEAD_DIM=64 CAUSAL
attn_128  attention  attn.cu    attn   HEAD_DIM=128   # another
copy      helper     copy.cu    copy_{f32,f64}
move_1    helper     copy.cu    copy_{f32,f64}  N=1
move_2    helper     copy.cu    copy_{f32,f64}  N=2
";

/// Stands in for nvcc: `log` gets its arguments, and a mark when it starts and ends; the cubin is the source.
const COMPILER: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "nvcc for tests, ${FAKE_VERSION:-1}"; exit 0; fi
here="$(dirname "$0")"
echo "start $*" >>"$here/log"
sleep "${FAKE_SECONDS:-0}"
for last; do :; done
for word; do case "$word" in *.cu) source="$word" ;; esac; done
if [ -n "$FAKE_BROKEN" ]; then echo "fake: no host compiler"; exit 1; fi
case "$source" in */probe.cu) ;; *) if [ -n "$FAKE_FAILS" ]; then echo "fake error in $source"; exit 2; fi ;; esac
cp "$source" "$last"
echo "ptxas says: 40 registers"
echo end >>"$here/log"
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel_build")
}

/// build.rs as a program.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        fs::create_dir_all(scratch()).unwrap();
        let program = scratch().join("build_program");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc)
            .args(["--edition", "2024", "-Copt-level=0", "-Cdebuginfo=0"])
            .arg(root().join("build.rs"))
            .arg("-o")
            .arg(&program)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        program
    })
}

/// A project with a compiler, in folders of its own.
struct Project {
    base: PathBuf,
}

impl Project {
    fn new(name: &str) -> Project {
        let base = scratch().join(name);
        let _ = fs::remove_dir_all(&base);
        let project = Project { base };
        for (path, text) in [
            ("kernels/variants.txt", VARIANTS),
            ("kernels/attn.cu", "#include \"ptx/one.cuh\"\nattn\n"),
            (
                "kernels/copy.cu",
                "#include \"ptx/one.cuh\"\n#include \"ptx/one.cuh\"\ncopy\n",
            ),
            ("kernels/ptx/one.cuh", "#pragma once\none\n"),
            ("bin/nvcc", COMPILER),
        ] {
            let path = project.base.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(project.base.join("bin/nvcc"), mode).unwrap();
        project
    }

    fn out(&self) -> PathBuf {
        self.base.join("target/release/build/magi-1/out")
    }

    /// Runs build.rs with these variables and nothing else; `NVCC` is the compiler unless it is among them.
    fn run(&self, variables: &[(&str, &str)]) -> Output {
        let _ = fs::remove_dir_all(self.out());
        fs::create_dir_all(self.out()).unwrap();
        let _ = fs::remove_file(self.base.join("bin/log"));
        Command::new(program())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("CARGO_MANIFEST_DIR", &self.base)
            .env("OUT_DIR", self.out())
            .env("NVCC", self.base.join("bin/nvcc"))
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    /// Runs it, and gives the variants in the table of cubins and the lines of the compiler's log.
    fn build(&self, variables: &[(&str, &str)]) -> (BTreeSet<String>, Vec<String>) {
        let output = self.run(variables);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{variables:?}: {said}");
        let table = fs::read_to_string(self.out().join("kernel_cubins.rs")).unwrap();
        let names = table
            .lines()
            .filter_map(|l| l.trim().strip_prefix("(\"")?.split('"').next());
        let log = fs::read_to_string(self.base.join("bin/log")).unwrap_or_default();
        (
            names.map(str::to_owned).collect(),
            log.lines().map(str::to_owned).collect(),
        )
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

/// Calls in a compiler's log, other than the one that tries whether it works.
fn calls(log: &[String]) -> Vec<&String> {
    let is_call = |l: &&String| l.starts_with("start ") && !l.contains("/probe.cu");
    log.iter().filter(is_call).collect()
}

/// Most calls that ran at the same time.
fn overlap(log: &[String]) -> usize {
    let (mut now, mut most) = (0usize, 0);
    for line in log {
        if line == "end" {
            now -= 1
        } else {
            now += 1
        }
        most = most.max(now);
    }
    most
}

const FRESH: (&str, &str) = ("MAGI_ATTENTION_NO_BUILD_CACHE", "1");

#[test]
fn variants_are_compiled_with_their_macros() {
    let project = Project::new("macros");
    let (names, log) = project.build(&[]);
    assert_eq!(names, set(&["attn_64", "attn_128", "copy", "move_1", "move_2"]));
    assert_eq!(calls(&log).len(), 5);
    for call in calls(&log) {
        for flag in [
            "-cubin",
            "-gencode=arch=compute_90a,code=sm_90a",
            "-std=c++17",
            "--split-compile=4",
        ] {
            assert!(call.contains(flag), "{call}");
        }
        assert!(!call.contains("-lineinfo"), "{call}");
    }
    assert!(
        calls(&log).iter().any(|c| c.contains("-DHEAD_DIM=64 -DCAUSAL")),
        "{log:?}"
    );
    // What was compiled is the source with its headers, each once.
    let cubins: Vec<PathBuf> = fs::read_dir(project.out())
        .unwrap()
        .flatten()
        .map(|f| f.path())
        .filter(|p| p.extension().is_some_and(|e| e == "cubin") && !p.ends_with("probe.cubin"))
        .collect();
    assert_eq!(cubins.len(), 5);
    for cubin in cubins {
        let text = fs::read_to_string(cubin).unwrap();
        assert_eq!(text.matches("one\n").count(), 1, "{text}");
        assert!(!text.contains("#include") && !text.contains("#pragma"), "{text}");
    }
}

#[test]
fn variables_leave_kernels_to_run_time() {
    let project = Project::new("left_out");
    let (attention, helpers) = (
        ("MAGI_ATTENTION_PREBUILD_FFA", "0"),
        ("MAGI_ATTENTION_SKIP_FFA_UTILS_BUILD", "1"),
    );
    assert_eq!(
        project.build(&[attention, FRESH]).0,
        set(&["copy", "move_1", "move_2"])
    );
    assert_eq!(project.build(&[helpers, FRESH]).0, set(&["attn_64", "attn_128"]));
    let (names, log) = project.build(&[attention, helpers]);
    assert!(names.is_empty() && log.is_empty(), "{log:?}");
}

#[test]
fn kernels_of_group_collectives_are_left_to_run_time_alone() {
    let listed = |text: &str| {
        text.lines()
            .any(|l| l.split_whitespace().nth(2) == Some("ranges.cu"))
    };
    assert!(listed(
        &fs::read_to_string(root().join("kernels/variants.txt")).unwrap()
    ));
    let project = Project::new("collectives");
    let variants = format!("{VARIANTS}gather  helper  ranges.cu  range_copy\n");
    assert!(listed(&variants));
    fs::write(project.base.join("kernels/variants.txt"), variants).unwrap();
    fs::write(project.base.join("kernels/ranges.cu"), "ranges\n").unwrap();
    let others = ["attn_64", "attn_128", "copy", "move_1", "move_2"];
    let skip = ("MAGI_ATTENTION_SKIP_MAGI_ATTN_COMM_BUILD", "1");
    assert_eq!(project.build(&[skip, FRESH]).0, set(&others));
    let all: Vec<&str> = others.iter().copied().chain(["gather"]).collect();
    assert_eq!(project.build(&[FRESH]).0, set(&all));
}

#[test]
fn jobs_run_at_the_same_time_as_variables_say() {
    let project = Project::new("jobs");
    let slow = ("FAKE_SECONDS", "0.3");
    let one = ("MAX_JOBS", "1");
    let (_, log) = project.build(&[slow, FRESH, one, ("MAGI_ATTENTION_PREBUILD_FFA_JOBS", "1")]);
    assert_eq!(overlap(&log), 1);
    let (_, log) = project.build(&[slow, FRESH, one, ("MAGI_ATTENTION_PREBUILD_FFA_JOBS", "2")]);
    assert_eq!(overlap(&log), 2, "the two attention kernels: {log:?}");
    let (_, log) = project.build(&[
        slow,
        FRESH,
        ("MAX_JOBS", "3"),
        ("MAGI_ATTENTION_PREBUILD_FFA_JOBS", "1"),
    ]);
    assert_eq!(overlap(&log), 3, "the three helpers: {log:?}");
}

#[test]
fn threads_line_numbers_and_what_is_printed() {
    let project = Project::new("flags");
    let (_, log) = project.build(&[FRESH, ("NVCC_THREADS", "7"), ("MAGI_ATTENTION_BUILD_DEBUG", "1")]);
    assert!(
        calls(&log)
            .iter()
            .all(|c| c.contains("--split-compile=7") && c.contains("-lineinfo"))
    );
    let warnings = |variables: &[(&str, &str)]| {
        let out = String::from_utf8_lossy(&project.run(variables).stdout).into_owned();
        let lines: Vec<_> = out
            .lines()
            .filter(|l| l.starts_with("cargo:warning="))
            .map(str::to_owned)
            .collect();
        lines.join("\n")
    };
    assert_eq!(warnings(&[FRESH]), "");
    let said = warnings(&[FRESH, ("MAGI_ATTENTION_BUILD_DEBUG", "1")]);
    assert!(
        said.contains("40 registers") && !said.contains("-gencode"),
        "{said}"
    );
    let said = warnings(&[FRESH, ("MAGI_ATTENTION_BUILD_VERBOSE", "1")]);
    assert!(
        said.contains("-gencode") && said.contains("40 registers"),
        "{said}"
    );
}

#[test]
fn cubins_of_earlier_builds_are_taken_unless_something_changed() {
    let project = Project::new("kept");
    assert_eq!(calls(&project.build(&[]).1).len(), 5);
    let (names, log) = project.build(&[]);
    assert_eq!((names.len(), calls(&log).len()), (5, 0));
    assert_eq!(calls(&project.build(&[FRESH]).1).len(), 5);
    assert_eq!(calls(&project.build(&[("FAKE_VERSION", "2")]).1).len(), 5);
    assert_eq!(
        calls(&project.build(&[("MAGI_ATTENTION_BUILD_DEBUG", "1")]).1).len(),
        5
    );
    fs::write(
        project.base.join("kernels/attn.cu"),
        "#include \"ptx/one.cuh\"\nother\n",
    )
    .unwrap();
    assert_eq!(calls(&project.build(&[]).1).len(), 2);
    fs::write(project.base.join("kernels/ptx/one.cuh"), "two\n").unwrap();
    assert_eq!(calls(&project.build(&[]).1).len(), 5);
}

#[test]
fn damaged_cubins_of_earlier_builds_are_compiled_again() {
    let project = Project::new("damaged");
    let folder = project.base.join("target/kernels");
    project.build(&[]);
    let mut kept: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    kept.sort();
    assert_eq!(kept.len(), 5, "{kept:?}");
    let whole = fs::read(&kept[0]).unwrap();
    fs::write(&kept[0], &whole[..whole.len() - 1]).unwrap();
    fs::write(&kept[1], "").unwrap();
    let mut changed = fs::read(&kept[2]).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&kept[2], changed).unwrap();
    let (names, log) = project.build(&[]);
    assert_eq!((names.len(), calls(&log).len()), (5, 3));
    assert_eq!(fs::read(&kept[0]).unwrap(), whole);
    let cubin = project.out().join(kept[0].file_name().unwrap());
    assert!(whole.ends_with(&fs::read(cubin).unwrap()));
    assert_eq!(calls(&project.build(&[]).1).len(), 0);
}

#[test]
fn without_a_compiler_the_library_still_builds() {
    let project = Project::new("without");
    let nothing = [("NVCC", "/nonexistent/nvcc")];
    let usual = Path::new("/usr/local/cuda/bin/nvcc");
    if usual.exists() {
        println!("skipped: {} would be found", usual.display());
        return;
    }
    let (names, log) = project.build(&nothing);
    assert!(names.is_empty() && log.is_empty());
    let sources = fs::read_to_string(project.out().join("kernel_sources.rs")).unwrap();
    for name in ["attn.cu", "copy.cu", "ptx/one.cuh"] {
        assert!(sources.contains(&format!("(\"{name}\", ")), "{sources}");
    }
    let (names, _) = project.build(&[("FAKE_BROKEN", "1")]);
    assert!(names.is_empty(), "a compiler that compiles nothing is none");
    let home = project.base.to_str().unwrap();
    let (names, _) = project.build(&[("NVCC", ""), ("CUDA_HOME", home)]);
    assert_eq!(names.len(), 5, "CUDA_HOME/bin/nvcc");
    let path = format!("{home}/bin:/usr/bin:/bin");
    let (names, _) = project.build(&[("NVCC", ""), ("PATH", &path)]);
    assert_eq!(names.len(), 5, "nvcc on PATH");
    for (prefix, wheel) in [("VIRTUAL_ENV", "cu13"), ("CONDA_PREFIX", "cuda_nvcc")] {
        let base = project.base.join(prefix);
        let bin = base
            .join("lib/python3.12/site-packages/nvidia")
            .join(wheel)
            .join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(project.base.join("bin/nvcc"), bin.join("nvcc")).unwrap();
        let (names, _) = project.build(&[("NVCC", ""), (prefix, base.to_str().unwrap()), FRESH]);
        assert_eq!(names.len(), 5, "the wheels of {prefix}");
        assert!(bin.join("log").exists(), "another nvcc than that of {prefix}");
    }
}

#[test]
fn mistakes_end_the_build_with_a_reason() {
    let project = Project::new("mistakes");
    let reason = |variables: &[(&str, &str)]| {
        let output = project.run(variables);
        assert!(!output.status.success(), "{variables:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let bad = reason(&[("MAX_JOBS", "none")]);
    assert!(bad.contains("MAX_JOBS is \"none\""), "{bad}");
    let failed = reason(&[FRESH, ("FAKE_FAILS", "1")]);
    assert!(
        failed.contains("fake error in") && failed.contains("attn_"),
        "{failed}"
    );
    fs::write(project.base.join("kernels/attn.cu"), "#include \"gone.cuh\"\n").unwrap();
    let gone = reason(&[]);
    assert!(
        gone.contains("kernels/attn.cu, line 1") && gone.contains("gone.cuh"),
        "{gone}"
    );
    for (line, part) in [
        ("a helper a.cu", "line 1: a source and entries"),
        ("a tensor a.cu a", "line 1: kind"),
        ("a helper a.cu x_{y", "line 1: braces"),
        ("\na helper a.cu a\na helper a.cu b", "line 3: a is there twice"),
    ] {
        fs::write(project.base.join("kernels/variants.txt"), line).unwrap();
        let said = reason(&[]);
        assert!(said.contains(part), "{line:?}: {said}");
    }
}
