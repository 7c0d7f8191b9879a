use std::time::Duration;

use lifeboat::ids::StepId;
use lifeboat::service::dns::Server;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::server::{Zone, harness};
use crate::support::until;

/// `auth.sandbox.test` goes to 127.0.0.2.
fn moved() -> Value {
    json!({ "target": "dns", "name": "auth.sandbox.test", "type": "A", "values": ["127.0.0.2"], "within": "20s" })
}

#[tokio::test]
async fn every_server_answers_the_new_record_and_the_old_one_is_known() {
    let zone = Zone::start();
    let harness = zone.harness();
    let preview = harness.preview("dns.update", moved(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Observed));
    assert_eq!(preview.summary, "A auth.sandbox.test: 127.0.0.1 → 127.0.0.2");
    assert!(preview.problems.is_empty(), "a minute is short: {:?}", preview.problems);
    assert_eq!(zone.primary.dig("auth.sandbox.test", "A"), ["60 127.0.0.1"], "a preview changes nothing");

    let done = harness.run("dns.update", moved()).await.unwrap();
    assert_eq!(done.summary.unwrap(), "A auth.sandbox.test: 127.0.0.2 on 2 servers");
    assert_eq!(done.outputs["previous"], json!(["127.0.0.1"]));
    assert_eq!(done.outputs["previous_ttl"], "1m");
    for server in [&zone.primary, &zone.secondary] {
        assert_eq!(server.dig("auth.sandbox.test", "A"), ["60 127.0.0.2"], "at once, and with the TTL as it was");
    }
    // And back, by what it gave.
    let back = json!({
        "target": "dns", "name": "auth.sandbox.test", "type": "A",
        "values": done.outputs["previous"], "ttl": done.outputs["previous_ttl"],
    });
    harness.run("dns.update", back).await.unwrap();
    assert_eq!(zone.secondary.dig("auth.sandbox.test", "A"), ["60 127.0.0.1"]);
}

#[tokio::test]
async fn a_record_that_is_so_already_is_left_alone() {
    let zone = Zone::start();
    let harness = zone.harness();
    let same = |ttl: &str| {
        json!({
            "target": "dns", "name": "Pair.Sandbox.test.", "type": "A", "ttl": ttl,
            "values": ["127.0.0.2", "127.0.0.1"], "within": "20s",
        })
    };
    let preview = harness.preview("dns.update", same("1m"), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::None, Certainty::Observed));
    let serial = zone.primary.dig("sandbox.test", "SOA");
    let done = harness.run("dns.update", same("1m")).await.unwrap();
    assert_eq!(done.outputs["previous"], json!(["127.0.0.1", "127.0.0.2"]));
    assert_eq!((zone.primary.dig("sandbox.test", "SOA"), harness.journal.notes().len()), (serial, 0));
    // Another TTL is another record.
    let preview = harness.preview("dns.update", same("30s"), &World::default()).await;
    assert!(preview.summary.ends_with(", TTL 1m → 30s"), "{}", preview.summary);
    harness.run("dns.update", same("30s")).await.unwrap();
    assert_eq!(zone.secondary.dig("pair.sandbox.test", "A"), ["30 127.0.0.1", "30 127.0.0.2"]);
}

#[tokio::test]
async fn records_of_other_types_come_and_go() {
    let zone = Zone::start();
    let harness = zone.harness();
    let update = |name: &str, kind: &str, values: Value| json!({ "target": "dns", "name": format!("{name}sandbox.test"), "type": kind, "values": values, "within": "20s" });
    for (name, kind, value, dug) in [
        ("new.", "AAAA", "2001:db8::1", "300 2001:db8::1"),
        ("new.", "TXT", "v=spf1 include:a b -all", "300 \"v=spf1 include:a b -all\""),
        ("www.", "CNAME", "new.sandbox.test", "60 new.sandbox.test."),
        ("_sip._tcp.", "SRV", "10 5 443 auth.sandbox.test", "300 10 5 443 auth.sandbox.test."),
        ("", "MX", "20 auth.sandbox.test", "60 20 auth.sandbox.test."),
        ("", "CAA", "0 issue \"letsencrypt.org\"", "300 0 issue \"letsencrypt.org\""),
    ] {
        let preview = harness.preview("dns.update", update(name, kind, json!([value])), &World::default()).await;
        let action = if dug.starts_with("300") { Action::Create } else { Action::Change };
        assert_eq!(preview.action, action, "{}", preview.summary);
        harness.run("dns.update", update(name, kind, json!([value]))).await.unwrap();
        assert_eq!(zone.secondary.dig(&format!("{name}sandbox.test"), kind), [dug]);
        // What is written is what is read.
        let again = harness.preview("dns.update", update(name, kind, json!([value])), &World::default()).await;
        assert_eq!(again.action, Action::None, "{}", again.summary);
    }
    let preview = harness.preview("dns.update", update("new.", "AAAA", json!([])), &World::default()).await;
    assert_eq!(
        (preview.action, preview.summary.as_str()),
        (Action::Destroy, "AAAA new.sandbox.test: 2001:db8::1 → nothing")
    );
    harness.run("dns.update", update("new.", "AAAA", json!([]))).await.unwrap();
    assert!(zone.secondary.dig("new.sandbox.test", "AAAA").is_empty());
    assert_eq!(zone.secondary.dig("new.sandbox.test", "TXT").len(), 1, "only that type");
}

#[tokio::test]
async fn killed_before_the_primary_was_asked() {
    let zone = Zone::start();
    let harness = zone.harness();
    harness.run_and_kill_at_note("dns.update", moved(), 1).await;
    let answer = harness.after_kill("dns.update", moved()).await;
    assert_eq!(answer, AfterKill::DidNotHappen { why: "it is still 127.0.0.1".to_owned() });
    let done = harness.run("dns.update", moved()).await.unwrap();
    assert_eq!(done.outputs["previous"], json!(["127.0.0.1"]));
}

#[tokio::test]
async fn killed_between_the_update_and_its_being_read_back() {
    let zone = Zone::start();
    let harness = zone.harness();
    zone.secondary.freeze(true);
    let step = harness.step("dns.update", moved());
    let cx = harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await.map(drop) });
    until("the primary has it", async || zone.primary.dig("auth.sandbox.test", "A") == ["60 127.0.0.2"]).await;
    running.abort();
    let _ = running.await;
    assert!(matches!(harness.after_kill("dns.update", moved()).await, AfterKill::Partly { .. }));
    zone.secondary.freeze(false);
    until("the secondary has it", async || zone.secondary.dig("auth.sandbox.test", "A") == ["60 127.0.0.2"]).await;
    let AfterKill::Happened(done) = harness.after_kill("dns.update", moved()).await else { panic!("it happened") };
    assert_eq!(done.outputs["previous"], json!(["127.0.0.1"]), "from the note");
    // Had it gone on in another attempt, that one would know as well.
    let done = harness.run("dns.update", moved()).await.unwrap();
    assert_eq!(done.outputs["previous"], json!(["127.0.0.1"]));
    // Somebody else is at work: that is for a person to see.
    zone.primary.nsupdate("update delete auth.sandbox.test A\nupdate add auth.sandbox.test 60 A 127.0.0.9");
    let answer = harness.after_kill("dns.update", moved()).await;
    assert!(matches!(&answer, AfterKill::CannotTell { why } if why.contains("127.0.0.9")), "{answer:?}");
}

#[tokio::test]
async fn a_secondary_that_follows_late_is_waited_for() {
    let mut zone = Zone::with(false);
    let harness = zone.harness();
    let short = json!({ "target": "dns", "name": "auth.sandbox.test", "type": "A", "values": ["127.0.0.2"], "within": "1500ms" });
    let failure = harness.run("dns.update", short).await.unwrap_err();
    assert!(failure.transient, "{failure}");
    let behind = format!("127.0.0.1:{} answers 127.0.0.1", zone.secondary.port);
    assert!(failure.message.ends_with(&behind), "{failure}");
    let step = harness.step("dns.update", moved());
    let cx = harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await });
    until("it waits", async || {
        harness.journal.progress_seen().iter().any(|seen| (seen.done, seen.total) == (1, Some(2)))
    })
    .await;
    // Without the copy that it kept it asks its primary when it starts.
    zone.secondary.down();
    std::fs::remove_file(zone.secondary.file("copy")).unwrap();
    zone.secondary.up();
    let done = running.await.unwrap().unwrap();
    assert_eq!(done.outputs["previous"], json!(["127.0.0.1"]), "what was there before the first attempt");
    assert_eq!(zone.secondary.dig("auth.sandbox.test", "A"), ["60 127.0.0.2"]);
}

#[tokio::test]
async fn a_cancelled_step_stops_waiting() {
    let zone = Zone::with(false);
    let harness = zone.harness();
    let step = harness.step("dns.update", moved());
    let cx = harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await });
    until("it waits", async || !harness.journal.progress_seen().is_empty()).await;
    harness.cancel.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(1), running).await;
    assert!(ended.unwrap().unwrap().unwrap_err().message.contains("cancelled"));
}

#[tokio::test]
async fn a_long_ttl_and_what_earlier_steps_foretell() {
    let zone = Zone::start();
    let harness = zone.harness();
    let old =
        json!({ "target": "dns", "name": "old.sandbox.test", "type": "A", "values": ["127.0.0.2"], "ttl": "1m" });
    let preview = harness.preview("dns.update", old, &World::default()).await;
    assert_eq!(preview.summary, "A old.sandbox.test: 127.0.0.1 → 127.0.0.2, TTL 1d → 1m");
    assert!(preview.problems[0].message.contains("keep the old record for 1d"), "{:?}", preview.problems);
    assert!(!preview.problems[0].blocks);
    let mut world = World::default();
    let (resource, fact) = preview.facts[0].clone();
    assert_eq!((resource.as_str(), &fact), ("dns:old.sandbox.test/A", &Fact::Changed));
    world.foretell(resource, fact, &StepId::new("before"));
    let check = json!({ "name": "old.sandbox.test", "target": "dns", "expect": "127.0.0.2" });
    assert_eq!(harness.preview("dns.check", check, &world).await.certainty, Certainty::Assumed);
}

#[tokio::test]
async fn servers_are_those_of_the_zones_ns_records() {
    let zone = Zone::start();
    let settings = zone.settings(json!({ "servers": [] }));
    let harness = harness(settings);
    let found = harness.services.dns("dns").unwrap().all_servers().await.unwrap();
    let shown: Vec<&str> = found.iter().map(Server::shown).collect();
    assert_eq!(
        shown,
        [&zone.primary.address(), "ns1.sandbox.test (127.0.0.1:53)", "ns2.sandbox.test (127.0.0.77:53)"]
    );
}
