use std::sync::Mutex;

use super::*;

/// Runs a script; gives back its end and what was logged.
async fn sh(script: &str, redactor: &Redactor) -> (Finished, String) {
    let log = Mutex::new(String::new());
    let finished = Command::shell(script)
        .run(None, redactor, &|text| log.lock().unwrap().push_str(text), &CancellationToken::new())
        .await
        .unwrap();
    (finished, log.into_inner().unwrap())
}

fn quiet(_: &str) {}

/// Whether a process is there, zombies not counted.
fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a script's child to write its pid into a file.
async fn pid_in(file: &Path) -> i32 {
    let read = || std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    until("a pid is written", || read().is_some()).await;
    read().unwrap()
}

#[tokio::test]
async fn outputs_exit_and_signal_are_told() {
    let redactor = Redactor::default();
    let (finished, log) = sh("echo out; echo err >&2; exit 3", &redactor).await;
    assert_eq!((finished.stdout.text().as_ref(), finished.stderr.text().as_ref()), ("out\n", "err\n"));
    assert_eq!((finished.exit.code(), finished.exit.to_string().as_str()), (Some(3), "exit code 3"));
    assert!(log.contains("out\n") && log.contains("err\n"));

    let (finished, log) = sh("kill -KILL $$", &redactor).await;
    assert_eq!((finished.exit.code(), finished.exit.to_string().as_str()), (None, "killed by SIGKILL"));
    assert_eq!(log, "", "no output, nothing logged");
}

#[tokio::test]
async fn stdin_is_given_and_need_not_be_read() {
    let (none, never) = (Redactor::default(), CancellationToken::new());
    let megabyte = vec![b'x'; 1 << 20];
    let counted = Command::new("wc").arg("-c").run(Some(&megabyte), &none, &quiet, &never).await.unwrap();
    assert_eq!(counted.stdout.text().trim(), "1048576");
    let ignored = Command::new("true").run(Some(&megabyte), &none, &quiet, &never).await.unwrap();
    assert!(ignored.exit.success());
}

#[tokio::test]
async fn of_the_environment_only_the_listed_and_the_declared_is_seen() {
    let finished = Command::new("env")
        .env("DECLARED", "yes")
        .run(None, &Redactor::default(), &quiet, &CancellationToken::new())
        .await
        .unwrap();
    for line in finished.stdout.text().lines() {
        let name = line.split('=').next().unwrap();
        assert!(INHERITED.contains(&name) || name.starts_with("LC_") || line == "DECLARED=yes", "{line}");
    }
    assert!(finished.stdout.text().contains("PATH=") && finished.stdout.text().contains("DECLARED=yes"));
}

#[tokio::test]
async fn a_secret_split_over_two_writes_is_not_logged() {
    let redactor = Redactor::default();
    redactor.add("correct horse");
    let script = r#"printf "it is corr"; sleep 0.05; printf "ect horse\n"; echo "correct horse" >&2; exit 1"#;
    let (finished, log) = sh(script, &redactor).await;
    assert!(!log.contains("correct horse") && log.contains("it is ●●●●"), "{log}");
    assert_eq!(finished.stderr.last_lines(5, &redactor), "●●●●");
}

#[tokio::test]
async fn of_a_flood_the_beginning_of_stdout_and_the_end_of_stderr_are_kept() {
    let (finished, _) = sh("seq 1 600000; seq 1 600000 >&2", &Redactor::default()).await;
    assert!(finished.stdout.is_cut() && finished.stdout.text().starts_with("1\n2\n"));
    assert!(finished.stdout.total() > 4_000_000 && finished.stdout.text().len() == CAPTURE);
    assert!(finished.stderr.is_cut());
    assert_eq!(finished.stderr.last_lines(2, &Redactor::default()), "599999\n600000");
}

#[tokio::test]
async fn cancelling_ends_the_group_even_those_that_ignore_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let (polite, stubborn) = (folder.path().join("polite"), folder.path().join("stubborn"));
    let script = r#"sleep 100 & echo $! > polite
        sh -c 'trap "" TERM; echo $$ > stubborn; while :; do sleep 100; done' & wait"#;
    let cancel = CancellationToken::new();
    let command = Command::shell(script).cwd(folder.path()).grace(Duration::from_millis(200));
    let redactor = Redactor::default();
    let run = command.run(None, &redactor, &quiet, &cancel);
    let stop = async {
        let pids = (pid_in(&polite).await, pid_in(&stubborn).await);
        cancel.cancel();
        pids
    };
    let (result, (polite, stubborn)) = tokio::join!(run, stop);
    assert!(result.unwrap_err().message.contains("was cancelled"));
    until("both are gone", || !is_alive(polite) && !is_alive(stubborn)).await;
}

#[tokio::test]
async fn dropping_the_future_ends_the_group_and_leaves_no_zombie() {
    let folder = tempfile::tempdir().unwrap();
    let (leader, child) = (folder.path().join("leader"), folder.path().join("child"));
    let command = Command::shell("echo $$ > leader; sleep 100 & echo $! > child; wait").cwd(folder.path());
    let (redactor, never) = (Redactor::default(), CancellationToken::new());
    let (leader, child) = tokio::select! {
        _ = command.run(None, &redactor, &quiet, &never) => unreachable!("it sleeps"),
        pids = async { (pid_in(&leader).await, pid_in(&child).await) } => pids,
    };
    until("the child is gone", || !is_alive(child)).await;
    until("the leader is reaped", || !Path::new(&format!("/proc/{leader}")).exists()).await;
}

#[tokio::test]
async fn a_background_process_is_not_waited_for_and_not_killed() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let command = Command::shell("sleep 30 & echo $! > daemon; echo started").cwd(folder.path());
    let finished = command.run(None, &Redactor::default(), &quiet, &CancellationToken::new()).await.unwrap();
    let daemon = pid_in(&folder.path().join("daemon")).await;
    assert!(finished.exit.success() && began.elapsed() < Duration::from_secs(20));
    assert_eq!(finished.stdout.text(), "started\n");
    assert!(is_alive(daemon));
    nix::sys::signal::kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn streams_both_ways_and_keeps_the_complaints() {
    let (redactor, never) = (Redactor::default(), CancellationToken::new());
    let mut process = Command::shell("seq 1 100000 >&2; cat; exit 4").start(true, &redactor).unwrap();
    let (mut stdin, mut stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
    let bytes = vec![b'y'; 300_000];
    let feed = async {
        stdin.write_all(&bytes).await.unwrap();
        drop(stdin);
    };
    let mut echoed = Vec::new();
    let ((), read) = tokio::join!(feed, stdout.read_to_end(&mut echoed));
    assert_eq!((read.unwrap(), echoed == bytes), (300_000, true));
    let finished = process.wait(&never).await.unwrap();
    assert_eq!(finished.exit.code(), Some(4));
    assert_eq!(finished.stderr.last_lines(1, &redactor), "100000");
}

#[tokio::test]
async fn a_dropped_stream_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let process =
        Command::shell("sleep 100 & echo $! > child; wait").cwd(folder.path()).start(false, &Redactor::default());
    let child = pid_in(&folder.path().join("child")).await;
    drop(process);
    until("the child is gone", || !is_alive(child)).await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let (redactor, never) = (Redactor::default(), CancellationToken::new());
    let attempt = async |command: Command| command.run(None, &redactor, &quiet, &never).await.unwrap_err();
    let missing = attempt(Command::new("no-such-program-here")).await;
    assert_eq!(missing.message, "run `no-such-program-here`: there is no such program on the PATH");
    assert!(!missing.transient && missing.help.is_some());
    assert!(attempt(Command::new("/nowhere/x")).await.message.contains("no such program"));
    assert!(attempt(Command::new("true").cwd("/nowhere")).await.message.contains("no folder /nowhere"));
    let too_long = attempt(Command::new("true").arg("x".repeat(1 << 20))).await;
    assert!(too_long.help.unwrap().contains("stdin"));
}
