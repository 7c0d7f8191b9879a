//! Integers and `numeric`.

use super::Unfit;

/// A whole number as PostgreSQL writes it.
pub fn integer(field: &[u8]) -> Result<i64, Unfit> {
    let (negative, digits) = match field {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 {
        return Err(Unfit);
    }
    let mut number: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(Unfit);
        }
        let digit = i64::from(digit - b'0');
        // Counted below zero, which reaches one farther.
        number = number.checked_mul(10).and_then(|number| number.checked_sub(digit)).ok_or(Unfit)?;
    }
    if negative { Ok(number) } else { number.checked_neg().ok_or(Unfit) }
}

/// A floating-point number as PostgreSQL writes it: the shortest digits that are this number and no other. One that is
/// too large for its type is refused there and would be infinite here.
pub fn float<T: std::str::FromStr + Into<f64> + Copy>(field: &[u8]) -> Result<T, Unfit> {
    let text = std::str::from_utf8(field).map_err(|_| Unfit)?;
    let special = matches!(text, "NaN" | "Infinity" | "-Infinity");
    let plain = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e');
    if !special && (text.starts_with('+') || !field.iter().all(plain)) {
        return Err(Unfit);
    }
    let number: T = text.parse().map_err(|_| Unfit)?;
    let zero = number.into() == 0.0
        && field.iter().take_while(|byte| **byte != b'e').any(|byte| matches!(byte, b'1'..=b'9'));
    if zero || (!special && !number.into().is_finite()) { Err(Unfit) } else { Ok(number) }
}

/// A `numeric`: how many digits to the base 10,000, the first one's weight, the sign, how
/// many decimals are shown, the digits.
pub fn numeric(field: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let special: Option<u16> = match field {
        b"NaN" => Some(0xC000),
        b"Infinity" => Some(0xD000),
        b"-Infinity" => Some(0xF000),
        _ => None,
    };
    if let Some(sign) = special {
        for part in [0, 0, sign, 0] {
            out.extend_from_slice(&part.to_be_bytes());
        }
        return Ok(());
    }
    let (negative, digits) = match field {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let (whole, decimals) = match memchr::memchr(b'.', digits) {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &[][..]),
    };
    let all_digits = whole.iter().chain(decimals).all(u8::is_ascii_digit);
    if !all_digits || whole.is_empty() || decimals.len() > 0x3FFF || whole.len() > 131_072 {
        return Err(Unfit);
    }
    // The first group of the whole part is filled up in front, the last of the decimals behind.
    let (head, groups) = whole.split_at(whole.len() % 4);
    let mut weight = i32::try_from(groups.len() / 4).map_err(|_| Unfit)? - i32::from(head.is_empty());
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    let mut leading = true;
    let mut push = |group: &[u8], out: &mut Vec<u8>, weight: &mut i32| {
        let mut number = 0_u16;
        for digit in group {
            number = number * 10 + u16::from(digit - b'0');
        }
        if leading && number == 0 {
            *weight -= 1;
            return;
        }
        leading = false;
        out.extend_from_slice(&number.to_be_bytes());
    };
    if !head.is_empty() {
        push(head, out, &mut weight);
    }
    for group in groups.chunks(4) {
        push(group, out, &mut weight);
    }
    for group in decimals.chunks(4) {
        let mut filled = [b'0'; 4];
        filled[..group.len()].copy_from_slice(group);
        push(&filled, out, &mut weight);
    }
    while out.len() > start + 8 && out.ends_with(&[0, 0]) {
        out.truncate(out.len() - 2);
    }
    let count = (out.len() - start - 8) / 2;
    let nothing = count == 0;
    let weight = if nothing { 0 } else { i16::try_from(weight).map_err(|_| Unfit)? };
    let sign: u16 = if negative && !nothing { 0x4000 } else { 0 };
    let count = i16::try_from(count).map_err(|_| Unfit)?;
    out[start..start + 2].copy_from_slice(&count.to_be_bytes());
    out[start + 2..start + 4].copy_from_slice(&weight.to_be_bytes());
    out[start + 4..start + 6].copy_from_slice(&sign.to_be_bytes());
    out[start + 6..start + 8].copy_from_slice(&(decimals.len() as u16).to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_are_groups_of_four_digits() {
        for (text, count, weight, sign, scale, digits) in [
            ("0", 0, 0, 0, 0, vec![]),
            ("-0.00", 0, 0, 0, 2, vec![]),
            ("1", 1, 0, 0, 0, vec![1]),
            ("10000", 1, 1, 0, 0, vec![1]),
            ("-12345.678", 3, 1, 0x4000, 3, vec![1, 2345, 6780]),
            ("0.00001", 1, -2, 0, 5, vec![1000]),
            ("100000000.10", 4, 2, 0, 2, vec![1, 0, 0, 1000]),
        ] {
            let mut out = vec![];
            numeric(text.as_bytes(), &mut out).unwrap();
            let parts: Vec<i16> = out.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect();
            assert_eq!(parts, [vec![count, weight, sign, scale], digits].concat(), "{text}");
        }
        assert_eq!(integer(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer(b"-0"), Ok(0));
    }
}
