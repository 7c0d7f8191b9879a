//! Plans of people, commands and requests: what no system can be asked about afterwards.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{every_point, twice};
use crate::world::{Case, World};

/// Answers requests with 200, and writes down each `Idempotency-Key` that it has not seen yet.
fn serve(seen: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length, mut key) = (String::new(), 0, String::new());
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                let (name, value) = line.split_once(':').unwrap_or_default();
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap(),
                    "idempotency-key" => value.trim().clone_into(&mut key),
                    _ => {}
                }
                line.clear();
            }
            let _ = reader.take(length).read_to_end(&mut Vec::new());
            let mut known = std::fs::read_to_string(&seen).unwrap_or_default();
            if !key.is_empty() && !known.lines().any(|line| line == key) {
                known.push_str(&key);
                known.push('\n');
                // The folder goes with its world.
                let _ = std::fs::write(&seen, known);
            }
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"ok\":true}",
            );
        }
    });
    port
}

/// Questions, commands, requests and messages.
const PEOPLE: Case = Case {
    name: "people",
    set: |world| {
        let port = serve(world.path("files/requests"));
        std::fs::write(world.path("port"), port.to_string()).unwrap();
    },
    targets: |world| {
        let port = std::fs::read_to_string(world.path("port")).unwrap();
        json!({
            "service": { "http": { "base_url": format!("http://127.0.0.1:{port}") } },
            "oncall": { "webhook": { "url": format!("http://127.0.0.1:{port}/hook") } },
        })
    },
    plan: people,
    varying: &["ask.at", "hand.at"],
    may_ask: &["asked"],
    ..Case::PLAIN
};

fn people(world: &World) -> Value {
    let file = |name: &str| world.path("files").join(name).to_string_lossy().into_owned();
    let command = |name: &str| json!({ "shell": "echo begun >$FILE; sleep 0.05; echo done >>$FILE; echo said", "env": { "FILE": file(name) } });
    let with = |name: &str, more: Value| {
        let mut command = command(name);
        command["effects"] = json!([format!("create file:{}", file(name))]);
        command.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "exec": command })
    };
    let mut asked = with("asked", json!({}));
    asked["interrupted"] = "ask".into();
    let mut again = with("again", json!({}));
    again["interrupted"] = "rerun".into();
    json!({
        "steps": {
            "first": with("first", json!({ "idempotent": true })),
            "ask": { "approve": { "message": "Go on?" } },
            "confirmed": { "exec": { "argv": ["true"], "effects": [], "idempotent": true }, "confirm": "Really?" },
            "again": again,
            "asked": asked,
            "hand": { "manual": { "instructions": "Turn the key." } },
            "request": { "http.request": {
                "target": "service", "method": "POST", "path": "/do", "json": { "a": 1 }, "effects": [], "idempotent": true,
            } },
            "outputs": with("outputs", json!({ "idempotent": true, "outputs": { "word": { "regex": "(s.id)" } } })),
            "uses": { "exec": { "argv": ["echo", "{{ steps.outputs.word }} by {{ steps.ask.by }}"], "effects": [], "idempotent": true } },
        },
        "finally": {
            "tell": { "notify": { "target": "oncall", "message": "{{ run.status }}" } },
        },
    })
}

#[test]
fn what_people_said_and_commands_did_is_kept() {
    every_point(&PEOPLE, 16);
}

#[test]
fn what_people_said_and_commands_did_is_kept_killed_twice() {
    twice(&PEOPLE, 30);
}
