//! What a storage gives back of a backup, before it counts as one.

use std::collections::BTreeMap;

use super::Backup;
use super::restored::Proving;
use crate::dump::count::Table;
use crate::dump::proof::{Proof, prove};
use crate::dump::rows::canonical;
use crate::dump::survey::Survey;
use crate::dump::take::Taken;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::{Server, name_parts};
use crate::service::process::Command;
use crate::service::storage::Storage;
use crate::step::RunCx;

impl Backup {
    /// Reads what was published to its end. Gives what a restore of it is to come to, and its rows as [`Self::same_rows`] does.
    pub(super) async fn read_back(
        &self,
        server: &Server,
        storage: &Storage,
        taken: &Taken,
        (chosen, counted): (&[Table], &[u64]),
        major: u32,
        cx: &RunCx,
    ) -> Result<(Proof, BTreeMap<String, u64>), Failure> {
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
        if let Some(there) = proof.sha256.as_ref().filter(|there| **there != taken.sha256) {
            let message = format!("`{path}` came out with the checksum {there}, not {}", taken.sha256);
            return Err(Failure::permanent(message).help("the storage damaged it, or something else writes there"));
        }
        let rows = self.same_rows(&proof.survey, chosen, counted)?;
        match &taken.survey {
            Some(written) if hashing => same_hashes(path, written, &proof.survey)?,
            Some(written) => proof.survey.hashes.clone_from(&written.hashes),
            None => {}
        }
        Ok((proof, rows))
    }

    /// What was dumped must be what the snapshot holds: `counted` rows of each of the `chosen` tables. Gives the rows by
    /// the tables that the dump has them for. `pg_dump` writes those of a hash partition for the table at the top, where
    /// a value may belong to another partition elsewhere (`forcePartitionRootLoad` in its `pg_dump.c`).
    pub(super) fn same_rows(
        &self,
        survey: &Survey,
        chosen: &[Table],
        counted: &[u64],
    ) -> Result<BTreeMap<String, u64>, Failure> {
        let mut rows = BTreeMap::new();
        for (table, counted) in chosen.iter().zip(counted) {
            let own = table.key();
            let is_there = |name: &String| survey.rows.contains_key(name);
            let top = table.within.last().filter(|top| !is_there(&own) && is_there(top));
            if let Some(top) = top.filter(|top| !self.takes(top)) {
                return Err(Failure::permanent(format!(
                    "pg_dump writes the rows of {own} for {top}, which this backup leaves out"
                ))
                .help(format!("it could not be restored and was not kept; take {top}, too, or leave {own} out")));
            }
            *rows.entry(top.cloned().unwrap_or(own)).or_default() += counted;
        }
        for (table, counted) in &rows {
            let dumped = survey.rows.get(table).copied();
            if dumped != Some(*counted) {
                let dumped = dumped.map_or_else(|| "no rows".to_owned(), |rows| format!("{rows} rows"));
                return Err(Failure::permanent(format!(
                    "pg_dump wrote {dumped} of {table}, but its snapshot holds {counted}"
                ))
                .help("it is no backup and was not kept; see that pg_dump and the server fit each other"));
            }
        }
        Ok(rows)
    }

    /// Whether a table that is no partition is in the dump, unless it is excluded with its partitions.
    fn takes(&self, table: &str) -> bool {
        let schema = name_parts(table).map(|[schema, _]| schema);
        (self.schemas.is_empty() || schema.is_some_and(|schema| self.schemas.contains(&schema)))
            && (self.tables.is_empty() || self.tables.iter().any(|name| canonical(name) == table))
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
