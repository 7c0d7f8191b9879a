//! Against real servers on loopback.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method as Verb, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::*;
use crate::step::testing::{cx, cx_after, findings, preview, refused, services, step, until};
use crate::step::world::World;
use crate::step::{Action, Certainty};

type Seen = Arc<Mutex<Vec<(String, HeaderMap, String)>>>;

async fn answer(State(seen): State<Seen>, verb: Verb, uri: Uri, headers: HeaderMap, body: String) -> Response {
    seen.lock().unwrap().push((format!("{verb} {uri}"), headers, body));
    match uri.path() {
        "/users" => (StatusCode::CREATED, axum::Json(json!({ "id": 7 }))).into_response(),
        "/text" => "done".into_response(),
        "/moved" => (StatusCode::FOUND, [("location", "/elsewhere")]).into_response(),
        "/hang" => std::future::pending().await,
        path => {
            let status = path[1..].parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
            (status.unwrap_or(StatusCode::NOT_FOUND), "token hunter2hunter2 says no").into_response()
        }
    }
}

/// A service that keeps what it is asked; a number as path is the status of its answer.
async fn service() -> (Services, Seen) {
    let seen = Seen::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(seen.clone());
    tokio::spawn(axum::serve(listener, router).into_future());
    let services = services(json!({
        "api": { "http": { "base_url": url, "timeout": "400ms", "headers": { "x-tenant": "a" } } },
        "slow": { "http": { "base_url": url, "timeout": "60s" } },
        "gone": { "http": { "base_url": "http://127.0.0.1:1" } },
    }));
    services.redactor().add("hunter2hunter2");
    (services, seen)
}

#[allow(clippy::needless_pass_by_value, reason = "reads best with `json!` in the call")]
fn request(path: &str, more: Value) -> Arc<dyn Step> {
    let mut params = json!({ "target": "api", "method": "POST", "path": path });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    step("http.request", params)
}

#[tokio::test]
async fn what_is_sent_and_what_comes_back() {
    let (services, seen) = service().await;
    let more = json!({ "json": { "name": "Ann" }, "headers": { "x-trace": "1" }, "status": 201 });
    let (cx, recorder) = cx(&services);
    let done = request("/users?notify=no", more).run(&cx).await.unwrap();
    assert_eq!((&done.outputs["status"], &done.outputs["body"]), (&json!(201), &json!({ "id": 7 })));
    assert_eq!(recorder.notes(), [json!({ "sending": true })]);
    let seen = seen.lock().unwrap();
    let (asked, headers, body) = &seen[0];
    assert_eq!((asked.as_str(), body.as_str()), ("POST /users?notify=no", r#"{"name":"Ann"}"#));
    assert_eq!(headers["idempotency-key"], format!("{}:{}", cx.run, cx.step));
    assert_eq!((&headers["x-tenant"], &headers["x-trace"]), (&"a".parse().unwrap(), &"1".parse().unwrap()));
    assert_eq!(headers["content-type"], "application/json");
}

#[tokio::test]
async fn every_method_and_a_body_of_text() {
    let (services, seen) = service().await;
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        let done = request("text", json!({ "method": method })).run(&cx(&services).0).await.unwrap();
        assert_eq!(done.outputs["body"], "done");
        assert_eq!(seen.lock().unwrap().last().unwrap().0, format!("{method} /text"));
    }
    request("/404", json!({ "method": "DELETE", "status": [204, 404] })).run(&cx(&services).0).await.unwrap();
}

#[tokio::test]
async fn a_request_that_may_have_arrived_is_not_sent_twice() {
    let (services, _) = service().await;
    for (params, transient, said) in [
        (json!({ "path": "/503" }), true, "POST api/503: it answered 503: token"),
        (json!({ "path": "/429" }), true, "it answered 429"),
        (json!({ "path": "/500" }), false, "it answered 500"),
        (json!({ "path": "/500", "idempotent": true }), true, "it answered 500"),
        (json!({ "path": "/hang" }), false, "no answer within 400ms; it may have taken effect"),
        (json!({ "path": "/hang", "idempotent": true }), true, "no answer within 400ms"),
        (json!({ "path": "/422" }), false, "it answered 422"),
        (json!({ "path": "/moved" }), false, "it answered 302 to /elsewhere"),
        (json!({ "path": "/text", "status": 204 }), false, "it answered 200: done, not 204"),
    ] {
        let failure = request("", params.clone()).run(&cx(&services).0).await.unwrap_err();
        assert!(failure.message.contains(said) && !failure.message.contains("hunter2"), "{params}: {failure}");
        assert_eq!(failure.transient, transient, "{params}: {failure}");
    }
    // What never arrived may be sent again, and a kill afterwards knows it.
    let (cx, recorder) = cx(&services);
    let gone = request("/users", json!({ "target": "gone" }));
    assert!(gone.run(&cx).await.unwrap_err().transient);
    assert_eq!(recorder.notes(), [json!({ "sending": true }), json!({ "sending": false })]);
    let (cx, _) = cx_after(&services, recorder.notes());
    assert!(matches!(gone.after_kill(&cx).await, Ok(AfterKill::DidNotHappen { .. })));
}

#[tokio::test]
async fn killed() {
    let (services, seen) = service().await;
    let hangs = request("/hang", json!({ "target": "slow" }));
    let (cx, recorder) = cx(&services);
    let (step, attempt) = (hangs.clone(), cx.clone());
    let killed = tokio::spawn(async move { step.run(&attempt).await });
    until("it arrived", async || !seen.lock().unwrap().is_empty()).await;
    killed.abort();
    let (after, _) = cx_after(&services, recorder.notes());
    let Ok(AfterKill::CannotTell { why }) = hangs.after_kill(&after).await else { panic!("it can't be told") };
    assert!(why.contains(&format!("{}:{}", cx.run, cx.step)), "{why}");
    let again = request("/users", json!({ "idempotent": true }));
    assert!(matches!(again.after_kill(&after).await, Ok(AfterKill::RunAgain { .. })));
    again.run(&after).await.unwrap();
    let keys: Vec<_> =
        seen.lock().unwrap().iter().map(|(_, headers, _)| headers["idempotency-key"].clone()).collect();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]), "the same key each time");
    let (before, _) = cx_after(&services, vec![]);
    assert!(matches!(hangs.after_kill(&before).await, Ok(AfterKill::DidNotHappen { .. })));

    seen.lock().unwrap().clear();
    let (step, attempt) = (hangs.clone(), cx.clone());
    let cancelled = tokio::spawn(async move { step.run(&attempt).await });
    until("it arrived", async || !seen.lock().unwrap().is_empty()).await;
    cx.cancel.cancel();
    assert!(!cancelled.await.unwrap().unwrap_err().transient);
}

#[tokio::test]
async fn a_preview_sends_nothing() {
    let (services, seen) = service().await;
    let world = World::default();
    let looked = preview(&*request("/users?token=x", json!({})), Some(&services), &world).await;
    assert_eq!((looked.action, looked.certainty), (Action::Change, Certainty::Undetermined));
    assert_eq!(looked.summary, "POST api/users");
    let declared = request("/users", json!({ "effects": ["create user:ann"] }));
    let looked = preview(&*declared, Some(&services), &world).await;
    assert_eq!((looked.action, looked.certainty), (Action::Create, Certainty::Assumed));
    assert_eq!(looked.facts, [("user:ann".into(), Fact::Present { rows: None })]);
    let lost = preview(&*request("/x", json!({ "target": "none" })), Some(&services), &world).await;
    assert_eq!(lost.action, Action::Blocked);
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn mistakes() {
    let base = |more: Value| {
        let mut params = json!({ "target": "api", "method": "GET", "path": "/x" });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    for (more, found) in [
        (json!({ "path": "http://x/y" }), "/path this is a whole URL"),
        (json!({ "json": {} }), "/json a GET has no body"),
        (json!({ "headers": { "idempotency-key": "1" } }), "/headers/idempotency-key Lifeboat sets this header"),
        (json!({ "effects": ["alter x:y"] }), "/effects/0 `alter` is none of"),
    ] {
        let findings = findings("http.request", base(more.clone()));
        assert!(findings.len() == 1 && findings[0].starts_with(found), "{more}: {findings:?}");
    }
    assert!(refused("http.request", base(json!({ "method": "BREW" }))).starts_with("/method "));
}
