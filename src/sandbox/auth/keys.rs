//! The signing keys of the auth service, as Better Auth keeps them: rows of `auth.jwks`, made when they
//! are first needed, their private halves encrypted with the service's secret.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::signature::Ed25519KeyPair;
use data_encoding::BASE64;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::said;
use crate::secret::Secret;

/// How long a key is published after it has expired, in SQL: Better Auth's `gracePeriod`.
const GRACE: &str = "interval '30 days'";

/// A new key, as its row holds it.
pub struct Minted {
    /// The JWK of its public half.
    pub public_key: String,
    /// Its private half, encrypted.
    pub private_key: String,
}

/// Makes a key.
///
/// # Errors
/// When the machine has no randomness.
pub fn mint(secret: &Secret) -> Result<Minted, String> {
    let cannot = |_| "a key can't be made".to_owned();
    let der = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1()).map_err(cannot)?;
    let jwk = Jwk::from_encoding_key(&EncodingKey::from_ed_der(der.as_ref()), Algorithm::EdDSA)
        .map_err(|error| error.to_string())?;
    let public_key = serde_json::to_string(&jwk.algorithm).map_err(|error| error.to_string())?;
    let mut sealed = der.as_ref().to_vec();
    let nonce = cipher(secret)?.seal_in_place_append_tag(Aad::empty(), &mut sealed).map_err(cannot)?;
    let bytes = [nonce.as_ref().as_slice(), &sealed].concat();
    Ok(Minted { public_key, private_key: BASE64.encode(&bytes) })
}

/// The key that signs: the newest, which is made now unless it is good.
async fn signing(client: &Client, secret: &Secret) -> Result<(String, EncodingKey), String> {
    let newest = "SELECT id::text, private_key, expires_at IS NULL OR expires_at > now() \
         FROM auth.jwks ORDER BY created_at DESC LIMIT 1";
    let found = client.query_opt(newest, &[]).await.map_err(|error| said(&error))?;
    let (kid, sealed): (String, String) = match found {
        Some(row) if row.get(2) => (row.get(0), row.get(1)),
        _ => add(client, secret).await?,
    };
    let wrong = || format!("the private key {kid} can't be decrypted: it was encrypted with another secret");
    let bytes = BASE64.decode(sealed.as_bytes()).map_err(|_| wrong())?;
    let (nonce, rest) = bytes.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
    let mut rest = rest.to_vec();
    let der = cipher(secret)?.open_in_place(nonce, Aad::empty(), &mut rest).map_err(|_| wrong())?;
    Ok((kid, EncodingKey::from_ed_der(der)))
}

async fn add(client: &Client, secret: &Secret) -> Result<(String, String), String> {
    let Minted { public_key, private_key } = mint(secret)?;
    let insert = "INSERT INTO auth.jwks (id, public_key, private_key, alg, created_at) \
         VALUES (gen_random_uuid(), $1, $2, 'EdDSA', now()) RETURNING id::text";
    let row = client.query_one(insert, &[&public_key, &private_key]).await.map_err(|error| said(&error))?;
    Ok((row.get(0), private_key))
}

/// The key set that others validate with; the first key is made if there is none at all.
pub async fn published(client: &Client, secret: &Secret) -> Result<Value, String> {
    let rows = async || {
        let sql = format!(
            "SELECT id::text, public_key, alg FROM auth.jwks \
             WHERE expires_at IS NULL OR expires_at + {GRACE} > now() ORDER BY created_at"
        );
        client.query(&sql, &[]).await.map_err(|error| said(&error))
    };
    let mut found = rows().await?;
    if found.is_empty() && none(client).await? {
        add(client, secret).await?;
        found = rows().await?;
    }
    let keys: Result<Vec<Value>, String> = found
        .iter()
        .map(|row| {
            let (kid, public_key, alg): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
            let mut jwk: Value =
                serde_json::from_str(public_key).map_err(|_| format!("the public key {kid} is not JSON"))?;
            jwk["kid"] = kid.into();
            jwk["alg"] = alg.into();
            Ok(jwk)
        })
        .collect();
    Ok(json!({ "keys": keys? }))
}

async fn none(client: &Client) -> Result<bool, String> {
    let row = client.query_one("SELECT count(*) FROM auth.jwks", &[]).await.map_err(|error| said(&error))?;
    Ok(row.get::<_, i64>(0) == 0)
}

/// A token with these claims.
pub async fn sign(client: &Client, secret: &Secret, claims: &Value) -> Result<String, String> {
    let (kid, key) = signing(client, secret).await?;
    let header = Header { kid: Some(kid), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, claims, &key).map_err(|error| error.to_string())
}

fn cipher(secret: &Secret) -> Result<RandomizedNonceKey, String> {
    let key = Sha256::digest(secret.expose().as_bytes());
    RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| "the cipher refuses its key".to_owned())
}
