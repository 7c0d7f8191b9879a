//! `plan.run`: runs another plan, opened into steps before anything runs.
//!
//! What is left of it in the run is this step: it waits for all of that plan's steps and
//! hands over the plan's `outputs`. Who opens it puts them, as templates over that plan's
//! steps, where this step finds them.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::step::effect::Effect;
use crate::step::{Action, Certainty, Done, Findings, Preview, PreviewCx, RunCx, Step, StepType};

/// Runs another plan.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRun {
    /// The plan's file, relative to the file of this plan; in its folder or below.
    pub file: String,
    /// Values of that plan's inputs.
    #[serde(default)]
    pub inputs: Map<String, Value>,
    /// That plan's outputs, rendered.
    #[serde(default)]
    #[schemars(skip)]
    outputs: Map<String, Value>,
}

impl StepType for PlanRun {
    const NAME: &'static str = "plan.run";
    const SUMMARY: &'static str = "Runs another plan; its steps become part of this one";
    const AFTER_KILL: &'static str = "run again: that plan's steps answer for themselves";
}

#[async_trait]
impl Step for PlanRun {
    /// None of its own: that plan's steps have theirs.
    fn effects(&self) -> Vec<Effect> {
        Vec::new()
    }

    fn check(&self, found: &mut Findings) {
        if self.file.is_empty() {
            found.add("/file", "`file` is empty", "write the plan's file, as `restore.yaml`".to_owned());
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("all of {} is done", self.file);
        let preview = Preview::new(Action::None, Certainty::Assumed, summary);
        let known = self.outputs.iter().filter(|(name, _)| !cx.is_unknown(&format!("/outputs/{name}")));
        known.fold(preview, |preview, (name, value)| preview.output(name, value.clone()))
    }

    async fn run(&self, _cx: &RunCx) -> Result<Done, Failure> {
        let done = Done::new(format!("all of {} is done", self.file));
        Ok(self.outputs.iter().fold(done, |done, (name, value)| done.output(name, value.clone())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::step::find;
    use crate::step::testing::{cx, services};

    #[tokio::test]
    async fn hands_over_the_outputs() {
        let services = services(json!({}));
        let (cx, _) = cx(&services);
        // As the loader makes it: a plan's author can't write `outputs`.
        let step =
            (find("plan.run").unwrap().parse)(json!({ "file": "x.yaml", "outputs": { "rows": 5 } })).unwrap();
        let done = step.run(&cx).await.unwrap();
        assert_eq!(done.outputs["rows"], json!(5));
    }
}
