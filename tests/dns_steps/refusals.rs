use std::process::Command;

use lifeboat::step::Action;
use lifeboat::step::world::World;
use serde_json::{Value, json};

use crate::server::{SECRET, Zone, harness};

fn update(name: &str, kind: &str, value: &str) -> Value {
    json!({ "target": "dns", "name": name, "type": kind, "values": [value], "within": "20s" })
}

/// Refused by the preview and in the run, for good, in words and with help, and nothing is changed.
async fn refused(zone: &Zone, settings: Value, params: Value, words: &str) {
    let harness = harness(settings);
    let serial = zone.primary.dig("sandbox.test", "SOA");
    let preview = harness.preview("dns.update", params.clone(), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "{words}");
    assert!(preview.problems[0].message.contains(words), "{:?}", preview.problems);
    let failure = harness.run("dns.update", params).await.unwrap_err();
    assert!(!failure.transient && failure.help.is_some() && failure.message.contains(words), "{failure:?}");
    assert!(!format!("{failure:?}").contains(SECRET), "{failure:?}");
    assert_eq!(zone.primary.dig("sandbox.test", "SOA"), serial);
}

#[tokio::test]
async fn a_wrong_key_is_seen_before_anything_is_tried() {
    let zone = Zone::start();
    let auth = || update("auth.sandbox.test", "A", "127.0.0.2");
    let other = "b3RoZXIgc2VjcmV0LCBvdGhlciBzZWNyZXQsIG90aGU=";
    let key = |name: &str, secret: &str| zone.settings(json!({ "tsig": { "name": name, "secret": secret } }));
    refused(&zone, key("lifeboat", other), auth(), "BADSIG").await;
    refused(&zone, key("somebody", SECRET), auth(), "BADKEY").await;
}

#[tokio::test]
async fn what_the_zone_can_not_be_asked_for() {
    let zone = Zone::start();
    let settings = || zone.settings(json!({}));
    refused(&zone, settings(), update("auth", "A", "127.0.0.2"), "not in dns's zone sandbox.test").await;
    refused(&zone, settings(), update("www.sandbox.test", "A", "127.0.0.2"), "an alias of auth.sandbox.test").await;
    refused(&zone, settings(), update("x.sub.sandbox.test", "A", "127.0.0.2"), "does not answer for").await;
    let elsewhere = zone.settings(json!({ "zone": "elsewhere.test" }));
    refused(&zone, elsewhere, update("auth.elsewhere.test", "A", "127.0.0.2"), "REFUSED").await;
}

#[tokio::test]
async fn what_the_key_may_not_do_is_refused_for_good() {
    let zone = Zone::start();
    let failure =
        zone.harness().run("dns.update", update("locked.sandbox.test", "A", "127.0.0.2")).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("REFUSED"), "{failure}");
    assert!(failure.help.as_ref().unwrap().contains("update-policy"), "{failure}");
    let mut settings = zone.settings(json!({}));
    settings.as_object_mut().unwrap().remove("tsig");
    let open =
        harness(settings).run("dns.update", update("auth.sandbox.test", "A", "127.0.0.2")).await.unwrap_err();
    assert!(!open.transient && open.help.as_ref().unwrap().contains("set `tsig`"), "{open:?}");
    let alias = zone.harness().run("dns.update", update("auth.sandbox.test", "CNAME", "www.sandbox.test")).await;
    assert!(alias.unwrap_err().message.contains("an alias stands alone"));
    assert_eq!(zone.primary.dig("auth.sandbox.test", "A"), ["60 127.0.0.1"]);
}

#[tokio::test]
async fn somebody_elses_change_in_between_is_not_overwritten() {
    let zone = Zone::start();
    let harness = zone.harness();
    let target = harness.services.dns("dns").unwrap();
    let kind = lifeboat::service::dns::Kind::A;
    for name in ["auth.sandbox.test", "fresh.sandbox.test"] {
        let read = target.read(name, kind).await.unwrap();
        zone.primary.nsupdate(&format!("update delete {name} A\nupdate add {name} 60 A 127.0.0.9"));
        let wanted =
            lifeboat::service::dns::Records { values: ["127.0.0.2".to_owned()].into_iter().collect(), ttl: 60 };
        let failure = target.replace(name, &read, &wanted).await.unwrap_err();
        assert!(failure.transient && failure.message.contains("somebody else changed it"), "{failure}");
        assert_eq!(zone.primary.dig(name, "A"), ["60 127.0.0.9"]);
    }
}

#[tokio::test]
async fn a_primary_that_is_down_may_come_back() {
    let mut zone = Zone::start();
    zone.primary.down();
    let harness = zone.harness();
    let params = update("auth.sandbox.test", "A", "127.0.0.2");
    assert_eq!(harness.preview("dns.update", params.clone(), &World::default()).await.action, Action::Blocked);
    let failure = harness.run("dns.update", params.clone()).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("refused"), "{failure}");
    assert!(harness.journal.notes().is_empty());
    zone.primary.up();
    harness.run("dns.update", params).await.unwrap();
}

#[tokio::test]
async fn doctor_asks_the_primary() {
    let zone = Zone::start();
    let folder = tempfile::tempdir().unwrap();
    let doctor = |settings: Value| {
        let file = folder.path().join("env.yaml");
        let document = json!({ "lifeboat": 1, "environment": "it", "targets": { "dns": { "dns": settings } } });
        std::fs::write(&file, document.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(["doctor", "--format", "json", "--env"]).arg(&file).current_dir(folder.path());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (well, said) = doctor(zone.settings(json!({})));
    assert!(well && said.contains("has sandbox.test, serial 1, and takes the key"), "{said}");
    let (well, said) = doctor(zone.settings(json!({ "tsig": { "name": "x", "secret": SECRET } })));
    assert!(!well && said.contains("BADKEY"), "{said}");
    let (well, said) = doctor(zone.settings(json!({ "zone": "elsewhere.test" })));
    assert!(!well && said.contains("REFUSED"), "{said}");
}
