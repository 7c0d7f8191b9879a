//! Steps on containers, through a Docker engine.
//!
//! Each notes the container's id and state before it acts. The id is the guard: another
//! container that took the name meanwhile is refused, never stopped or trusted.

pub mod restart;
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

async fn look(cx: &PreviewCx<'_>, target: &str, name: &str) -> Known {
    if cx.is_unknown("/container") {
        return Known::Nothing;
    }
    if let Some(foretold) = cx.world.touching(&Resource::container(target, name)) {
        return match foretold.fact {
            Fact::Absent => Known::Blocked(Failure::permanent(format!(
                "container {name} is gone by then, because of step {}",
                foretold.because
            ))),
            _ => Known::Foretold(foretold.clone()),
        };
    }
    let Some(services) = cx.services else { return Known::Nothing };
    let seen = async { services.docker(target)?.container(name).await };
    match seen.await {
        Ok(container) => Known::Seen(Box::new(container)),
        Err(failure) => Known::Blocked(failure),
    }
}

/// A preview of a change that nothing stands in the way of, as far as is known.
fn assumed(summary: String) -> Preview {
    Preview::new(Action::Change, Certainty::Assumed, summary)
}

/// The name of a container, checked before it becomes part of a request.
fn check_name(name: &str, found: &mut Findings) {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    // The stand-in of a value that only the run knows is no name, and no mistake.
    if !good && !name.contains('‹') {
        let help = "use the name that `docker ps` shows: letters, digits, `_`, `.` and `-`".to_owned();
        found.add("/container", format!("`{name}` can't be a container's name"), help);
    }
}

/// The container as it is now, after comparing it with what earlier attempts noted.
async fn same_container(cx: &RunCx, engine: &Engine, name: &str) -> Result<Container, Failure> {
    let container = engine.container(name).await?;
    match last_noted(cx).and_then(|note| note["id"].as_str()) {
        Some(noted) if noted != container.id => Err(Failure::permanent(format!(
            "container {name} was recreated since this step began: it was {}, it is {}",
            noted.get(..12).unwrap_or(noted),
            container.short_id(),
        ))
        .help("look at what recreated it; then start a new run, or mark this step done")),
        _ => Ok(container),
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
