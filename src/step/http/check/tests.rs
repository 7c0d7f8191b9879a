//! Against real servers on loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::{Value, json};

use super::*;
use crate::step::Action;
use crate::step::testing::{cx, findings, preview, refused, services, step};
use crate::step::world::{Fact, World};

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    format!("http://{address}")
}

/// A service with all the faults; `/flapping` is well every other time, `/late` from its third request on.
async fn faulty() -> Services {
    let (flaps, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let router = Router::new()
        .route("/ready", get(async || axum::Json(json!({ "ready": true, "keys": 3, "db": { "lag": 0.5 } }))))
        .route("/not-ready", get(async || axum::Json(json!({ "ready": false }))))
        .route("/text", get(async || "all is well"))
        .route("/503", get(async || (StatusCode::SERVICE_UNAVAILABLE, "starting up")))
        .route("/404", get(async || (StatusCode::NOT_FOUND, "nothing here")))
        .route("/login", get(async || (StatusCode::FOUND, [(header::LOCATION, "/sign-in")])))
        .route("/hang", get(async || std::future::pending::<()>().await))
        .route("/slow", get(async || tokio::time::sleep(StdDuration::from_millis(300)).await))
        .route("/huge", get(async || "x".repeat(3 << 20)))
        .route(
            "/flapping",
            get(async move || match flaps.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => StatusCode::OK,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            }),
        )
        .route(
            "/late",
            get(async move || match late.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::OK,
            }),
        )
        .route(
            "/secret",
            get(async |headers: HeaderMap| match headers.get(header::AUTHORIZATION) {
                Some(token) if token == "Bearer hunter2hunter2" && headers["x-tenant"] == "a" => {
                    StatusCode::OK.into_response()
                }
                _ => (StatusCode::UNAUTHORIZED, "token hunter2hunter2 is needed").into_response(),
            }),
        );
    let url = serve(router).await;
    services(json!({
        "auth": { "http": { "base_url": url, "timeout": "400ms" } },
        "api": { "http": { "base_url": url, "headers": { "x-tenant": "a" }, "auth": { "bearer": "hunter2hunter2" } } },
    }))
}

async fn check(services: &Services, mut params: Value) -> Result<Done, Failure> {
    params["target"] = params.get("target").cloned().unwrap_or_else(|| json!("auth"));
    step("http.check", params).run(&cx(services).0).await
}

#[tokio::test]
async fn a_good_answer_and_its_outputs() {
    let services = faulty().await;
    let body = json!({ "/ready": true, "/keys": { "min": 1 }, "/db/lag": { "max": 1 } });
    let done = check(&services, json!({ "path": "/ready", "body": body, "max_latency": "10s" })).await.unwrap();
    assert_eq!((&done.outputs["status"], &done.outputs["body"]["keys"]), (&json!(200), &json!(3)));
    assert!(done.outputs["latency"].as_f64().unwrap() > 0.0);
    check(&services, json!({ "path": "text", "contains": "is well" })).await.unwrap();
    check(&services, json!({ "path": "/503", "status": [200, 503] })).await.unwrap();
    check(&services, json!({ "path": "/login", "status": { "min": 300, "max": 399 } })).await.unwrap();
    let huge = check(&services, json!({ "path": "/huge" })).await.unwrap();
    assert!(huge.outputs["body"].as_str().unwrap().len() < 70_000, "outputs stay small");
}

#[tokio::test]
async fn each_fault_is_named_and_classed() {
    let services = faulty().await;
    for (params, transient, expected) in [
        (json!({ "path": "/503" }), true, "auth/503: it answered 503: starting up, not 200"),
        (json!({ "path": "/404" }), false, "it answered 404: nothing here"),
        (json!({ "path": "/login" }), false, "it answered 302 to /sign-in, not 200"),
        (json!({ "path": "/hang" }), true, "no answer within 400ms"),
        (json!({ "path": "/slow", "max_latency": "100ms" }), true, "longer than 100ms"),
        (json!({ "path": "/not-ready", "body": { "/ready": true } }), true, "`/ready` is false, not true"),
        (json!({ "path": "/not-ready", "body": { "/keys": 1 } }), true, "has no `/keys`: {\"ready\":false}"),
        (json!({ "path": "/text", "body": { "/ready": true } }), true, "not JSON: all is well"),
        (json!({ "path": "/text", "contains": "ready" }), true, "does not contain `ready`: all is well"),
        (json!({ "path": "/huge", "body": { "": 1 } }), false, "larger than 1.0 MiB"),
    ] {
        let failure = check(&services, params.clone()).await.unwrap_err();
        assert!(failure.message.contains(expected), "{params}: {failure}");
        assert_eq!(failure.transient, transient, "{params}: {failure}");
    }
    let gone = crate::step::testing::services(json!({ "auth": { "http": { "base_url": "http://127.0.0.1:1" } } }));
    let failure = check(&gone, json!({ "path": "/" })).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("refused"), "{failure}");
}

#[tokio::test]
async fn credentials_go_to_the_target_alone_and_are_not_shown() {
    let services = faulty().await;
    services.redactor().add("hunter2hunter2");
    check(&services, json!({ "target": "api", "path": "/secret" })).await.unwrap();
    let failure = check(&services, json!({ "path": "/secret" })).await.unwrap_err();
    assert!(!failure.transient && !failure.message.contains("hunter2"), "{failure}");
    // The same target asked for another origin's URL sends nothing of its own there.
    let other = faulty().await;
    let url = other.http("auth").unwrap().url("/secret").unwrap().to_string();
    assert!(check(&services, json!({ "target": "api", "url": url })).await.unwrap_err().message.contains("401"));
}

#[tokio::test]
async fn within_waits_until_it_is_well_and_no_longer() {
    let services = faulty().await;
    check(&services, json!({ "path": "/late", "within": "10s", "every": "20ms" })).await.unwrap();
    let began = Instant::now();
    let failure =
        check(&services, json!({ "path": "/503", "within": "300ms", "every": "50ms" })).await.unwrap_err();
    assert!(failure.message.starts_with("auth/503 was not well within 300ms: it answered 503"), "{failure}");
    assert!(failure.transient && began.elapsed() < StdDuration::from_secs(5));
    // One that hangs can't hold the check longer than it may take.
    let failure =
        check(&services, json!({ "target": "api", "path": "/hang", "within": "200ms" })).await.unwrap_err();
    assert!(failure.message.contains("no answer within"), "{failure}");
}

#[tokio::test]
async fn flapping_is_not_well_unless_the_error_rate_allows_it() {
    let services = faulty().await;
    let flapping = |more: Value| {
        let mut params = json!({ "path": "/flapping", "samples": 4, "every": "10ms" });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    assert!(
        check(&services, flapping(json!({})))
            .await
            .unwrap_err()
            .message
            .contains("answers of auth/flapping were bad")
    );
    assert!(check(&services, flapping(json!({ "within": "300ms" }))).await.is_err());
    check(&services, flapping(json!({ "max_failures": 2 }))).await.unwrap();
    check(&services, flapping(json!({ "max_failures": "50%", "within": "10s" }))).await.unwrap();
    check(&services, json!({ "path": "/ready", "samples": 3, "every": "10ms" })).await.unwrap();
}

#[tokio::test]
async fn a_check_can_be_cancelled() {
    let services = faulty().await;
    let (cx, _) = cx(&services);
    let hang = step("http.check", json!({ "target": "api", "path": "/hang", "within": "1h" }));
    let (result, ()) = tokio::join!(hang.run(&cx), async { cx.cancel.cancel() });
    assert!(result.unwrap_err().message.contains("cancelled"));
}

#[tokio::test]
async fn a_preview_really_asks_unless_the_plan_changes_what_it_stands_on() {
    let services = faulty().await;
    let ready = step("http.check", json!({ "target": "auth", "path": "/ready" }));
    let seen = preview(&*ready, Some(&services), &World::default()).await;
    assert_eq!((seen.action, seen.certainty), (Action::Read, Certainty::Observed));
    assert_eq!(seen.outputs["body"]["keys"], 3);

    let ill = step("http.check", json!({ "target": "auth", "path": "/503" }));
    assert_eq!(preview(&*ill, Some(&services), &World::default()).await.action, Action::Blocked);
    let patient = step("http.check", json!({ "target": "auth", "path": "/503", "within": "1m" }));
    let seen = preview(&*patient, Some(&services), &World::default()).await;
    assert!(seen.action == Action::Read && !seen.problems[0].blocks, "{seen:?}");

    let mut world = World::default();
    world.foretell(Resource::container("docker", "mana-core-auth"), Fact::Stopped, &"stop".into());
    for services in [Some(&services), None] {
        let assumed = preview(&*ill, services, &world).await;
        assert_eq!((assumed.action, assumed.certainty), (Action::Read, Certainty::Assumed));
    }
}

#[tokio::test]
async fn certificates_are_verified_and_an_authority_of_ones_own_can_be_named() {
    let tls = crate::service::tls_testing::Tls::new();
    let plain = serve(Router::new().route("/", get(async || "well"))).await.replace("http://", "");
    let port = tls.serve(false, move || tokio::net::TcpStream::connect(plain.clone())).await;
    let target = |host: &str, more: Value| {
        let mut http = json!({ "base_url": format!("https://{host}:{port}") });
        http.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        services(json!({ "auth": { "http": http } }))
    };
    let ours = json!({ "ca_file": tls.file("ca.pem") });
    check(&target("localhost", ours.clone()), json!({ "path": "/", "contains": "well" })).await.unwrap();
    let failure = check(&target("localhost", json!({})), json!({ "path": "/" })).await.unwrap_err();
    assert!(!failure.transient && failure.help.as_ref().unwrap().contains("`ca_file`"), "{failure:?}");
    let failure = check(&target("127.0.0.1", ours), json!({ "path": "/" })).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("certificate"), "another name's certificate: {failure}");
    let wrong = json!({ "ca_file": tls.file("key.pem") });
    let failure = check(&target("localhost", wrong), json!({ "path": "/" })).await.unwrap_err();
    assert!(failure.message.contains("holds no PEM certificates"), "{failure}");
}

#[test]
fn mistakes() {
    for (params, expected) in [
        (json!({ "target": "auth" }), " `http.check` needs"),
        (json!({ "path": "/x" }), " a `path` is below"),
        (json!({ "target": "auth", "path": "/x", "url": "http://x" }), "/url "),
        (json!({ "target": "auth", "path": "http://x" }), "/path "),
        (json!({ "target": "auth", "path": "/x", "body": { "ready.now": true } }), "/body/ready.now "),
        (json!({ "target": "auth", "path": "/x", "samples": 0 }), "/samples "),
        (json!({ "target": "auth", "path": "/x", "samples": 2, "max_failures": 2 }), "/max_failures "),
        (json!({ "target": "auth", "path": "/x", "samples": 10, "within": "3s" }), "/within "),
        (json!({ "target": "auth", "path": "/x", "every": "0s" }), "/every "),
    ] {
        let found = findings("http.check", params.clone());
        assert!(found.len() == 1 && found[0].starts_with(expected), "{params}: {found:?}");
    }
    assert!(refused("http.check", json!({ "target": "a", "path": "/", "status": "ok" })).starts_with("/status"));
    assert!(
        refused("http.check", json!({ "target": "a", "path": "/", "max_failures": "2" })).starts_with("/max_fail")
    );
    assert!(
        refused("http.check", json!({ "target": "a", "path": "/", "body": { "/a": { "matches": "(" } } }))
            .contains("regex")
    );
}
