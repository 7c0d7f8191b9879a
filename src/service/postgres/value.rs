//! Values between SQL and JSON: rows as JSON, parameters as text that the server converts.

use std::error::Error;
use std::fmt::Write as _;
use std::net::IpAddr;

use bytes::BytesMut;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{Format, FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

use crate::failure::Failure;

/// A row's values in order, as JSON: whole numbers and exact decimals as numbers, other
/// numerics as text, instants as RFC 3339 in UTC, arrays as lists.
///
/// # Errors
/// When a column is of a type that has no JSON form here: cast it to text in the query.
pub fn row_values(row: &Row) -> Result<Vec<Value>, Failure> {
    (0..row.len())
        .map(|index| {
            let column = &row.columns()[index];
            row.try_get::<_, Option<Cell>>(index).map(|cell| cell.map_or(Value::Null, |cell| cell.0)).map_err(
                |_| {
                    Failure::permanent(format!(
                        "read column `{}`: its type {} has no JSON form",
                        column.name(),
                        column.type_()
                    ))
                    .help(format!("cast it in the query: {}::text", column.name()))
                },
            )
        })
        .collect()
}

/// A parameter that the server converts to the type that it infers for it (`$1`).
#[derive(Clone, Debug, PartialEq)]
pub struct Param(pub Value);

impl ToSql for Param {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let text = match &self.0 {
            Value::Null => return Ok(IsNull::Yes),
            Value::String(text) => text.clone(),
            Value::Array(items) if matches!(ty.kind(), Kind::Array(_)) => array_text(items),
            other => other.to_string(),
        };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A list as an array's text form: `{1,NULL,"a \"b\""}`.
fn array_text(items: &[Value]) -> String {
    let item_text = |item: &Value| match item {
        Value::Null => "NULL".to_owned(),
        Value::Array(items) => array_text(items),
        Value::String(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        Value::Object(_) => format!("\"{}\"", item.to_string().replace('\\', "\\\\").replace('"', "\\\"")),
        other => other.to_string(),
    };
    format!("{{{}}}", items.iter().map(item_text).collect::<Vec<_>>().join(","))
}

/// One value of any type that has a JSON form.
struct Cell(Value);

type Decoded = Result<Value, Box<dyn Error + Sync + Send>>;

impl<'a> FromSql<'a> for Cell {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        decode(ty, raw).map(Self)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn decode(ty: &Type, raw: &[u8]) -> Decoded {
    match ty.kind() {
        Kind::Array(element) => return array(element, raw),
        Kind::Domain(inner) => return decode(inner, raw),
        Kind::Enum(_) => return Ok(std::str::from_utf8(raw)?.into()),
        _ => {}
    }
    Ok(match *ty {
        Type::BOOL => bool::from_sql(ty, raw)?.into(),
        Type::INT2 => i16::from_sql(ty, raw)?.into(),
        Type::INT4 => i32::from_sql(ty, raw)?.into(),
        Type::INT8 => i64::from_sql(ty, raw)?.into(),
        Type::OID
        | Type::XID
        | Type::CID
        | Type::REGPROC
        | Type::REGCLASS
        | Type::REGTYPE
        | Type::REGROLE
        | Type::REGNAMESPACE => u32::from_be_bytes(raw.try_into()?).into(),
        Type::XID8 => u64::from_be_bytes(raw.try_into()?).into(),
        Type::FLOAT4 => float(f64::from(f32::from_sql(ty, raw)?)),
        Type::FLOAT8 => float(f64::from_sql(ty, raw)?),
        Type::NUMERIC => numeric(raw)?,
        Type::JSON => serde_json::from_slice(raw)?,
        Type::JSONB => serde_json::from_slice(raw.get(1..).ok_or("empty jsonb")?)?,
        Type::TIMESTAMPTZ => instant(i64::from_be_bytes(raw.try_into()?), true)?,
        Type::TIMESTAMP => instant(i64::from_be_bytes(raw.try_into()?), false)?,
        Type::DATE => date(i32::from_be_bytes(raw.try_into()?))?,
        Type::TIME => time(i64::from_be_bytes(raw.try_into()?)).into(),
        Type::INTERVAL => interval(raw)?,
        Type::UUID => uuid(raw)?,
        Type::BYTEA => format!("\\x{}", hex(raw)).into(),
        Type::INET | Type::CIDR => inet(raw)?,
        Type::PG_LSN => {
            let lsn = u64::from_be_bytes(raw.try_into()?);
            format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff).into()
        }
        Type::VOID => Value::Null,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::XML | Type::CHAR => {
            std::str::from_utf8(raw)?.into()
        }
        _ if ty.name() == "citext" => std::str::from_utf8(raw)?.into(),
        _ => return Err(format!("no JSON form of {ty}").into()),
    })
}

fn float(number: f64) -> Value {
    // JSON has no infinity; text says what it is.
    serde_json::Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}

/// A numeric: as a number where that is exact, else as text.
fn numeric(raw: &[u8]) -> Decoded {
    let text = numeric_text(raw)?;
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(whole.into());
    }
    let exact = text.parse::<f64>().ok().filter(|number| {
        text.contains('.')
            && number.is_finite()
            && number.to_string() == text.trim_end_matches('0').trim_end_matches('.')
    });
    Ok(exact.map_or_else(|| text.clone().into(), float))
}

/// The wire form: base-10000 digits, their weight, sign, and the digits to show after the point.
fn numeric_text(raw: &[u8]) -> Result<String, Box<dyn Error + Sync + Send>> {
    let word = |at: usize| -> Result<[u8; 2], Box<dyn Error + Sync + Send>> {
        Ok(raw.get(2 * at..2 * at + 2).ok_or("short numeric")?.try_into()?)
    };
    let count = u16::from_be_bytes(word(0)?);
    let weight = i32::from(i16::from_be_bytes(word(1)?));
    let sign = u16::from_be_bytes(word(2)?);
    let scale = usize::from(u16::from_be_bytes(word(3)?));
    match sign {
        0xC000 => return Ok("NaN".to_owned()),
        0xD000 => return Ok("Infinity".to_owned()),
        0xF000 => return Ok("-Infinity".to_owned()),
        _ => {}
    }
    let digits = (0..usize::from(count))
        .map(|at| Ok(u16::from_be_bytes(word(4 + at)?)))
        .collect::<Result<Vec<_>, Box<dyn Error + Sync + Send>>>()?;
    let digit = |at: i32| usize::try_from(at).ok().and_then(|at| digits.get(at)).copied().unwrap_or(0);
    let groups_of = |from: i32, to: i32| {
        (from..=to).fold(String::new(), |mut text, at| {
            let _ = write!(text, "{:04}", digit(at));
            text
        })
    };
    let mut whole = groups_of(0, weight).trim_start_matches('0').to_owned();
    if whole.is_empty() {
        whole.push('0');
    }
    let groups = i32::try_from(scale.div_ceil(4))?;
    let fraction = groups_of(weight + 1, weight + groups);
    let minus = if sign == 0x4000 { "-" } else { "" };
    Ok(if scale == 0 { format!("{minus}{whole}") } else { format!("{minus}{whole}.{}", &fraction[..scale]) })
}

/// Microseconds from 2000-01-01 to 1970-01-01.
const EPOCH: i64 = 946_684_800_000_000;

fn instant(micros: i64, with_zone: bool) -> Decoded {
    if let Some(infinite) = infinite(micros, i64::MIN, i64::MAX) {
        return Ok(infinite);
    }
    let instant = jiff::Timestamp::from_microsecond(micros.checked_add(EPOCH).ok_or("timestamp too far")?)?;
    Ok(if with_zone {
        instant.to_string()
    } else {
        instant.to_zoned(jiff::tz::TimeZone::UTC).datetime().to_string()
    }
    .into())
}

fn infinite<T: PartialEq + Copy>(value: T, low: T, high: T) -> Option<Value> {
    if value == low {
        Some("-infinity".into())
    } else if value == high {
        Some("infinity".into())
    } else {
        None
    }
}

fn date(days: i32) -> Decoded {
    if let Some(infinite) = infinite(days, i32::MIN, i32::MAX) {
        return Ok(infinite);
    }
    let micros = i64::from(days) * 86_400_000_000 + EPOCH;
    Ok(jiff::Timestamp::from_microsecond(micros)?.to_zoned(jiff::tz::TimeZone::UTC).date().to_string().into())
}

fn time(micros: i64) -> String {
    // 24:00:00 is a time in SQL.
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { clock } else { format!("{clock}.{fraction:06}").trim_end_matches('0').to_owned() }
}

/// An interval in ISO 8601's form, as `P1Y2M3DT4H5M6.5S`.
fn interval(raw: &[u8]) -> Decoded {
    let micros = i64::from_be_bytes(raw.get(..8).ok_or("short interval")?.try_into()?);
    let days = i32::from_be_bytes(raw.get(8..12).ok_or("short interval")?.try_into()?);
    let months = i32::from_be_bytes(raw.get(12..16).ok_or("short interval")?.try_into()?);
    let minutes = micros / 60_000_000;
    let seconds = (micros % 60_000_000) as f64 / 1e6;
    let part = |amount: i64, unit: &str| if amount == 0 { String::new() } else { format!("{amount}{unit}") };
    let date = part(i64::from(months / 12), "Y") + &part(i64::from(months % 12), "M") + &part(i64::from(days), "D");
    let mut clock = part(minutes / 60, "H") + &part(minutes % 60, "M");
    if seconds != 0.0 {
        let _ = write!(clock, "{seconds}S");
    }
    Ok(match (date.is_empty(), clock.is_empty()) {
        (true, true) => "PT0S".into(),
        (false, true) => format!("P{date}").into(),
        (_, false) => format!("P{date}T{clock}").into(),
    })
}

fn uuid(raw: &[u8]) -> Decoded {
    let digits = hex(raw);
    if digits.len() != 32 {
        return Err("a uuid has 16 bytes".into());
    }
    Ok([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-").into())
}

fn hex(raw: &[u8]) -> String {
    raw.iter().fold(String::with_capacity(raw.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn inet(raw: &[u8]) -> Decoded {
    let [_, bits, is_cidr, _, address @ ..] = raw else { return Err("short inet".into()) };
    let (address, whole) = match address.len() {
        4 => (IpAddr::from(<[u8; 4]>::try_from(address)?), 32),
        16 => (IpAddr::from(<[u8; 16]>::try_from(address)?), 128),
        _ => return Err("an address has 4 or 16 bytes".into()),
    };
    Ok(if *bits == whole && *is_cidr == 0 { address.to_string() } else { format!("{address}/{bits}") }.into())
}

/// The wire form: dimensions, then elements each with their length, row by row.
fn array(element: &Type, raw: &[u8]) -> Decoded {
    let mut rest = raw;
    let mut take = |count: usize| -> Result<&[u8], Box<dyn Error + Sync + Send>> {
        let (head, tail) = rest.split_at_checked(count).ok_or("short array")?;
        rest = tail;
        Ok(head)
    };
    let dimensions = u32::from_be_bytes(take(4)?.try_into()?);
    take(8)?;
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(usize::try_from(u32::from_be_bytes(take(4)?.try_into()?))?);
        take(4)?;
    }
    let mut items = Vec::new();
    for _ in 0..if lengths.is_empty() { 0 } else { lengths.iter().product() } {
        let length = i32::from_be_bytes(take(4)?.try_into()?);
        items.push(match usize::try_from(length) {
            Ok(length) => decode(element, take(length)?)?,
            Err(_) => Value::Null,
        });
    }
    // Fold the innermost dimension first.
    for length in lengths.iter().skip(1).rev() {
        items = items.chunks(*length).map(|chunk| Value::Array(chunk.to_vec())).collect();
    }
    Ok(Value::Array(items))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_becomes_an_array() {
        assert_eq!(array_text(&[json!(1), json!(null), json!("a \"b\" \\")]), r#"{1,NULL,"a \"b\" \\"}"#);
        assert_eq!(array_text(&[json!([1, 2]), json!([3, 4])]), "{{1,2},{3,4}}");
    }
}
