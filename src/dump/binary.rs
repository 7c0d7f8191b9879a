//! Rows of COPY's text form turned into its binary form, which a server takes in with less
//! work. Only values that are written as PostgreSQL writes them are turned: whatever else
//! there is, is for the server to read.

mod address;
mod array;
mod number;
mod time;

use data_encoding::HEXLOWER_PERMISSIVE;

/// A type whose values can be turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `text`, `varchar`, `char(n)`, `json` and enums: the same bytes in both forms.
    Text,
    /// `uuid`
    Uuid,
    /// `date`
    Date,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    TimestampTz,
    /// `bytea`
    Bytea,
    /// `jsonb`
    Jsonb,
    /// `numeric`
    Numeric,
    /// `inet`
    Inet,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
}

/// A column whose values can be turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// What it holds, or arrays of.
    kind: Kind,
    /// The oid of the elements' type, if it holds arrays.
    array: Option<u32>,
}

impl Column {
    /// The names and types of the columns of a table, `$1`: as they are below domains, whose receiving functions check
    /// what their reading ones do.
    pub const TYPES: &str = "SELECT a.attname::text, b.oid, b.typtype = 'e', e.oid, coalesce(e.typtype = 'e', false) \
          FROM pg_catalog.pg_attribute a, \
               LATERAL (WITH RECURSIVE base AS ( \
                          SELECT t.oid, t.typtype, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid \
                          UNION ALL SELECT t.oid, t.typtype, t.typbasetype FROM pg_catalog.pg_type t \
                                      JOIN base ON base.typtype = 'd' AND t.oid = base.typbasetype) \
                        SELECT oid, typtype FROM base WHERE typtype <> 'd') b \
               LEFT JOIN pg_catalog.pg_type e ON e.typarray = b.oid \
         WHERE a.attrelid = pg_catalog.to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

    /// By what [`Self::TYPES`] says: a type, whether it is an enum, its elements' type, and whether that is one.
    pub fn of(oid: u32, is_enum: bool, element: Option<u32>, of_enums: bool) -> Option<Self> {
        let kind = element.map_or_else(|| Kind::of(oid, is_enum), |element| Kind::of(element, of_enums))?;
        Some(Self { kind, array: element })
    }
}

impl Kind {
    /// By the type's oid.
    const fn of(oid: u32, is_enum: bool) -> Option<Self> {
        Some(match oid {
            _ if is_enum => Self::Text,
            16 => Self::Bool,
            17 => Self::Bytea,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            25 | 114 | 1042 | 1043 => Self::Text,
            700 => Self::Float4,
            701 => Self::Float8,
            869 => Self::Inet,
            1082 => Self::Date,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }
}

/// What the binary form begins with.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What it ends with.
pub const TRAILER: &[u8] = b"\xff\xff";

/// Something that is not written as PostgreSQL writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

/// Turns whole rows, and appends them to `out`.
///
/// # Errors
/// When a value can't be turned.
pub fn turn(columns: &[Column], mut rows: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let count = i16::try_from(columns.len()).map_err(|_| Unfit)?;
    let mut unescaped = vec![];
    while !rows.is_empty() {
        let end = memchr::memchr(b'\n', rows).ok_or(Unfit)?;
        let mut row = &rows[..end];
        rows = &rows[end + 1..];
        out.extend_from_slice(&count.to_be_bytes());
        for (at, column) in columns.iter().enumerate() {
            let last = at + 1 == columns.len();
            let field = match memchr::memchr(b'\t', row) {
                Some(end) if !last => {
                    let field = &row[..end];
                    row = &row[end + 1..];
                    field
                }
                None if last => row,
                _ => return Err(Unfit),
            };
            if field == b"\\N" {
                out.extend_from_slice(&(-1_i32).to_be_bytes());
                continue;
            }
            let start = out.len();
            out.extend_from_slice(&[0; 4]);
            let Column { kind, array } = column;
            let may_be_escaped = array.is_some() || matches!(kind, Kind::Text | Kind::Jsonb | Kind::Bytea);
            let field = if may_be_escaped { plain(field, &mut unescaped)? } else { field };
            match array {
                None => value(*kind, field, out)?,
                Some(oid) => array::array(*oid, *kind, field, out)?,
            }
            let length = i32::try_from(out.len() - start - 4).map_err(|_| Unfit)?;
            out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
    Ok(())
}

fn value(kind: Kind, field: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    match kind {
        Kind::Text => out.extend_from_slice(field),
        Kind::Jsonb => {
            out.push(1);
            out.extend_from_slice(field);
        }
        Kind::Bool => match field {
            b"t" => out.push(1),
            b"f" => out.push(0),
            _ => return Err(Unfit),
        },
        Kind::Int2 => {
            let number = i16::try_from(number::integer(field)?).map_err(|_| Unfit)?;
            out.extend_from_slice(&number.to_be_bytes());
        }
        Kind::Int4 => {
            let number = i32::try_from(number::integer(field)?).map_err(|_| Unfit)?;
            out.extend_from_slice(&number.to_be_bytes());
        }
        Kind::Int8 => out.extend_from_slice(&number::integer(field)?.to_be_bytes()),
        Kind::Numeric => number::numeric(field, out)?,
        Kind::Inet => address::inet(field, out)?,
        Kind::Date => out.extend_from_slice(&time::date(field)?.to_be_bytes()),
        Kind::Timestamp => out.extend_from_slice(&time::timestamp(field, false)?.to_be_bytes()),
        Kind::TimestampTz => out.extend_from_slice(&time::timestamp(field, true)?.to_be_bytes()),
        // Other forms that are read there are shorter or longer.
        Kind::Uuid if field.len() == 36 => {
            out.extend_from_slice(uuid::Uuid::try_parse_ascii(field).map_err(|_| Unfit)?.as_bytes());
        }
        Kind::Uuid => return Err(Unfit),
        Kind::Float4 => out.extend_from_slice(&number::float::<f32>(field)?.to_be_bytes()),
        Kind::Float8 => out.extend_from_slice(&number::float::<f64>(field)?.to_be_bytes()),
        Kind::Bytea => hex(field.strip_prefix(b"\\x").ok_or(Unfit)?, out)?,
    }
    Ok(())
}

fn hex(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    if !text.len().is_multiple_of(2) {
        return Err(Unfit);
    }
    let start = out.len();
    out.resize(start + text.len() / 2, 0);
    HEXLOWER_PERMISSIVE.decode_mut(text, &mut out[start..]).map(drop).map_err(|_| Unfit)
}

/// A value without the escapes that PostgreSQL writes.
fn plain<'a>(field: &'a [u8], unescaped: &'a mut Vec<u8>) -> Result<&'a [u8], Unfit> {
    let Some(first) = memchr::memchr2(b'\\', b'\r', field) else { return Ok(field) };
    unescaped.clear();
    unescaped.extend_from_slice(&field[..first]);
    let mut rest = &field[first..];
    while let Some(at) = memchr::memchr2(b'\\', b'\r', rest) {
        unescaped.extend_from_slice(&rest[..at]);
        let [b'\\', escaped, after @ ..] = &rest[at..] else { return Err(Unfit) };
        unescaped.push(match escaped {
            b'\\' => b'\\',
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            b'v' => 11,
            _ => return Err(Unfit),
        });
        rest = after;
    }
    unescaped.extend_from_slice(rest);
    Ok(unescaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(kinds: &[Kind], rows: &str) -> Result<Vec<u8>, Unfit> {
        let columns: Vec<_> = kinds.iter().map(|kind| Column { kind: *kind, array: None }).collect();
        let mut out = vec![];
        turn(&columns, rows.as_bytes(), &mut out).map(|()| out)
    }

    #[test]
    fn rows_are_turned_field_by_field() {
        let out = turned(&[Kind::Int4, Kind::Text, Kind::Bool], "7\ta\\tb\\\\\tt\n\\N\t\t\\N\n").unwrap();
        let wanted = [
            &[0, 3, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 4, b'a', b'\t', b'b', b'\\', 0, 0, 0, 1, 1][..],
            &[0, 3, 255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255][..],
        ]
        .concat();
        assert_eq!(out, wanted);
        assert_eq!(turned(&[Kind::Bytea], "\\\\x00fF\n").unwrap(), [0, 1, 0, 0, 0, 2, 0, 255]);
    }

    #[test]
    fn what_postgresql_would_not_write_is_left_to_the_server() {
        use Kind::{
            Bool, Bytea, Date, Float4, Float8, Inet, Int2, Int4, Int8, Numeric, Text, Timestamp, TimestampTz, Uuid,
        };
        for (kind, field) in [
            (Int4, ""),
            (Int4, " 1"),
            (Int4, "+1"),
            (Int4, "-"),
            (Int4, "2147483648"),
            (Int2, "-32769"),
            (Int8, "9223372036854775808"),
            (Int4, "1\t2"),
            (Int4, "1\\n"),
            (Bool, "true"),
            (Text, "a\rb"),
            (Text, "a\\"),
            (Text, "\\x41"),
            (Text, "\\101"),
            (Text, "\\."),
            (Numeric, "1e5"),
            (Numeric, "."),
            (Numeric, ""),
            (Numeric, "nan"),
            (Numeric, "1.2.3"),
            (Date, "2023-02-29"),
            (Date, "0000-01-01"),
            (Date, "2024-1-01"),
            (Date, "2024-01-01 "),
            (Date, "2024-01-01 bc"),
            (Timestamp, "2024-01-01 24:00:00"),
            (Timestamp, "2024-01-01 00:00:60"),
            (Timestamp, "2024-01-01 00:00:00.1234567"),
            (Timestamp, "2024-01-01 00:00:00+00"),
            (Timestamp, "2024-01-01T00:00:00"),
            (TimestampTz, "2024-01-01 00:00:00"),
            (TimestampTz, "2024-01-01 00:00:00 UTC"),
            (Uuid, "00000000000000000000000000000000"),
            (Uuid, "g0000000-0000-0000-0000-000000000000"),
            (Bytea, "\\\\x0"),
            (Bytea, "abc"),
            (Float8, "1e999"),
            (Float8, "inf"),
            (Float8, "nan"),
            (Float8, "+1"),
            (Float8, ""),
            (Float8, "0x1p3"),
            (Float4, "1e39"),
            (Inet, "10.1"),
            (Inet, "10.0.0.1/33"),
            (Inet, "10.0.0.1/032"),
            (Inet, "::1%eth0"),
        ] {
            assert_eq!(turned(&[kind], &format!("{field}\n")), Err(Unfit), "{kind:?} {field:?}");
        }
        for field in [
            "",
            "{",
            "{1,}",
            "{,1}",
            "{null}",
            "{ 1}",
            "{{1}}",
            "[0:0]={1}",
            "{1}x",
            "{\"1}",
            "{\"1\"2}",
            "{a\\\\b}",
        ] {
            let column = Column { kind: Text, array: Some(25) };
            assert_eq!(turn(&[column], format!("{field}\n").as_bytes(), &mut vec![]), Err(Unfit), "{field:?}");
        }
        assert_eq!(turned(&[Int4, Int4], "1\n"), Err(Unfit));
        assert_eq!(turned(&[Int4], "1"), Err(Unfit), "a row without its end");
    }
}
