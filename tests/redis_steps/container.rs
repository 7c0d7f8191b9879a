//! `redis.restore` of a server in a container, on the Docker engine of `LIFEBOAT_TEST_DOCKER`.

use std::process::Command;

use serde_json::json;

use crate::server::{Redis, run, store, target};
use crate::support::ports::free_port;
use crate::support::{Harness, unique};

/// A container that runs the host's own redis-server, removed at its end.
struct Container {
    name: String,
}

fn docker(args: &[&str]) -> Vec<String> {
    let host =
        std::env::var("LIFEBOAT_TEST_DOCKER").expect("LIFEBOAT_TEST_DOCKER, as `just services-up` prints it");
    ["docker", "-H", &host].iter().chain(args).map(|arg| (*arg).to_owned()).collect()
}

impl Drop for Container {
    fn drop(&mut self) {
        let argv = docker(&["rm", "-f", &self.name]);
        let _ = Command::new(&argv[0]).args(&argv[1..]).output();
    }
}

#[tokio::test]
async fn a_server_in_a_container() {
    let source = Redis::start(&[]);
    source.fill(40);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let container = Container { name: unique("redis").replace('_', "-") };
    let port = free_port();
    let volumes = [format!("{data}:/data"), "/usr:/usr:ro".to_owned(), "/etc:/etc:ro".to_owned()];
    let port_text = port.to_string();
    let mut args = vec!["run", "-d", "--name", &container.name, "--network", "host"];
    for volume in &volumes {
        args.extend(["-v", volume]);
    }
    // The host's libraries are where its programs look for them.
    for library in ["/lib:/lib:ro", "/lib64:/lib64:ro"] {
        args.extend(["-v", library]);
    }
    args.extend(["lifeboat-test/busybox:1", "/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", &port_text]);
    args.extend(["--dir", "/data", "--appendonly", "yes", "--save", "3600", "1"]);
    run(&docker(&args));
    let url = format!("redis://127.0.0.1:{port}/0");
    let files = source.file("store");
    std::fs::create_dir_all(&files).unwrap();
    let harness = Harness::with([
        ("source", target(&source.url())),
        ("cache", target(&url)),
        ("store", store(files.to_str().unwrap())),
        (
            "docker",
            serde_json::from_value(json!({ "docker": { "host": std::env::var("LIFEBOAT_TEST_DOCKER").unwrap() } }))
                .unwrap(),
        ),
    ]);
    let to = json!({ "storage": "store", "path": "cache.rdb" });
    harness.run("redis.snapshot", json!({ "target": "source", "to": to })).await.unwrap();
    let params = json!({
        "target": "cache",
        "from": to,
        "data_dir": data,
        "container": { "target": "docker", "name": container.name },
        "within": "20s",
    });
    let done = harness.run("redis.restore", params).await.unwrap();
    assert_eq!(done.outputs["keys"], 40);
    harness.run("redis.check", json!({ "target": "cache", "keys": 40 })).await.unwrap();

    // A snapshot of it needs to be told where its folder is seen from here.
    let params = json!({ "target": "cache", "to": { "storage": "store", "path": "again.rdb" }, "data_dir": data });
    assert_eq!(harness.run("redis.snapshot", params).await.unwrap().outputs["keys"], 40);
}
