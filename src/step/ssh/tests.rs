//! On a real `sshd`, one a test, on loopback.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ids::StepId;
use crate::service::Services;
use crate::step::testing::{cx, cx_after, findings, preview, services, step, until};
use crate::step::world::World;
use crate::step::{Action, AfterKill, Certainty, Step};

/// An SSH server with keys of its own.
struct Sshd {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Sshd {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "user", "stranger"] {
            keygen(&path(key));
        }
        std::fs::copy(path("user.pub"), path("authorized")).unwrap();
        if nix::unistd::geteuid().is_root() {
            // Made by Debian's service, which doesn't run here.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n",
            path("host").display(),
            path("authorized").display(),
        );
        std::fs::write(path("config"), config).unwrap();
        let mut server = Command::new("/usr/sbin/sshd");
        server.args(["-D", "-e", "-f"]).arg(path("config")).stdin(Stdio::null());
        server.stderr(std::fs::File::create(path("log")).unwrap());
        let child = server.spawn().expect("sshd: install openssh-server");
        known(&path("known"), port, &path("host.pub"));
        let sshd = Self { child, port, folder };
        until("sshd listens", async || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
        sshd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self) -> Value {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
        json!({
            "host": format!("127.0.0.1:{}", self.port), "user": user,
            "key_file": self.path("user"), "known_hosts": self.path("known"),
        })
    }

    fn services(&self) -> Services {
        services(json!({ "host": { "ssh": self.settings() } }))
    }

    /// With one of the settings changed.
    fn with(&self, name: &str, value: impl Into<Value>) -> Services {
        let mut settings = self.settings();
        settings[name] = value.into();
        services(json!({ "host": { "ssh": settings } }))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keygen(file: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).status();
    assert!(made.expect("ssh-keygen: install openssh-client").success());
}

fn known(file: &Path, port: u16, key: &Path) {
    let key = std::fs::read_to_string(key).unwrap();
    std::fs::write(file, format!("[127.0.0.1]:{port} {key}")).unwrap();
}

fn exec(mut params: Value) -> std::sync::Arc<dyn Step> {
    params["target"] = json!("host");
    step("ssh.exec", params)
}

#[tokio::test]
async fn it_runs_with_what_was_declared_and_secrets_are_in_no_arguments() {
    let sshd = Sshd::new().await;
    let services = sshd.services();
    services.redactor().add("correct 'horse'\nbattery");
    // What the host's processes were called with, the shells above it included.
    let script = "cat; echo $LIFEBOAT_RUN $LIFEBOAT_STEP $LEVEL; pwd; printf '%s' \"$PASSWORD\" | wc -l
        for pid in /proc/[0-9]*; do tr '\\0' ' ' <$pid/cmdline 2>/dev/null | grep -c battery; done | sort -u
        echo \"with $PASSWORD\" >&2; exit 3";
    let run = exec(json!({
        "shell": script, "stdin": "in\n", "cwd": sshd.folder.path(), "expect_exit": 3,
        "env": { "LEVEL": 5, "PASSWORD": "correct 'horse'\nbattery" },
        "outputs": { "level": { "regex": "step ([0-9]+)" } },
    }));
    let before = preview(&*run, Some(&services), &World::default()).await;
    assert_eq!((before.action, before.certainty), (Action::Change, Certainty::Undetermined), "{before:?}");
    let (cx, recorder) = cx(&services);
    let done = run.run(&cx).await.unwrap();
    let folder = sshd.folder.path().canonicalize().unwrap();
    // No process but its own `grep` was called with the word.
    let stdout = done.outputs["stdout"].as_str().unwrap();
    let expected = format!("in\n20261124-062329-bako step 5\n{}\n1\n0", folder.display());
    assert!(stdout.starts_with(&expected), "{stdout}");
    assert_eq!((&done.outputs["exit_code"], &done.outputs["level"]), (&json!(3), &json!("5")));
    let log = recorder.log();
    assert!(log.contains("with ●●●●") && !log.contains("horse") && !log.contains("lifeboat:"), "{log}");
    assert!(!done.outputs["stderr"].as_str().unwrap().contains("lifeboat:"));
}

#[tokio::test]
async fn arguments_arrive_as_they_are() {
    let sshd = Sshd::new().await;
    let words = ["a b", "it's", "$HOME", "`id`", "\\", "*", "!x", "two\nlines", "", "-n", "ü"];
    let argv: Vec<&str> = ["printf", "<%s>"].into_iter().chain(words).collect();
    let done = exec(json!({ "argv": argv })).run(&cx(&sshd.services()).0).await.unwrap();
    let expected = format!("<{}>", words.join("><"));
    assert_eq!(done.outputs["stdout"], expected);
}

#[tokio::test]
async fn an_unexpected_end_fails_with_the_last_words() {
    let sshd = Sshd::new().await;
    let services = sshd.services();
    let attempt = async |params: Value| exec(params).run(&cx(&services).0).await.unwrap_err();
    let failure = attempt(json!({ "shell": "echo disk full >&2; exit 3" })).await;
    assert!(failure.message.ends_with("exit code 3: disk full") && !failure.transient, "{failure}");
    assert!(attempt(json!({ "shell": "exit 75" })).await.transient, "EX_TEMPFAIL");
    let failure = attempt(json!({ "argv": ["no-such-program"] })).await;
    assert!(failure.message.contains("no-such-program") && failure.message.contains("127"), "{failure}");
    let failure = attempt(json!({ "argv": ["true"], "cwd": "/no/such" })).await;
    assert!(!failure.transient && failure.message.contains("/no/such"), "{failure}");
    // 255 may be the connection's: nobody can tell, unless the plan expects it.
    let failure = attempt(json!({ "shell": "echo odd >&2; exit 255" })).await;
    assert!(!failure.transient && failure.message.contains("may go on there") && failure.message.ends_with("odd"));
    assert!(attempt(json!({ "shell": "exit 255", "idempotent": true })).await.transient);
    let expected = exec(json!({ "shell": "exit 255", "expect_exit": 255 })).run(&cx(&services).0).await.unwrap();
    assert_eq!(expected.outputs["exit_code"], 255);
}

#[tokio::test]
async fn what_keeps_it_from_the_host_is_told_before_anything_is_touched() {
    let sshd = Sshd::new().await;
    let touch = exec(json!({ "argv": ["touch", sshd.path("touched")] }));
    let refused = async |services: Services| {
        let seen = preview(&*touch, Some(&services), &World::default()).await;
        assert_eq!(seen.action, Action::Blocked, "{seen:?}");
        let failure = touch.run(&cx(&services).0).await.unwrap_err();
        assert_eq!(seen.problems[0].message, failure.message);
        assert!(!sshd.path("touched").exists());
        failure
    };
    std::fs::write(sshd.path("nobody"), "").unwrap();
    let unknown = refused(sshd.with("known_hosts", sshd.path("nobody").to_str())).await;
    assert!(!unknown.transient && unknown.message.contains("is not known"), "{unknown}");
    assert!(unknown.help.unwrap().contains("ssh-keyscan -p"));

    known(&sshd.path("changed"), sshd.port, &sshd.path("stranger.pub"));
    let changed = refused(sshd.with("known_hosts", sshd.path("changed").to_str())).await;
    assert!(!changed.transient && changed.message.contains("shows another host key"), "{changed}");
    assert!(changed.help.unwrap().contains("ssh-keygen -f"));

    let key = refused(sshd.with("key_file", sshd.path("stranger").to_str())).await;
    assert!(!key.transient && key.message.contains("Permission denied"), "{key}");
    let absent = refused(sshd.with("key_file", "/no/such/key")).await;
    assert!(!absent.transient && absent.message.contains("there is no file /no/such/key"), "{absent}");
    let down = refused(sshd.with("host", "127.0.0.1:1")).await;
    assert!(down.transient && down.message.contains("refused"), "{down}");
    let nowhere = refused(sshd.with("host", "no-such-host.invalid")).await;
    assert!(nowhere.message.contains("no-such-host.invalid"), "{nowhere}");
    let option = refused(sshd.with("host", "-oProxyCommand=touch")).await;
    assert!(option.message.contains("is no host"), "{option}");
}

#[tokio::test]
async fn a_preview_runs_nothing_and_misses_programs() {
    let sshd = Sshd::new().await;
    let services = sshd.services();
    let touched = sshd.path("touched");
    let step = exec(json!({ "argv": ["touch", touched], "effects": ["change file:x"] }));
    let seen = preview(&*step, Some(&services), &World::default()).await;
    assert_eq!((seen.action, seen.problems.len()), (Action::Change, 0), "{seen:?}");
    assert!(!touched.exists());
    step.run(&cx(&services).0).await.unwrap();
    assert!(touched.exists());
    let absent = preview(&*exec(json!({ "argv": ["no-such-program"] })), Some(&services), &World::default()).await;
    assert!(absent.problems[0].message.contains("no program no-such-program"), "{absent:?}");
    let offline = preview(&*step, None, &World::default()).await;
    assert_eq!((offline.action, offline.certainty), (Action::Change, Certainty::Assumed));
}

#[tokio::test]
async fn a_forced_command_is_seen_through() {
    let sshd = Sshd::new().await;
    let key = std::fs::read_to_string(sshd.path("user.pub")).unwrap();
    std::fs::write(sshd.path("authorized"), format!("command=\"echo only this\" {key}")).unwrap();
    let failure = exec(json!({ "argv": ["true"] })).run(&cx(&sshd.services()).0).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("only this"), "{failure}");
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_it_open() {
    let sshd = Sshd::new().await;
    // Its parent is the server's process for this connection.
    let script = "kill -9 $PPID; sleep 5";
    let failure = exec(json!({ "shell": script })).run(&cx(&sshd.services()).0).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("may go on there"), "{failure}");
    assert!(failure.help.unwrap().contains("look there"));
}

#[tokio::test]
async fn one_that_is_cancelled_may_go_on() {
    let sshd = Sshd::new().await;
    let (begun, stop, ended) = (sshd.path("begun"), sshd.path("stop"), sshd.path("ended"));
    let script = "touch begun; while [ ! -e stop ]; do sleep 0.05; done; touch ended";
    let slow = exec(json!({ "shell": script, "cwd": sshd.folder.path() }));
    let (cx, recorder) = cx(&sshd.services());
    let cancel = async {
        until("it runs", async || begun.exists()).await;
        cx.cancel.cancel();
    };
    let (result, ()) = tokio::join!(slow.run(&cx), cancel);
    let failure = result.unwrap_err();
    assert!(!failure.transient && failure.message.contains("may go on there"), "{failure}");
    std::fs::write(&stop, "").unwrap();
    until("it went on", async || ended.exists()).await;

    // A retry doesn't run it a second time before somebody looked; what comes after that does.
    std::fs::remove_file(&ended).unwrap();
    let (retry, told) = cx_after(&sshd.services(), recorder.notes());
    let failure = slow.run(&retry).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("attempt before"), "{failure}");
    assert!(!ended.exists());
    let notes = recorder.notes().into_iter().chain(told.notes()).collect();
    slow.run(&cx_after(&sshd.services(), notes).0).await.unwrap();
    assert!(ended.exists());
}

#[tokio::test]
async fn after_a_kill_nobody_can_tell_unless_its_client_lives() {
    let sshd = Sshd::new().await;
    let services = sshd.services();
    let script = "while [ ! -e stop ]; do sleep 0.05; done";
    let slow = exec(json!({ "shell": script, "cwd": sshd.folder.path() }));
    let (mut first, _) = cx(&services);
    first.step = StepId::from(format!("step-{}", rand::random::<u32>()).as_str());
    let (mut after, _) = cx_after(&services, vec![]);
    after.step = first.step.clone();
    let running = tokio::spawn({
        let slow = slow.clone();
        async move { slow.run(&first).await }
    });
    until("it is found", async || matches!(slow.after_kill(&after).await, Ok(AfterKill::StillGoing { .. }))).await;
    std::fs::write(sshd.path("stop"), "").unwrap();
    running.await.unwrap().unwrap();
    assert!(matches!(slow.after_kill(&after).await.unwrap(), AfterKill::CannotTell { .. }));
    let idempotent = exec(json!({ "argv": ["true"], "idempotent": true }));
    assert!(matches!(idempotent.after_kill(&after).await.unwrap(), AfterKill::RunAgain { .. }));
}

#[test]
fn mistakes() {
    let found = findings(
        "ssh.exec",
        json!({
            "target": "host", "argv": ["a"], "shell": "b", "env": { "A-B": "x", "LIFEBOAT_X": "1" },
            "outputs": { "stdout": { "json": "" } }, "effects": ["alter x:y"],
        }),
    );
    assert_eq!(found.len(), 5, "{found:?}");
    assert_eq!(findings("ssh.exec", json!({ "target": "host" })).len(), 1);
}
