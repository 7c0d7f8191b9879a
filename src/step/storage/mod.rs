//! Step types on storages: finding, verifying, copying and pruning backups.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Findings;
use crate::failure::Failure;
use crate::service::storage::{Storage, check_path};

mod backups;
pub mod copy;
pub mod find;
pub mod prune;
pub mod verify;

/// An object in a storage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The storage.
    #[schemars(extend("x-target" = "storage"))]
    pub storage: String,
    /// The object's path below the storage's root.
    pub path: String,
}

/// When the dump at `path`, which has no manifest, was taken: by the time in its name, else
/// by when it was written.
///
/// # Errors
/// When the storage can't be asked.
pub(super) async fn taken_at(storage: &Storage, path: &str) -> Result<Option<jiff::Timestamp>, Failure> {
    let modified = storage.object(path).await?.modified;
    Ok(backups::named_time(path, modified).map(|(from, _)| from).or(modified))
}

/// Adds what is wrong with a path, unless it is known only in the run.
pub(super) fn check_object_path(found: &mut Findings, pointer: &str, path: &str) {
    if let Err(Failure { message, help, .. }) = check_path(path) {
        found.add(pointer, message, help);
    }
}
