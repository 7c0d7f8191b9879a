//! What a storage gives back of a backup, before it counts as one.

use std::collections::BTreeMap;

use super::Backup;
use super::restored::Proving;
use crate::dump::proof::{Proof, prove};
use crate::dump::survey::Survey;
use crate::dump::take::Taken;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::Server;
use crate::service::process::Command;
use crate::service::storage::Storage;
use crate::step::RunCx;

impl Backup {
    /// Reads what was published to its end. Gives what a restore of it is to come to.
    pub(super) async fn read_back(
        &self,
        server: &Server,
        storage: &Storage,
        taken: &Taken,
        rows: &BTreeMap<String, u64>,
        major: u32,
        cx: &RunCx,
    ) -> Result<Proof, Failure> {
        let path = &self.to.path;
        let total = Some(storage.object(path).await?.bytes);
        let watch = |done: u64, _: Option<&str>| {
            let message = Some("reading it back".to_owned());
            cx.progress(Progress { done, total, unit: ProgressUnit::Bytes, message });
        };
        let pg_restore = Command::new(server.tool("pg_restore", major).await?.path.to_string_lossy());
        // Rows of plain SQL were added up while they were written. Here their number is proven, by table, and that each
        // is where it belongs; that they are the same, the checksums of object and compression say.
        let hashing = taken.survey.is_none() || self.verify == Proving::Restore;
        let mut proof = prove(storage, path, Some(&pg_restore), hashing, &cx.redactor, &cx.cancel, &watch).await?;
        match &proof.sha256 {
            Some(there) if *there != taken.sha256 => {
                let message = format!("`{path}` came out with the checksum {there}, not {}", taken.sha256);
                return Err(
                    Failure::permanent(message).help("the storage damaged it, or something else writes there")
                );
            }
            _ => same_rows(&proof.survey, rows)?,
        }
        match &taken.survey {
            Some(written) if hashing => same_hashes(path, written, &proof.survey)?,
            Some(written) => proof.survey.hashes.clone_from(&written.hashes),
            None => {}
        }
        Ok(proof)
    }
}

/// What was read of each table must be what was written.
fn same_hashes(path: &str, written: &Survey, read: &Survey) -> Result<(), Failure> {
    match written.hashes.iter().find(|(table, hash)| read.hashes.get(*table) != Some(hash)) {
        Some((table, _)) => Err(Failure::permanent(format!("`{path}` holds other rows of {table} than were read"))
            .help("it is no backup and was not kept; try again")),
        None => Ok(()),
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
