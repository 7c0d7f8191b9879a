use proptest::prelude::*;

use super::*;

const DUMP: &str = r#"--
-- PostgreSQL database dump
--

\restrict abc

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 17.6

SET statement_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);

CREATE DATABASE auth WITH TEMPLATE = template0;
\unrestrict abc
\connect auth
\restrict abc

CREATE FUNCTION auth.f() RETURNS integer
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT
         CASE
             WHEN true THEN 1
             ELSE $1
         END AS "case;";
END;

CREATE FUNCTION auth.g() RETURNS text
    LANGUAGE plpgsql
    AS $_$ begin /* not a comment's start: */ return '-- PostgreSQL database dump complete; $$ '; end $_$;

ALTER FUNCTION auth.f() OWNER TO lbx;
CREATE RULE r AS ON INSERT TO auth.a DO ALSO (SELECT 1; SELECT 2);
COMMENT ON SCHEMA auth IS 'it''s; \! not a command';
COMMENT ON SCHEMA auth IS E'a\'; still /* inside';
CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;

COPY auth.users (id, name) FROM stdin;
1	a\\.b
2	\\.
3	COPY x FROM stdin;
\.

COPY auth."we""ird.t" (a) FROM stdin;
\.

BEGIN;
SELECT pg_catalog.lo_open('1', 131072);
COMMIT;
GRANT SELECT ON TABLE auth.users TO reader;

--
-- PostgreSQL database dump complete
--

\unrestrict abc

"#;

fn read(dump: &[u8], pieces: usize, rules: Rules) -> (Result<Survey, Failure>, String) {
    let mut reader = PlainReader::new(rules);
    let mut out = vec![];
    for piece in dump.chunks(pieces) {
        if let Err(failure) = reader.push(piece, Some(&mut out)) {
            return (Err(failure), String::new());
        }
    }
    (reader.finish(), String::from_utf8(out).unwrap())
}

fn refused(dump: &str) -> String {
    read(dump.as_bytes(), 7, Rules::default()).0.unwrap_err().message
}

#[test]
fn a_whole_dump_says_what_it_holds() {
    let survey = read(DUMP.as_bytes(), 4096, Rules::default()).0.unwrap();
    let rows: Vec<_> = survey.rows.iter().map(|(table, rows)| (table.as_str(), *rows)).collect();
    assert_eq!(rows, [(r#"auth."we""ird.t""#, 0), ("auth.users", 3)]);
    assert_eq!(survey.database.as_deref(), Some("auth"));
    assert_eq!(survey.server_version.as_deref(), Some("15.18 (Debian 15.18-0+deb12u1)"));
    assert_eq!(survey.tool_version.as_deref(), Some("17.6"));
    assert_eq!(survey.encoding.as_deref(), Some("UTF8"));
    assert_eq!(survey.roles, ["lbx".to_owned(), "reader".to_owned()].into());
    assert_eq!(survey.extensions, ["citext".to_owned()].into());
}

#[test]
fn rows_are_frozen_in_tables_that_the_dump_makes_and_in_no_others() {
    let tables = r#"CREATE TABLE auth.users (id integer, name text);
CREATE UNLOGGED TABLE auth."we""ird.t" (a integer);
CREATE TABLE auth.parted (a integer)
PARTITION BY RANGE (a);
CREATE TABLE IF NOT EXISTS auth.old (a integer);
CREATE FOREIGN TABLE auth.far (a integer) SERVER s;
CREATE TABLE bare (a integer);
CREATE TABLE auth."PARTITION" ("by" integer);
"#;
    let rows = |table: &str| format!("COPY {table} (a) FROM stdin;\n1\n\\.\n");
    let options = "COPY auth.users (id) FROM stdin WITH (NULL 'x');\n1\n\\.\n";
    let of_others = ["auth.parted", "auth.old", "auth.far", "bare2", "auth.unheard"].map(rows).concat() + options;
    let begun = "SELECT pg_catalog.set_config('search_path', '', false);\n";
    let dump = DUMP.replace(begun, &format!("{begun}{tables}"));
    let end = "--\n-- PostgreSQL database dump complete";
    let dump = dump.replace(end, &(of_others + &rows("auth.\"PARTITION\"") + &rows("bare") + end));
    let (survey, out) = read(dump.as_bytes(), 11, Rules::default());
    survey.unwrap();
    let frozen: Vec<_> = out.lines().filter(|line| line.contains("FREEZE")).collect();
    let wanted = [
        "COPY auth.users (id, name) FROM stdin WITH (FREEZE);",
        r#"COPY auth."we""ird.t" (a) FROM stdin WITH (FREEZE);"#,
        r#"COPY auth."PARTITION" (a) FROM stdin WITH (FREEZE);"#,
        "COPY bare (a) FROM stdin WITH (FREEZE);",
    ];
    assert_eq!(frozen, wanted);
}

#[test]
fn what_a_part_of_a_database_leaves_out_is_told() {
    let of = |statements: &str| {
        let begun = "SELECT pg_catalog.set_config('search_path', '', false);\n";
        let dump = DUMP.replace("CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;\n", "");
        let survey = read(dump.replace(begun, &format!("{begun}{statements}")).as_bytes(), 9, Rules::default()).0;
        let survey = survey.unwrap();
        (survey.schemas_left_out().map(str::to_owned).collect::<Vec<_>>(), survey.keys_left_out())
    };
    let tables =
        "CREATE TABLE auth.a (x integer);\nCREATE TABLE public.b (x integer);\nCREATE TABLE \"My s\".c ();\n";
    let key = "ALTER TABLE ONLY auth.a\n    ADD CONSTRAINT k FOREIGN KEY (x) REFERENCES auth.users(id);\n";
    let (schemas, keys) = of(&format!("{tables}{key}"));
    assert_eq!(schemas, ["My s", "auth"]);
    assert_eq!(keys, ["k of auth.a to auth.users"]);
    let whole = "CREATE SCHEMA auth;\nCREATE SCHEMA \"My s\";\nCREATE TABLE auth.users ();\n";
    assert_eq!(of(&format!("{whole}{tables}{key}")), (vec![], vec![]));
    let extension = "CREATE EXTENSION e;\n";
    assert_eq!(of(&format!("{extension}{tables}{key}")), (vec![], vec![]), "it may make them");
}

#[test]
fn what_a_restore_must_not_run_is_left_out_and_lines_stay() {
    let rules = Rules { owners: true, transaction_timeout: true };
    let (survey, out) = read(DUMP.as_bytes(), 4096, rules);
    survey.unwrap();
    for gone in
        ["CREATE DATABASE", "\\connect", "OWNER", "GRANT", "restrict", "\nBEGIN;", "COMMIT;", "transaction_timeout"]
    {
        assert!(!out.contains(gone), "{gone} is left in:\n{out}");
    }
    assert_eq!(out.lines().count(), DUMP.lines().count());
    let line = |text: &str, of: &str| of.lines().position(|line| line.starts_with(text));
    assert_eq!(line("COPY auth.users", &out), line("COPY auth.users", DUMP));
    assert!(out.contains("3\tCOPY x FROM stdin;\n\\.\n"));
}

#[test]
fn nothing_else_is_left_out() {
    let (_, out) = read(DUMP.as_bytes(), 3, Rules::default());
    let expected: String = DUMP
        .lines()
        .map(|line| {
            let gone = ["CREATE DATABASE", "\\connect", "\\restrict", "\\unrestrict", "BEGIN;", "COMMIT;"]
                .iter()
                .any(|gone| line.starts_with(gone));
            if gone { "\n".to_owned() } else { format!("{line}\n") }
        })
        .collect();
    assert_eq!(out, expected);
}

#[test]
fn a_dump_cut_anywhere_before_its_last_blank_line_is_refused() {
    let whole = DUMP.trim_end().len() + 1;
    for end in 0..whole {
        let cut = &DUMP.as_bytes()[..end];
        assert!(
            read(cut, 4096, Rules::default()).0.is_err(),
            "cut after {end} bytes: {}",
            String::from_utf8_lossy(cut)
        );
    }
}

#[test]
fn damaged_dumps_are_told_what_is_wrong() {
    assert!(refused("").contains("empty"));
    assert!(refused(&"garbage\n".repeat(200)).contains("does not begin"));
    // At a row's end, with the rest gone but a trailer forged behind: the rows never end.
    let at_row = DUMP.find("3\tCOPY").unwrap();
    let cut = &DUMP[..at_row];
    assert!(refused(cut).contains("in the rows of a COPY for auth.users"), "{}", refused(cut));
    let no_trailer = DUMP.replace("-- PostgreSQL database dump complete\n", "");
    assert!(refused(&no_trailer).contains("database dump complete"));
    let shell = DUMP.replace("\\connect auth", "\\! touch /here");
    assert!(refused(&shell).contains("psql command `\\!`"));
    let within = DUMP.replace("SET statement_timeout = 0;", "SET statement_timeout \\! touch /here\n = 0;");
    assert!(refused(&within).contains("inside a statement"));
    let two = DUMP.replace("BEGIN;", "\\unrestrict abc\n\\connect other\n\\restrict abc");
    assert!(refused(&two).contains("more than one database"));
    let more = DUMP.replace("\\unrestrict abc\n\n", "\\unrestrict abc\nDROP TABLE auth.users;\n");
    assert!(refused(&more[more.find("PostgreSQL").unwrap() - 6..]).contains("follows"));
    let rollback = DUMP.replace("COMMIT;", "ROLLBACK;");
    assert!(refused(&rollback).contains("transaction"));
}

/// What `psql` would take for a command of its own, where the reader sees a quote, a comment or one command.
const TRICKS: &[(&str, &str)] = &[
    ("SELECT E'a' -- c\n'\\' \\! COMMAND\n--';", "goes on with an E''"),
    ("SELECT E'a'\n'b'\n'\\' \\! COMMAND\n--';", "goes on with an E''"),
    ("SELECT E'''\\' ' \\! COMMAND\n--';", "inside a statement"),
    ("-- x\r\\! COMMAND\n", "carriage return"),
    ("SELECT 1;\r\\! COMMAND\n", "carriage return"),
    ("SELECT E'a'\r'\\' \\! COMMAND\n--';", "carriage return"),
    ("SELECT -\r1;\n", "carriage return"),
    ("SELECT 1$$ ' $$ \\! COMMAND\n';", "dollar sign right after a number"),
    ("SELECT \0'\n1; \\! COMMAND\n--';", "zero byte"),
    ("\\restrict a \\unrestrict a \\! COMMAND\n", "something else than a key"),
    ("\\unrestrict abc \\! COMMAND\n", "something else than a key"),
    ("\\restrict\n", "something else than a key"),
];

#[test]
fn what_psql_and_the_server_read_differently_is_refused() {
    for (trick, said) in TRICKS {
        let dump = DUMP.replace("CREATE EXTENSION", &format!("{trick}\nCREATE EXTENSION"));
        for pieces in [1, 4096] {
            let refused = read(dump.as_bytes(), pieces, Rules::default()).0.unwrap_err().message;
            assert!(refused.contains(said), "{trick:?}: {refused}");
        }
    }
    // What both read the same is taken: lines by both their ends, whatever is quoted.
    let windows = DUMP.replace('\n', "\r\n");
    assert_eq!(read(windows.as_bytes(), 5, Rules::default()).0.unwrap().rows["auth.users"], 3);
    for fine in [
        "SELECT '\r; \\', E'\r\\'', $$\r \\! \r$$, $1, a$1, \"\r\" /* \r */;",
        "SELECT E'a\\''\n'b', 'a'\n'\\';",
        "SET standard_conforming_strings = off;\nSELECT 'a\\''\n'\\'';\nSET standard_conforming_strings = on;",
    ] {
        let dump = DUMP.replace("CREATE EXTENSION", &format!("{fine}\nCREATE EXTENSION"));
        read(dump.as_bytes(), 3, Rules::default()).0.unwrap_or_else(|failure| panic!("{fine}: {failure}"));
    }
}

#[test]
fn memory_stays_bounded_by_a_long_statement() {
    let head = &DUMP[..DUMP.find("CREATE FUNCTION").unwrap()];
    let tail = &DUMP[DUMP.find("--\n-- PostgreSQL database dump complete").unwrap()..];
    let long = format!("{head}INSERT INTO auth.x VALUES ('{}');\n{tail}", "x;''\n".repeat(40_000));
    let (survey, out) = read(long.as_bytes(), 4096, Rules::default());
    assert_eq!(survey.unwrap().inserted, ["auth.x".to_owned()].into());
    assert_eq!(out.lines().count(), long.lines().count());
    assert!(out.contains("INSERT INTO auth.x") && out.contains("database dump complete"));
}

#[test]
fn old_strings_take_backslashes() {
    let old = DUMP
        .replace("strings = on", "strings = off")
        .replace("'it''s; \\! not a command'", "'it\\'; \\! not a command'")
        .replace("'-- PostgreSQL", "'' -- PostgreSQL");
    assert_eq!(read(old.as_bytes(), 5, Rules::default()).0.unwrap().rows["auth.users"], 3);
}

proptest! {
    #[test]
    fn pieces_of_any_size_read_the_same(pieces in 1usize..200, owners: bool) {
        let rules = Rules { owners, ..Rules::default() };
        prop_assert_eq!(read(DUMP.as_bytes(), pieces, rules), read(DUMP.as_bytes(), usize::MAX, rules));
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..1000) {
        let mut dump = DUMP.as_bytes().to_vec();
        let at = at.min(dump.len());
        dump.splice(at..at, bytes);
        let mut reader = PlainReader::new(Rules::default());
        if reader.push(&dump, None).is_ok() {
            let _ = reader.finish();
        }
    }
}
