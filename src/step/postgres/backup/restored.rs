//! A backup that is restored before it counts as one.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Backup;
use crate::dump::proof::Proof;
use crate::dump::rows::{FORMS, compare};
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::Server;
use crate::service::postgres::tool::Version;
use crate::service::storage::Storage;
use crate::step::RunCx;
use crate::step::postgres::end_leftovers;
use crate::step::postgres::restore::Restore;

/// How a backup is proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Proving {
    /// Read back.
    #[default]
    Read,
    /// Read back, restored and compared.
    Restore,
}

impl Backup {
    /// Loads what was published into a database of this step's own, compares every row with the
    /// dump's, and drops it again, whatever comes of it.
    pub(super) async fn restore(
        &self,
        server: &Server,
        storage: &Storage,
        proof: &Proof,
        encoding: &str,
        version: Version,
        cx: &RunCx,
    ) -> Result<(), Failure> {
        let restore = Restore::throwaway(&self.target, &self.to, cx);
        restore.drop_throwaway(server, &server.connect(None).await?).await?;
        let compared = async {
            restore.make_throwaway(server, storage, proof, version, cx).await?;
            let session = server.connect(Some(restore.name())).await?;
            session.batch("compare the restored rows", &format!("BEGIN READ ONLY; {FORMS}")).await?;
            let survey = &proof.survey;
            let total = Some(survey.rows.values().sum());
            let watch = |table: &str, done: u64| {
                let message = Some(format!("comparing {table}"));
                cx.progress(Progress { done, total, unit: ProgressUnit::Rows, message });
            };
            let compared = compare(&session, &survey.rows, &survey.hashes, encoding, watch).await?;
            match compared.wrong.as_slice() {
                [] => Ok(()),
                wrong => {
                    Err(Failure::permanent(format!("restored, it is not what was backed up: {}", wrong.join("; ")))
                        .help("it is no backup and was not kept; something changes rows while they are loaded"))
                }
            }
        };
        let compared = compared.await;
        // Also when this step was cancelled: what is left here is a whole database.
        let tidy = async {
            let session = server.detached().connect(None).await?;
            end_leftovers(&session, cx).await?;
            restore.drop_throwaway(server, &session).await
        };
        match (compared, tidy.await) {
            (Ok(()), tidy) => tidy,
            (Err(failure), Ok(())) => Err(failure),
            (Err(failure), Err(left)) => {
                cx.log(&format!("{} is left behind: {left}\n", restore.name()));
                Err(failure)
            }
        }
    }

    /// Drops what a killed attempt left of that.
    pub(super) async fn clear_restored(&self, server: &Server, cx: &RunCx) -> Result<(), Failure> {
        Restore::throwaway(&self.target, &self.to, cx).drop_throwaway(server, &server.connect(None).await?).await
    }
}
