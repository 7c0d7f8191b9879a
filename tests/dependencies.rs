//! Keeps `docs/dependencies.md` and the manifest in step: each direct dependency has its reason.

use std::{collections::BTreeSet, process::Command};

#[test]
fn every_direct_dependency_has_its_reason() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let declared: BTreeSet<&str> = metadata["packages"][0]["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dependency| dependency["name"].as_str().unwrap())
        .collect();

    let page = include_str!("../docs/dependencies.md");
    let explained: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(name, _)| name)
        .collect();

    assert_eq!(declared, explained, "left: Cargo.toml, right: docs/dependencies.md");
}
