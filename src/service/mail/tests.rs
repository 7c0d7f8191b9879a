use serde_json::json;

use super::*;

fn settings(url: &str) -> SmtpSettings {
    serde_json::from_value(json!({ "url": url, "from": "lifeboat@example.com" })).unwrap()
}

fn wrong(settings: &SmtpSettings) -> String {
    let unsound = settings.unsound().unwrap();
    format!("{}: {}", unsound.setting, unsound.failure)
}

#[test]
fn a_url_says_how_the_line_is_protected() {
    for (url, port, security) in [
        ("smtps://mail.example.com", 465, Security::Tls),
        ("smtp://mail.example.com", 587, Security::StartTls),
        ("smtp://mail.example.com:2525/", 2525, Security::StartTls),
        ("smtp://localhost", 25, Security::Plain),
        ("smtp://127.0.0.1:28305", 28305, Security::Plain),
        ("smtp://[::1]:28305", 28305, Security::Plain),
    ] {
        let place = settings(url).place().unwrap_or_else(|unsound| panic!("{url}: {unsound:?}"));
        assert_eq!((place.port, place.security), (port, security), "{url}");
    }
    let place = settings("smtps://me%40x.test:a%3Ab@[::1]").place().unwrap_or_else(|_| panic!("it is good"));
    assert_eq!(place.host, "::1");
    assert_eq!(place.credentials.unwrap(), ("me@x.test".to_owned(), "a:b".to_owned()));
}

#[test]
fn what_cannot_be_right_is_said_without_the_password() {
    for (url, said) in [
        ("mail.example.com", "url: this is no URL"),
        ("smtp://me:hunter22@:99", "url: this is no URL"),
        ("http://me:hunter22@mail.example.com", "url: `http://` is no mail server"),
        ("smtp://me:hunter22@mail.example.com/x?tls=none", "url: a mail server's URL ends"),
    ] {
        let wrong = wrong(&settings(url));
        assert!(wrong.starts_with(said) && !wrong.contains("hunter22"), "{wrong}");
    }
    let open = SmtpSettings { starttls: Some(false), ..settings("smtp://mail.example.com") };
    assert!(wrong(&open).contains("unprotected"), "{}", wrong(&open));
    let both = SmtpSettings { starttls: Some(true), ..settings("smtps://mail.example.com") };
    assert!(wrong(&both).starts_with("starttls: "));
    let nobody = SmtpSettings { from: "nobody".to_owned(), ..settings("smtps://mail.example.com") };
    assert_eq!(wrong(&nobody), "from: `nobody` is no address");
}

#[test]
fn a_headline_is_one_line_of_bearable_length() {
    let message = |subject: Option<&str>, text: &str| Message {
        subject: subject.map(str::to_owned),
        text: text.to_owned(),
        severity: "info",
        run: "20261124-062329-bako".to_owned(),
        step: "tell[0]".to_owned(),
        repeated: false,
    };
    assert_eq!(message(None, "\nfirst\nsecond").headline(), "first");
    assert_eq!(message(Some("a\r\nBcc: x@y.test"), "").headline(), "a  Bcc: x@y.test");
    assert!(message(None, &"ü".repeat(500)).headline().chars().count() < 160);
    assert_eq!(atom(&message(None, "").key()), "20261124-062329-bako-tell-0-");
}
