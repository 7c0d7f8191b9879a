//! Every kind of target that can speak TLS, against servers whose certificates are good and bad.
//!
//! A certificate is refused in the handshake, before anything that could hold a secret was sent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what went wrong by panicking"
)]

#[allow(unused, reason = "each test program uses a part of it")]
mod support;

#[path = "tls/authority.rs"]
mod authority;
#[path = "tls/backend.rs"]
mod backend;
#[path = "tls/front.rs"]
mod front;

use std::path::Path;

use lifeboat::failure::Failure;
use lifeboat::service::{Services, Target};
use serde_json::{Value, json};

use authority::{Authority, Kind};
use front::{Front, Preamble};
use support::Harness;

/// What is in every target's settings, and never reaches a server that isn't trusted.
const SECRET: &str = "hunter22";

/// A kind of target.
struct Row {
    kind: &'static str,
    preamble: Preamble,
    /// Settings for a port, and perhaps an authority's file.
    settings: fn(u16, Option<&Path>) -> Value,
    /// The setting that the way out names.
    names: &'static str,
}

fn with_ca(mut settings: Value, ca: Option<&Path>) -> Value {
    if let Some(ca) = ca {
        settings["ca_file"] = ca.to_str().unwrap().into();
    }
    settings
}

fn http(port: u16, ca: Option<&Path>) -> Value {
    with_ca(json!({ "base_url": format!("https://localhost:{port}"), "auth": { "bearer": SECRET } }), ca)
}

fn oidc(port: u16, ca: Option<&Path>) -> Value {
    let issuer = format!("https://localhost:{port}");
    with_ca(json!({ "issuer": issuer, "client_id": "me", "client_secret": SECRET }), ca)
}

fn webhook(port: u16, ca: Option<&Path>) -> Value {
    with_ca(json!({ "url": format!("https://localhost:{port}/hook/{SECRET}") }), ca)
}

fn storage(port: u16, ca: Option<&Path>) -> Value {
    let endpoint = format!("https://localhost:{port}");
    let settings = json!({
        "scheme": "s3", "bucket": "tls-matrix", "endpoint": endpoint, "access_key_id": "me",
        "secret_access_key": SECRET, "disable_config_load": true,
    });
    with_ca(settings, ca)
}

fn redis(port: u16, ca: Option<&Path>) -> Value {
    with_ca(json!({ "url": format!("rediss://:{SECRET}@localhost:{port}/0") }), ca)
}

fn smtps(port: u16, ca: Option<&Path>) -> Value {
    with_ca(json!({ "url": format!("smtps://localhost:{port}"), "from": "lifeboat@a.test" }), ca)
}

fn starttls(port: u16, ca: Option<&Path>) -> Value {
    let url = format!("smtp://localhost:{port}");
    with_ca(json!({ "url": url, "from": "lifeboat@a.test", "starttls": true }), ca)
}

fn postgres(port: u16, ca: Option<&Path>) -> Value {
    let url = support::postgres_url();
    let (login, _) = url.rsplit_once('@').unwrap();
    let ca = ca.map(|ca| format!("&sslrootcert={}", ca.display())).unwrap_or_default();
    json!({ "url": format!("{login}@localhost:{port}/postgres?sslmode=verify-full{ca}") })
}

/// Of Docker's own three files the authority's is never left out: a stranger's stands for none.
fn docker(port: u16, ca: Option<&Path>) -> Value {
    let own = Authority::new();
    let stranger = own.file("ca.pem");
    let files = own.kept();
    let file = |name: &str| files.join(name).display().to_string();
    let ca = ca.unwrap_or(&stranger).display().to_string();
    json!({
        "host": format!("https://localhost:{port}"),
        "tls": { "ca": ca, "cert": file("good.pem"), "key": file("good.key") },
    })
}

const ROWS: [Row; 9] = [
    Row { kind: "http", preamble: Preamble::None, settings: http, names: "ca_file" },
    Row { kind: "oidc", preamble: Preamble::None, settings: oidc, names: "ca_file" },
    Row { kind: "webhook", preamble: Preamble::None, settings: webhook, names: "ca_file" },
    Row { kind: "storage", preamble: Preamble::None, settings: storage, names: "ca_file" },
    Row { kind: "redis", preamble: Preamble::None, settings: redis, names: "ca_file" },
    Row { kind: "smtp", preamble: Preamble::None, settings: smtps, names: "ca_file" },
    Row { kind: "smtp", preamble: Preamble::StartTls, settings: starttls, names: "ca_file" },
    Row { kind: "postgres", preamble: Preamble::Postgres, settings: postgres, names: "sslrootcert" },
    Row { kind: "docker", preamble: Preamble::None, settings: docker, names: "tls" },
];

/// Asks a target something that it answers only over a connection that is let in.
async fn ask(kind: &str, settings: Value) -> Result<(), Failure> {
    let target: Target = serde_json::from_value(json!({ kind: settings })).unwrap();
    let harness = Harness::with([("the-target", target)]);
    let services: &Services = &harness.services;
    match kind {
        "http" => harness.run("http.check", json!({ "target": "the-target", "path": "/" })).await.map(drop),
        "oidc" => services.oidc("the-target")?.discovery().await.map(drop),
        "webhook" => {
            let told = json!({ "target": "the-target", "subject": "alarm", "message": "it burns" });
            harness.run("notify", told).await.map(drop)
        }
        "storage" => services.storage("the-target")?.list("").await.map(drop),
        "redis" => services.redis("the-target")?.connect().await?.ping().await,
        "smtp" => services.mail("the-target")?.probe().await.map(drop),
        "postgres" => {
            harness.run("postgres.query", json!({ "target": "the-target", "sql": "SELECT 1" })).await.map(drop)
        }
        "docker" => services.docker("the-target")?.find("no-such-container").await.map(drop),
        other => panic!("{other} is no kind of the matrix"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_target_refuses_what_it_can_not_trust() {
    let authority = Authority::new();
    let ca = authority.file("ca.pem");
    let backends = backend::start().await;
    let mut wrong = vec![];
    for row in &ROWS {
        let name = format!("{} {:?}", row.kind, row.preamble);
        let upstream = backends.of(row.kind);
        let front = async |kind| Front::start(&authority, kind, row.preamble, upstream.clone()).await;
        let cases = [
            ("unknown authority", Kind::Good, None, Some(("certificate", row.names))),
            ("known authority", Kind::Good, Some(ca.as_path()), None),
            ("another host's", Kind::AnotherHost, Some(ca.as_path()), Some(("not valid for", ""))),
            ("expired", Kind::Expired, Some(ca.as_path()), Some(("expired", ""))),
        ];
        for (case, kind, ca, refused) in cases {
            let front = front(kind).await;
            let answer = ask(row.kind, (row.settings)(front.port, ca)).await;
            println!("{name}, {case}: {answer:?}");
            let as_wanted = match (&answer, refused) {
                (Ok(()), None) => front.decrypted() > 0,
                (Err(failure), Some((said, helps))) => {
                    let help = failure.help.as_deref().unwrap_or_default();
                    let place = failure.message.contains(&format!("localhost:{}", front.port))
                        || failure.message.contains("the-target");
                    !failure.transient
                        && failure.message.contains(said)
                        && place
                        && !help.is_empty()
                        && help.contains(helps)
                        && !failure.to_string().contains(SECRET)
                        && front.decrypted() == 0
                        && front.in_the_open() < 100
                }
                _ => false,
            };
            if !as_wanted {
                wrong.push(format!("{name}, {case}: {answer:?}, {} bytes decrypted", front.decrypted()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn redis_own_tls_is_spoken_to() {
    let authority = Authority::new();
    let port = support::ports::free_port();
    let file = |name: &str| authority.file(name).display().to_string();
    let tls = format!("--port 0 --tls-port {port} --tls-auth-clients no --requirepass {SECRET}");
    let mut arguments: Vec<String> = tls.split(' ').map(str::to_owned).collect();
    for (option, name) in [("cert", "good.pem"), ("key", "good.key"), ("ca-cert", "ca.pem")] {
        arguments.extend([format!("--tls-{option}-file"), file(name)]);
    }
    let _server = backend::redis(&arguments, port);
    ask("redis", redis(port, Some(&authority.file("ca.pem")))).await.unwrap();
    let failure = ask("redis", redis(port, None)).await.unwrap_err();
    assert!(!failure.transient && failure.help.unwrap().contains("ca_file"), "{}", failure.message);
    // What would be less than was asked for is refused.
    let insecure = json!({ "url": format!("rediss://localhost:{port}/0#insecure") });
    assert!(ask("redis", insecure).await.unwrap_err().message.contains("always verified"));
    let plain = json!({ "url": format!("redis://localhost:{port}/0"), "ca_file": file("ca.pem") });
    assert!(ask("redis", plain).await.unwrap_err().message.contains("without TLS"));
    let mut engine = docker(port, None);
    engine["host"] = format!("http://localhost:{port}").into();
    assert!(ask("docker", engine).await.unwrap_err().message.contains("without TLS"));
}

/// pg_dump speaks TLS by itself, beside Lifeboat's own sessions.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_over_tls_trusts_whom_lifeboat_trusts() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let url = support::postgres_url();
    let (info, rest) = url.split_once("://").unwrap().1.rsplit_once('@').unwrap();
    let upstream = rest.split('/').next().unwrap().to_owned();
    let databases = support::Databases::new("tls_backup");
    let name = databases.create("db", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    let folder = tempfile::tempdir().unwrap();
    for (kind, ca, good) in [
        (Kind::Good, Some(authority.file("ca.pem")), true),
        (Kind::Good, Some(foreign.file("ca.pem")), false),
        (Kind::AnotherHost, Some(authority.file("ca.pem")), false),
        (Kind::Good, None, false),
    ] {
        let front = Front::start(&authority, kind, Preamble::Postgres, upstream.clone()).await;
        let ca = ca.map(|ca| format!("&sslrootcert={}", ca.display())).unwrap_or_default();
        let url = format!("postgres://{info}@localhost:{}/{name}?sslmode=require{ca}", front.port);
        let storage = json!({ "storage": { "scheme": "fs", "root": folder.path() } });
        let harness =
            Harness::with([("db", support::postgres(&url)), ("backups", serde_json::from_value(storage).unwrap())]);
        let server = harness.next_attempt().services.postgres("db").unwrap();
        let dump = server.tool("pg_dump", 0).await.unwrap();
        let dumped = server.command(&dump, Some(&name)).arg("--schema-only");
        let dumped = dumped.run(None, harness.services.redactor(), &|_| {}, &harness.cancel).await.unwrap();
        println!("{kind:?}{ca}: {}", dumped.stderr.text());
        assert_eq!((dumped.exit.success(), front.decrypted() > 0), (good, good));
        let said = dumped.stderr.text();
        assert_eq!(said.contains("certificate") || said.contains("SSL error"), !good, "{said}");
        let params = json!({
            "target": "db", "database": name,
            "to": { "storage": "backups", "path": format!("{}.sql.gz", front.port) },
        });
        let backup = harness.run("postgres.backup", params).await;
        assert_eq!((backup.is_ok(), front.decrypted() > 0), (good, good), "{kind:?}{ca}: {backup:?}");
    }
}
