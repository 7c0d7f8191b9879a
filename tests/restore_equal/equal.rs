//! What `psql` makes of a dump, and what `postgres.restore` does.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::corpus::CORPUS;
use crate::fixture::{Place, gzip, pg_dump, role, tool};
use crate::support::{postgres_url, sql, url_with, value};

pub const RESTORE: &str = "postgres.restore";

pub fn params(database: &str, path: &str, more: Value) -> Value {
    let mut params = json!({ "target": "db", "database": database, "create": true, "from": { "storage": "store", "path": path } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

/// Restores a file as an operator would.
pub fn by_psql(database: &str, file: &std::path::Path) {
    let output = Command::new(tool("psql"))
        .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
        .arg(file)
        .arg(url_with(&postgres_url(), None, database))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// All that two equal databases have in common: schema, rows, sequences, states of constraints and indexes.
pub async fn likeness(database: &str) -> Vec<String> {
    let schema = String::from_utf8(pg_dump(database, &["-s", "-E", "UTF8"])).unwrap();
    let mut all: Vec<String> =
        schema.lines().filter(|line| !line.contains("restrict ")).map(str::to_owned).collect();
    let rows = "SELECT string_agg(n || ' ' || (xpath('/row/c/text()', query_to_xml(format( \
          'SELECT count(*) || '' '' || coalesce(md5(string_agg(t::text, E''\\n'' ORDER BY t::text COLLATE \"C\")), '''') AS c FROM ONLY %s t', n), false, true, '')))[1]::text, E'\\n' ORDER BY n) \
        FROM (SELECT format('%I.%I', nspname, relname) AS n FROM pg_class c JOIN pg_namespace s ON s.oid = relnamespace \
              WHERE relkind IN ('r', 'm') AND relispopulated AND nspname NOT IN ('information_schema') AND nspname NOT LIKE 'pg\\_%') x";
    let sequences = "SELECT string_agg(s::text, E'\\n' ORDER BY s::text) FROM pg_sequences s";
    let called = "SELECT string_agg((xpath('/row/c/text()', query_to_xml(format('SELECT last_value || '' '' || is_called AS c FROM %I.%I', nspname, relname), false, true, '')))[1]::text, ' ' ORDER BY nspname, relname) \
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'S'";
    let constraints = "SELECT string_agg(format('%s %s %s %s', conrelid::regclass, conname, contype, convalidated), E'\\n' ORDER BY conrelid::regclass::text, conname) FROM pg_constraint";
    let indexes = "SELECT string_agg(format('%s %s %s %s %s', indexrelid::regclass, indisvalid, indisready, indisclustered, indisreplident), E'\\n' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indexrelid >= 16384 AND indexrelid::regclass::text NOT LIKE 'pg%toast%'";
    let large =
        "SELECT string_agg(oid || ' ' || md5(lo_get(oid)), E'\\n' ORDER BY oid) FROM pg_largeobject_metadata";
    for query in [rows, sequences, called, constraints, indexes, large] {
        all.extend(value(database, query).await.unwrap_or_default().lines().map(str::to_owned));
    }
    all
}

/// Says where two databases differ.
pub async fn assert_alike(ours: &str, theirs: &str, what: &str) {
    let (ours, theirs) = (likeness(ours).await, likeness(theirs).await);
    assert!(theirs.len() > 20, "{what}: {theirs:?}");
    if ours != theirs {
        let at = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(ours.len().min(theirs.len()));
        panic!("{what}: ours differs at line {at}: {:?}, but psql made {:?}", ours.get(at), theirs.get(at));
    }
}

/// What `psql` makes of a dump in a new database of that name. It goes where it is told to, whatever the dump would
/// create.
async fn made_by_psql(place: &Place, name: &str, dump: &str) -> String {
    let own: String = dump
        .lines()
        .filter(|line| !line.starts_with("CREATE DATABASE") && !line.starts_with("ALTER DATABASE"))
        .filter(|line| {
            (!line.starts_with("\\connect ") || line.ends_with("';")) && !line.starts_with("DROP DATABASE")
        })
        .fold(String::new(), |all, line| all + line + "\n");
    let file = place.path("own.sql");
    std::fs::write(&file, own).unwrap();
    let theirs = place.names.name(&format!("{name}_psql"));
    sql("postgres", &format!("CREATE DATABASE {theirs} TEMPLATE template0")).await;
    by_psql(&theirs, &file);
    theirs
}

/// Dumps each database of the corpus with `arguments`, and restores it both ways.
async fn all_alike(half: usize, arguments: &[&str], more: Value, may_be_parallel: bool) {
    let place = Place::new("re_alike");
    for (name, content, parallel) in CORPUS.iter().skip(half).step_by(2) {
        let live = place.names.create(&format!("{name}_live"), content).await;
        let dump = pg_dump(&live, arguments);
        let path = format!("{name}.sql.gz");
        std::fs::write(place.path(&path), gzip(&dump)).unwrap();
        // What is dropped first isn't there, which psql doesn't forgive.
        let text = if arguments == ["--clean"] { pg_dump(&live, &[]) } else { dump };
        let theirs = made_by_psql(&place, name, &String::from_utf8(text).unwrap()).await;
        let ours = place.names.name(&format!("{name}_ours"));
        let before = place.harness.journal.notes().len();
        let done = place.harness.run(RESTORE, params(&ours, &path, more.clone())).await;
        let done = done.unwrap_or_else(|failure| panic!("{name} {arguments:?}: {failure}"));
        assert_alike(&ours, &theirs, &format!("{name} {arguments:?}")).await;
        let notes = place.harness.journal.notes();
        let begun = notes[before..].iter().any(|(_, note)| note["side_by_side"] == true);
        // Without rows there is no INSERT, either.
        let expected = *parallel && (may_be_parallel || *name == "bare");
        assert_eq!(begun, expected, "{name} {arguments:?}");
        assert!(done.outputs["tables"].as_u64().unwrap() > 0, "{name}");
        for database in [live, theirs, ours] {
            sql("postgres", &format!("DROP DATABASE {database}")).await;
        }
    }
}

/// Restores archives of each database of the corpus over several connections; what must keep its order, or keeps
/// itself from going on, over one then.
async fn archives_alike(half: usize) {
    let place = Place::new("re_archive");
    for (name, content, _) in CORPUS.iter().skip(half).step_by(2) {
        let live = place.names.create(&format!("{name}_live"), content).await;
        let theirs = made_by_psql(&place, name, &String::from_utf8(pg_dump(&live, &[])).unwrap()).await;
        std::fs::write(place.path(&format!("{name}.dump")), pg_dump(&live, &["-Fc"])).unwrap();
        pg_dump(&live, &["-Fd", "-j2", "-f", place.path(&format!("{name}.folder")).to_str().unwrap()]);
        for form in ["dump", "folder"] {
            let ours = place.names.name(&format!("{name}_{form}"));
            let params = params(&ours, &format!("{name}.{form}"), json!({}));
            let done = place.harness.run(RESTORE, params).await;
            done.unwrap_or_else(|failure| panic!("{name}.{form}: {failure}"));
            assert_alike(&ours, &theirs, &format!("{name}.{form}")).await;
            sql("postgres", &format!("DROP DATABASE {ours}")).await;
        }
        for database in [live, theirs] {
            sql("postgres", &format!("DROP DATABASE {database}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_over_two_connections() {
    archives_alike(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_over_two_connections_too() {
    archives_alike(1).await;
}

/// Gives tables, views, functions and schemas of a database to a role, and privileges on them.
const GIVE_AWAY: &str = "DO $$ DECLARE s text; BEGIN FOR s IN \
      SELECT format('ALTER SCHEMA %I OWNER TO ROLE', nspname) FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_' \
      UNION ALL SELECT format('ALTER TABLE %s OWNER TO ROLE', c.oid::regclass) FROM pg_class c WHERE c.oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm') \
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') AND c.relnamespace <> 'pg_toast'::regnamespace \
      UNION ALL SELECT format('GRANT ALL ON %s TO ROLE, PUBLIC', c.oid::regclass) FROM pg_class c WHERE c.oid >= 16384 AND relkind IN ('r', 'p', 'v') \
      UNION ALL SELECT format('ALTER ROUTINE %s OWNER TO ROLE', p.oid::regprocedure) FROM pg_proc p WHERE p.oid >= 16384 AND prokind = 'f' \
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype IN ('e', 'i')) \
    LOOP EXECUTE s; END LOOP; END $$";

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_privileges_left_out_over_several_connections() {
    let place = Place::new("re_owner");
    let role = role("re_owner").await;
    for (name, content, _) in CORPUS.iter().filter(|(name, ..)| ["auth", "films", "parts", "names"].contains(name))
    {
        let live = place.names.create(&format!("{name}_live"), content).await;
        sql(&live, &GIVE_AWAY.replace("ROLE", &role)).await;
        let dump = pg_dump(&live, &[]);
        assert!(String::from_utf8_lossy(&dump).matches(&format!("OWNER TO {role}")).count() > 3, "{name}");
        std::fs::write(place.path("a.sql"), dump).unwrap();
        let bare = String::from_utf8(pg_dump(&live, &["--no-owner", "--no-acl"])).unwrap();
        let theirs = made_by_psql(&place, name, &bare).await;
        sql(&live, &format!("DROP OWNED BY {role} CASCADE")).await;
        let ours = place.names.name(&format!("{name}_ours"));
        let params = params(&ours, "a.sql", json!({ "jobs": 3, "owner": "none" }));
        place.harness.run(RESTORE, params).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(place.harness.journal.notes().last().unwrap().1["side_by_side"], true, "{name}");
        assert_alike(&ours, &theirs, name).await;
    }
    sql("postgres", &format!("DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_in_another_encoding() {
    let place = Place::new("re_latin");
    let content = "CREATE SCHEMA est; CREATE TABLE est.sizes (a int PRIMARY KEY, \"ß\" text DEFAULT 'ÿ'); \
         INSERT INTO est.sizes SELECT g, 'é' || chr(160 + g % 90) || E'\\\\ \\t' FROM generate_series(1, 500) g; \
         COMMENT ON TABLE est.sizes IS 'l''été'; CREATE VIEW v AS SELECT \"ß\" || 'ü' AS w FROM est.sizes; \
         CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $é$SELECT 'é; $$'$é$; \
         CREATE TABLE été (\"größe\" int); INSERT INTO été VALUES (1), (2); \
         CREATE TABLE est.\"Ünder\" (a int); INSERT INTO est.\"Ünder\" VALUES (3);";
    let latin = place.names.name("latin");
    sql("postgres", &format!("CREATE DATABASE {latin} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")).await;
    sql(&latin, content).await;
    let utf8 = place.names.create("utf8", content).await;
    let dumps: [(&String, &[&str]); 3] = [(&latin, &[]), (&utf8, &["-E", "LATIN1"]), (&latin, &["-E", "UTF8"])];
    for (at, (live, arguments)) in dumps.into_iter().enumerate() {
        let dump = pg_dump(live, arguments);
        assert_eq!(String::from_utf8(dump.clone()).is_ok(), at == 2);
        std::fs::write(place.path("a.sql"), dump).unwrap();
        let theirs = place.names.name(&format!("theirs{at}"));
        sql("postgres", &format!("CREATE DATABASE {theirs} TEMPLATE template0")).await;
        by_psql(&theirs, &place.path("a.sql"));
        let ours = place.names.name(&format!("ours{at}"));
        let done = place.harness.run(RESTORE, params(&ours, "a.sql", json!({}))).await;
        done.unwrap_or_else(|failure| panic!("{arguments:?}: {failure}"));
        assert_alike(&ours, &theirs, &format!("{arguments:?}")).await;
        assert_eq!(value(&ours, "SELECT count(*) FROM v").await.unwrap(), "500");
    }
}

// The corpus in halves: a slow machine takes a while for each.
macro_rules! alike {
    ($($name:ident, $other:ident: $arguments:expr, $more:expr, $parallel:expr;)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            all_alike(0, $arguments, $more, $parallel).await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn $other() {
            all_alike(1, $arguments, $more, $parallel).await;
        }
    )* };
}

alike! {
    over_two_connections, over_two_connections_too: &[], json!({ "jobs": 2 }), true;
    over_five_connections, over_five_connections_too: &["--create", "--no-comments"], json!({ "jobs": 5 }), true;
    cleaning_up_first, cleaning_up_first_too: &["--clean", "--if-exists", "--no-owner", "--no-acl"], json!({}), true;
    cleaning_up_blindly, cleaning_up_blindly_too: &["--clean"], json!({}), true;
    by_inserts, by_inserts_too: &["--rows-per-insert=100"], json!({}), false;
}
