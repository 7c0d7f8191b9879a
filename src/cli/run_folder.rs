//! Where the runs of a command line are, and what is known of one of them.

use std::path::Path;

use crate::record::bundle::{self, Bundle, BundleError};
use crate::record::event::RunStatus;
use crate::record::proof::Flaw;
use crate::record::store::{RunFolder, Store};
use crate::report::evidence::{Evidence, Notice};
use crate::report::next;

use super::Common;
use super::exit::{Error, Exit};

/// Where runs are kept unless somebody says otherwise.
pub const DEFAULT: &str = ".lifeboat";

/// The store of `--state`.
pub fn store(common: &Common) -> Result<Store, Error> {
    Ok(Store::open(common.state.as_deref().unwrap_or(DEFAULT))?)
}

/// What a command to paste needs to find this store again.
pub fn flags(store: &Store) -> String {
    let root = store.root().display().to_string();
    if root == DEFAULT { String::new() } else { format!("--state {}", next::quote(&root)) }
}

/// A run to be looked at: one of the store's, or one in a bundle.
#[derive(Debug)]
pub enum Opened {
    Kept(RunFolder),
    Bundle(Box<Bundle>),
}

/// The run of that id, or in the bundle of that name; the latest without one.
pub fn open(run: Option<&str>, common: &Common) -> Result<Opened, Error> {
    match run.map(Path::new).filter(|path| path.is_file()) {
        Some(path) => match bundle::open(path) {
            Ok(bundle) => Ok(Opened::Bundle(Box::new(bundle))),
            Err(BundleError::Store(error)) => Err(error.into()),
            Err(error @ BundleError::Refused { .. }) => Err(Error::new(Exit::Failed, error.to_string())
                .help("`lifeboat report RUN --format bundle -o FILE` writes one")),
        },
        None => Ok(Opened::Kept(store(common)?.find(run)?)),
    }
}

impl Opened {
    pub const fn folder(&self) -> &RunFolder {
        match self {
            Self::Kept(folder) => folder,
            Self::Bundle(bundle) => &bundle.folder,
        }
    }

    /// What of a bundle is not as its manifest says.
    pub fn flaws(&self) -> &[Flaw] {
        match self {
            Self::Kept(_) => &[],
            Self::Bundle(bundle) => &bundle.flaws,
        }
    }
}

/// A run as it is on disk.
#[derive(Debug)]
pub struct Found {
    pub folder: RunFolder,
    pub evidence: Evidence,
    /// Who works on it now, in words; none when nobody does.
    pub held_by: Option<String>,
    pub torn: Option<u64>,
}

impl Found {
    pub fn read(folder: RunFolder) -> Result<Self, Error> {
        // First the lock: a run that ends in between is then shown as ended by its journal, not as killed.
        let holder = folder.holder()?;
        let contents = folder.read()?;
        let evidence = Evidence::of(&contents.records, &contents.head).map_err(|why| {
            Error::new(Exit::Failed, format!("the journal of run {} makes no sense: {why}", folder.id))
        })?;
        let held_by =
            holder.map(|known| known.map_or_else(|| "another process".to_owned(), |holder| holder.describe()));
        let last = contents.records.last().map(|record| record.at);
        let mut found = Self { folder, evidence, held_by, torn: contents.torn };
        if let (Some(message), Some(at)) = (found.torn_said(), last) {
            found.evidence.notices.push(Notice { at, step: None, message });
        }
        Ok(found)
    }

    /// What ended the process that worked on the run last, where the machine's boot tells.
    pub fn rebooted_said(&self) -> Option<String> {
        let evidence = &self.evidence;
        if evidence.status != RunStatus::Running || self.held_by.is_some() {
            return None;
        }
        let resumed = evidence.resumes.last().map(|resume| (resume.at, &resume.by));
        let undone = evidence.undo.as_ref().map(|undo| (undo.at, &undo.by));
        let begun = Some((evidence.started_at, &evidence.by));
        let (_, by) = [begun, resumed, undone].into_iter().flatten().max_by_key(|(at, _)| *at)?;
        by.is_of_an_earlier_boot()
            .then(|| format!("this machine was started anew since {} worked on the run", by.describe()))
    }

    /// What there is to say of a torn last line. A process that works on the run may be writing it just now.
    pub fn torn_said(&self) -> Option<String> {
        let bytes = self.torn.filter(|_| self.held_by.is_none())?;
        Some(format!(
            "the journal's last line is torn ({bytes} bytes, never acknowledged): nothing came of it, and it is dropped \
             when the run goes on"
        ))
    }
}
