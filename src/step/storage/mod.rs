//! Step types on storages: finding, verifying, copying and pruning backups.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Findings;
use super::effect::Resource;
use super::world::{Fact, World};
use crate::failure::Failure;
use crate::ids::StepId;
use crate::service::storage::{Storage, check_path};

mod backups;
pub mod copy;
pub mod find;
pub(super) mod object_manifest;
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

/// The step before that brings an object into being, or changes one, within `resource`. An
/// object that was merely found, and is there, is as it will be.
pub(super) async fn changed_by(world: &World, storage: &Storage, resource: &Resource) -> Option<StepId> {
    for (touched, foretold) in world.iter().filter(|(touched, _)| touched.overlaps(resource)) {
        let path = touched.as_str().strip_prefix(Resource::object(storage.target(), "").as_str());
        let there = match (&foretold.fact, path) {
            (Fact::Present { .. }, Some(path)) => storage.stat(path).await.is_ok_and(|object| object.is_some()),
            _ => false,
        };
        if !there {
            return Some(foretold.because.clone());
        }
    }
    None
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
