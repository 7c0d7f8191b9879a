//! The names in dumps that are not in UTF-8.

use std::borrow::Cow;

use encoding_rs as set;

/// A statement in UTF-8, by what its dump says that it is written in. As it is where that is UTF-8, no encoding at
/// all (`SQL_ASCII`), or one that browsers don't know, which is whom the tables are for (`EUC_TW`, `JOHAB`,
/// `MULE_INTERNAL`): names beyond ASCII are not read there.
pub fn decoded<'a>(encoding: Option<&str>, text: &'a [u8]) -> Cow<'a, [u8]> {
    match encoding.and_then(known).map(|known| known.decode_without_bom_handling(text).0) {
        None | Some(Cow::Borrowed(_)) => Cow::Borrowed(text),
        Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
    }
}

/// By PostgreSQL's name: <https://www.postgresql.org/docs/15/multibyte.html#CHARSET-TABLE>. What the Web takes for
/// Latin 1 and 5 are Windows' own sets, which differ in control characters.
fn known(encoding: &str) -> Option<&'static set::Encoding> {
    Some(match encoding.to_ascii_uppercase().as_str() {
        "LATIN1" | "WIN1252" => set::WINDOWS_1252,
        "LATIN2" => set::ISO_8859_2,
        "LATIN3" => set::ISO_8859_3,
        "LATIN4" => set::ISO_8859_4,
        "LATIN5" | "WIN1254" => set::WINDOWS_1254,
        "LATIN6" => set::ISO_8859_10,
        "LATIN7" => set::ISO_8859_13,
        "LATIN8" => set::ISO_8859_14,
        "LATIN9" => set::ISO_8859_15,
        "LATIN10" => set::ISO_8859_16,
        "ISO_8859_5" => set::ISO_8859_5,
        "ISO_8859_6" => set::ISO_8859_6,
        "ISO_8859_7" => set::ISO_8859_7,
        "ISO_8859_8" => set::ISO_8859_8,
        "WIN866" => set::IBM866,
        "WIN874" => set::WINDOWS_874,
        "WIN1250" => set::WINDOWS_1250,
        "WIN1251" => set::WINDOWS_1251,
        "WIN1253" => set::WINDOWS_1253,
        "WIN1255" => set::WINDOWS_1255,
        "WIN1256" => set::WINDOWS_1256,
        "WIN1257" => set::WINDOWS_1257,
        "WIN1258" => set::WINDOWS_1258,
        "KOI8R" => set::KOI8_R,
        "KOI8U" => set::KOI8_U,
        "EUC_JP" => set::EUC_JP,
        "EUC_KR" | "UHC" => set::EUC_KR,
        "EUC_CN" | "GBK" => set::GBK,
        "GB18030" => set::GB18030,
        "BIG5" => set::BIG5,
        "SJIS" => set::SHIFT_JIS,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_by_postgresqls_own_name() {
        for (encoding, text, name) in [
            ("LATIN1", &b"gr\xf6\xdfe"[..], "größe"),
            ("LATIN9", b"\xa4", "€"),
            ("win1251", b"\xea\xeb\xfe\xf7", "ключ"),
            ("KOI8R", b"\xcb\xcc\xc0\xde", "ключ"),
            ("EUC_JP", b"\xc9\xbd", "表"),
            ("UTF8", "größe".as_bytes(), "größe"),
            ("SQL_ASCII", b"plain", "plain"),
        ] {
            assert_eq!(decoded(Some(encoding), text), name.as_bytes(), "{encoding}");
        }
        assert_eq!(decoded(None, b"\xf6"), &b"\xf6"[..]);
    }
}
