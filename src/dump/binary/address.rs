//! `inet`.

use std::net::IpAddr;

use super::Unfit;

/// An address: its family, the bits of its network, that it is no network alone, its bytes.
pub fn inet(field: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let text = std::str::from_utf8(field).map_err(|_| Unfit)?;
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => {
            let plain = bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
            let number: u8 = bits.parse().map_err(|_| Unfit)?;
            (address, Some(number).filter(|_| plain))
        }
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| Unfit)?;
    let (family, most) = if address.is_ipv4() { (2, 32) } else { (3, 128) };
    let bits = match bits {
        Some(bits) if bits <= most => bits,
        None if !text.contains('/') => most,
        _ => return Err(Unfit),
    };
    out.extend_from_slice(&[family, bits, 0, most / 8]);
    match address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_family_and_a_network() {
        let mut out = vec![];
        inet(b"10.0.0.1/24", &mut out).unwrap();
        assert_eq!(out, [2, 24, 0, 4, 10, 0, 0, 1]);
        out.clear();
        inet(b"::1", &mut out).unwrap();
        assert_eq!(
            out,
            [[3, 128, 0, 16, 0, 0], [0; 6], [0, 0, 0, 0, 0, 0]]
                .concat()
                .into_iter()
                .chain([0, 1])
                .collect::<Vec<_>>()
        );
    }
}
