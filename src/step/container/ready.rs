//! Waiting for a container that was started: that it goes on running, or that it is healthy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::docker::{Container, Engine};
use crate::step::{Findings, RunCx};
use crate::units;

/// A process that dies of a bad configuration does so in its first moments.
const SETTLE: Duration = Duration::from_secs(2);

const EVERY: Duration = Duration::from_millis(200);

/// What a started container is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// That it runs, and still does two seconds later.
    #[default]
    Started,
    /// That its health check says so.
    Healthy,
}

/// How long a container is waited for if the plan doesn't say.
pub(super) const fn one_minute() -> units::Duration {
    units::Duration::seconds(60)
}

/// The static check of `within`.
pub(super) fn check_within(within: units::Duration, found: &mut Findings) {
    if within.std() <= SETTLE {
        found.add("/within", "a container needs more than 2s to show that it goes on running", None);
    }
}

/// A container without a health check never becomes healthy.
pub(super) fn needs_check(container: &Container, wait: WaitFor) -> Result<(), Failure> {
    if wait == WaitFor::Healthy && container.health.is_none() {
        return Err(Failure::permanent(format!(
            "{} has no health check, so it can't become healthy",
            container.name
        ))
        .help("write `wait: started` and check it with `http.check`, or give its image a HEALTHCHECK"));
    }
    Ok(())
}

/// Waits until the container, just started, is as wanted; gives back how it is then.
pub(super) async fn wait(
    cx: &RunCx,
    engine: &Engine,
    started: &Container,
    wanted: WaitFor,
    within: Duration,
) -> Result<Container, Failure> {
    let began = Instant::now();
    let name = &started.name;
    loop {
        let now = engine.container(&started.id).await?;
        let is_same_process = now.started_at == started.started_at && now.restarts == started.restarts;
        if !now.running || now.restarting || !is_same_process {
            return Err(fell(engine, &now).await);
        }
        let waited = began.elapsed();
        let is_ready = match wanted {
            WaitFor::Started => waited >= SETTLE,
            WaitFor::Healthy => now.health.as_ref().is_some_and(|health| health.healthy),
        };
        if is_ready {
            return Ok(now);
        }
        if waited >= within {
            return Err(too_late(cx, &now, within));
        }
        let state = now.health.as_ref().map_or(&now.status, |health| &health.status);
        cx.progress(Progress {
            done: waited.as_secs(),
            total: Some(within.as_secs()),
            unit: ProgressUnit::Seconds,
            message: Some(format!("{name}: {state}")),
        });
        tokio::select! {
            () = sleep(EVERY) => {}
            () = cx.cancel.cancelled() => {
                return Err(Failure::transient(format!("waiting for {name} was cancelled; it stays started")));
            }
        }
    }
}

fn too_late(cx: &RunCx, now: &Container, within: Duration) -> Failure {
    let (name, within) = (&now.name, units::Duration(within));
    let Some(health) = &now.health else {
        return Failure::transient(format!("{name} was not seen running on within {within}"));
    };
    let said = health.last_output.as_deref().map(str::trim).filter(|said| !said.is_empty());
    let said = said.map(|said| format!(": {}", cx.redactor.redact(said))).unwrap_or_default();
    Failure::transient(format!("{name} is {} after {within}{said}", health.status))
        .help(format!("`docker logs {name}` shows what it says itself"))
}

/// It ran and runs no more: its own last words say why.
async fn fell(engine: &Engine, now: &Container) -> Failure {
    let name = &now.name;
    let mut message = format!("{name} was started and ended with exit code {}", now.exit_code);
    if now.restarting || now.restarts > 0 {
        message = format!("{message}; its restart policy starts it again and again");
    }
    let words = engine.last_lines(&now.id, 10).await;
    if !words.is_empty() {
        message = format!("{message}: {words}");
    }
    Failure::permanent(message).help(format!("`docker logs {name}` shows more"))
}
