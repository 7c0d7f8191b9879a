//! Folders on this machine as plans name them: by path, or in a storage that is a folder.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::failure::Failure;
use crate::service::Services;
use crate::step::Findings;
use crate::step::effect::Resource;
use crate::step::storage::{Place, check_object_path};

/// A folder: `{storage, path}` in a storage that keeps files on this machine, or its path.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Folder {
    /// In a storage of scheme `fs`.
    Stored(Place),
    /// A path.
    Path(String),
}

impl Folder {
    /// As effects name it.
    pub(super) fn resource(&self) -> Resource {
        match self {
            Self::Stored(place) => Resource::object(&place.storage, &place.path),
            Self::Path(path) => Resource::other("folder", path),
        }
    }

    /// As people read it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Stored(place) => format!("{} in {}", place.path, place.storage),
            Self::Path(path) => path.clone(),
        }
    }

    /// As the plan's next steps name it.
    pub(super) fn path(&self) -> &str {
        match self {
            Self::Stored(place) => &place.path,
            Self::Path(path) => path,
        }
    }

    pub(super) fn check(&self, found: &mut Findings, pointer: &str) {
        match self {
            Self::Stored(place) => check_object_path(found, &format!("{pointer}/path"), &place.path),
            Self::Path(path) if path.trim_end_matches('/').is_empty() => {
                found.add(pointer, "it names no folder", None);
            }
            Self::Path(_) => {}
        }
    }

    /// Where it is, without links on the way there where it exists.
    pub(super) fn locate(&self, services: &Services) -> Result<PathBuf, Failure> {
        match self {
            Self::Stored(place) => services.storage(&place.storage)?.local_path(&place.path)?.ok_or_else(|| {
                Failure::permanent(format!("the storage {} is not on this machine's disk", place.storage))
                    .help("base backups and archived WAL must lie in a folder: use a storage of scheme `fs`")
            }),
            Self::Path(path) => absolute(path),
        }
    }
}

/// An absolute path.
pub(super) fn absolute(path: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::permanent(format!("the folder `{path}`: {error}")))
}
