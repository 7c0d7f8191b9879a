//! Whether a backup and an archive lead to a moment: refused before anything is made.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::{Point, RecoverTo};
use crate::failure::Failure;
use crate::service::Services;
use crate::service::postgres::side::may_read;
use crate::service::postgres::wal::{Archive, BaseBackup, Lsn, Reader, Route};
use crate::service::postgres::{Server, tool};

/// A backup, an archive, and the way between them.
pub(super) struct Plan {
    pub backup: BaseBackup,
    pub archive: Archive,
    pub route: Route,
    reader: Reader,
}

impl Plan {
    pub async fn of(
        step: &RecoverTo,
        services: &Services,
        server: &Server,
        cancel: &CancellationToken,
    ) -> Result<Self, Failure> {
        let bin_dir = server.settings().bin_dir.as_deref().map(Path::new);
        let archive = Archive::list(&step.wal.locate(services)?)?;
        let backup = BaseBackup::read(&step.from.locate(services)?, Some(&archive), bin_dir).await?;
        let route = archive.route(&backup);
        let reader =
            Reader { tool: tool::find("pg_waldump", bin_dir, backup.major).await?, cancel: cancel.clone() };
        Ok(Self { backup, archive, route, reader })
    }

    /// The backup and the WAL, for people: `backup of …, WAL … to …, no gap`.
    pub fn described(&self) -> String {
        let gap = self.route.gap().map_or_else(|| "no gap".to_owned(), |gap| format!("missing {gap}"));
        let ended = self.backup.stopped_at.map_or_else(String::new, |at| format!(", ended {at}"));
        format!(
            "backup {} (consistent from {}{ended}), WAL {}, {gap}",
            self.backup.folder.display(),
            self.backup.stop,
            self.route.range(&self.backup)
        )
    }

    /// Whether the backup had ended by then, as far as the moment itself tells.
    ///
    /// # Errors
    /// When the moment lies before the backup's end.
    fn begins_before(&self, to: &Point) -> Result<(), Failure> {
        match to {
            Point::Lsn(lsn) => {
                let lsn: Lsn = lsn.parse().map_err(Failure::permanent)?;
                if lsn < self.backup.stop { Err(self.too_early(&format!("WAL position {lsn}"))) } else { Ok(()) }
            }
            Point::Time(time) => {
                let Some(stopped_at) = self.backup.stopped_at else {
                    return Err(Failure::permanent(format!(
                        "nothing tells when the backup {} had ended, so that an earlier time can't be told",
                        self.backup.folder.display()
                    ))
                    .help("use a backup of postgres.base_backup, or recover to a position or a restore point"));
                };
                if time.0 < stopped_at { Err(self.too_early(&time.to_string())) } else { Ok(()) }
            }
            Point::Name(_) | Point::Latest => Ok(()),
        }
    }

    /// Whether they may lead there once the original has archived what it has.
    ///
    /// # Errors
    /// When the moment lies before the backup's end, or is yet to come.
    pub fn may_lead_to(&self, to: &Point) -> Result<(), Failure> {
        if let Point::Time(time) = to
            && time.0 > jiff::Timestamp::now()
        {
            return Err(Failure::permanent(format!("{time} is yet to come")).help("name a moment that has passed"));
        }
        self.begins_before(to)
    }

    /// # Errors
    /// When the moment lies before the backup's end, beyond the WAL, or behind a gap.
    pub async fn leads_to(&self, to: &Point) -> Result<(), Failure> {
        let end = self.route.end(&self.backup);
        // Without the WAL up to its end no backup is consistent.
        if end < self.backup.stop {
            return Err(self.too_short("the backup's own end"));
        }
        self.begins_before(to)?;
        match to {
            Point::Latest if self.route.missing.is_empty() => Ok(()),
            Point::Latest => Err(self.too_short("the end of the archive")),
            Point::Lsn(lsn) => {
                let lsn: Lsn = lsn.parse().map_err(Failure::permanent)?;
                if lsn >= end { Err(self.too_short(&format!("WAL position {lsn}"))) } else { Ok(()) }
            }
            Point::Name(name) => match self.route.restore_point(&self.backup, &self.reader, name).await? {
                Some(at) if at >= self.backup.stop => Ok(()),
                Some(at) => Err(self.too_early(&format!("restore point `{name}` at {at}"))),
                None => Err(self.too_short(&format!("a restore point `{name}`"))),
            },
            Point::Time(time) => {
                // The server stops at the first transaction after the time: there must be one.
                match self.route.last_end(&self.backup, &self.reader).await? {
                    Some(last) if last > time.0 => Ok(()),
                    Some(last) => Err(self.too_short(&format!("{time}: its last transaction is of {last}, and"))),
                    None => Err(self.too_short(&format!("{time}: no transaction is in it, and"))),
                }
            }
        }
    }

    /// # Errors
    /// When the server's user may not read the archived WAL.
    pub async fn archive_is_readable(&self) -> Result<(), Failure> {
        may_read(&self.archive.folder).await?;
        match self.archive.newest() {
            Some(file) => may_read(&file).await,
            None => Ok(()),
        }
    }

    fn too_early(&self, what: &str) -> Failure {
        let ended = self.backup.stopped_at.map_or_else(String::new, |at| format!(" ({at})"));
        let message = format!(
            "{what} is before the end of the backup {}, {}{ended}: recovery would stop after it all the same",
            self.backup.folder.display(),
            self.backup.stop
        );
        Failure::permanent(message).help("use an older base backup, or a later moment")
    }

    fn too_short(&self, what: &str) -> Failure {
        let mut message = format!(
            "the archived WAL {} does not lead to {what}: it is there from {} to {} ({})",
            self.archive.folder.display(),
            self.backup.start,
            self.route.end(&self.backup),
            self.route.range(&self.backup)
        )
        .replace(", and: it is", ", and it is");
        let help = match self.route.gap() {
            Some(gap) => {
                message = format!("{message}; missing after it: {gap}");
                "bring the missing segments into the archive, or use a newer base backup"
            }
            None => "use an earlier moment or `latest`; if the original still runs, name it as `original`",
        };
        if !self.route.other_timelines.is_empty() {
            let others: Vec<_> = self.route.other_timelines.iter().map(ToString::to_string).collect();
            message = format!(
                "{message}; the archive goes on on timeline {}, and the backup is of {}",
                others.join(", "),
                self.backup.timeline
            );
        }
        Failure::permanent(message).help(help)
    }
}
