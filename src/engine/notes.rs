//! What a step noted before it acted, handed from attempt to attempt.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

/// What a step noted, oldest first: attempt and note. It grows while the step runs: an attempt that failed leaves the
/// next one what it would leave another process.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<Vec<(u32, Value)>>>);

impl From<&Vec<(u32, Value)>> for Notes {
    fn from(journaled: &Vec<(u32, Value)>) -> Self {
        Self(Arc::new(Mutex::new(journaled.clone())))
    }
}

impl Notes {
    /// Those that an attempt begins with.
    pub(super) fn now(&self) -> Vec<(u32, Value)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One more, once it is on disk.
    pub(super) fn add(&self, attempt: u32, note: Value) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((attempt, note));
    }
}
