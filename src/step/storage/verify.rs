//! `storage.verify`: an object is what its manifest says, and can be read to its end.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::check_object_path;
use crate::dump::manifest::{Format, Manifest};
use crate::dump::proof::{Watch, prove};
use crate::dump::source::{PIECE, Source};
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::Services;
use crate::service::postgres::tool;
use crate::service::process::Command;
use crate::service::storage::Storage;
use crate::step::effect::{Effect, Resource, Role};
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Size;

/// Verifies an object: its checksum, that it can be read to its end, and for a dump that it is whole.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// The storage.
    #[schemars(extend("x-target" = "storage"))]
    target: String,
    /// The object's path.
    path: String,
    /// Whether size and checksum must be those of its manifest (if it has one).
    #[serde(default = "yes")]
    checksum: bool,
    /// Whether it must decompress to its end, and be whole if it is a dump.
    #[serde(default = "yes")]
    readable: bool,
    /// Whether the tables and rows that a dump holds are written to the step's log.
    #[serde(default)]
    listing: bool,
}

const fn yes() -> bool {
    true
}

impl StepType for Verify {
    const NAME: &'static str = "storage.verify";
    const SUMMARY: &'static str = "Verifies an object's checksum and that it can be read to its end.";

    fn outputs() -> Vec<Output> {
        vec![
            output("bytes", ValueKind::Integer, "The object's size."),
            output("sha256", ValueKind::String, "Its checksum, as it was read."),
        ]
    }
}

#[async_trait]
impl Step for Verify {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(self.resource()).role(Role::ProvesBackup)]
    }

    fn check(&self, found: &mut Findings) {
        check_object_path(found, "/path", &self.path);
        if self.listing && !self.readable {
            found.add("/listing", "a listing needs `readable: true`", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("verify {} in {}", self.path, self.target);
        let Some(services) = cx.services else { return Preview::from_effects(&self.effects(), summary) };
        if cx.is_unknown("/path") || cx.world.touching(&self.resource()).is_some() {
            return Preview::from_effects(&self.effects(), summary);
        }
        match self.verify(services, &|_, _| ()).await {
            Ok((done, _)) => {
                let mut preview = Preview::new(Action::Read, Certainty::Observed, done.summary.unwrap_or(summary));
                preview.outputs = done.outputs;
                preview
            }
            Err(failure) => Preview::failed(failure),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let total = cx.services.storage(&self.target)?.object(&self.path).await?.bytes;
        let watch = |done: u64, table: Option<&str>| {
            cx.progress(Progress {
                done,
                total: Some(total),
                unit: ProgressUnit::Bytes,
                message: table.map(str::to_owned),
            });
        };
        let (done, listing) = self.verify(&cx.services, &watch).await?;
        if self.listing {
            cx.log(&listing);
        }
        Ok(done)
    }
}

impl Verify {
    fn resource(&self) -> Resource {
        Resource::object(&self.target, &self.path)
    }

    async fn verify(&self, services: &Services, watch: Watch<'_>) -> Result<(Done, String), Failure> {
        let storage = services.storage(&self.target)?;
        if self.readable
            && let Some(verified) = self.verify_dump(&storage, services, watch).await?
        {
            return Ok(verified);
        }
        let mut source = if self.readable {
            Source::open(&storage, &self.path, services.cancel()).await?
        } else {
            Source::raw(&storage, &self.path, services.cancel()).await?
        };
        let mut buffer = vec![0; PIECE];
        while source.read(&mut buffer).await? > 0 {
            watch(source.checksum.bytes(), None);
        }
        source.read_to_end().await?;
        let (bytes, sha256) = (source.object.bytes, source.checksum.hex());
        let manifest = if self.checksum { Manifest::load(&storage, &self.path).await? } else { None };
        if let Some(manifest) = &manifest {
            manifest.check(&self.path, bytes, &sha256)?;
        }
        let by = if manifest.is_some() { "as its manifest says" } else { "read to its end" };
        let done = Done::new(format!("{}: {}, {by}", self.path, Size(bytes)));
        Ok((done.output("bytes", bytes).output("sha256", sha256), String::new()))
    }

    /// Proves a dump; `None` when the object is none.
    async fn verify_dump(
        &self,
        storage: &Storage,
        services: &Services,
        watch: Watch<'_>,
    ) -> Result<Option<(Done, String)>, Failure> {
        let source = Source::open(storage, &self.path, services.cancel()).await?;
        let pg_restore = match source.format {
            Format::Plain if !source.looks_like_dump => return Ok(None),
            Format::Plain => None,
            Format::Custom | Format::Directory => {
                let tool = tool::find("pg_restore", None, 0).await?;
                Some(Command::new(tool.path.to_string_lossy()))
            }
        };
        drop(source);
        let proof =
            prove(storage, &self.path, pg_restore.as_ref(), services.redactor(), services.cancel(), watch).await?;
        let (tables, rows) = (proof.survey.rows.len(), proof.survey.rows.values().sum::<u64>());
        let by = if proof.manifest.is_some() { ", as its manifest says" } else { "" };
        let summary =
            format!("{}: a whole dump, {}, {tables} tables, {rows} rows{by}", self.path, Size(proof.object.bytes));
        let listing = proof.survey.rows.iter().map(|(table, rows)| format!("{table}\t{rows} rows\n")).collect();
        let done = Done::new(summary)
            .output("bytes", proof.object.bytes)
            .output("sha256", proof.sha256.clone().unwrap_or_default());
        Ok(Some((done, listing)))
    }
}
