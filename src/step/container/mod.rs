//! Steps on containers, through a Docker engine.
//!
//! Each notes the container's id and state before it acts. The id is the guard: another
//! container that took the name meanwhile is refused, never stopped or trusted.

pub mod exec;
pub mod remove;
pub mod restart;
pub mod run;
pub mod start;
pub mod stop;

mod ready;

use serde_json::{Value, json};

pub use ready::WaitFor;

use crate::failure::Failure;
use crate::service::docker::{Container, Engine};
use crate::step::effect::Resource;
use crate::step::world::{Fact, Foretold};
use crate::step::{Action, Certainty, Findings, Preview, PreviewCx, RunCx};

/// What a preview knows of the container that a step names.
enum Known {
    /// Nothing was, or could be, looked at.
    Nothing,
    /// An earlier step says how it will be.
    Foretold(Foretold),
    /// It was looked at.
    Seen(Box<Container>),
    /// The step can't run.
    Blocked(Failure),
}

/// What a preview knows of a container that need not be there.
enum Sought {
    /// Nothing was, or could be, looked at.
    Nothing,
    /// An earlier step says how it will be.
    Foretold(Foretold),
    /// It was looked for.
    Seen(Option<Box<Container>>),
    /// The engine could not be asked.
    Failed(Failure),
}

async fn look(cx: &PreviewCx<'_>, target: &str, name: &str) -> Known {
    match seek(cx, "/container", target, name).await {
        Sought::Nothing => Known::Nothing,
        Sought::Foretold(foretold) if foretold.fact == Fact::Absent => Known::Blocked(Failure::permanent(format!(
            "container {name} is gone by then, because of step {}",
            foretold.because
        ))),
        Sought::Foretold(foretold) => Known::Foretold(foretold),
        Sought::Seen(Some(container)) => Known::Seen(container),
        Sought::Seen(None) => {
            // Asked again for the sake of its failure, which knows names that are nearly right.
            let seen = async { cx.services?.docker(target).ok()?.container(name).await.err() };
            let gone = || Failure::transient(format!("container {name} comes and goes"));
            Known::Blocked(seen.await.unwrap_or_else(gone))
        }
        Sought::Failed(failure) => Known::Blocked(failure),
    }
}

/// As [`look`], but a missing container is no trouble; its name is the parameter at `pointer`.
async fn seek(cx: &PreviewCx<'_>, pointer: &str, target: &str, name: &str) -> Sought {
    if cx.is_unknown(pointer) {
        return Sought::Nothing;
    }
    if let Some(foretold) = cx.world.touching(&Resource::container(target, name)) {
        return Sought::Foretold(foretold.clone());
    }
    let Some(services) = cx.services else { return Sought::Nothing };
    let seen = async { services.docker(target)?.find(name).await };
    match seen.await {
        Ok(found) => Sought::Seen(found.map(Box::new)),
        Err(failure) => Sought::Failed(failure),
    }
}

/// A preview of a change that nothing stands in the way of, as far as is known.
fn assumed(summary: String) -> Preview {
    Preview::new(Action::Change, Certainty::Assumed, summary)
}

/// The name of a container, checked before it becomes part of a request.
fn check_name(name: &str, found: &mut Findings) {
    check_name_at("/container", name, found);
}

fn check_name_at(pointer: &str, name: &str, found: &mut Findings) {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    // The stand-in of a value that only the run knows is no name, and no mistake.
    if !good && !name.contains('‹') {
        let help = "use the name that `docker ps` shows: letters, digits, `_`, `.` and `-`".to_owned();
        found.add(pointer, format!("`{name}` can't be a container's name"), help);
    }
}

/// The container as it is now, after comparing it with what earlier attempts noted.
async fn same_container(cx: &RunCx, engine: &Engine, name: &str) -> Result<Container, Failure> {
    let container = engine.container(name).await?;
    is_same(cx, &container)?;
    Ok(container)
}

/// Refuses a container that took the name since an earlier attempt noted another one.
fn is_same(cx: &RunCx, container: &Container) -> Result<(), Failure> {
    match last_noted(cx).and_then(|note| note["id"].as_str()) {
        Some(noted) if noted != container.id => Err(Failure::permanent(format!(
            "container {} was recreated since this step began: it was {}, it is {}",
            container.name,
            noted.get(..12).unwrap_or(noted),
            container.short_id(),
        ))
        .help("look at what recreated it; then start a new run, or mark this step done")),
        _ => Ok(()),
    }
}

fn noted(container: &Container) -> Value {
    json!({ "id": container.id, "running": container.running, "started_at": container.started_at })
}

/// The last note that an earlier attempt made about the container.
fn last_noted(cx: &RunCx) -> Option<&Value> {
    cx.notes.iter().rev().map(|(_, note)| note).find(|note| note["id"].is_string())
}

#[cfg(test)]
mod tests;
