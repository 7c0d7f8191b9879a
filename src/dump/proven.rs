//! What this process has proven already: a dry-run, a step that verifies and a restore need not each read a dump to
//! its end.
//!
//! A proof counts as long as the storage shows the same object: its size, and when it was written. Whoever uses one
//! reads the object once more, and fails if its SHA-256 is another one ([`Proof::unchanged`]).

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::manifest::{Format, Manifest};
use super::proof::Proof;
use crate::failure::Failure;
use crate::service::storage::Storage;

/// How many are kept: one holds what a dump says of each of its tables.
const KEPT: usize = 4;

static PROVEN: Mutex<VecDeque<(String, Proof)>> = Mutex::new(VecDeque::new());

/// Keeps a proof of a plain dump.
pub(super) fn keep(storage: &Storage, proof: &Proof) {
    // What an archive was found to hold depends on what was asked for.
    if proof.format != Format::Plain || proof.object.modified.is_none() {
        return;
    }
    let mut proven = PROVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let place = storage.place();
    proven.retain(|(of, other)| *of != place || other.object.path != proof.object.path);
    proven.truncate(KEPT - 1);
    proven.push_front((place, proof.clone()));
}

/// The proof of the dump at `path`, if it still counts; with the manifest that is there now.
///
/// # Errors
/// When the storage can't be asked, or the manifest doesn't fit.
pub async fn proven(storage: &Storage, path: &str) -> Result<Option<Proof>, Failure> {
    let Some(object) = storage.stat(path).await? else { return Ok(None) };
    let place = storage.place();
    let known = {
        let proven = PROVEN.lock().unwrap_or_else(PoisonError::into_inner);
        proven.iter().find(|(of, proof)| *of == place && proof.object == object).map(|(_, proof)| proof.clone())
    };
    let Some(known) = known else { return Ok(None) };
    let proof = Proof { manifest: Manifest::load(storage, path).await?, ..known };
    proof.fits_manifest()?;
    Ok(Some(proof))
}
