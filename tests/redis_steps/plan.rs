//! The project's own plan for Redis, run as people run it.

use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::server::Redis;

fn run(folder: &std::path::Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(["run", "plans/redis-backup.yaml", "--env", "test", "--yes"]).args(more);
    command.current_dir(folder).stdin(Stdio::null()).env_remove("LIFEBOAT_STATE").env("NO_COLOR", "1");
    command.output().unwrap()
}

#[test]
fn redis_is_backed_up_by_its_plan() {
    let redis = Redis::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let environments = folder.path().join("plans/environments");
    std::fs::create_dir_all(&environments).unwrap();
    std::fs::copy("plans/redis-backup.yaml", folder.path().join("plans/redis-backup.yaml")).unwrap();
    let environment = json!({
        "lifeboat": 1, "environment": "test",
        "targets": {
            "redis": { "redis": { "url": format!("redis://127.0.0.1:{}/0", redis.port) } },
            "backups": { "storage": { "scheme": "fs", "root": folder.path().join("backups") } },
        },
    });
    std::fs::write(environments.join("test.yaml"), environment.to_string()).unwrap();

    let output = run(folder.path(), &["--dry-run"]);
    let said = |output: &Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    assert!(output.status.success(), "{}", said(&output));
    assert!(!folder.path().join("backups").exists(), "a dry-run writes nothing");
    let output = run(folder.path(), &[]);
    assert!(output.status.success(), "{}", said(&output));
    let copies = std::fs::read_dir(folder.path().join("backups")).unwrap();
    let copied =
        copies.filter(|copy| copy.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "rdb"));
    assert_eq!(copied.count(), 1);

    drop(redis);
    let output = run(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("alive failed"), "{}", said(&output));
}
