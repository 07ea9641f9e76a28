//! Kernels compiled at run time, with the NVRTC that scripts/setup.sh puts into .tools or that the machine has. No GPU is
//! needed. scripts/check_kernels.sh sets MAGI_KERNEL_OUT to a folder that gets every variant's text, its cubin and what the compiler said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use magi_attn::backend::cuda::compile::{self, Arch};
use magi_attn::backend::cuda::embedded;
use magi_attn::backend::cuda::nvrtc::Nvrtc;
use magi_attn::backend::cuda::nvrtc_places::{Place, places};
use magi_attn::backend::cuda::variant::{Kind, Variant};
use magi_attn::types::{KernelBuild, Status};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The compiler, or `None` (said aloud) where there is none; MAGI_KERNEL_OUT demands one.
fn nvrtc() -> Option<Nvrtc> {
    let mut all = vec![Place::Folder(root().join(".tools/cuda/nvidia/cu13/lib"))];
    all.extend(places());
    match Nvrtc::load(&all) {
        Ok(nvrtc) => Some(nvrtc),
        Err(e) if std::env::var_os("MAGI_KERNEL_OUT").is_some() => panic!("{e}"),
        Err(e) => {
            println!("skipped: {e}");
            None
        }
    }
}

fn has_entry(cubin: &[u8], entry: &str) -> bool {
    let section = format!(".text.{entry}\0");
    cubin.windows(section.len()).any(|w| w == section.as_bytes())
}

/// Where MAGI_KERNEL_OUT says.
fn out() -> Option<PathBuf> {
    std::env::var_os("MAGI_KERNEL_OUT").map(PathBuf::from)
}

/// Compiles for Hopper and, where `out` is a folder, leaves text, cubin and what the compiler said there.
fn compile_into(nvrtc: &Nvrtc, variant: &Variant, out: Option<&Path>) {
    let settings = KernelBuild {
        verbose: true,
        ..KernelBuild::default()
    };
    let text = embedded::text(variant).unwrap();
    let options = compile::options(variant, Arch::HOPPER, &settings);
    let compiled = nvrtc.compile(&variant.name, &text, &options).unwrap();
    for entry in &variant.entries {
        assert!(
            has_entry(&compiled.cubin, entry),
            "{} lacks {entry}",
            variant.name
        );
    }
    if let Some(out) = out {
        let file = |extension: &str| out.join(format!("{}.{extension}", variant.name));
        fs::write(file("cu"), &text).unwrap();
        fs::write(file("cubin"), &compiled.cubin).unwrap();
        fs::write(file("log"), &compiled.log).unwrap();
    }
}

#[test]
#[ignore = "takes seconds a variant; scripts/check_kernels.sh runs it"]
fn every_variant_compiles_with_nvrtc() {
    let Some(nvrtc) = nvrtc() else {
        return;
    };
    let out = out();
    let mut list = String::new();
    for variant in embedded::variants().unwrap() {
        compile_into(&nvrtc, variant, out.as_deref());
        let kind = match variant.kind {
            Kind::Attention => "attention",
            Kind::Helper => "helper",
        };
        list += &format!("{} {kind} {}\n", variant.name, variant.defines.join(" "));
    }
    if let Some(out) = &out {
        fs::write(out.join("variants"), list).unwrap();
    }
}

/// Forms that are not listed, which users get from NVRTC alone: a line of the file `list` in MAGI_KERNEL_OUT is a source and
/// its macros. The line's number names what comes out.
#[test]
#[ignore = "takes seconds a form; scripts/check_kernels.sh runs it"]
fn forms_compile_with_nvrtc() {
    let (Some(nvrtc), Some(out)) = (nvrtc(), out()) else {
        return;
    };
    let listed = embedded::variants().unwrap();
    for (i, line) in fs::read_to_string(out.join("list")).unwrap().lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let like = listed.iter().find(|v| v.source == words[0]).unwrap();
        let entries: Vec<&str> = like.entries.iter().map(String::as_str).collect();
        let name = (i + 1).to_string();
        let form = Variant::new(&name, Kind::Attention, words[0], &entries, &words[1..]);
        compile_into(&nvrtc, &form, Some(&out));
    }
}

#[test]
fn helpers_compile_for_older_and_newer_devices() {
    let Some(nvrtc) = nvrtc() else {
        return;
    };
    // All that textbook attention needs, for the oldest device that it is for.
    let needed = [
        "elementwise",
        "ranges",
        "running",
        "textbook_forward",
        "textbook_backward",
    ];
    for (i, name) in needed.into_iter().enumerate() {
        let variant = embedded::listed(name).unwrap();
        let newer = [(8, 0), (10, 0), (12, 0)];
        for (major, minor) in newer.into_iter().take(if i == 0 { 3 } else { 1 }) {
            let options = compile::options(variant, Arch { major, minor }, &KernelBuild::default());
            nvrtc
                .compile(&variant.name, &embedded::text(variant).unwrap(), &options)
                .unwrap();
        }
    }
}

#[test]
fn what_the_compiler_says_is_in_the_error() {
    let Some(nvrtc) = nvrtc() else {
        return;
    };
    let error = nvrtc.compile(
        "broken",
        "#line 1 \"kernels/broken.cu\"\nint f() { return nothing; }",
        &[],
    );
    let error = error.unwrap_err();
    assert_eq!(error.status, Status::CompileFailed);
    for part in ["broken", "kernels/broken.cu", "nothing"] {
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn without_a_compiler_the_error_lists_what_was_tried() {
    let nowhere = root().join("kernels");
    let error = Nvrtc::load(&[Place::Name("libnvrtc.so.0"), Place::Folder(nowhere.clone())]);
    let error = error.err().unwrap();
    assert_eq!(error.status, Status::CompileFailed);
    for part in ["libnvrtc.so.0", nowhere.to_str().unwrap(), "CUDA_HOME"] {
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn devices_that_a_kernel_was_not_written_for_are_refused() {
    let attention = Variant::new("attn", Kind::Attention, "attn.cu", &["attn"], &[]);
    let helper = embedded::listed("ranges").unwrap();
    let settings = KernelBuild::default();
    for (variant, major, minor) in [(&attention, 10, 0), (&attention, 8, 9), (helper, 7, 5)] {
        let error = compile::cubin(variant, Arch { major, minor }, &settings).unwrap_err();
        assert_eq!(error.status, Status::NotSupported);
        assert!(error.message.contains(&format!("{major}.{minor}")), "{error}");
    }
}

#[test]
fn a_kept_kernel_is_known_by_source_options_and_compiler() {
    let plain = Variant::new("a", Kind::Helper, "a.cu", &["a"], &["N=1"]);
    let other = Variant::new("a", Kind::Helper, "a.cu", &["a"], &["N=2"]);
    let (quiet, debug) = (
        KernelBuild::default(),
        KernelBuild {
            debug: true,
            ..KernelBuild::default()
        },
    );
    let name = |v: &Variant, text: &str, arch: Arch, build: &KernelBuild, version| {
        compile::file_name(v, text, &compile::options(v, arch, build), version)
    };
    let ampere = Arch { major: 8, minor: 0 };
    let names = [
        name(&plain, "text", Arch::HOPPER, &quiet, (13, 0)),
        name(&other, "text", Arch::HOPPER, &quiet, (13, 0)),
        name(&plain, "test", Arch::HOPPER, &quiet, (13, 0)),
        name(&plain, "text", ampere, &quiet, (13, 0)),
        name(&plain, "text", Arch::HOPPER, &debug, (13, 0)),
        name(&plain, "text", Arch::HOPPER, &quiet, (12, 9)),
    ];
    for (i, n) in names.iter().enumerate() {
        assert!(!names[..i].contains(n), "{n}");
    }
    assert_eq!(names[0], name(&plain, "text", Arch::HOPPER, &quiet, (13, 0)));
}

/// Set for the processes that compile and report.
const CHILD: &str = "KERNEL_COMPILE_CHILD";

/// What a process with these variables says, which asks for the kernels `elementwise`.
fn child(base: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "the_environment_says_how_and_where", "--nocapture"])
        .env(CHILD, "1")
        .env("MAGI_ATTENTION_WORKSPACE_BASE", base)
        .envs(variables.iter().copied());
    let home = root().join(".tools/cuda/nvidia/cu13");
    if std::env::var_os("CUDA_HOME").is_none() && home.is_dir() {
        command.env("CUDA_HOME", home);
    }
    command.output().unwrap()
}

#[test]
fn the_environment_says_how_and_where() {
    if std::env::var_os(CHILD).is_some() {
        let variant = embedded::listed("elementwise").unwrap();
        let settings = KernelBuild::from_env().unwrap();
        let cubin = compile::cubin(variant, Arch::HOPPER, &settings).unwrap();
        println!("\nembedded: {}", embedded::cubin(variant) == Some(&cubin));
        return;
    }
    if nvrtc().is_none() {
        return;
    }
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel_compile");
    let _ = fs::remove_dir_all(&base);
    let folder = base.join(".magi_attention/kernels");
    let kept = || {
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        files
            .filter(|f| f.path().extension().is_some_and(|e| e == "cubin"))
            .count()
    };
    let jit = ("MAGI_ATTENTION_FORCE_JIT_BUILD", "1");
    let verbose = ("MAGI_ATTENTION_BUILD_VERBOSE", "1");
    let (no_cache, debug) = (
        ("MAGI_ATTENTION_NO_BUILD_CACHE", "1"),
        ("MAGI_ATTENTION_BUILD_DEBUG", "1"),
    );
    let ahead = !embedded::CUBINS.is_empty();
    // Variables; files kept after it; whether it says the command, and registers; whether the embedded cubin came.
    let cases = [
        (vec![], usize::from(!ahead), [false, false, ahead]),
        (
            vec![jit, no_cache, verbose],
            usize::from(!ahead),
            [true, true, false],
        ),
        (vec![jit], 1, [false, false, false]),
        (vec![jit, debug], 2, [false, true, false]),
        (vec![jit, verbose], 3, [true, true, false]),
        (vec![jit, verbose], 3, [false, false, false]),
    ];
    for (variables, files, [command, registers, from_library]) in &cases {
        let (output, command, registers) = (child(&base, variables), *command, *registers);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert!(output.status.success(), "{variables:?}: {out}{err}");
        assert_eq!(kept(), *files, "{variables:?}");
        assert_eq!(
            err.contains("--gpu-architecture=sm_90a"),
            command,
            "{variables:?}: {err}"
        );
        assert_eq!(err.contains("registers"), registers, "{variables:?}: {err}");
        assert!(
            out.contains(&format!("embedded: {from_library}")),
            "{variables:?}: {out}"
        );
    }
}
