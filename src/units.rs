//! Durations, sizes and instants as plans write them: `1h30m`, `10MiB`, RFC 3339.
//!
//! Each has one text form that parses back to itself, and a JSON Schema of its own.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, to the millisecond: `250ms`, `30s`, `5m`, `1h30m`, `90d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

/// What [`Duration`] accepts, as a regular expression for the schema.
pub const DURATION_PATTERN: &str = r"^([0-9]+(ms|s|m|h|d|w))+$";

const DURATION_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Duration {
    /// From whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// From milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// The standard library's type.
    pub const fn std(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a duration: write it as `30s`, `5m`, `1h30m` or `90d`");
        let mut rest = text;
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit = &rest[..letters];
            rest = &rest[letters..];
            let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            total = number
                .checked_mul(*factor)
                .and_then(|millis| total.checked_add(millis))
                .filter(|millis| *millis <= 100 * 366 * 86_400_000)
                .ok_or_else(|| format!("`{text}` is longer than 100 years"))?;
        }
        Ok(Self::millis(total))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in DURATION_UNITS {
            // Weeks are read but not written: `14d` is what people say.
            if unit != "w" && rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

/// A number of bytes: `512`, `10KiB`, `1GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// What [`Size`] accepts as text, as a regular expression for the schema.
pub const SIZE_PATTERN: &str = r"^[0-9]+ ?(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?$";

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size: write it as `512`, `10KiB`, `10MiB` or `1GB`");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = text[digits..].trim_start();
        let factor = match unit {
            "" => 1,
            _ => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| format!("`{text}` is too large a size"))
    }
}

impl fmt::Display for Size {
    /// For people: one decimal in binary units (`1.5 MiB`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
        let bytes = self.0 as f64;
        for (unit, factor) in SIZE_UNITS.iter().rev().filter(|(unit, _)| unit.ends_with("iB")) {
            if self.0 >= *factor {
                #[expect(clippy::cast_precision_loss, reason = "powers of two are exact")]
                return write!(f, "{:.1} {unit}", bytes / *factor as f64);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// An instant in UTC, as RFC 3339 writes it. A time without an offset is refused:
/// it would be read in whatever zone the reader happens to sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub jiff::Timestamp);

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!("`{text}` is not a timestamp: write RFC 3339 with an offset, as 2024-02-01T10:00:00Z")
        })
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Serde and schema for a unit whose text form is its JSON form. Sizes and
/// durations also accept a bare number where `$number` says what it counts.
macro_rules! text_unit {
    ($type:ident, $schema:expr, number: $number:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        text_unit!(@de $type, $schema, $number);
    };
    (@de $type:ident, $schema:expr, $number:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(stringify!($type))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        let from: Option<fn(u64) -> $type> = $number;
                        from.map(|from| from(number))
                            .ok_or_else(|| E::invalid_type(de::Unexpected::Unsigned(number), &self))
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

text_unit!(Duration, json_schema!({ "type": "string", "format": "duration-text", "pattern": DURATION_PATTERN }), number: None);
text_unit!(Timestamp, json_schema!({ "type": "string", "format": "date-time" }), number: None);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}
text_unit!(@de Size, json_schema!({ "type": ["integer", "string"], "format": "size", "minimum": 0, "pattern": SIZE_PATTERN }), Some(Size));

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_duration_prints_what_it_parses(millis in 0u64..10_000_000_000) {
            let duration = Duration::millis(millis);
            prop_assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,20}") {
            let _ = text.parse::<Duration>();
            let _ = text.parse::<Size>();
            let _ = text.parse::<Timestamp>();
        }
    }

    #[test]
    fn forms() {
        assert_eq!("1h30m".parse(), Ok(Duration::seconds(5400)));
        assert_eq!(Duration::seconds(90 * 86_400).to_string(), "90d");
        assert_eq!("10MiB".parse(), Ok(Size(10 << 20)));
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
        assert!("2024-02-01T10:00:00".parse::<Timestamp>().is_err(), "an offset is required");
        for bad in ["", "5", "m", "1x", "-1s", "1.5h"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }
}
