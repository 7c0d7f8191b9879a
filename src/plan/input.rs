//! The values of a plan's inputs: parsed from the command line or a file, checked by type and bounds.
//!
//! Knows one input at a time; which value wins is decided in `scope`.

use serde_json::Value;

use super::document::{InputDocument, InputType};
use super::problem::{clip, nearest, quoted};
use crate::matcher::Matcher;
use crate::units::{Duration, Timestamp};

/// What is wrong with a value, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The problem's code.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

fn wrong(code: &'static str, message: String) -> Wrong {
    Wrong { code, message, help: None }
}

/// The value of a text from the command line.
///
/// # Errors
/// When the text isn't one of the input's type.
pub fn from_text(name: &str, input: &InputDocument, text: &str) -> Result<Value, Wrong> {
    let not = |what: &str| {
        let shown = if input.secret { "it".to_owned() } else { format!("`{}`", clip(text)) };
        wrong("lifeboat::wrong_type", format!("input `{name}` is {what}; {shown} is not"))
    };
    let value = match input.kind {
        InputType::String | InputType::Duration | InputType::Timestamp => Value::from(text),
        InputType::Integer => text.parse::<i64>().map(Value::from).map_err(|_| not("a whole number"))?,
        InputType::Number => match serde_json::from_str::<Value>(text) {
            Ok(number @ Value::Number(_)) => number,
            _ => return Err(not("a number")),
        },
        InputType::Boolean => match text {
            "true" | "yes" => Value::Bool(true),
            "false" | "no" => Value::Bool(false),
            _ => return Err(not("`true` or `false`")),
        },
        InputType::List => match serde_json::from_str::<Value>(text) {
            Ok(list @ Value::Array(_)) => list,
            _ if text.is_empty() => Value::Array(Vec::new()),
            _ => text.split(',').map(|item| Value::from(item.trim())).collect(),
        },
    };
    check(name, input, &value)?;
    Ok(value)
}

/// Whether a value fits: type, choices, pattern, bounds.
///
/// # Errors
/// The first thing that doesn't.
pub fn check(name: &str, input: &InputDocument, value: &Value) -> Result<(), Wrong> {
    let shown = || if input.secret { "its value".to_owned() } else { format!("`{}`", clip(&text(value))) };
    let not = |what: &str| wrong("lifeboat::wrong_type", format!("input `{name}` is {what}; {} is not", shown()));
    match input.kind {
        InputType::String if !value.is_string() => {
            let quoted = if input.secret { "…".to_owned() } else { clip(&text(value)) };
            return Err(Wrong { help: Some(format!("put it in quotes: \"{quoted}\"")), ..not("a text") });
        }
        InputType::Integer if !(value.is_i64() || value.is_u64()) => return Err(not("a whole number")),
        InputType::Number if !value.is_number() => return Err(not("a number")),
        InputType::Boolean if !value.is_boolean() => {
            let meant =
                value.as_str().filter(|_| !input.secret).and_then(truth).map(|meant| format!("write `{meant}`"));
            return Err(Wrong { help: meant, ..not("`true` or `false`") });
        }
        InputType::List if !value.is_array() => return Err(not("a list")),
        InputType::Duration if value.as_str().is_none_or(|text| text.parse::<Duration>().is_err()) => {
            return Err(Wrong {
                help: Some("write it as `30s`, `5m`, `1h30m` or `90d`".to_owned()),
                ..not("a duration")
            });
        }
        InputType::Timestamp if value.as_str().is_none_or(|text| text.parse::<Timestamp>().is_err()) => {
            let help = Some("write RFC 3339 with an offset, as 2024-02-01T10:00:00Z".to_owned());
            return Err(Wrong { help, ..not("a timestamp") });
        }
        _ => {}
    }
    let members: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        one => vec![one],
    };
    for member in members {
        choice(name, input, member)?;
        if let Some(pattern) = &input.pattern
            && !super::shape::matches(pattern, &text(member))
        {
            return Err(wrong(
                "lifeboat::wrong_form",
                format!("input `{name}` must match /{pattern}/; {} does not", shown()),
            ));
        }
    }
    bounds(name, input, value)
}

fn choice(name: &str, input: &InputDocument, value: &Value) -> Result<(), Wrong> {
    let Some(choices) = &input.choices else { return Ok(()) };
    if choices.contains(value) {
        return Ok(());
    }
    let words: Vec<String> = choices.iter().map(text).collect();
    let given = text(value);
    let help =
        nearest(&given, words.iter().map(String::as_str)).map(|nearest| format!("did you mean `{nearest}`?"));
    let shown = if input.secret { "its value".to_owned() } else { format!("`{}`", clip(&given)) };
    let message = format!("input `{name}` is one of {}, not {shown}", quoted(words.iter().map(String::as_str)));
    let help = help.filter(|_| !input.secret);
    Err(Wrong { help, ..wrong("lifeboat::not_one_of", message) })
}

fn bounds(name: &str, input: &InputDocument, value: &Value) -> Result<(), Wrong> {
    let measured = value.as_array().map_or_else(|| value.clone(), |items| Value::from(items.len()));
    for (key, bound, words) in [("min", &input.min, "at least"), ("max", &input.max, "at most")] {
        let Some(bound) = bound else { continue };
        let fits = match input.kind {
            InputType::Duration => {
                let parse = |value: &Value| value.as_str()?.parse::<Duration>().ok();
                parse(&measured).zip(parse(bound)).is_none_or(|(a, b)| if key == "min" { a >= b } else { a <= b })
            }
            InputType::Timestamp => {
                let parse = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
                parse(&measured).zip(parse(bound)).is_none_or(|(a, b)| if key == "min" { a >= b } else { a <= b })
            }
            _ => Matcher::new(serde_json::json!({ key: bound })).is_ok_and(|matcher| matcher.accepts(&measured)),
        };
        if !fits {
            let entries = if value.is_array() { " entries" } else { "" };
            let shown = if input.secret { "what it is given".to_owned() } else { text(&measured) };
            let message = format!("input `{name}` is {words} {}{entries}, not {shown}", text(bound));
            return Err(wrong("lifeboat::out_of_range", message));
        }
    }
    Ok(())
}

/// Whether what an input declares makes sense: its bounds, pattern and choices, by its type.
/// Gives each key that doesn't, as a pointer below the input.
pub fn check_declaration(name: &str, input: &InputDocument) -> Vec<(String, Wrong)> {
    let mut found = Vec::new();
    let bounds = [("min", &input.min), ("max", &input.max)];
    for (key, bound) in bounds.iter().filter_map(|(key, bound)| Some((*key, bound.as_ref()?))) {
        found.extend(bound_of(name, input, key, bound).map(|wrong| (key.to_owned(), wrong)));
    }
    if let (Some(min), Some(max)) = (&input.min, &input.max)
        && found.is_empty()
        && !input.reaches_min(max)
    {
        let message = format!("`max` of input `{name}` is less than its `min`, {}: nothing fits", text(min));
        found.push(("max".to_owned(), wrong("lifeboat::out_of_range", message)));
    }
    if input.pattern.is_some() && !matches!(input.kind, InputType::String | InputType::List) {
        let message = format!("input `{name}` is no text and has no `pattern`");
        let help = Some("use `choices`, or `min` and `max`".to_owned());
        found.push(("pattern".to_owned(), Wrong { help, ..wrong("lifeboat::wrong_type", message) }));
    }
    // The choices of a list are those of its entries, which can be anything.
    let choices = input.choices.iter().flatten().enumerate().filter(|_| input.kind != InputType::List);
    for (index, choice) in choices {
        if let Err(wrong) = check(name, input, choice) {
            let message = format!("nobody can choose this: {}", wrong.message);
            found.push((format!("choices/{index}"), Wrong { message, ..wrong }));
        }
    }
    found
}

impl InputDocument {
    /// Whether a bound is not below `min`.
    fn reaches_min(&self, bound: &Value) -> bool {
        // The bounds of a list count its entries: they compare as numbers do.
        let kind = if self.kind == InputType::List { InputType::Number } else { self.kind };
        bounds("", &Self { kind, max: None, ..self.clone() }, bound).is_ok()
    }
}

/// Whether a bound is of the input's type.
fn bound_of(name: &str, input: &InputDocument, key: &str, bound: &Value) -> Option<Wrong> {
    let (fits, what) = match input.kind {
        InputType::Duration => (bound.as_str().is_some_and(|text| text.parse::<Duration>().is_ok()), "a duration"),
        InputType::Timestamp => {
            (bound.as_str().is_some_and(|text| text.parse::<Timestamp>().is_ok()), "a timestamp")
        }
        InputType::Integer | InputType::Number | InputType::List => (bound.is_number(), "a number"),
        InputType::String | InputType::Boolean => {
            let message = format!("input `{name}` is a text or truth value and has no `{key}`");
            let help = Some("use `pattern` or `choices`".to_owned());
            return Some(Wrong { help, ..wrong("lifeboat::wrong_type", message) });
        }
    };
    let message = || format!("`{key}` of input `{name}` is {what}, not `{}`", clip(&text(bound)));
    (!fits).then(|| wrong("lifeboat::wrong_type", message()))
}

/// What a word means that is `true` or `false` in other YAML files.
fn truth(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "yes" | "y" | "on" | "true" => Some(true),
        "no" | "n" | "off" | "false" => Some(false),
        _ => None,
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn input(value: Value) -> InputDocument {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn texts_become_values_of_the_type() {
        let cases = [
            ("integer", "5", Ok(json!(5))),
            ("integer", "5.5", Err("input `x` is a whole number; `5.5` is not")),
            ("number", "1e3", Ok(json!(1000.0))),
            ("boolean", "yes", Ok(json!(true))),
            ("boolean", "maybe", Err("input `x` is `true` or `false`; `maybe` is not")),
            ("list", "a, b", Ok(json!(["a", "b"]))),
            ("list", "[1, 2]", Ok(json!([1, 2]))),
            ("duration", "5", Err("input `x` is a duration; `5` is not")),
            ("timestamp", "2024-02-01T10:00:00", Err("input `x` is a timestamp; `2024-02-01T10:00:00` is not")),
        ];
        for (kind, text, expected) in cases {
            let found = from_text("x", &input(json!({ "type": kind })), text);
            assert_eq!(found.map_err(|wrong| wrong.message), expected.map_err(str::to_owned), "{kind} {text}");
        }
    }

    #[test]
    fn bounds_and_choices() {
        let duration = input(json!({ "type": "duration", "min": "1m", "max": "1h" }));
        assert!(from_text("x", &duration, "90s").is_ok());
        assert_eq!(from_text("x", &duration, "2h").unwrap_err().message, "input `x` is at most 1h, not 2h");
        let choice = input(json!({ "choices": ["restore", "verify"] }));
        assert_eq!(from_text("x", &choice, "restor").unwrap_err().help.as_deref(), Some("did you mean `restore`?"));
        let pattern = input(json!({ "pattern": "^[a-z]+$", "secret": true }));
        assert!(!from_text("x", &pattern, "Hunter2").unwrap_err().message.contains("Hunter2"));
        let secret = input(json!({ "choices": ["red"], "secret": true }));
        let wrong = from_text("x", &secret, "Hunter2").unwrap_err();
        assert!(!format!("{wrong:?}").contains("Hunter2"), "{wrong:?}");
    }

    #[test]
    fn declarations_that_nothing_fits() {
        let cases = [
            (json!({ "min": 3 }), "min"),
            (json!({ "type": "duration", "min": "2h", "max": "1h" }), "max"),
            (json!({ "type": "list", "min": 3, "max": 2 }), "max"),
            (json!({ "type": "boolean", "pattern": "x" }), "pattern"),
            (json!({ "type": "integer", "choices": [1, "two"] }), "choices/1"),
            (json!({ "pattern": "^a$", "choices": ["a", "b"] }), "choices/1"),
        ];
        for (declared, key) in cases {
            let found = check_declaration("x", &input(declared.clone()));
            assert_eq!(found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), [key], "{declared}");
        }
        let good = input(json!({ "type": "list", "min": 1, "max": 2, "choices": ["a", 1], "pattern": "a|1" }));
        assert_eq!(check_declaration("x", &good), []);
    }
}
