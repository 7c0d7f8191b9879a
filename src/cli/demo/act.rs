//! The demo's acts, in their order.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::damage::{DAMAGE, damage};
use super::stage::{BACKUP, ENDS, RECOVERY, Stage};
use super::{Args, Error, Exit, KillAt, Out};
use crate::failure::Failure;
use crate::report::text::{Table, count, wrap};
use crate::sandbox::Standing;
use crate::sandbox::seed::{Fingerprint, fingerprints};
use crate::secret::Redactor;
use crate::service::Services;
use crate::service::postgres::Session;

/// How far into what a step does a kill comes.
const INTO_A_STEP: Duration = Duration::from_millis(200);
/// How long a step that is to be killed has to note something.
const NOTES: Duration = Duration::from_secs(2);
const DATABASE: &str = "manacore_auth";

/// Why a demo did not come to its end.
pub enum Ended {
    Cancelled,
    /// The service can't run as a container here.
    NoContainer(String),
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.into())
    }
}

/// Plays everything; `without` says why the service isn't a container, if it isn't.
pub async fn play(
    stage: &Stage,
    args: &Args,
    without: Option<&str>,
    out: &Out,
    cancel: &CancellationToken,
) -> Result<(), Ended> {
    let whole = unless(cancel, Box::pin(serve(stage, without, out))).await?;
    back_up(stage, out, cancel).await?;
    unless(cancel, destroy(stage, &whole, out)).await?;
    recover(stage, args, out, cancel).await?;
    unless(cancel, prove(stage, &whole, out)).await?;
    evidence(stage, out, cancel).await
}

async fn unless<T>(cancel: &CancellationToken, act: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
    tokio::select! {
        () = cancel.cancelled() => Err(Ended::Cancelled),
        ended = act => ended,
    }
}

async fn serve(stage: &Stage, without: Option<&str>, out: &Out) -> Result<Vec<Fingerprint>, Ended> {
    heading(out, 1, "An auth service, with users, keys, organisations and balances")?;
    if let Some(why) = without {
        let said = format!(
            "{why}. So the service is a process here, and in the demo's copy of the plan the steps that stop and start \
             its container are commands that stop and start that process."
        );
        out.print(&format!("   {}\n\n", wrap(&said, out.paint.width, 3)))?;
    }
    let up = stage.sandbox.up(&|_| ()).await.map_err(|failure| match without {
        None if failure.message.starts_with("start auth") => Ended::NoContainer(failure.message),
        _ => failure.into(),
    })?;
    let up: Vec<Standing> = up.into_iter().filter(|service| service.target != "backups").collect();
    out.print(&indented(&super::super::sandbox::told(&up, out)))?;
    let session = session(stage).await?;
    let whole = fingerprints(&session).await?;
    let rows: i64 = whole.iter().map(|table| table.rows).sum();
    out.print(&format!("\n   {} rows in {} tables\n", count(rows.unsigned_abs()), whole.len()))?;
    is_it_well(stage, 200, out).await?;
    Ok(whole)
}

async fn back_up(stage: &Stage, out: &Out, cancel: &CancellationToken) -> Result<(), Ended> {
    heading(out, 2, "The daily backup, by its plan")?;
    run(stage, &["run", BACKUP.0, "--env", "demo", "--yes"], Shown::Live, None, out, cancel).await
}

async fn destroy(stage: &Stage, whole: &[Fingerprint], out: &Out) -> Result<(), Ended> {
    heading(out, 3, "The damage")?;
    let session = session(stage).await?;
    damage(&session).await?;
    for (words, _) in DAMAGE {
        out.print(&format!("   - {words}\n"))?;
    }
    let damaged = fingerprints(&session).await?;
    out.print(&format!("\n{}", compared(whole, &damaged, out)))?;
    is_it_well(stage, 503, out).await
}

async fn recover(stage: &Stage, args: &Args, out: &Out, cancel: &CancellationToken) -> Result<(), Ended> {
    heading(out, 4, "The recovery, by its plan")?;
    let recovery = ["run", RECOVERY.0, "--env", "demo", "--yes"];
    run(stage, &recovery, Shown::Live, args.kill_at.as_ref(), out, cancel).await?;
    let Some(kill_at) = &args.kill_at else { return Ok(()) };
    let where_ = match kill_at {
        KillAt::Step(step) => format!("in the middle of `{step}`"),
        KillAt::Restored(percent) => format!("with {percent} % of the rows restored"),
    };
    out.print(&format!(
        "\n   {} {where_}. Nothing is lost: another process goes on.\n\n",
        out.paint.bad("Lifeboat was killed (SIGKILL)"),
    ))?;
    let before = parts_loaded(stage);
    run(stage, &["resume", "--yes"], Shown::Live, None, out, cancel).await?;
    if let KillAt::Restored(_) = kill_at {
        // The last part may have been noted, and its transaction not be through.
        let parts = parts_loaded(stage);
        let twice = parts.len() - parts.iter().map(|(number, _)| number).collect::<BTreeSet<_>>().len();
        out.print(&format!(
            "\n   Of the {} parts that the rows came in, {} were there before the kill and were kept.\n",
            parts.len().saturating_sub(twice),
            before.len().saturating_sub(twice)
        ))?;
    }
    Ok(())
}

async fn prove(stage: &Stage, whole: &[Fingerprint], out: &Out) -> Result<(), Ended> {
    heading(out, 5, "Is every row back?")?;
    let session = session(stage).await?;
    let restored = fingerprints(&session).await?;
    out.print(&compared(whole, &restored, out))?;
    if whole != restored.as_slice() {
        return Err(Error::new(Exit::Failed, "rows are missing or differ after the recovery").into());
    }
    out.print(&format!("\n   {}\n", out.paint.good("Every row is back, as it was.")))?;
    is_it_well(stage, 200, out).await
}

async fn evidence(stage: &Stage, out: &Out, cancel: &CancellationToken) -> Result<(), Ended> {
    heading(out, 6, "The report")?;
    run(stage, &["status"], Shown::All, None, out, cancel).await?;
    let more = "`lifeboat report` writes all of it as Markdown or JSON, to keep. `lifeboat demo --keep` leaves \
                everything up to look around in; `--kill-at 60%` kills Lifeboat in the middle of the restore, and resumes.";
    out.print(&format!("\n{}\n\n", wrap(more, out.paint.width, 0)))?;
    Ok(())
}

async fn is_it_well(stage: &Stage, expected: u16, out: &Out) -> Result<(), Ended> {
    let health = asked(stage, expected).await?;
    Ok(out.print(&format!("   is it well?  {}\n", health.shown(out)))?)
}

fn heading(out: &Out, number: u8, text: &str) -> Result<(), Ended> {
    Ok(out.print(&format!("\n{}\n\n", out.paint.strong(&format!("{number}. {text}"))))?)
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "   {line}");
        all
    })
}

/// Each table before and after, row for row.
fn compared(before: &[Fingerprint], after: &[Fingerprint], out: &Out) -> String {
    let mut table = Table::new(3).right(&[1]);
    for (before, after) in before.iter().zip(after) {
        let verdict = if before == after {
            out.paint.good("as it was")
        } else if before.rows == after.rows {
            out.paint.bad("rows differ")
        } else {
            out.paint.bad(&format!("{} rows missing", count(before.rows.abs_diff(after.rows))))
        };
        let rows = format!("{} rows", count(after.rows.unsigned_abs()));
        table.row([before.table.to_owned(), rows, out.paint.dim(after.hash.get(..12).unwrap_or("none")), verdict]);
    }
    table.render(out.paint)
}

/// A connection to the service's database, whichever has that name now.
async fn session(stage: &Stage) -> Result<Session, Failure> {
    Services::new(stage.sandbox.targets(), Redactor::default()).postgres("db")?.connect(Some(DATABASE)).await
}

/// What the service says of itself.
struct Health {
    status: u16,
    body: String,
}

impl Health {
    fn shown(&self, out: &Out) -> String {
        let said = format!("{} {}", self.status, self.body);
        if self.status == 200 { out.paint.good(&said) } else { out.paint.bad(&said) }
    }
}

/// Asks the service how it is, until it says what is expected of it now.
async fn asked(stage: &Stage, expected: u16) -> Result<Health, Failure> {
    let cannot =
        |error: reqwest::Error| Failure::transient(format!("ask {}: {}", stage.health, error.without_url()));
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().map_err(cannot)?;
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let answer = client.get(&stage.health).send().await.map_err(cannot)?;
        let health = Health { status: answer.status().as_u16(), body: answer.text().await.map_err(cannot)? };
        if health.status == expected {
            return Ok(health);
        }
        if Instant::now() >= end {
            let message = format!("{} says {} {}, not {expected}", stage.health, health.status, health.body);
            return Err(Failure::permanent(message));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// What is shown of a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// What it says while it works. The page at its end comes later, as the report.
    Live,
    /// All that it says.
    All,
}

/// Runs this very program as a person would, from the demo's folder. With `kill_at` it is
/// killed once that step has started.
async fn run(
    stage: &Stage,
    args: &[&str],
    shown: Shown,
    kill_at: Option<&KillAt>,
    out: &Out,
    cancel: &CancellationToken,
) -> Result<(), Ended> {
    let typed = format!("lifeboat {}", args.join(" "));
    out.print(&format!("   {}\n\n", out.paint.name(&format!("$ {typed}"))))?;
    let cannot = |error: std::io::Error| Failure::permanent(format!("run `{typed}`: {error}"));
    let program = std::env::current_exe().map_err(cannot)?;
    let mut command = tokio::process::Command::new(program);
    command.args(args).current_dir(&stage.folder).stdin(Stdio::null());
    if shown == Shown::Live {
        command.stdout(Stdio::null());
    }
    command.arg("--color").arg(if out.paint.color { "always" } else { "never" });
    command.arg("--width").arg(out.paint.width.clamp(40, 400).to_string());
    // The folder is all that decides where its runs are kept.
    command.env_remove("LIFEBOAT_STATE");
    let mut child = command.spawn().map_err(cannot)?;
    if let Some(pid) = child.id() {
        // A command that is over already is fine as well.
        let _ = stage.plays(pid);
    }
    let status = match kill_at {
        None => waited(&mut child, cancel).await.map_err(cannot)?,
        Some(kill_at) => {
            let in_the_middle = async {
                match kill_at {
                    KillAt::Step(step) => {
                        journaled(stage, "step_started", step).await;
                        // What a step notes comes right before it acts; not every step does.
                        let _ = timeout(NOTES, journaled(stage, "step_noted", step)).await;
                        sleep(INTO_A_STEP).await;
                    }
                    KillAt::Restored(percent) => restored(stage, *percent).await,
                }
            };
            tokio::select! {
                status = waited(&mut child, cancel) => {
                    status.map_err(cannot)?;
                    if cancel.is_cancelled() {
                        return Err(Ended::Cancelled);
                    }
                    let (message, help) = match kill_at {
                        KillAt::Step(step) => (
                            format!("the run ended before it could be killed in `{step}`"),
                            "`lifeboat show plans/database-corruption.yaml` lists its steps",
                        ),
                        KillAt::Restored(percent) => {
                            (format!("all rows were there before {percent} % could be told"), "take a smaller percentage")
                        }
                    };
                    return Err(Error::usage(message).help(help).into());
                }
                () = in_the_middle => {}
            }
            child.kill().await.map_err(cannot)?;
            return Ok(());
        }
    };
    if cancel.is_cancelled() {
        Err(Ended::Cancelled)
    } else if status.success() {
        Ok(())
    } else {
        Err(Error::new(Exit::Failed, format!("`{typed}` ended with {status}")).into())
    }
}

/// Waits for the program; when the demo is cancelled it is told to end, and made to.
async fn waited(child: &mut Child, cancel: &CancellationToken) -> std::io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        () = cancel.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended in between: that is what was wanted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if let Ok(status) = timeout(ENDS, child.wait()).await {
        return status;
    }
    child.kill().await?;
    child.wait().await
}

/// Waits until a journal says that of the step.
async fn journaled(stage: &Stage, what: &str, step: &str) {
    while !events(stage).iter().any(|event| event["type"] == what && event["step"] == step) {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until so many hundredths of the rows are restored.
async fn restored(stage: &Stage, percent: u64) {
    loop {
        let parts = parts_loaded(stage);
        let loaded: u64 = parts.iter().filter_map(|(_, note)| note["bytes"].as_u64()).sum();
        let all = parts.iter().find_map(|(_, note)| note["of"].as_u64());
        if all.is_some_and(|all| loaded * 100 >= all * percent) {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// The parts of rows that were loaded, by what was noted of each.
fn parts_loaded(stage: &Stage) -> Vec<(u64, Value)> {
    let noted = |event: &Value| Some((event["note"]["chunk"].as_u64()?, event["note"].clone()));
    events(stage).iter().filter_map(noted).collect()
}

/// What all journals say.
fn events(stage: &Stage) -> Vec<Value> {
    let runs = std::fs::read_dir(stage.folder.join(".lifeboat/runs")).into_iter().flatten().flatten();
    let texts = runs.map(|run| std::fs::read_to_string(run.path().join("journal.jsonl")).unwrap_or_default());
    let read = |line: &str| Some(serde_json::from_str::<Value>(line).ok()?["event"].take());
    texts.flat_map(|text| text.lines().filter_map(read).collect::<Vec<_>>()).collect()
}
