//! What a run keeps is for its owner alone, whatever the shell's umask is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assert_cmd::cargo::cargo_bin;

use crate::bench::{Bench, PLAN};

fn modes(at: &Path, found: &mut Vec<(String, u32)>) {
    let metadata = at.symlink_metadata().unwrap();
    found.push((at.display().to_string(), metadata.permissions().mode() & 0o777));
    if metadata.is_dir() {
        for entry in std::fs::read_dir(at).unwrap() {
            modes(&entry.unwrap().path(), found);
        }
    }
}

#[test]
fn nobody_else_reads_what_a_run_keeps() {
    for umask in ["000", "022", "077"] {
        let bench = Bench::new(&[
            ("rehearsal.yaml", PLAN),
            ("environments/test.yaml", "lifeboat: 1\nenvironment: test\n"),
            ("mended", ""),
        ]);
        let lifeboat = cargo_bin("lifeboat").display().to_string();
        let ends = |exit: i32, arguments: &str| {
            let script = format!("umask {umask}; exec '{lifeboat}' {arguments}");
            let mut command = bench.command(&[]);
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
                .current_dir(bench.path())
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            assert_eq!(
                output.status.code(),
                Some(exit),
                "{arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            command.env_clear();
        };
        ends(4, "run rehearsal.yaml --env test");
        // A second process that works on the run makes the answer a letter in the inbox.
        ends(0, "approve $(ls .lifeboat/runs) agree --by ines");
        ends(0, "resume");
        ends(0, "report --format bundle -o run.tar");
        let mut found = vec![];
        modes(&bench.path().join(".lifeboat"), &mut found);
        modes(&bench.path().join("run.tar"), &mut found);
        for expected in ["journal.jsonl", "run.json", "environment.yaml", "/lock", "logs/look.1.log", "locks/file-"]
        {
            assert!(found.iter().any(|(name, _)| name.contains(expected)), "{expected} is not in {found:#?}");
        }
        for (name, mode) in found {
            let expected = if Path::new(&name).is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode, expected, "{name} is {mode:o} under umask {umask}");
        }
    }
}
