//! `postgres.remove_cluster`: takes down what `postgres.recover_to` made, and nothing else.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::folder::absolute;
use crate::failure::Failure;
use crate::service::postgres::side::Side;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{Action, AfterKill, Certainty, Done, Findings, Preview, PreviewCx, RunCx, Step, StepType};

/// Stops a recovered cluster and removes its folder. Only one that `postgres.recover_to` made,
/// as the mark in its folder says, is touched.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveCluster {
    /// The target that reaches the recovered cluster.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The folder that it was recovered into. One that is not there is fine.
    #[schemars(length(min = 1))]
    data_dir: String,
}

impl StepType for RemoveCluster {
    const NAME: &'static str = "postgres.remove_cluster";
    const SUMMARY: &'static str = "Stops a cluster that postgres.recover_to made, and removes it.";
    const AFTER_KILL: &'static str = "the mark in the folder goes last: run again";
}

#[async_trait]
impl Step for RemoveCluster {
    fn effects(&self) -> Vec<Effect> {
        vec![
            Effect::new(Access::Destroy, Resource::other("cluster", &self.data_dir)),
            Effect::new(Access::Destroy, Resource::server(&self.target)),
        ]
    }

    fn check(&self, found: &mut Findings) {
        if self.data_dir.trim_end_matches('/').is_empty() {
            found.add("/data_dir", "it names no folder", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("stop the recovered cluster in {} and remove it", self.data_dir);
        let (cluster, server) = (Resource::other("cluster", &self.data_dir), Resource::server(&self.target));
        let made = cx.world.fact(&cluster).is_some();
        let gone = |preview: Preview| preview.fact(cluster, Fact::Absent).fact(server, Fact::Absent);
        let assumed = Preview::from_effects(&self.effects(), summary.clone());
        if cx.services.is_none() || made || cx.is_unknown("/data_dir") {
            return gone(assumed);
        }
        let side = match absolute(&self.data_dir) {
            Ok(folder) => Side::new(folder),
            Err(failure) => return Preview::failed(failure),
        };
        match side.is_absent() {
            Ok(true) => {
                gone(Preview::new(Action::None, Certainty::Observed, format!("nothing is in {}", self.data_dir)))
            }
            Ok(false) if side.mark().is_some() => gone(Preview::new(Action::Destroy, Certainty::Observed, summary)),
            Ok(false) => Preview::failed(
                Failure::permanent(format!("{} is no cluster that a recovery made: it has no mark", self.data_dir))
                    .help("only what postgres.recover_to made is removed"),
            ),
            Err(failure) => Preview::failed(failure),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let side = Side::new(absolute(&self.data_dir)?);
        if side.is_absent()? {
            return Ok(Done::new(format!("nothing is in {}", self.data_dir)));
        }
        cx.note(json!({ "data_dir": self.data_dir })).await?;
        side.remove().await.map_err(|failure| failure.context(format!("remove {}", self.data_dir)))?;
        Ok(Done::new(format!("{} is gone", self.data_dir)))
    }

    async fn after_kill(&self, _cx: &RunCx) -> Result<AfterKill, Failure> {
        let side = Side::new(absolute(&self.data_dir)?);
        Ok(if side.is_absent()? {
            AfterKill::Happened(Done::new(format!("{} is gone", self.data_dir)))
        } else {
            AfterKill::RunAgain { why: "it removes what is left".to_owned() }
        })
    }
}
