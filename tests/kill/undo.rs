//! A run that is taken back: killed while it is, and taken back at once where it was killed.

use serde_json::json;

use crate::containers::{IMAGE, STAY, docker, engine, make};
use crate::harness::{every_point_of_the_undo, undone_at_once, undone_twice};
use crate::world::{Case, World};

fn containers(world: &World) -> String {
    let filter = format!("name=^{}_", world.prefix);
    let listed = docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}} {{.State}}"]);
    let mut listed: Vec<_> = listed.lines().collect();
    listed.sort_unstable();
    listed.join(", ")
}

/// A service stopped, a database made and put in another's place, rows that count, a container made.
const UNDO: Case = Case {
    name: "undo",
    set: |world| {
        make(&world.name("busy"), true);
        let prefix = world.prefix.clone();
        world.ends.borrow_mut().push(Box::new(move || {
            let left = docker(&["ps", "-aq", "--filter", &format!("name=^{prefix}_")]);
            if !left.is_empty() {
                docker(&[&["rm", "-f"], &*left.lines().collect::<Vec<_>>()].concat());
            }
        }));
        let tables = "CREATE TABLE counters (n int NOT NULL); INSERT INTO counters VALUES (0)";
        world.create("live", tables);
        world.create("other", tables);
        world.sql("live", "COMMENT ON DATABASE THIS IS 'the one'");
    },
    targets: |_| json!({ "docker": { "docker": { "host": engine() } } }),
    plan: |world| {
        let (live, new, other) = (world.name("live"), world.name("new"), world.name("other"));
        let on = |name: &str| json!({ "target": "docker", "container": world.name(name) });
        let sql = |database: &str, sql: &str| json!({ "postgres.execute": { "target": "db", "database": database, "sql": sql } });
        let step = |step: serde_json::Value, undo: serde_json::Value| {
            let mut step = step;
            step["undo"] = undo;
            step
        };
        let allowed = |mut step: serde_json::Value| {
            step["allow"] = json!(["unproven_backup", "unverified_destruction"]);
            step["because"] = "made up for the test".into();
            step
        };
        json!({ "steps": {
            "stop": step(json!({ "container.stop": on("busy") }), json!({ "container.start": on("busy") })),
            "create": step(
                json!({ "postgres.create_database": { "target": "db", "database": new } }),
                json!({ "postgres.drop_database": { "target": "db", "database": new, "force": true } }),
            ),
            "table": step(
                sql(&new, "CREATE TABLE public.counters AS SELECT 1 AS n"),
                sql(&new, "DROP TABLE IF EXISTS public.counters"),
            ),
            "before": step(
                sql(&other, "UPDATE public.counters SET n = n + 1"),
                sql(&other, "UPDATE public.counters SET n = n - 1"),
            ),
            "swap": allowed(step(
                json!({ "postgres.swap_databases": {
                    "target": "db", "live": live, "replacement": new, "keep": world.name("old"),
                } }),
                json!({ "postgres.swap_databases": {
                    "target": "db", "live": live, "replacement": world.name("old"), "keep": new,
                } }),
            )),
            "after": step(
                sql(&live, "UPDATE public.counters SET n = n + 1"),
                sql(&live, "UPDATE public.counters SET n = n - 1"),
            ),
            "start": step(json!({ "container.start": on("busy") }), json!({ "container.stop": on("busy") })),
            "run": step(
                json!({ "container.run": {
                    "target": "docker", "image": IMAGE, "name": world.name("made"), "network": "none",
                    "command": ["/bin/busybox", "sh", "-c", STAY],
                } }),
                json!({ "container.remove": { "target": "docker", "container": world.name("made"), "force": true } }),
            ),
            "add": step(sql(&other, "INSERT INTO public.counters VALUES (7)"), sql(&other, "DELETE FROM public.counters WHERE n = 7")),
            "fail": step(
                sql(&other, "INSERT INTO public.counters VALUES (NULL)"),
                sql(&other, "UPDATE public.counters SET n = n - 100"),
            ),
        } })
    },
    look: |world| containers(world).into(),
    varying: &["create.oid", "run.id", "run.started_at", "start.started_at", "undo:stop.started_at"],
    // A container that was started is looked at for two seconds.
    waits: 3,
    ..Case::PLAIN
};

/// The same without what fails, so that it can be run to its end.
const GOOD: Case = Case {
    name: "undo of what succeeded",
    plan: |world| {
        let mut plan = (UNDO.plan)(world);
        plan["steps"].as_object_mut().unwrap().remove("fail");
        plan
    },
    ..UNDO
};

#[test]
fn what_failed_is_taken_back_wherever_that_is_killed() {
    every_point_of_the_undo(&UNDO, 40);
}

#[test]
fn what_succeeded_is_taken_back_killed_twice() {
    undone_twice(&GOOD, 88);
}

#[test]
fn what_was_killed_is_taken_back_at_once() {
    undone_at_once(&GOOD, 36);
}
