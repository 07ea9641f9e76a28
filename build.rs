//! Gives the shared library its SONAME, which carries the ABI version; compiles kernels ahead of time where nvcc is
//! found, and embeds them and their sources. docs/build.md says which environment variables act here.

// What the library and this program share; each uses a part of it.
#[path = "src/backend/cuda/cubin_file.rs"]
mod cubin_file;
#[allow(dead_code)]
#[path = "src/backend/cuda/digest.rs"]
mod digest;
#[allow(dead_code)]
#[path = "src/types/kernel_build.rs"]
mod kernel_build;
#[path = "src/backend/cuda/nvcc.rs"]
mod nvcc;
#[path = "src/backend/cuda/source.rs"]
mod source;
#[path = "src/types/value.rs"]
mod value;
#[allow(dead_code)]
#[path = "src/backend/cuda/variant.rs"]
mod variant;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use digest::Digest;
use kernel_build::KernelBuild;
use nvcc::Nvcc;
use variant::{Kind, Variant};

/// Where everything is.
struct Places {
    root: PathBuf,
    out: PathBuf,
    /// Cubins of earlier builds, whatever their profile and features.
    kept: Option<PathBuf>,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for shared in [
        "backend/cuda/cubin_file",
        "backend/cuda/digest",
        "backend/cuda/nvcc",
        "backend/cuda/source",
        "backend/cuda/variant",
        "types/kernel_build",
        "types/value",
    ] {
        println!("cargo:rerun-if-changed=src/{shared}.rs");
    }
    let compiler = ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"];
    for name in compiler.iter().chain(&KernelBuild::VARIABLES) {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmagi_attn.so.0");
    }
    let settings = settings();
    let places = places(&settings);
    let sources = embed_sources(&places);
    let cubins = compile_ahead(&places, &settings, &sources);
    embed_cubins(&places, &cubins);
}

fn variable(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name}")))
}

fn settings() -> KernelBuild {
    let mut settings = KernelBuild::default();
    for name in KernelBuild::VARIABLES {
        if let Ok(text) = std::env::var(name)
            && settings.set(name, &text).is_none()
        {
            panic!("{name} is {text:?}, which does not parse; docs/environment.md says what is accepted");
        }
    }
    settings
}

fn places(settings: &KernelBuild) -> Places {
    let out = variable("OUT_DIR");
    // <target>/<profile>/build/<package>/out
    let target = out.ancestors().nth(4).map(|target| target.join("kernels"));
    Places {
        root: variable("CARGO_MANIFEST_DIR"),
        kept: target.filter(|_| !settings.no_cache),
        out,
    }
}

/// Every source and header under kernels/, by its path from there; also as a table in the library.
fn embed_sources(places: &Places) -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    collect(&places.root.join("kernels"), "", &mut sources);
    let mut table = String::from(
        "/// Path under kernels/ and text of every source and header.\npub static SOURCES: &[(&str, &str)] = &[\n",
    );
    for name in sources.keys() {
        let path = places.root.join("kernels").join(name);
        table += &format!(
            "    ({name:?}, include_str!({:?})),\n",
            path.display().to_string()
        );
    }
    table += "];\n";
    write(&places.out.join("kernel_sources.rs"), table.as_bytes());
    sources
}

fn collect(folder: &Path, prefix: &str, into: &mut BTreeMap<String, String>) {
    let items = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for item in items.flatten() {
        let (path, name) = (
            item.path(),
            format!("{prefix}{}", item.file_name().to_string_lossy()),
        );
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if path.is_dir() {
            collect(&path, &format!("{name}/"), into);
        } else if ["cu", "cuh", "h"].contains(&kind) {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            into.insert(name, text);
        }
    }
}

/// The kernels of group collectives: range gather and reduce.
const COLLECTIVES: &str = "ranges.cu";

/// The cubins of the variants that are wanted ahead of time, by name: all of them, or none without nvcc.
fn compile_ahead(
    places: &Places,
    settings: &KernelBuild,
    sources: &BTreeMap<String, String>,
) -> Vec<(String, PathBuf)> {
    let list = places.root.join("kernels/variants.txt");
    let text = fs::read_to_string(&list).unwrap_or_else(|e| panic!("{}: {e}", list.display()));
    let variants = variant::parse(&text).unwrap_or_else(|e| panic!("kernels/variants.txt, {e}"));
    let wanted = |v: &&Variant| match v.kind {
        Kind::Attention => settings.prebuild,
        Kind::Helper => !(settings.skip_helpers || settings.skip_collectives && v.source == COLLECTIVES),
    };
    let variants: Vec<Variant> = variants.iter().filter(wanted).cloned().collect();
    if variants.is_empty() {
        return Vec::new();
    }
    let probed = nvcc::find(&places.root).and_then(|nvcc| {
        nvcc.probe(&places.out, &nvcc::flags(&[], settings.debug, settings.threads))
            .map(|()| nvcc)
    });
    let nvcc = match probed {
        Ok(nvcc) => nvcc,
        Err(why) => {
            if settings.verbose {
                why.lines().for_each(|line| println!("cargo:warning={line}"));
            }
            eprintln!("{why}: kernels will be compiled at run time, by NVRTC");
            return Vec::new();
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cubins = Vec::new();
    for (kind, jobs) in [
        (Kind::Attention, settings.attention_jobs_on(processors)),
        (Kind::Helper, settings.jobs_on(processors)),
    ] {
        let of_kind: Vec<&Variant> = variants.iter().filter(|v| v.kind == kind).collect();
        cubins.extend(compile_all(places, settings, sources, &nvcc, &of_kind, jobs));
    }
    cubins
}

/// Compiles `variants`, `jobs` of them at a time. A failure ends the build with what the compiler said.
fn compile_all(
    places: &Places,
    settings: &KernelBuild,
    sources: &BTreeMap<String, String>,
    nvcc: &Nvcc,
    variants: &[&Variant],
    jobs: usize,
) -> Vec<(String, PathBuf)> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(variant) = variants.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = compile_one(places, settings, sources, nvcc, variant);
            done.lock().unwrap().push((variant.name.clone(), result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(variants.len()) {
            scope.spawn(work);
        }
    });
    let mut cubins = Vec::new();
    for (name, result) in done.into_inner().unwrap() {
        match result {
            Ok((path, said)) => {
                eprintln!("{said}");
                // The first line is the command.
                let from = usize::from(!settings.verbose);
                if settings.verbose || settings.debug {
                    said.lines()
                        .skip(from)
                        .for_each(|line| println!("cargo:warning={line}"));
                }
                cubins.push((name, path));
            }
            Err(said) => {
                said.lines().for_each(|line| println!("cargo:warning={line}"));
                panic!("nvcc failed on kernel variant {name}:\n{said}");
            }
        }
    }
    cubins.sort();
    cubins
}

/// Compiles one variant, or takes the cubin of an earlier build with the same source, flags and compiler.
fn compile_one(
    places: &Places,
    settings: &KernelBuild,
    sources: &BTreeMap<String, String>,
    nvcc: &Nvcc,
    variant: &Variant,
) -> Result<(PathBuf, String), String> {
    let read = |name: &str| sources.get(name).map(String::as_str);
    let text = source::flatten(&variant.source, &read)?;
    let flags = nvcc::flags(&variant.defines, settings.debug, settings.threads);
    let fields = [text.as_str(), &flags.join("\n"), &nvcc.version];
    let digest = fields
        .iter()
        .fold(Digest::default(), |digest, field| digest.field(field.as_bytes()));
    let name = format!("{}-{}", variant.name, digest.hex());
    let cubin = places.out.join(format!("{name}.cubin"));
    let kept = places
        .kept
        .as_ref()
        .map(|folder| folder.join(format!("{name}.cubin")));
    if let Some(kept) = kept.as_ref()
        && let Some(bytes) = fs::read(kept).ok().and_then(cubin_file::unpack)
        && fs::write(&cubin, bytes).is_ok()
    {
        return Ok((cubin, format!("{}: taken from {}", variant.name, kept.display())));
    }
    let source = places.out.join(format!("{name}.cu"));
    write(&source, text.as_bytes());
    let said = nvcc.compile(&source, &cubin, &flags)?;
    if let Some(kept) = kept {
        keep(&cubin, &kept);
    }
    Ok((cubin, said))
}

/// Puts a copy where other builds look for it, whole or not at all; one that was damaged since is known by its digest. A
/// folder that cannot be written costs only time.
fn keep(cubin: &Path, kept: &Path) {
    let part = kept.with_extension(format!("{}.part", std::process::id()));
    let folder = kept.parent().unwrap_or(Path::new("."));
    let written = fs::create_dir_all(folder)
        .and_then(|()| fs::read(cubin))
        .and_then(|bytes| fs::write(&part, cubin_file::pack(&bytes)))
        .and_then(|()| fs::rename(&part, kept));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
}

/// The table of cubins that the library is compiled with.
fn embed_cubins(places: &Places, cubins: &[(String, PathBuf)]) {
    let mut table = String::new();
    if !cubins.is_empty() {
        table += "/// The driver reads cubins as structures.\n#[repr(align(64))]\nstruct Aligned<const N: usize>([u8; N]);\n";
    }
    table += "/// Variant and cubin of everything compiled ahead of time.\npub static CUBINS: &[(&str, &[u8])] = &[\n";
    for (name, path) in cubins {
        table += &format!(
            "    ({name:?}, &Aligned(*include_bytes!({:?})).0),\n",
            path.display().to_string()
        );
    }
    table += "];\n";
    write(&places.out.join("kernel_cubins.rs"), table.as_bytes());
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
