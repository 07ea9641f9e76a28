//! Compiled kernels on disk.
//!
//! A file `<variant>-<digest>.cubin` is what `cubin_file` makes of the cubin. It appears by rename, so a reader finds it whole
//! or not at all; a damaged one counts as absent and is replaced. A file
//! `<variant>-<digest>.lock` is locked by the process that compiles, so that others wait for it and then read.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::cubin_file::{pack, unpack};
use crate::types::Result;

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in `folder`, which is made. Fails where it cannot be written.
    pub fn open(folder: &Path) -> io::Result<Cache> {
        fs::create_dir_all(folder)?;
        // Directories may exist and yet refuse files.
        let probe = folder.join(unique("probe"));
        File::create(&probe)?;
        fs::remove_file(&probe)?;
        Ok(Cache {
            folder: folder.to_owned(),
        })
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }

    /// The cubin called `name`, if it is there and undamaged.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        unpack(fs::read(self.path(name, "cubin")).ok()?)
    }

    /// Writes the cubin called `name`.
    pub fn put(&self, name: &str, cubin: &[u8]) -> io::Result<()> {
        let part = self.folder.join(unique(name));
        let written = fs::write(&part, pack(cubin));
        let result = written.and_then(|()| fs::rename(&part, self.path(name, "cubin")));
        if result.is_err() {
            let _ = fs::remove_file(&part);
        }
        result
    }

    /// The cubin called `name`, made by `make` where it is not there. Of several processes or threads that ask at once
    /// one makes it. `complain` hears what went wrong with the disk, which is no error: the cubin is returned.
    pub fn get_or_make(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<u8>>,
        complain: impl Fn(&str),
    ) -> Result<Vec<u8>> {
        if let Some(cubin) = self.get(name) {
            return Ok(cubin);
        }
        let lock = Lock::take(&self.path(name, "lock"));
        if let Err(e) = &lock {
            complain(&format!(
                "kernel cache {}: no lock ({e}); several processes may compile {name}",
                self.folder.display()
            ));
        }
        // Somebody else may have made it meanwhile.
        if let Some(cubin) = self.get(name) {
            return Ok(cubin);
        }
        let cubin = make()?;
        if let Err(e) = self.put(name, &cubin) {
            complain(&format!(
                "kernel cache {}: {name} was not kept ({e})",
                self.folder.display()
            ));
        }
        Ok(cubin)
    }
}

/// A name that no other process or thread uses.
fn unique(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".{name}.{}.{count}.part", std::process::id())
}

/// A lock between processes, and between threads of one; the system opens it when its holder ends.
struct Lock {
    file: File,
}

impl Lock {
    /// Waits for the lock.
    fn take(path: &Path) -> io::Result<Lock> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        loop {
            // SAFETY: the descriptor is open.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
                return Ok(Lock { file });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open; closing it would do the same.
        let _ = unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
    }
}
