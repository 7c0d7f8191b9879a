//! Images of servers that are installed on this machine, for engines that can pull none: their files,
//! the libraries that they run with, a shell, and nothing else. They are used as the official ones are.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bollard::query_parameters::{
    CreateImageOptions, ListContainersOptions, RemoveContainerOptions, RemoveImageOptions,
};
use bollard::{Docker, body_try_stream};
use futures::TryStreamExt;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::container::{LABEL, is_missing, refused};
use super::redis_server;
use crate::failure::Failure;
use crate::service::DockerSettings;
use crate::service::docker::connect;
use crate::service::postgres::tool;
use crate::service::process::Command;

/// Whom the server in a container runs as.
const USER: u64 = 999;

/// As the official image's: makes the cluster where there is none, its superuser's password from
/// `POSTGRES_PASSWORD`. `initdb` must have ended before its folder counts as a cluster.
const POSTGRES_ENTRY: &str = r#"#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    umask 077
    printf '%s\n' "${POSTGRES_PASSWORD:?it must be set}" >/tmp/password
    initdb --username=postgres --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-instructions
    : >/tmp/password
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
fi
unset POSTGRES_PASSWORD
exec "$@" -k /tmp
"#;

/// The images that are there.
///
/// # Errors
/// When the engine can't be asked.
pub async fn made(settings: &DockerSettings, prefix: &str) -> Result<Vec<String>, Failure> {
    let docker = connect(settings)?;
    let mut found = vec![];
    for image in names(prefix) {
        match docker.inspect_image(&image).await {
            Ok(_) => found.push(image),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(refused("look at the image", &error)),
        }
    }
    Ok(found)
}

fn names(prefix: &str) -> [String; 2] {
    ["postgres", "redis"].map(|server| format!("{prefix}-{server}"))
}

/// Makes the images; of a server that isn't installed there is none.
///
/// # Errors
/// When a file can't be read, or the engine refuses.
pub async fn make(settings: &DockerSettings, prefix: &str, folder: &Path) -> Result<(), Failure> {
    let docker = connect(settings)?;
    let [postgres_image, redis_image] = names(prefix);
    if let Ok(initdb) = tool::find("initdb", None, 0).await {
        let program = std::fs::canonicalize(&initdb.path).map_err(|error| unreadable(&initdb.path, &error))?;
        let (archive, path) = postgres(&program).await?;
        let changes = [
            format!("ENV PATH={path}:/bin PGDATA=/var/lib/postgresql/data LC_ALL=C"),
            format!("USER {USER}:{USER}"),
            "ENTRYPOINT [\"/entry\"]".to_owned(),
            "CMD [\"postgres\"]".to_owned(),
        ];
        import(&docker, &postgres_image, archive, folder, &changes).await?;
    }
    if let Ok(program) = redis_server() {
        let archive = redis(&program).await?;
        let changes =
            ["ENV PATH=/usr/bin:/bin".to_owned(), "WORKDIR /data".to_owned(), "CMD [\"redis-server\"]".to_owned()];
        import(&docker, &redis_image, archive, folder, &changes).await?;
    }
    Ok(())
}

/// Removes the images that this sandbox made, and the containers that plans made of them.
///
/// # Errors
/// When the engine can't be asked, or refuses.
pub async fn remove(settings: &DockerSettings, prefix: &str, folder: &Path) -> Result<(), Failure> {
    let docker = connect(settings)?;
    // A container has the labels of its image.
    let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL}={}", folder.display())])]);
    let all = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    let containers = docker.list_containers(Some(all)).await.map_err(|error| refused("list containers", &error))?;
    for id in containers.into_iter().filter_map(|container| container.id) {
        let force = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        match docker.remove_container(&id, Some(force)).await {
            Err(error) if !is_missing(&error) => return Err(refused("remove the container", &error)),
            _ => {}
        }
    }
    for image in names(prefix) {
        let found = match docker.inspect_image(&image).await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(refused("look at the image", &error)),
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        if labels.get(LABEL).map(Path::new) != Some(folder) {
            continue;
        }
        match docker.remove_image(&image, None::<RemoveImageOptions>, None).await {
            Err(error) if !is_missing(&error) => return Err(refused("remove the image", &error)),
            _ => {}
        }
    }
    Ok(())
}

/// Hands a root file system over to the engine.
///
/// # Errors
/// When it refuses.
pub(super) async fn import(
    docker: &Docker,
    image: &str,
    archive: File,
    folder: &Path,
    changes: &[String],
) -> Result<(), Failure> {
    let (repo, tag) = image.split_once(':').unwrap_or((image, "latest"));
    let mut changes = changes.to_vec();
    changes.push(format!("LABEL {LABEL}=\"{}\"", folder.display()));
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(repo.to_owned()),
        tag: Some(tag.to_owned()),
        changes,
        ..Default::default()
    };
    let body = body_try_stream(ReaderStream::new(tokio::fs::File::from_std(archive)));
    docker
        .create_image(Some(options), Some(body), None)
        .try_for_each(|_| async { Ok(()) })
        .await
        .map_err(|error| refused(&format!("make the image {image}"), &error))
}

/// The server of that `initdb`, and the folder that its programs are in.
async fn postgres(initdb: &Path) -> Result<(File, String), Failure> {
    let bin = initdb.parent().unwrap_or(Path::new("/"));
    let ask = async |what: &str| -> Result<PathBuf, Failure> {
        let command = Command::new(bin.join("pg_config").to_string_lossy()).arg(what);
        let answer =
            command.run(None, &crate::secret::Redactor::default(), &|_| (), &CancellationToken::default()).await?;
        Ok(PathBuf::from(answer.stdout.text().trim()))
    };
    // Where pg_config is a package of its own, Debian's layout is the one there is.
    let version = bin.parent().and_then(Path::file_name).unwrap_or_default();
    let (lib, share) = match (ask("--pkglibdir").await, ask("--sharedir").await) {
        (Ok(lib), Ok(share)) if lib.is_dir() && share.is_dir() => (lib, share),
        _ => (bin.with_file_name("lib"), Path::new("/usr/share/postgresql").join(version)),
    };
    let mut root = Root::new().await?;
    root.folder(bin).await?;
    root.folder(&lib).await?;
    root.folder(&share).await?;
    for zone in ["/usr/share/zoneinfo/UTC", "/usr/share/zoneinfo/GMT"] {
        root.file(Path::new(zone)).await?;
    }
    root.text("entry", POSTGRES_ENTRY, 0o755)?;
    root.text("etc/passwd", &format!("postgres:x:{USER}:{USER}::/var/lib/postgresql:/bin/sh\n"), 0o644)?;
    root.empty_folder("tmp", 0o1777, 0)?;
    root.empty_folder("var/lib/postgresql/data", 0o700, USER)?;
    Ok((root.finish()?, bin.display().to_string()))
}

async fn redis(program: &Path) -> Result<File, Failure> {
    let mut root = Root::new().await?;
    let program = std::fs::canonicalize(program).map_err(|error| unreadable(program, &error))?;
    root.as_file(&program, Path::new("/usr/bin/redis-server")).await?;
    root.empty_folder("data", 0o755, 0)?;
    root.empty_folder("tmp", 0o1777, 0)?;
    root.finish()
}

/// A root file system in the making: each file with the libraries that it needs, at the places where
/// the loader looks for them.
struct Root {
    archive: tar::Builder<File>,
    there: BTreeSet<PathBuf>,
}

impl Root {
    /// With a shell: servers start programs by one.
    async fn new() -> Result<Self, Failure> {
        let file = tempfile::tempfile().map_err(|error| Failure::permanent(format!("make an image: {error}")))?;
        let mut archive = tar::Builder::new(file);
        archive.mode(tar::HeaderMode::Deterministic);
        // Engines don't read the form that keeps holes.
        archive.sparse(false);
        let mut root = Self { archive, there: BTreeSet::new() };
        root.as_file(Path::new("/bin/sh"), Path::new("/bin/sh")).await?;
        Ok(root)
    }

    async fn folder(&mut self, folder: &Path) -> Result<(), Failure> {
        let mut entries = vec![];
        for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
            entries.push(entry.map_err(|error| unreadable(folder, &error))?.path());
        }
        entries.sort();
        for path in entries {
            // The compiler of queries: most of the image's size, and a server does without it.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == "bitcode" || name.starts_with("llvmjit") {
                continue;
            }
            if path.is_dir() {
                Box::pin(self.folder(&path)).await?;
            } else if path.is_file() {
                self.file(&path).await?;
            }
        }
        Ok(())
    }

    async fn file(&mut self, path: &Path) -> Result<(), Failure> {
        self.as_file(path, path).await
    }

    async fn as_file(&mut self, path: &Path, name: &Path) -> Result<(), Failure> {
        self.add(path, name)?;
        let is_program = std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"));
        if is_program {
            for library in libraries(path).await? {
                self.add(&library, &library)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: &Path) -> Result<(), Failure> {
        if !self.there.insert(name.to_owned()) {
            return Ok(());
        }
        let below = name.strip_prefix("/").unwrap_or(name);
        self.archive.append_path_with_name(path, below).map_err(|error| unreadable(path, &error))
    }

    fn text(&mut self, name: &str, text: &str, mode: u32) -> Result<(), Failure> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(mode);
        let written = self.archive.append_data(&mut header, name, text.as_bytes());
        written.map_err(|error| unreadable(Path::new(name), &error))
    }

    fn empty_folder(&mut self, name: &str, mode: u32, owner: u64) -> Result<(), Failure> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        let written = self.archive.append_data(&mut header, format!("{name}/"), io::empty());
        written.map_err(|error| unreadable(Path::new(name), &error))
    }

    fn finish(self) -> Result<File, Failure> {
        let finished = self.archive.into_inner().and_then(|mut file| io::Seek::rewind(&mut file).map(|()| file));
        finished.map_err(|error| Failure::permanent(format!("make an image: {error}")))
    }
}

/// What the loader would map for a program, the loader included.
async fn libraries(program: &Path) -> Result<Vec<PathBuf>, Failure> {
    let command = Command::new("ldd").arg(program);
    let answer =
        command.run(None, &crate::secret::Redactor::default(), &|_| (), &CancellationToken::default()).await?;
    // `libc.so.6 => /lib/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let paths = answer.stdout.text();
    Ok(paths
        .lines()
        .filter_map(|line| line.rsplit_once(" (0x")?.0.split_whitespace().last())
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::permanent(format!("make an image of {}: {error}", path.display()))
}
