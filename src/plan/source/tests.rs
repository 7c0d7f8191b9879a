use std::fmt::Write;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn value(text: &str) -> Value {
    let (source, problems) = read("x.yaml", text.as_bytes());
    assert!(problems.is_empty(), "{problems:?}");
    source.unwrap().root.to_value()
}

fn first_problem(bytes: &[u8]) -> (&'static str, String, Option<(usize, usize)>) {
    let (_, problems) = read("x.yaml", bytes);
    let problem = problems.first().expect("a problem");
    (problem.code, problem.message.clone(), problem.position())
}

#[test]
fn values_of_every_kind() {
    let text = "a: 1\nb: [x, 'y', \"z\\n\", 1.5, null, true]\nc:\n  - k: v\n  - |\n    two\n    lines\nd: !!str 5\n5: five\n";
    assert_eq!(
        value(text),
        json!({"a": 1, "b": ["x", "y", "z\n", 1.5, null, true], "c": [{"k": "v"}, "two\nlines\n"], "d": "5", "5": "five"})
    );
}

#[test]
fn aliases_and_merge_keys() {
    let text = "base: &base { a: 1, b: 2 }\nmine:\n  <<: *base\n  b: 3\nlist: [*base, *base]\n";
    let base = json!({"a": 1, "b": 2});
    let found = value(text);
    assert_eq!(found["list"], json!([base, base]));
    assert_eq!(found["mine"], json!({"b": 3, "a": 1}));
}

#[test]
fn places_are_bytes_also_after_other_scripts() {
    let text = "título: ñandú\nsteps:\n  a: { needs: [überall, b] }\n";
    let (source, _) = read("x.yaml", text.as_bytes());
    let source = source.unwrap();
    let span = source.root.value_span("/steps/a/needs/0");
    assert_eq!(&text[span.start..span.end], "überall");
    let span = source.root.key_span("/steps/a/needs");
    assert_eq!(&text[span.start..span.end], "needs");
    let span = source.root.value_span("/steps/a/needs/1");
    assert_eq!(&text[span.start..span.end], "b");
}

#[test]
fn what_is_refused_says_where() {
    type Refused<'a> = (&'a [u8], &'a str, &'a str, Option<(usize, usize)>);
    let cases: [Refused<'_>; 11] = [
        (b"", "lifeboat::empty", "x.yaml is empty", None),
        (b"# nothing\n", "lifeboat::empty", "x.yaml is empty", None),
        (b"a: 1\na: 2\n", "lifeboat::duplicate_key", "the key `a` stands here twice", Some((2, 1))),
        (
            b"a: 1\n---\nb: 2\n",
            "lifeboat::several_documents",
            "a second document starts here; one file is one document",
            Some((2, 1)),
        ),
        (b"a: \xff\n", "lifeboat::not_utf8", "x.yaml is not UTF-8: byte 3 (line 1) is 0xff", None),
        (b"a: {{ b }}\n", "lifeboat::syntax", "a value that begins with `{{` is a map to YAML", Some((1, 5))),
        (b"a: !ruby/object x\n", "lifeboat::syntax", "the tag `!ruby/object` means nothing here", Some((1, 4))),
        (b"a: &a [*a]\n", "lifeboat::syntax", "an alias can't stand inside what it repeats", Some((1, 8))),
        (b"? [x]\n: y\n", "lifeboat::syntax", "a key must be a text", Some((1, 3))),
        (
            b"a: 99999999999999999999\n",
            "lifeboat::syntax",
            "`99999999999999999999` is too large a number",
            Some((1, 4)),
        ),
        (b"<<: 5\n", "lifeboat::syntax", "`<<` merges maps only", Some((1, 5))),
    ];
    for (bytes, code, message, position) in cases {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(first_problem(bytes), (code, message.to_owned(), position), "{text}");
    }
    let (_, problems) = read("x.yaml", b"a:\n\t- b\n");
    assert!(problems[0].help.as_ref().unwrap().contains("tab"), "{problems:?}");
}

#[test]
fn a_byte_order_mark_is_no_content() {
    assert_eq!(value("\u{feff}a: 1\n"), json!({"a": 1}));
}

#[test]
fn aliases_that_explode_are_stopped() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(text, "a{level}: &a{level} [{inner}]").unwrap();
    }
    let (code, message, _) = first_problem(text.as_bytes());
    assert_eq!(code, "lifeboat::too_large");
    assert!(message.contains("aliases"), "{message}");

    let long = "x".repeat(1 << 20);
    let text = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 5000].join(", "));
    assert_eq!(first_problem(text.as_bytes()).0, "lifeboat::too_large");
}

#[test]
fn deep_nesting_is_stopped() {
    for (open, levels) in [("[", 100_000), ("- ", 100_000), ("{a: ", 100_000), ("? ", 50_000)] {
        let text = open.repeat(levels);
        let (code, ..) = first_problem(text.as_bytes());
        assert!(["lifeboat::too_deep", "lifeboat::syntax"].contains(&code), "{open} {code}");
    }
    assert_eq!(first_problem("[".repeat(65).as_bytes()).0, "lifeboat::too_deep");
    let nested = "[".repeat(60) + &"]".repeat(60);
    let text = format!("a: &a {nested}\nb: [[[[[*a]]]]]\n");
    assert_eq!(first_problem(text.as_bytes()).0, "lifeboat::too_deep");
}

#[test]
fn a_megabyte_is_read() {
    let mut text = String::new();
    for key in 0..40_000 {
        writeln!(text, "key{key}: [value, \"{key}\"]").unwrap();
    }
    assert!(text.len() > 1_000_000);
    assert_eq!(value(&text).as_object().unwrap().len(), 40_000);
    let too_large = vec![b' '; MAX_BYTES + 1];
    assert_eq!(first_problem(&too_large).0, "lifeboat::too_large");
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (source, problems) = read("x", &bytes);
        prop_assert!(source.is_some() || !problems.is_empty());
    }

    #[test]
    fn any_yaml_like_text_is_answered(text in "([a-c]: ?|- |\\[|\\]|\\{|\\}|, |&a |\\*a |<<: |!!str |\"|'|\\||>|\n|\n  |#|\\?|é|---\n|%|\t|\\{\\{|\u{feff}){0,40}") {
        let (source, problems) = read("x", text.as_bytes());
        prop_assert!(source.is_some() || !problems.is_empty());
        for problem in problems {
            for (span, _) in problem.labels {
                let text = text.strip_prefix("\u{feff}").unwrap_or(&text);
                prop_assert!(text.get(span.start..span.end).is_some(), "{:?}", span);
            }
        }
    }
}
