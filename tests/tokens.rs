//! Signing keys and the tokens that they sign: `oidc.check`, and the plans that replace keys, on a real
//! issuer with its keys in a real database and a consumer that caches them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;
mod support;

use data_encoding::BASE64URL_NOPAD;
use lifeboat::service::Target;
use lifeboat::step::world::World;
use lifeboat::step::{Action, Certainty};
use serde_json::{Value, json};
use stage::{DATABASE, Stage, read, said};
use support::Harness;

const TOKEN: &str = "tokens/kept.jwt";

fn target(settings: &Value) -> Target {
    serde_json::from_value(settings.clone()).unwrap()
}

/// A step's context with the stage's issuer, others that are wrong, the consumer and a storage.
fn harness(stage: &Stage) -> Harness {
    let issuer = stage.target("issuer");
    let with = |key: &str, value: &str| {
        let mut other = issuer.clone();
        other["oidc"][key] = value.into();
        target(&other)
    };
    Harness::with([
        ("issuer", target(&issuer)),
        ("misnamed", with("issuer", &stage.issuer().replace("127.0.0.1", "localhost"))),
        ("stranger", with("client_secret", "guessed")),
        ("gone", with("issuer", "http://127.0.0.1:1")),
        ("no_client", target(&json!({ "oidc": { "issuer": stage.issuer() } }))),
        ("consumer", target(&stage.target("consumer"))),
        ("proofs", target(&stage.target("proofs"))),
    ])
}

fn check(issuer: &str, more: &Value) -> Value {
    let mut params = json!({ "target": issuer });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

fn kept() -> Value {
    json!({ "storage": "proofs", "path": TOKEN })
}

fn consumers() -> Value {
    json!([{ "target": "consumer", "path": "/me" }])
}

async fn ids(stage: &Stage) -> Vec<String> {
    let session = stage.session(DATABASE).await;
    let rows = session.rows("list", "SELECT id::text FROM auth.jwks ORDER BY 1", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// What the consumer answers to the token that was kept there.
async fn shown(stage: &Stage, token: &str) -> u16 {
    let url = format!("{}/me", stage.target("consumer")["http"]["base_url"].as_str().unwrap());
    reqwest::Client::new().get(url).bearer_auth(token).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_is_asked_as_its_users_ask_it() {
    let stage = Stage::set(100, &json!({}));
    let harness = harness(&stage);
    let run = async |issuer: &str, more: Value| harness.run("oidc.check", check(issuer, &more)).await;
    let done = run("issuer", json!({ "keys": 1, "consumers": consumers(), "keep_token": kept() })).await.unwrap();
    let key = done.outputs["signed_by"].as_str().unwrap().to_owned();
    assert_eq!((&done.outputs["keys"], &done.outputs["algorithms"]), (&json!([key]), &json!(["EdDSA"])));
    let token = read(&stage.path(".lifeboat/sandboxes/test/proofs").join(TOKEN));
    assert_eq!(harness.services.redactor().redact(&token), "●●●●", "a token is masked wherever it turns up");
    assert!(!format!("{done:?} {}", harness.journal.log_text()).contains(&token));
    let done = run("no_client", json!({})).await.unwrap();
    assert_eq!(done.outputs["signed_by"], "", "keys alone, as nobody is there to ask for a token");

    for (issuer, more, transient, says) in [
        ("stranger", json!({}), false, "it answered 401: {\"error\":\"invalid_client\"}"),
        ("misnamed", json!({}), false, "says that the issuer is http://127.0.0.1"),
        ("gone", json!({}), true, "Connection refused"),
        ("gone", json!({ "within": "300ms", "every": "100ms" }), true, "gone was not well within 300ms"),
        ("issuer", json!({ "keys": { "min": 2 } }), true, "1 keys are published, not at least 2"),
        ("issuer", json!({ "old_key_rejected": { "keys": [key] } }), true, "is still published"),
        (
            "issuer",
            json!({ "old_key_rejected": { "token": kept() }, "consumers": consumers() }),
            true,
            "still published",
        ),
    ] {
        let failure = run(issuer, more.clone()).await.unwrap_err();
        assert!(failure.message.contains(says), "{issuer} {more}: {failure}");
        assert_eq!(failure.transient, transient, "{issuer} {more}: {failure}");
    }
    let failure = run("no_client", json!({ "token": true })).await.unwrap_err();
    assert!(failure.message.contains("names no client"), "{failure}");

    // What lies where the token is to be kept isn't its to replace.
    let again = json!({ "keep_token": { "storage": "proofs", "path": "tokens/other" } });
    std::fs::write(stage.path(".lifeboat/sandboxes/test/proofs/tokens/other"), "a backup").unwrap();
    let other = self::harness(&stage);
    let failure = other.run("oidc.check", check("issuer", &again)).await.unwrap_err();
    assert!(failure.message.contains("already has an object"), "{failure}");
    assert_eq!(
        other.preview("oidc.check", check("issuer", &again), &World::default()).await.action,
        Action::Blocked
    );
    assert_eq!(read(&stage.path(".lifeboat/sandboxes/test/proofs/tokens/other")), "a backup");

    // A dry-run asks for the document only: keys and tokens would make a key where there is none.
    let session = stage.session(DATABASE).await;
    session.batch("lose", "DELETE FROM auth.jwks").await.unwrap();
    let preview = harness.preview("oidc.check", check("issuer", &json!({})), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed));
    let preview = harness.preview("oidc.check", check("gone", &json!({})), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    assert!(ids(&stage).await.is_empty());

    // The key is gone, and whoever has it in a cache trusts it still, until a key that it doesn't know
    // makes it ask: the new token's.
    assert_eq!(shown(&stage, &token).await, 200);
    let refused = |path: &str| {
        let consumers = json!([{ "target": "consumer", "path": path }]);
        json!({ "old_key_rejected": { "keys": [key], "token": kept() }, "consumers": consumers })
    };
    run("issuer", refused("/me")).await.unwrap();
    assert_eq!(shown(&stage, &token).await, 401);
    // A consumer that never looks at tokens takes this one, too.
    let failure = run("issuer", refused("/health/ready")).await.unwrap_err();
    assert!(failure.message.contains("consumer still takes a token of a revoked key"), "{failure}");

    // That an expired token is refused proves nothing.
    let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let expired = format!("{}.{}.AAAA", part(json!({ "alg": "EdDSA", "kid": key })), part(json!({ "exp": 1 })));
    std::fs::write(stage.path(".lifeboat/sandboxes/test/proofs").join(TOKEN), expired).unwrap();
    let failure = run("issuer", refused("/me")).await.unwrap_err();
    assert!(failure.message.contains("expired at 1970-01-01T00:00:01Z"), "{failure}");

    // Encrypted with another secret: the rows are there, and no token can be signed.
    session.batch("damage", "UPDATE auth.jwks SET private_key = encode(sha256('x'), 'base64')").await.unwrap();
    let failure = run("issuer", json!({})).await.unwrap_err();
    assert!(failure.message.contains("can't be decrypted"), "{failure}");
    assert!(failure.transient, "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn compromised_keys_are_refused_by_everybody() {
    const ROTATION: [&str; 5] = ["run", "plans/emergency-key-rotation.yaml", "--env", "test", "--yes"];
    let stage = Stage::set(100, &json!({}));
    let before = ids(&stage).await;
    // Without a second person nothing is deleted.
    let output = stage.run(&ROTATION);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert_eq!(ids(&stage).await, before);
    let (latest, run) = (stage.journals().pop().unwrap(), stage.latest());
    stage.done(&["approve", &run, "approve", "--by", "maria"]);
    stage.killed_at(&["resume", "--yes"], "renew/revoke");
    stage.done(&["resume", "--yes"]);

    let after = ids(&stage).await;
    assert_eq!(after.len(), 1);
    assert!(!before.contains(&after[0]));
    let kept = stage.path(".lifeboat/sandboxes/test/backups/tokens");
    let token = read(&kept.join(format!("{run}.jwt")));
    assert_eq!(shown(&stage, &token).await, 401);
    for file in [latest, stage.path(".lifeboat/sandboxes/test/oncall.jsonl")] {
        assert!(!read(&file).contains(&token), "{}", file.display());
    }
    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    assert_eq!(report["recovery"]["rto"]["met"], true, "{report:#}");
    let copy = stage.path(".lifeboat/sandboxes/test/backups").join(format!("revoked_jwks_{run}.csv"));
    assert_eq!(read(&copy).lines().count(), before.len() + 1);

    // A consumer that can't be made to forget: the run says who still takes the old token.
    stage.done(&["sandbox", "stop", "consumer", "--env", "test"]);
    let output = stage.run(&[&ROTATION[..], &["-i", "second_person=false"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(ids(&stage).await, after, "no proof could be had: nothing was deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_and_nobody_notices() {
    let stage = Stage::set(100, &json!({}));
    let session = stage.session(DATABASE).await;
    // An algorithm that the service makes no keys for, and a key without a time: traps for whoever deletes by age.
    session
        .batch(
            "set the traps",
            "ALTER TABLE auth.jwks ALTER created_at DROP NOT NULL; \
             INSERT INTO auth.jwks SELECT md5('es256')::uuid, public_key, private_key, 'ES256', NULL, NULL \
             FROM auth.jwks WHERE expires_at IS NULL",
        )
        .await
        .unwrap();
    let only = session.row("ask", "SELECT md5('es256')::uuid::text", &[]).await.unwrap().get::<_, String>(0);
    // The service signs by its newest EdDSA key; the other one only has to stay.
    session.batch("age it", "UPDATE auth.jwks SET created_at = '2020-01-01+00' WHERE alg = 'ES256'").await.unwrap();
    let harness = harness(&stage);
    harness.run("oidc.check", check("issuer", &json!({ "keep_token": kept() }))).await.unwrap();
    let token = read(&stage.path(".lifeboat/sandboxes/test/proofs").join(TOKEN));

    let before = ids(&stage).await;
    let rotate = ["run", "plans/rotate-keys.yaml", "--env", "test", "--yes", "-i", "grace=3s"];
    stage.killed_at(&rotate, "grace");
    assert_eq!(shown(&stage, &token).await, 200, "old tokens are good until the grace period is over");
    assert_eq!(ids(&stage).await.len(), before.len() + 1);
    stage.done(&["resume", "--yes"]);
    let after = ids(&stage).await;
    assert_eq!(after.len(), 2, "the new key, and the only one of its algorithm: {after:?}");
    assert!(after.contains(&only));
    let live = "SELECT count(*) FROM auth.jwks WHERE expires_at IS NULL";
    assert_eq!(session.row("count", live, &[]).await.unwrap().get::<_, i64>(0), 2);

    // No new key can be made: the old ones sign on.
    session.batch("forbid", "REVOKE INSERT ON auth.jwks FROM auth_service").await.unwrap();
    let plan = stage.path("plans/rotate-keys.yaml");
    std::fs::write(&plan, read(&plan).replace("within: 2m", "within: 2s")).unwrap();
    let output = stage.run(&rotate);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(ids(&stage).await, after);
    assert_eq!(session.row("count", live, &[]).await.unwrap().get::<_, i64>(0), 2, "{}", said(&output));
    harness.run("oidc.check", check("issuer", &json!({}))).await.unwrap();
    // Resumed, it says that there is nothing to resume; a new one goes through.
    session.batch("permit", "GRANT INSERT ON auth.jwks TO auth_service").await.unwrap();
    let output = stage.run(&["resume", "--yes"]);
    assert!(said(&output).contains("gave the old keys back"), "{}", said(&output));
    assert_eq!(ids(&stage).await, after);
    stage.done(&rotate);
    assert_eq!(ids(&stage).await.iter().filter(|id| after.contains(id)).count(), 1, "the one of ES256");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_keys_come_back_or_are_replaced() {
    const LOSS: [&str; 5] = ["run", "plans/jwks-loss.yaml", "--env", "test", "--yes"];
    let stage = Stage::set(100, &json!({}));
    let whole = ids(&stage).await;
    stage.done(&["run", "plans/jwks-backup.yaml", "--env", "test", "--yes"]);
    let session = stage.session(DATABASE).await;
    session.batch("lose", "DELETE FROM auth.jwks").await.unwrap();
    stage.killed_at(&LOSS, "restore/import");
    stage.done(&["resume", "--yes"]);
    assert_eq!(ids(&stage).await, whole);

    // Rows that no secret opens: a count of them would be content.
    session.batch("damage", "UPDATE auth.jwks SET private_key = encode(sha256('x'), 'base64')").await.unwrap();
    let regenerate = [&LOSS[..], &["-i", "mode=regenerate"]].concat();
    stage.killed_at(&regenerate, "regenerate/new");
    stage.done(&["resume", "--yes"]);
    let after = ids(&stage).await;
    assert_eq!(after.len(), 1);
    assert!(!whole.contains(&after[0]));

    session.batch("lose", "DELETE FROM auth.jwks").await.unwrap();
    stage.done(&regenerate);
    assert_eq!(ids(&stage).await.len(), 1);
}
