use serde_json::json;

use super::*;

fn shape() -> Shape {
    Shape::new(
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["target"],
            "properties": {
                "target": { "type": "string", "description": "A postgres target." },
                "grace": { "type": ["string", "null"], "format": "duration-text", "pattern": "^([0-9]+(ms|s|m|h|d|w))+$" },
                "jobs": { "type": "integer", "minimum": 1, "maximum": 64 },
                "create": { "type": "boolean" },
                "tables": { "type": "array", "items": { "type": "string" }, "minItems": 1 },
                "format": { "oneOf": [{ "const": "plain", "type": "string" }, { "const": "custom", "type": "string" }] },
                "from": { "$ref": "#/$defs/From" },
                "kind": { "oneOf": [
                    { "type": "object", "required": ["last"], "additionalProperties": false, "properties": { "last": { "type": "integer" } } },
                    { "type": "object", "required": ["days"], "additionalProperties": false, "properties": { "days": { "type": "integer" } } }
                ] },
                "expect": { "anyOf": [{ "type": ["string", "integer"] }, { "type": "object", "additionalProperties": false, "properties": { "min": { "type": "integer" } } }] }
            },
            "$defs": { "From": { "type": "object", "required": ["storage"], "additionalProperties": false, "properties": { "storage": { "type": "string" } } } }
        }),
        "`postgres.test`",
    )
}

fn told(value: &Value) -> Vec<String> {
    shape()
        .check(value)
        .into_iter()
        .map(|misfit| {
            format!(
                "{} {}: {}{}",
                misfit.pointer,
                misfit.code.trim_start_matches("lifeboat::"),
                misfit.message,
                misfit.help.map(|help| format!(" | {help}")).unwrap_or_default()
            )
        })
        .collect()
}

#[test]
fn every_mistake_in_one_go() {
    let value = json!({
        "grace": "5", "jobs": 0, "create": "yes", "tables": "users", "format": "plian", "from": { "storge": "x" },
        "kind": { "lst": 3 }, "expect": { "min": "x" }, "colour": 1
    });
    assert_eq!(
        told(&value),
        [
            "/grace wrong_form: `grace`: `5` is not a duration | write it as `30s`, `5m`, `1h30m` or `90d`",
            "/jobs out_of_range: `jobs` is at least 1, not 0",
            "/create wrong_type: `create` is `true` or `false`, not `yes` | write `true`, without quotes",
            "/tables wrong_type: `tables` is a list, not `users` | write a list: [users]",
            "/format not_one_of: `format` is one of `plain`, `custom`, not `plian` | did you mean `plain`?",
            "/from/storge unknown_key: `from` has no key `storge` | did you mean `storage`?",
            "/from missing_key: `from` needs `storage`",
            "/kind/lst unknown_key: `kind` has no kind `lst` | did you mean `last`?",
            "/expect/min wrong_type: `min` is a whole number, not `x`",
            "/colour unknown_key: `postgres.test` has no key `colour` | known here: `target`",
            " missing_key: `postgres.test` needs `target` | add `target:` — A postgres target.",
        ]
    );
}

#[test]
fn good_values_and_empty_options_fit() {
    let value = json!({ "target": "db", "grace": null, "jobs": 2, "format": "custom", "from": { "storage": "s" }, "kind": { "days": 1 }, "expect": 5 });
    assert_eq!(told(&value), [""; 0]);
}

#[test]
fn holes_are_checked_by_kind_and_filled() {
    let unknown = |kind| Hole::Unknown(kind, "‹a.b›".to_owned());
    let mut value = json!({ "target": "{{x}}", "grace": "{{x}}", "jobs": "{{x}}", "tables": "{{x}}", "format": "{{x}}", "expect": "{{x}}", "from": { "storage": 5 } });
    let holes = Holes::from([
        ("/target".to_owned(), unknown(ValueKind::String)),
        ("/grace".to_owned(), unknown(ValueKind::Duration)),
        ("/jobs".to_owned(), unknown(ValueKind::Integer)),
        ("/tables".to_owned(), unknown(ValueKind::List)),
        ("/format".to_owned(), unknown(ValueKind::String)),
        ("/expect".to_owned(), unknown(ValueKind::Integer)),
        ("/from/storage".to_owned(), Hole::Known),
    ]);
    assert_eq!(shape().fill(&mut value, &holes), []);
    assert_eq!(
        value,
        json!({ "target": "‹a.b›", "grace": "1s", "jobs": 1, "tables": ["‹a.b›"], "format": "plain", "expect": 1, "from": { "storage": "5" } })
    );

    let mut value = json!({ "target": "x", "jobs": "{{x}}", "create": "on-{{x}}" });
    let holes =
        Holes::from([("/jobs".to_owned(), unknown(ValueKind::Timestamp)), ("/create".to_owned(), Hole::Text)]);
    let misfits = shape().fill(&mut value, &holes);
    assert_eq!(misfits.len(), 2, "{misfits:?}");
    assert_eq!(misfits[0].message, "`jobs` is a whole number, but ‹a.b› is a timestamp");
}
