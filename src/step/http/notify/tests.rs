use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;

use super::*;
use crate::step::testing::{cx, cx_after, findings, preview, services, step};
use crate::step::world::World;

/// A web hook on a free port that answers with `status` and keeps what it got.
async fn hook(status: StatusCode) -> (String, Arc<Mutex<Vec<(String, Value)>>>) {
    let got = Arc::new(Mutex::new(vec![]));
    let keep = got.clone();
    let route = post(async move |headers: HeaderMap, axum::Json(body): axum::Json<Value>| {
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        keep.lock().unwrap().push((key, body));
        status
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, axum::Router::new().route("/hook", route)).into_future());
    (format!("http://{address}/hook"), got)
}

fn alarm() -> std::sync::Arc<dyn Step> {
    step(
        "notify",
        json!({ "target": "oncall", "message": "a < b", "subject": "Restore failed", "severity": "critical" }),
    )
}

#[tokio::test]
async fn json_says_all_and_carries_the_same_key_each_time() {
    let (url, got) = hook(StatusCode::OK).await;
    let services = services(json!({ "oncall": { "webhook": { "url": url } } }));
    let (first, recorder) = cx(&services);
    alarm().run(&first).await.unwrap();
    // A kill left it open whether it was told: told again, and marked.
    let (second, _) = cx_after(&services, recorder.notes());
    assert!(matches!(alarm().after_kill(&second).await.unwrap(), AfterKill::RunAgain { .. }));
    alarm().run(&second).await.unwrap();
    let got = got.lock().unwrap();
    assert_eq!((got[0].0.as_str(), &got[0].0), ("20261124-062329-bako:step", &got[1].0));
    let (body, repeated) = (&got[0].1, &got[1].1);
    assert_eq!((&body["severity"], &body["message"]), (&json!("critical"), &json!("a < b")));
    assert_eq!((&body["possibly_repeated"], &repeated["possibly_repeated"]), (&json!(false), &json!(true)));
}

#[tokio::test]
async fn slack_gets_text() {
    let (url, got) = hook(StatusCode::OK).await;
    let services = services(json!({ "oncall": { "webhook": { "url": url, "format": "slack" } } }));
    let (first, recorder) = cx(&services);
    alarm().run(&first).await.unwrap();
    alarm().run(&cx_after(&services, recorder.notes()).0).await.unwrap();
    let got = got.lock().unwrap();
    assert_eq!(got[0].1, json!({ "text": "[critical] *Restore failed*\na &lt; b" }));
    assert!(got[1].1["text"].as_str().unwrap().ends_with("_(possibly repeated)_"));
}

#[tokio::test]
async fn what_was_not_acknowledged_failed_and_the_url_stays_unsaid() {
    for (status, transient) in [
        (StatusCode::SERVICE_UNAVAILABLE, true),
        (StatusCode::TOO_MANY_REQUESTS, true),
        (StatusCode::NOT_FOUND, false),
        (StatusCode::FOUND, false),
    ] {
        let (url, _) = hook(status).await;
        let services = services(json!({ "oncall": { "webhook": { "url": url } } }));
        let failure = alarm().run(&cx(&services).0).await.unwrap_err();
        assert_eq!(failure.transient, transient, "{failure}");
        assert!(failure.message.starts_with("tell oncall: ") && !failure.message.contains("/hook"), "{failure}");
    }
}

#[tokio::test]
async fn an_attempt_that_reached_nobody_does_not_make_the_next_a_repetition() {
    let services = services(json!({ "oncall": { "webhook": { "url": "http://127.0.0.1:1/hook" } } }));
    let (first, recorder) = cx(&services);
    let failure = alarm().run(&first).await.unwrap_err();
    assert!(failure.transient, "{failure}");
    let (second, _) = cx_after(&services, recorder.notes());
    assert!(matches!(alarm().after_kill(&second).await.unwrap(), AfterKill::DidNotHappen { .. }));
}

#[tokio::test]
async fn a_preview_tells_nobody() {
    let (url, got) = hook(StatusCode::OK).await;
    let services = services(json!({ "oncall": { "webhook": { "url": url } } }));
    let preview_of_it = preview(&*alarm(), Some(&services), &World::default()).await;
    assert_eq!((preview_of_it.action, preview_of_it.certainty), (Action::Create, Certainty::Assumed));
    assert!(got.lock().unwrap().is_empty());
    let wrong = crate::step::testing::services(json!({ "oncall": { "webhook": { "url": "oncall" } } }));
    assert_eq!(preview(&*alarm(), Some(&wrong), &World::default()).await.action, Action::Blocked);
    assert_eq!(findings("notify", json!({ "target": "oncall", "message": " " })).len(), 1);
}

#[test]
fn whom_a_mail_is_for() {
    let params = |to: Value| json!({ "target": "it", "message": "x", "to": to });
    assert!(findings("notify", params(json!(["sven@a.test", "Sven <sven@a.test>", "‹ask.mail›"]))).is_empty());
    assert_eq!(findings("notify", params(json!(["a@b.test", "sven"]))), ["/to/1 `sven` is no address"]);
    let kinds = |kind: &str, params: Value| {
        let kinds = [("it".to_owned(), kind.to_owned())].into();
        let mut found = Findings::with_kinds(kinds);
        step("notify", params).check(&mut found);
        found
            .found
            .into_iter()
            .map(|finding| format!("{} {}", finding.pointer, finding.message))
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds("smtp", params(json!([]))), [" `it` sends mail, and nobody is named"]);
    assert_eq!(
        kinds("webhook", params(json!(["a@b.test"]))),
        ["/to `it` is a web hook, which knows whom it tells"]
    );
    assert!(kinds("smtp", params(json!(["a@b.test"]))).is_empty());
    assert!(kinds("webhook", params(json!([]))).is_empty());
}
