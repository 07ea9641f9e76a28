//! Fallible allocation.

use crate::types::{Error, Result, Status};

/// `len` copies of `value`.
pub(super) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut v = with_room(len)?;
    v.resize(len, value);
    Ok(v)
}

/// An empty vector with room for `len` elements.
pub(super) fn with_room<T>(len: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(len).map_err(|_| {
        let bytes = len.saturating_mul(size_of::<T>());
        Error::new(
            Status::OutOfMemory,
            format!("no memory for {bytes} bytes of scratch"),
        )
    })?;
    Ok(v)
}

/// One state for every thread. Fewer when memory is short, but at least one.
pub(super) fn states<S>(threads: usize, make: impl Fn() -> Result<S>) -> Result<Vec<S>> {
    let mut all = with_room(threads)?;
    all.push(make()?);
    while all.len() < threads {
        match make() {
            Ok(state) => all.push(state),
            Err(_) => break,
        }
    }
    Ok(all)
}
