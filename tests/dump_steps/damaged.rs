//! Damaged dumps are refused before anything is touched.

use lifeboat::step::Action;
use lifeboat::step::world::World;
use serde_json::{Value, json};

use crate::fixture::{CONTENT, Place, gzip, pg_dump, zstd};
use crate::support::value;

const RESTORE: &str = "postgres.restore";

/// The dump at `path` is refused by dry-run, run and verification alike, and no database comes of it.
async fn refused(place: &Place, path: &str, from: &str, said: &str) {
    let restored = place.names.name("restored");
    let mut params = json!({ "target": "db", "database": restored, "create": true, "from": { "storage": "store", "path": path } });
    if !from.is_empty() {
        params["from"]["database"] = from.into();
    }
    let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "{path}: {preview:?}");
    let failure = place.harness.run(RESTORE, params).await.unwrap_err();
    assert!(failure.message.contains(said) && !failure.transient, "{path}: {failure}");
    let made = "SELECT count(*) FROM pg_database WHERE datname = $$".to_owned()
        + &restored
        + "$$ OR datname ~ 'lifeboat_"
        + place.harness.run.as_str()
        + "'";
    assert_eq!(value("postgres", &made).await.unwrap(), "0", "{path}");
    assert!(place.harness.journal.notes().is_empty(), "{path}: it noted, so it was about to act");
    if from.is_empty() {
        let verify = json!({ "target": "store", "path": path });
        assert!(place.harness.run("storage.verify", verify).await.is_err(), "{path} is verified");
    }
}

#[tokio::test]
async fn plain_dumps() {
    let place = Place::new("dm_plain");
    let database = place.names.create("live", CONTENT).await;
    let plain = pg_dump(&database, &[]);
    let text = String::from_utf8(plain.clone()).unwrap();
    let whole = gzip(&plain);
    let write = |path: &str, bytes: &[u8]| std::fs::write(place.path(path), bytes).unwrap();

    write("byte.sql.gz", &whole[..whole.len() - 1]);
    refused(&place, "byte.sql.gz", "", "stops before its end").await;
    write("half.sql.gz", &whole[..whole.len() / 2]);
    refused(&place, "half.sql.gz", "", "stops before its end").await;
    let row = text.find("\n1500\t").unwrap() + 1;
    write("row.sql.gz", &gzip(&text.as_bytes()[..row]));
    refused(&place, "row.sql.gz", "", "in the rows of a COPY for auth.users").await;
    // What measures up to `psql`: the rows end properly, just too early, and nothing follows.
    write("closed.sql.gz", &gzip(format!("{}\\.\n", &text[..row]).as_bytes()));
    refused(&place, "closed.sql.gz", "", "database dump complete").await;
    let trailer = text.find("--\n-- PostgreSQL database dump complete").unwrap();
    write("trailer.sql.gz", &gzip(&text.as_bytes()[..trailer]));
    refused(&place, "trailer.sql.gz", "", "database dump complete").await;
    let mut flipped = whole.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    write("flipped.sql.gz", &flipped);
    refused(&place, "flipped.sql.gz", "", "damaged").await;
    write("twenty.sql.gz", &gzip(b""));
    assert!(std::fs::metadata(place.path("twenty.sql.gz")).unwrap().len() <= 20);
    refused(&place, "twenty.sql.gz", "", "holds nothing").await;
    write("empty.sql.gz", b"");
    refused(&place, "empty.sql.gz", "", "is empty").await;
    write("text.sql", b"<html>404 not found</html>\n");
    let restored = place.names.name("none");
    let params = json!({ "target": "db", "database": restored, "create": true, "from": { "storage": "store", "path": "text.sql" } });
    let failure = place.harness.run(RESTORE, params).await.unwrap_err();
    assert!(failure.message.contains("not a dump"), "{failure}");
    write("shell.sql", text.replace("SET statement_timeout", "\\! touch pwned\nSET statement_timeout").as_bytes());
    refused(&place, "shell.sql", "", "psql command").await;

    let packed = zstd(&plain);
    write("byte.sql.zst", &packed[..packed.len() - 1]);
    refused(&place, "byte.sql.zst", "", "stops before its end").await;

    write("other.sql", &pg_dump(&database, &["--create"]));
    refused(&place, "other.sql", "another_database", "not of `another_database`").await;
    refused(&place, "missing.sql.gz", "x", "no object `missing.sql.gz`").await;
}

#[tokio::test]
async fn no_dump_makes_psql_run_a_command() {
    let place = Place::new("dm_shell");
    let database = place.names.create("live", CONTENT).await;
    let text = String::from_utf8(pg_dump(&database, &[])).unwrap();
    let made = place.path("made");
    let touch = format!("touch {}", made.display());
    for (at, (trick, said)) in [
        ("SELECT E'a' -- c\n'\\' \\! TOUCH\n--';", "goes on with an E''"),
        ("SELECT E'''\\' ' \\! TOUCH\n--';", "inside a statement"),
        ("-- x\r\\! TOUCH\n", "carriage return"),
        ("SELECT 1$$ ' $$ \\! TOUCH\n';", "after a number"),
        ("SELECT \0'\n1; \\! TOUCH\n--';", "zero byte"),
        ("\\restrict a \\unrestrict a \\! TOUCH\n", "something else than a key"),
        // What no reader of text can see: settings that are made on the way.
        (
            "SELECT set_config('standard_' || 'conforming_strings', 'off', false);\nSELECT '\\', '\n\\! TOUCH\n';",
            "backslash commands are restricted",
        ),
        (
            "DO $$BEGIN EXECUTE 'SET client_enc' || 'oding = SJIS'; END$$;\nSELECT '\u{1}'\n'\n\\! TOUCH\n';",
            "backslash commands are restricted",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let dump = text.replacen("CREATE SCHEMA", &format!("{}\nCREATE SCHEMA", trick.replace("TOUCH", &touch)), 1);
        // A control character stands for the first half of a letter that UTF-8 doesn't know.
        let dump: Vec<u8> = dump.bytes().map(|byte| if byte == 1 { 0x81 } else { byte }).collect();
        let path = format!("{at}.sql");
        std::fs::write(place.path(&path), dump).unwrap();
        for create in [true, false] {
            let restored = place.names.name(&format!("restored{at}"));
            if !create {
                crate::support::sql("postgres", &format!("CREATE DATABASE {restored}")).await;
            }
            let params = json!({
                "target": "db", "database": restored, "create": create, "jobs": 1,
                "from": { "storage": "store", "path": path },
            });
            let failure = place.harness.run(RESTORE, params).await.unwrap_err();
            assert!(failure.message.contains(said), "{trick}: {failure}");
            assert!(!made.exists(), "{trick} ran");
            if !create {
                let none = "SELECT count(*) FROM pg_namespace WHERE nspname = 'auth'";
                assert_eq!(value(&restored, none).await.unwrap(), "0", "{trick}");
            }
        }
    }
}

#[tokio::test]
async fn archives() {
    let place = Place::new("dm_archive");
    let database = place.names.create("live", CONTENT).await;
    let archive = pg_dump(&database, &["-Fc"]);
    let write = |path: &str, bytes: &[u8]| std::fs::write(place.path(path), bytes).unwrap();
    write("byte.dump", &archive[..archive.len() - 1]);
    refused(&place, "byte.dump", "", "pg_restore ended with").await;
    write("half.dump", &archive[..archive.len() / 2]);
    refused(&place, "half.dump", "", "pg_restore ended with").await;
    write("head.dump", &archive[..40]);
    refused(&place, "head.dump", "", "pg_restore ended with").await;
    write("other.dump", &archive);
    refused(&place, "other.dump", "another_database", "not of `another_database`").await;
    write("toc.dump", &zstd(&archive)[..1000]);
    refused(&place, "toc.dump", "", "").await;
}

#[tokio::test]
async fn backups_that_are_not_what_their_manifest_says() {
    let place = Place::new("dm_manifest");
    let database = place.names.create("live", CONTENT).await;
    for path in ["a.sql", "a.dump"] {
        let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path } });
        let other = Place::new("dm_manifest_in");
        other.harness.run("postgres.backup", backup).await.unwrap();
        let copy = |name: &str| {
            std::fs::copy(other.path(path), place.path(name)).unwrap();
            let manifest = std::fs::read(other.path(&format!("{path}.manifest.json"))).unwrap();
            std::fs::write(place.path(&format!("{name}.manifest.json")), manifest).unwrap();
        };
        // One row altered, still a perfect dump of the same size.
        let name = format!("altered-{path}");
        copy(&name);
        let mut bytes = std::fs::read(place.path(&name)).unwrap();
        if path == "a.sql" {
            let at = bytes.windows(5).position(|part| part == b"u1500").unwrap();
            bytes[at] = b'v';
        } else {
            let at = bytes.len() - 30;
            bytes[at] ^= 4;
        }
        std::fs::write(place.path(&name), bytes).unwrap();
        refused(&place, &name, "", "").await;
        // A newer manifest than this version reads.
        let name = format!("newer-{path}");
        copy(&name);
        let file = place.path(&format!("{name}.manifest.json"));
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        manifest["lifeboat_manifest"] = 2.into();
        std::fs::write(&file, manifest.to_string()).unwrap();
        refused(&place, &name, "", "its format is 2").await;
        // Another backup under its name.
        let name = format!("swapped-{path}");
        copy(&name);
        std::fs::write(place.path(&name), pg_dump(&database, if path == "a.sql" { &[] } else { &["-Fc"] }))
            .unwrap();
        refused(&place, &name, "", "its manifest says").await;
        copy("wrong");
        refused(&place, "wrong", "another_database", "not of `another_database`").await;
    }
}
