//! A run in one file, to be kept and audited elsewhere: a tar archive of its journal, its copies of plan, environment
//! and inputs, its logs, and reports, after a manifest with the digest of each.
//!
//! An archive may come from anybody: only plain files with plain names are taken out of it, and not too much.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::files;
use super::folder::JOURNAL;
use super::journal;
use super::proof::{Flaw, file_digest, kept};
use super::store::{RunFolder, StoreError, io_error};
use crate::ids::RunId;

/// The manifest's name in the archive; it comes first.
pub const MANIFEST: &str = "manifest.json";

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

/// What an archive may hold.
const MEMBERS: usize = 20_000;
const BYTES: u64 = 4 << 30;
const MANIFEST_BYTES: u64 = 16 << 20;
/// The journal is read whole.
const JOURNAL_BYTES: u64 = 256 << 20;
/// A name too long for the archive's own header.
const NAME_BYTES: u64 = 16 << 10;

/// What a bundle holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The bundle's format.
    pub bundle: u32,
    /// The run.
    pub run: String,
    /// How many records its journal has.
    pub records: u64,
    /// SHA-256 of the journal's last line, in hex.
    pub head: String,
    /// SHA-256 and size of every other member, by its name.
    pub members: BTreeMap<String, Member>,
}

/// A member of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// SHA-256, in hex.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// A bundle that was opened: its run, in a folder that goes when this is dropped.
#[derive(Debug)]
pub struct Bundle {
    /// The run.
    pub folder: RunFolder,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What is not as it says.
    pub flaws: Vec<Flaw>,
    _place: tempfile::TempDir,
}

/// Why an archive is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The run or the file can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not what `lifeboat report --format bundle` writes.
    #[error("{path} is no bundle that can be trusted: {why}")]
    Refused {
        /// The archive.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// Writes a run and its reports (by name) into one file, for its owner alone.
///
/// # Errors
/// When the run can't be read, or the file not be written.
pub fn write(folder: &RunFolder, reports: &[(&str, Vec<u8>)], to: &Path) -> Result<Manifest, BundleError> {
    // A run that goes on writes meanwhile: what was read is what is packed.
    let journal_path = folder.journal_path();
    let bytes = std::fs::read(&journal_path).map_err(|source| io_error("read", &journal_path, source))?;
    let contents = journal::parse_all(&bytes, &journal_path).map_err(StoreError::from)?;
    let mut members = vec![(JOURNAL.to_owned(), bytes)];
    for name in kept(folder)? {
        let path = folder.path().join(&name);
        members.push((name, std::fs::read(&path).map_err(|source| io_error("read", &path, source))?));
    }
    members.extend(reports.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())));
    let manifest = Manifest {
        bundle: FORMAT,
        run: folder.id.to_string(),
        records: contents.records.len() as u64,
        head: contents.head,
        members: members
            .iter()
            .map(|(name, bytes)| {
                let member = Member { sha256: journal::sha256_hex(bytes), bytes: bytes.len() as u64 };
                (name.clone(), member)
            })
            .collect(),
    };
    let written = |source| io_error("write", to, source);
    let place = to.parent().filter(|place| !place.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Made for the owner alone, as the run's own files are.
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(place).map_err(written)?;
    pack(file.as_file_mut(), &manifest, &members).map_err(written)?;
    file.persist(to).map_err(|error| written(error.error))?;
    Ok(manifest)
}

fn pack(file: &mut File, manifest: &Manifest, members: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::new(file));
    let first = (MANIFEST.to_owned(), serde_json::to_vec_pretty(manifest)?);
    for (name, bytes) in std::iter::once(&first).chain(members) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    let file = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// Opens a bundle, and compares its members with its manifest. What the journal vouches for is another question.
///
/// # Errors
/// When it can't be read, or holds what no bundle holds.
pub fn open(path: &Path) -> Result<Bundle, BundleError> {
    let refused = |why: String| BundleError::Refused { path: path.display().to_string(), why };
    let failed = |source| BundleError::from(io_error("read", path, source));
    let file = File::open(path).map_err(failed)?;
    let place = tempfile::Builder::new().prefix("lifeboat-bundle-").tempdir().map_err(failed)?;
    let mut found = BTreeMap::new();
    let mut manifest: Option<Manifest> = None;
    let mut left = BYTES;
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    // What isn't tar is not the system's fault.
    let entries = archive.entries().map_err(|error| refused(error.to_string()))?;
    // As they are, since the crate takes extensions whole into memory: a stranger's may be of any size.
    let mut long_name = None;
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(|error| refused(error.to_string()))?;
        if entry.header().entry_type() == tar::EntryType::GNULongName && entry.size() <= NAME_BYTES {
            let mut name = Vec::new();
            entry.read_to_end(&mut name).map_err(|error| refused(error.to_string()))?;
            name.retain(|byte| *byte != 0);
            long_name = Some(name);
            continue;
        }
        let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let name = plain(Path::new(OsStr::from_bytes(&name))).ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(&name).chars().take(200).collect();
            refused(format!("it holds `{}`, which leads elsewhere", shown.escape_debug()))
        })?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(refused(format!("`{name}` in it is no plain file")));
        }
        let size = entry.size();
        if name == JOURNAL && size > JOURNAL_BYTES {
            return Err(refused(format!("its journal is larger than {}", crate::units::Size(JOURNAL_BYTES))));
        }
        left = left.checked_sub(size).filter(|_| found.len() < MEMBERS).ok_or_else(|| {
            refused(format!("it holds more than {MEMBERS} files or {}", crate::units::Size(BYTES)))
        })?;
        if name == MANIFEST && manifest.is_none() && found.is_empty() {
            let mut text = Vec::new();
            entry.take(MANIFEST_BYTES).read_to_end(&mut text).map_err(|error| refused(error.to_string()))?;
            let parsed = serde_json::from_slice::<Manifest>(&text);
            let parsed = parsed.map_err(|error| refused(format!("its {MANIFEST} is damaged: {error}")))?;
            if serde_json::to_vec_pretty(&parsed).unwrap_or_default() != text {
                return Err(refused(format!("its {MANIFEST} is not as it was written")));
            }
            manifest = Some(parsed);
            continue;
        }
        if manifest.is_none() {
            return Err(refused(format!("it does not begin with {MANIFEST}")));
        }
        let to = place.path().join(&name);
        let parent = to.parent().unwrap_or(place.path());
        let made = files::make_folder(parent).and_then(|()| files::create_new(&to)).and_then(|mut file| {
            let copied = io::copy(&mut entry, &mut file)?;
            file.flush()?;
            Ok(copied)
        });
        let copied = made.map_err(|error| refused(format!("`{name}` can't be taken out of it: {error}")))?;
        if copied != size {
            return Err(refused(format!("it is cut off in `{name}`")));
        }
        found.insert(name, Member { sha256: file_digest(&to).map_err(failed)?, bytes: size });
    }
    let manifest = manifest.ok_or_else(|| refused("it is empty".to_owned()))?;
    if manifest.bundle > FORMAT {
        return Err(refused(format!("its format is {}, and this version reads up to {FORMAT}", manifest.bundle)));
    }
    let id = RunId::parse(&manifest.run).map_err(|_| refused("its run has no id".to_owned()))?;
    let flaws = compare(&manifest, &found);
    Ok(Bundle { folder: RunFolder::at(id, place.path().to_owned()), manifest, flaws, _place: place })
}

impl Bundle {
    /// What its manifest says of the journal and is not so.
    pub fn disagreements(&self, contents: &journal::Contents, run: &str) -> Vec<Flaw> {
        let records = contents.records.len() as u64;
        let pairs = [
            ("run", self.manifest.run.clone(), run.to_owned()),
            ("records", self.manifest.records.to_string(), records.to_string()),
            ("head", self.manifest.head.clone(), contents.head.clone()),
        ];
        let differ = pairs.into_iter().filter(|(_, said, found)| said != found);
        differ
            .map(|(what, said, found)| {
                Flaw::new(MANIFEST, format!("its {what} is {said}, the journal's is {found}"))
            })
            .collect()
    }
}

fn compare(manifest: &Manifest, found: &BTreeMap<String, Member>) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    for (name, member) in &manifest.members {
        match found.get(name) {
            None => flaws.push(Flaw::new(name, "it is not in the bundle, though its manifest lists it")),
            Some(found) if found != member => flaws.push(Flaw::new(
                name,
                format!("its SHA-256 is {}, and {MANIFEST} says {}", found.sha256, member.sha256),
            )),
            Some(_) => {}
        }
    }
    let unlisted = found.keys().filter(|name| !manifest.members.contains_key(*name));
    flaws.extend(unlisted.map(|name| Flaw::new(name, format!("{MANIFEST} does not list it"))));
    flaws
}

/// A name of folders and a file, below wherever it is put.
fn plain(name: &Path) -> Option<String> {
    let all_plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let text = name.to_str()?;
    let sound = all_plain && !text.is_empty() && !text.ends_with('/') && !text.contains(['\0', '\\']);
    sound.then(|| text.to_owned())
}
