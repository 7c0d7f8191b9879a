//! What a recovery would use and what would keep it from coming about.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::route::Plan;
use super::{RecoverTo, Server, in_the_way, server_programs};
use crate::failure::Failure;
use crate::service::Services;
use crate::service::postgres::tool;
use crate::service::storage::free_space;
use crate::step::effect::Access;
use crate::step::{Action, Certainty, Preview, PreviewCx, Step};
use crate::units::Size;

impl RecoverTo {
    pub(super) async fn foresee(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("recover {} to {} in {}", self.from.shown(), self.to, self.data_dir);
        let assumed = Preview::from_effects(&self.effects(), summary.clone());
        let Some(services) = cx.services else { return assumed };
        if ["/target", "/from", "/wal", "/data_dir"].iter().any(|at| cx.is_unknown(at)) {
            return assumed;
        }
        // A step before takes the backup, or makes the moment.
        let made = |effect: &crate::step::effect::Effect| {
            effect.access == Access::Read && cx.world.touching(&effect.resource).is_some()
        };
        if self.effects().iter().any(made) {
            return assumed;
        }
        let looked = async {
            let server = services.postgres(&self.target)?;
            let preview = Preview::new(Action::Create, Certainty::Observed, summary.clone());
            self.look(cx, services, &server, preview).await
        };
        looked.await.unwrap_or_else(|failure: Failure| Preview::failed(failure.context(&summary)))
    }

    async fn look(
        &self,
        cx: &PreviewCx<'_>,
        services: &Services,
        server: &Server,
        preview: Preview,
    ) -> Result<Preview, Failure> {
        let port = self.port(server)?;
        let side = self.side()?;
        let plan = Plan::of(self, services, server, &CancellationToken::new()).await?;
        let mut preview = Preview { summary: format!("{}: {}", preview.summary, plan.described()), ..preview };
        let mut block = |failure: Failure| preview = preview.clone().blocked(failure.message, failure.help);
        if !cx.is_unknown("/to") {
            // What the original archives first may lead there, unless a gap lies before it.
            let led = match &self.original {
                Some(_) if plan.route.gap().is_none() => plan.may_lead_to(&self.to),
                _ => plan.leads_to(&self.to).await,
            };
            if let Err(failure) = led {
                block(failure);
            }
        }
        let goes_on = side.mark().is_some_and(|mark| mark.step == cx.step.as_str());
        if !side.is_absent()? && !goes_on {
            block(in_the_way(&side));
        } else if !side.is_up() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
            block(
                Failure::permanent(format!("something listens on port {port} of this machine"))
                    .help(format!("give target `{}` another port", self.target)),
            );
        }
        match server_programs(server, plan.backup.major).await {
            Ok(folder) => {
                if let Err(failure) = tool::find("pg_verifybackup", Some(&folder), plan.backup.major).await {
                    block(failure);
                }
            }
            Err(failure) => block(failure),
        }
        let size = size(&plan.backup.folder);
        let there = side.data().ancestors().find(|folder| folder.exists());
        if let Some(free) = there.and_then(free_space).filter(|free| *free < size && side.mark().is_none()) {
            block(
                Failure::permanent(format!(
                    "{} has {} free; the cluster needs {}",
                    self.data_dir,
                    Size(free),
                    Size(size)
                ))
                .help("make room there"),
            );
        }
        if !plan.route.other_timelines.is_empty() {
            let others: Vec<_> = plan.route.other_timelines.iter().map(ToString::to_string).collect();
            preview = preview.warning(
                format!(
                    "the archive also holds timeline {}: this recovers along {}, the backup's",
                    others.join(", "),
                    plan.backup.timeline
                ),
                "for what came after the switch, use a backup taken after it".to_owned(),
            );
        }
        Ok(preview)
    }
}

fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => size(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}
