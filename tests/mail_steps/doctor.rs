use std::process::Command;

use crate::server::Mail;

/// Whether it is well, and what `doctor` says.
fn doctor(url: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("env.yaml");
    let text = format!(
        "lifeboat: 1\nenvironment: it\ntargets:\n  mail:\n    smtp: {{ url: \"{url}\", from: lifeboat@a.test }}\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    let output = command
        .args(["doctor", "--env"])
        .arg(&file)
        .current_dir(folder.path())
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

#[test]
fn it_greets_the_server_and_sends_nothing() {
    let mut mail = Mail::start();
    let url = format!("smtp://127.0.0.1:{}", mail.port);
    let (well, said) = doctor(&url);
    assert!(well && said.contains("takes mail; none was sent"), "{said}");
    assert!(mail.kept().is_empty());
    mail.down();
    let (well, said) = doctor(&url);
    assert!(!well && said.contains("refused"), "{said}");
}

#[test]
fn mail_in_the_open_across_the_network_is_refused() {
    let text = "smtp://bob:hunter22@mail.example.com\", starttls: false, ca_file: \"x";
    let (well, said) = doctor(text);
    assert!(!well && said.contains("unprotected") && !said.contains("hunter22@mail.example.com would"), "{said}");
}
