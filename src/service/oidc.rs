//! OpenID Connect issuers: their discovery document, their keys, a token and who signed it.
//!
//! Knows nothing of steps. OpenID Connect Discovery 1.0, RFC 7517 (keys), RFC 6749 section 4.4 (client
//! credentials), RFC 7519 (tokens).

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::BASE64;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::http::{Answer, Ask, Body, Http, quoted, shown};
use super::{Services, Target};
use crate::failure::Failure;
use crate::secret::Secret;

/// The bound on one answer.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// A PEM file of authorities to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
}

/// An issuer that can be asked.
#[derive(Debug)]
pub struct Issuer {
    http: Http,
    settings: OidcSettings,
}

/// What an issuer says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Discovery {
    issuer: String,
    jwks_uri: String,
    token_endpoint: Option<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
}

/// What a token says, its signature verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The key that signed it.
    pub key: String,
    /// By which algorithm, as `EdDSA`.
    pub algorithm: String,
}

impl Services {
    /// The issuer that a target names.
    ///
    /// # Errors
    /// When there is no such target of that kind, or its settings don't fit.
    pub fn oidc(&self, target: &str) -> Result<Issuer, Failure> {
        let Target::Oidc(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "oidc"));
        };
        let http = self.http_of_issuer(settings).map_err(|failure| failure.context(format!("target {target}")))?;
        Ok(Issuer { http, settings: settings.clone() })
    }
}

impl Issuer {
    /// Whether a client is known that may ask for tokens.
    pub const fn has_client(&self) -> bool {
        self.settings.client_id.is_some() && self.settings.client_secret.is_some()
    }

    /// The discovery document; what it calls the issuer must be what the target calls it, letter for
    /// letter (OpenID Connect Discovery 1.0, section 4.3).
    ///
    /// # Errors
    /// When it doesn't answer, or not as a document of this issuer.
    pub async fn discovery(&self) -> Result<Discovery, Failure> {
        let url = self.http.url("/.well-known/openid-configuration")?;
        let found: Discovery = self.get(&url).await?;
        if found.issuer != self.settings.issuer {
            return Err(Failure::permanent(format!(
                "{} says that the issuer is {}, not {}",
                shown(&url),
                found.issuer,
                self.settings.issuer
            ))
            .help("tokens carry that name: put it into the target's `issuer` if it is the right one"));
        }
        Ok(found)
    }

    /// The keys that others validate its tokens with.
    ///
    /// # Errors
    /// When there is no answer, or none that is a key set.
    pub async fn keys(&self, discovery: &Discovery) -> Result<JwkSet, Failure> {
        self.get(&self.http.url(&discovery.jwks_uri)?).await
    }

    /// A token by client credentials. It is masked from now on.
    ///
    /// # Errors
    /// When the issuer gives none.
    pub async fn token(&self, discovery: &Discovery) -> Result<Secret, Failure> {
        let (Some(id), Some(secret)) = (&self.settings.client_id, &self.settings.client_secret) else {
            return Err(Failure::permanent("the target names no client that could ask for a token")
                .help("add `client_id` and `client_secret` to it, or write `token: false`"));
        };
        let endpoint = discovery.token_endpoint.as_ref().ok_or_else(|| {
            Failure::permanent("the issuer has no token endpoint")
                .help("write `token: false` to look at its keys only")
        })?;
        let url = self.http.url(endpoint)?;
        let mut fields = vec![("grant_type", "client_credentials")];
        let mut headers = BTreeMap::new();
        let methods = &discovery.token_endpoint_auth_methods_supported;
        // Basic is what every issuer must know, and the default where it lists none.
        if methods.is_empty() || methods.iter().any(|method| method == "client_secret_basic") {
            let pair = format!("{}:{}", form_encoded(id), form_encoded(secret));
            headers.insert("Authorization".to_owned(), format!("Basic {}", BASE64.encode(pair.as_bytes())));
        } else {
            fields.extend([("client_id", id.as_str()), ("client_secret", secret.as_str())]);
        }
        let ask = Ask { method: "POST", url: &url, headers: &headers, body: Body::Form(&fields) };
        let answer = self.http.ask(&ask).await.map_err(|unanswered| unanswered.failure)?;
        let refused = |failure: Failure| failure.context(format!("ask {} for a token", shown(&url)));
        // What may hold a token is never quoted.
        if !(200..=299).contains(&answer.status) {
            return Err(refused(self.unexpected(&answer)));
        }
        let said: Value = serde_json::from_str(&answer.body)
            .map_err(|_| refused(Failure::transient("the answer is not JSON")))?;
        let token = said["access_token"].as_str().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| refused(Failure::permanent("the answer holds no `access_token`")))?;
        self.http.redactor().add(token);
        Ok(Secret::new(token))
    }

    /// Verifies a token as any service would: its key is one of these, the signature fits, it comes
    /// from this issuer and has not expired. For whom it is meant is not asked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, token: &Secret, keys: &JwkSet) -> Result<Verified, Failure> {
        let said =
            |error: jsonwebtoken::errors::Error| Failure::permanent(format!("the token is refused: {error}"));
        let header = decode_header(token.expose()).map_err(|_| {
            Failure::permanent("the token is no JWT")
                .help("write `token: false` if this issuer's tokens are opaque")
        })?;
        let key = header.kid.ok_or_else(|| Failure::permanent("the token doesn't say which key signed it"))?;
        let jwk = keys.find(&key).ok_or_else(|| {
            Failure::transient(format!("the token was signed by key {key}, which is not published"))
        })?;
        let algorithm = format!("{:?}", header.alg);
        // A shared secret that is published proves nothing.
        if matches!(header.alg, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
            return Err(Failure::permanent(format!("the token is signed by {algorithm}, a shared secret")));
        }
        if let Some(declared) = algorithm_of(jwk).filter(|declared| *declared != algorithm) {
            let message = format!("the token is signed by {algorithm}, and its key {key} is one for {declared}");
            return Err(Failure::permanent(message));
        }
        let decoding = DecodingKey::from_jwk(jwk).map_err(said)?;
        let mut validation = Validation::new(header.alg);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        decode::<Value>(token.expose(), &decoding, &validation).map_err(said)?;
        Ok(Verified { key, algorithm })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &Url) -> Result<T, Failure> {
        let answer = self.http.get(url, PATIENCE).await?;
        if answer.status != 200 {
            return Err(self.unexpected(&answer).context(shown(url)));
        }
        serde_json::from_str(&answer.body).map_err(|error| {
            Failure::permanent(format!("{}: not what an OpenID Connect issuer answers: {error}", shown(url)))
        })
    }

    fn unexpected(&self, answer: &Answer) -> Failure {
        let said = format!("it answered {}{}", answer.status, quoted(&answer.body, self.http.redactor()));
        match answer.status {
            408 | 425 | 429 | 500.. => Failure::transient(said),
            404 => Failure::permanent(said).help("check the target's `issuer`"),
            400 | 401 | 403 => Failure::permanent(said).help("check the target's `client_id` and `client_secret`"),
            _ => Failure::permanent(said),
        }
    }
}

/// The algorithm that a key is for, where it says so.
pub fn algorithm_of(jwk: &Jwk) -> Option<String> {
    jwk.common.key_algorithm.map(|algorithm| format!("{algorithm:?}"))
}

/// The key that a token names, and when it expires; neither is verified.
///
/// # Errors
/// When it is no token.
pub fn claimed(token: &Secret) -> Result<(String, jiff::Timestamp), Failure> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let wrong = || Failure::permanent("the kept token is none");
    let key = decode_header(token.expose()).ok().and_then(|header| header.kid).ok_or_else(wrong)?;
    let claims: Claims =
        jsonwebtoken::dangerous::insecure_decode_claims(token.expose().as_bytes()).map_err(|_| wrong())?;
    Ok((key, jiff::Timestamp::from_second(claims.exp).map_err(|_| wrong())?))
}

/// As RFC 6749, section 2.3.1, wants a client's name and secret.
fn form_encoded(text: &str) -> String {
    let mut url = Url::parse("x:").map(|mut url| {
        url.query_pairs_mut().append_key_only(text);
        url
    });
    url.as_mut().ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}
