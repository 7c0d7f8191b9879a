//! `postgres.recover_to`: a new cluster beside the original, as that was at one moment.
//!
//! Read on in [`route`] (whether the archive leads there) and in `service::postgres::side`
//! (the cluster in its folder).

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

mod foresee;
mod original;
mod route;

use route::Plan;

use super::base_backup::verify;
use super::folder::{Folder, absolute};
use crate::failure::Failure;
use crate::service::postgres::side::{Mark, Side, Stage};
use crate::service::postgres::wal::Lsn;
use crate::service::postgres::{Server, tool};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Timestamp;

/// The pause between two looks at a server that replays.
const POLL: Duration = Duration::from_millis(100);

/// How long a server may take to write its pid file.
const COMES_UP: Duration = Duration::from_secs(10);

/// A socket's path has room for about that many bytes.
const SOCKET_ROOM: usize = 90;

/// Recovers a cluster to a moment, beside the original: a new cluster in a folder of its own, on
/// loopback, which archives nothing. It is opened for writing only when it is at its target.
///
/// `target` is how the new cluster is reached: `beside: { like: db, port: 28433 }` in the
/// environment, or a `url` on loopback. Roles and passwords are those of the original at that
/// moment. Take it down with `postgres.remove_cluster`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverTo {
    /// The new cluster.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The base backup: a folder that `postgres.base_backup` made.
    from: Folder,
    /// The folder that the original archives its WAL to.
    wal: Folder,
    /// The original server, if it still runs: it is asked first to archive the WAL that it has. Without
    /// that, the moments since its last archived segment can't be recovered yet.
    #[schemars(extend("x-target" = "postgres"))]
    original: Option<String>,
    /// The folder of the new cluster: absent or empty.
    #[schemars(length(min = 1, max = 90))]
    data_dir: String,
    /// The moment.
    to: Point,
}

/// A moment in a cluster's life, after the backup's end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Point {
    /// A time, with its offset. What was committed up to it, and at it, is in.
    Time(Timestamp),
    /// A WAL position, as `0/3000028`.
    Lsn(String),
    /// A restore point, as `pg_create_restore_point` named it.
    Name(String),
    /// The end of the archived WAL.
    Latest,
}

impl Point {
    /// The server's setting for it.
    fn setting(&self) -> Option<(&'static str, String)> {
        match self {
            // The server reads a time without an offset in its own zone.
            Self::Time(time) => {
                let text = time.0.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string();
                Some(("recovery_target_time", text))
            }
            Self::Lsn(lsn) => Some(("recovery_target_lsn", lsn.clone())),
            Self::Name(name) => Some(("recovery_target_name", name.clone())),
            Self::Latest => None,
        }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(time) => time.fmt(f),
            Self::Lsn(lsn) => write!(f, "WAL position {lsn}"),
            Self::Name(name) => write!(f, "restore point `{name}`"),
            Self::Latest => f.write_str("the end of the archived WAL"),
        }
    }
}

impl StepType for RecoverTo {
    const NAME: &'static str = "postgres.recover_to";
    const SUMMARY: &'static str = "Recovers a cluster to a moment, as a new cluster beside the original.";
    const AFTER_KILL: &'static str =
        "the mark in its folder and the server tell: a copy is redone, a recovery goes on, an open cluster is done";

    fn outputs() -> Vec<Output> {
        vec![
            output("url", ValueKind::String, "Where it is reached, without the password."),
            output("reached_at", ValueKind::Timestamp, "When the last transaction in it ended."),
            output("lsn", ValueKind::String, "The WAL position that it was opened at."),
        ]
    }
}

#[async_trait]
impl Step for RecoverTo {
    fn effects(&self) -> Vec<Effect> {
        let mut effects = vec![
            Effect::read(self.from.resource()),
            Effect::read(self.wal.resource()),
            Effect::new(Access::Create, self.cluster()),
            Effect::new(Access::Create, Resource::server(&self.target)),
        ];
        // That it begins another WAL segment is no change that anybody could see in its data.
        effects.extend(self.original.iter().map(|original| Effect::read(Resource::server(original))));
        effects
    }

    fn check(&self, found: &mut Findings) {
        self.from.check(found, "/from");
        self.wal.check(found, "/wal");
        if self.data_dir.trim_end_matches('/').is_empty() {
            found.add("/data_dir", "it names no folder", None);
        }
        match &self.to {
            Point::Lsn(lsn) if !lsn.contains('‹') => {
                if let Err(wrong) = lsn.parse::<Lsn>() {
                    found.add("/to/lsn", wrong, None);
                }
            }
            Point::Name(name) if name.is_empty() || name.len() > 63 => {
                found.add(
                    "/to/name",
                    format!("a restore point's name has 1 to 63 bytes, not {}", name.len()),
                    None,
                );
            }
            _ => {}
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        self.foresee(cx)
            .await
            .fact(self.cluster(), Fact::Present { rows: None })
            .fact(Resource::server(&self.target), Fact::Present { rows: None })
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = cx.services.postgres(&self.target)?;
        let port = self.port(&server)?;
        let side = self.side()?;
        let resumed = match side.mark() {
            Some(mark) if is_ours(&mark, cx) && mark.stage != Stage::Copying => Some(mark),
            Some(mark) if is_ours(&mark, cx) => {
                cx.log("the copy of an earlier attempt is removed\n");
                side.remove().await?;
                None
            }
            _ => None,
        };
        let mark = match resumed {
            Some(mark) => mark,
            None => self.make(cx, &side, &server, port).await?,
        };
        match self.recover(cx, &side, &server, mark.clone()).await {
            Ok(mark) => Ok(self.done(&server, port, &mark)),
            Err(failure) => {
                self.give_up(cx, &side, &mark, &failure).await?;
                Err(failure.context(format!("recover to {}", self.to)))
            }
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let side = self.side()?;
        let place = side.data().display();
        if side.is_absent()? {
            return Ok(AfterKill::DidNotHappen { why: format!("nothing is in {place}") });
        }
        let Some(mark) = side.mark() else {
            return Ok(AfterKill::CannotTell {
                why: format!("{place} holds something that has no mark of a recovery"),
            });
        };
        if !is_ours(&mark, cx) {
            let why = format!("{place} is by run {} and step {}", mark.run, mark.step);
            return Ok(AfterKill::CannotTell { why });
        }
        if mark.stage == Stage::Copying {
            return Ok(AfterKill::Partly { what: format!("{place} is half a copy: it will be redone") });
        }
        let server = cx.services.postgres(&self.target)?;
        let port = self.port(&server)?;
        if mark.stage == Stage::Open && side.is_up() {
            return Ok(AfterKill::Happened(self.done(&server, port, &mark)));
        }
        let state = side.state(&mark.bin_dir).await?;
        let runs = if side.is_up() { "its server runs" } else { "its server does not run" };
        Ok(AfterKill::Partly { what: format!("the cluster in {place} is `{state}`, {runs}: the recovery goes on") })
    }
}

fn is_ours(mark: &Mark, cx: &RunCx) -> bool {
    mark.run == cx.run.as_str() && mark.step == cx.mark()
}

/// How a replaying server stands.
struct Standing {
    in_recovery: bool,
    paused: bool,
    lsn: Option<String>,
    last_end: Option<String>,
}

impl RecoverTo {
    fn cluster(&self) -> Resource {
        Resource::other("cluster", &self.data_dir)
    }

    fn side(&self) -> Result<Side, Failure> {
        let folder = absolute(&self.data_dir)?;
        if folder.as_os_str().len() > SOCKET_ROOM {
            return Err(Failure::permanent(format!(
                "the path {} is too long for a server's socket",
                folder.display()
            ))
            .help(format!("name one of at most {SOCKET_ROOM} bytes")));
        }
        Ok(Side::new(folder))
    }

    fn port(&self, server: &Server) -> Result<u16, Failure> {
        server.loopback_port().ok_or_else(|| {
            Failure::permanent(format!(
                "target `{}` is at {}, and a recovered cluster is on this machine's loopback",
                self.target,
                server.host_and_port()
            ))
            .help("declare it as `postgres: { beside: { like: TARGET, port: 28433 } }`")
        })
    }

    /// Copies the backup and configures the cluster, up to where its server can be started.
    async fn make(&self, cx: &RunCx, side: &Side, server: &Server, port: u16) -> Result<Mark, Failure> {
        if !side.is_absent()? {
            return Err(in_the_way(side));
        }
        if let Some(original) = &self.original {
            original::archive(cx, original, &self.wal.locate(&cx.services)?).await?;
        }
        let plan = Plan::of(self, &cx.services, server, &cx.cancel).await?;
        plan.leads_to(&self.to).await?;
        let bin_dir = server_programs(server, plan.backup.major).await?;
        let verifier = tool::find("pg_verifybackup", Some(&bin_dir), plan.backup.major).await?;
        verify(&verifier, &plan.backup.folder, cx).await?;
        let mut mark = Mark {
            run: cx.run.to_string(),
            step: cx.mark(),
            stage: Stage::Copying,
            bin_dir,
            reached_at: None,
            lsn: None,
        };
        cx.note(json!({ "data_dir": side.data().display().to_string(), "backup": plan.backup.folder.display().to_string() }))
            .await?;
        let made = async {
            side.begin(&mark).await?;
            plan.archive_is_readable().await?;
            side.copy(&plan.backup.folder, &cx.cancel).await?;
            side.configure(&plan.backup, &plan.archive.folder, port, self.to.setting())?;
            mark.stage = Stage::Recovering;
            side.set_mark(&mark)
        };
        if let Err(failure) = made.await {
            side.remove().await?;
            return Err(failure);
        }
        Ok(mark)
    }

    /// Replays to the target, looks whether it really got there, and opens the cluster.
    async fn recover(&self, cx: &RunCx, side: &Side, server: &Server, mut mark: Mark) -> Result<Mark, Failure> {
        cx.note(json!({ "starts": side.data().display().to_string() })).await?;
        side.start(&mark.bin_dir).await?;
        let inside = server.through_socket(side.data());
        let (started, mut seen, mut promoted) = (Instant::now(), false, false);
        loop {
            if cx.cancel.is_cancelled() {
                return Err(Failure::transient("cancelled"));
            }
            seen |= side.is_up();
            if !side.is_up() && (seen || started.elapsed() > COMES_UP) {
                let last = side.logged(&["FATAL", "PANIC"]);
                return Err(Failure::permanent(format!("the server ended: {}", last.join("; "))));
            }
            let Some(standing) = look(&inside).await? else {
                sleep(POLL).await;
                continue;
            };
            if standing.in_recovery && standing.paused && !promoted {
                self.inspect(side, &standing)?;
                mark = reached(side, mark, &standing)?;
                cx.log(&format!("{}\n", side.logged(&["recovery stopping"]).join("\n")));
                cx.note(json!({ "reached_at": mark.reached_at, "lsn": mark.lsn })).await?;
                side.promote(&mark.bin_dir).await?;
                promoted = true;
            } else if !standing.in_recovery {
                if self.to != Point::Latest && mark.stage == Stage::Recovering {
                    return Err(Failure::permanent("it was opened before it was seen at its target"));
                }
                if mark.lsn.is_none() {
                    mark = reached(side, mark, &standing)?;
                }
                mark.stage = Stage::Open;
                side.set_mark(&mark)?;
                return Ok(mark);
            }
            sleep(POLL).await;
        }
    }

    /// A pause alone proves nothing: the server must say that it stopped for the target.
    fn inspect(&self, side: &Side, standing: &Standing) -> Result<(), Failure> {
        if side.logged(&["recovery stopping"]).is_empty() {
            return Err(Failure::permanent("it paused, but its log names no target that it stopped at"));
        }
        if let (Point::Time(time), Some(last)) = (&self.to, &standing.last_end)
            && last.parse::<jiff::Timestamp>().is_ok_and(|last| last > time.0)
        {
            return Err(Failure::permanent(format!("it holds a transaction of {last}, after its target")));
        }
        Ok(())
    }

    /// Leaves nothing running; what a permanent failure left can't be gone on with.
    async fn give_up(&self, cx: &RunCx, side: &Side, mark: &Mark, failure: &Failure) -> Result<(), Failure> {
        let log = side.logged(&[""]).join("\n");
        cx.log(&format!("{}\n", cx.redactor.redact(&log)));
        if failure.transient { side.stop(&mark.bin_dir).await } else { side.remove().await }
    }

    fn done(&self, server: &Server, port: u16, mark: &Mark) -> Done {
        let url = format!("postgres://{}@127.0.0.1:{port}/{}", server.user(), server.default_database());
        let lsn = mark.lsn.clone().unwrap_or_default();
        let at = mark.reached_at.as_ref().map_or_else(String::new, |at| format!(", last transaction {at}"));
        Done::new(format!("{url} is at {}: {lsn}{at}", self.to))
            .output("url", url)
            .output("reached_at", mark.reached_at.clone())
            .output("lsn", lsn)
    }
}

/// Keeps where it stands before it is opened: a server that is started again doesn't know.
fn reached(side: &Side, mark: Mark, standing: &Standing) -> Result<Mark, Failure> {
    let (reached_at, lsn) = (standing.last_end.clone(), standing.lsn.clone());
    let mark = Mark { stage: Stage::Reached, reached_at, lsn, ..mark };
    side.set_mark(&mark)?;
    Ok(mark)
}

/// How the server stands; none while it doesn't take connections yet.
async fn look(server: &Server) -> Result<Option<Standing>, Failure> {
    let session = match server.connect(None).await {
        Ok(session) => session,
        Err(failure) if failure.transient => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let sql = "SELECT pg_is_in_recovery(), \
                      CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, \
                      coalesce(pg_last_wal_replay_lsn(), \
                               CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() END)::text, \
                      to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', \
                              'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    match session.row("ask how far the recovery is", sql, &[]).await {
        Ok(row) => Ok(Some(Standing {
            in_recovery: row.get(0),
            paused: row.get(1),
            lsn: row.get(2),
            last_end: row.get(3),
        })),
        // Promoted between the two questions, or on its way down: the next look tells.
        Err(failure) if failure.transient || failure.message.contains("recovery is not in progress") => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn in_the_way(side: &Side) -> Failure {
    match side.mark() {
        Some(mark) => {
            Failure::permanent(format!("{} holds a cluster that run {} recovered", side.data().display(), mark.run))
                .help("remove it with postgres.remove_cluster, or name another folder")
        }
        None => Failure::permanent(format!("{} is not empty", side.data().display())).help("name another folder"),
    }
}

/// The folder of the server's programs: of exactly the cluster's version.
async fn server_programs(server: &Server, major: u32) -> Result<PathBuf, Failure> {
    let named = server.settings().bin_dir.as_deref().map(PathBuf::from);
    let usual = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let found = match named {
        Some(folder) => tool::find("pg_ctl", Some(&folder), major).await?,
        None => match tool::find("pg_ctl", Some(&usual), major).await {
            Ok(found) => found,
            Err(_) => tool::find("pg_ctl", None, major).await?,
        },
    };
    if found.version.major != major {
        return Err(Failure::permanent(format!(
            "the backup is of PostgreSQL {major}, and the nearest server program here is {}",
            found.version
        ))
        .help(format!("install it (Debian: `apt-get install postgresql-{major}`)")));
    }
    Ok(found.path.parent().unwrap_or(Path::new("/")).to_owned())
}
