//! Settings of the targets that plans may declare already, though no step type reaches them yet.
//!
//! They are part of the plan language, version 1: an environment that names them loads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An OpenID Connect provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OidcSettings {
    /// The issuer's URL, to which `/.well-known/openid-configuration` is appended.
    pub issuer: String,
    /// The client that asks for tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
}

/// A DNS zone that can be updated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsSettings {
    /// The primary server, as `ns1.example.com` or `192.0.2.1:53`.
    pub server: String,
    /// The zone, as `example.com`.
    pub zone: String,
    /// The key that signs updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsig: Option<TsigSettings>,
}

/// A TSIG key (RFC 8945).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TsigSettings {
    /// The key's name.
    pub name: String,
    /// As `hmac-sha256`.
    #[serde(default = "tsig_algorithm")]
    pub algorithm: String,
    /// The key, in base64.
    pub secret: String,
}

fn tsig_algorithm() -> String {
    "hmac-sha256".to_owned()
}

/// A mail server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SmtpSettings {
    /// As `smtps://user:password@mail.example.com`.
    pub url: String,
    /// The sender's address.
    pub from: String,
}
