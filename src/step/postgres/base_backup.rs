//! `postgres.base_backup`: a copy of a whole cluster, from which any later moment can be
//! recovered with the WAL that it archives.
//!
//! pg_basebackup writes beside the final name; only what pg_verifybackup found whole gets it.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::folder::Folder;
use super::{ReadAt, end_leftovers, server};
use crate::dump::proof::ended_well;
use crate::failure::Failure;
use crate::kill;
use crate::service::postgres::tool::{self, Tool};
use crate::service::postgres::wal::{BaseBackup, Passport};
use crate::service::postgres::{Server, Session};
use crate::service::process::Command;
use crate::service::storage::free_space;
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Size;

/// Copies a whole cluster into a folder, and proves the copy against its manifest.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseBackupStep {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The folder to make: `{storage, path}` in a storage of scheme `fs`, or a path. Nothing
    /// may be there: put the time into it.
    to: Folder,
    /// `fast` begins at once; `spread` waits for the server's next checkpoint and spares its disks.
    #[serde(default)]
    checkpoint: Checkpoint,
}

/// When the copy begins.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Checkpoint {
    /// At once.
    #[default]
    Fast,
    /// With the next checkpoint, which may take minutes.
    Spread,
}

impl StepType for BaseBackupStep {
    const NAME: &'static str = "postgres.base_backup";
    const SUMMARY: &'static str = "Copies a whole cluster into a folder, to recover any later moment from.";
    const AFTER_KILL: &'static str = "happened if the folder is there under its name and is this step's; what else is left is removed: run again";

    fn outputs() -> Vec<Output> {
        vec![
            output("path", ValueKind::String, "The folder, as `to` names it."),
            output("lsn", ValueKind::String, "The WAL position that replay begins at."),
            output("stop_lsn", ValueKind::String, "The WAL position that it is consistent from."),
            output("taken_at", ValueKind::Timestamp, "When it was begun."),
            output(
                "stopped_at",
                ValueKind::Timestamp,
                "When it had ended: no earlier time can be recovered from it.",
            ),
        ]
    }
}

#[async_trait]
impl Step for BaseBackupStep {
    fn effects(&self) -> Vec<Effect> {
        vec![
            Effect::read(Resource::server(&self.target)),
            Effect::new(Access::Create, self.to.resource()).role(Role::ProvesBackup),
        ]
    }

    fn check(&self, found: &mut Findings) {
        self.to.check(found, "/to");
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("copy the cluster {} to {}", self.target, self.to.shown());
        let assumed = Preview::from_effects(&self.effects(), summary.clone())
            .fact(self.to.resource(), Fact::Present { rows: None });
        if cx.is_unknown("/to") {
            return assumed;
        }
        let assumed = assumed.output("path", self.to.path());
        let (session, certainty) = match ReadAt::find(cx, &self.target, None).await {
            Ok(ReadAt::Now(session, certainty)) => (session, certainty),
            Ok(ReadAt::Later { .. } | ReadAt::Unseen) => return assumed,
            Err(preview) => return *preview,
        };
        let Some(services) = cx.services else { return assumed };
        let proven = async {
            let (server, folder) = (services.postgres(&self.target)?, self.to.locate(services)?);
            let preview = Preview { action: Action::Create, certainty, ..assumed };
            self.prove(&server, &session, &folder, preview).await
        };
        proven.await.unwrap_or_else(|failure| Preview::failed(failure.context(&summary)))
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = server(cx, &self.target)?;
        let folder = self.to.locate(&cx.services)?;
        let session = server.connect(None).await?;
        if let Some(left) = end_leftovers(&session, cx).await? {
            return Err(Failure::transient(left));
        }
        let facts = session.server_facts().await?;
        if tablespaces(&session).await? > 0 {
            return Err(with_tablespaces(&self.target));
        }
        let (taker, verifier) = tools(&server, facts.version.major).await?;
        let draft = draft(&folder, cx);
        remove(&draft)?;
        if folder.exists() {
            return Err(Failure::permanent(format!("{} is there already", folder.display()))
                .help("backups are never overwritten: put the time into the path"));
        }
        let parent = folder.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent)
            .map_err(|error| Failure::permanent(format!("create {}: {error}", parent.display())))?;
        cx.note(json!({ "draft": draft.display().to_string() })).await?;
        let taken_at = now(&session).await?;
        let attempted = format!("copy the cluster {}", self.target);
        let checkpoint = match self.checkpoint {
            Checkpoint::Fast => "--checkpoint=fast",
            Checkpoint::Spread => "--checkpoint=spread",
        };
        let command = server.command(&taker, None).args(["--format=plain", "--wal-method=stream", "--no-password"]);
        let command = command.args(["--manifest-checksums=SHA256", checkpoint, "--verbose"]);
        let command = command.arg(format!("--label={}", label(cx))).arg("--pgdata").arg(&draft);
        let taken = async {
            run_well("pg_basebackup", &command, &attempted, cx).await?;
            let stopped_at = now(&session).await?;
            verify(&verifier, &draft, cx).await?;
            // Read before it has its name: what can't be read is no backup.
            let backup =
                BaseBackup::read(&draft, None, server.settings().bin_dir.as_deref().map(Path::new)).await?;
            let passport = Passport {
                taken_at,
                stopped_at,
                system_identifier: facts.system_identifier.clone(),
                run: cx.run.to_string(),
                step: cx.mark(),
            };
            publish(&draft, &folder, &passport)?;
            Ok((backup, passport))
        };
        match taken.await {
            Ok((backup, passport)) => Ok(self.done(&backup, &passport)),
            Err(failure) => {
                remove(&draft)?;
                Err(failure)
            }
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let folder = self.to.locate(&cx.services)?;
        if !folder.exists() {
            let what = format!("nothing is there as {}", folder.display());
            return Ok(if draft(&folder, cx).exists() {
                AfterKill::Partly { what: format!("{what}; the half of a copy beside it will be removed") }
            } else {
                AfterKill::DidNotHappen { why: what }
            });
        }
        let ours = Passport::of(&folder).filter(|it| it.run == cx.run.as_str() && it.step == cx.mark());
        let Some(passport) = ours else {
            return Ok(AfterKill::CannotTell {
                why: format!("{} is there, but not by this step", folder.display()),
            });
        };
        let server = server(cx, &self.target)?;
        let bin_dir = server.settings().bin_dir.as_deref().map(Path::new);
        let backup = BaseBackup::read(&folder, None, bin_dir).await?;
        verify(&tool::find("pg_verifybackup", bin_dir, backup.major).await?, &folder, cx).await?;
        Ok(AfterKill::Happened(self.done(&backup, &passport)))
    }
}

impl BaseBackupStep {
    fn done(&self, backup: &BaseBackup, passport: &Passport) -> Done {
        Done::new(format!("{}: WAL {} to {}, verified", self.to.path(), backup.start, backup.stop))
            .output("path", self.to.path())
            .output("lsn", backup.start.to_string())
            .output("stop_lsn", backup.stop.to_string())
            .output("taken_at", passport.taken_at.to_string())
            .output("stopped_at", passport.stopped_at.to_string())
    }

    /// Adds what would keep the backup from coming about.
    async fn prove(
        &self,
        server: &Server,
        session: &Session,
        folder: &Path,
        preview: Preview,
    ) -> Result<Preview, Failure> {
        let facts = session.server_facts().await?;
        let sql = "SELECT current_setting('wal_level'), current_setting('max_wal_senders')::int4, \
                          (SELECT rolsuper OR rolreplication FROM pg_catalog.pg_roles WHERE rolname = current_user), \
                          current_setting('archive_mode'), \
                          (SELECT coalesce(sum(pg_database_size(oid)), 0)::int8 FROM pg_catalog.pg_database \
                           WHERE has_database_privilege(oid, 'CONNECT'))";
        let row = session.row("ask whether it can be copied", sql, &[]).await?;
        let size = row.get::<_, i64>(4).unsigned_abs();
        let mut preview = Preview { summary: format!("{} ({})", preview.summary, Size(size)), ..preview };
        if let Err(failure) = tools(server, facts.version.major).await {
            preview = preview.blocked(failure.message, failure.help);
        }
        if row.get::<_, &str>(0) == "minimal" || row.get::<_, i32>(1) < 2 {
            preview = preview.blocked(
                format!("{} is not set up to be copied: it writes too little WAL, or sends none", self.target),
                "set `wal_level = replica` and `max_wal_senders` to 2 or more, and restart it".to_owned(),
            );
        }
        if !row.get::<_, bool>(2) {
            preview = preview.blocked(
                format!("role {} may not replicate", server.user()),
                "use a role with REPLICATION".to_owned(),
            );
        }
        if !facts.in_recovery && row.get::<_, &str>(3) == "off" {
            preview = preview.warning(
                format!("{} archives no WAL: nothing after the backup can be recovered from it", self.target),
                "set `archive_mode` and `archive_command`".to_owned(),
            );
        }
        if tablespaces(session).await? > 0 {
            let failure = with_tablespaces(&self.target);
            preview = preview.blocked(failure.message, failure.help);
        }
        if folder.exists() {
            preview = preview.blocked(
                format!("{} is there already", folder.display()),
                "backups are never overwritten: put the time into the path".to_owned(),
            );
        }
        let there = folder.ancestors().find(|folder| folder.exists());
        if let Some(free) = there.and_then(free_space).filter(|free| *free < size) {
            preview = preview.blocked(
                format!("{} has {} free; the backup needs {}", folder.display(), Size(free), Size(size)),
                "make room there".to_owned(),
            );
        }
        Ok(preview)
    }
}

async fn tools(server: &Server, major: u32) -> Result<(Tool, Tool), Failure> {
    Ok((server.tool("pg_basebackup", major).await?, server.tool("pg_verifybackup", major).await?))
}

/// pg_verifybackup: every file is there with its checksum, and the WAL that it needs.
pub(super) async fn verify(verifier: &Tool, folder: &Path, cx: &RunCx) -> Result<(), Failure> {
    let command = Command::new(verifier.path.to_string_lossy()).env("LC_ALL", "C.UTF-8").arg(folder);
    run_well("pg_verifybackup", &command, &format!("verify {}", folder.display()), cx).await
}

async fn run_well(program: &str, command: &Command, attempted: &str, cx: &RunCx) -> Result<(), Failure> {
    let finished = command.run(None, &cx.redactor, &|text| cx.log(text), &cx.cancel).await?;
    ended_well(program, &finished, &cx.redactor).map_err(|failure| failure.context(attempted))
}

/// Where the copy grows, told by run and step, so that a later attempt finds it.
fn draft(folder: &Path, cx: &RunCx) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    folder.with_file_name(format!(".{name}.{}.partial", label(cx).replace(['/', ':'], "-")))
}

fn label(cx: &RunCx) -> String {
    format!("lifeboat:{}:{}", cx.run, cx.step)
}

fn remove(draft: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::permanent(format!("remove {}: {error}", draft.display())))
        }
        _ => Ok(()),
    }
}

/// Gives the copy its name, after what tells whose it is.
fn publish(draft: &Path, folder: &Path, passport: &Passport) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::permanent(format!("publish {}: {error}", folder.display()));
    let text = serde_json::to_vec_pretty(passport).map_err(|error| failed(error.into()))?;
    let file = Passport::file(folder);
    let sync = |path: &Path| std::fs::File::open(path).and_then(|open| open.sync_all());
    std::fs::write(&file, text).and_then(|()| sync(&file)).map_err(failed)?;
    kill::point("base backup: passport");
    if folder.exists() {
        return Err(Failure::permanent(format!("{} came into being meanwhile", folder.display())));
    }
    kill::point("base backup: before its name");
    std::fs::rename(draft, folder).map_err(failed)?;
    kill::point("base backup: named");
    sync(folder.parent().unwrap_or(Path::new("/"))).map_err(failed)
}

async fn now(session: &Session) -> Result<jiff::Timestamp, Failure> {
    let sql = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let told: String = session.row("ask for the server's time", sql, &[]).await?.get(0);
    told.parse().map_err(|error| Failure::permanent(format!("the server's time {told}: {error}")))
}

/// Tablespaces besides the two that every cluster has.
async fn tablespaces(session: &Session) -> Result<i64, Failure> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')";
    Ok(session.row("ask for tablespaces", sql, &[]).await?.get(0))
}

fn with_tablespaces(target: &str) -> Failure {
    Failure::permanent(format!("{target} has tablespaces of its own, which a copy in one folder can't hold"))
        .help("back its databases up with postgres.backup")
}
