//! This program in a container, without any registry: an image made of its own file, the
//! libraries that it runs with and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, LogsOptions, RemoveContainerOptions, RemoveImageOptions};
use futures::TryStreamExt;

use super::image::import;
use crate::failure::Failure;
use crate::secret::Secret;
use crate::service::DockerSettings;
use crate::service::docker::connect;

/// The label of what a sandbox made, with the sandbox's folder as its value.
pub const LABEL: &str = "lifeboat.sandbox";
/// The bound on an engine's first answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Where the program lies in its image.
const PROGRAM: &str = "/lifeboat";

/// A container to run this program in.
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// The program's arguments.
    pub args: Vec<String>,
    /// Variables, the place for what is secret.
    pub env: Vec<(&'static str, Secret)>,
    /// The sandbox that it belongs to.
    pub folder: &'a Path,
}

/// Whether an engine answers there.
///
/// # Errors
/// Why it doesn't.
pub async fn reachable(settings: &DockerSettings) -> Result<(), Failure> {
    let docker = connect(settings)?;
    match tokio::time::timeout(ANSWER, docker.ping()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(refused("ask the Docker engine", &error)),
        Err(_) => Err(Failure::transient("the Docker engine does not answer")),
    }
}

/// Whether a container of that name runs; `None` when there is none.
///
/// # Errors
/// When the engine can't be asked.
pub async fn runs(settings: &DockerSettings, name: &str) -> Result<Option<bool>, Failure> {
    match connect(settings)?.inspect_container(name, None).await {
        Ok(found) => Ok(Some(found.state.and_then(|state| state.running).unwrap_or(false))),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(refused("look at the container", &error)),
    }
}

/// Makes the image and starts the container. One that is there already is started if it is
/// this sandbox's own, and left alone if it is somebody else's.
///
/// # Errors
/// When the engine refuses; then nothing is left of it.
pub async fn start(settings: &DockerSettings, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let docker = connect(settings)?;
    match docker.inspect_container(wanted.name, None).await {
        Ok(found) => {
            if !is_own(found, wanted.folder) {
                return Err(Failure::permanent(format!(
                    "there is a container `{}` that is not this sandbox's",
                    wanted.name
                ))
                .help("name another one in the environment's `sandbox: { container: … }`"));
            }
        }
        Err(error) if is_missing(&error) => {
            if let Err(failure) = make(&docker, wanted).await {
                // Nobody could use what was made of it so far.
                let _ = remove(settings, wanted.name, wanted.folder).await;
                return Err(failure);
            }
        }
        Err(error) => return Err(refused("look at the container", &error)),
    }
    match docker.start_container(wanted.name, None).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let _ = remove(settings, wanted.name, wanted.folder).await;
            Err(refused("start the container", &error))
        }
    }
}

/// The last thing that a container said, for a message about it.
pub async fn last_line(settings: &DockerSettings, name: &str) -> String {
    let Ok(docker) = connect(settings) else { return String::new() };
    let options = LogsOptions { stdout: true, stderr: true, tail: "1".to_owned(), ..LogsOptions::default() };
    let said = docker.logs(name, Some(options)).map_ok(|line| line.to_string()).try_collect::<String>();
    tokio::time::timeout(ANSWER, said).await.ok().and_then(Result::ok).unwrap_or_default().trim().to_owned()
}

fn is_own(found: ContainerInspectResponse, folder: &Path) -> bool {
    let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
    labels.get(LABEL).map(Path::new) == Some(folder)
}

/// Removes a container of this sandbox with its image; what isn't there is fine.
///
/// # Errors
/// When the engine can't be asked or refuses.
pub async fn remove(settings: &DockerSettings, name: &str, folder: &Path) -> Result<(), Failure> {
    let docker = connect(settings)?;
    if let Ok(found) = docker.inspect_container(name, None).await
        && !is_own(found, folder)
    {
        return Ok(());
    }
    let force = RemoveContainerOptions { force: true, v: true, ..Default::default() };
    match docker.remove_container(name, Some(force)).await {
        Err(error) if !is_missing(&error) => return Err(refused("remove the container", &error)),
        _ => {}
    }
    match docker.remove_image(&image(name), None::<RemoveImageOptions>, None).await {
        Err(error) if !is_missing(&error) => Err(refused("remove the image", &error)),
        _ => Ok(()),
    }
}

/// One image a container: whoever removes the one removes the other.
fn image(container: &str) -> String {
    format!("{}:sandbox", container.to_lowercase())
}

async fn make(docker: &Docker, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let program =
        Program::of_this_process().map_err(|error| Failure::permanent(format!("read this program: {error}")))?;
    let archive = program.pack().map_err(|error| Failure::permanent(format!("pack this program: {error}")))?;
    let image = image(wanted.name);
    let entrypoint = format!("ENTRYPOINT {}", serde_json::json!(program.entrypoint()));
    import(docker, &image, archive, wanted.folder, &[entrypoint]).await?;

    let body = ContainerCreateBody {
        image: Some(image.clone()),
        cmd: Some(wanted.args.clone()),
        env: Some(wanted.env.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect()),
        labels: Some(HashMap::from([(LABEL.to_owned(), wanted.folder.display().to_string())])),
        // It needs a socket and nothing else of this machine.
        user: Some("65534:65534".to_owned()),
        host_config: Some(HostConfig {
            network_mode: Some("host".to_owned()),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let options = CreateContainerOptions { name: Some(wanted.name.to_owned()), ..Default::default() };
    docker
        .create_container(Some(options), body)
        .await
        .map(|_| ())
        .map_err(|error| refused("create the container", &error))
}

pub(super) fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

pub(super) fn refused(attempted: &str, error: &Error) -> Failure {
    let said = match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        other => other.to_string(),
    };
    Failure::permanent(format!("{attempted}: {said}"))
}

/// This program's file and the libraries that the kernel has mapped for it.
struct Program {
    file: PathBuf,
    libraries: BTreeSet<PathBuf>,
}

impl Program {
    fn of_this_process() -> io::Result<Self> {
        let file = fs::canonicalize("/proc/self/exe")?;
        let libraries = libraries(&fs::read_to_string("/proc/self/maps")?, &file);
        Ok(Self { file, libraries })
    }

    /// The loader is named outright: then neither its place nor a cache of libraries matters.
    fn entrypoint(&self) -> Vec<String> {
        let loader = self
            .libraries
            .iter()
            .filter_map(|path| path.file_name()?.to_str())
            .find(|name| name.starts_with("ld-"));
        match loader {
            Some(loader) => {
                vec![format!("/lib/{loader}"), "--library-path".to_owned(), "/lib".to_owned(), PROGRAM.to_owned()]
            }
            // Linked statically.
            None => vec![PROGRAM.to_owned()],
        }
    }

    /// A file without a name that holds the image's root file system, ready to be read.
    fn pack(&self) -> io::Result<File> {
        let mut archive = tar::Builder::new(tempfile::tempfile()?);
        archive.mode(tar::HeaderMode::Deterministic);
        // Engines don't read the form that keeps holes.
        archive.sparse(false);
        archive.append_path_with_name(&self.file, PROGRAM.trim_start_matches('/'))?;
        for library in &self.libraries {
            if let Some(name) = library.file_name() {
                archive.append_path_with_name(library, Path::new("lib").join(name))?;
            }
        }
        let mut file = archive.into_inner()?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }
}

/// The files that are mapped to be executed, other than the program itself.
fn libraries(maps: &str, program: &Path) -> BTreeSet<PathBuf> {
    maps.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let executable = fields.nth(1)?.contains('x');
            let path = Path::new(fields.nth(3)?);
            (executable && path.is_absolute() && path != program).then(|| path.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_are_what_is_mapped_to_run() {
        let maps = "\
5557e4c6a000-5557e4c6f000 r-xp 00002000 fe:00 247030                     /usr/bin/lifeboat
7efc905f6000-7efc9064d000 r--p 00000000 fe:00 316534                     /usr/lib/locale/C.utf8/LC_CTYPE
7efc905d4000-7efc905f6000 rw-p 00000000 00:00 0
7efc9067f000-7efc907d5000 r-xp 00026000 fe:00 326279                     /usr/lib/libc.so.6
7efc9084c000-7efc9084e000 r-xp 00000000 00:00 0                          [vdso]
7efc90872000-7efc90898000 r-xp 00001000 fe:00 326276                     /usr/lib/ld-linux-x86-64.so.2
";
        let libraries = libraries(maps, Path::new("/usr/bin/lifeboat"));
        let program = Program { file: PathBuf::from("/usr/bin/lifeboat"), libraries };
        assert_eq!(
            program.libraries.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            ["/usr/lib/ld-linux-x86-64.so.2", "/usr/lib/libc.so.6"]
        );
        assert_eq!(program.entrypoint(), ["/lib/ld-linux-x86-64.so.2", "--library-path", "/lib", "/lifeboat"]);
    }
}
