//! Where NVRTC may lie on a user's machine.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, c_void};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The library's file names, newest first.
pub const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Folders of PyPI wheels inside site-packages.
const WHEELS: [&str; 3] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu12/lib"];

/// A place to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name that the dynamic loader resolves.
    Name(&'static str),
    /// Any of the names in a folder.
    Folder(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Name(name) => f.write_str(name),
            Place::Folder(folder) => write!(f, "{}", folder.display()),
        }
    }
}

impl Place {
    /// Loads the library and gives its handle.
    pub fn open(&self) -> Option<*mut c_void> {
        match self {
            Place::Name(name) => open(Path::new(name)),
            Place::Folder(folder) => NAMES
                .iter()
                .map(|name| folder.join(name))
                .filter(|path| path.exists())
                .find_map(|path| open(&path)),
        }
    }
}

fn open(path: &Path) -> Option<*mut c_void> {
    let text = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: loading NVRTC runs its initialisers, which touch nothing of ours.
    let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    (!handle.is_null()).then_some(handle)
}

/// Loads the compiler's second library from the folder of the first, the one that holds the code at `inside`: the compiler
/// asks the loader for it by its name alone, and the loader does not know that folder. Where it is not there the loader
/// may know better.
pub(super) fn load_builtins(inside: *const c_void, (major, minor): (i32, i32)) {
    // SAFETY: all zero bytes are a value of this struct of pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: only looks the address up; the struct is good for what is written.
    if unsafe { libc::dladdr(inside, &mut info) } == 0 || info.dli_fname.is_null() {
        return;
    }
    // SAFETY: the loader's own string, good while the library is loaded.
    let file = unsafe { CStr::from_ptr(info.dli_fname) };
    let folder = Path::new(OsStr::from_bytes(file.to_bytes())).parent();
    let name = format!("libnvrtc-builtins.so.{major}.{minor}");
    if let Some(path) = folder.map(|f| f.join(name)).filter(|p| p.exists()) {
        open(&path);
    }
}

/// Every place, in the order of trying: what the loader finds (and has loaded already, for a framework), the toolkit
/// that CUDA_HOME names, this library's own folder, wheels in the Python environments that the process shows signs of,
/// the usual place of a toolkit.
pub fn places() -> Vec<Place> {
    let mut folders = Vec::new();
    for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable) {
        folders.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|lib| home.join(lib)));
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    folders.extend(own_folder(&maps));
    for packages in site_packages(&maps) {
        folders.extend(WHEELS.map(|wheel| packages.join(wheel)));
    }
    folders.push("/usr/local/cuda/lib64".into());
    let mut seen = BTreeSet::new();
    let mut places: Vec<Place> = NAMES.map(Place::Name).into();
    places.extend(
        folders
            .into_iter()
            .filter(|f| seen.insert(f.clone()))
            .map(Place::Folder),
    );
    places
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

/// Paths of the files that are mapped into the process, from the text of /proc/self/maps.
fn mapped(maps: &str) -> impl Iterator<Item = &Path> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
}

/// The folder that this library was loaded from.
fn own_folder(maps: &str) -> Option<PathBuf> {
    let ours = |path: &&Path| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with("libmagi_attn")
    };
    mapped(maps).find(ours)?.parent().map(Path::to_owned)
}

/// Folders of Python packages: those that mapped libraries lie in, then those of environments that variables name, and
/// of the `python3` on PATH.
fn site_packages(maps: &str) -> Vec<PathBuf> {
    let is_packages = |p: &&Path| {
        p.file_name()
            .is_some_and(|n| n == "site-packages" || n == "dist-packages")
    };
    let mut found: Vec<PathBuf> = mapped(maps)
        .filter_map(|path| path.ancestors().find(is_packages))
        .map(Path::to_owned)
        .collect();
    found.dedup();
    found.extend(
        std::env::var_os("PYTHONPATH")
            .iter()
            .flat_map(std::env::split_paths)
            .filter(|p| !p.as_os_str().is_empty()),
    );
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(variable)
        .collect();
    prefixes.extend(variable("HOME").map(|home| home.join(".local")));
    for folder in std::env::var_os("PATH").iter().flat_map(std::env::split_paths) {
        // A virtual environment's python3 is a link out of it: the folder that names it is what counts.
        if folder.join("python3").exists() {
            prefixes.extend(folder.parent().map(Path::to_owned));
            if let Ok(real) = fs::canonicalize(folder.join("python3")) {
                prefixes.extend(real.ancestors().nth(2).map(Path::to_owned));
            }
        }
    }
    for prefix in prefixes {
        for item in fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten() {
            if item.file_name().to_string_lossy().starts_with("python3") {
                found.extend(["site-packages", "dist-packages"].map(|name| item.path().join(name)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f00-7f01 r-xp 00000000 08:01 1  /opt/env/lib/python3.12/site-packages/torch/lib/libtorch.so
7f02-7f03 r-xp 00000000 08:01 1  /opt/env/lib/python3.12/site-packages/torch/lib/libc10.so
7f04-7f05 rw-p 00000000 00:00 0
7f06-7f07 r-xp 00000000 08:01 2  /srv/app/lib/libmagi_attn.so.0.1.0
";

    #[test]
    fn frameworks_and_the_own_folder_show_where_to_look() {
        let packages = site_packages(MAPS);
        assert_eq!(packages[0], Path::new("/opt/env/lib/python3.12/site-packages"));
        assert_eq!(own_folder(MAPS).unwrap(), Path::new("/srv/app/lib"));
        assert_eq!(own_folder("7f00-7f01 r-xp 0 0 1 /lib/libc.so.6\n"), None);
    }

    #[test]
    fn what_the_loader_finds_comes_first_and_nothing_twice() {
        let places = places();
        assert_eq!(places[..3], NAMES.map(Place::Name));
        assert_eq!(
            places.last(),
            Some(&Place::Folder("/usr/local/cuda/lib64".into()))
        );
        for (i, place) in places.iter().enumerate() {
            assert!(!places[..i].contains(place), "{place}");
        }
    }
}
