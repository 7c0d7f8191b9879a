//! `redis.snapshot`: an RDB file that the server itself saves, copied to a storage.
//!
//! Whether a save is done is told by the number of saves and the last one's status, never by
//! its time, which has whole seconds only. The object appears whole, its manifest last.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};
use tokio_util::bytes::Bytes;

use super::rdb;
use crate::dump::source::{PIECE, Source};
use crate::dump::tap::Checksum;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::redis::{Begun, Session};
use crate::service::storage::{Storage, UploadOptions};
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::storage::object_manifest::ObjectManifest;
use crate::step::storage::{Place, check_object_path};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::{Duration, Size};

const EVERY: StdDuration = StdDuration::from_millis(100);

/// Has a Redis server save its data, and copies the file to a storage, checked.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// The server. Its data folder must be reachable from this host.
    #[schemars(extend("x-target" = "redis"))]
    target: String,
    /// Where the snapshot goes. Nothing may be there: put the time into the path.
    to: Place,
    /// The server's data folder as it is seen from here, if it runs in a container; by default where the server says.
    #[serde(default)]
    data_dir: Option<String>,
    /// Whether a save that runs already will do: it holds what the server had when that one began. Otherwise the
    /// step waits for it to end, and begins one of its own.
    #[serde(default = "yes")]
    join: bool,
    /// How long the server may take to save.
    #[serde(default = "an_hour")]
    within: Duration,
}

const fn yes() -> bool {
    true
}

const fn an_hour() -> Duration {
    Duration::seconds(3600)
}

impl StepType for Snapshot {
    const NAME: &'static str = "redis.snapshot";
    const SUMMARY: &'static str = "Has a Redis server save its data, and copies the file to a storage, checked";
    const AFTER_KILL: &'static str =
        "happened if snapshot and manifest are there and fit; otherwise nothing was published: run again";

    fn outputs() -> Vec<Output> {
        vec![
            output("path", ValueKind::String, "The snapshot's path in the storage"),
            output("bytes", ValueKind::Integer, "Its size"),
            output("keys", ValueKind::Integer, "How many keys are in it, of all databases"),
        ]
    }
}

#[async_trait]
impl Step for Snapshot {
    fn effects(&self) -> Vec<Effect> {
        vec![
            Effect::read(Resource::other("redis", &self.target)),
            Effect::new(Access::Create, self.object()).role(Role::ProvesBackup),
        ]
    }

    fn check(&self, found: &mut Findings) {
        check_object_path(found, "/to/path", &self.to.path);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("save {} and copy it to {} in {}", self.target, self.to.path, self.to.storage);
        let assumed = Preview::from_effects(&self.effects(), summary.clone())
            .fact(self.object(), Fact::Present { rows: None });
        let Some(services) = cx.services else { return assumed };
        let unknown = ["/to/path", "/data_dir"].iter().any(|at| cx.is_unknown(at));
        if unknown || cx.world.touching(&Resource::other("redis", &self.target)).is_some() {
            return assumed;
        }
        let look = async {
            let session = services.redis(&self.target)?.connect().await?;
            let file = self.file(&session).await?;
            folder_is_here(&file, &session)?;
            let keys = session.info("keyspace").await?.all_keys();
            Ok::<_, Failure>((keys, services.storage(&self.to.storage)?.stat(&self.to.path).await?))
        };
        match look.await {
            Ok((_, Some(_))) => Preview::new(Action::Blocked, Certainty::Observed, summary).blocked(
                format!("`{}` in {} is there already", self.to.path, self.to.storage),
                "objects are never overwritten: put the time into the path".to_owned(),
            ),
            Ok((keys, None)) => Preview {
                certainty: Certainty::Observed,
                summary: format!("{summary} ({keys} keys)"),
                ..assumed.output("path", self.to.path.clone())
            },
            Err(failure) => Preview::failed(failure),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        tokio::select! {
            done = self.save_and_copy(cx) => done,
            () = cx.cancel.cancelled() => {
                Err(Failure::transient(format!("the snapshot of {} was cancelled; a save goes on", self.target)))
            }
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let storage = cx.services.storage(&self.to.storage)?;
        if storage.stat(&self.to.path).await?.is_none() {
            let why = format!("nothing was published as {}; saving once more does no harm", self.to.path);
            return Ok(AfterKill::RunAgain { why });
        }
        let (bytes, sha256) = hash(&storage, &self.to.path, cx).await?;
        match ObjectManifest::load(&storage, &self.to.path).await? {
            Some(manifest) if manifest.is_of(cx) => {
                manifest.check(&self.to.path, bytes, &sha256)?;
                Ok(AfterKill::Happened(done(&manifest)))
            }
            Some(other) => Ok(AfterKill::CannotTell {
                why: format!("{} is there, but by run {} and step {}", self.to.path, other.run, other.step),
            }),
            None if noted(cx, &sha256).is_some() => {
                Ok(AfterKill::Partly { what: format!("{} is there without its manifest", self.to.path) })
            }
            None => Ok(AfterKill::CannotTell {
                why: format!("{} is there, and not what this step wrote", self.to.path),
            }),
        }
    }
}

impl Snapshot {
    fn object(&self) -> Resource {
        Resource::object(&self.to.storage, &self.to.path)
    }

    /// The file that the server saves to, as it is seen from here.
    async fn file(&self, session: &Session) -> Result<PathBuf, Failure> {
        let missing = |name: &str| Failure::permanent(format!("{} has no setting `{name}`", session.place()));
        let name = session.setting("dbfilename").await?.ok_or_else(|| missing("dbfilename"))?;
        let folder = match &self.data_dir {
            Some(folder) => folder.clone(),
            None => session.setting("dir").await?.ok_or_else(|| missing("dir"))?,
        };
        Ok(Path::new(&folder).join(name))
    }

    async fn save_and_copy(&self, cx: &RunCx) -> Result<Done, Failure> {
        let storage = cx.services.storage(&self.to.storage)?;
        let writer = format!("{}-{}", cx.run, cx.step);
        storage.remove_leftover(&self.to.path, &writer).await?;
        if storage.stat(&self.to.path).await?.is_some() {
            // Published by an attempt that was killed before it wrote the manifest.
            let (_, sha256) = hash(&storage, &self.to.path, cx).await?;
            let Some(manifest) = noted(cx, &sha256) else {
                let message = format!("`{}` in {} is there already", self.to.path, self.to.storage);
                return Err(
                    Failure::permanent(message).help("objects are never overwritten: put the time into the path")
                );
            };
            manifest.store(&storage, &writer).await?;
            return Ok(done(&manifest));
        }
        let session = cx.services.redis(&self.target)?.connect().await?;
        let path = self.file(&session).await?;
        folder_is_here(&path, &session)?;
        let taken_at = self.save(&session, cx).await?;
        // Opened once: a later save replaces the name, not what is open here.
        let shown = format!("the file {} of {}", path.display(), session.place());
        let unread = |error: std::io::Error| {
            Failure::permanent(format!("open {shown}: {error}")).help("run Lifeboat as a user that may read it")
        };
        let mut file = File::open(&path).await.map_err(unread)?;
        let metadata = file.metadata().await.map_err(unread)?;
        let written = metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
        if written.is_none_or(|written| written < taken_at.saturating_sub(SLACK).unwrap_or(taken_at)) {
            return Err(elsewhere(&format!("{shown} is older than the save"), &session));
        }
        let opened = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let counted = rdb::check(&mut file, &opened, &shown, cx).await?;
        let keys = match counted {
            Some(keys) => keys,
            None => session.info("keyspace").await?.all_keys(),
        };
        let server_version = session.info("server").await?.text("redis_version")?.to_owned();
        let bytes = metadata.len();
        let options = UploadOptions { writer: &writer, expected_bytes: bytes, replace: false };
        let mut upload = storage.upload(&self.to.path, options).await?;
        let checksum = Checksum::default();
        let pump = async {
            loop {
                let mut piece = vec![0; PIECE];
                let read = file.read(&mut piece).await.map_err(unread)?;
                if read == 0 {
                    break;
                }
                piece.truncate(read);
                checksum.update(&piece);
                upload.write(Bytes::from(piece)).await?;
                let (done, total) = (checksum.bytes(), Some(bytes));
                cx.progress(Progress {
                    done,
                    total,
                    unit: ProgressUnit::Bytes,
                    message: Some("copying".to_owned()),
                });
            }
            let whole = (checksum.bytes(), checksum.hex());
            let manifest = ObjectManifest::new(cx, &self.to.path, whole, keys, taken_at, server_version);
            cx.note(serde_json::json!({ "manifest": manifest })).await?;
            Ok::<_, Failure>(manifest)
        };
        let manifest = match pump.await {
            Ok(manifest) => manifest,
            Err(failure) => {
                upload.abort().await;
                return Err(failure);
            }
        };
        upload.publish().await?;
        let (bytes, sha256) = hash(&storage, &self.to.path, cx).await?;
        manifest.check(&self.to.path, bytes, &sha256)?;
        manifest.store(&storage, &writer).await?;
        Ok(done(&manifest))
    }

    /// Has the server save, and waits until it did. Gives when the save began.
    async fn save(&self, session: &Session, cx: &RunCx) -> Result<Timestamp, Failure> {
        let deadline = Instant::now() + self.within.std();
        let server = session.info("server").await?.text("run_id")?.to_owned();
        let (mut taken_at, begun, saves) = loop {
            let before = session.info("persistence").await?;
            let saves = before.number("rdb_saves")?;
            let now = Timestamp::now();
            match session.begin_save().await? {
                Begun::Running if self.join => {
                    let info = session.info("persistence").await?;
                    let since = info.number("rdb_current_bgsave_time_sec").unwrap_or(0);
                    let began = SignedDuration::from_secs(i64::try_from(since).unwrap_or(0) + 1);
                    break (now.saturating_sub(began).unwrap_or(now), Begun::Running, saves);
                }
                Begun::Running => self.patience(deadline, session).await?,
                begun => break (now, begun, saves),
            }
        };
        cx.log(&format!("{}: {}\n", session.place(), begun.as_str()));
        loop {
            let info = session.info("persistence").await?;
            if session.info("server").await?.text("run_id")? != server {
                return Err(Failure::transient(format!("{} was started anew while it saved", session.place())));
            }
            let grown = info.number("rdb_saves")? > saves;
            let running = info.is_set("rdb_bgsave_in_progress");
            // The one that ran already was counted when it began; one that waits its turn is not yet.
            if !running && (grown || begun != Begun::Scheduled) {
                let status = info.text("rdb_last_bgsave_status")?;
                if status != "ok" {
                    return Err(Failure::permanent(format!("{} failed to save: status {status}", session.place()))
                        .help("the server's log says why; most often its disk is full or its memory short"));
                }
                if grown || begun == Begun::Running {
                    return Ok(taken_at);
                }
                let message = format!("{} says it saved, but counts no save", session.place());
                return Err(Failure::transient(message));
            }
            if begun == Begun::Scheduled && !running {
                taken_at = Timestamp::now();
            }
            let message =
                info.text("current_save_keys_processed").ok().map(|keys| format!("saving, {keys} keys so far"));
            cx.progress(Progress { done: 0, total: None, unit: ProgressUnit::Bytes, message });
            self.patience(deadline, session).await?;
        }
    }

    async fn patience(&self, deadline: Instant, session: &Session) -> Result<(), Failure> {
        if Instant::now() >= deadline {
            let message = format!("{} did not save within {}", session.place(), self.within);
            return Err(Failure::transient(message).help("give it longer (`within`), or look what holds it up"));
        }
        sleep(EVERY).await;
        Ok(())
    }
}

/// A file system may keep whole seconds only.
const SLACK: SignedDuration = SignedDuration::from_secs(2);

fn folder_is_here(file: &Path, session: &Session) -> Result<(), Failure> {
    let folder = file.parent().unwrap_or(file);
    if folder.is_dir() {
        return Ok(());
    }
    Err(elsewhere(
        &format!("there is no folder {} here, where {} saves", folder.display(), session.place()),
        session,
    ))
}

fn elsewhere(what: &str, session: &Session) -> Failure {
    Failure::permanent(what.to_owned()).help(format!(
        "run Lifeboat on the host of {}, or say in `data_dir` where its data folder is seen from here",
        session.place()
    ))
}

async fn hash(storage: &Storage, path: &str, cx: &RunCx) -> Result<(u64, String), Failure> {
    let mut source = Source::raw(storage, path, &cx.cancel).await?;
    let mut buffer = vec![0; PIECE];
    while source.read(&mut buffer).await? > 0 {}
    source.read_to_end().await?;
    Ok((source.checksum.bytes(), source.checksum.hex()))
}

/// The manifest that an earlier attempt announced for what has that checksum.
fn noted(cx: &RunCx, sha256: &str) -> Option<ObjectManifest> {
    let manifests = cx.notes.iter().filter_map(|(_, note)| serde_json::from_value(note["manifest"].clone()).ok());
    manifests.into_iter().find(|manifest: &ObjectManifest| manifest.sha256 == sha256)
}

fn done(manifest: &ObjectManifest) -> Done {
    Done::new(format!("{}: {}, {} keys, checksum read back", manifest.path, Size(manifest.bytes), manifest.count))
        .output("path", manifest.path.clone())
        .output("bytes", manifest.bytes)
        .output("keys", manifest.count)
}
