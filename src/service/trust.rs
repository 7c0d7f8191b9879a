//! TLS: authorities of a target's own, and what to do about a certificate that is refused.
//!
//! There is no setting that takes any certificate.

use reqwest::Certificate;

use crate::failure::Failure;

/// The authorities of a PEM file.
///
/// # Errors
/// When it can't be read, or holds none.
pub(super) fn authorities(path: &str) -> Result<Vec<Certificate>, Failure> {
    let pem = std::fs::read(path).map_err(|error| Failure::permanent(format!("read {path}: {error}")))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Failure::permanent(format!("{path} holds no PEM certificates"))),
    }
}

/// What helps, if a client's words say that it refused the server's certificate; `setting` names the
/// file of authorities.
pub(super) fn way_out(said: &str, setting: &str) -> Option<String> {
    if !said.contains("certificate") && !said.contains("UnknownIssuer") {
        None
    } else if said.contains("expired") {
        Some("renew the server's certificate, or set this machine's clock right".to_owned())
    } else if said.contains("not valid for") {
        Some("name the server in the target as its certificate does".to_owned())
    } else {
        Some(format!("if an authority of your own signed it, name its PEM file in the target's `{setting}`"))
    }
}
