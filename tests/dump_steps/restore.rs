//! `postgres.restore` of dumps that are whole.

use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::fixture::{CONTENT, Place, ROWS, TABLES, gzip, likeness, pg_dump, role, tool, zstd};
use crate::support::{postgres_url, sql, until, url_with, value};

pub const RESTORE: &str = "postgres.restore";

pub fn params(database: &str, path: &str, more: Value) -> Value {
    let mut params = json!({ "target": "db", "database": database, "from": { "storage": "store", "path": path } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

async fn exists(database: &str) -> bool {
    value("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{database}'")).await.is_some()
}

/// No database of this run is left under its working name.
async fn nothing_left(place: &Place) -> bool {
    let sql =
        format!("SELECT 1 FROM pg_database WHERE starts_with(datname::text, 'lifeboat_{}')", place.harness.run);
    value("postgres", &sql).await.is_none()
}

#[tokio::test]
async fn dumps_by_other_tools_restore_the_same() {
    let place = Place::new("rs_formats");
    let database = place.names.create("live", CONTENT).await;
    let before = likeness(&database);
    let plain = pg_dump(&database, &[]);
    std::fs::write(place.path("a_20240201_100000.sql.gz"), gzip(&plain)).unwrap();
    // Two members, as pigz and `cat` make them.
    std::fs::write(
        place.path("b.sql.gz"),
        [gzip(&plain[..plain.len() / 2]), gzip(&plain[plain.len() / 2..])].concat(),
    )
    .unwrap();
    std::fs::write(place.path("c.sql.zst"), zstd(&plain)).unwrap();
    std::fs::write(place.path("d.sql"), pg_dump(&database, &["--create"])).unwrap();
    std::fs::write(place.path("e.sql"), pg_dump(&database, &["--inserts"])).unwrap();
    std::fs::write(place.path("f.dump"), pg_dump(&database, &["-Fc"])).unwrap();
    std::fs::write(place.path("g.dump.zst"), zstd(&pg_dump(&database, &["-Fc", "-Z0"]))).unwrap();
    let folder = Command::new(tool("pg_dump"))
        .args(["-Fd", "-j2", "-f"])
        .arg(place.path("h"))
        .arg(url_with(&postgres_url(), None, &database))
        .status();
    assert!(folder.unwrap().success());
    for (at, (path, jobs)) in [
        ("a_20240201_100000.sql.gz", None),
        ("b.sql.gz", None),
        ("c.sql.zst", None),
        ("d.sql", None),
        ("e.sql", None),
        ("f.dump", None),
        ("f.dump", Some(1)),
        ("g.dump.zst", None),
        ("g.dump.zst", Some(2)),
        ("h", Some(2)),
    ]
    .into_iter()
    .enumerate()
    {
        let restored = place.names.name(&format!("r{at}"));
        let params = params(&restored, path, json!({ "create": true, "jobs": jobs.unwrap_or(1) }));
        if at == 0 {
            let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
            assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
            assert_eq!(preview.outputs["rows"], ROWS);
        }
        let done = place.harness.run(RESTORE, params).await.unwrap_or_else(|failure| panic!("{path}: {failure}"));
        assert_eq!(likeness(&restored), before, "{path}");
        assert_eq!(done.outputs["tables"], TABLES, "{path}");
        if at == 0 {
            assert_eq!(done.outputs["taken_at"], "2024-02-01T10:00:00Z");
        }
        if path != "e.sql" {
            assert_eq!(done.outputs["rows"], ROWS, "{path}");
        }
    }
    assert!(nothing_left(&place).await);
}

#[tokio::test]
async fn owners_come_back_or_are_left_out_and_missing_roles_are_said_first() {
    let place = Place::new("rs_owner");
    let owner = role("owner").await;
    let database = place
        .names
        .create(
            "live",
            &format!("{CONTENT} ALTER TABLE auth.users OWNER TO {owner}; GRANT SELECT ON auth.orders TO {owner}; GRANT USAGE ON SCHEMA auth TO {owner}"),
        )
        .await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&database, &[]))).unwrap();
    std::fs::write(place.path("a.dump"), pg_dump(&database, &["-Fc"])).unwrap();
    let owned = "SELECT tableowner FROM pg_tables WHERE tablename = 'users'";
    for path in ["a.sql.gz", "a.dump"] {
        let restored = place.names.name(&format!("keep_{}", path.len()));
        place.harness.run(RESTORE, params(&restored, path, json!({ "create": true }))).await.unwrap();
        assert_eq!(value(&restored, owned).await.unwrap(), owner);
        sql(&restored, &format!("DROP OWNED BY {owner} CASCADE")).await;
    }
    sql(&database, &format!("DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}")).await;
    for path in ["a.sql.gz", "a.dump"] {
        let restored = place.names.name(&format!("none_{}", path.len()));
        let keep = params(&restored, path, json!({ "create": true }));
        let preview = place.harness.preview(RESTORE, keep.clone(), &World::default()).await;
        assert!(preview.action == Action::Blocked && preview.problems[0].message.contains(&owner), "{preview:?}");
        let failure = place.harness.run(RESTORE, keep).await.unwrap_err();
        assert!(failure.message.contains(&owner) && failure.help.unwrap().contains("owner: none"));
        assert!(!exists(&restored).await && nothing_left(&place).await);
        let done = place
            .harness
            .run(RESTORE, params(&restored, path, json!({ "create": true, "owner": "none" })))
            .await
            .unwrap();
        assert_eq!(done.outputs["rows"], ROWS);
        assert_eq!(value(&restored, owned).await.unwrap(), "postgres");
    }
}

#[tokio::test]
async fn parts_of_archives() {
    let place = Place::new("rs_parts");
    let database = place.names.create("live", CONTENT).await;
    std::fs::write(place.path("a.dump"), pg_dump(&database, &["-Fc"])).unwrap();
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    let restored = place.names.name("tables");
    let only = json!({ "create": true, "tables": ["auth.users", r#"auth."we""ird.t""#] });
    let done = place.harness.run(RESTORE, params(&restored, "a.dump", only.clone())).await.unwrap();
    assert_eq!((&done.outputs["rows"], &done.outputs["tables"]), (&json!(3002), &json!(2)));
    let other = place.names.name("other");
    for (path, more, said) in [
        ("a.sql", only, "it calls functions"),
        ("a.dump", json!({ "create": true, "tables": ["auth.nobody"] }), "no rows of auth.nobody"),
        ("a.dump", json!({ "create": true, "tables": ["auth.users", "public.empty_one"] }), "of one schema only"),
        ("a.dump", json!({ "create": true, "schemas": ["elsewhere"] }), "no rows of elsewhere"),
    ] {
        let failure = place.harness.run(RESTORE, params(&other, path, more)).await.unwrap_err();
        assert!(failure.message.contains(said), "{failure}");
        assert!(!exists(&other).await);
    }
}

#[tokio::test]
async fn what_policies_and_extensions_need_is_said_first() {
    let place = Place::new("rs_needs");
    let (reader, mapped) = (role("rs_reader").await, role("rs_mapped").await);
    let content = format!(
        "CREATE TABLE t (a int); ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t TO {reader} USING (a > 0); \
         CREATE EXTENSION citext; CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw; \
         CREATE USER MAPPING FOR {mapped} SERVER s;"
    );
    let database = place.names.create("live", &content).await;
    let dump = String::from_utf8(pg_dump(&database, &[])).unwrap();
    std::fs::write(place.path("a.sql"), &dump).unwrap();
    std::fs::write(place.path("a.dump"), pg_dump(&database, &["-Fc"])).unwrap();
    std::fs::write(
        place.path("e.sql"),
        dump.replace("EXTENSION IF NOT EXISTS citext", "EXTENSION IF NOT EXISTS no_such"),
    )
    .unwrap();
    sql(&database, &format!("DROP TABLE t; DROP SERVER s CASCADE; DROP ROLE {mapped}")).await;
    let refused = async |path: &str, said: &[&str], help: &str| {
        let restored = place.names.name("restored");
        let params = params(&restored, path, json!({ "create": true, "owner": "none" }));
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        let told: String = preview.problems.iter().map(|problem| problem.message.as_str()).collect();
        let failure = place.harness.run(RESTORE, params).await.unwrap_err();
        assert_eq!(preview.action, Action::Blocked, "{path}: {preview:?}");
        for said in said {
            assert!(told.contains(said) && failure.message.contains(said), "{path}: {said}: {told}; {failure}");
        }
        assert!(failure.help.unwrap().ends_with(help), "{path}");
        assert!(!exists(&restored).await && nothing_left(&place).await && place.harness.journal.notes().is_empty());
    };
    refused("e.sql", &[mapped.as_str()], "(postgres.restore_globals)").await;
    sql("postgres", &format!("CREATE ROLE {mapped}; DROP ROLE {reader}")).await;
    for path in ["a.sql", "a.dump"] {
        refused(path, &[reader.as_str()], "(postgres.restore_globals)").await;
    }
    sql("postgres", &format!("CREATE ROLE {reader}")).await;
    refused("e.sql", &["needs extensions", "no_such"], "on the server's host").await;
    let restored = place.names.name("restored");
    place
        .harness
        .run(RESTORE, params(&restored, "a.sql", json!({ "create": true, "owner": "none" })))
        .await
        .unwrap();
    for database in [&database, &restored] {
        sql(database, &format!("DROP OWNED BY {reader}, {mapped}")).await;
    }
    sql("postgres", &format!("DROP ROLE {reader}, {mapped}")).await;
}

#[tokio::test]
async fn what_an_interrupted_drop_left_is_dropped_and_filled_anew() {
    let place = Place::new("rs_invalid");
    let database = place.names.create("live", CONTENT).await;
    for (at, content) in [&[] as &[&str], &["--no-blobs"]].into_iter().enumerate() {
        let place = Place::new("rs_invalid_in");
        std::fs::write(place.path("a.sql"), pg_dump(&database, content)).unwrap();
        let restored = place.names.name(&format!("restored{at}"));
        let params = params(&restored, "a.sql", json!({ "create": true }));
        place.harness.run_and_kill_at_note(RESTORE, params.clone(), 2).await;
        let invalid = format!(
            "UPDATE pg_database SET datconnlimit = -2 WHERE starts_with(datname::text, 'lifeboat_{}')",
            place.harness.run
        );
        sql("postgres", &invalid).await;
        assert!(!nothing_left(&place).await);
        place.harness.run(RESTORE, params).await.unwrap();
        assert!(nothing_left(&place).await);
    }
}

#[tokio::test]
async fn an_empty_database_is_filled_in_one_transaction_and_any_other_is_left_alone() {
    let place = Place::new("rs_empty");
    let database = place.names.create("live", CONTENT).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    std::fs::write(place.path("a.dump"), pg_dump(&database, &["-Fc"])).unwrap();
    for path in ["a.sql", "a.dump"] {
        let empty = place.names.create(&format!("empty{}", path.len()), "").await;
        let params = params(&empty, path, json!({}));
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Observed), "{preview:?}");
        let done = place.harness.run(RESTORE, params.clone()).await.unwrap();
        assert_eq!(done.outputs["rows"], ROWS);
        assert_eq!(place.harness.after_kill(RESTORE, params.clone()).await, AfterKill::Happened(done));
        assert_eq!(not_frozen(&empty).await, 0, "{path}");
        let fresh = Place::new("rs_again");
        std::fs::copy(place.path(path), fresh.path(path)).unwrap();
        let preview = fresh.harness.preview(RESTORE, params.clone(), &World::default()).await;
        assert!(
            preview.action == Action::Blocked && preview.problems[0].message.contains("not empty"),
            "{preview:?}"
        );
        let failure = fresh.harness.run(RESTORE, params).await.unwrap_err();
        assert!(failure.message.contains("not empty"), "{failure}");
    }
    let failure =
        place.harness.run(RESTORE, params(&database, "a.sql", json!({ "create": true }))).await.unwrap_err();
    assert!(failure.message.contains("exists"), "{failure}");
}

/// How many pages of tables hold rows that a VACUUM would have to freeze.
async fn not_frozen(database: &str) -> i64 {
    sql(database, "CREATE EXTENSION pg_visibility").await;
    let pages = "SELECT sum(pg_relation_size(c.oid) / 8192 - (pg_visibility_map_summary(c.oid)).all_frozen)::text \
                   FROM pg_class c WHERE relkind = 'r' AND c.oid >= 16384 AND relpages > 0";
    value(database, pages).await.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_kill_at_any_note_ends_in_one_whole_database() {
    let place = Place::new("rs_kill");
    let database = place.names.create("live", CONTENT).await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&database, &[]))).unwrap();
    for notes in 1..=2 {
        let place = Place::new("rs_kill_in");
        std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&database, &[]))).unwrap();
        let restored = place.names.name("new");
        let params = params(&restored, "a.sql.gz", json!({ "create": true }));
        place.harness.run_and_kill_at_note(RESTORE, params.clone(), notes).await;
        assert!(!exists(&restored).await, "nothing bears the name before it is whole");
        let after = place.harness.after_kill(RESTORE, params.clone()).await;
        match notes {
            1 => assert!(matches!(after, AfterKill::DidNotHappen { .. }), "{after:?}"),
            _ => assert!(matches!(after, AfterKill::Partly { .. }), "{after:?}"),
        }
        let done = place.harness.run(RESTORE, params.clone()).await.unwrap();
        assert_eq!(done.outputs["rows"], ROWS);
        assert!(nothing_left(&place).await);
        assert_eq!(place.harness.after_kill(RESTORE, params.clone()).await, AfterKill::Happened(done.clone()));
        assert_eq!(place.harness.run(RESTORE, params).await.unwrap().outputs, done.outputs, "it is not done twice");
    }

    // Killed after the one transaction that filled an empty database, before the rows were counted.
    let empty = place.names.create("empty", "").await;
    let params = params(&empty, "a.sql.gz", json!({}));
    place.harness.run_and_kill_at_note(RESTORE, params.clone(), 2).await;
    let forgotten: Vec<_> = place.harness.journal.notes();
    assert_eq!(forgotten.len(), 2);
    let done = place.harness.run(RESTORE, params).await.unwrap();
    assert_eq!(done.outputs["rows"], ROWS);
}

#[tokio::test]
async fn an_error_in_the_dump_is_told_with_its_line_and_leaves_nothing() {
    let place = Place::new("rs_error");
    let database = place.names.create("live", CONTENT).await;
    let dump = String::from_utf8(pg_dump(&database, &[])).unwrap();
    let broken = dump.replace("ALTER TABLE ONLY auth.users\n", "ALTER TABLE ONLY auth.nobody\n");
    let line = broken.lines().position(|line| line == "ALTER TABLE ONLY auth.nobody").unwrap() + 1;
    std::fs::write(place.path("a.sql.gz"), gzip(broken.as_bytes())).unwrap();
    let restored = place.names.name("new");
    let failure = place
        .harness
        .run(RESTORE, params(&restored, "a.sql.gz", json!({ "create": true, "owner": "none" })))
        .await
        .unwrap_err();
    assert!(failure.message.contains("\"auth.nobody\" does not exist") && !failure.transient, "{failure}");
    assert!(
        (line..line + 3).any(|line| failure.message.contains(&format!("line {line}:"))),
        "line {line}: {failure}"
    );
    assert!(!exists(&restored).await && nothing_left(&place).await);
    let empty = place.names.create("empty", "").await;
    place.harness.run(RESTORE, params(&empty, "a.sql.gz", json!({}))).await.unwrap_err();
    assert_eq!(value(&empty, "SELECT count(*) FROM pg_namespace WHERE nspname = 'auth'").await.unwrap(), "0");

    // Rows that a trigger of the dump's own swallows are missed.
    let swallowed = dump.replace(
        "COPY auth.users ",
        "CREATE FUNCTION public.eat() RETURNS trigger LANGUAGE plpgsql AS $$begin if new.id = 7 then return null; end if; return new; end$$;\n\
         CREATE TRIGGER eat BEFORE INSERT ON auth.users FOR EACH ROW EXECUTE FUNCTION public.eat();\nCOPY auth.users ",
    );
    std::fs::write(place.path("b.sql"), swallowed).unwrap();
    let failure =
        place.harness.run(RESTORE, params(&restored, "b.sql", json!({ "create": true }))).await.unwrap_err();
    assert!(
        failure.message.contains("auth.users has 2999 rows instead of 3000")
            || failure.message.contains("violates foreign key"),
        "{failure}"
    );
    assert!(!exists(&restored).await && nothing_left(&place).await);
}

/// Small tables are made over more connections than there are processors, where neither the plan nor the role says how
/// many.
#[tokio::test]
async fn many_small_tables_take_further_connections_where_these_are_to_spare() {
    let mut place = Place::new("rs_limit");
    let tables =
        (0..300).map(|n| format!("CREATE TABLE t{n} (a int PRIMARY KEY, b text); INSERT INTO t{n} VALUES (1);"));
    let database = place.names.create("live", &tables.collect::<String>()).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &["--no-owner"])).unwrap();
    let jobs = std::thread::available_parallelism().unwrap().get().clamp(2, 8);
    let role = role("few").await;
    // Those that load, those before that take a moment to be gone, one that leads them, one that made the database.
    let may = format!("ALTER ROLE {role} LOGIN PASSWORD 'pw' CREATEDB CONNECTION LIMIT {}", 2 * jobs + 2);
    sql("postgres", &may).await;
    let mut taken = vec![];
    for (name, more) in [("spare", json!({})), ("said", json!({ "jobs": jobs })), ("few", json!({}))] {
        place.another_run(None);
        let limited = (name == "few").then(|| place.harness_of(&role, "pw"));
        let restored = place.names.name(name);
        let mut params = params(&restored, "a.sql", json!({ "create": true }));
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let done = limited.as_ref().unwrap_or(&place.harness).run(RESTORE, params).await.unwrap();
        assert_eq!(done.outputs["rows"], 300);
        // The statistics of a session come with its end.
        let all_ended = format!("SELECT count(*)::text FROM pg_stat_activity WHERE datname = '{restored}'");
        until("all have ended", || async { value("postgres", &all_ended).await.unwrap() == "0" }).await;
        let sessions = format!("SELECT sessions::text FROM pg_stat_database WHERE datname = '{restored}'");
        taken.push(value("postgres", &sessions).await.unwrap().parse::<usize>().unwrap());
        let keys = "SELECT count(*)::text FROM pg_constraint WHERE contype = 'p' AND conrelid >= 16384";
        assert_eq!(value(&restored, keys).await.unwrap(), "300");
    }
    // For tables, and for their keys.
    assert_eq!([taken[1] + 2 * jobs, taken[2]], [taken[0], taken[1]], "{taken:?}");
    let restored = place.names.name("few");
    sql(&restored, &format!("REASSIGN OWNED BY {role} TO CURRENT_USER; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn cancelling_ends_the_load_on_the_server_too() {
    let place = Place::new("rs_cancel");
    let database = place.names.create("live", CONTENT).await;
    let dump = String::from_utf8(pg_dump(&database, &[])).unwrap();
    let slow =
        dump.replace("ALTER TABLE ONLY auth.users\n", "SELECT pg_sleep(120);\nALTER TABLE ONLY auth.users\n");
    std::fs::write(place.path("a.sql"), slow).unwrap();
    let restored = place.names.name("new");
    let step = place.harness.step(RESTORE, params(&restored, "a.sql", json!({ "create": true })));
    let cx = place.harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await });
    let asleep = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_sleep.120' AND datname = 'lifeboat_{}_the-step' AND pid <> pg_backend_pid()",
        place.harness.run
    );
    until("it sleeps", || async { value("postgres", &asleep).await.unwrap() != "0" }).await;
    let started = Instant::now();
    place.harness.cancel.cancel();
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.transient && started.elapsed() < Duration::from_secs(20), "{failure}");
    assert_eq!(value("postgres", &asleep).await.unwrap(), "0");
    assert!(!exists(&restored).await && nothing_left(&place).await);
}
