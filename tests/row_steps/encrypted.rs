//! Exports that are encrypted by age, and their way back.

use std::process::Command;

use lifeboat::step::world::World;
use lifeboat::step::{Action, find};
use serde_json::{Value, json};

use crate::fixture::{KEYS, Place};
use crate::support::{sql, value};

const EXPORT: &str = "postgres.export";
const IMPORT: &str = "postgres.import";
/// Longer than one piece of what age encrypts.
const MANY: &str = "INSERT INTO auth.jwks SELECT ('ffffffff-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, \
     'public', repeat('private', 100), 'ES256', now() FROM generate_series(1, 1000) i";

/// A new identity, and the recipient that it belongs to.
fn identity() -> (String, String) {
    let output = Command::new("age-keygen").output().expect("Debian: apt-get install age");
    let text = String::from_utf8(output.stdout).unwrap();
    let secret = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap().to_owned();
    let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    (secret, recipient)
}

fn export(database: &str, recipients: &Value) -> Value {
    json!({ "target": "db", "database": database, "table": "auth.jwks", "encrypt_to": recipients,
        "to": { "storage": "store", "path": "keys.csv" } })
}

fn import(database: &str, identity: Option<&str>) -> Value {
    let mut params = json!({ "target": "db", "database": database, "table": "auth.jwks", "mode": "merge",
        "require_manifest": true, "from": { "storage": "store", "path": "keys.csv" } });
    if let Some(identity) = identity {
        params["identity"] = identity.into();
    }
    params
}

#[tokio::test]
async fn only_who_has_the_identity_reads_it() {
    let place = Place::new("age");
    let database = place.names.create("live", KEYS).await;
    sql(&database, MANY).await;
    let content = "SELECT md5(string_agg(j::text, '' ORDER BY id)) FROM auth.jwks j";
    let before = value(&database, content).await;
    let ((secret, recipient), (other_secret, other)) = (identity(), identity());

    let done = place.again().run(EXPORT, export(&database, &json!([recipient, other]))).await.unwrap();
    assert_eq!(done.outputs["rows"], 1003);
    let sealed = std::fs::read(place.path("keys.csv")).unwrap();
    assert!(sealed.starts_with(b"age-encryption.org/v1"));
    assert!(!sealed.windows(7).any(|part| part == b"private"), "nothing of it is readable");

    sql(&database, "DELETE FROM auth.jwks WHERE id::text LIKE 'f%'; UPDATE auth.jwks SET public_key = 'damaged'")
        .await;
    let (stranger, _) = identity();
    for (identity, says) in [
        (None, "`keys.csv` is encrypted"),
        (Some(""), "`keys.csv` is encrypted"),
        (Some(stranger.as_str()), "no identity matched any of the recipients"),
        (Some("AGE-SECRET-KEY-1"), "age: "),
    ] {
        let preview = place.again().preview(IMPORT, import(&database, identity), &World::default()).await;
        assert_eq!(preview.action, Action::Blocked, "{identity:?}: {preview:?}");
        let failure = place.again().run(IMPORT, import(&database, identity)).await.unwrap_err();
        assert!(failure.message.contains(says), "{failure}");
        assert!(!failure.message.contains(&stranger), "{failure}");
    }
    for secret in [&secret, &other_secret] {
        let harness = place.again();
        assert_eq!(harness.run(IMPORT, import(&database, Some(secret))).await.unwrap().outputs["rows"], 1003);
        assert_eq!(value(&database, content).await, before);
    }

    // Cut where a piece of age's ends: only the program tells, as the manifest that would is gone, too.
    std::fs::write(place.path("keys.csv"), &sealed[..sealed.len() - 100]).unwrap();
    std::fs::remove_file(place.path("keys.csv.object.json")).unwrap();
    let mut params = import(&database, Some(&secret));
    params["require_manifest"] = false.into();
    sql(&database, "DELETE FROM auth.jwks").await;
    let failure = place.again().run(IMPORT, params).await.unwrap_err();
    assert!(failure.message.contains("age: "), "{failure}");
    assert_eq!(value(&database, "SELECT count(*) FROM auth.jwks").await.unwrap(), "0");
}

#[tokio::test]
async fn a_recipient_that_is_none_is_foreseen() {
    let place = Place::new("age_wrong");
    let database = place.names.create("live", KEYS).await;
    let step = (find(EXPORT).unwrap().parse)(export(&database, &json!(["somebody"]))).unwrap();
    let mut found = lifeboat::step::Findings::default();
    step.check(&mut found);
    assert_eq!(found.found[0].message, "this is no recipient of age's");

    let wrong = export(&database, &json!(["age1qqqqqqqqqq"]));
    let preview = place.again().preview(EXPORT, wrong.clone(), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    assert!(preview.problems[0].message.starts_with("age: "), "{preview:?}");
    place.again().run(EXPORT, wrong).await.unwrap_err();
    assert!(place.files().is_empty(), "nothing is left of it");
}
