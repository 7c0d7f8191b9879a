//! Random SQL, split by the reader and run a statement at a time, comes to what `psql` makes of it.

use futures::SinkExt;
use lifeboat::dump::lexer::{Lexer, Listener, Verdict};
use lifeboat::dump::statement::{Kind, kind};
use lifeboat::failure::Failure;
use proptest::prelude::*;

use crate::equal::by_psql;
use crate::support::{Databases, connect, value};

const TABLES: &str = "CREATE TABLE log (n serial, v text); CREATE SCHEMA made";

/// All that was written, in order, and all that was made.
const FOUND: &str = "SELECT coalesce((SELECT string_agg(v, E'\n--\n' ORDER BY n) FROM log), '') || E'\n==\n' || \
    coalesce((SELECT string_agg(viewname || pg_get_viewdef(format('made.%I', viewname)), E'\n' ORDER BY viewname) FROM pg_views WHERE schemaname = 'made'), '') || \
    coalesce((SELECT string_agg(pg_get_functiondef(oid), E'\n' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'made'::regnamespace), '')";

/// Text that looks like something else.
fn text() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        "a",
        "é",
        " ",
        "'",
        "''",
        "\"",
        "\\",
        "$",
        "$$",
        "$x$",
        "--",
        "/*",
        "*/",
        ";",
        "\n",
        "\t",
        "(",
        ")",
        "BEGIN",
        "END",
        "COPY log FROM stdin;",
        "\n\\.\n",
        "e",
        "1",
    ]);
    prop::collection::vec(parts, 0..8).prop_map(|parts| parts.concat())
}

/// A text as SQL writes it, one way or another.
fn literal() -> impl Strategy<Value = String> {
    let quoted = |text: &str| text.replace('\'', "''");
    let escaped = |text: &str, quote: &str| text.replace('\\', "\\\\").replace('\'', quote).replace('\n', "\\n");
    prop_oneof![
        text().prop_map(move |text| format!("'{}'", quoted(&text))),
        text().prop_map(move |text| format!("E'{}'", escaped(&text, "\\'"))),
        text().prop_map(move |text| format!("e'{}'", escaped(&text, "''"))),
        (text(), text()).prop_map(move |(one, other)| format!(
            "e'{}{}'",
            escaped(&one, "''"),
            escaped(&other, "\\'")
        )),
        // What follows on another line goes on with it for the server, and is a string of its own for psql: with a
        // backslash in it the reader refuses it.
        (text(), text()).prop_map(move |(one, other)| format!(
            "E'{}' -- '\n  '{}'",
            escaped(&one, "\\'"),
            quoted(&other.replace('\\', ""))
        )),
        (text(), text()).prop_map(move |(one, other)| format!("'{}'\n'{}'", quoted(&one), quoted(&other))),
        text().prop_map(move |text| format!("U&'{}'", quoted(&text.replace('\\', "")))),
        (text(), prop::sample::select(vec!["", "x", "_y1", "été"])).prop_map(|(text, tag)| {
            let tag = if format!("{text}$").contains(&format!("${tag}$")) { "other" } else { tag };
            format!("${tag}${text}${tag}$")
        }),
    ]
}

/// What may stand between words.
fn gap() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        " ",
        "\n",
        " /* it's; \"so\" */ ",
        " /* a /* b ' */ ; -- */ ",
        " -- don't; /* \" $x$\n",
        " /**/ ",
        "/* * / ** */ ",
    ])
}

fn sql_function(number: usize, literal: &str, atomic: bool) -> String {
    let body = if atomic {
        format!("BEGIN ATOMIC SELECT CASE WHEN 1 > 0 THEN {literal} ELSE ';' END; SELECT {literal}::text; END")
    } else {
        format!("AS $body$SELECT {literal}::text; $body$")
    };
    format!(
        "CREATE OR REPLACE FUNCTION made.f{number}() RETURNS text LANGUAGE sql {body};\nINSERT INTO log (v) SELECT made.f{number}();\n"
    )
}

/// Rows as COPY reads them, with every escape.
fn rows() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        "a", "é", " ", "'", "\"", ";", "--", "\\\\", "\\t", "\\n", "\\r", "\\b", "\\f", "\\v", "\\101", "\\x41",
        "\\'", "\\\\.", "$$", "/*", "\\\nz",
    ]);
    let row = prop_oneof![
        4 => prop::collection::vec(parts, 0..6).prop_map(|parts| parts.concat()),
        1 => Just("\\N".to_owned()),
    ];
    prop::collection::vec(row, 0..5).prop_map(|rows| rows.iter().map(|row| format!("{row}\n")).collect())
}

fn statement(number: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (gap(), literal(), gap(), literal(), gap()).prop_map(|(a, one, b, other, c)| {
            format!("INSERT{a}INTO log (v) VALUES ({b}{one}{c}||{a}{other}){b};\n")
        }),
        1 => (literal(), any::<bool>()).prop_map(move |(text, atomic)| {
            // A line that is only `\.` would end nothing here, but a body's own quote must not end it.
            sql_function(number, &text.replace("$body$", ""), atomic)
        }),
        1 => (literal(), gap()).prop_map(move |(text, gap)| {
            format!("CREATE VIEW made.\"v{number} ;'--$$\" AS{gap}SELECT {text}::text AS \"a\"\"b;\";\n")
        }),
        2 => (gap(), rows()).prop_map(|(gap, rows)| format!("COPY{gap}log (v) FROM stdin;\n{rows}\\.\n\n")),
        1 => text().prop_map(|text| {
            let old = text.replace('\\', "\\\\").replace('\'', "\\'");
            format!(
                "SET standard_conforming_strings = off;\nSET escape_string_warning = off;\nINSERT INTO log (v) VALUES ('{old}');\nSET standard_conforming_strings = on;\n"
            )
        }),
        1 => gap().prop_map(|gap| format!("--{}\n", gap.replace('\n', ""))),
    ]
}

fn dump() -> impl Strategy<Value = String> {
    let statements = (0..12).map(|number| statement(number).boxed()).collect::<Vec<_>>();
    statements.prop_map(|statements| statements.concat())
}

/// What was read.
#[derive(Default)]
struct Heard {
    statements: Vec<(String, Option<String>)>,
}

impl Listener for Heard {
    fn comment(&mut self, _text: &str, _line: u64) {}

    fn statement(&mut self, text: &[u8], _line: u64) -> Result<Verdict, Failure> {
        let copy = matches!(kind(text), Kind::Copy { .. });
        let text = String::from_utf8(text.to_vec()).unwrap();
        self.statements.push((text, copy.then(String::new)));
        Ok(if copy { Verdict::Copy { frozen: false } } else { Verdict::Keep })
    }

    fn command(&mut self, text: &str, line: u64) -> Result<bool, Failure> {
        Err(Failure::permanent(format!("line {line}: {text}")))
    }

    fn row(&mut self) {}

    fn data(&mut self, rows: &[u8]) {
        let rows = String::from_utf8_lossy(rows);
        self.statements.last_mut().unwrap().1.as_mut().unwrap().push_str(&rows);
    }
}

async fn by_reader(database: &str, text: &str, piece: usize) -> Result<(), String> {
    let (mut lexer, mut heard, mut kept) = (Lexer::default(), Heard::default(), vec![]);
    // Not in the middle of a character: the listener above keeps text.
    let mut rest = text;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.ceil_char_boundary(piece.min(rest.len())));
        lexer.push(now.as_bytes(), &mut heard, Some(&mut kept)).map_err(|failure| failure.to_string())?;
        rest = later;
    }
    assert_eq!(lexer.open(), None);
    assert_eq!(String::from_utf8(kept).unwrap(), text);
    let client = connect(database).await;
    for (statement, rows) in heard.statements {
        let failed = |error: tokio_postgres::Error| format!("{statement}: {:?}", error.as_db_error());
        if let Some(rows) = rows {
            let rows = rows.strip_suffix("\\.\n").unwrap().to_owned();
            let sink = client.copy_in::<_, bytes::Bytes>(&statement).await.map_err(failed)?;
            futures::pin_mut!(sink);
            sink.send(rows.into()).await.map_err(failed)?;
            sink.finish().await.map_err(failed)?;
        } else {
            // One statement and no more: several are refused this way.
            client.execute(&statement, &[]).await.map_err(failed)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_sql_is_what_psql_makes_of_it(text in dump(), piece in 1_usize..200) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let names = Databases::new("reader");
        let (ours, theirs) = runtime.block_on(async {
            (names.create("ours", TABLES).await, names.create("theirs", TABLES).await)
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dump.sql");
        std::fs::write(&file, &text).unwrap();
        by_psql(&theirs, &file);
        let (ours, theirs) = runtime.block_on(async {
            by_reader(&ours, &text, piece).await.unwrap();
            (value(&ours, FOUND).await, value(&theirs, FOUND).await)
        });
        prop_assert_eq!(ours, theirs);
    }
}
