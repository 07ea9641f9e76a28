//! The cache of compiled kernels: damaged files, writers at the same time, folders that cannot be written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use magi_attn::backend::cuda::cache::Cache;
use magi_attn::types::{Error, Status};

const NAME: &str = "kernel-0123";

/// An empty folder for one test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("kernel_cache")
        .join(name);
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn quiet(line: &str) {
    panic!("a complaint: {line}");
}

fn cubin() -> Vec<u8> {
    (0..5000u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

#[test]
fn what_was_written_is_read_and_made_once() {
    let cache = Cache::open(&folder("plain")).unwrap();
    assert_eq!(cache.get(NAME), None);
    assert_eq!(cache.get_or_make(NAME, || Ok(cubin()), quiet).unwrap(), cubin());
    let again = cache.get_or_make(NAME, || panic!("made a second time"), quiet);
    assert_eq!(again.unwrap(), cubin());
    assert_eq!(cache.get("kernel-0124"), None);
}

#[test]
fn damaged_files_count_as_absent_and_are_replaced() {
    let folder = folder("damaged");
    let cache = Cache::open(&folder).unwrap();
    cache.put(NAME, &cubin()).unwrap();
    let path = folder.join(format!("{NAME}.cubin"));
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len(), cubin().len() + 32);
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let longer = [whole.clone(), vec![0]].concat();
    let mut damaged = vec![Vec::new(), whole[..20].to_vec(), whole[..32].to_vec(), longer];
    damaged.push(whole[..whole.len() - 1].to_vec());
    damaged.push(cubin());
    damaged.extend([0, 8, 15, 16, 31, 32, 9000, whole.len() - 1].map(flipped));
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.get(NAME), None, "{} bytes", bytes.len());
        assert_eq!(cache.get_or_make(NAME, || Ok(cubin()), quiet).unwrap(), cubin());
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_failed_compilation_leaves_nothing_behind() {
    let folder = folder("failed");
    let cache = Cache::open(&folder).unwrap();
    let fail = || Err(Error::new(Status::CompileFailed, "no"));
    let error = cache.get_or_make(NAME, fail, quiet).unwrap_err();
    assert_eq!(error.status, Status::CompileFailed);
    let left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|f| f.file_name())
        .collect();
    assert_eq!(left, [format!("{NAME}.lock").as_str()]);
    assert_eq!(cache.get_or_make(NAME, || Ok(cubin()), quiet).unwrap(), cubin());
}

#[test]
fn of_threads_that_ask_at_once_one_compiles() {
    let cache = Cache::open(&folder("threads")).unwrap();
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let make = || {
                    made.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                    Ok(cubin())
                };
                assert_eq!(cache.get_or_make(NAME, make, quiet).unwrap(), cubin());
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
}

/// Set for the processes that `of_processes_that_ask_at_once_one_compiles` starts: the folder.
const CHILD: &str = "KERNEL_CACHE_CHILD";

#[test]
fn of_processes_that_ask_at_once_one_compiles() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let cache = Cache::open(Path::new(&folder)).unwrap();
        let make = || {
            // A file of its own says who made the kernel.
            fs::write(
                Path::new(&folder).join(format!("made-{}", std::process::id())),
                "",
            )
            .unwrap();
            std::thread::sleep(Duration::from_millis(200));
            Ok(cubin())
        };
        assert_eq!(cache.get_or_make(NAME, make, quiet).unwrap(), cubin());
        return;
    }
    let folder = folder("processes");
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "of_processes_that_ask_at_once_one_compiles"])
            .env(CHILD, &folder)
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..4).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let files = fs::read_dir(&folder).unwrap().flatten();
    let names: Vec<String> = files
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(
        names.iter().filter(|n| n.starts_with("made-")).count(),
        1,
        "{names:?}"
    );
    assert!(!names.iter().any(|n| n.ends_with(".part")), "{names:?}");
}

#[test]
fn what_cannot_be_written_is_no_cache_or_a_complaint() {
    let folder = folder("unwritable");
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    // A file where a folder should be: refused for everybody, root too.
    fs::write(&folder, "").unwrap();
    assert!(Cache::open(&folder).is_err());
    fs::remove_file(&folder).unwrap();
    let cache = Cache::open(&folder).unwrap();
    fs::remove_dir(&folder).unwrap();
    let complaints = AtomicUsize::new(0);
    let complain = |line: &str| {
        assert!(line.contains("unwritable"), "{line}");
        complaints.fetch_add(1, Ordering::Relaxed);
    };
    assert_eq!(
        cache.get_or_make(NAME, || Ok(cubin()), complain).unwrap(),
        cubin()
    );
    assert_eq!(
        complaints.into_inner(),
        2,
        "neither the lock nor the file could be made"
    );
}
