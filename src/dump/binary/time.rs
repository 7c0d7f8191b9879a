//! Dates and times as PostgreSQL writes them in ISO style, as counts from 2000-01-01.

use super::Unfit;

const DAY: i64 = 86_400_000_000;

/// Days.
pub fn date(field: &[u8]) -> Result<i32, Unfit> {
    match field {
        b"infinity" => return Ok(i32::MAX),
        b"-infinity" => return Ok(i32::MIN),
        _ => {}
    }
    let (field, before_christ) = era(field);
    let (days, rest) = day(field, before_christ)?;
    if !rest.is_empty() {
        return Err(Unfit);
    }
    i32::try_from(days).map_err(|_| Unfit)
}

/// Microseconds; with a time zone's offset, or without.
pub fn timestamp(field: &[u8], with_zone: bool) -> Result<i64, Unfit> {
    match field {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let (field, before_christ) = era(field);
    let (days, rest) = day(field, before_christ)?;
    let rest = rest.strip_prefix(b" ").ok_or(Unfit)?;
    let (hours, rest) = two(rest, 24)?;
    let (minutes, rest) = two(rest.strip_prefix(b":").ok_or(Unfit)?, 60)?;
    let (seconds, mut rest) = two(rest.strip_prefix(b":").ok_or(Unfit)?, 60)?;
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 6 {
            return Err(Unfit);
        }
        for at in 0..6 {
            micros = micros * 10 + fraction[..digits].get(at).map_or(0, |digit| i64::from(digit - b'0'));
        }
        rest = &fraction[digits..];
    }
    let mut offset = 0;
    if with_zone {
        let west = match rest.first() {
            Some(b'+') => false,
            Some(b'-') => true,
            _ => return Err(Unfit),
        };
        let (hours, after) = two(&rest[1..], 16)?;
        rest = after;
        offset = hours * 3600;
        for unit in [60, 1] {
            if let Some(after) = rest.strip_prefix(b":") {
                let (number, after) = two(after, 60)?;
                offset += number * unit;
                rest = after;
            } else {
                break;
            }
        }
        if west {
            offset = -offset;
        }
    }
    if !rest.is_empty() {
        return Err(Unfit);
    }
    let of_day = ((hours * 60 + minutes) * 60 + seconds - offset) * 1_000_000 + micros;
    days.checked_mul(DAY).and_then(|days| days.checked_add(of_day)).ok_or(Unfit)
}

fn era(field: &[u8]) -> (&[u8], bool) {
    field.strip_suffix(b" BC").map_or((field, false), |field| (field, true))
}

/// Days since 2000-01-01, and what follows the date.
fn day(field: &[u8], before_christ: bool) -> Result<(i64, &[u8]), Unfit> {
    let digits = field.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(4..=7).contains(&digits) {
        return Err(Unfit);
    }
    let year = field[..digits].iter().fold(0, |year, digit| year * 10 + i64::from(digit - b'0'));
    let (month, rest) = two(field[digits..].strip_prefix(b"-").ok_or(Unfit)?, 13)?;
    let (day, rest) = two(rest.strip_prefix(b"-").ok_or(Unfit)?, 32)?;
    if year == 0 || month == 0 || day == 0 {
        return Err(Unfit);
    }
    // There is no year 0: 1 BC is followed by 1 AD.
    let year = if before_christ { 1 - year } else { year };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day > last {
        return Err(Unfit);
    }
    // Years that begin in March have their odd day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Ok((days - 730_425, rest))
}

/// A number of two digits below `end`, and what follows it.
fn two(field: &[u8], end: i64) -> Result<(i64, &[u8]), Unfit> {
    let [tens @ b'0'..=b'9', ones @ b'0'..=b'9', rest @ ..] = field else { return Err(Unfit) };
    let number = i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
    if number < end { Ok((number, rest)) } else { Err(Unfit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_microseconds_are_counted_from_2000() {
        assert_eq!(date(b"2000-01-01"), Ok(0));
        assert_eq!(date(b"2000-03-01"), Ok(60));
        assert_eq!(date(b"1970-01-01"), Ok(-10_957));
        assert_eq!(date(b"0001-01-01"), Ok(-730_119));
        assert_eq!(date(b"0001-12-31 BC"), Ok(-730_120));
        assert_eq!(timestamp(b"2000-01-01 00:00:01.5", false), Ok(1_500_000));
        assert_eq!(timestamp(b"2000-01-01 05:30:00.000001+05:30", true), Ok(1));
        assert_eq!(timestamp(b"1999-12-31 19:03:58-04:56:02", true), Ok(0));
    }
}
