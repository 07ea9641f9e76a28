//! What build.rs put into the library: the list of variants, kernel sources, and cubins where nvcc was there.

use std::sync::OnceLock;

use super::source;
use super::variant::{self, Variant};
use crate::types::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));
include!(concat!(env!("OUT_DIR"), "/kernel_cubins.rs"));

/// Every variant of kernels/variants.txt.
pub fn variants() -> Result<&'static [Variant]> {
    static LIST: OnceLock<std::result::Result<Vec<Variant>, String>> = OnceLock::new();
    let list = LIST.get_or_init(|| variant::parse(include_str!("../../../kernels/variants.txt")));
    match list {
        Ok(list) => Ok(list),
        Err(why) => Err(Error::internal(format!("kernels/variants.txt, {why}"))),
    }
}

/// The variant called `name` in the list.
pub fn listed(name: &str) -> Result<&'static Variant> {
    let found = variants()?.iter().find(|v| v.name == name);
    found.ok_or_else(|| Error::internal(format!("no kernel variant is called {name}")))
}

/// The cubin of a variant that was compiled with the library, for compute capability 9.0. A variant that only borrows
/// the name of a listed one has none.
pub fn cubin(variant: &Variant) -> Option<&'static [u8]> {
    let listed = variants().ok()?.contains(variant);
    CUBINS
        .iter()
        .find(|(name, _)| listed && *name == variant.name)
        .map(|(_, bytes)| *bytes)
}

/// The text of a variant's source with its headers.
pub fn text(variant: &Variant) -> Result<String> {
    let read = |name: &str| SOURCES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
    source::flatten(&variant.source, &read).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_source_is_compiled_by_a_variant_and_every_variant_has_its_source() {
        let sources: BTreeSet<&str> = SOURCES
            .iter()
            .map(|(name, _)| *name)
            .filter(|n| n.ends_with(".cu"))
            .collect();
        let used: BTreeSet<&str> = variants().unwrap().iter().map(|v| v.source.as_str()).collect();
        assert_eq!(sources, used);
        let entries: Vec<&String> = variants().unwrap().iter().flat_map(|v| &v.entries).collect();
        let distinct: BTreeSet<&&String> = entries.iter().collect();
        assert!(distinct.len() >= 70 || CUBINS.is_empty(), "{distinct:?}");
    }

    #[test]
    fn sources_include_no_header_of_others() {
        for v in variants().unwrap() {
            let text = text(v).unwrap();
            assert!(!text.contains("#include"), "{}: an include is left", v.name);
            assert!(text.contains("__global__"), "{}", v.name);
        }
    }

    #[test]
    fn cubins_hold_the_kernels_of_their_variants() {
        if CUBINS.is_empty() {
            println!("skipped: the library was built without nvcc");
        }
        for (name, bytes) in CUBINS {
            assert!(bytes.starts_with(b"\x7fELF") && bytes.as_ptr().align_offset(64) == 0);
            for entry in &listed(name).unwrap().entries {
                let section = format!(".text.{entry}\0");
                assert!(
                    bytes.windows(section.len()).any(|w| w == section.as_bytes()),
                    "{name} lacks {entry}"
                );
            }
            assert_eq!(cubin(listed(name).unwrap()), Some(*bytes));
            let mut other = listed(name).unwrap().clone();
            other.defines.push("OTHER=1".to_owned());
            assert_eq!(cubin(&other), None, "other macros are another kernel");
        }
    }
}
