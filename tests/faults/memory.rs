//! How much memory a restore takes, whatever the dump.

use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::bench::Bench;
use crate::support::{Databases, postgres_url, value};

/// Whatever the dump, in MiB.
const MOST: u64 = 200;

/// A dump of some 300 MB, with one table whose only row has `long` MiB.
fn dump(path: &Path, long: usize) -> u64 {
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path).unwrap());
    out.write_all(
        b"--\n-- PostgreSQL database dump\n--\n\nSET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\n\n\
        CREATE TABLE public.big (\n    id bigint,\n    pad text,\n    n numeric\n);\n\n\
        CREATE TABLE public.long (\n    id integer,\n    pad text\n);\n\n\
        COPY public.big (id, pad, n) FROM stdin;\n",
    )
    .unwrap();
    let pad = "0123456789abcdef".repeat(61);
    let mut rows = String::new();
    let count = 300_000;
    for id in 0..count {
        let _ = writeln!(rows, "{id}\t{pad}\t{id}.5");
        if rows.len() > 1 << 20 {
            out.write_all(rows.as_bytes()).unwrap();
            rows.clear();
        }
    }
    out.write_all(rows.as_bytes()).unwrap();
    out.write_all(b"\\.\n\n\nCOPY public.long (id, pad) FROM stdin;\n1\t").unwrap();
    let mebibyte = vec![b'x'; 1 << 20];
    for _ in 0..long {
        out.write_all(&mebibyte).unwrap();
    }
    out.write_all(b"\n\\.\n\n\n--\n-- PostgreSQL database dump complete\n--\n\n").unwrap();
    out.flush().unwrap();
    count
}

/// Runs a plan and gives how much memory the program had at its highest, in KiB.
fn highest(bench: &Bench, arguments: &[&str]) -> u64 {
    let mut child = bench.start(arguments);
    let status = format!("/proc/{}/status", child.id());
    let mut highest = 0;
    let exit = loop {
        // The kernel keeps the highest itself: what is read last is what it came to.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        highest = highest.max(kib.unwrap_or(0));
        if let Some(exit) = child.try_wait().unwrap() {
            break exit;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let output = child.wait_with_output().unwrap();
    assert!(
        exit.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    highest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_takes_little_memory_whatever_the_dump() {
    let names = Databases::new("fa_memory");
    for (at, (long, jobs)) in [(0, 2), (0, 64), (60, 1), (60, 2)].into_iter().enumerate() {
        let new = names.name(&format!("new{at}"));
        let plan = json!({
            "lifeboat": 1, "plan": "restore",
            "targets": { "db": "postgres", "store": "storage" },
            "steps": { "load": { "postgres.restore": {
                "target": "db", "database": new, "create": true, "jobs": jobs, "analyze": false,
                "from": { "storage": "store", "path": "a.sql" },
            } } },
        });
        let bench = Bench::new(&[("restore.yaml", &plan.to_string())]);
        let environment = json!({
            "lifeboat": 1, "environment": "here",
            "targets": {
                "db": { "postgres": { "url": postgres_url() } },
                "store": { "storage": { "scheme": "fs", "root": bench.path().join("store") } },
            },
        });
        std::fs::write(bench.path().join("here.yaml"), environment.to_string()).unwrap();
        std::fs::create_dir(bench.path().join("store")).unwrap();
        let rows = dump(&bench.path().join("store/a.sql"), long);
        let kib = highest(&bench, &["run", "restore.yaml", "--env", "here.yaml"]);
        assert_eq!(value(&new, "SELECT count(*) FROM big").await.unwrap(), rows.to_string());
        assert_eq!(value(&new, "SELECT length(pad) FROM long").await.unwrap(), (long << 20).to_string());
        let mib = kib >> 10;
        assert!(mib > 10 && mib < MOST, "{long} MiB in a row, {jobs} connections: {mib} MiB");
    }
}
