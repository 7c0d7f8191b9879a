//! A service that validates the auth service's tokens, and caches its keys as such services do.
//!
//! What [jose](https://github.com/panva/jose) does: keys are trusted for `cache` without asking again, also
//! those that were revoked meanwhile; an unknown key makes it ask, no more often than each `COOLDOWN`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use axum::{Json, Router};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::served;
use crate::failure::Failure;

/// The least time between two questions for keys. jose waits 30 seconds; here nobody needs to wait so long.
const COOLDOWN: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);

struct Consumer {
    issuer: String,
    cache: Duration,
    client: reqwest::Client,
    known: Mutex<Option<(Instant, JwkSet)>>,
}

/// Serves until SIGTERM or SIGINT. `GET /me` wants a token; `POST /jwks/refresh` forgets the cached keys.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve(listen: SocketAddr, issuer: String, cache: Duration) -> Result<(), Failure> {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()
        .map_err(|error| Failure::permanent(format!("set up HTTP: {error}")))?;
    let consumer = Arc::new(Consumer { issuer, cache, client, known: Mutex::default() });
    let router = Router::new()
        .route("/health/ready", get(async || Json(json!({ "ready": true }))))
        .route("/me", get(me))
        .route("/jwks/refresh", post(refresh))
        .with_state(consumer);
    served(listen, router).await
}

async fn me(State(consumer): State<Arc<Consumer>>, headers: HeaderMap) -> (StatusCode, Json<Value>) {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(token) = token else {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": "no token" })));
    };
    match consumer.validated(token).await {
        Ok(claims) => (StatusCode::OK, Json(json!({ "sub": claims["sub"] }))),
        Err(error) => (StatusCode::UNAUTHORIZED, Json(json!({ "error": error }))),
    }
}

async fn refresh(State(consumer): State<Arc<Consumer>>) -> StatusCode {
    *consumer.known.lock().await = None;
    StatusCode::NO_CONTENT
}

impl Consumer {
    async fn validated(&self, token: &str) -> Result<Value, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
        let kid = header.kid.ok_or("the token names no key")?;
        let mut known = self.known.lock().await;
        let has = |set: &JwkSet| set.find(&kid).is_some();
        let keep = known
            .as_ref()
            .is_some_and(|(at, set)| at.elapsed() < self.cache && (has(set) || at.elapsed() < COOLDOWN));
        if !keep {
            *known = Some((Instant::now(), self.fetched().await?));
        }
        let jwk = known.as_ref().and_then(|(_, set)| set.find(&kid)).ok_or("the token's key is unknown")?;
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[&self.issuer]);
        jsonwebtoken::decode(token, &key, &validation).map(|token| token.claims).map_err(|error| error.to_string())
    }

    async fn fetched(&self) -> Result<JwkSet, String> {
        let get = async |url: String| self.client.get(url).send().await?.error_for_status()?.json().await;
        let discovery: Value = get(format!("{}/.well-known/openid-configuration", self.issuer))
            .await
            .map_err(|error| error.to_string())?;
        let url = discovery["jwks_uri"].as_str().ok_or("the issuer names no keys")?.to_owned();
        let set = get(url).await.map_err(|error: reqwest::Error| error.to_string())?;
        serde_json::from_value(set).map_err(|error| error.to_string())
    }
}
