//! Values that can't print, and the filter that takes them out of everything that can.
//!
//! A secret enters through an environment file (`env`, `file`) or a `secret` input.
//! It is registered with the run's [`Redactor`], and every text that leaves the
//! program passes that filter.

mod forms;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, RwLock};

use schemars::JsonSchema;
use serde::Deserialize;

/// What stands in a secret's place.
pub const MASK: &str = "●●●●";

/// A value that shows as [`MASK`] however it is printed.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Knows a run's secrets and masks them wherever they turn up, also percent-encoded (inside a URL), in Base64 (a
/// header that carries a password), or escaped for JSON or HTML. Cloning shares the list.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Longest first, so that a secret that contains another goes whole.
    needles: Arc<RwLock<Vec<String>>>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// Registers a secret, with the forms it takes inside URLs and JSON. A URL with a
    /// password registers the password as well, since errors quote it alone.
    pub fn add(&self, secret: &str) {
        let mut forms = forms::of(secret);
        if let Some(password) = url_password(secret).map(|range| &secret[range]) {
            forms.extend(forms::of(password));
            forms.extend(forms::of(&percent_decode(password)));
        }
        // A web hook's secret is a part of its path, and the other side quotes that alone.
        let parts = secret.strip_prefix("http").and_then(|rest| rest.split_once("://")).map(|(_, rest)| rest);
        let parts = parts.into_iter().flat_map(|rest| rest.split(['/', '?', '&', '=', '#']).skip(1));
        for part in parts.filter(|part| part.len() >= 16) {
            forms.extend(forms::of(part));
            forms.extend(forms::of(&percent_decode(part)));
        }
        // Of a key in several lines each line is one: others indent them, or end them in another way.
        let lines = secret.lines().map(str::trim).filter(|line| line.len() >= 16 && !line.starts_with("-----"));
        forms.extend(lines.filter(|line| line.len() < secret.trim().len()).flat_map(forms::of));
        // A lock is poisoned only by a panic while it is held; pushing to a list doesn't.
        let mut needles = self.needles.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for form in forms {
            // An empty needle would match everywhere.
            if !form.is_empty() && !needles.contains(&form) {
                needles.push(form);
            }
        }
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
    }

    /// `text` with every secret masked.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let needles = self.needles.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut result = Cow::Borrowed(text);
        for needle in needles.iter() {
            if result.contains(needle.as_str()) {
                result = Cow::Owned(result.replace(needle.as_str(), MASK));
            }
        }
        result
    }

    /// `value` with every secret masked in its strings and keys.
    pub fn redact_json(&self, value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::String(text) => Value::String(self.redact(&text).into_owned()),
            Value::Array(items) => items.into_iter().map(|item| self.redact_json(item)).collect(),
            Value::Object(map) => map
                .into_iter()
                .map(|(key, item)| (self.redact(&key).into_owned(), self.redact_json(item)))
                .collect(),
            Value::Number(number) if self.finds(&number.to_string()) => Value::String(MASK.to_owned()),
            other => other,
        }
    }

    /// A filter for a stream that arrives in pieces: a secret split over two writes is
    /// masked all the same.
    pub fn stream(&self) -> RedactStream {
        RedactStream { redactor: self.clone(), held: Vec::new() }
    }

    /// Whether `text` holds a secret.
    pub fn finds(&self, text: &str) -> bool {
        matches!(self.redact(text), Cow::Owned(_))
    }

    fn longest(&self) -> usize {
        let needles = self.needles.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        needles.first().map_or(0, String::len)
    }
}

/// See [`Redactor::stream`].
#[derive(Debug)]
pub struct RedactStream {
    redactor: Redactor,
    held: Vec<u8>,
}

impl RedactStream {
    /// Takes the next piece, gives back what is safe to show.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.held.extend_from_slice(piece);
        // Whole lines go at once; what is left is held until no secret can still begin in it.
        let line_end = self.held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let keep_for_secret = self.redactor.longest().max(4);
        let mut cut = if self.holds_multiline() {
            self.held.len().saturating_sub(keep_for_secret)
        } else {
            line_end.max(self.held.len().saturating_sub(64 * 1024 + keep_for_secret))
        };
        cut = self.cut_outside_secrets(cut);
        let ready: Vec<u8> = self.held.drain(..cut).collect();
        self.redactor.redact(&String::from_utf8_lossy(&ready)).into_owned()
    }

    /// What is left at the end of the stream.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        self.redactor.redact(&String::from_utf8_lossy(&rest)).into_owned()
    }

    fn holds_multiline(&self) -> bool {
        let needles = self.redactor.needles.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        needles.iter().any(|needle| needle.contains('\n'))
    }

    /// Moves `cut` down to before any secret that straddles it.
    fn cut_outside_secrets(&self, mut cut: usize) -> usize {
        let needles = self.redactor.needles.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        for needle in needles.iter() {
            let bytes = needle.as_bytes();
            let from = cut.saturating_sub(bytes.len().saturating_sub(1));
            for start in from..cut {
                if self.held[start..].starts_with(bytes) {
                    cut = start;
                    break;
                }
            }
        }
        cut
    }
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Where the password of `scheme://user:password@host…` is, as it is written there: also one with a sign that should be
/// escaped, which PostgreSQL's clients take.
pub fn url_password(text: &str) -> Option<Range<usize>> {
    let begins = text.find("://")? + 3;
    let authority = text[begins..].split(['/', '?', '#']).next()?;
    let (user_info, _) = authority.rsplit_once('@').or_else(|| text[begins..].rsplit_once('@'))?;
    let (user, _) = user_info.split_once(':').filter(|(user, _)| !user.contains(['/', '?', '#']))?;
    Some(begins + user.len() + 1..begins + user_info.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_secret_never_prints() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), format!("{MASK} {MASK}"));
    }

    #[test]
    fn a_url_registers_its_password() {
        let redactor = Redactor::default();
        redactor.add("postgres://admin:p%40ss@db:5432/x");
        assert_eq!(redactor.redact("password p@ss refused"), format!("password {MASK} refused"));
    }

    #[test]
    fn a_password_is_found_with_signs_that_should_be_escaped() {
        for (url, password) in [
            ("postgres://me:plain@db/x", Some("plain")),
            ("postgres://me:s3c#ret@db/x", Some("s3c#ret")),
            ("postgres://me:a/b?c@db/x", Some("a/b?c")),
            ("postgres://me:a@b@db/x", Some("a@b")),
            ("postgres://me@db/x", None),
            ("https://hooks/x?to=me@example.org", None),
            ("https://hooks/a:b@c", None),
            ("me:plain@db", None),
        ] {
            assert_eq!(url_password(url).map(|range| &url[range]), password, "{url}");
        }
    }

    #[test]
    fn a_line_of_a_key_and_a_number_are_secrets() {
        let redactor = Redactor::default();
        redactor.add("-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END KEY-----\n");
        redactor.add("4211998877");
        assert_eq!(redactor.redact("key:  MIIEvQIBADANBgkqhkiG9w0B\r\n"), format!("key:  {MASK}\r\n"));
        assert_eq!(redactor.redact_json(4_211_998_877_u64.into()), MASK);
    }

    proptest! {
        #[test]
        fn no_form_of_a_secret_shows(secret in "[a-zA-Z0-9:/@+= \"'&\\\\é]{8,30}", user in "[a-z]{0,7}") {
            let redactor = Redactor::default();
            redactor.add(&secret);
            let lower = forms::lowercase_escapes(&forms::percent_encode(&secret));
            for form in [forms::percent_encode(&secret), lower, forms::json_escape(&secret)] {
                let shown = redactor.redact(&format!("x{form}y")).into_owned();
                prop_assert!(!shown.contains(&form), "{shown}");
            }
            for encoding in [data_encoding::BASE64, data_encoding::BASE64URL, data_encoding::BASE64_NOPAD] {
                let header = encoding.encode(format!("{user}:{secret}").as_bytes());
                let shown = redactor.redact(&header).into_owned();
                prop_assert!(shown.contains(MASK), "{header} → {shown}");
                // What is left on either side tells less than two bytes of it.
                let left = shown.split(MASK).map(str::len).sum::<usize>();
                prop_assert!(left <= (user.len() + 1) * 4 / 3 + 8, "{header} → {shown}");
            }
        }

        #[test]
        fn no_split_lets_a_secret_through(
            secret in "[a-zA-Z0-9:/@ \"]{6,30}",
            before in "[a-z\n]{0,200}",
            after in "[a-z\n]{0,200}",
            cut in 0usize..400,
        ) {
            let redactor = Redactor::default();
            redactor.add(&secret);
            let text = format!("{before}{secret}{after}");
            let cut = cut.min(text.len());
            let mut stream = redactor.stream();
            let shown = stream.push(&text.as_bytes()[..cut]) + &stream.push(&text.as_bytes()[cut..]) + &stream.finish();
            prop_assert!(!shown.contains(&secret));
        }
    }
}
