//! No step type shows a secret: driven by the list of registered types, so that a new one without a case fails here.

use std::collections::BTreeSet;
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::secrets::{echo, files, percent, secret, shapes};
use crate::support::server::Server;
use crate::support::{Databases, postgres_url, url_with};

/// A step of each type, with the secret input wherever the type takes a text. What it is about is not there, so that
/// each fails at what the other side says of it.
const STEPS: &str = include_str!("every_type.json");

const KINDS: [(&str, &str); 11] = [
    ("db", "postgres"),
    ("bad", "postgres"),
    ("cache", "redis"),
    ("web", "http"),
    ("hook", "webhook"),
    ("bucket", "storage"),
    ("files", "storage"),
    ("docker", "docker"),
    ("dns", "dns"),
    ("oidc", "oidc"),
    ("ssh", "ssh"),
];

/// The plan with that step alone.
fn plan(step: &Value) -> String {
    let used = step.to_string();
    let targets: serde_json::Map<_, _> = KINDS
        .iter()
        .filter(|(name, _)| used.contains(&format!("\"{name}\"")))
        .map(|(name, kind)| ((*name).to_owned(), json!(kind)))
        .collect();
    let input = json!({ "type": "string", "secret": true, "help": "A token" });
    json!({ "lifeboat": 1, "plan": "every", "inputs": { "token": input }, "targets": targets, "steps": { "it": step } })
        .to_string()
}

fn type_of(step: &Value) -> String {
    let mut keys = step.as_object().unwrap().keys();
    keys.find(|key| !["allow", "because"].contains(&key.as_str())).unwrap().clone()
}

const SUB: &str = "lifeboat: 1
plan: sub
inputs: { token: { type: string, secret: true, help: A token } }
steps:
  say:
    exec: { argv: [sh, -c, 'echo $TOKEN; exit 4'], env: { TOKEN: \"{{ inputs.token }}\" }, effects: [] }
";

#[test]
fn no_type_shows_a_secret() {
    let steps: Vec<Value> = serde_json::from_str(STEPS).unwrap();
    let told: BTreeSet<_> = steps.iter().map(type_of).collect();
    let known: BTreeSet<_> = lifeboat::step::TYPES.iter().map(|info| info.name.to_owned()).collect();
    assert_eq!(told, known, "each step type has a case in every_type.json");

    let web = echo();
    let names = ["TOKEN", "BAD", "CACHE", "BASIC", "HOOK", "KEY", "TSIG", "CLIENT"];
    let plain = names.map(|_| secret(b"abcXYZ0189"));
    let [token, bad, cache, basic, hook, key, tsig, client] = plain.clone();
    let tsig = BASE64.encode(tsig.as_bytes());
    // Its own: a plan with a hidden database name locks the whole server.
    let server = Server::new();
    let url = server.url("postgres");
    let real = server.password.clone();
    let variables = [
        ("TOKEN", token),
        ("DB", url.clone()),
        ("BAD", url_with(&url, Some(("postgres", &percent(&bad))), "postgres")),
        ("CACHE", format!("redis://:{cache}@127.0.0.1:{web}/0")),
        ("BASIC", basic),
        ("HOOK", format!("http://127.0.0.1:{web}/hooks/{hook}")),
        ("KEY", key),
        ("TSIG", tsig.clone()),
        ("CLIENT", client),
    ];
    let at = format!("127.0.0.1:{web}");
    let environment = json!({
        "lifeboat": 1, "environment": "test", "inputs": { "token": "{{ env.TOKEN }}" },
        "targets": {
            "db": { "postgres": { "url": "{{ env.DB }}" } },
            "bad": { "postgres": { "url": "{{ env.BAD }}" } },
            "cache": { "redis": { "url": "{{ env.CACHE }}" } },
            "web": { "http": {
                "base_url": format!("http://{at}"), "auth": { "basic": { "user": "me", "password": "{{ env.BASIC }}" } },
            } },
            "hook": { "webhook": { "url": "{{ env.HOOK }}" } },
            "bucket": { "storage": {
                "scheme": "s3", "bucket": "b", "endpoint": format!("http://{at}"),
                "access_key_id": "id", "secret_access_key": "{{ env.KEY }}",
            } },
            "files": { "storage": { "scheme": "fs", "root": "files" } },
            "docker": { "docker": { "host": format!("tcp://{at}") } },
            "dns": { "dns": {
                "server": at, "zone": "test", "tsig": { "name": "lifeboat", "secret": "{{ env.TSIG }}" },
            } },
            "oidc": { "oidc": {
                "issuer": format!("http://{at}"), "client_id": "me", "client_secret": "{{ env.CLIENT }}",
            } },
            "ssh": { "ssh": { "host": at, "user": "nobody" } },
        },
    });
    let environment = environment.to_string();
    let mut hidden = plain.to_vec();
    hidden.extend([real, tsig]);
    let hides = |step: &Value| {
        let name = type_of(step);
        let bench = Bench::new(&[
            ("plan.yaml", &plan(step)),
            ("sub.yaml", SUB),
            ("environments/test.yaml", &environment),
            ("files/.keep", ""),
        ]);
        let mut said = String::new();
        for arguments in [
            &["run", "plan.yaml", "--env", "test", "--dry-run"][..],
            &["run", "plan.yaml", "--env", "test", "--no-preflight", "-vv"],
            &["report", "--format", "json"],
            &["logs"],
        ] {
            let output = bench.command(arguments).envs(variables.clone()).output().unwrap();
            said += &String::from_utf8_lossy(&output.stdout);
            said += &String::from_utf8_lossy(&output.stderr);
            assert!(!matches!(output.status.code(), None | Some(70)), "{name} {arguments:?}: {said}");
            if arguments.contains(&"-vv") {
                assert!(matches!(output.status.code(), Some(0 | 1 | 4)), "{name} was not run: {said}");
            }
        }
        for secret in &hidden {
            for form in shapes(secret) {
                assert!(!said.contains(&form), "{name} shows {form} on the console: {said}");
                files(&bench.path().join(".lifeboat"), &mut |path, text| {
                    assert!(!text.contains(&form), "{name} shows {form} in {}: {text}", path.display());
                });
            }
        }
    };
    // Those of the database lock its server from each other; others wait for what doesn't answer.
    let (on_server, others): (Vec<_>, Vec<_>) = steps.iter().partition(|step| step.to_string().contains("\"db\""));
    std::thread::scope(|scope| {
        scope.spawn(|| on_server.iter().for_each(|step| hides(step)));
        for step in others {
            scope.spawn(|| hides(step));
        }
    });
}

/// A backup and its way back into a database, with the server's own password: in no argument of any process that the
/// system started, and not on a terminal with its progress bars.
#[tokio::test]
async fn a_backup_and_a_restore_hand_no_password_to_an_argument_or_a_terminal() {
    let databases = Databases::new("secret_args");
    let rows = "CREATE TABLE t AS SELECT g AS n, md5(g::text) AS m FROM generate_series(1, 50000) g";
    let from = databases.create("from", rows).await;
    let url = postgres_url();
    let password =
        url.split_once("://").unwrap().1.split_once('@').unwrap().0.split_once(':').unwrap().1.to_owned();
    for (round, to) in [databases.name("traced"), databases.name("shown")].into_iter().enumerate() {
        let plan = format!(
            "lifeboat: 1\nplan: there-and-back\ntargets: {{ db: postgres, files: storage }}\nsteps:\n  \
             back:\n    postgres.backup: {{ target: db, database: {from}, to: {{ storage: files, path: a.sql.gz }} }}\n  \
             restore:\n    postgres.restore: {{ target: db, database: {to}, create: true, from: {{ storage: files, path: a.sql.gz }} }}\n  \
             check:\n    postgres.verify: {{ target: db, database: {to}, constraints: true }}\n"
        );
        let environment = "lifeboat: 1\nenvironment: test\ntargets:\n  db: { postgres: { url: \"{{ env.DB }}\" } }\n  \
                           files: { storage: { scheme: fs, root: files } }\n";
        let bench =
            Bench::new(&[("plan.yaml", &plan), ("environments/test.yaml", environment), ("files/.keep", "")]);
        let program = cargo_bin("lifeboat").display().to_string();
        let mut command = if round == 0 {
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-s", "4096", "-e", "trace=execve", "-o", "trace.txt", "--", &program]);
            command.args(["run", "plan.yaml", "--env", "test"]);
            command
        } else {
            // A terminal of its own: progress is drawn there.
            let mut command = Command::new("script");
            command.args(["-qefc", &format!("{program} run plan.yaml --env test -v"), "typescript"]);
            command
        };
        let output = command.current_dir(bench.path()).env("DB", &url).env("TERM", "xterm").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let mut seen = said.clone();
        if round == 0 {
            let trace = std::fs::read_to_string(bench.path().join("trace.txt")).unwrap();
            assert!(trace.contains("pg_dump"), "{trace}");
            seen += &trace;
        } else {
            assert!(said.contains('\u{1b}'), "a terminal is drawn on: {said}");
        }
        for form in shapes(&password) {
            assert!(!seen.contains(&form), "{form} shows in {seen}");
        }
    }
}
