//! Records as people write them, and as they are compared.

use std::collections::BTreeSet;

use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The types of records that steps know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// An IPv4 address.
    #[default]
    A,
    /// An IPv6 address.
    Aaaa,
    /// Another name of a host.
    Cname,
    /// Text.
    Txt,
    /// A mail server, as `10 mail.example.com`.
    Mx,
    /// A name server.
    Ns,
    /// A service, as `10 5 443 host.example.com`.
    Srv,
    /// A name of an address.
    Ptr,
    /// Who may issue certificates, as `0 issue "letsencrypt.org"`.
    Caa,
}

impl Kind {
    /// As zone files say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
            Self::Txt => "TXT",
            Self::Mx => "MX",
            Self::Ns => "NS",
            Self::Srv => "SRV",
            Self::Ptr => "PTR",
            Self::Caa => "CAA",
        }
    }

    pub(super) const fn wire(self) -> RecordType {
        match self {
            Self::A => RecordType::A,
            Self::Aaaa => RecordType::AAAA,
            Self::Cname => RecordType::CNAME,
            Self::Txt => RecordType::TXT,
            Self::Mx => RecordType::MX,
            Self::Ns => RecordType::NS,
            Self::Srv => RecordType::SRV,
            Self::Ptr => RecordType::PTR,
            Self::Caa => RecordType::CAA,
        }
    }

    /// Whether a value ends with a name.
    const fn ends_with_name(self) -> bool {
        matches!(self, Self::Cname | Self::Mx | Self::Ns | Self::Srv | Self::Ptr)
    }

    /// A value, read and written again: two that mean the same have the same form.
    ///
    /// # Errors
    /// When it is none of this type.
    pub fn canonical(self, value: &str) -> Result<String, String> {
        Ok(self.shown(&self.read(value)?))
    }

    pub(super) fn read(self, value: &str) -> Result<RData, String> {
        let wrong = || format!("`{value}` is no value of a record {}: write {}", self.as_str(), self.example());
        let value = value.trim();
        match self {
            // Text is taken as it is, but in quotes, as zone files have it.
            Self::Txt if !value.starts_with('"') => {
                let bytes = value.as_bytes();
                Ok(RData::TXT(TXT::from_bytes(if bytes.is_empty() {
                    vec![bytes]
                } else {
                    bytes.chunks(255).collect()
                })))
            }
            // Names are whole ones, with or without the dot at their end.
            _ if self.ends_with_name() && !value.ends_with('.') => {
                name(value.rsplit(' ').next().unwrap_or_default()).map_err(|_| wrong())?;
                RData::try_from_str(self.wire(), &format!("{value}.")).map_err(|_| wrong())
            }
            _ => RData::try_from_str(self.wire(), value).map_err(|_| wrong()),
        }
    }

    const fn example(self) -> &'static str {
        match self {
            Self::A => "`192.0.2.1`",
            Self::Aaaa => "`2001:db8::1`",
            Self::Cname | Self::Ns | Self::Ptr => "`host.example.com`",
            Self::Txt => "a text",
            Self::Mx => "`10 mail.example.com`",
            Self::Srv => "`10 5 443 host.example.com`",
            Self::Caa => "`0 issue \"letsencrypt.org\"`",
        }
    }

    pub(super) fn shown(self, data: &RData) -> String {
        match data {
            RData::TXT(text) => String::from_utf8_lossy(&text.txt_data.concat()).into_owned(),
            data if self.ends_with_name() => data.to_string().trim_end_matches('.').to_lowercase(),
            data => data.to_string(),
        }
    }
}

/// A whole name: `auth.example.com`, with or without the dot at its end.
pub(super) fn name(text: &str) -> Result<Name, String> {
    let wrong = || format!("`{text}` is no name: write it whole, as `auth.example.com`");
    if text.is_empty() || text == "." || text.contains(char::is_whitespace) {
        return Err(wrong());
    }
    let mut name = Name::from_str_relaxed(text).map_err(|_| wrong())?;
    name.set_fqdn(true);
    Ok(name)
}

/// A name as it is compared: small letters, no dot at the end.
///
/// # Errors
/// When it is none.
pub fn canonical_name(text: &str) -> Result<String, String> {
    name(text).map(|name| shown_name(&name))
}

pub(super) fn shown_name(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_lowercase()
}

/// The records of one name and type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// Their values, in canonical form; none when there is no such record.
    pub values: BTreeSet<String>,
    /// How long they may be kept, in seconds; 0 when there are none.
    pub ttl: u32,
}

impl Records {
    pub(super) fn of(kind: Kind, records: &[Record]) -> Self {
        Self {
            values: records.iter().map(|record| kind.shown(&record.data)).collect(),
            ttl: records.iter().map(|record| record.ttl).min().unwrap_or_default(),
        }
    }

    /// For people: `127.0.0.1, 127.0.0.2`.
    pub fn shown(&self) -> String {
        if self.values.is_empty() {
            return "nothing".to_owned();
        }
        self.values.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_one_form() {
        for (kind, written, form) in [
            (Kind::A, " 192.0.2.1 ", "192.0.2.1"),
            (Kind::Aaaa, "2001:DB8:0::1", "2001:db8::1"),
            (Kind::Cname, "Host.Example.com", "host.example.com"),
            (Kind::Mx, "10 mail.Example.com.", "10 mail.example.com"),
            (Kind::Srv, "10 5 443 host.example.com", "10 5 443 host.example.com"),
            (Kind::Txt, "v=spf1 -all", "v=spf1 -all"),
            (Kind::Txt, "\"v=spf1 \" \"-all\"", "v=spf1 -all"),
            (Kind::Caa, "0 issue \"letsencrypt.org\"", "0 issue \"letsencrypt.org\""),
        ] {
            assert_eq!(kind.canonical(written).as_deref(), Ok(form), "{written}");
            assert_eq!(kind.canonical(form).as_deref(), Ok(form), "{form}");
        }
        let long = "x".repeat(600);
        assert_eq!(Kind::Txt.canonical(&long), Ok(long));
        for (kind, wrong) in [
            (Kind::A, "localhost"),
            (Kind::A, ""),
            (Kind::Aaaa, "192.0.2.1"),
            (Kind::Mx, "mail"),
            (Kind::Cname, ""),
        ] {
            assert!(kind.canonical(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_whole_ones() {
        assert_eq!(canonical_name("Auth.Example.com."), Ok("auth.example.com".to_owned()));
        assert_eq!(canonical_name("_acme-challenge.example.com"), Ok("_acme-challenge.example.com".to_owned()));
        assert_eq!(canonical_name("bücher.example"), Ok("xn--bcher-kva.example".to_owned()));
        for wrong in ["", ".", "a b", "a..b", &"x".repeat(64)] {
            assert!(canonical_name(wrong).is_err(), "{wrong}");
        }
    }
}
