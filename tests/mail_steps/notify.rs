use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::server::{Mail, Tls, harness, header};

fn alarm(to: &[&str]) -> Value {
    json!({
        "target": "mail", "to": to, "severity": "critical",
        "subject": "Wiederherstellung läuft", "message": "Größe: 3 GiB\nzweite Zeile",
    })
}

#[tokio::test]
async fn each_recipient_gets_one_mail_that_says_where_it_comes_from() {
    let mail = Mail::start();
    let harness = mail.harness();
    let done = harness.run("notify", alarm(&["sven@a.test", "Ada <ada@b.test>"])).await.unwrap();
    assert_eq!(done.summary.unwrap(), "told Ada <ada@b.test>, sven@a.test");
    assert_eq!(mail.recipients(), ["ada@b.test", "sven@a.test"]);
    let kept = &mail.kept()[0];
    assert_eq!(header(kept, "X-MailFrom"), "lifeboat@sandbox.test");
    assert_eq!(header(kept, "From"), "Lifeboat <lifeboat@sandbox.test>");
    assert_eq!(header(kept, "To"), "sven@a.test, Ada <ada@b.test>");
    assert_eq!(
        (header(kept, "Auto-Submitted"), header(kept, "Importance")),
        ("auto-generated".into(), "high".into())
    );
    // The reader decodes what the standard has encoded.
    assert_eq!(decoded(kept, "subject"), "[critical] Wiederherstellung läuft");
    let text = decoded(kept, "text");
    assert!(text.starts_with("Größe: 3 GiB\nzweite Zeile\n\n-- \nLifeboat, run test-"), "{text}");
    assert_eq!(header(&mail.kept()[0], "Message-ID"), header(&mail.kept()[1], "Message-ID"));
}

/// A part of a mail, as Python's own reader of mail shows it.
fn decoded(mail: &str, part: &str) -> String {
    let script = "import sys, email, email.policy\n\
        m = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)\n\
        print(m['subject'] if sys.argv[1] == 'subject' else m.get_content(), end='')";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script, part])
        .env("PYTHONIOENCODING", "utf-8")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), mail.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn killed_while_sending_it_is_sent_again_and_marked() {
    let mail = Mail::start();
    let harness = mail.harness();
    harness.run_and_kill_at_note("notify", alarm(&["sven@a.test"]), 1).await;
    assert!(matches!(harness.after_kill("notify", alarm(&["sven@a.test"])).await, AfterKill::RunAgain { .. }));
    harness.run("notify", alarm(&["sven@a.test"])).await.unwrap();
    assert_eq!(decoded(&mail.kept()[0], "subject"), "[critical] Wiederherstellung läuft (possibly repeated)");
    assert!(decoded(&mail.kept()[0], "text").starts_with("Possibly repeated: "));
}

#[tokio::test]
async fn killed_between_two_recipients_the_first_is_not_told_twice() {
    let mail = Mail::start();
    let harness = mail.harness();
    let both = ["ada@b.test", "sven@a.test"];
    harness.run_and_kill_at_note("notify", alarm(&both), 2).await;
    harness.run("notify", alarm(&both)).await.unwrap();
    assert_eq!(mail.recipients(), both);
    let marked: Vec<bool> = mail.kept().iter().map(|mail| mail.contains("Possibly repeated")).collect();
    assert_eq!(marked, [false, true], "only the one that was in flight");
}

#[tokio::test]
async fn a_line_that_breaks_after_the_message_leaves_it_open() {
    let mail = Mail::start();
    let harness = mail.harness();
    let failure = harness.run("notify", alarm(&["cut@a.test"])).await.unwrap_err();
    assert!(failure.transient, "{failure}");
    assert!(matches!(harness.after_kill("notify", alarm(&["cut@a.test"])).await, AfterKill::RunAgain { .. }));
    harness.run("notify", alarm(&["cut@a.test"])).await.unwrap_err();
    let ids: Vec<String> = mail.kept().iter().map(|mail| header(mail, "Message-ID")).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1], "whoever got both can tell");
}

#[tokio::test]
async fn a_refused_recipient_keeps_nobody_else_from_being_told() {
    let mail = Mail::start();
    let harness = mail.harness();
    let all = ["later@a.test", "nobody@a.test", "sven@a.test"];
    let failure = harness.run("notify", alarm(&all)).await.unwrap_err();
    assert!(failure.transient, "one of them may still get it: {failure}");
    for said in ["451 4.7.1 greylisted", "550 5.1.1 no such user", "sven@a.test told"] {
        assert!(failure.message.contains(said), "{failure}");
    }
    assert_eq!(
        harness.after_kill("notify", alarm(&all)).await,
        AfterKill::Partly { what: "sven@a.test told already".to_owned() }
    );
    // The next attempt tells who is left, and it is no repetition.
    std::fs::write(mail.file("mail/open"), "").unwrap();
    let failure = harness.run("notify", alarm(&all)).await.unwrap_err();
    assert!(!failure.transient, "{failure}");
    assert_eq!(mail.recipients(), ["later@a.test", "sven@a.test"]);
    assert!(!mail.kept().iter().any(|mail| mail.contains("repeated")));
}

#[tokio::test]
async fn a_server_that_is_down_was_told_nothing() {
    let mut mail = Mail::start();
    mail.down();
    let harness = mail.harness();
    let failure = harness.run("notify", alarm(&["sven@a.test"])).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("efused"), "{failure}");
    let left = harness.after_kill("notify", alarm(&["sven@a.test"])).await;
    assert!(matches!(left, AfterKill::DidNotHappen { .. }), "{left:?}");
    mail.up();
    harness.run("notify", alarm(&["sven@a.test"])).await.unwrap();
    assert!(!mail.kept()[0].contains("repeated"));
}

#[tokio::test]
async fn tls_from_the_first_byte_and_a_password() {
    tls_and_password(Tls::Whole, "smtps://", json!({})).await;
}

#[tokio::test]
async fn starttls_and_a_password() {
    tls_and_password(Tls::Start, "smtp://", json!({ "starttls": true })).await;
}

async fn tls_and_password(tls: Tls, scheme: &str, more: Value) {
    let login = (tls == Tls::Start).then_some("lifeboat s3/cret pass");
    let login = login.map(|_| "lifeboat s3/cret@pass");
    let mail = Mail::with(tls, login);
    let scheme = |password: &str| match login {
        Some(_) => format!("{scheme}lifeboat:{password}@"),
        None => scheme.to_owned(),
    };
    let with = |scheme: &str, ca: bool| {
        let mut more = more.clone();
        if ca {
            more["ca_file"] = mail.file("ca.pem").to_str().unwrap().into();
        }
        harness(mail.settings(scheme, more))
    };
    let failure =
        with(&scheme("s3%2Fcret%40pass"), false).run("notify", alarm(&["sven@a.test"])).await.unwrap_err();
    assert!(!failure.transient && failure.help.unwrap().contains("ca_file"), "{}", failure.message);
    if login.is_some() {
        let failure = with(&scheme("wr0ngwr0ng"), true).run("notify", alarm(&["sven@a.test"])).await.unwrap_err();
        assert!(!failure.transient && failure.message.contains("535"), "{failure}");
        assert!(!format!("{failure:?}").contains("wr0ng"), "{failure:?}");
    }
    with(&scheme("s3%2Fcret%40pass"), true).run("notify", alarm(&["sven@a.test"])).await.unwrap();
    assert_eq!(mail.recipients(), ["sven@a.test"]);
}

#[tokio::test]
async fn without_the_starttls_that_is_asked_for_nothing_is_said() {
    let mail = Mail::start();
    let harness = harness(mail.settings("smtp://lifeboat:secret99@", json!({ "starttls": true })));
    let failure = harness.run("notify", alarm(&["sven@a.test"])).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("does not offer STARTTLS"), "{failure}");
    assert!(mail.kept().is_empty());
}

#[tokio::test]
async fn a_preview_sends_nothing_and_sees_what_cannot_be() {
    let mail = Mail::start();
    let harness = mail.harness();
    let preview = harness.preview("notify", alarm(&["sven@a.test"]), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Assumed));
    assert_eq!(preview.summary, "tell sven@a.test");
    assert!(mail.kept().is_empty());
    let params = json!({ "target": "mail", "message": "x" });
    let preview = harness.preview("notify", params, &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "nobody is named");
}
