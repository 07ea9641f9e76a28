//! Where a library of CUDA's may lie on a user's machine.

use std::collections::BTreeSet;
use std::ffi::{CString, c_void};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is looked for.
#[derive(Debug)]
pub struct Wanted {
    /// File names, best first.
    pub names: &'static [&'static str],
    /// Folders of PyPI wheels inside site-packages.
    pub wheels: &'static [&'static str],
    /// The folder where an installation usually puts it.
    pub usual: &'static str,
}

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
    /// Loads the library that has one of `names` and gives its handle.
    pub fn open(&self, names: &[&str]) -> Option<*mut c_void> {
        match self {
            Place::Name(name) => open(Path::new(name)),
            Place::Folder(folder) => names
                .iter()
                .map(|name| folder.join(name))
                .filter(|path| path.exists())
                .find_map(|path| open(&path)),
        }
    }
}

/// Loads the library at `path`, or of that name, to the end of the process.
pub fn open(path: &Path) -> Option<*mut c_void> {
    let text = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: loading a library of CUDA's runs its initialisers, which touch nothing of ours.
    let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    (!handle.is_null()).then_some(handle)
}

/// Every place, in the order of trying: what the loader finds (and has loaded already, for a framework), the toolkit
/// that CUDA_HOME names, this library's own folder, wheels in the Python environments that the process shows signs of,
/// the usual place of a toolkit.
pub fn places(wanted: &Wanted) -> Vec<Place> {
    let mut folders = Vec::new();
    for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable) {
        folders.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|lib| home.join(lib)));
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    folders.extend(own_folder(&maps));
    for packages in site_packages(&maps) {
        folders.extend(wanted.wheels.iter().map(|wheel| packages.join(wheel)));
    }
    folders.push(wanted.usual.into());
    let mut seen = BTreeSet::new();
    let mut places: Vec<Place> = wanted.names.iter().copied().map(Place::Name).collect();
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
        let wanted = Wanted {
            names: &["libx.so.2", "libx.so"],
            wheels: &["nvidia/x/lib"],
            usual: "/usr/local/cuda/lib64",
        };
        let places = places(&wanted);
        assert_eq!(places[..2], [Place::Name("libx.so.2"), Place::Name("libx.so")]);
        assert_eq!(
            places.last(),
            Some(&Place::Folder("/usr/local/cuda/lib64".into()))
        );
        for (i, place) in places.iter().enumerate() {
            assert!(!places[..i].contains(place), "{place}");
        }
    }
}
