//! Putting an RDB file where a stopped server loads it, in place of what is there.
//!
//! With `appendonly yes` a server reads its append-only file and ignores the RDB file, or, where
//! there is none, starts empty and then overwrites the RDB file. So it gets an append-only file
//! that begins with the same RDB file. What was there is kept beside, under a name of the run's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::kill;
use crate::service::redis::Session;

/// How a server keeps its data, by its own settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub dbfilename: String,
    /// Whether it writes an append-only file, where that could be asked.
    pub appendonly: Option<bool>,
    /// The folder of append-only files; before version 7 there is one file and no folder.
    pub appenddirname: Option<String>,
    pub appendfilename: String,
}

impl Layout {
    /// As a server has it that nobody configured, as far as the folder doesn't show another.
    pub fn guessed(data_dir: &Path, dbfilename: &str) -> Self {
        let one_file = data_dir.join("appendonly.aof").is_file() && !data_dir.join("appendonlydir").exists();
        Self {
            dbfilename: dbfilename.to_owned(),
            appendonly: None,
            appenddirname: (!one_file).then(|| "appendonlydir".to_owned()),
            appendfilename: "appendonly.aof".to_owned(),
        }
    }

    /// As a running server says.
    pub async fn of(session: &Session) -> Result<Self, Failure> {
        let name = |found: Option<String>, otherwise: &str| {
            let found = found.unwrap_or_else(|| otherwise.to_owned());
            if found.is_empty() || found.contains('/') {
                return Err(Failure::permanent(format!("{} names a file `{found}`", session.place())));
            }
            Ok(found)
        };
        Ok(Self {
            dbfilename: name(session.setting("dbfilename").await?, "dump.rdb")?,
            appendonly: session.setting("appendonly").await?.map(|value| value == "yes"),
            appenddirname: match session.setting("appenddirname").await? {
                Some(found) => Some(name(Some(found), "")?),
                None => None,
            },
            appendfilename: name(session.setting("appendfilename").await?, "appendonly.aof")?,
        })
    }

    /// Where the append-only data is: a folder, or one file.
    fn append_only(&self, data_dir: &Path) -> PathBuf {
        data_dir.join(self.appenddirname.as_ref().unwrap_or(&self.appendfilename))
    }
}

/// Gives a file the owner and the mode that the server's own file has, else the folder's owner.
pub(super) fn as_the_servers(file: &Path, data_dir: &Path, layout: &Layout) -> Result<(), Failure> {
    let give = || {
        let old = match fs::metadata(data_dir.join(&layout.dbfilename)) {
            Ok(old) if old.is_file() => Some(old),
            _ => None,
        };
        let folder = fs::metadata(data_dir)?;
        let owner = old.as_ref().unwrap_or(&folder);
        own(file, owner.uid(), owner.gid())?;
        let mode = old.as_ref().map_or(0o640, |old| old.mode() & 0o777);
        fs::set_permissions(file, fs::Permissions::from_mode(mode))
    };
    give().map_err(|error| {
        Failure::permanent(format!("give {} the owner of the server's data: {error}", file.display()))
            .help("run Lifeboat as root, or as the server's user")
    })
}

fn own(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let is = fs::metadata(path)?;
    if (is.uid(), is.gid()) == (uid, gid) { Ok(()) } else { chown(path, Some(uid), Some(gid)) }
}

/// Puts the file `staged` in place. Gives whether the server finds it as an append-only file, too.
pub(super) fn place(staged: &Path, data_dir: &Path, layout: &Layout, run: &str) -> Result<bool, Failure> {
    let put = || {
        let whole = data_dir.join(&layout.dbfilename);
        let kept = beside(&whole, run);
        if whole.exists() && !kept.exists() {
            fs::hard_link(&whole, &kept)?;
            kill::point("redis place: old kept");
        }
        let append_only = layout.append_only(data_dir);
        let wanted = layout.appendonly.unwrap_or_else(|| append_only.exists());
        if wanted && append_only.exists() {
            let kept = beside(&append_only, run);
            if !kept.exists() {
                fs::rename(&append_only, &kept)?;
                kill::point("redis place: old append-only kept");
            } else if append_only.is_dir() {
                // The server's old one is kept: this one is an earlier attempt's.
                fs::remove_dir_all(&append_only)?;
            } else {
                fs::remove_file(&append_only)?;
            }
        }
        let link = hidden(data_dir, run, "rdb");
        remove(&link)?;
        fs::hard_link(staged, &link)?;
        kill::point("redis place: linked");
        fs::rename(&link, &whole)?;
        // Where an attempt before put the same file in place, the rename did nothing.
        remove(&link)?;
        kill::point("redis place: named");
        if wanted {
            let part = hidden(data_dir, run, "aof");
            remove(&part)?;
            begin_append_only(staged, &part, data_dir, layout)?;
            kill::point("redis place: append-only begun");
            fs::rename(&part, &append_only)?;
            kill::point("redis place: append-only named");
        }
        File::open(data_dir)?.sync_all()?;
        io::Result::Ok(wanted)
    };
    put().map_err(|error| {
        Failure::permanent(format!("put the file in place in {}: {error}", data_dir.display()))
            .help("the server is stopped; make room or get the rights there, then resume")
    })
}

/// An append-only file that begins with the RDB file: before version 7 that is the file itself.
fn begin_append_only(staged: &Path, part: &Path, data_dir: &Path, layout: &Layout) -> io::Result<()> {
    let like = fs::metadata(staged)?;
    let copy = |to: &Path| {
        fs::copy(staged, to)?;
        own(to, like.uid(), like.gid())?;
        File::open(to)?.sync_all()
    };
    if layout.appenddirname.is_none() {
        return copy(part);
    }
    let folder = fs::metadata(data_dir)?;
    fs::create_dir(part)?;
    let base = format!("{}.1.base.rdb", layout.appendfilename);
    copy(&part.join(&base))?;
    let manifest = part.join(format!("{}.manifest", layout.appendfilename));
    fs::write(&manifest, format!("file {base} seq 1 type b\n"))?;
    fs::set_permissions(&manifest, fs::Permissions::from_mode(like.mode() & 0o777))?;
    own(&manifest, like.uid(), like.gid())?;
    File::open(&manifest)?.sync_all()?;
    fs::set_permissions(part, fs::Permissions::from_mode(folder.mode() & 0o777))?;
    own(part, like.uid(), like.gid())?;
    File::open(part)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(is) if is.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// The name under which what was there is kept.
fn beside(path: &Path, run: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".before-{run}"));
    name.into()
}

/// A name that the server doesn't look at.
pub(super) fn hidden(data_dir: &Path, run: &str, what: &str) -> PathBuf {
    data_dir.join(format!(".lifeboat-{run}.{what}"))
}
