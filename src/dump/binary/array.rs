//! Arrays of one dimension that begins at 1, as most are.

use super::{Kind, Unfit, value};

/// `{a,"b c",NULL}`, of elements of that type.
pub fn array(oid: u32, kind: Kind, field: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let rest = field.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).ok_or(Unfit)?;
    let head = out.len();
    // Dimensions, whether there are NULLs, the elements' type; then how many there are, and the first one's number.
    for part in [0, 0, oid] {
        out.extend_from_slice(&part.to_be_bytes());
    }
    if rest.is_empty() {
        return Ok(());
    }
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
    let (mut count, mut nulls, mut unquoted) = (0_u32, false, vec![]);
    let mut rest = Some(rest);
    while let Some(now) = rest {
        let start = out.len();
        out.extend_from_slice(&(-1_i32).to_be_bytes());
        let (element, after) = element(now, &mut unquoted)?;
        let element = match element {
            Element::Null => None,
            Element::Bare(bare) => Some(bare),
            Element::Quoted => Some(unquoted.as_slice()),
        };
        if let Some(element) = element {
            value(kind, element, out)?;
            let length = i32::try_from(out.len() - start - 4).map_err(|_| Unfit)?;
            out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        } else {
            nulls = true;
        }
        count += 1;
        rest = match after {
            [] => None,
            [b',', after @ ..] => Some(after),
            _ => return Err(Unfit),
        };
    }
    for (at, part) in [(0, 1), (4, u32::from(nulls)), (12, count)] {
        out[head + at..head + at + 4].copy_from_slice(&part.to_be_bytes());
    }
    Ok(())
}

/// An element as it is written.
enum Element<'a> {
    Null,
    Bare(&'a [u8]),
    /// In quotes, which are taken off.
    Quoted,
}

/// The first element, and what follows it; the content of one in quotes goes to `unquoted`.
fn element<'a>(rest: &'a [u8], unquoted: &mut Vec<u8>) -> Result<(Element<'a>, &'a [u8]), Unfit> {
    let Some(mut quoted) = rest.strip_prefix(b"\"") else {
        let (bare, after) = rest.split_at(memchr::memchr(b',', rest).unwrap_or(rest.len()));
        let plain = |byte: &u8| !byte.is_ascii_whitespace() && !matches!(byte, b'{' | b'}' | b'"' | b'\\' | 11);
        return match bare {
            b"NULL" => Ok((Element::Null, after)),
            _ if bare.is_empty() || bare.eq_ignore_ascii_case(b"null") || !bare.iter().all(plain) => Err(Unfit),
            bare => Ok((Element::Bare(bare), after)),
        };
    };
    unquoted.clear();
    loop {
        let at = memchr::memchr2(b'"', b'\\', quoted).ok_or(Unfit)?;
        unquoted.extend_from_slice(&quoted[..at]);
        match &quoted[at..] {
            [b'"', after @ ..] => return Ok((Element::Quoted, after)),
            [b'\\', escaped, after @ ..] => {
                unquoted.push(*escaped);
                quoted = after;
            }
            _ => return Err(Unfit),
        }
    }
}
