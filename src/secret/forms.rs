//! The forms that a secret takes inside other texts.

use std::fmt::Write as _;

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD};

/// A shorter piece would be found in what is no secret.
const SHORTEST: usize = 8;

/// The secret, and what it looks like in URLs, forms, JSON, HTML and Base64.
pub(super) fn of(secret: &str) -> Vec<String> {
    let encoded = percent_encode(secret);
    let mut forms = vec![
        secret.to_owned(),
        encoded.replace("%20", "+"),
        lowercase_escapes(&encoded),
        encoded,
        json_escape(secret),
        ascii_json(secret),
        html(secret, "&#39;"),
        html(secret, "&#x27;"),
    ];
    forms.extend(base64(secret.as_bytes()));
    forms
}

/// As in a URL.
pub(super) fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// As in a JSON text.
pub(super) fn json_escape(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// As in a JSON text of ASCII alone.
fn ascii_json(text: &str) -> String {
    let mut units = [0; 2];
    let mut escaped = String::new();
    for char in json_escape(text).chars() {
        if char.is_ascii() {
            escaped.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut units) {
            // Writing to a string can't fail.
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// As in an HTML page.
fn html(text: &str, apostrophe: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    text.replace('\'', apostrophe)
}

/// What Base64 makes of it wherever it lies in the encoded text, as far as only the secret decides it.
fn base64(secret: &[u8]) -> Vec<String> {
    let mut pieces = Vec::new();
    for before in 0..3 {
        let padded: Vec<u8> = std::iter::repeat_n(0, before).chain(secret.iter().copied()).collect();
        // A character holds six bits: those that share theirs with a neighbour tell nothing for certain.
        let (from, to) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
        for encoding in [&BASE64_NOPAD, &BASE64URL_NOPAD] {
            pieces.extend(encoding.encode(&padded).get(from..to).map(str::to_owned));
        }
    }
    pieces.retain(|piece| piece.len() >= SHORTEST);
    pieces
}

/// Percent-escapes in lower case.
pub(super) fn lowercase_escapes(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        // What `percent_encode` wrote: two digits after each sign.
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        text + "%" + &digits.to_ascii_lowercase() + rest
    })
}
