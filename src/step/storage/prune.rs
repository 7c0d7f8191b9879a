//! `storage.prune`: removes old backups, never the newest good one.
//!
//! Time is counted back from the newest backup, not from this machine's clock: when the
//! backups stop, or a clock is wrong, nothing is removed that should have been kept.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::ToSpan;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::backups::{Backup, Listing};
use super::check_object_path;
use super::object_manifest::ObjectManifest;
use super::verify::read_through;
use crate::dump::proof::Watch;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::Services;
use crate::service::storage::Storage;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::Size;

/// Removes old backups. What `keep` names stays, and the newest good backup always does. Only what has a manifest
/// is counted: a backup that a step took and proved. Anything else, and what turns out to be damaged when the newest
/// are read, takes nobody's place and goes once it is older than all that stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// The storage.
    #[schemars(extend("x-target" = "storage"))]
    target: String,
    /// What the backups' paths begin with.
    #[schemars(length(min = 1))]
    prefix: String,
    /// What stays; a backup that any of these names does.
    keep: Keep,
}

/// What stays.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Keep {
    /// So many of the newest.
    #[schemars(range(min = 1))]
    last: Option<u32>,
    /// All that are at most so many days older than the newest.
    #[schemars(range(min = 1))]
    days: Option<u32>,
    /// The newest of each of the last so many weeks.
    #[schemars(range(min = 1))]
    weekly: Option<u32>,
    /// The newest of each of the last so many months.
    #[schemars(range(min = 1))]
    monthly: Option<u32>,
}

impl StepType for Prune {
    const NAME: &'static str = "storage.prune";
    const SUMMARY: &'static str = "Removes old backups, never the newest good one.";

    fn outputs() -> Vec<Output> {
        vec![
            output("removed", ValueKind::List, "The paths of the backups that were removed."),
            output("kept", ValueKind::List, "The paths of those that were kept."),
        ]
    }
}

#[async_trait]
impl Step for Prune {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::new(Access::Destroy, Resource::object(&self.target, &format!("{}*", self.prefix)))]
    }

    fn check(&self, found: &mut Findings) {
        if self.prefix.is_empty() {
            found.add(
                "/prefix",
                "an empty prefix would prune the whole storage",
                Some("name what the backups' paths begin with".to_owned()),
            );
        } else {
            check_object_path(found, "/prefix", self.prefix.strip_suffix('/').unwrap_or(&self.prefix));
        }
        let Keep { last, days, weekly, monthly } = self.keep;
        if [last, days, weekly, monthly].into_iter().flatten().next().is_none() {
            found.add(
                "/keep",
                "it names nothing to keep",
                Some("write `keep: { last: 7 }`, or `days`, `weekly`, `monthly`".to_owned()),
            );
        }
        for (name, value) in [("last", last), ("days", days), ("weekly", weekly), ("monthly", monthly)] {
            if value == Some(0) {
                found.add(
                    format!("/keep/{name}"),
                    format!("`{name}: 0` keeps nothing"),
                    Some("leave it out".to_owned()),
                );
            }
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("remove old backups {}* from {}", self.prefix, self.target);
        let Some(services) = cx.services else { return Preview::from_effects(&self.effects(), summary) };
        if cx.is_unknown("/prefix") || cx.is_unknown("/keep") {
            return Preview::from_effects(&self.effects(), summary);
        }
        let listing = match self.listing(services).await {
            Ok((_, listing)) => listing,
            Err(failure) => return Preview::failed(failure),
        };
        let (removed, kept) = self.divide(&listing, &BTreeSet::new());
        let certainty = match cx.world.touching(&Resource::object(&self.target, &format!("{}*", self.prefix))) {
            Some(_) => Certainty::Assumed,
            None => Certainty::Observed,
        };
        if removed.is_empty() {
            return Preview::new(Action::None, certainty, format!("{summary}: none, {} stay", kept.len()));
        }
        let bytes = removed.iter().map(|backup| backup.bytes).sum();
        let paths: Vec<_> = removed.iter().map(|backup| backup.path.as_str()).collect();
        let summary = format!(
            "{summary}: {} of {} ({}): {}",
            removed.len(),
            removed.len() + kept.len(),
            Size(bytes),
            paths.join(", ")
        );
        removed.iter().fold(Preview::new(Action::Destroy, certainty, summary), |preview, backup| {
            preview.fact(Resource::object(&self.target, &backup.path), Fact::Absent)
        })
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        tokio::select! {
            done = self.prune(cx) => done,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("prune {}*: cancelled", self.prefix))),
        }
    }

    async fn after_kill(&self, _cx: &RunCx) -> Result<AfterKill, Failure> {
        Ok(AfterKill::RunAgain { why: "what is removed is gone, the rest is judged anew".to_owned() })
    }
}

/// What attempts before noted that they remove, and did.
fn removed_before(cx: &RunCx, listing: &Listing) -> Vec<String> {
    let noted = cx.notes.iter().filter_map(|(_, note)| note["remove"].as_array()).flatten();
    let paths = noted.filter_map(|path| path.as_str().map(str::to_owned));
    let mut gone: Vec<String> = Vec::new();
    for path in paths.filter(|path| listing.backups.iter().all(|backup| backup.path != *path)) {
        if !gone.contains(&path) {
            gone.push(path);
        }
    }
    gone
}

impl Prune {
    async fn listing(&self, services: &Services) -> Result<(Storage, Listing), Failure> {
        let storage = services.storage(&self.target)?;
        let listing = Listing::of(&storage, &self.prefix).await?;
        Ok((storage, listing))
    }

    async fn prune(&self, cx: &RunCx) -> Result<Done, Failure> {
        let (storage, listing) = self.listing(&cx.services).await?;
        let (mut removed, mut kept) = self.divide(&listing, &BTreeSet::new());
        if !removed.is_empty() {
            let rotten = self.rotten(cx, &storage, &listing).await?;
            (removed, kept) = self.divide(&listing, &rotten);
        }
        let names = |backups: &[&Backup]| backups.iter().map(|backup| backup.path.clone()).collect::<Vec<_>>();
        cx.log(&format!("remove: {}\nkeep: {}\n", names(&removed).join(", "), names(&kept).join(", ")));
        if !removed.is_empty() {
            cx.note(json!({ "remove": names(&removed) })).await?;
        }
        for (at, backup) in removed.iter().enumerate() {
            cx.progress(Progress {
                done: at as u64,
                total: Some(removed.len() as u64),
                unit: ProgressUnit::Items,
                message: Some(backup.path.clone()),
            });
            for object in &backup.objects {
                storage.delete(object).await?;
            }
        }
        for orphan in &listing.orphans {
            storage.delete(orphan).await?;
        }
        let bytes = removed.iter().map(|backup| backup.bytes).sum();
        // What an attempt before removed is this step's doing as well.
        let mut all = removed_before(cx, &listing);
        all.extend(names(&removed));
        Ok(Done::new(format!("{} removed ({}), {} kept", all.len(), Size(bytes), kept.len()))
            .output("removed", all)
            .output("kept", names(&kept)))
    }

    /// Reads the newest backups whole, until one is good. Gives those that are not.
    async fn rotten<'a>(
        &self,
        cx: &RunCx,
        storage: &Storage,
        listing: &'a Listing,
    ) -> Result<BTreeSet<&'a str>, Failure> {
        let (mut rotten, mut flaws) = (BTreeSet::new(), vec![]);
        for backup in listing.backups.iter().filter(|backup| backup.vouched) {
            let watch = |done: u64, _: Option<&str>| {
                cx.progress(Progress {
                    done,
                    total: Some(backup.bytes),
                    unit: ProgressUnit::Bytes,
                    message: Some(format!("reading {}, the newest", backup.path)),
                });
            };
            match read_as_written(storage, &backup.path, &cx.services, &watch).await {
                Ok(()) => return Ok(rotten),
                Err(failure) if failure.transient => return Err(failure),
                Err(failure) => {
                    cx.log(&format!("{} is not good: {failure}\n", backup.path));
                    flaws.push(format!("{}: {failure}", backup.path));
                    rotten.insert(backup.path.as_str());
                }
            }
        }
        flaws.truncate(3);
        Err(Failure::permanent(format!(
            "no backup {}* is good, so none is removed ({})",
            self.prefix,
            flaws.join("; ")
        ))
        .help("take a good backup first"))
    }

    /// What goes and what stays, of backups of which some were found to be rotten.
    fn divide<'a>(&self, listing: &'a Listing, rotten: &BTreeSet<&str>) -> (Vec<&'a Backup>, Vec<&'a Backup>) {
        let counts = |backup: &&Backup| backup.vouched && !rotten.contains(backup.path.as_str());
        let good: Vec<&Backup> = listing.backups.iter().filter(counts).collect();
        let Some(newest) = good.first() else { return (vec![], listing.backups.iter().collect()) };
        let mut keep: BTreeSet<&str> = BTreeSet::from([newest.path.as_str()]);
        keep.extend(good.iter().take(self.keep.last.unwrap_or(0) as usize).map(|backup| backup.path.as_str()));
        if let Some(days) = self.keep.days
            && let Ok(since) = newest.taken_at.checked_sub((24 * i64::from(days)).hours())
        {
            keep.extend(good.iter().filter(|backup| backup.taken_at >= since).map(|backup| backup.path.as_str()));
        }
        let date = |backup: &Backup| backup.taken_at.to_zoned(TimeZone::UTC).date();
        let week = |backup: &Backup| {
            let week = date(backup).iso_week_date();
            (week.year(), week.week())
        };
        let month = |backup: &Backup| (date(backup).year(), date(backup).month());
        keep.extend(newest_of_each(&good, self.keep.weekly, week));
        keep.extend(newest_of_each(&good, self.keep.monthly, month));
        let stays = |backup: &&&Backup| keep.contains(backup.path.as_str());
        let oldest = good.iter().filter(stays).map(|backup| backup.taken_at).min().unwrap_or(newest.taken_at);
        listing.backups.iter().partition(|backup| {
            // What doesn't count may be a backup that is being written, or another program's.
            let until = if counts(backup) { newest.taken_at } else { oldest };
            !keep.contains(backup.path.as_str()) && backup.taken_at < until
        })
    }
}

/// Reads an object to its end: it must be whole, and what its manifest says.
async fn read_as_written(
    storage: &Storage,
    path: &str,
    services: &Services,
    watch: Watch<'_>,
) -> Result<(), Failure> {
    let read = read_through(storage, path, services, watch).await?;
    match ObjectManifest::load(storage, path).await? {
        Some(manifest) => manifest.check(path, read.bytes, &read.sha256),
        None => Ok(()),
    }
}

fn newest_of_each<'a>(
    good: &[&'a Backup],
    count: Option<u32>,
    period: impl Fn(&Backup) -> (i16, i8),
) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    good.iter()
        .filter(|backup| seen.len() < count.unwrap_or(0) as usize && seen.insert(period(backup)))
        .map(|backup| backup.path.as_str())
        .collect()
}
