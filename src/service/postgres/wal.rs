//! Archived WAL and base backups as files: positions, segments, what an archive holds, where
//! it has gaps, what a backup says of itself. Reads only.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::tool;
use crate::failure::Failure;
use crate::secret::Redactor;
use crate::service::process::Command;

/// A position in the WAL, as `0/3000028`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let half = |part: &str| {
            let hex = (1..=8).contains(&part.len()) && part.chars().all(|c| c.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        let parts = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let (high, low) = parts.ok_or_else(|| format!("`{text}` is not a WAL position: write it as 0/3000028"))?;
        Ok(Self((high << 32) | low))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// What Lifeboat keeps beside a base backup that it took, as `<folder>.lifeboat.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Passport {
    /// The server's clock before it began.
    pub taken_at: jiff::Timestamp,
    /// The server's clock when it had ended.
    pub stopped_at: jiff::Timestamp,
    /// The cluster's identity, where the role could ask.
    pub system_identifier: Option<String>,
    /// The run that took it.
    pub run: String,
    /// The step that took it.
    pub step: String,
}

impl Passport {
    /// Where it lies.
    pub fn file(backup: &Path) -> PathBuf {
        let mut name = backup.file_name().unwrap_or_default().to_owned();
        name.push(".lifeboat.json");
        backup.with_file_name(name)
    }

    /// That of a backup, if it has one.
    pub fn of(backup: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(backup)).ok()?).ok()
    }
}

/// A base backup in a folder, in plain format, as its own files describe it.
#[derive(Clone, Debug)]
pub struct BaseBackup {
    /// Where it lies.
    pub folder: PathBuf,
    /// The server's major version.
    pub major: u32,
    /// The timeline that it was taken on.
    pub timeline: u32,
    /// Where replay must begin.
    pub start: Lsn,
    /// Where it is consistent: nothing before can be reached.
    pub stop: Lsn,
    /// When it had ended, where something tells.
    pub stopped_at: Option<jiff::Timestamp>,
    /// The size of a WAL segment.
    pub segment_size: u64,
    /// Settings of the primary that a server which replays its WAL must not go below.
    pub floors: Vec<(&'static str, String)>,
}

/// As pg_controldata calls them, and as a configuration does.
const FLOORS: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

impl BaseBackup {
    /// Reads what a backup says of itself. `archive` may hold its history file.
    ///
    /// # Errors
    /// When the folder is none, or some of its files are missing.
    pub async fn read(folder: &Path, archive: Option<&Archive>, bin_dir: Option<&Path>) -> Result<Self, Failure> {
        let none = |why: String| {
            Failure::permanent(format!("{} is no base backup: {why}", folder.display()))
                .help("name the folder that postgres.base_backup or `pg_basebackup --format=plain` wrote")
        };
        let text = |name: &str| {
            let file = folder.join(name);
            fs::read_to_string(&file).map_err(|error| none(format!("{name}: {error}")))
        };
        let version = text("PG_VERSION")?;
        let major = version.trim().parse().map_err(|_| none(format!("its version is `{}`", version.trim())))?;
        let manifest: Value = serde_json::from_str(&text("backup_manifest")?)
            .map_err(|error| none(format!("backup_manifest: {error}")))?;
        let range = &manifest["WAL-Ranges"][0];
        let at = |key: &str| range[key].as_str().and_then(|text| text.parse::<Lsn>().ok());
        let timeline = range["Timeline"].as_u64().and_then(|timeline| u32::try_from(timeline).ok());
        let (Some(timeline), Some(start), Some(stop)) = (timeline, at("Start-LSN"), at("End-LSN")) else {
            return Err(none("backup_manifest names no range of WAL".to_owned()));
        };
        if manifest["WAL-Ranges"].as_array().is_some_and(|ranges| ranges.len() > 1) {
            return Err(none("it spans a change of timeline".to_owned()));
        }
        let pg_controldata = tool::find("pg_controldata", bin_dir, major).await?;
        let control = control_data(&pg_controldata, folder).await?;
        let field = |name: &str| control_field(&control, name);
        let segment_size = field("Bytes per WAL segment")
            .and_then(|size| size.parse::<u64>().ok())
            .filter(|size| size.is_power_of_two() && *size >= 1 << 20)
            .ok_or_else(|| none("pg_controldata does not tell the size of its WAL segments".to_owned()))?;
        let floors =
            FLOORS.iter().filter_map(|(told, setting)| Some((*setting, field(told)?.to_owned()))).collect();
        let mut backup = Self {
            folder: folder.to_owned(),
            major,
            timeline,
            start,
            stop,
            stopped_at: Passport::of(folder).map(|passport| passport.stopped_at),
            segment_size,
            floors,
        };
        if let Some(archive) = archive
            && backup.stopped_at.is_none()
        {
            backup.stopped_at = archive.stop_time(&backup);
        }
        Ok(backup)
    }

    /// The number of the segment that holds a position.
    const fn segment(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.segment_size
    }

    /// A segment's file name on the backup's timeline.
    pub fn segment_name(&self, number: u64) -> String {
        let per_file = (1 << 32) / self.segment_size;
        format!("{:08X}{:08X}{:08X}", self.timeline, number / per_file, number % per_file)
    }
}

/// What pg_controldata prints of a data folder.
pub(super) async fn control_data(tool: &tool::Tool, folder: &Path) -> Result<String, Failure> {
    let told = tokio::process::Command::new(&tool.path)
        .arg(folder)
        .env("LC_ALL", "C")
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Failure::permanent(format!("run pg_controldata: {error}")))?;
    if !told.status.success() {
        let said = String::from_utf8_lossy(&told.stderr);
        return Err(Failure::permanent(format!("read {} with pg_controldata: {}", folder.display(), said.trim())));
    }
    Ok(String::from_utf8_lossy(&told.stdout).into_owned())
}

pub(super) fn control_field<'a>(control: &'a str, name: &str) -> Option<&'a str> {
    let found = control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.map(str::trim)
}

/// A folder of archived WAL segments, under their own names.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Where it lies.
    pub folder: PathBuf,
    files: BTreeSet<String>,
}

impl Archive {
    /// Lists an archive.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn list(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::permanent(format!("list the archived WAL in {}: {error}", folder.display()))
                .help("name the folder that the server's archive_command copies to")
        };
        let folder = fs::canonicalize(folder).map_err(failed)?;
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            files.insert(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        Ok(Self { folder, files })
    }

    /// Its last segment, if it has one.
    pub fn newest(&self) -> Option<PathBuf> {
        self.files.iter().rfind(|name| name.len() == 24).map(|name| self.folder.join(name))
    }

    /// When the backup had ended, by its history file. One whose zone is not UTC tells nothing.
    fn stop_time(&self, backup: &BaseBackup) -> Option<jiff::Timestamp> {
        let name = backup.segment_name(backup.segment(backup.start));
        let offset = backup.start.0 % backup.segment_size;
        let text = fs::read_to_string(self.folder.join(format!("{name}.{offset:08X}.backup"))).ok()?;
        let told = text.lines().find_map(|line| line.strip_prefix("STOP TIME: "))?;
        let told = told.strip_suffix(" UTC").or_else(|| told.strip_suffix(" GMT"))?;
        // It is cut to the second: the end lies before the next one.
        let at: jiff::Timestamp = format!("{}Z", told.replacen(' ', "T", 1)).parse().ok()?;
        at.checked_add(jiff::SignedDuration::from_secs(1)).ok()
    }

    /// What of the backup's timeline is there: in the archive, or in the backup itself.
    pub fn route(&self, backup: &BaseBackup) -> Route {
        let there = |number: u64| {
            let name = backup.segment_name(number);
            self.files.contains(&name) || backup.folder.join("pg_wal").join(name).is_file()
        };
        let first = backup.segment(backup.start);
        let prefix = format!("{:08X}", backup.timeline);
        let is_segment = |name: &&String| name.len() == 24 && name.starts_with(&prefix);
        let newest = self.files.iter().rev().find(is_segment);
        let newest = newest.and_then(|name| segment_number(name, backup.segment_size));
        let newest = newest.unwrap_or(0).max(backup.segment(Lsn(backup.stop.0 - 1)));
        let missing: Vec<u64> = (first..=newest).filter(|number| !there(*number)).collect();
        let last = missing.first().map_or(Some(newest), |gap| gap.checked_sub(1).filter(|last| *last >= first));
        let histories = self.files.iter().filter_map(|name| name.strip_suffix(".history"));
        let timelines = histories.filter_map(|name| u32::from_str_radix(name, 16).ok());
        Route {
            archive: self.folder.clone(),
            first,
            last,
            missing: missing.into_iter().map(|number| backup.segment_name(number)).collect(),
            other_timelines: timelines.filter(|timeline| *timeline > backup.timeline).collect(),
        }
    }
}

fn segment_number(name: &str, segment_size: u64) -> Option<u64> {
    let high = u64::from_str_radix(name.get(8..16)?, 16).ok()?;
    let low = u64::from_str_radix(name.get(16..24)?, 16).ok()?;
    Some(high * ((1 << 32) / segment_size) + low)
}

/// The WAL that leads on from a backup.
#[derive(Clone, Debug)]
pub struct Route {
    archive: PathBuf,
    first: u64,
    /// The last segment before the first gap.
    last: Option<u64>,
    /// Segments that are missing though later ones are there.
    pub missing: Vec<String>,
    /// Timelines that branched off later.
    pub other_timelines: Vec<u32>,
}

impl Route {
    /// `000000010000000000000002 to 000000010000000000000005`.
    pub fn range(&self, backup: &BaseBackup) -> String {
        let first = backup.segment_name(self.first);
        match self.last {
            Some(last) if last > self.first => format!("{first} to {}", backup.segment_name(last)),
            Some(_) => first,
            None => "none".to_owned(),
        }
    }

    /// The end of what is there without a gap.
    pub fn end(&self, backup: &BaseBackup) -> Lsn {
        self.last.map_or(backup.start, |last| Lsn((last + 1) * backup.segment_size))
    }

    /// The missing segments by name, at most five.
    pub fn gap(&self) -> Option<String> {
        let named = self.missing.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let more = self.missing.len().saturating_sub(5);
        (!named.is_empty()).then(|| if more > 0 { format!("{named} and {more} more") } else { named })
    }

    fn file(&self, backup: &BaseBackup, number: u64) -> PathBuf {
        let name = backup.segment_name(number);
        let archived = self.archive.join(&name);
        if archived.is_file() { archived } else { backup.folder.join("pg_wal").join(name) }
    }

    /// The time of the last transaction that ended in the WAL that is there without a gap.
    ///
    /// # Errors
    /// When pg_waldump can't be run.
    pub async fn last_end(&self, backup: &BaseBackup, reader: &Reader) -> Result<Option<jiff::Timestamp>, Failure> {
        let Some(last) = self.last else { return Ok(None) };
        for number in (self.first..=last).rev() {
            let mut latest: Option<jiff::Timestamp> = None;
            reader
                .scan(&self.file(backup, number), "Transaction", |line| {
                    let at = END.captures(line).map(|found| format!("{}T{}Z", &found[1], &found[2]));
                    latest = latest.max(at.and_then(|at| at.parse().ok()));
                    false
                })
                .await?;
            if latest.is_some() {
                return Ok(latest);
            }
        }
        Ok(None)
    }

    /// Where a named restore point is; the first after the backup's end, else one before it.
    ///
    /// # Errors
    /// When pg_waldump can't be run.
    pub async fn restore_point(
        &self,
        backup: &BaseBackup,
        reader: &Reader,
        name: &str,
    ) -> Result<Option<Lsn>, Failure> {
        let mut found = None;
        let Some(last) = self.last else { return Ok(None) };
        for number in self.first..=last {
            reader
                .scan(&self.file(backup, number), "XLOG", |line| {
                    if line.split_once("desc: RESTORE_POINT ").is_some_and(|(_, named)| named.trim_end() == name) {
                        found = POSITION.captures(line).and_then(|at| at[1].parse::<Lsn>().ok());
                    }
                    found.is_some_and(|at| at >= backup.stop)
                })
                .await?;
            if found.is_some_and(|at| at >= backup.stop) {
                break;
            }
        }
        Ok(found)
    }
}

#[allow(clippy::expect_used, reason = "the patterns are constants; a test compiles them")]
static END: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"desc: (?:COMMIT|ABORT)\S* .*?(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?) (?:UTC|GMT)")
        .expect("a valid pattern")
});

#[allow(clippy::expect_used, reason = "the patterns are constants; a test compiles them")]
static POSITION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"lsn: ([0-9A-F]+/[0-9A-F]+),").expect("a valid pattern"));

/// Reads WAL segments with pg_waldump.
#[derive(Debug)]
pub struct Reader {
    /// pg_waldump of the cluster's version.
    pub tool: tool::Tool,
    /// Ends it.
    pub cancel: CancellationToken,
}

impl Reader {
    /// Hands the records of one segment over, a line each, until `seen` is content. That a
    /// segment's last record goes on in the next one is no failure.
    async fn scan(&self, file: &Path, kind: &str, mut seen: impl FnMut(&str) -> bool) -> Result<(), Failure> {
        let command = Command::new(self.tool.path.to_string_lossy()).env("TZ", "UTC").env("LC_ALL", "C");
        let command = command.arg(format!("--rmgr={kind}")).arg(file);
        let mut process = command.start(false, &Redactor::default())?;
        let failed = |error: std::io::Error| Failure::permanent(format!("read {}: {error}", file.display()));
        if let Some(stdout) = process.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            loop {
                let line = tokio::select! {
                    line = lines.next_line() => line.map_err(failed)?,
                    () = self.cancel.cancelled() => return Err(Failure::transient("read the WAL: cancelled")),
                };
                match line {
                    Some(line) if seen(&line) => {
                        process.stop().await;
                        return Ok(());
                    }
                    Some(_) => {}
                    None => break,
                }
            }
        }
        process.wait(&self.cancel).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_segments() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.to_string(), "16/B374D848");
        for bad in ["", "16", "x/1", "1/123456789", "+1/2"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
        assert_eq!(segment_number("0000000100000016000000B3", 16 << 20), Some(0x16B3));
        let line = "rmgr: Transaction len (rec/tot): 34/34, tx: 730, lsn: 0/03000060, prev 0/03000028, \
                    desc: COMMIT 2026-11-24 11:00:00.123456 UTC; inval msgs: catcache 55";
        assert_eq!(&END.captures(line).unwrap()[2], "11:00:00.123456");
        assert_eq!(&POSITION.captures(line).unwrap()[1], "0/03000060");
    }
}
