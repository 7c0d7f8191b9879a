//! Restores that are interrupted go on where they were; those that fail leave nothing.

use std::collections::BTreeSet;

use lifeboat::record::event::Progress;
use lifeboat::step::AfterKill;
use serde_json::{Value, json};

use crate::equal::{RESTORE, assert_alike, params};
use crate::fixture::{Place, gzip, pg_dump};
use crate::support::{connect_to, postgres_url, sql, unique, until, url_with, value};

/// A big table, a smaller one and many small ones, with keys between them, and one that needs another's row type.
fn content(index: &str) -> String {
    let small: String = (0..150)
        .map(|n| format!("CREATE TABLE small_{n} (id int PRIMARY KEY, t text); INSERT INTO small_{n} SELECT g, 't' || g FROM generate_series(1, {n}) g;"))
        .collect();
    format!(
        "{small} CREATE TABLE small_126_rows (id serial, small_1 small_1[]); INSERT INTO small_126_rows DEFAULT VALUES; \
         CREATE TABLE big (id bigint PRIMARY KEY, pad text NOT NULL, at timestamptz DEFAULT now(), n numeric); \
         INSERT INTO big (id, pad, n) SELECT g, repeat(md5(g::text), 5), g / 3.0 FROM generate_series(1, 40000) g; \
         CREATE TABLE refers (big bigint REFERENCES big, small int REFERENCES small_149, t text) WITH (autovacuum_enabled); \
         INSERT INTO refers SELECT g, 1 + g % 149, repeat('x', 90) FROM generate_series(1, 12000) g; \
         CREATE INDEX big_pad ON big (pad); CREATE INDEX refers_big ON refers (big); {index} \
         CREATE VIEW v AS SELECT id, count(*) FROM big GROUP BY id; COMMENT ON TABLE big IS 'big';"
    )
}

/// Chunks that were noted by an attempt (or by all), with their bytes.
fn chunks(place: &Place, attempt: Option<u32>) -> Vec<(u64, u64)> {
    let notes = place.harness.journal.notes();
    let chosen = notes.iter().filter(|(own, _)| attempt.is_none_or(|wanted| wanted == *own));
    chosen.filter_map(|(_, note)| Some((note["chunk"].as_u64()?, note["bytes"].as_u64()?))).collect()
}

fn last_attempt(place: &Place) -> u32 {
    place.harness.journal.notes().last().unwrap().0
}

async fn nothing_left(place: &Place) -> bool {
    let sql =
        format!("SELECT 1 FROM pg_database WHERE starts_with(datname::text, 'lifeboat_{}')", place.harness.run);
    value("postgres", &sql).await.is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_loads_no_row_twice() {
    let place = Place::new("rr_kill");
    let live = place.names.create("live", &content("")).await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&live, &[]))).unwrap();
    let new = place.names.name("new");
    let params = params(&new, "a.sql.gz", json!({ "jobs": 2 }));
    let mut kills = 0;
    let done = loop {
        // At the first notes of each attempt, then ever farther on.
        let at = place.harness.journal.notes().len() + 1 + kills % 3;
        kills += 1;
        if kills > 15 {
            break place.harness.run(RESTORE, params.clone()).await.unwrap();
        }
        place.harness.run_and_kill_at_note(RESTORE, params.clone(), at).await;
        assert!(value("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{new}'")).await.is_none());
        let after = place.harness.after_kill(RESTORE, params.clone()).await;
        assert!(kills < 2 || matches!(after, AfterKill::Partly { .. }), "{after:?}");
    };
    assert_alike(&new, &live, "resumed").await;
    assert!(nothing_left(&place).await);
    let beside = place.harness.journal.notes().iter().filter(|(_, note)| note.get("tables").is_some()).count();
    assert!(beside > 2, "tables were made side by side: {beside}");
    let told = place.harness.journal.progress_seen();
    let tables = |seen: &&Progress| seen.message.as_deref() == Some("making tables");
    assert!(told.iter().filter(tables).all(|seen| Some(seen.done) < seen.total));
    assert!(told.iter().filter(tables).count() >= beside, "{told:?}");
    // The last attempt took only what the others had not: less than all of it.
    let all: BTreeSet<_> = chunks(&place, None).into_iter().collect();
    let bytes = |chunks: &[(u64, u64)]| chunks.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let total: u64 = all.iter().map(|(_, bytes)| bytes).sum();
    let last = bytes(&chunks(&place, Some(last_attempt(&place))));
    assert!(all.len() > 6 && total > 8_000_000, "{all:?}");
    assert!(last < total, "{last} of {total}");
    assert_eq!(place.harness.run(RESTORE, params).await.unwrap().outputs, done.outputs);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_near_its_end_it_loads_the_rest_alone() {
    let place = Place::new("rr_late");
    let live = place.names.create("live", &content("")).await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&live, &[]))).unwrap();
    // How many notes a restore writes.
    let whole = place.names.name("whole");
    place.harness.run(RESTORE, params(&whole, "a.sql.gz", json!({}))).await.unwrap();
    let total: u64 = chunks(&place, None).iter().map(|(_, bytes)| bytes).sum();
    let notes = place.harness.journal.notes();
    let last_chunk = notes.iter().rposition(|(_, note)| note.get("chunk").is_some()).unwrap() + 1;

    for (at, most) in [(last_chunk - 1, total / 2), (last_chunk + 1, 0), (notes.len() - 1, 0), (notes.len(), 0)] {
        let fresh = Place::new("rr_late_in");
        std::fs::copy(place.path("a.sql.gz"), fresh.path("a.sql.gz")).unwrap();
        let new = fresh.names.name("new");
        let params = params(&new, "a.sql.gz", json!({}));
        fresh.harness.run_and_kill_at_note(RESTORE, params.clone(), at).await;
        if at < notes.len() - 1 {
            let working = format!("lifeboat_{}_the-step", fresh.harness.run);
            let kept =
                "SELECT string_agg(relname, ' ') FROM pg_class WHERE 'autovacuum_enabled=no' = ANY (reloptions)";
            let kept = value(&working, kept).await;
            assert_eq!(kept.as_deref(), Some("big"), "neither small ones nor one that says itself what it wants");
        }
        fresh.harness.run(RESTORE, params).await.unwrap();
        let loaded: u64 = chunks(&fresh, Some(last_attempt(&fresh))).iter().map(|(_, bytes)| bytes).sum();
        assert!(
            loaded <= most,
            "killed at note {at} of {}, {loaded} of {total} bytes were loaded once more",
            notes.len()
        );
        assert_alike(&new, &live, &format!("killed at note {at}")).await;
        assert!(nothing_left(&fresh).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_cost_what_was_not_committed() {
    let place = Place::new("rr_lost");
    let gate = unique("gate");
    let live = place
        .names
        .create(
            "live",
            &content(&format!(
                "CREATE TABLE gate (a int); INSERT INTO gate VALUES (1); \
         CREATE FUNCTION waits(a int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN \
           WHILE EXISTS (SELECT FROM pg_stat_activity WHERE application_name = '{gate}') LOOP \
             PERFORM pg_sleep(0.05); PERFORM pg_stat_clear_snapshot(); END LOOP; RETURN a; END $$; \
         CREATE INDEX at_gate ON gate (public.waits(a));"
            )),
        )
        .await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&live, &[]))).unwrap();
    let new = place.names.name("new");
    let params = params(&new, "a.sql.gz", json!({ "jobs": 3 }));
    let closed = connect_to(&url_with(&postgres_url(), None, "postgres")).await.unwrap();
    closed.batch_execute(&format!("SET application_name = '{gate}'")).await.unwrap();
    let step = place.harness.step(RESTORE, params.clone());
    let cx = place.harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await });
    let working = format!("lifeboat_{}_the-step", place.harness.run);
    let waits = format!(
        "SELECT 1 FROM pg_stat_activity WHERE datname = '{working}' AND wait_event = 'PgSleep' AND state = 'active'"
    );
    for _ in 0..20 {
        if value("postgres", &waits).await.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    until("it waits at the gate", || async { value("postgres", &waits).await.is_some() }).await;
    sql("postgres", &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{working}'"))
        .await;
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
    drop(closed);
    assert!(!nothing_left(&place).await, "what is loaded is kept");
    let done = place.harness.run(RESTORE, params).await.unwrap();
    assert!(chunks(&place, Some(2)).is_empty(), "no row is loaded once more");
    assert!(place.harness.journal.log_text().contains("is gone on with"));
    assert_alike(&new, &live, "resumed").await;
    assert!(done.outputs["rows"].as_u64().unwrap() > 50_000 && nothing_left(&place).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_dump_under_the_same_name_begins_anew() {
    let place = Place::new("rr_other");
    let live = place.names.create("live", &content("")).await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&live, &[]))).unwrap();
    let new = place.names.name("new");
    let params = params(&new, "a.sql.gz", json!({}));
    place.harness.run_and_kill_at_note(RESTORE, params.clone(), 5).await;
    sql(&live, "INSERT INTO big VALUES (0, 'changed')").await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&live, &[]))).unwrap();
    place.harness.run(RESTORE, params).await.unwrap();
    assert!(place.harness.journal.log_text().contains("can't be gone on with"));
    assert_alike(&new, &live, "resumed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_table_and_line_and_leaves_nothing() {
    let place = Place::new("rr_error");
    let live = place.names.create("live", &content("")).await;
    let dump = String::from_utf8(pg_dump(&live, &["--no-owner"])).unwrap();
    let lines: Vec<&str> = dump.lines().collect();
    let row = lines.iter().position(|line| line.starts_with("39000\t")).unwrap();
    let index = lines.iter().position(|line| line.starts_with("CREATE INDEX big_pad")).unwrap();
    let foreign = lines.iter().position(|line| line.contains("FOREIGN KEY (small)")).unwrap();
    let with = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at] = line;
        lines.join("\n") + "\n"
    };
    // Other settings follow the statement that fails: what is told is why it failed, not what came after.
    let late = lines.iter().position(|line| line.starts_with("ALTER TABLE ONLY public.refers")).unwrap();
    let settings = "ALTER TABLE public.big ADD CONSTRAINT c CHECK (nope > 5) NOT VALID;\n\
         SET default_tablespace = 'pg_default';\nCREATE VIEW public.late AS SELECT 1 AS a;\nALTER TABLE ONLY public.refers";
    let cases: [(usize, String, Value); 5] = [
        (late, with(late, settings), json!([format!("line {}", late + 1), "nope"])),
        (
            row,
            with(row, "x39000\tpad\t2024-01-01 00:00:00+00\t1"),
            json!([format!("line {}", row + 1), "big", "bigint"]),
        ),
        (row, with(row, "39001\tpad\t2024-01-01 00:00:00+00\t1"), json!(["duplicate", "39001", "big_pkey"])),
        (
            index,
            with(index, "CREATE INDEX big_pad ON public.big USING btree (nobody);"),
            json!([format!("line {}", index + 1), "nobody"]),
        ),
        (
            foreign,
            with(foreign, "    ADD CONSTRAINT x FOREIGN KEY (small) REFERENCES public.small_3(id);"),
            json!([format!("line {}", foreign), "small_3"]),
        ),
    ];
    for (at, dump, said) in cases {
        std::fs::write(place.path("a.sql"), dump).unwrap();
        let new = place.names.name("new");
        let failure = place.harness.run(RESTORE, params(&new, "a.sql", json!({}))).await.unwrap_err();
        for word in said.as_array().unwrap() {
            assert!(failure.message.contains(word.as_str().unwrap()), "line {at}: {failure} lacks {word}");
        }
        assert!(!failure.transient && nothing_left(&place).await, "{failure}");
        assert!(value("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{new}'")).await.is_none());
    }
}
