//! Whether a step is done, asked of the real systems.
//!
//! | the step | what is asked |
//! | --- | --- |
//! | has begun | what became of it, with what it noted, as after a kill |
//! | only reads | it is run: its success is the proof |
//! | changes something | its dry-run, which must find nothing to do, and have seen that itself |
//!
//! A step that shows in none of these (a command, a statement that never began, a wait) can't be proven.

use super::super::worker::{self, Desk, Job};
use super::became;
use crate::failure::Failure;
use crate::plan::PlannedStep;
use crate::step::effect::Access;
use crate::step::world::World;
use crate::step::{Action, AfterKill, Certainty, Done, PreviewCx, Step};

/// What the systems say.
pub(super) enum Probed {
    /// It is done; with its outputs, and how that is known.
    Agrees(Done, String),
    /// It isn't, or nobody can tell: why.
    Disagrees(String),
    /// An earlier attempt is still at it.
    StillGoing(String),
}

/// How a type answers after a kill that only looks: run again, there is nothing to find out.
const ONLY_READS: &str = "run again";

pub(super) async fn probe(desk: &Desk, planned: &PlannedStep, job: Job) -> Probed {
    let mut said = Vec::new();
    let reads = job.step.effects().iter().all(|effect| effect.access == Access::Read);
    if reads && planned.info.after_kill == ONLY_READS {
        return match run(desk, &job).await {
            Ok(done) => {
                let found = done.summary.clone().unwrap_or_else(|| "it was run, and succeeded".to_owned());
                Probed::Agrees(done, found)
            }
            Err(failure) => Probed::Disagrees(format!("it was run, and failed: {}", failure.message)),
        };
    }
    if job.attempt >= job.since {
        match worker::ask(job.step.clone(), desk.probe(&job)).await {
            Ok(AfterKill::Happened(done)) => {
                let found = became(&AfterKill::Happened(done.clone()));
                return Probed::Agrees(done, found);
            }
            Ok(AfterKill::StillGoing { what }) => return Probed::StillGoing(what),
            Ok(answer) => said.push(became(&answer)),
            Err(failure) => said.push(format!("it could not be asked: {}", failure.message)),
        }
    }
    if reads {
        said.push("it changes nothing that could be looked at".to_owned());
    } else {
        match preview(desk, planned, job.step.as_ref()).await {
            Ok((done, found)) => return Probed::Agrees(done, found),
            Err(why) => said.push(why),
        }
    }
    Probed::Disagrees(said.join("; "))
}

/// Runs a step that only reads.
async fn run(desk: &Desk, job: &Job) -> Result<Done, Failure> {
    let desk = Desk { services: desk.services.read_only(), ..desk.clone() };
    let (step, cx) = (job.step.clone(), desk.probe(job));
    let cancel = cx.cancel.clone();
    let task = async {
        tokio::spawn(async move { step.run(&cx).await })
            .await
            .unwrap_or_else(|_| Err(Failure::permanent("a defect of Lifeboat: it panicked")))
    };
    let timeout = job.limits.borrow().timeout;
    let Some(timeout) = timeout else { return task.await };
    if let Ok(result) = tokio::time::timeout(timeout, task).await {
        return result;
    }
    cancel.cancel();
    let timeout = crate::units::Duration(timeout);
    Err(Failure::transient(format!("not through within its timeout of {timeout}")))
}

/// Asks a step's dry-run whether anything is left to do.
async fn preview(desk: &Desk, planned: &PlannedStep, step: &dyn Step) -> Result<(Done, String), String> {
    let services = desk.services.read_only();
    let world = World::default();
    let cx = PreviewCx { step: &planned.id, services: Some(&services), world: &world, unknown: &[] };
    let preview = step.preview(&cx).await;
    if let Some(problem) = preview.problems.iter().find(|problem| problem.blocks) {
        return Err(format!("its dry-run says: {}", problem.message));
    }
    if preview.action == Action::None && preview.certainty == Certainty::Observed {
        let found = format!("nothing is left to do: {}", preview.summary);
        return Ok((Done { outputs: preview.outputs, summary: None }, found));
    }
    Err(format!("its dry-run would still {}: {}", preview.action.as_str(), preview.summary))
}
