//! Inputs worth mutating: the seeds of the project, and what earlier runs on this machine kept.

use crate::mutate::Random;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// The inputs of one target. Never empty: the empty input is always there.
pub struct Corpus {
    inputs: Vec<Vec<u8>>,
    folder: PathBuf,
}

/// A folder of the fuzz crate, for `target`.
pub fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target)
}

/// Contents of the files in `folder`, in the order of their names; none if there is no such folder.
fn files(folder: &Path) -> Result<Vec<Vec<u8>>, String> {
    let Ok(items) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut paths: Vec<PathBuf> = items.filter_map(|item| Some(item.ok()?.path())).collect();
    paths.sort();
    paths
        .iter()
        .map(|p| fs::read(p).map_err(|e| format!("{}: {e}", p.display())))
        .collect()
}

impl Corpus {
    /// Reads fuzz/seeds and fuzz/corpus.
    pub fn load(target: &str) -> Result<Corpus, String> {
        let mut inputs = vec![Vec::new()];
        inputs.extend(files(&folder("seeds", target))?);
        let folder = folder("corpus", target);
        inputs.extend(files(&folder)?);
        Ok(Corpus { inputs, folder })
    }

    /// All of them.
    pub fn inputs(&self) -> &[Vec<u8>] {
        &self.inputs
    }

    /// One of them.
    pub fn pick(&self, random: &mut Random) -> &[u8] {
        &self.inputs[random.below(self.inputs.len())]
    }

    /// Adds an input, here and on disk.
    pub fn keep(&mut self, input: Vec<u8>) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        input.hash(&mut hasher);
        let path = self.folder.join(format!("{:016x}", hasher.finish()));
        fs::create_dir_all(&self.folder)
            .and_then(|()| fs::write(&path, &input))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        self.inputs.push(input);
        Ok(())
    }
}
