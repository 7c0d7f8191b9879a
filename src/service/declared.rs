//! Settings of the targets that plans may declare already, though no step type reaches them yet.
//!
//! They are part of the plan language, version 1: an environment that names them loads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A host that is reached by SSH.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshSettings {
    /// As `host` or `host:22`.
    pub host: String,
    /// The user to log in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The private key's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// The file of known hosts; an unknown host is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<String>,
}
