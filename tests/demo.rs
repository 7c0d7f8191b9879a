//! The demo, as everybody sees it first: with Docker and without, to its end and cut short.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo(temporary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.arg("demo").args(args).env("TMPDIR", temporary).env("NO_COLOR", "1").env_remove("LIFEBOAT_STATE");
    command.env("DOCKER_HOST", std::env::var("LIFEBOAT_TEST_DOCKER").expect("`.ci/services run` sets it"));
    // Neither the project's folder nor its plans are needed.
    command.current_dir(temporary).stdin(Stdio::null());
    command
}

fn finished(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    said
}

/// Nothing of it is left: no folder, no process, no server, no container, no image.
fn left_nothing(temporary: &Path, said: &str) {
    let left: Vec<_> = std::fs::read_dir(temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        assert!(!line.contains(&*temporary.to_string_lossy()), "{line}");
    }
    let ports = regex::Regex::new(r"127\.0\.0\.1:(\d+)").unwrap();
    for port in ports.captures_iter(said) {
        let address = format!("127.0.0.1:{}", &port[1]);
        assert!(std::net::TcpStream::connect(&address).is_err(), "something listens on {address}");
    }
    for name in regex::Regex::new("lifeboat-demo-[a-z0-9]+").unwrap().find_iter(said) {
        for list in [&["ps", "--all"][..], &["images"]] {
            let output = Command::new("docker")
                .args(["-H", &std::env::var("LIFEBOAT_TEST_DOCKER").unwrap()])
                .args(list)
                .output();
            let listed = String::from_utf8(output.unwrap().stdout).unwrap();
            assert!(!listed.contains(name.as_str()), "{listed}");
        }
    }
}

fn recovered(said: &str) {
    for expected in [
        "Every row is back",
        "auth.organizations",
        "as it was",
        "no signing key",
        "$ lifeboat run plans/daily-backup.yaml",
    ] {
        assert!(said.contains(expected), "`{expected}` in {said}");
    }
    for objective in ["Recovery time", "Recovery point"] {
        assert!(said.to_lowercase().contains(&objective.to_lowercase()), "`{objective}` in {said}");
    }
}

#[test]
fn with_docker_the_service_is_a_container() {
    let temporary = tempfile::tempdir().unwrap();
    let said = finished(&demo(temporary.path(), &[]).output().unwrap());
    recovered(&said);
    assert!(said.contains("an auth service, as a container"), "{said}");
    left_nothing(temporary.path(), &said);
}

#[test]
fn without_docker_the_service_is_a_process_and_the_demo_says_so() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = demo(temporary.path(), &[]);
    command.env("DOCKER_HOST", format!("unix://{}/no.sock", temporary.path().display()));
    let said = finished(&command.output().unwrap());
    recovered(&said);
    assert!(said.contains("Docker is not at hand") && said.contains("an auth service, as a process"), "{said}");
    left_nothing(temporary.path(), &said);
}

#[test]
fn killed_in_the_middle_it_resumes() {
    let temporary = tempfile::tempdir().unwrap();
    let said = finished(&demo(temporary.path(), &["--no-docker", "--kill-at", "restore"]).output().unwrap());
    recovered(&said);
    assert!(said.contains("killed (SIGKILL)") && said.contains("$ lifeboat resume"), "{said}");
    left_nothing(temporary.path(), &said);
}

#[test]
fn killed_in_the_middle_of_the_restore_it_keeps_what_is_loaded() {
    let temporary = tempfile::tempdir().unwrap();
    let said = finished(&demo(temporary.path(), &["--no-docker", "--kill-at", "60%"]).output().unwrap());
    recovered(&said);
    let kept = regex::Regex::new(r"Of the (\d+) parts that the rows came in, (\d+) were there before").unwrap();
    let kept = kept.captures(&said).unwrap_or_else(|| panic!("{said}"));
    let number = |at: usize| kept[at].parse::<u64>().unwrap();
    assert!(number(2) > 0 && number(2) < number(1), "{said}");
    left_nothing(temporary.path(), &said);
}

#[test]
fn interrupted_it_cleans_up() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = demo(temporary.path(), &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    let end = Instant::now() + Duration::from_mins(2);
    while !said.contains("$ lifeboat run plans/daily-backup.yaml") {
        assert!(Instant::now() < end && lines.read_line(&mut said).unwrap() > 0, "{said}");
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    lines.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    left_nothing(temporary.path(), &said);
}

#[test]
fn a_killed_demo_is_swept_by_the_next() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child =
        demo(temporary.path(), &["--no-docker"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("2. ") {
        assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(std::fs::read_dir(temporary.path()).unwrap().count() > 0, "a killed demo can't clean up");
    said.push_str(&finished(&demo(temporary.path(), &["--no-docker"]).output().unwrap()));
    left_nothing(temporary.path(), &said);
}
