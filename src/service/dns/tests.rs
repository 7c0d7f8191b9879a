use serde_json::{Value, json};

use super::*;

fn settings(more: &Value) -> DnsSettings {
    let mut settings = json!({ "server": "ns1.example.com", "zone": "example.com" });
    for (name, value) in more.as_object().unwrap() {
        settings[name] = value.clone();
    }
    serde_json::from_value(settings).unwrap()
}

#[test]
fn servers_are_hosts_with_or_without_a_port() {
    for (text, host, port) in [
        ("ns1.example.com", "ns1.example.com", 53),
        ("ns1.example.com:5353", "ns1.example.com", 5353),
        ("192.0.2.1", "192.0.2.1", 53),
        ("192.0.2.1:28304", "192.0.2.1", 28304),
        ("2001:db8::1", "2001:db8::1", 53),
        ("[2001:db8::1]:54", "2001:db8::1", 54),
    ] {
        assert_eq!(Endpoint::parse(text), Ok(Endpoint { host: host.to_owned(), port }), "{text}");
    }
    for wrong in ["", "ns1:x", "ns 1", "dns://ns1", "ns1:53:53"] {
        assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn settings_that_cannot_be_right() {
    let key = |algorithm: &str, secret: &str| json!({ "tsig": { "name": "k", "algorithm": algorithm, "secret": secret } });
    assert_eq!(settings(&key("HMAC-SHA512", "c2VjcmV0c2VjcmV0")).unsound(), None);
    for (more, setting) in [
        (json!({ "server": "no server" }), "server"),
        (json!({ "servers": ["192.0.2.1", "no server"] }), "servers"),
        (json!({ "zone": "" }), "zone"),
        (key("hmac-md5", "c2VjcmV0c2VjcmV0"), "tsig"),
        (key("hmac-sha256", "not base64!"), "tsig"),
        (key("hmac-sha256", ""), "tsig"),
    ] {
        let unsound = settings(&more).unsound().unwrap();
        assert_eq!(unsound.setting, setting);
        assert!(!unsound.failure.message.contains("not base64!"), "{}", unsound.failure);
    }
}
