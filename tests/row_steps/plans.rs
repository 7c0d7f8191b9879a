//! The project's plans that look after rows, by the program itself on a real database.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use lifeboat::step::world::World;
use serde_json::{Value, json};

use crate::support::{Databases, Harness, postgres, postgres_url, sql, value};

/// The auth service's database, without the role that only its sandbox has.
fn seed() -> String {
    let seed = include_str!("../../src/sandbox/seed.sql")
        .replace(":users", "200")
        .replace(":client", "('c', 's'::bytea)")
        .replace(":public_key", "'public-4'")
        .replace(":private_key", "'private-4'");
    seed.lines().filter(|line| !line.starts_with("GRANT")).collect::<Vec<_>>().join("\n")
}

/// The project's plans in a folder of the test's own, with an environment for them.
struct Desk {
    folder: tempfile::TempDir,
    names: Databases,
    database: String,
}

impl Desk {
    async fn new(test: &str, vars: Value) -> Self {
        let (folder, names) = (tempfile::tempdir().unwrap(), Databases::new(test));
        let database = names.create("auth", &seed()).await;
        std::fs::create_dir_all(folder.path().join("plans/environments")).unwrap();
        for plan in ["verify-integrity", "emergency-cleanup", "jwks-backup"] {
            let file = format!("plans/{plan}.yaml");
            std::fs::copy(&file, folder.path().join(&file)).unwrap();
        }
        let mut all = json!({ "database": database });
        all.as_object_mut().unwrap().extend(vars.as_object().unwrap().clone());
        let environment = json!({
            "lifeboat": 1, "environment": "test", "vars": all, "inputs": { "database": all["database"] },
            "targets": {
                "db": { "postgres": { "url": "{{ env.TEST_DATABASE }}" } },
                "backups": { "storage": { "scheme": "fs", "root": folder.path().join("store") } },
            },
        });
        std::fs::write(folder.path().join("plans/environments/test.yaml"), environment.to_string()).unwrap();
        Self { folder, names, database }
    }

    fn run(&self, plan: &str, more: &[&str]) -> Output {
        let plan = format!("plans/{plan}.yaml");
        self.command(&[&["run", &plan, "--env", "test", "--yes"], more].concat()).output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(args).env("TEST_DATABASE", postgres_url());
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .env_remove("LIFEBOAT_STATE")
            .env("NO_COLOR", "1");
        command
    }

    async fn count(&self, table: &str) -> u32 {
        value(&self.database, &format!("SELECT count(*) FROM {table}")).await.unwrap().parse().unwrap()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether any file below a folder holds a text.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            holds(&path, text)
        } else {
            String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains(text)
        }
    })
}

#[tokio::test]
async fn integrity_is_verified_and_damage_is_named() {
    let desk = Desk::new("plan_verify", json!({})).await;
    let output = desk.run("verify-integrity", &[]);
    assert!(output.status.success(), "{}", said(&output));
    let output = desk.run("verify-integrity", &["-i", "min_users=201"]);
    assert!(!output.status.success() && said(&output).contains("total_users"), "{}", said(&output));
    // A row whose owner is gone, though the foreign key says that this can't be.
    sql(&desk.database, "SET session_replication_role = replica; DELETE FROM auth.users WHERE id = 'user_0000003'")
        .await;
    let output = desk.run("verify-integrity", &[]);
    let text = said(&output);
    assert!(
        !output.status.success() && text.contains("orphaned_sessions") && text.contains("orphaned_balances"),
        "{text}"
    );
    sql(&desk.database, "DELETE FROM auth.jwks").await;
    assert!(said(&desk.run("verify-integrity", &[])).contains("signing_keys"));
}

#[tokio::test]
async fn what_has_expired_goes_in_batches_and_no_more_than_allowed() {
    let desk = Desk::new("plan_cleanup", json!({ "batch": 30, "most": 150 })).await;
    let expire = "UPDATE auth.sessions SET created_at = now() - interval '2 days', expires_at = now() - interval '1 day' WHERE id <= 100;
        UPDATE auth.verification_tokens SET expires_at = now() - interval '1 minute' WHERE identifier LIKE 'user1%'";
    sql(&desk.database, expire).await;
    let (sessions, tokens) = (desk.count("auth.sessions").await, desk.count("auth.verification_tokens").await);
    let expired_tokens = desk.count("auth.verification_tokens WHERE expires_at < now()").await;
    assert!(expired_tokens > 0 && expired_tokens < tokens);
    let dry = desk.run("emergency-cleanup", &["--dry-run"]);
    assert!(dry.status.success() && said(&dry).contains("100"), "{}", said(&dry));
    assert_eq!(desk.count("auth.sessions").await, sessions, "a dry run deletes nothing");
    let output = desk.run("emergency-cleanup", &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(desk.count("auth.sessions").await, sessions - 100);
    assert_eq!(desk.count("auth.verification_tokens").await, tokens - expired_tokens);
    assert!(desk.run("emergency-cleanup", &[]).status.success(), "with nothing to do, too");

    sql(&desk.database, "UPDATE auth.sessions SET created_at = now() - interval '2 days', expires_at = now() - interval '1 day' WHERE id <= 251").await;
    let output = desk.run("emergency-cleanup", &[]);
    assert!(!output.status.success() && said(&output).contains("151"), "{}", said(&output));
    assert_eq!(desk.count("auth.sessions").await, sessions - 100, "more than allowed: nothing is deleted");
}

#[tokio::test]
async fn a_cleanup_that_was_killed_goes_on_with_its_own_cut_off() {
    let desk = Desk::new("plan_killed", json!({ "batch": 10, "most": 50 })).await;
    sql(&desk.database, "UPDATE auth.sessions SET created_at = now() - interval '2 days', expires_at = now() - interval '1 day' WHERE id <= 45").await;
    let sessions = desk.count("auth.sessions").await;
    // The third batch waits for a lock: there it is killed.
    let holder = crate::support::connect(&desk.database).await;
    holder.batch_execute("CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF OLD.id = 21 THEN PERFORM pg_advisory_xact_lock_shared(7); END IF; RETURN OLD; END';
        CREATE TRIGGER wait BEFORE DELETE ON auth.sessions FOR EACH ROW EXECUTE FUNCTION wait(); SELECT pg_advisory_lock(7)").await.unwrap();
    let mut command = desk.command(&["run", "plans/emergency-cleanup.yaml", "--env", "test", "--yes"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let waiting =
        format!("SELECT 1 FROM pg_stat_activity WHERE datname = '{}' AND wait_event = 'advisory'", desk.database);
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while value("postgres", &waiting).await.is_none() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its third batch");
        assert!(std::time::Instant::now() < end, "the third batch never waited");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(desk.count("auth.sessions").await, sessions - 20, "two batches are done");
    // What expires between the run's start and its resumption stays.
    sql(
        &desk.database,
        "UPDATE auth.sessions SET expires_at = now(), created_at = now() - interval '1 day' WHERE id = 46",
    )
    .await;
    holder.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    let output = desk.command(&["resume", "--yes"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(desk.count("auth.sessions").await, sessions - 45);
    assert_eq!(desk.count("auth.sessions WHERE id = 46").await, 1);
}

#[tokio::test]
async fn keys_are_kept_and_come_back() {
    let desk = Desk::new("plan_jwks", json!({})).await;
    let output = desk.run("jwks-backup", &[]);
    assert!(output.status.success(), "{}", said(&output));
    let store = desk.folder.path().join("store");
    let mut files: Vec<_> = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let [file, _manifest] = files.as_slice() else { panic!("{files:?}") };
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let half = r#""d":"#;
    assert!(holds(&store, r#"""d"":"#), "the private halves are in it");
    assert!(
        !said(&output).contains(half) && !holds(&desk.folder.path().join(".lifeboat"), "\"\"d\"\""),
        "and nowhere else"
    );

    let all = "SELECT string_agg(j::text, ',' ORDER BY id) FROM auth.jwks j";
    let before = value(&desk.database, all).await;
    sql(&desk.database, "DELETE FROM auth.jwks").await;
    let settings = [("root".to_owned(), store.to_str().unwrap().to_owned())].into();
    let storage = lifeboat::service::Target::Storage(lifeboat::service::StorageSettings {
        scheme: "fs".to_owned(),
        settings,
    });
    let harness = Harness::with([("db", postgres(&postgres_url())), ("store", storage)]);
    let import = json!({
        "target": "db", "database": desk.database, "table": "auth.jwks", "mode": "merge",
        "from": { "storage": "store", "path": file.file_name().unwrap().to_str().unwrap() },
    });
    let preview = harness.preview("postgres.import", import.clone(), &World::default()).await;
    assert!(preview.problems.is_empty(), "{preview:?}");
    harness.run("postgres.import", import).await.unwrap();
    assert_eq!(value(&desk.database, all).await, before);

    sql(&desk.database, "DELETE FROM auth.jwks").await;
    let output = desk.run("jwks-backup", &[]);
    assert!(!output.status.success(), "without keys there is nothing to back up: {}", said(&output));
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 2);
    drop(desk.names);
}
