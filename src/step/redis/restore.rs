//! `redis.restore`: an RDB file of a storage becomes a server's data.
//!
//! The file is fetched and checked before anything is stopped. The server is stopped before it is
//! placed: one that runs overwrites it when it ends.

use std::path::{Path, PathBuf};
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use super::place::{Layout, as_the_servers, hidden, place};
use super::rdb;
use crate::dump::source::PIECE;
use crate::dump::tap::Checksum;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::disk;
use crate::service::process::Command;
use crate::service::redis::Session;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::storage::object_manifest::ObjectManifest;
use crate::step::storage::{Place, check_object_path};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::{Duration, Size};

const EVERY: StdDuration = StdDuration::from_millis(100);

/// Stops a Redis server, puts a snapshot in place of its data, starts it, and counts what it loaded.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The server. It need not run when the step begins.
    #[schemars(extend("x-target" = "redis"))]
    target: String,
    /// The snapshot.
    from: Place,
    /// The server's data folder, as it is seen from here.
    data_dir: String,
    /// The container that the server runs in.
    #[serde(default)]
    container: Option<InContainer>,
    /// Or the commands that stop and start it.
    #[serde(default)]
    service: Option<ByCommands>,
    /// How long the server may take to stop, and how long to start and load.
    #[serde(default = "ten_minutes")]
    within: Duration,
}

/// A container that runs a server.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InContainer {
    /// The Docker engine.
    #[schemars(extend("x-target" = "docker"))]
    target: String,
    /// The container's name.
    name: String,
}

/// Commands that run a server.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ByCommands {
    /// Program and arguments that stop it, as `[systemctl, stop, redis-server]`.
    #[schemars(extend("x-arguments" = true), length(min = 1))]
    stop: Vec<String>,
    /// Program and arguments that start it, and then end.
    #[schemars(extend("x-arguments" = true), length(min = 1))]
    start: Vec<String>,
}

const fn ten_minutes() -> Duration {
    Duration::seconds(600)
}

impl StepType for Restore {
    const NAME: &'static str = "redis.restore";
    const SUMMARY: &'static str =
        "Stops a Redis server, puts a snapshot in place of its data, starts it, and counts what it loaded";
    const AFTER_KILL: &'static str = "run again: the server is stopped and its data placed anew";

    fn outputs() -> Vec<Output> {
        vec![output("keys", ValueKind::Integer, "How many keys the server has, in all its databases")]
    }
}

#[async_trait]
impl Step for Restore {
    fn effects(&self) -> Vec<Effect> {
        let mut effects = vec![
            Effect::read(Resource::object(&self.from.storage, &self.from.path)),
            Effect::new(Access::Destroy, self.resource()),
        ];
        if let Some(container) = &self.container {
            effects.push(Effect::new(Access::Change, Resource::container(&container.target, &container.name)));
        }
        effects
    }

    fn check(&self, found: &mut Findings) {
        check_object_path(found, "/from/path", &self.from.path);
        if self.container.is_some() == self.service.is_some() {
            let help = "write `container: { target, name }` or `service: { stop, start }`".to_owned();
            found.add("", "one of `container` and `service` must say who runs the server", help);
        }
        for (pointer, argv) in self.service.iter().flat_map(|by| [("stop", &by.stop), ("start", &by.start)]) {
            if argv.first().is_none_or(String::is_empty) {
                found.add(format!("/service/{pointer}"), "there is no program in it", None);
            }
        }
        if !self.data_dir.starts_with('/') && !self.data_dir.contains('‹') {
            let help = "where Lifeboat is started must not decide where data goes".to_owned();
            found.add("/data_dir", format!("`{}` is not an absolute path", self.data_dir), help);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary =
            format!("put {} of {} in place of the data of {}", self.from.path, self.from.storage, self.target);
        let assumed = Preview::from_effects(&self.effects(), summary.clone())
            .fact(self.resource(), Fact::Present { rows: None });
        let source = Resource::object(&self.from.storage, &self.from.path);
        let Some(services) = cx.services else { return assumed };
        if ["/from", "/data_dir"].iter().any(|at| cx.is_unknown(at)) || cx.world.touching(&source).is_some() {
            return assumed;
        }
        let look = async {
            let storage = services.storage(&self.from.storage)?;
            let object = storage.object(&self.from.path).await?;
            let manifest = ObjectManifest::load(&storage, &self.from.path).await?;
            self.folder_is_here()?;
            if let Some(container) = &self.container {
                services.docker(&container.target)?.container(&container.name).await?;
            }
            // A server that is down is what a restore is for.
            match services.redis(&self.target)?.connect().await {
                Ok(session) => self.fits(&session).await?,
                Err(failure) if failure.transient => {}
                Err(failure) => return Err(failure),
            }
            Ok::<_, Failure>((object.bytes, manifest, disk::look(&self.data_dir).await?.free))
        };
        match look.await {
            Ok((bytes, manifest, free)) => {
                let keys = manifest.map_or_else(String::new, |manifest| format!(", {} keys", manifest.count));
                let summary = format!("{summary} ({}{keys})", Size(bytes));
                let preview = Preview { certainty: Certainty::Observed, summary, ..assumed };
                // Once as RDB file, once as append-only file.
                if free / 2 >= bytes {
                    return preview;
                }
                let message = format!("{} free at {}, twice the file's size is needed", Size(free), self.data_dir);
                preview.blocked(message, "make room".to_owned())
            }
            Err(failure) => Preview { action: Action::Blocked, summary, ..Preview::failed(failure) },
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        tokio::select! {
            done = self.restore(cx) => done,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!(
                "the restore of {} was cancelled; the server may be stopped",
                self.target
            ))
            .help("resume: it begins anew")),
        }
    }

    async fn after_kill(&self, _cx: &RunCx) -> Result<AfterKill, Failure> {
        Ok(AfterKill::RunAgain { why: "the server is stopped and its data placed anew".to_owned() })
    }
}

impl Restore {
    fn resource(&self) -> Resource {
        Resource::other("redis", &self.target)
    }

    fn folder_is_here(&self) -> Result<(), Failure> {
        if Path::new(&self.data_dir).is_dir() {
            return Ok(());
        }
        Err(Failure::permanent(format!("there is no folder {} here", self.data_dir))
            .help("run Lifeboat on the server's host, and name its data folder as it is seen there"))
    }

    /// Whether the server that answers is one whose data can be replaced from here.
    async fn fits(&self, session: &Session) -> Result<(), Failure> {
        if session.info("replication").await?.text("role")? != "master" {
            return Err(Failure::permanent(format!(
                "{} is a replica: its master would overwrite it",
                session.place()
            ))
            .help("restore the master"));
        }
        // In a container the folder has another name.
        if self.service.is_some()
            && let Some(folder) = session.setting("dir").await?
            && std::fs::canonicalize(&folder).ok() != std::fs::canonicalize(&self.data_dir).ok()
        {
            return Err(Failure::permanent(format!("{} keeps its data in {folder}", session.place()))
                .help("name that folder as `data_dir`"));
        }
        Ok(())
    }

    async fn restore(&self, cx: &RunCx) -> Result<Done, Failure> {
        self.folder_is_here()?;
        let folder = Path::new(&self.data_dir);
        let run = format!("{}-{}", cx.run, cx.step);
        let staged = hidden(folder, &run, "staged");
        let mut layout = self.layout(cx, folder).await?;
        // An attempt that was cut off may have put that very file in place: it isn't to be written over.
        drop(tokio::fs::remove_file(&staged).await);
        let fetched = async {
            let expected = self.fetch(&staged, cx).await?;
            as_the_servers(&staged, folder, &layout)?;
            Ok(expected)
        };
        let expected = match fetched.await {
            Ok(expected) => expected,
            Err(failure) => {
                drop(tokio::fs::remove_file(&staged).await);
                return Err(failure);
            }
        };
        // What is known now of the server can't be asked when it is stopped.
        cx.note(json!({ "layout": layout })).await?;
        let mut again = false;
        let session = loop {
            self.stop(cx).await?;
            let put = (staged.clone(), PathBuf::from(folder), layout.clone(), cx.run.to_string());
            let append_only = tokio::task::spawn_blocking(move || place(&put.0, &put.1, &put.2, &put.3))
                .await
                .map_err(|error| Failure::permanent(error.to_string()))??;
            self.start(cx).await?;
            let session = self.answers(cx).await?;
            let found = Layout::of(&session).await?;
            // It was down before, and nothing showed what it reads.
            let misread = (found.appendonly == Some(true) && !append_only) || found.dbfilename != layout.dbfilename;
            if !misread || again {
                break session;
            }
            cx.log("the server reads other files than were placed: once more, by its own settings\n");
            (layout, again) = (found, true);
            cx.note(json!({ "layout": layout })).await?;
        };
        let done = loaded(&session, expected).await?;
        drop(tokio::fs::remove_file(&staged).await);
        Ok(done)
    }

    /// How the server keeps its data: as it says, else as it said before an earlier attempt stopped it.
    async fn layout(&self, cx: &RunCx, folder: &Path) -> Result<Layout, Failure> {
        match cx.services.redis(&self.target)?.connect().await {
            Ok(session) => match session.ping().await {
                Ok(()) => {
                    self.fits(&session).await?;
                    return Layout::of(&session).await;
                }
                Err(failure) if failure.transient => {}
                Err(failure) => return Err(failure),
            },
            Err(failure) if failure.transient => {}
            Err(failure) => return Err(failure),
        }
        let noted = cx.notes.iter().rev().find_map(|(_, note)| serde_json::from_value(note["layout"].clone()).ok());
        Ok(noted.unwrap_or_else(|| Layout::guessed(folder, "dump.rdb")))
    }

    /// Brings the file here, and checks it. Gives how many keys are in it, if that can be told.
    async fn fetch(&self, staged: &Path, cx: &RunCx) -> Result<Option<u64>, Failure> {
        let storage = cx.services.storage(&self.from.storage)?;
        let object = storage.object(&self.from.path).await?;
        let manifest = ObjectManifest::load(&storage, &self.from.path).await?;
        let failed = |error: std::io::Error| Failure::permanent(format!("write {}: {error}", staged.display()));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(staged).await.map_err(failed)?;
        let mut reader = storage.read(&self.from.path).await?;
        let checksum = Checksum::default();
        let mut piece = vec![0; PIECE];
        loop {
            let read =
                reader.read(&mut piece).await.map_err(|error| storage.read_failure(&error, &self.from.path))?;
            if read == 0 {
                break;
            }
            checksum.update(&piece[..read]);
            file.write_all(&piece[..read]).await.map_err(failed)?;
            let (done, total) = (checksum.bytes(), Some(object.bytes));
            cx.progress(Progress { done, total, unit: ProgressUnit::Bytes, message: Some("fetching".to_owned()) });
        }
        file.sync_all().await.map_err(failed)?;
        if let Some(manifest) = &manifest {
            manifest.check(&self.from.path, checksum.bytes(), &checksum.hex())?;
        }
        let shown = format!("`{}` in the storage `{}`", self.from.path, self.from.storage);
        let counted = rdb::check(&mut file, staged, &shown, cx).await?;
        Ok(counted.or(manifest.map(|manifest| manifest.count)))
    }

    async fn stop(&self, cx: &RunCx) -> Result<(), Failure> {
        if let Some(container) = &self.container {
            let engine = cx.services.docker(&container.target)?;
            let found = engine.container(&container.name).await?;
            return engine
                .stop(&found.id, self.within.std())
                .await
                .map_err(|failure| failure.context(format!("stop container {}", container.name)));
        }
        let stop = self.service.iter().map(|by| &by.stop).next();
        let stopped = command(stop, cx).await;
        let deadline = Instant::now() + self.within.std();
        loop {
            match (cx.services.redis(&self.target)?.connect().await, &stopped) {
                // One that was down already may be none that can be stopped.
                (Err(failure), _) if failure.transient => return Ok(()),
                (Err(failure), _) => return Err(failure),
                (Ok(_), Err(failure)) => return Err(failure.clone()),
                (Ok(session), Ok(())) if Instant::now() >= deadline => {
                    let message = format!("{} still answers {} after it was stopped", session.place(), self.within);
                    return Err(Failure::permanent(message).help("see that `service.stop` stops this very server"));
                }
                (Ok(_), Ok(())) => sleep(EVERY).await,
            }
        }
    }

    async fn start(&self, cx: &RunCx) -> Result<(), Failure> {
        if let Some(container) = &self.container {
            let engine = cx.services.docker(&container.target)?;
            let found = engine.container(&container.name).await?;
            return engine
                .start(&found.id)
                .await
                .map_err(|failure| failure.context(format!("start container {}", container.name)));
        }
        command(self.service.iter().map(|by| &by.start).next(), cx).await
    }

    /// Waits until the server has loaded its data and answers.
    async fn answers(&self, cx: &RunCx) -> Result<Session, Failure> {
        let deadline = Instant::now() + self.within.std();
        loop {
            let asked = async {
                let session = cx.services.redis(&self.target)?.connect().await?;
                session.ping().await?;
                Ok::<_, Failure>(session)
            };
            match asked.await {
                Ok(session) => return Ok(session),
                Err(failure) if !failure.transient => return Err(failure),
                Err(failure) if Instant::now() >= deadline => {
                    return Err(failure
                        .context(format!("not up within {} after the restore", self.within))
                        .help("the server's log says why it does not come up or load"));
                }
                Err(_) => sleep(EVERY).await,
            }
        }
    }
}

async fn command(argv: Option<&Vec<String>>, cx: &RunCx) -> Result<(), Failure> {
    let Some((program, arguments)) = argv.and_then(|argv| argv.split_first()) else { return Ok(()) };
    let log = |text: &str| cx.log(text);
    let finished = Command::new(program).args(arguments).run(None, &cx.redactor, &log, &cx.cancel).await?;
    if finished.exit.success() {
        return Ok(());
    }
    let said = finished.stderr.last_lines(5, &cx.redactor);
    Err(Failure::permanent(format!("`{program}`: {}: {said}", finished.exit)))
}

/// Compares what the server loaded with what is in the file.
async fn loaded(session: &Session, expected: Option<u64>) -> Result<Done, Failure> {
    let info = session.info("persistence").await?;
    let keys = session.info("keyspace").await?.all_keys();
    // Keys whose time is over are not loaded; older servers don't count either.
    let loaded = match (info.number("rdb_last_load_keys_loaded"), info.number("rdb_last_load_keys_expired")) {
        (Ok(loaded), Ok(expired)) => loaded + expired,
        _ => keys,
    };
    let summary = match expected {
        Some(expected) if loaded != expected => {
            return Err(Failure::permanent(format!(
                "{} loaded {loaded} keys; {expected} are in the snapshot",
                session.place()
            ))
            .help("the server's log says what it read; what it had before lies beside, as `*.before-<run>`"));
        }
        Some(expected) => format!("{keys} keys; {expected} were in the snapshot, all loaded"),
        None => format!("{keys} keys; how many are in the snapshot could not be told"),
    };
    Ok(Done::new(summary).output("keys", keys))
}
