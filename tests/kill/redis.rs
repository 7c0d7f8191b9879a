//! A plan of Redis: a snapshot, and its restore by the server's own commands.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{every_point, twice};
use crate::world::{Case, World};

fn port(world: &World) -> String {
    std::fs::read_to_string(world.path("port")).unwrap()
}

fn start(world: &World) -> Vec<String> {
    let (port, data) = (port(world), world.path("redis"));
    let data = data.to_string_lossy();
    let log = format!("{data}/log");
    [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        &port,
        "--dir",
        &data,
        "--save",
        "",
        "--logfile",
        &log,
        "--daemonize",
        "yes",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn stop(world: &World) -> Vec<String> {
    ["redis-cli", "-p", &port(world), "shutdown", "nosave"].map(str::to_owned).to_vec()
}

fn run(argv: &[String]) {
    let _ = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).output().unwrap();
}

fn ask<T: redis::FromRedisValue>(world: &World, command: &[&str]) -> redis::RedisResult<T> {
    let url = format!("redis://127.0.0.1:{}/0", port(world));
    redis::cmd(command[0]).arg(&command[1..]).query(&mut redis::Client::open(url)?.get_connection()?)
}

const REDIS: Case = Case {
    name: "redis",
    set: |world| {
        std::fs::create_dir_all(world.path("redis")).unwrap();
        std::fs::write(world.path("port"), crate::support::ports::free_port().to_string()).unwrap();
        run(&start(world));
        let stopping = stop(world);
        world.ends.borrow_mut().push(Box::new(move || run(&stopping)));
        let end = Instant::now() + Duration::from_secs(20);
        while ask::<String>(world, &["PING"]).is_err() {
            assert!(Instant::now() < end, "redis-server, from Debian's package of that name, did not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        for key in ["a", "b", "c"] {
            ask::<()>(world, &["SET", key, key]).unwrap();
        }
    },
    targets: |world| json!({ "cache": { "redis": { "url": format!("redis://127.0.0.1:{}/0", port(world)) } } }),
    plan: |world| {
        let set = |value: &str| {
            json!({ "exec": {
            "argv": ["redis-cli", "-p", port(world), "set", "a", value], "idempotent": true, "effects": ["change redis:cache"],
        } })
        };
        json!({ "steps": {
            "snapshot": { "redis.snapshot": { "target": "cache", "to": { "storage": "store", "path": "cache.rdb" } } },
            "damage": set("damaged"),
            "restore": { "redis.restore": {
                "target": "cache", "data_dir": world.path("redis"),
                "from": { "storage": "store", "path": "{{ steps.snapshot.path }}" },
                "service": { "stop": stop(world), "start": start(world) },
            }, "allow": ["unverified_destruction"], "because": "made up for the test" },
            "after": { "exec": {
                "argv": ["redis-cli", "-p", port(world), "set", "d", "d"], "idempotent": true, "effects": ["change redis:cache"],
            } },
        } })
    },
    look: |world| {
        let get = |key: &str| ask::<Option<String>>(world, &["GET", key]).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(world.path("redis"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let keys: Vec<_> = ["a", "b", "c", "d"].into_iter().map(get).collect();
        json!({ "keys": keys, "folder": left })
    },
    varying: &["snapshot.bytes", "snapshot.sha256"],
    ..Case::PLAIN
};

#[test]
fn redis_has_what_the_snapshot_had() {
    every_point(&REDIS, 20);
}

#[test]
fn redis_has_what_the_snapshot_had_killed_twice() {
    twice(&REDIS, 40);
}
