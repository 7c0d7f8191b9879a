//! `storage.copy`: an object and what lies beside it, to another place, verified there.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio_util::bytes::Bytes;

use super::object_manifest::ObjectManifest;
use super::{Place, changed_by, check_object_path};
use crate::dump::manifest::{Companion, Manifest, globals_path};
use crate::dump::source::{PIECE, Source};
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::storage::{Storage, UploadOptions};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::Size;

/// Copies an object, its manifest and its roles, and reads the copy back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// What is copied.
    from: Place,
    /// Where to; nothing may be there but the same.
    to: Place,
}

impl StepType for Copy {
    const NAME: &'static str = "storage.copy";
    const SUMMARY: &'static str =
        "Copies an object with its manifest, also to another storage, and verifies the copy.";
    const AFTER_KILL: &'static str = "compares checksums";

    fn outputs() -> Vec<Output> {
        vec![
            output("bytes", ValueKind::Integer, "The object's size."),
            output("sha256", ValueKind::String, "Its checksum."),
        ]
    }
}

#[async_trait]
impl Step for Copy {
    fn effects(&self) -> Vec<Effect> {
        vec![
            Effect::read(Resource::object(&self.from.storage, &self.from.path)),
            Effect::new(Access::Create, Resource::object(&self.to.storage, &self.to.path)),
        ]
    }

    fn check(&self, found: &mut Findings) {
        check_object_path(found, "/from/path", &self.from.path);
        check_object_path(found, "/to/path", &self.to.path);
        if self.from == self.to {
            found.add("/to", "it is the same object as `from`", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!(
            "copy {} from {} to {} in {}",
            self.from.path, self.from.storage, self.to.path, self.to.storage
        );
        let copied = Resource::object(&self.to.storage, &self.to.path);
        let assumed = Preview::from_effects(&self.effects(), summary.clone())
            .fact(copied.clone(), Fact::Present { rows: None });
        let Some(services) = cx.services else { return assumed };
        let source = Resource::object(&self.from.storage, &self.from.path);
        let storage = match services.storage(&self.from.storage) {
            Ok(storage) => storage,
            Err(failure) => return Preview::failed(failure),
        };
        let unknown = cx.is_unknown("/from/path") || cx.is_unknown("/to/path");
        if unknown || changed_by(cx.world, &storage, &source).await.is_some() {
            return assumed;
        }
        let look = async {
            let (from, to) = (services.storage(&self.from.storage)?, services.storage(&self.to.storage)?);
            let object = from.object(&self.from.path).await?;
            let rows = Manifest::load(&from, &self.from.path).await?.map(|manifest| manifest.tables);
            let there = to.stat(&self.to.path).await?;
            Ok::<_, Failure>((object, rows, there, to.free_space()))
        };
        let (object, rows, there, free) = match look.await {
            Ok(looked) => looked,
            Err(failure) => return Preview::failed(failure),
        };
        let size = Size(object.bytes);
        let preview = match there {
            Some(there) if there.bytes == object.bytes => Preview::new(
                Action::None,
                Certainty::Assumed,
                format!("{summary} ({size}): it is there, checksums are compared"),
            ),
            Some(there) => {
                return Preview::new(Action::Blocked, Certainty::Observed, summary).blocked(
                    format!(
                        "`{}` in {} is there and has {} bytes, not {}",
                        self.to.path, self.to.storage, there.bytes, object.bytes
                    ),
                    "objects are never overwritten: choose another path".to_owned(),
                );
            }
            None => Preview::new(Action::Create, Certainty::Observed, format!("{summary} ({size})")),
        };
        let preview = preview.fact(copied, Fact::Present { rows });
        match free {
            Some(free) if free < object.bytes => preview.blocked(
                format!("{} has {} free, the object needs {size}", self.to.storage, Size(free)),
                "make room".to_owned(),
            ),
            _ => preview,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        tokio::select! {
            done = self.copy(cx) => done,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("copy {}: cancelled", self.from.path))),
        }
    }

    async fn after_kill(&self, _cx: &RunCx) -> Result<AfterKill, Failure> {
        Ok(AfterKill::RunAgain { why: "a copy that is whole is kept, any other was never published".to_owned() })
    }
}

impl Copy {
    async fn copy(&self, cx: &RunCx) -> Result<Done, Failure> {
        let (from, to) = (cx.services.storage(&self.from.storage)?, cx.services.storage(&self.to.storage)?);
        let object = from.object(&self.from.path).await?;
        if object.folder {
            return Err(Failure::permanent(format!(
                "`{}` is a folder, and one object is copied at a time",
                self.from.path
            ))
            .help("copy its files one by one"));
        }
        let writer = format!("{}-{}", cx.run, cx.step);
        to.remove_leftover(&self.to.path, &writer).await?;
        let manifest = Manifest::load(&from, &self.from.path).await?;
        let watch = |done: u64, message: &str| {
            let total = Some(object.bytes);
            cx.progress(Progress { done, total, unit: ProgressUnit::Bytes, message: Some(message.to_owned()) });
        };
        let (sha256, how) = match to.stat(&self.to.path).await? {
            Some(_) => {
                let sha256 = hash(&from, &self.from.path, &cx.cancel, |done| watch(done, "reading")).await?;
                (sha256, "was there already")
            }
            None => (
                transfer(&from, &self.from.path, &to, &self.to.path, &writer, object.bytes, |done| {
                    watch(done, "copying");
                })
                .await?,
                "copied",
            ),
        };
        if let Some(manifest) = &manifest {
            manifest.check(&self.from.path, object.bytes, &sha256)?;
        }
        let other = ObjectManifest::load(&from, &self.from.path).await?;
        if let Some(other) = &other {
            other.check(&self.from.path, object.bytes, &sha256)?;
        }
        let copied = hash(&to, &self.to.path, &cx.cancel, |done| watch(done, "reading the copy back")).await?;
        if copied != sha256 {
            let message =
                format!("`{}` in {} has the checksum {copied}, not {sha256}", self.to.path, self.to.storage);
            return Err(Failure::permanent(message)
                .help("another object is there, or it was damaged: remove it, or choose another path"));
        }
        if let Some(mut manifest) = manifest {
            if let Some(globals) = &manifest.globals {
                let path = globals_path(&self.to.path);
                if to.stat(&path).await?.is_none() {
                    transfer(&from, &globals.path, &to, &path, &writer, globals.bytes, |_| ()).await?;
                }
                manifest.globals = Some(Companion { path, ..globals.clone() });
            }
            manifest.path.clone_from(&self.to.path);
            manifest.store(&to, &writer).await?;
        }
        if let Some(mut other) = other {
            other.path.clone_from(&self.to.path);
            other.store(&to, &writer).await?;
        }
        Ok(Done::new(format!(
            "{} in {}: {}, {how}, checksum read back",
            self.to.path,
            self.to.storage,
            Size(object.bytes)
        ))
        .output("bytes", object.bytes)
        .output("sha256", sha256))
    }
}

async fn hash(
    storage: &Storage,
    path: &str,
    cancel: &tokio_util::sync::CancellationToken,
    watch: impl Fn(u64),
) -> Result<String, Failure> {
    let mut source = Source::raw(storage, path, cancel).await?;
    let mut buffer = vec![0; PIECE];
    while source.read(&mut buffer).await? > 0 {
        watch(source.checksum.bytes());
    }
    source.read_to_end().await?;
    Ok(source.checksum.hex())
}

/// Streams an object over. Gives the checksum of what was read.
async fn transfer(
    from: &Storage,
    path: &str,
    to: &Storage,
    to_path: &str,
    writer: &str,
    expected_bytes: u64,
    watch: impl Fn(u64),
) -> Result<String, Failure> {
    let checksum = crate::dump::tap::Checksum::default();
    let mut reader = from.read(path).await?;
    let mut upload = to.upload(to_path, UploadOptions { writer, expected_bytes, replace: false }).await?;
    let pump = async {
        loop {
            let mut piece = vec![0; PIECE];
            let read = reader.read(&mut piece).await.map_err(|error| from.read_failure(&error, path))?;
            if read == 0 {
                break;
            }
            piece.truncate(read);
            checksum.update(&piece);
            upload.write(Bytes::from(piece)).await?;
            watch(checksum.bytes());
        }
        if checksum.bytes() == expected_bytes {
            return Ok(());
        }
        Err(Failure::transient(format!("read `{path}`: {} bytes came, of {expected_bytes}", checksum.bytes())))
    };
    if let Err(failure) = pump.await {
        upload.abort().await;
        return Err(failure);
    }
    upload.publish().await?;
    Ok(checksum.hex())
}
