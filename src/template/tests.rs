use proptest::prelude::*;
use serde_json::json;

use super::*;

fn context() -> Value {
    json!({
        "inputs": { "mode": "restore", "count": 3, "list": ["a", "b"], "none": null, "flag": false },
        "steps": { "find-backup": { "path": "x.sql.gz", "taken_at": "2024-02-01T10:00:00Z" } },
        "vars": { "odd": "o'b\"x; drop" },
    })
}

fn render(text: &str) -> Result<Value, String> {
    let templated = Templated::parse(json!(text)).map_err(|errors| errors[0].message.clone())?;
    templated.render(&context()).map_err(|error| error.message)
}

#[test]
fn a_whole_expression_keeps_its_type() {
    assert_eq!(render("{{ inputs.count }}"), Ok(json!(3)));
    assert_eq!(render("{{inputs.list}}"), Ok(json!(["a", "b"])));
    assert_eq!(render("{{ inputs.none }}"), Ok(Value::Null));
    assert_eq!(render("{{ len inputs.list }}"), Ok(json!(2)));
    assert_eq!(render("n={{ inputs.count }}"), Ok(json!("n=3")));
    assert_eq!(render("{{ steps.find-backup.path }}"), Ok(json!("x.sql.gz")));
    assert_eq!(render("{{ vars.odd }}"), Ok(json!("o'b\"x; drop")), "no escaping");
}

#[test]
fn helpers() {
    let cases = [
        (r#"{{ default inputs.none "x" }}"#, json!("x")),
        ("{{ default inputs.absent 5 }}", json!(5)),
        (r#"{{ date steps.find-backup.taken_at "%Y%m%dT%H%M%SZ" }}"#, json!("20240201T100000Z")),
        (r#"{{ lower "ABC" }}-{{ replace "a.b" "." "_" }}"#, json!("abc-a_b")),
        (r#"{{ join inputs.list ", " }}"#, json!("a, b")),
        ("{{ json inputs.list }}!", json!(r#"["a","b"]!"#)),
        ("select {{ sql_literal vars.odd }}", json!("select 'o''b\"x; drop'")),
        ("drop {{ sql_ident vars.odd }}", json!("drop \"o'b\"\"x; drop\"")),
        ("{{#if inputs.flag}}yes{{else}}no{{/if}}", json!("no")),
        ("{{#each inputs.list}}<{{this}}>{{/each}}", json!("<a><b>")),
        (r#"{{ eq inputs.mode "restore" }}"#, json!(true)),
    ];
    for (text, expected) in cases {
        assert_eq!(render(text), Ok(expected), "{text}");
    }
}

#[test]
fn a_missing_name_is_an_error_never_text() {
    assert_eq!(render("{{ inputs.absent }}"), Err("`inputs.absent` has no value".to_owned()));
    assert!(render("x {{ inputs.absent }}").is_err());
    assert!(render("{{ sql_literal inputs.absent }}").is_err());
    assert!(render("{{ file \"/etc/passwd\" }}").is_err());
}

#[test]
fn mistakes_are_found_at_load() {
    assert!(render("{{ inputs.mode ").unwrap_err().starts_with("the template does not parse"));
    assert!(render("{{ uper inputs.mode }}").unwrap_err().contains("no helper `uper`"));
    assert!(render("{{ defalt inputs.mode 1 }}").unwrap_err().contains("did you mean `default`"));
    assert!(render("{{> partial }}").is_err());
    let key = Templated::parse(json!({ "{{x}}": 1 })).unwrap_err();
    assert!(key[0].message.contains("key"));
}

#[test]
fn references_with_their_places() {
    let text = "a {{ inputs.mode }} b {{#if (eq steps.find-backup.path vars.odd)}}{{ inputs.count }}{{/if}}";
    let templated = Templated::parse(json!({ "sql": [text] })).unwrap();
    let seen: Vec<_> =
        templated.references().iter().map(|one| (one.pointer.as_str(), &text[one.at.clone()])).collect();
    assert_eq!(
        seen,
        [
            ("/sql/0", "inputs.mode"),
            ("/sql/0", "steps.find-backup.path"),
            ("/sql/0", "vars.odd"),
            ("/sql/0", "inputs.count")
        ]
    );
    assert!(templated.references().iter().all(|one| !one.whole));
}

#[test]
fn bare_expressions_in_sql_are_seen() {
    let text = "select {{ sql_literal inputs.mode }}, {{ inputs.count }}";
    let templated = Templated::parse(json!({ "sql": text })).unwrap();
    let bare: Vec<_> = templated.unquoted("/sql").into_iter().map(|(_, at)| &text[at]).collect();
    assert_eq!(bare, ["{{ inputs.count }}"]);
    assert!(templated.unquoted("/other").is_empty());
}

#[test]
fn conditions() {
    let holds = |text: &str| Condition::parse(text).unwrap().holds(&context());
    assert_eq!(holds(r#"eq inputs.mode "restore""#), Ok(true));
    assert_eq!(holds("inputs.flag"), Ok(false));
    assert_eq!(holds(r#"and inputs.count (not (eq inputs.mode "x"))"#), Ok(true));
    assert!(Condition::parse("{{ inputs.flag }}").is_err());
    assert!(Condition::parse("").is_err());
    assert_eq!(Condition::parse("inputs.flag").unwrap().references()[0].path, ["inputs", "flag"]);
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "[ a-z{}()\"'#/.~@|=\\\\é]{0,40}") {
        if let Ok(templated) = Templated::parse(json!(text)) {
            let _ = templated.render(&context());
        }
        let _ = Condition::parse(&text);
    }
}

#[test]
fn what_grows_without_end_is_refused() {
    let big = json!({ "vars": { "big": "x".repeat(3 << 20), "list": vec!["x"; 3 << 10] } });
    for text in [
        "{{ vars.big }}{{ vars.big }}",
        "{{ replace vars.big \"x\" \"yyyy\" }}",
        "{{ replace vars.big \"x\" vars.big }}",
        "{{ len (join vars.list vars.big) }}",
    ] {
        let error = Templated::parse(json!(text)).unwrap().render(&big).unwrap_err();
        assert!(error.message.ends_with("it renders to more than 4 MiB"), "{text}: {}", error.message);
    }
    let many = Templated::parse(json!({ "a": "{{ vars.big }}", "b": "{{ vars.big }}" })).unwrap();
    assert!(many.render(&big).is_err());
}
