//! How the server is treated while a dump is loaded.

use serde_json::json;

use crate::equal::{RESTORE, params};
use crate::fixture::{Place, pg_dump};
use crate::support::value;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dump_sets_of_autovacuum_after_its_rows_stays() {
    let place = Place::new("rv_vacuum");
    let tables = "CREATE TABLE a (n) AS SELECT generate_series(1, 10000); CREATE TABLE b (n) AS SELECT n FROM a;";
    let live = place.names.create("live", tables).await;
    let dump = String::from_utf8(pg_dump(&live, &[])).unwrap();
    let end = "--\n-- PostgreSQL database dump complete";
    let own = format!("ALTER TABLE public.a SET (autovacuum_enabled = off);\n\n{end}");
    assert!(dump.contains(end));
    std::fs::write(place.path("a.sql"), dump.replace(end, &own)).unwrap();
    let new = place.names.name("new");
    place.harness.run(RESTORE, params(&new, "a.sql", json!({ "jobs": 2 }))).await.unwrap();
    let side_by_side = place.harness.journal.notes().iter().any(|(_, note)| note.get("chunk").is_some());
    assert!(side_by_side, "only there it is turned off");
    let options = "SELECT string_agg(relname || coalesce(reloptions::text, ''), ' ' ORDER BY relname) \
                     FROM pg_class WHERE relname IN ('a', 'b')";
    assert_eq!(value(&new, options).await.as_deref(), Some("a{autovacuum_enabled=off} b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_side_by_side_are_sorted_on_one_core_each_in_little_memory() {
    let place = Place::new("rv_sorted");
    // The indexes' own expression refuses to be worked out otherwise.
    let tables = "SET maintenance_work_mem = '4MB'; SET max_parallel_maintenance_workers = 0; \
         CREATE FUNCTION as_sorted(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ DECLARE \
           how text := current_setting('maintenance_work_mem') || ', ' || current_setting('max_parallel_maintenance_workers'); \
         BEGIN IF how <> '4MB, 0' THEN RAISE 'sorted with %', how; END IF; RETURN n; END $$; \
         CREATE TABLE a (n) AS SELECT generate_series(1, 10000); CREATE TABLE b (n) AS SELECT n FROM a; \
         CREATE INDEX on_a ON a (as_sorted(n)); CREATE INDEX on_b ON b (as_sorted(n));";
    let live = place.names.create("live", tables).await;
    std::fs::write(place.path("a.sql"), pg_dump(&live, &[])).unwrap();
    // ANALYZE would work it out, too.
    let restored = |jobs: u32| params(&place.names.name("new"), "a.sql", json!({ "jobs": jobs, "analyze": false }));
    let alone = place.harness.run(RESTORE, restored(4)).await.unwrap_err();
    assert!(
        alone.message.contains("sorted with ") && alone.message.contains("MB, 2"),
        "half of the connections had nothing to do: {alone}"
    );
    let fresh = Place::new("rv_sorted_too");
    std::fs::copy(place.path("a.sql"), fresh.path("a.sql")).unwrap();
    fresh.harness.run(RESTORE, restored(2)).await.unwrap();
}
