//! What a storage gives back of a backup, before it counts as one.

use std::collections::BTreeMap;

use super::Backup;
use super::restored::Proving;
use crate::dump::proof::{Proof, Watch, prove};
use crate::dump::source::{PIECE, Source};
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
        major: u32,
        cx: &RunCx,
    ) -> Result<Proof, Failure> {
        let path = &self.to.path;
        let total = Some(storage.object(path).await?.bytes);
        let watch = |done: u64, _: Option<&str>| {
            let message = Some("reading it back".to_owned());
            cx.progress(Progress { done, total, unit: ProgressUnit::Bytes, message });
        };
        let proof = match &taken.survey {
            Some(survey) if self.verify == Proving::Read => same_text(storage, path, survey, cx, &watch).await?,
            _ => {
                let pg_restore = Command::new(server.tool("pg_restore", major).await?.path.to_string_lossy());
                prove(storage, path, Some(&pg_restore), true, &cx.redactor, &cx.cancel, &watch).await?
            }
        };
        if let Some(survey) = &taken.survey
            && let Some(table) =
                survey.hashes.keys().find(|key| survey.hashes.get(*key) != proof.survey.hashes.get(*key))
        {
            let message = format!("`{path}` holds other rows of {table} than were written");
            return Err(Failure::permanent(message).help("it is no backup and was not kept; try again"));
        }
        match &proof.sha256 {
            Some(there) if *there != taken.sha256 => Err(Failure::permanent(format!(
                "`{path}` came out with the checksum {there}, not {}",
                taken.sha256
            ))
            .help("the storage damaged it, or something else writes there")),
            _ => Ok(proof),
        }
    }
}

/// Plain SQL was proven whole, and its rows added up, while it was written. The same bytes that decompress to their
/// end, to the text that the compression's own checksum is of, are the same dump.
async fn same_text(
    storage: &Storage,
    path: &str,
    survey: &Survey,
    cx: &RunCx,
    watch: Watch<'_>,
) -> Result<Proof, Failure> {
    let mut source = Source::open(storage, path, &cx.cancel).await?;
    let mut buffer = vec![0; PIECE];
    while source.read(&mut buffer).await? > 0 {
        watch(source.checksum.bytes(), None);
    }
    source.read_to_end().await?;
    Ok(Proof {
        sha256: Some(source.checksum.hex()),
        object: source.object,
        format: source.format,
        compression: source.compression,
        survey: survey.clone(),
        manifest: None,
    })
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
