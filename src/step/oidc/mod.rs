//! Step types on OpenID Connect issuers.

pub mod check;
