use lifeboat::step::world::World;
use lifeboat::step::{Action, Findings};
use serde_json::{Value, json};

use crate::server::Zone;
use crate::support::until;

#[tokio::test]
async fn a_name_leads_where_it_should() {
    let zone = Zone::start();
    let harness = zone.harness();
    let server = zone.secondary.address();
    let ask = |name: &str, more: Value| {
        let mut params = json!({ "name": format!("{name}.sandbox.test"), "server": server });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    let done = harness.run("dns.check", ask("auth", json!({ "expect": "127.0.0.1" }))).await.unwrap();
    assert_eq!((&done.outputs["addresses"], &done.outputs["ttl"]), (&json!(["127.0.0.1"]), &json!(60)));
    for good in [
        ask("auth", json!({})),
        ask("pair", json!({ "expect": ["127.0.0.2", "127.0.0.1"] })),
        ask("www", json!({ "expect": "127.0.0.1" })),
        ask("www", json!({ "type": "CNAME", "expect": "Auth.sandbox.test." })),
        ask("nobody", json!({ "expect": [] })),
        json!({ "name": "sandbox.test", "target": "dns", "type": "MX", "expect": "10 mail.sandbox.test" }),
    ] {
        let preview = harness.preview("dns.check", good.clone(), &World::default()).await;
        assert_eq!(preview.action, Action::Read, "{:?}", preview.problems);
        harness.run("dns.check", good).await.unwrap();
    }
    for (bad, said) in [
        (ask("auth", json!({ "expect": "127.0.0.2" })), "A auth.sandbox.test: 127.0.0.1; it should be 127.0.0.2"),
        (ask("pair", json!({ "expect": ["127.0.0.1"] })), "127.0.0.1, 127.0.0.2; it should be 127.0.0.1"),
        (ask("nobody", json!({})), "A nobody.sandbox.test: nothing"),
        (json!({ "name": "auth.elsewhere.test", "server": server }), "REFUSED"),
        (json!({ "name": "auth.sandbox.test", "server": "127.0.0.1:1" }), "refused"),
    ] {
        let preview = harness.preview("dns.check", bad.clone(), &World::default()).await;
        assert_eq!(preview.action, Action::Blocked);
        let failure = harness.run("dns.check", bad).await.unwrap_err();
        assert!(failure.message.contains(said), "{failure}");
    }
}

#[tokio::test]
async fn what_is_not_so_yet_is_waited_for() {
    let zone = Zone::start();
    let harness = zone.harness();
    let wanted = |within: &str| json!({ "name": "auth.sandbox.test", "target": "dns", "expect": "127.0.0.2", "within": within });
    let preview = harness.preview("dns.check", wanted("20s"), &World::default()).await;
    assert!(preview.action == Action::Read && preview.problems.len() == 1, "{preview:?}");
    let failure = harness.run("dns.check", wanted("700ms")).await.unwrap_err();
    assert!(failure.message.contains("was not so within 700ms"), "{failure}");
    let step = harness.step("dns.check", wanted("20s"));
    let cx = harness.next_attempt();
    let seen = harness.journal.progress_seen().len();
    let running = tokio::spawn(async move { step.run(&cx).await });
    until("it waits", async || harness.journal.progress_seen().len() > seen).await;
    zone.primary.nsupdate("update delete auth.sandbox.test A\nupdate add auth.sandbox.test 60 A 127.0.0.2");
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_long_answer_comes_whole() {
    let zone = Zone::start();
    // More than fits in a packet, and no more than BIND takes.
    let many: Vec<String> = (1..=90).map(|host| format!("10.0.0.{host}")).collect();
    let lines: Vec<String> =
        many.iter().map(|value| format!("update add many.sandbox.test 60 A {value}")).collect();
    zone.primary.nsupdate(&lines.join("\n"));
    let params = json!({ "name": "many.sandbox.test", "server": zone.primary.address(), "expect": many });
    zone.harness().run("dns.check", params).await.unwrap();
}

#[test]
fn parameters_that_cannot_be_right() {
    let findings = |name: &str, params: Value| {
        let mut found = Findings::default();
        (lifeboat::step::find(name).unwrap().parse)(params).unwrap().check(&mut found);
        found.found.into_iter().map(|finding| finding.pointer).collect::<Vec<_>>()
    };
    assert_eq!(
        findings("dns.check", json!({ "name": "a b", "target": "dns", "server": "x y", "expect": "localhost" })),
        ["/name", "/expect", "/server", "/server"]
    );
    assert_eq!(findings("dns.check", json!({ "name": "a.test", "expect": ["127.0.0.1", "::1"] })), ["/expect/1"]);
    let update = |kind: &str, values: Value, ttl: &str| {
        findings(
            "dns.update",
            json!({ "target": "dns", "name": "a.test", "type": kind, "values": values, "ttl": ttl }),
        )
    };
    assert_eq!(update("A", json!(["127.0.0.1", "‹find.ip›", "here"]), "1m"), ["/values/2"]);
    assert_eq!(update("CNAME", json!(["b.test", "c.test"]), "1500ms"), ["/values", "/ttl"]);
}
