//! `storage.find`: the backup to use, the newest one or one by name.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::backups::{Backup, Listing};
use super::{changed_by, check_object_path};
use crate::dump::manifest::{self, Manifest};
use crate::failure::Failure;
use crate::service::Services;
use crate::step::effect::{Effect, Resource, Role};
use crate::step::world::Fact;
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::{Duration, Size, Timestamp};

/// Finds a backup, and refuses one that is too old, too small or not finished.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Find {
    /// The storage.
    #[schemars(extend("x-target" = "storage"))]
    target: String,
    /// What the backups' paths begin with. Either this or `path`.
    prefix: Option<String>,
    /// The backup's whole path.
    path: Option<String>,
    /// `latest`, or a backup's path or file name. The latest is the one whose manifest says
    /// so; without a manifest the time in its name counts (UTC), else when it was written.
    #[serde(default = "latest")]
    pick: String,
    /// Only backups that were taken at this time or before.
    before: Option<Timestamp>,
    /// The greatest age that will do.
    max_age: Option<Duration>,
    /// The least size that will do: smaller ones are passed over.
    min_size: Option<Size>,
    /// Only backups with a manifest beside them: those that Lifeboat took and finished.
    #[serde(default)]
    require_manifest: bool,
    /// Only backups of this database, as their manifests say.
    database: Option<String>,
}

fn latest() -> String {
    "latest".to_owned()
}

impl StepType for Find {
    const NAME: &'static str = "storage.find";
    const SUMMARY: &'static str = "Finds the backup to use: the newest one, or one by name.";

    fn outputs() -> Vec<Output> {
        vec![
            output("path", ValueKind::String, "The backup's path in the storage."),
            output("bytes", ValueKind::Integer, "Its size."),
            output("taken_at", ValueKind::Timestamp, "When it was taken."),
            output("age", ValueKind::Duration, "How long ago that is."),
            output("sha256", ValueKind::String, "Its checksum by its manifest; empty when it has none."),
        ]
    }
}

#[async_trait]
impl Step for Find {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(self.resource()).role(Role::ProvesBackup)]
    }

    fn check(&self, found: &mut Findings) {
        match (&self.prefix, &self.path) {
            (Some(_), Some(_)) => found.add("/path", "`prefix` and `path` exclude each other", None),
            (None, None) => found.add(
                "",
                "it needs `prefix` or `path`",
                Some("name what the backups' paths begin with".to_owned()),
            ),
            (None, Some(path)) => {
                check_object_path(found, "/path", path);
                if self.pick != "latest" {
                    found.add("/pick", "`pick` chooses below a `prefix`; `path` is one backup already", None);
                }
            }
            (Some(prefix), None) if !prefix.is_empty() => {
                check_object_path(found, "/prefix", prefix.strip_suffix('/').unwrap_or(prefix));
            }
            _ => {}
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("find {} in {}", self.wanted(), self.target);
        let Some(services) = cx.services else { return Preview::from_effects(&self.effects(), summary) };
        let unknown = ["/prefix", "/path", "/pick", "/before", "/max_age", "/database"];
        if unknown.iter().any(|pointer| cx.is_unknown(pointer)) {
            return Preview::from_effects(&self.effects(), summary);
        }
        let storage = match services.storage(&self.target) {
            Ok(storage) => storage,
            Err(failure) => return Preview::failed(failure),
        };
        if let Some(because) = changed_by(cx.world, &storage, &self.resource()).await {
            let summary = format!("{summary}, which step {because} changes before");
            return Preview::from_effects(&self.effects(), summary);
        }
        match self.find(services).await {
            Ok((backup, done)) => {
                let rows = backup.manifest.as_ref().map(Manifest::found);
                let summary = done.summary.unwrap_or(summary);
                let mut preview = Preview::new(Action::Read, Certainty::Observed, summary)
                    .fact(Resource::object(&self.target, &backup.path), Fact::Present { rows });
                preview.outputs = done.outputs;
                preview
            }
            Err(failure) => Preview::failed(failure),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        tokio::select! {
            found = self.find(&cx.services) => found.map(|(_, done)| done),
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("find {}: cancelled", self.wanted()))),
        }
    }
}

impl Find {
    fn resource(&self) -> Resource {
        match (&self.path, &self.prefix) {
            (Some(path), _) => Resource::object(&self.target, path),
            (None, prefix) => {
                Resource::object(&self.target, &format!("{}*", prefix.as_deref().unwrap_or_default()))
            }
        }
    }

    fn wanted(&self) -> String {
        match (&self.path, &self.prefix) {
            (Some(path), _) => format!("the backup {path}"),
            (None, prefix) if self.pick == "latest" => {
                format!("the newest backup {}*", prefix.as_deref().unwrap_or_default())
            }
            _ => format!("the backup {}", self.pick),
        }
    }

    async fn find(&self, services: &Services) -> Result<(Backup, Done), Failure> {
        let storage = services.storage(&self.target)?;
        let prefix = self.path.as_ref().or(self.prefix.as_ref()).map_or("", String::as_str);
        let listing = Listing::of(&storage, prefix).await?;
        let (backup, passed_over) = match (&self.path, self.pick.as_str()) {
            (Some(path), _) => (self.named(listing, |backup| backup.path == *path, path)?, vec![]),
            (None, "latest") => self.newest(listing, prefix)?,
            (None, name) => {
                let whole = format!("{prefix}{name}");
                let fits = |backup: &Backup| {
                    let file = backup.path.rsplit('/').next().unwrap_or_default();
                    backup.path == name || backup.path == whole || file == name
                };
                (self.named(listing, fits, name)?, vec![])
            }
        };
        let now = jiff::Timestamp::now();
        let age = Duration::seconds(u64::try_from(now.as_second() - backup.taken_at.as_second()).unwrap_or(0));
        if let Some(max_age) = self.max_age
            && age > max_age
        {
            let message =
                format!("{} was taken at {}, {age} ago: more than {max_age}", backup.path, backup.taken_at);
            return Err(Failure::permanent(message).help(
                "see why no newer backup was finished; raise `max_age` if this one is to be used all the same",
            ));
        }
        let mut summary = format!("{} ({}, taken {age} ago)", backup.path, Size(backup.bytes));
        if !passed_over.is_empty() {
            summary = format!("{summary}; passed over: {}", passed_over.join("; "));
        }
        let sha256 = backup.manifest.as_ref().map(|manifest| manifest.sha256.clone()).unwrap_or_default();
        let done = Done::new(summary)
            .output("path", backup.path.clone())
            .output("bytes", backup.bytes)
            .output("taken_at", backup.taken_at.to_string())
            .output("age", age.to_string())
            .output("sha256", sha256);
        Ok((backup, done))
    }

    /// The newest backup that will do, and the newer ones that won't, with the reason.
    fn newest(&self, listing: Listing, prefix: &str) -> Result<(Backup, Vec<String>), Failure> {
        let mut passed_over = vec![];
        for backup in listing.backups {
            if self.before.is_some_and(|before| backup.not_after > before.0) {
                continue;
            }
            match self.unfit(&backup) {
                None => return Ok((backup, passed_over)),
                Some(why) => passed_over.push(format!("{}: {why}", backup.path)),
            }
        }
        let before = self.before.map_or_else(String::new, |before| format!(" taken at {before} or before"));
        let message = format!("the storage `{}` has no backup {prefix}*{before} that will do", self.target);
        passed_over.truncate(5);
        let failure = if passed_over.is_empty() {
            Failure::permanent(message)
        } else {
            Failure::permanent(format!("{message} ({})", passed_over.join("; ")))
        };
        Err(failure.help("check `prefix`, and that backups are taken and finished"))
    }

    fn named(&self, listing: Listing, fits: impl Fn(&Backup) -> bool, name: &str) -> Result<Backup, Failure> {
        let mut fitting: Vec<_> = listing.backups.into_iter().filter(|backup| fits(backup)).collect();
        let backup = match fitting.len() {
            0 => {
                return Err(Failure::permanent(format!("the storage `{}` has no backup `{name}`", self.target))
                    .help(if manifest::is_companion(name) {
                        "that names what lies beside a backup; name the backup itself"
                    } else {
                        "list what is there and name one of those, or say `latest`"
                    }));
            }
            1 => fitting.remove(0),
            _ => {
                let paths: Vec<_> = fitting.iter().map(|backup| backup.path.as_str()).collect();
                return Err(Failure::permanent(format!("`{name}` fits several backups: {}", paths.join(", ")))
                    .help("give the whole path"));
            }
        };
        if let Some(before) = self.before
            && backup.not_after > before.0
        {
            return Err(Failure::permanent(format!(
                "{} was taken at {}, after {before}",
                backup.path, backup.taken_at
            )));
        }
        match self.unfit(&backup) {
            None => Ok(backup),
            Some(why) => {
                Err(Failure::permanent(format!("{} will not do: {why}", backup.path)).help("name another backup"))
            }
        }
    }

    /// Why a backup won't do, if it won't.
    fn unfit(&self, backup: &Backup) -> Option<String> {
        if let Some(flaw) = &backup.flaw {
            return Some(flaw.clone());
        }
        if let Some(least) = self.min_size.filter(|least| backup.bytes < least.0) {
            return Some(format!("it has {}, less than {least}", Size(backup.bytes)));
        }
        match (&backup.manifest, &self.database) {
            (None, _) if self.require_manifest => Some("it has no manifest".to_owned()),
            (Some(manifest), Some(database)) if manifest.database != *database => {
                Some(format!("it is a backup of the database {}", manifest.database))
            }
            _ => None,
        }
    }
}
