//! Compiled variants on devices, each loaded once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::compile::{self, Arch};
use super::variant::Variant;
use crate::device::cuda::{Function, Gpu, Module};
use crate::types::{Error, KernelBuild, Result};

/// A variant that was loaded on a device.
#[derive(Debug)]
pub struct Kernels {
    functions: BTreeMap<String, Function>,
    /// What `read_ints` has read, by name.
    ints: Mutex<BTreeMap<String, Vec<i32>>>,
    /// Keeps the functions valid.
    module: Module,
}

impl Kernels {
    /// The kernel called `entry`.
    pub fn function(&self, entry: &str) -> Result<Function> {
        let found = self.functions.get(entry).copied();
        found.ok_or_else(|| Error::internal(format!("no kernel {entry} among {:?}", self.functions.keys())))
    }

    /// The integers of a `__device__ int` array of the kernels, with which they were compiled. Waits for the copy the first
    /// time alone: a copy would wait for other work, and spoil the capture of a stream.
    pub fn read_ints<const N: usize>(&self, name: &str) -> Result<[i32; N]> {
        let mut known = self.ints.lock();
        if let Some(ints) = known.get(name) {
            let count = |_| Error::internal(format!("{name} has {} integers, not {N}", ints.len()));
            return ints.as_slice().try_into().map_err(count);
        }
        let ints = self.module.read_ints::<N>(name)?;
        known.insert(name.to_owned(), ints.to_vec());
        Ok(ints)
    }

    /// Address and bytes of a variable of the kernels.
    pub fn global(&self, name: &str) -> Result<(u64, usize)> {
        self.module.global(name)
    }
}

/// One variant on one device: empty until somebody has loaded it.
type Slot = Arc<Mutex<Option<Arc<Kernels>>>>;

/// The place of the variant on the device.
fn slot(gpu: &Gpu, variant: &Variant) -> Slot {
    static LOADED: Mutex<Option<HashMap<(i32, Variant), Slot>>> = Mutex::new(None);
    let mut loaded = LOADED.lock();
    let slots = loaded.get_or_insert_with(HashMap::new);
    slots.entry((gpu.ordinal(), variant.clone())).or_default().clone()
}

/// The variant on the device, if it was loaded already. Waits for somebody who is loading it.
pub fn loaded(gpu: &Gpu, variant: &Variant) -> Option<Arc<Kernels>> {
    slot(gpu, variant).lock().clone()
}

/// The variant on the device, loaded at the first call: that may compile, which takes seconds, and allocates. Later calls
/// only look it up. Errors as `compile::cubin`; after an error the next call tries again.
pub fn load(gpu: &Arc<Gpu>, variant: &Variant) -> Result<Arc<Kernels>> {
    // Only those who want the same variant wait.
    let slot = slot(gpu, variant);
    let mut slot = slot.lock();
    if let Some(kernels) = slot.as_ref() {
        return Ok(kernels.clone());
    }
    let kernels = Arc::new(fresh(gpu, variant)?);
    *slot = Some(kernels.clone());
    Ok(kernels)
}

fn fresh(gpu: &Arc<Gpu>, variant: &Variant) -> Result<Kernels> {
    let properties = gpu.properties();
    let arch = Arch {
        major: properties.major,
        minor: properties.minor,
    };
    let cubin = compile::cubin(variant, arch, &KernelBuild::from_env()?)?;
    let module = Module::load(gpu, &cubin)?;
    let functions = variant
        .entries
        .iter()
        .map(|entry| Ok((entry.clone(), module.function(entry)?)))
        .collect::<Result<_>>()?;
    Ok(Kernels {
        functions,
        ints: Mutex::default(),
        module,
    })
}
