//! What a YAML scalar means: the core schema of YAML 1.2.
//!
//! `yes`, `no`, `on` and `off` are texts, `012` is twelve. Knows nothing of places.

use serde_json::{Number, Value};

/// The value of `text`, which has the core schema's tag `core`, or is plain and untagged.
///
/// # Errors
/// When the text isn't what its tag says, or a number that can't be held.
pub fn resolve(text: &str, core: Option<&str>) -> Result<Value, String> {
    let wrong = |what: &str| Err(format!("`{text}` is not {what}"));
    match core {
        None => plain(text),
        Some("str") => Ok(Value::from(text)),
        Some("null") => {
            if is_null(text) {
                Ok(Value::Null)
            } else {
                wrong("null")
            }
        }
        Some("bool") => boolean(text).map_or_else(|| wrong("true or false"), |value| Ok(Value::Bool(value))),
        Some("int") => integer(text).unwrap_or_else(|| wrong("a whole number")),
        Some("float") => match integer(text).or_else(|| float(text)) {
            Some(number) => number,
            None => wrong("a number"),
        },
        Some(other) => Err(format!("the tag `!!{other}` means nothing here")),
    }
}

fn plain(text: &str) -> Result<Value, String> {
    if is_null(text) {
        return Ok(Value::Null);
    }
    if let Some(value) = boolean(text) {
        return Ok(Value::Bool(value));
    }
    integer(text).or_else(|| float(text)).unwrap_or_else(|| Ok(Value::from(text)))
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn integer(text: &str) -> Option<Result<Value, String>> {
    let (radix, digits) = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(hex), _) => (16, hex),
        (_, Some(octal)) => (8, octal),
        _ => (10, text.strip_prefix(['+', '-']).unwrap_or(text)),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let number = match (radix, text.strip_prefix('-')) {
        (10, Some(digits)) => format!("-{digits}").parse::<i64>().map(Value::from),
        _ => u64::from_str_radix(digits, radix).map(Value::from),
    };
    Some(number.map_err(|_| format!("`{text}` is too large a number")))
}

fn float(text: &str) -> Option<Result<Value, String>> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Err(format!("`{text}` is not a number that a plan can use")));
    }
    let starts_well = unsigned.strip_prefix('.').unwrap_or(unsigned).starts_with(|c: char| c.is_ascii_digit());
    let only_number = unsigned.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    if !starts_well || !only_number {
        return None;
    }
    // What Rust reads of these characters is what the core schema reads.
    let number: f64 = text.parse().ok()?;
    Some(Number::from_f64(number).map(Value::Number).ok_or_else(|| format!("`{text}` is too large a number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_core_schema() {
        let cases = [
            ("", json!(null)),
            ("~", json!(null)),
            ("True", json!(true)),
            ("yes", json!("yes")),
            ("012", json!(12)),
            ("-7", json!(-7)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("1.2.3", json!("1.2.3")),
            ("1-2", json!("1-2")),
            ("e5", json!("e5")),
            ("10MiB", json!("10MiB")),
            ("2024-02-01T10:00:00Z", json!("2024-02-01T10:00:00Z")),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text, None), Ok(expected), "{text}");
        }
        for bad in ["99999999999999999999", ".inf", "-.INF", ".nan", "1e999"] {
            assert!(resolve(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_decide() {
        assert_eq!(resolve("5", Some("str")), Ok(json!("5")));
        assert_eq!(resolve("5", Some("float")), Ok(json!(5)));
        assert!(resolve("x", Some("int")).is_err());
        assert!(resolve("x", Some("binary")).is_err());
    }
}
