//! Finds nvcc and runs it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A compiler that answered.
#[derive(Clone, Debug)]
pub struct Nvcc {
    pub program: PathBuf,
    /// What `nvcc --version` prints: part of what a cubin is known by.
    pub version: String,
}

/// Where nvcc may lie, in the order of trying: NVCC, CUDA_HOME and CUDA_PATH, PATH, the project's own tools, folders
/// that PyPI wheels install to, and the usual place of a toolkit.
fn candidates(root: &Path) -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let mut found: Vec<PathBuf> = variable("NVCC").map(PathBuf::from).into_iter().collect();
    for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable) {
        found.push(Path::new(&home).join("bin/nvcc"));
    }
    if let Some(path) = variable("PATH") {
        found.extend(std::env::split_paths(&path).map(|folder| folder.join("nvcc")));
    }
    found.push(root.join(".tools/cuda/nvidia/cu13/bin/nvcc"));
    for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        let libraries = std::fs::read_dir(Path::new(&prefix).join("lib"));
        for folder in libraries.into_iter().flatten().flatten() {
            let wheels = folder.path().join("site-packages/nvidia");
            found.push(wheels.join("cu13/bin/nvcc"));
            found.push(wheels.join("cuda_nvcc/bin/nvcc"));
        }
    }
    found.push(PathBuf::from("/usr/local/cuda/bin/nvcc"));
    found
}

/// The first nvcc that runs; `Err` says what was tried.
pub fn find(root: &Path) -> Result<Nvcc, String> {
    let tried = candidates(root);
    for program in tried.iter().filter(|p| p.is_file()) {
        if let Ok(output) = Command::new(program).arg("--version").output()
            && output.status.success()
        {
            return Ok(Nvcc {
                program: program.clone(),
                version: String::from_utf8_lossy(&output.stdout).into_owned(),
            });
        }
    }
    Err(format!(
        "no nvcc that runs among NVCC, CUDA_HOME, CUDA_PATH, PATH, .tools and wheel folders ({} places)",
        tried.len()
    ))
}

/// Flags of every compilation: also a part of what a cubin is known by.
pub fn flags(defines: &[String], debug: bool, threads: usize) -> Vec<String> {
    let mut flags: Vec<String> = [
        "-cubin",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-O3",
        "-std=c++17",
        "-Xptxas",
        "-v",
    ]
    .map(str::to_owned)
    .into();
    flags.push(format!("--split-compile={threads}"));
    if debug {
        flags.extend(["-lineinfo".to_owned(), "-DRACECHECK=1".to_owned()]);
    }
    flags.extend(defines.iter().map(|d| format!("-D{d}")));
    flags
}

impl Nvcc {
    /// Whether it compiles anything at all for this device with the usual flags; else what it said. It may be too old, or lack
    /// the host's C++ compiler, which it needs for preprocessing.
    pub fn probe(&self, folder: &Path, flags: &[String]) -> Result<(), String> {
        let source = folder.join("probe.cu");
        std::fs::write(&source, "extern \"C\" __global__ void probe() {}\n").map_err(|e| e.to_string())?;
        self.compile(&source, &folder.join("probe.cubin"), flags)
            .map(|_| ())
    }

    /// Compiles `source` to `cubin`; gives the command line and what the compiler said, in either case.
    pub fn compile(&self, source: &Path, cubin: &Path, flags: &[String]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(flags).arg(source).arg("-o").arg(cubin);
        let line = format!("{command:?}");
        let output = command.output().map_err(|e| format!("{line}: {e}"))?;
        let said = format!(
            "{line}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if output.status.success() {
            Ok(said)
        } else {
            Err(said)
        }
    }
}
