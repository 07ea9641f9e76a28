//! Plans of a communicator, so that equal requests plan once.

use std::sync::Arc;

use super::key::KeyData;
use super::request::Request;

/// Most recently used last. Linear search: a communicator holds at most some hundred, and comparing hashes is cheap
/// beside planning.
pub(super) struct Cache {
    plans: Vec<(u64, Arc<KeyData>)>,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Cache {
        Cache { plans: Vec::new() }
    }

    /// What was made for an equal request. It becomes the most recently used.
    pub fn find(&mut self, hash: u64, request: &Request) -> Option<Arc<KeyData>> {
        let i = self
            .plans
            .iter()
            .position(|(h, d)| *h == hash && d.request == *request)?;
        let found = self.plans.remove(i);
        let data = Arc::clone(&found.1);
        self.plans.push(found);
        Some(data)
    }

    /// Keeps `data` as the most recently used of at most `limit`; what falls out lives on in its handles.
    pub fn insert(&mut self, hash: u64, data: Arc<KeyData>, limit: usize) {
        self.plans.push((hash, data));
        let excess = self.plans.len().saturating_sub(limit);
        self.plans.drain(..excess);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.plans.clear();
    }
}
