//! Environments: targets, vars, defaults of inputs, and secrets by reference.
//!
//! Read from `environments/<name>.yaml` beside the plan. Knows nothing of the engine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::secret::Redactor;
use crate::service::Target;

/// An environment, its templates (`env.NAME`, `(file "path")`) rendered.
#[derive(Debug, Default)]
pub struct Environment {
    /// `environment:`; none without `--env`.
    pub name: Option<String>,
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// SHA-256 of its text and the names it took from outside, in hex.
    pub digest: Option<String>,
    /// Destructive plans need its name typed, or `--confirm`.
    pub protected: bool,
    /// `vars:`; they win over the plan's.
    pub vars: BTreeMap<String, Value>,
    /// `inputs:`: defaults that win over the plan's.
    pub inputs: BTreeMap<String, Value>,
    /// `targets:`, with the plan's defaults filled in.
    pub targets: BTreeMap<String, Target>,
    /// `state:` as written; `.lifeboat` by default. A folder is relative to the current directory.
    pub state: Option<String>,
    /// Knows every secret of this environment and of the run's inputs.
    pub redactor: Redactor,
}
