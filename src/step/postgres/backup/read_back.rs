//! What a storage gives back of a backup, before it counts as one, and what its rows come to.

use std::collections::BTreeMap;

use super::Backup;
use crate::dump::manifest::Format;
use crate::dump::proof::prove;
use crate::dump::rows::Hashes;
use crate::dump::survey::Survey;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::Server;
use crate::service::process::Command;
use crate::service::storage::Storage;
use crate::step::RunCx;

impl Backup {
    /// Reads what was published as a restore would: whole, the same bytes, the same rows. Gives what the rows
    /// of each table come to.
    pub(super) async fn read_back(
        &self,
        server: &Server,
        storage: &Storage,
        sha256: &str,
        rows: &BTreeMap<String, u64>,
        major: u32,
        cx: &RunCx,
    ) -> Result<Hashes, Failure> {
        let total = Some(storage.object(&self.to.path).await?.bytes);
        let watch = |done: u64, _: Option<&str>| {
            let message = Some("reading it back".to_owned());
            cx.progress(Progress { done, total, unit: ProgressUnit::Bytes, message });
        };
        let pg_restore = match self.chosen().0 {
            Format::Plain => None,
            _ => Some(Command::new(server.tool("pg_restore", major).await?.path.to_string_lossy())),
        };
        let path = &self.to.path;
        let proof = prove(storage, path, pg_restore.as_ref(), true, &cx.redactor, &cx.cancel, &watch).await?;
        match proof.sha256 {
            Some(there) if there != sha256 => {
                Err(Failure::permanent(format!("`{path}` came out with the checksum {there}, not {sha256}"))
                    .help("the storage damaged it, or something else writes there"))
            }
            _ => same_rows(&proof.survey, rows).map(|()| proof.survey.hashes),
        }
    }
}

/// What was dumped must be what the snapshot holds.
pub(super) fn same_rows(survey: &Survey, rows: &BTreeMap<String, u64>) -> Result<(), Failure> {
    for (table, counted) in rows {
        let dumped = survey.rows.get(table).copied();
        if dumped != Some(*counted) {
            let dumped = dumped.map_or_else(|| "no rows".to_owned(), |rows| format!("{rows} rows"));
            return Err(Failure::permanent(format!(
                "pg_dump wrote {dumped} of {table}, but its snapshot holds {counted}"
            ))
            .help("it is no backup and was not kept; see that pg_dump and the server fit each other"));
        }
    }
    Ok(())
}
