//! What a dump tells of its database as a whole (`pg_dump --create`).

use lifeboat::step::Action;
use lifeboat::step::world::World;
use serde_json::json;

use crate::fixture::{CONTENT, Place, ROWS, likeness, pg_dump, role};
use crate::restore::{RESTORE, params};
use crate::support::{sql, value};

/// How a database is made and what is said of it, whatever its name.
fn told(database: &str) -> Vec<String> {
    let dump = String::from_utf8(pg_dump(database, &["--create", "--schema-only", "--no-comments"])).unwrap();
    let lines = dump.lines().map(|line| line.replace(database, "it"));
    lines.filter(|line| line.contains("DATABASE it") && !line.starts_with("--")).collect()
}

#[tokio::test]
async fn what_a_dump_tells_of_its_database_comes_back_with_a_new_one() {
    let place = Place::new("wh");
    let (owner, user) = (role("wh_owner").await, role("wh_user").await);
    let database = place.names.name("live");
    sql("postgres", &format!("CREATE DATABASE {database} TEMPLATE template0 LOCALE 'C' CONNECTION LIMIT 9")).await;
    sql(&database, CONTENT).await;
    for statement in [
        format!("ALTER DATABASE {database} OWNER TO {owner}"),
        format!("ALTER DATABASE {database} SET search_path TO auth, public"),
        // In the way of a load, if it were in force meanwhile.
        format!("ALTER DATABASE {database} SET default_transaction_read_only TO on"),
        format!("ALTER ROLE {user} IN DATABASE {database} SET work_mem TO '5MB'"),
        format!("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC"),
        format!("GRANT CONNECT ON DATABASE {database} TO {user}"),
        format!("COMMENT ON DATABASE {database} IS 'the one'"),
    ] {
        sql("postgres", &statement).await;
    }
    std::fs::write(place.path("a.sql"), pg_dump(&database, &["--create"])).unwrap();
    std::fs::write(place.path("small.sql"), pg_dump(&database, &["--create", "--no-blobs"])).unwrap();
    let (whole, content) = (told(&database), likeness(&database));
    assert!(whole.len() >= 8, "{whole:#?}");
    for (at, (path, more)) in [
        ("a.sql", json!({ "create": true })),
        ("small.sql", json!({ "create": true, "jobs": 1 })),
        ("small.sql", json!({ "create": true, "jobs": 2 })),
    ]
    .into_iter()
    .enumerate()
    {
        let restored = place.names.name(&format!("r{at}"));
        let done = place.harness.run(RESTORE, params(&restored, path, more)).await.unwrap();
        assert_eq!((told(&restored), &done.outputs["rows"]), (whole.clone(), &json!(ROWS)), "{path}");
        let comment =
            format!("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{restored}'");
        assert!(value("postgres", &comment).await.unwrap().contains("restored from"));
        if path == "a.sql" {
            assert_eq!(likeness(&restored), content);
        }
        sql("postgres", &format!("ALTER DATABASE {restored} SET default_transaction_read_only TO off")).await;
    }

    // Without owners and privileges the settings stay; one that is there keeps its own.
    let without = place.names.name("without");
    let none = params(&without, "small.sql", json!({ "create": true, "owner": "none" }));
    place.harness.run(RESTORE, none.clone()).await.unwrap();
    let access = |line: &String| ["OWNER TO", "GRANT", "REVOKE"].iter().any(|word| line.contains(word));
    let of = |database: &str| -> Vec<String> {
        told(database).into_iter().filter(|line| !line.contains("OWNER TO postgres")).collect()
    };
    assert_eq!(of(&without), whole.iter().filter(|line| !access(line)).cloned().collect::<Vec<_>>());
    let empty = place.names.create("empty", "").await;
    let before = told(&empty);
    place.harness.run(RESTORE, params(&empty, "small.sql", json!({}))).await.unwrap();
    assert_eq!(told(&empty), before);

    // A role that is gone is told before anything is touched.
    sql("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only TO off")).await;
    for name in [&database, &without, &place.names.name("r0"), &place.names.name("r1"), &place.names.name("r2")] {
        sql("postgres", &format!("ALTER ROLE {user} IN DATABASE {name} RESET ALL")).await;
        sql("postgres", &format!("REVOKE CONNECT ON DATABASE {name} FROM {user}")).await;
    }
    sql("postgres", &format!("DROP ROLE {user}")).await;
    let another = place.names.name("another");
    // His settings want him whoever owns what.
    for owner in ["keep", "none"] {
        let params = params(&another, "small.sql", json!({ "create": true, "owner": owner }));
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        assert!(preview.action == Action::Blocked && preview.problems[0].message.contains(&user), "{preview:?}");
        let failure = place.harness.run(RESTORE, params).await.unwrap_err();
        assert!(failure.message.contains(&user) && failure.help.unwrap().ends_with("(postgres.restore_globals)"));
    }
}

#[tokio::test]
async fn a_setting_that_the_server_refuses_is_told_before_the_rows_are_loaded() {
    let place = Place::new("wh_bad");
    let database = place.names.create("live", CONTENT).await;
    sql("postgres", &format!("ALTER DATABASE {database} SET work_mem TO '5MB'")).await;
    let dump = String::from_utf8(pg_dump(&database, &["--create"])).unwrap();
    let dump = dump.replace("SET work_mem TO '5MB'", "SET work_mem TO 'much'");
    std::fs::write(place.path("a.sql"), &dump).unwrap();
    let restored = place.names.name("restored");
    let new = params(&restored, "a.sql", json!({ "create": true }));
    let failure = place.harness.run(RESTORE, new).await.unwrap_err();
    assert!(failure.message.contains("work_mem") && !failure.transient, "{failure}");
    assert!(failure.help.unwrap().contains("without `create`"));
    let left = format!(
        "SELECT 1 FROM pg_database WHERE datname = '{restored}' OR starts_with(datname::text, 'lifeboat_{}')",
        place.harness.run
    );
    assert_eq!(value("postgres", &left).await, None);
    let empty = place.names.create("empty", "").await;
    place.harness.run(RESTORE, params(&empty, "a.sql", json!({}))).await.unwrap();

    // A locale of another system is not in the way.
    let elsewhere = dump.replace("TO 'much'", "TO '6MB'").replace(" LOCALE = '", " LOCALE = 'no_such_");
    assert!(elsewhere.contains("no_such_"));
    std::fs::write(place.path("b.sql"), elsewhere).unwrap();
    place.harness.run(RESTORE, params(&restored, "b.sql", json!({ "create": true }))).await.unwrap();
    assert!(told(&restored).iter().any(|line| line.contains("6MB")));
}
