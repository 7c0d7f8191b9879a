//! The backups below a prefix: which objects are some, when they were taken, which are whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use futures::StreamExt;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use regex::Regex;

use super::object_manifest::ObjectManifest;
use crate::dump::manifest::{self, Manifest};
use crate::failure::Failure;
use crate::service::storage::{Object, Storage};

/// How many manifests are read at once.
const SIDE_BY_SIDE: usize = 8;

/// A backup.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Backup {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was taken, as far as is known.
    pub taken_at: jiff::Timestamp,
    /// The latest time that it may have been taken at: the day's end, where its name says just the day.
    pub not_after: jiff::Timestamp,
    /// Its manifest, if it has one.
    pub manifest: Option<Manifest>,
    /// Whether it has a manifest, of a dump or of another object, that fits as far as shows from outside: whoever
    /// wrote it proved it.
    pub vouched: bool,
    /// Why it can't be whole, if that shows from outside.
    pub flaw: Option<String>,
    /// The objects that it is made of, companions included, in the order in which they may be removed.
    pub objects: Vec<String>,
}

/// What lies below a prefix.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Listing {
    /// The backups, the newest first; the same time: the last by name first.
    pub backups: Vec<Backup>,
    /// Manifests whose backup is gone.
    pub orphans: Vec<String>,
}

impl Listing {
    /// Looks at all that lies below `prefix`.
    pub async fn of(storage: &Storage, prefix: &str) -> Result<Self, Failure> {
        let listed = storage.list(prefix).await?;
        let names: BTreeSet<&str> = listed.iter().map(|object| object.path.as_str()).collect();
        let (companions, objects): (Vec<_>, Vec<_>) =
            listed.iter().partition(|object| manifest::is_companion(&object.path));
        let groups = group(objects);
        let orphans = companions
            .iter()
            .filter(|companion| {
                let owner = manifest::owner_of(&companion.path).unwrap_or_default();
                [manifest::path_of(owner), manifest::object_manifest_path(owner)].contains(&companion.path)
            })
            .filter(|companion| {
                manifest::owner_of(&companion.path).is_some_and(|owner| !groups.contains_key(owner))
            })
            .map(|companion| companion.path.clone())
            .collect();
        let read = futures::stream::iter(groups.into_iter().map(|(path, files)| {
            let beside = |companion: String| names.contains(companion.as_str()).then_some(companion);
            let companions = Companions {
                manifest: beside(manifest::path_of(&path)),
                object: beside(manifest::object_manifest_path(&path)),
                globals: beside(manifest::globals_path(&path)),
            };
            backup(storage, path, files, companions)
        }));
        let mut backups = vec![];
        let mut read = read.buffer_unordered(SIDE_BY_SIDE);
        while let Some(backup) = read.next().await {
            backups.push(backup?);
        }
        backups.sort_by(|one, other| (other.taken_at, &other.path).cmp(&(one.taken_at, &one.path)));
        Ok(Self { backups, orphans })
    }
}

/// Objects by the backup that they belong to: a folder with a `toc.dat` is one backup.
fn group(objects: Vec<&Object>) -> BTreeMap<String, Vec<Object>> {
    let folders: BTreeSet<&str> =
        objects.iter().filter_map(|object| object.path.strip_suffix("/toc.dat")).collect();
    let mut groups: BTreeMap<String, Vec<Object>> = BTreeMap::new();
    for object in objects {
        let folder =
            object.path.rsplit_once('/').map(|(folder, _)| folder).filter(|folder| folders.contains(folder));
        groups.entry(folder.unwrap_or(&object.path).to_owned()).or_default().push(object.clone());
    }
    groups
}

/// What lies beside a backup.
struct Companions {
    manifest: Option<String>,
    object: Option<String>,
    globals: Option<String>,
}

async fn backup(
    storage: &Storage,
    path: String,
    files: Vec<Object>,
    companions: Companions,
) -> Result<Backup, Failure> {
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let modified = files.iter().filter_map(|file| file.modified).max();
    let mut flaw = None;
    let manifest = match &companions.manifest {
        Some(_) => legible(Manifest::load(storage, &path).await, &mut flaw)?,
        None => None,
    };
    let object = match &companions.object {
        Some(_) => legible(ObjectManifest::load(storage, &path).await, &mut flaw)?,
        None => None,
    };
    let said = manifest
        .as_ref()
        .map(|manifest| (manifest.bytes, manifest.taken_at))
        .or(object.as_ref().map(|object| (object.bytes, object.taken_at)));
    if bytes == 0 {
        flaw = Some("it is empty".to_owned());
    } else if let Some((said, _)) = said
        && said != bytes
    {
        flaw = Some(format!("it has {bytes} bytes, but its manifest says {said}"));
    }
    let (taken_at, not_after) = match said {
        Some((_, taken_at)) => (taken_at, taken_at),
        None => named_time(&path, modified).unwrap_or_else(|| {
            let modified = modified.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            (modified, modified)
        }),
    };
    // A folder's table of contents goes first: without it nothing takes the rest for a backup.
    let mut objects: Vec<String> = files.into_iter().map(|file| file.path).collect();
    objects.sort_by_key(|path| !path.ends_with("/toc.dat"));
    objects.extend([companions.globals, companions.object, companions.manifest].into_iter().flatten());
    let vouched = said.is_some() && flaw.is_none();
    Ok(Backup { path, bytes, taken_at, not_after, manifest, vouched, flaw, objects })
}

/// A manifest, unless it can't be read for what it is, which is a flaw.
fn legible<T>(loaded: Result<Option<T>, Failure>, flaw: &mut Option<String>) -> Result<Option<T>, Failure> {
    match loaded {
        Err(failure) if !failure.transient => {
            *flaw = Some(failure.message);
            Ok(None)
        }
        loaded => loaded,
    }
}

/// The time in a name, in UTC: `_20240201T100000Z`, `_20240201_100000`, `_2024-02-01`. A
/// day alone is made exact by the time of writing where that lies in the same day.
pub(super) fn named_time(
    path: &str,
    modified: Option<jiff::Timestamp>,
) -> Option<(jiff::Timestamp, jiff::Timestamp)> {
    static NAMED: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(\d{4})-?(\d{2})-?(\d{2})(?:[T_-](\d{2})[-_:]?(\d{2})[-_:]?(\d{2}))?").ok());
    let name = path.rsplit('/').next()?;
    let captures = NAMED.as_ref()?.captures_iter(name).filter(|captures| alone(name, captures)).last()?;
    let number = |at: usize| captures.get(at).and_then(|part| part.as_str().parse::<i16>().ok());
    let date = jiff::civil::Date::new(number(1)?, number(2)? as i8, number(3)? as i8).ok()?;
    let utc = |time: DateTime| time.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    if let (Some(hour), Some(minute), Some(second)) = (number(4), number(5), number(6)) {
        let exact = utc(date.to_datetime(Time::new(hour as i8, minute as i8, second as i8, 0).ok()?))?;
        return Some((exact, exact));
    }
    let (from, until) = (utc(date.to_datetime(Time::midnight()))?, utc(date.to_datetime(Time::MAX))?);
    match modified.filter(|modified| (from..=until).contains(modified)) {
        Some(modified) => Some((modified, modified)),
        None => Some((from, until)),
    }
}

/// Whether digits are no part of a longer number.
fn alone(name: &str, captures: &regex::Captures<'_>) -> bool {
    let Some(whole) = captures.get(0) else { return false };
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    !digit(name[..whole.start()].chars().next_back()) && !digit(name[whole.end()..].chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_names() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        let exact = |path: &str| named_time(path, None).map(|(from, _)| from);
        assert_eq!(exact("d/auth_20240201T100000Z_4fx.dump.zst"), Some(at("2024-02-01T10:00:00Z")));
        assert_eq!(exact("auth_20240201_100000.sql.gz"), Some(at("2024-02-01T10:00:00Z")));
        assert_eq!(exact("auth-2024-02-01-10-00-00.sql.gz"), Some(at("2024-02-01T10:00:00Z")));
        assert_eq!(exact("auth_20241301.sql"), None, "there is no 13th month");
        assert_eq!(exact("auth_120240201.sql"), None, "part of a longer number");
        assert_eq!(exact("20240101/auth.sql"), None, "a folder's name is not the backup's");
        let day = named_time("auth_20240201.sql", Some(at("2024-02-01T03:00:00Z")));
        assert_eq!(day, Some((at("2024-02-01T03:00:00Z"), at("2024-02-01T03:00:00Z"))));
        let (from, until) = named_time("auth_20240201.sql", Some(at("2025-01-01T00:00:00Z"))).unwrap();
        assert!(from == at("2024-02-01T00:00:00Z") && until > at("2024-02-01T23:59:59Z"));
    }
}
