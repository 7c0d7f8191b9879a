//! Plans of containers, on a real engine.

use serde_json::{Value, json};

use crate::harness::{every_point, twice};
use crate::world::{Case, World};

pub fn engine() -> String {
    std::env::var("LIFEBOAT_TEST_DOCKER").expect("LIFEBOAT_TEST_DOCKER: start the services with `just services-up`")
}

pub fn docker(args: &[&str]) -> String {
    let output = std::process::Command::new("docker").args(["-H", &engine()]).args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub const IMAGE: &str = "lifeboat-test/busybox:1";
pub const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

pub fn make(name: &str, start: bool) {
    let how: &[&str] = if start { &["run", "-d"] } else { &["create"] };
    docker(&[how, &["--network", "none", "--name", name, IMAGE, "/bin/busybox", "sh", "-c", STAY]].concat());
}

/// What runs, what is stopped, what is gone, and what a command did inside.
fn containers(world: &World) -> Value {
    let filter = format!("name=^{}_", world.prefix);
    let listed = docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}} {{.State}}"]);
    let mut listed: Vec<_> = listed.lines().map(str::to_owned).collect();
    listed.sort();
    let counted = docker(&["exec", &world.name("busy"), "cat", "/srv/count"]);
    json!({ "containers": listed, "counted": counted })
}

/// Stopped, started, restarted, made, replaced, removed, and a command inside.
const CONTAINERS: Case = Case {
    name: "containers",
    set: |world| {
        make(&world.name("busy"), true);
        make(&world.name("gone"), false);
        let prefix = world.prefix.clone();
        world.ends.borrow_mut().push(Box::new(move || {
            let left = docker(&["ps", "-aq", "--filter", &format!("name=^{prefix}_")]);
            if !left.is_empty() {
                docker(&[&["rm", "-f"], &*left.lines().collect::<Vec<_>>()].concat());
            }
        }));
    },
    targets: |_| json!({ "docker": { "docker": { "host": engine() } } }),
    plan: |world| {
        let on = |name: &str| json!({ "target": "docker", "container": world.name(name) });
        let because = "made up for the test";
        json!({ "steps": {
            "stop": { "container.stop": on("busy") },
            "start": { "container.start": on("busy") },
            "restart": { "container.restart": on("busy") },
            "exec": { "container.exec": {
                "target": "docker", "container": world.name("busy"),
                "argv": ["sh", "-c", "echo once >>/srv/count; sleep 0.1; echo done >>/srv/count"], "effects": [],
            } },
            "run": { "container.run": {
                "target": "docker", "image": IMAGE, "name": world.name("made"), "network": "none",
                "command": ["/bin/busybox", "sh", "-c", STAY],
            } },
            "remove": {
                "container.remove": on("gone"), "allow": ["unverified_destruction"], "because": because,
            },
        } })
    },
    look: containers,
    // What a command wrote is lost with the process that listened, and the step says so.
    varying: &[
        "restart.started_at",
        "run.id",
        "run.started_at",
        "start.started_at",
        "exec.stdout?",
        "exec.stderr?",
    ],
    // A container that was started is looked at for two seconds.
    waits: 3,
    ..Case::PLAIN
};

#[test]
fn containers_are_as_if_nothing_had_happened() {
    every_point(&CONTAINERS, 12);
}

#[test]
fn containers_are_as_if_nothing_had_happened_killed_twice() {
    twice(&CONTAINERS, 30);
}
