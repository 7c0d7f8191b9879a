//! `storage.verify`: an object is what its manifest says, and can be read to its end.

use std::fmt::Write as _;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::object_manifest::ObjectManifest;
use super::{changed_by, check_object_path};
use crate::dump::manifest::{Format, Manifest};
use crate::dump::proof::{Watch, prove};
use crate::dump::source::{PIECE, Source};
use crate::dump::survey::Survey;
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
        let storage = match services.storage(&self.target) {
            Ok(storage) => storage,
            Err(failure) => return Preview::failed(failure),
        };
        if cx.is_unknown("/path") || changed_by(cx.world, &storage, &self.resource()).await.is_some() {
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
        let read = if self.readable {
            read_through(&storage, &self.path, services, watch).await?
        } else {
            let mut source = Source::raw(&storage, &self.path, services.cancel()).await?;
            drain(&mut source, watch).await?;
            Read { bytes: source.object.bytes, sha256: source.checksum.hex(), survey: None }
        };
        let manifest = if self.checksum { Manifest::load(&storage, &self.path).await? } else { None };
        if let Some(manifest) = &manifest {
            manifest.check(&self.path, read.bytes, &read.sha256)?;
        }
        let other = if self.checksum { ObjectManifest::load(&storage, &self.path).await? } else { None };
        if let Some(other) = &other {
            other.check(&self.path, read.bytes, &read.sha256)?;
        }
        let mut summary = format!("{}: {}", self.path, Size(read.bytes));
        let mut listing = String::new();
        if let Some(survey) = &read.survey {
            let (tables, rows) = (survey.rows.len(), survey.rows.values().sum::<u64>());
            summary = format!("{summary}, a whole dump with {tables} tables and {rows} rows");
            for (table, rows) in &survey.rows {
                let _ = writeln!(listing, "{table}\t{rows} rows");
            }
        }
        if manifest.is_some() || other.is_some() {
            summary = format!("{summary}, as its manifest says");
        }
        Ok((Done::new(summary).output("bytes", read.bytes).output("sha256", read.sha256), listing))
    }
}

/// An object that was read to its end.
pub(super) struct Read {
    /// Its size.
    pub bytes: u64,
    /// Its checksum; empty for a folder.
    pub sha256: String,
    /// What it holds, if it is a dump: a whole one.
    pub survey: Option<Survey>,
}

/// Reads an object to its end, decompressed; a dump must be whole and as its manifest says.
pub(super) async fn read_through(
    storage: &Storage,
    path: &str,
    services: &Services,
    watch: Watch<'_>,
) -> Result<Read, Failure> {
    let mut source = Source::open(storage, path, services.cancel()).await?;
    if !source.looks_like_dump {
        drain(&mut source, watch).await?;
        return Ok(Read { bytes: source.object.bytes, sha256: source.checksum.hex(), survey: None });
    }
    let pg_restore = if source.format == Format::Plain {
        None
    } else {
        let tool = tool::find("pg_restore", None, 0).await?;
        Some(Command::new(tool.path.to_string_lossy()))
    };
    drop(source);
    let proof =
        prove(storage, path, pg_restore.as_ref(), true, services.redactor(), services.cancel(), watch).await?;
    Ok(Read { bytes: proof.object.bytes, sha256: proof.sha256.unwrap_or_default(), survey: Some(proof.survey) })
}

async fn drain(source: &mut Source, watch: Watch<'_>) -> Result<(), Failure> {
    let mut buffer = vec![0; PIECE];
    while source.read(&mut buffer).await? > 0 {
        watch(source.checksum.bytes(), None);
    }
    source.read_to_end().await
}
