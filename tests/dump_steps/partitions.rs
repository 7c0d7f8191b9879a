//! Backups of partitioned tables: whose rows are whose, and what a table's name stands for.

use lifeboat::step::Action;
use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use serde_json::{Value, json};

use crate::fixture::{Place, backup, likeness, pg_dump};
use crate::support::{sql, value};

const RESTORE: &str = "postgres.restore";
const ROWS: &str = "postgres.verify_rows";
const COUNTS: &str = "postgres.verify_counts";

/// Of a hash partition by an enum `pg_dump` writes the rows for the table at the top: an enum's hash is another one in
/// another database.
const HASHED: &str = "CREATE TYPE mood AS ENUM ('bad', 'good', 'best'); CREATE SCHEMA a;
CREATE TABLE a.root (id int, mood mood, note text) PARTITION BY RANGE (id);
CREATE TABLE a.low PARTITION OF a.root FOR VALUES FROM (0) TO (1000) PARTITION BY HASH (mood);
CREATE TABLE low_0 PARTITION OF a.low FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE low_1 PARTITION OF a.low FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE a.high PARTITION OF a.root FOR VALUES FROM (1000) TO (9000);
CREATE TABLE other (id int); INSERT INTO other VALUES (1);
INSERT INTO a.root SELECT g, (enum_range(NULL::mood))[1 + g % 3], repeat('x', 900) FROM generate_series(1, 9000 - 1) g;";

/// Partitions of partitions, in another schema, and one beside them.
const RANGES: &str = "CREATE SCHEMA a; CREATE SCHEMA old;
CREATE TABLE a.events (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE a.events_1 PARTITION OF a.events FOR VALUES FROM (0) TO (100);
CREATE TABLE old.events_2 PARTITION OF a.events FOR VALUES FROM (100) TO (300) PARTITION BY RANGE (id);
CREATE TABLE old.events_2a PARTITION OF old.events_2 FOR VALUES FROM (100) TO (200);
CREATE TABLE old.events_2b PARTITION OF old.events_2 DEFAULT;
CREATE TABLE old.other (id int); INSERT INTO old.other SELECT generate_series(1, 7);
INSERT INTO a.events SELECT generate_series(1, 250);";

async fn restore(place: &Place, name: &str, path: &str) -> String {
    let database = place.names.name(name);
    let from = json!({ "storage": "store", "path": path });
    let params = json!({ "target": "db", "database": database, "create": true, "from": from });
    place.harness.run(RESTORE, params).await.unwrap();
    database
}

fn against(database: &str, path: &str, more: Value) -> Value {
    let mut params =
        json!({ "target": "db", "database": database, "against": { "storage": "store", "path": path } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

#[tokio::test]
async fn rows_that_go_by_the_table_at_the_top_are_counted_and_compared_there() {
    let place = Place::new("pt_hash");
    let database = place.names.create("live", HASHED).await;
    let tables = json!({ "a.root": 8999, "public.other": 1 });
    for (at, (path, more)) in
        [("a.sql.zst", json!({ "verify": "restore" })), ("b.sql.gz", json!({ "jobs": 1 })), ("c.dump", json!({}))]
            .into_iter()
            .enumerate()
    {
        let manifest = backup(&place, &database, path, more).await.unwrap();
        assert_eq!(manifest["tables"], tables, "{path}");
        let hashed: Vec<_> = manifest["hashes"].as_object().unwrap().keys().collect();
        assert_eq!(hashed, ["a.root", "public.other"], "{path}");
        let restored = restore(&place, &format!("r{at}"), path).await;
        for like in [&database, &restored] {
            let done = place.harness.run(ROWS, against(like, path, json!({}))).await.unwrap();
            assert_eq!(done.outputs["rows"], 9000, "{path}");
            place.harness.run(COUNTS, against(like, path, json!({}))).await.unwrap();
        }
        let rows = "SELECT md5(string_agg(r::text, ',' ORDER BY id)) FROM a.root r";
        assert_eq!(value(&restored, rows).await.unwrap(), value(&database, rows).await.unwrap(), "{path}");
        sql(&restored, "UPDATE a.root SET note = 'y' WHERE id = 17").await;
        let failure = place.harness.run(ROWS, against(&restored, path, json!({}))).await.unwrap_err();
        assert!(failure.message.contains("a.root has 8999 rows as the backup, but not the same ones"), "{failure}");
    }
}

/// Restored in part, they would be left behind, or loaded uncounted.
#[tokio::test]
async fn a_part_that_has_its_rows_elsewhere_is_refused() {
    let place = Place::new("pt_parts");
    let database = place.names.create("live", HASHED).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    let restored = place.names.name("part");
    let from = json!({ "storage": "store", "path": "a.sql" });
    let mut params = json!({ "target": "db", "database": restored, "create": true, "from": from });
    for (key, names) in [("schemas", ["public"]), ("tables", ["public.low_0"]), ("tables", ["a.high"])] {
        let mut part = params.clone();
        part[key] = json!(names);
        let failure = place.harness.run(RESTORE, part).await.unwrap_err();
        let (said, help) = (&failure.message, failure.help.as_deref().unwrap_or_default());
        assert!(said.contains("among those of a.root") && help.contains("choose a.root"), "{names:?}: {failure}");
    }
    // Nor is a backup made of it.
    for (path, part) in [
        ("x.sql.zst", json!({ "schemas": ["public"] })),
        ("x.dump", json!({ "tables": ["public.low_0"] })),
        ("x.sql", json!({ "tables": ["a.low"], "jobs": 1 })),
    ] {
        let failure = backup(&place, &database, path, part).await.unwrap_err();
        let (said, help) = (&failure.message, failure.help.as_deref().unwrap_or_default());
        assert!(said.contains("for a.root, which this backup leaves out"), "{path}: {failure}");
        assert!(help.contains("take a.root, too"), "{path}: {failure}");
    }
    assert_eq!(place.files(), ["a.sql"]);
    let manifest = backup(&place, &database, "y.sql", json!({ "tables": ["a.root"] })).await.unwrap();
    assert_eq!(manifest["tables"], json!({ "a.root": 8999 }));
    params["tables"] = json!(["a.root"]);
    let done = place.harness.run(RESTORE, params).await.unwrap();
    assert_eq!(done.outputs["rows"], 8999);
    assert_eq!(value(&restored, "SELECT count(*) FROM a.high").await.unwrap(), "8000");
}

/// Their rows are the same text only where their columns have one order.
#[tokio::test]
async fn partitions_whose_columns_have_another_order_are_counted() {
    let place = Place::new("pt_order");
    let content = "CREATE TYPE mood AS ENUM ('bad', 'good', 'best'); CREATE TABLE other (id int);
        CREATE TABLE root (id int, mood mood) PARTITION BY HASH (mood);
        CREATE TABLE p0 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE p1 (mood mood, id int);
        ALTER TABLE root ATTACH PARTITION p1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO root SELECT g, (enum_range(NULL::mood))[1 + g % 3] FROM generate_series(1, 300) g;";
    let database = place.names.create("live", content).await;
    let manifest = backup(&place, &database, "a.sql.zst", json!({})).await.unwrap();
    assert_eq!(manifest["tables"], json!({ "public.other": 0, "public.root": 300 }));
    let restored = restore(&place, "back", "a.sql.zst").await;
    place.harness.run(COUNTS, against(&restored, "a.sql.zst", json!({}))).await.unwrap();
    let failure = place.harness.run(ROWS, against(&restored, "a.sql.zst", json!({}))).await.unwrap_err();
    assert!(failure.message.contains("the backup doesn't say what the rows of public.root come to"), "{failure}");
}

#[tokio::test]
async fn a_partitioned_table_has_the_rows_of_its_partitions() {
    let place = Place::new("pt_count");
    let database = place.names.create("live", RANGES).await;
    for (at, path) in ["a.sql.zst", "b.dump"].into_iter().enumerate() {
        let manifest = backup(&place, &database, path, json!({})).await.unwrap();
        assert_eq!(manifest["partitioned"], json!({ "a.events": 250, "old.events_2": 151 }), "{path}");
        assert_eq!(manifest["rows"], 257, "{path}");
        let restored = place.names.name(&format!("r{at}"));
        let from = json!({ "storage": "store", "path": path });
        let params = json!({ "target": "db", "database": restored, "create": true, "from": from });
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        assert_eq!((&preview.action, &preview.outputs["rows"]), (&Action::Create, &json!(257)), "{preview:?}");
        let mut world = World::default();
        for (resource, fact) in preview.facts {
            world.foretell(resource, fact, &"restore".into());
        }
        let same = json!({ "matches_backup": true });
        let tables = json!({ "a.events": same, "old.events_2": same, "old.events_2a": 100, "old.other": same });
        let counts = against(&restored, path, json!({ "tables": tables }));
        let foretold = place.harness.preview(COUNTS, counts.clone(), &world).await;
        assert_eq!(foretold.action, Action::Read, "{foretold:?}");
        let mut wrong = counts.clone();
        wrong["tables"]["a.events"] = json!(251);
        let foretold = place.harness.preview(COUNTS, wrong, &world).await;
        assert_eq!(foretold.action, Action::Blocked, "{foretold:?}");
        // By another tool's dump, too.
        std::fs::remove_file(place.path(&format!("{path}.manifest.json"))).unwrap();
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        let rows = preview.facts.iter().find_map(|(resource, fact)| match fact {
            Fact::Present { rows } if *resource == Resource::database("db", &restored) => rows.clone(),
            _ => None,
        });
        assert_eq!(rows.unwrap()["a.events"], 250, "{path}");
        std::fs::write(place.path(&format!("{path}.manifest.json")), manifest.to_string()).unwrap();
        place.harness.run(RESTORE, params).await.unwrap();
        place.harness.run(COUNTS, counts).await.unwrap();
        let events = against(&restored, path, json!({ "tables": ["a.events"] }));
        let failure = place.harness.run(ROWS, events).await.unwrap_err();
        assert!(failure.help.unwrap().contains("name its partitions"));
    }
}

#[tokio::test]
async fn a_partitioned_tables_name_stands_for_its_partitions() {
    let place = Place::new("pt_name");
    let database = place.names.create("live", RANGES).await;
    let (events, other) = (["a.events_1", "old.events_2a", "old.events_2b"], "old.other");
    for (path, more, tables) in [
        ("only.sql.zst", json!({ "tables": ["a.events"] }), events.to_vec()),
        ("only.dump", json!({ "tables": ["a.events"] }), events.to_vec()),
        ("part.sql", json!({ "tables": ["old.events_2", "old.other"] }), vec![events[1], events[2], other]),
        ("without.sql.zst", json!({ "exclude": ["a.events"] }), vec![other]),
        ("less.sql.zst", json!({ "exclude": ["old.events_2"] }), vec![events[0], other]),
    ] {
        let manifest = backup(&place, &database, path, more).await.unwrap();
        let found: Vec<_> = manifest["tables"].as_object().unwrap().keys().collect();
        assert_eq!(found, tables, "{path}");
    }
    let only = std::fs::read(place.path("only.sql.zst")).unwrap();
    let only = String::from_utf8(zstd::decode_all(&*only).unwrap()).unwrap();
    let attached =
        only.lines().filter(|line| line.starts_with("ALTER TABLE") && line.contains(" ATTACH PARTITION "));
    assert!(only.contains("CREATE TABLE a.events (") && attached.count() == 4, "{only}");
    let restored = restore(&place, "without", "without.sql.zst").await;
    assert!(!likeness(&restored).contains("events"));
}
