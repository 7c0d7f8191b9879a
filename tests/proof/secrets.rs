//! No secret of an environment shows anywhere: not in the state folder, not on the console, not in an argument of a
//! process, however it comes back from outside.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::json;

use crate::bench::Bench;
use crate::support::{postgres_url, url_with};

/// Letters that each form of a text treats in its own way.
const ALPHABET: &[u8] = b"abcXYZ0189:/@+=?&%'\"<> \\-_.~";

pub fn secret(from: &[u8]) -> String {
    let inner: String = (0..14).map(|_| char::from(from[rand::random::<u32>() as usize % from.len()])).collect();
    // Begins and ends so that no shell, URL or YAML trims it.
    format!("k{inner}{:08x}", rand::random::<u32>())
}

pub fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Answers each HTTP request with the request itself, as text and as JSON.
pub fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut request, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        request += &line;
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    request += &String::from_utf8_lossy(&body);
    let said = json!({ "you": request, "said": request.lines().collect::<Vec<_>>() }).to_string();
    // A hook that complains is quoted.
    let status = if request.starts_with("POST") { "400 Bad Request" } else { "200 OK" };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{said}",
        said.len()
    );
}

/// A mail server that refuses every password, and repeats it.
fn mail() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut out = stream.try_clone().unwrap();
                let _ = write!(out, "220 here\r\n");
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = match line.split(' ').next() {
                        Some("EHLO") => write!(out, "250-here\r\n250 AUTH PLAIN LOGIN\r\n"),
                        Some("AUTH") => write!(out, "535 5.7.8 no: {line}\r\n"),
                        _ => write!(out, "221 bye\r\n"),
                    };
                }
            });
        }
    });
    port
}

/// The command lines of all processes, until told to stop.
fn watch(stop: Arc<AtomicBool>) -> std::thread::JoinHandle<BTreeSet<String>> {
    std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !stop.load(Ordering::Relaxed) {
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
                    seen.insert(String::from_utf8_lossy(&line).replace('\0', " "));
                }
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        seen
    })
}

const PLAN: &str = r#"
lifeboat: 1
plan: secrets
inputs:
  token: { type: string, secret: true, help: A token }
targets: { db: postgres, cache: redis, web: http, hook: webhook, bucket: storage, mail: smtp }
steps:
  whole:
    exec: { argv: [sh, -c, 'printf "it is %s.\n" "$TOKEN"; printf "%s" "$TOKEN" >&2; sleep 0.1'], env: { TOKEN: "{{ inputs.token }}" }, effects: [] }
  pieces:
    needs: []
    exec: { argv: [python3, pieces.py], env: { TOKEN: "{{ inputs.token }}" }, effects: [] }
  complains:
    needs: []
    exec: { argv: [sh, -c, 'echo "bad token $TOKEN" >&2; exit 1'], env: { TOKEN: "{{ inputs.token }}" }, effects: [] }
  echoes:
    needs: []
    http.request: { target: web, method: GET, path: /x, headers: { X-Token: "{{ inputs.token }}" }, effects: [] }
  refuses:
    needs: []
    http.request: { target: web, method: POST, path: /x, json: { token: "{{ inputs.token }}" }, effects: [] }
  looks:
    needs: []
    http.check: { target: web, path: /, within: 1s, contains: nothing-like-it }
  tells:
    needs: []
    notify: { target: hook, message: "the token is {{ inputs.token }}" }
  mails:
    needs: []
    notify: { target: mail, message: hello, to: [a@example.com] }
  asks:
    needs: []
    postgres.query: { target: db, sql: "SELECT 1" }
  dumps:
    needs: []
    postgres.backup: { target: db, database: postgres, to: { storage: bucket, path: x.dump } }
  caches:
    needs: []
    redis.check: { target: cache }
  finds:
    needs: []
    storage.find: { target: bucket, path: app_20240201T100000Z.sql.gz }
"#;

const PIECES: &str = r"
import base64, html, json, os, sys, time, urllib.parse
token = os.environ['TOKEN']
def say(text):
    for at in range(0, len(text), 5):
        os.write(1, text[at:at + 5].encode())
        time.sleep(0.001)
    os.write(1, b'\n')
say(token)
say('https://x/?q=' + urllib.parse.quote(token, safe=''))
say('https://x/?q=' + urllib.parse.quote_plus(token))
say('Basic ' + base64.b64encode(('me:' + token).encode()).decode())
say(base64.b64encode(token.encode()).decode())
say(base64.urlsafe_b64encode(('user:' + token).encode()).decode())
say(json.dumps({'token': token}))
say(html.escape(token))
os.write(2, token[:9].encode()); time.sleep(0.05); os.write(2, token[9:].encode())
";

#[test]
fn no_secret_shows_anywhere() {
    for round in 0..2 {
        no_secret_shows(round);
    }
}

fn no_secret_shows(round: usize) {
    let names = ["TOKEN", "DB", "CACHE", "BASIC", "HOOK", "KEY", "MAIL"];
    // First plain, then with everything that some form escapes. Headers and URLs take what they take.
    let secrets = names.map(|name| {
        let plain = round == 0 || matches!(name, "KEY" | "TOKEN_HEADER");
        secret(if plain { b"abcXYZ0189" } else { ALPHABET })
    });
    let [token, db, cache, basic, hook, key, mail_password] = secrets.clone();
    let (web, mail) = (echo(), mail());
    let server = url_with(&postgres_url(), Some(("postgres", &percent(&db))), "postgres");
    let variables = [
        ("TOKEN", token),
        ("DB", server),
        ("CACHE", format!("redis://:{}@127.0.0.1:{web}/0", percent(&cache))),
        ("BASIC", basic),
        ("HOOK", format!("http://127.0.0.1:{web}/hooks/{}", percent(&hook))),
        ("KEY", key),
        ("MAIL", format!("smtp://lifeboat:{}@127.0.0.1:{mail}", percent(&mail_password))),
    ];
    let environment = json!({
        "lifeboat": 1, "environment": "test", "inputs": { "token": "{{ env.TOKEN }}" },
        "targets": {
            "db": { "postgres": { "url": "{{ env.DB }}" } },
            "cache": { "redis": { "url": "{{ env.CACHE }}" } },
            "web": { "http": {
                "base_url": format!("http://127.0.0.1:{web}"),
                "auth": { "basic": { "user": "me", "password": "{{ env.BASIC }}" } },
            } },
            "hook": { "webhook": { "url": "{{ env.HOOK }}" } },
            "bucket": { "storage": {
                "scheme": "s3", "bucket": "b", "endpoint": format!("http://127.0.0.1:{web}"),
                "access_key_id": "id", "secret_access_key": "{{ env.KEY }}",
            } },
            "mail": { "smtp": { "url": "{{ env.MAIL }}", "from": "lifeboat@example.com" } },
        },
    });
    let bench = Bench::new(&[
        ("secrets.yaml", PLAN),
        ("pieces.py", PIECES),
        ("environments/test.yaml", &environment.to_string()),
    ]);
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch(stop.clone());
    let mut said = String::new();
    let mut ran = 0;
    for arguments in [
        &["run", "secrets.yaml", "--env", "test", "--dry-run"][..],
        &["run", "secrets.yaml", "--env", "test", "--dry-run", "--format", "json"],
        &["run", "secrets.yaml", "--env", "test", "--no-preflight", "-vv"],
        &["resume", "--dry-run"],
        &["status"],
        &["logs"],
        &["runs"],
        &["report"],
        &["report", "--format", "json"],
        &["report", "--format", "bundle", "-o", "run.tar"],
        &["show", "secrets.yaml", "--env", "test"],
        &["doctor", "--env", "test"],
    ] {
        let output = bench.command(arguments).envs(variables.clone()).output().unwrap();
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(70), "{arguments:?}: {said}");
        if arguments.contains(&"-vv") {
            assert_eq!(output.status.code(), Some(1), "{said}");
            ran += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let lines = watcher.join().unwrap();
    assert_eq!(ran, 1);
    assert!(lines.iter().any(|line| line.contains("pieces.py")), "children were watched");
    assert!(said.contains("●●●●"), "{said}");
    // What was meant to be echoed was: the proof isn't empty.
    let journal =
        std::fs::read_to_string(bench.path().join(".lifeboat/runs").join(bench.latest()).join("journal.jsonl"))
            .unwrap();
    for step in ["whole", "pieces", "echoes"] {
        assert!(
            journal.contains(&format!("\"step\":\"{step}\",\"attempt\":1,\"outcome\":{{\"result\":\"succeeded\"")),
            "{step}: {journal}"
        );
    }

    for (name, secret) in names.iter().zip(&secrets) {
        for form in shapes(secret) {
            let place = |place: &str, text: &str| {
                let at = text.find(&form).map(|at| text[..at].chars().rev().take(80).collect::<String>());
                let before = at.map(|at| at.chars().rev().collect::<String>());
                assert!(before.is_none(), "{name} ({secret}) as {form} shows in {place} after {before:?}");
            };
            place("the console", &said);
            for line in &lines {
                place("a command line", line);
            }
            files(&bench.path().join(".lifeboat"), &mut |path, text| place(&path.display().to_string(), text));
            files(&bench.path().join("run.tar"), &mut |path, text| place(&path.display().to_string(), text));
        }
    }
}

/// What a secret looks like, and what of it no neighbour hides.
pub fn shapes(secret: &str) -> Vec<String> {
    let quoted = json!(secret).to_string();
    let mut shapes = vec![
        secret.to_owned(),
        percent(secret),
        percent(secret).to_lowercase(),
        quoted[1..quoted.len() - 1].to_owned(),
    ];
    for before in ["", "a", "ab"] {
        let encoded = BASE64.encode(format!("{before}{secret}").as_bytes());
        // The characters in its midst, which only the secret decides.
        shapes.push(encoded[4..encoded.len() - 4].to_owned());
    }
    shapes
}

pub fn files(at: &Path, look: &mut impl FnMut(&Path, &str)) {
    if at.is_dir() {
        for entry in std::fs::read_dir(at).unwrap() {
            files(&entry.unwrap().path(), look);
        }
    } else {
        look(at, &String::from_utf8_lossy(&std::fs::read(at).unwrap()));
    }
}
