//! The auth service as an OpenID Connect issuer: discovery, the key set, tokens by client credentials.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::{Form, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Service, keys, said};

/// How long a token is good, in seconds: Better Auth's 15 minutes.
const TOKEN_SECONDS: i64 = 15 * 60;

type Answer = (StatusCode, Json<Value>);

/// OpenID Connect Discovery 1.0, section 3.
pub async fn discovery(State(service): State<Service>) -> Json<Value> {
    let issuer = &service.issuer;
    Json(json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/jwks"),
        "token_endpoint": format!("{issuer}/token"),
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["EdDSA"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }))
}

/// The key set, RFC 7517.
pub async fn jwks(State(service): State<Service>) -> Answer {
    let set = match service.pool.client() {
        Ok(client) => keys::published(&client, &service.secret).await,
        Err(error) => Err(error),
    };
    set.map_or_else(|error| broken(&error), |set| (StatusCode::OK, Json(set)))
}

#[derive(Deserialize)]
pub struct Grant {
    #[serde(rename = "grant_type")]
    kind: String,
    client_id: Option<String>,
    client_secret: Option<String>,
}

/// A token by client credentials, RFC 6749, section 4.4.
pub async fn token(State(service): State<Service>, headers: HeaderMap, Form(grant): Form<Grant>) -> Answer {
    if grant.kind != "client_credentials" {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "unsupported_grant_type" })));
    }
    let given = basic(&headers).or_else(|| Some((grant.client_id?, grant.client_secret?)));
    let unknown = || (StatusCode::UNAUTHORIZED, Json(json!({ "error": "invalid_client" })));
    let Some((id, secret)) = given else { return unknown() };
    let database = match service.pool.client() {
        Ok(database) => database,
        Err(error) => return broken(&error),
    };
    let known = "SELECT 1 FROM auth.oauth_applications WHERE client_id = $1 AND secret_hash = sha256($2)";
    match database.query_opt(known, &[&id, &secret.as_bytes()]).await {
        Ok(Some(_)) => {}
        Ok(None) => return unknown(),
        Err(error) => return broken(&said(&error)),
    }
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({ "iss": &*service.issuer, "sub": id, "iat": now, "exp": now + TOKEN_SECONDS });
    let token = keys::sign(&database, &service.secret, &claims).await;
    token.map_or_else(
        |error| broken(&error),
        |token| {
            let answer = json!({ "access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECONDS });
            (StatusCode::OK, Json(answer))
        },
    )
}

fn broken(error: &str) -> Answer {
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": "server_error", "error_description": error })))
}

/// The client of an `Authorization: Basic` header. RFC 6749 has both halves form-encoded first.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    let decoded = |text: &str| {
        let pairs = reqwest::Url::parse(&format!("x:?{text}")).ok()?;
        pairs.query_pairs().next().map(|(name, _)| name.into_owned())
    };
    Some((decoded(user)?, decoded(password)?))
}
