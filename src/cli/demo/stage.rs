//! What the demo plays on: a folder with the plans and an environment of throwaway services.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;
use crate::failure::Failure;
use crate::sandbox::Sandbox;
use crate::sandbox::process;
use crate::service::sandbox::free_port;

/// The plans as this program was built with them, so that the demo works from any folder.
pub const BACKUP: (&str, &str) = ("plans/daily-backup.yaml", include_str!("../../../plans/daily-backup.yaml"));
/// The plan that is demonstrated.
pub const RECOVERY: (&str, &str) =
    ("plans/database-corruption.yaml", include_str!("../../../plans/database-corruption.yaml"));
/// What it runs to verify.
const VERIFY: (&str, &str) = ("plans/verify-integrity.yaml", include_str!("../../../plans/verify-integrity.yaml"));

/// How long a command has to end when it is told to.
pub const ENDS: Duration = Duration::from_secs(15);
const ENVIRONMENT: &str = "plans/environments/demo.yaml";
const PREFIX: &str = "lifeboat-demo-";
/// Remembers the demo that plays there.
const OWNER: &str = "demo";
/// Remembers the command that it runs just now.
const COMMAND: &str = "command";

/// The folder of one demo.
pub struct Stage {
    /// Where everything lies.
    pub folder: PathBuf,
    /// Where the auth service listens.
    pub health: String,
    pub(super) sandbox: Sandbox,
}

/// How the auth service runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs<'a> {
    /// As a container of the engine at that host.
    Container(&'a str),
    /// As a process of this machine.
    Process,
}

impl Stage {
    /// Makes the folder and writes the files; starts nothing.
    pub fn set(runs: Runs<'_>) -> Result<Self, Error> {
        let cannot = |error: std::io::Error| Failure::permanent(format!("make a folder for the demo: {error}"));
        let temporary = tempfile::Builder::new().prefix(PREFIX).rand_bytes(6).tempdir().map_err(cannot)?;
        let folder = fs::canonicalize(temporary.path()).map_err(cannot)?;
        open_to_the_server(&folder).map_err(cannot)?;
        process::remember(&process::pid_file(&folder, OWNER), std::process::id()).map_err(cannot)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();

        let (auth, sink) = (free_port()?, free_port()?);
        let environment = environment(&folder, &name, runs, auth, sink);
        let recovery = match runs {
            Runs::Container(_) => RECOVERY.1.to_owned(),
            Runs::Process => without_docker(RECOVERY.1)?,
        };
        for (path, text) in [BACKUP, VERIFY, (RECOVERY.0, &recovery), (ENVIRONMENT, &environment)] {
            write(&folder.join(path), text)?;
        }
        let sandbox = sandbox(&folder)?;
        // From here on it is removed by `strike`, together with what runs in it.
        let _ = temporary.keep();
        Ok(Self { folder, health: format!("http://127.0.0.1:{auth}/health/ready"), sandbox })
    }

    /// Remembers the command that runs just now: should the demo be killed, the next one ends it.
    pub fn plays(&self, pid: u32) -> std::io::Result<()> {
        process::remember(&process::pid_file(&self.folder, COMMAND), pid)
    }

    /// Ends and removes everything.
    pub async fn strike(&self) -> Result<(), Failure> {
        strike(&self.folder, &self.sandbox).await
    }
}

/// Removes what demos left that were killed before they could clean up.
pub async fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let is_demo = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let abandoned = || process::pid_file(&folder, OWNER).exists() && process::running(&folder, OWNER).is_none();
        if is_demo
            && abandoned()
            && let Ok(sandbox) = sandbox(&folder)
        {
            // Whatever stands in the way here is not this demo's business.
            let _ = strike(&folder, &sandbox).await;
        }
    }
}

/// Keeps the folder from being swept: somebody wants to look at it.
pub fn keep(stage: &Stage) {
    let _ = fs::remove_file(process::pid_file(&stage.folder, OWNER));
}

async fn strike(folder: &Path, sandbox: &Sandbox) -> Result<(), Failure> {
    process::stop(folder, COMMAND, ENDS).await?;
    sandbox.down().await?;
    fs::remove_dir_all(folder).map_err(|error| Failure::permanent(format!("remove {}: {error}", folder.display())))
}

fn sandbox(folder: &Path) -> Result<Sandbox, Error> {
    let environment = super::super::sandbox::environment(&folder.join("plans"), "demo")?;
    Sandbox::of(&environment, &folder.join(".lifeboat"))?
        .ok_or_else(|| Failure::permanent("the demo's environment has no throwaway services").into())
}

/// PostgreSQL's server refuses to run as root; as another user it must get through to its data.
fn open_to_the_server(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(file, text))
        .map_err(|error| Failure::permanent(format!("write {}: {error}", file.display())))
}

fn environment(folder: &Path, name: &str, runs: Runs<'_>, auth: u16, sink: u16) -> String {
    let backups = folder.join(".lifeboat/sandboxes/demo/backups");
    let (docker, client, container) = match runs {
        Runs::Container(host) => (
            format!("\n  docker:\n    docker: {{ host: \"{host}\" }}"),
            format!("\n      clients: [docker/{name}]"),
            format!(", container: docker/{name}"),
        ),
        Runs::Process => Default::default(),
    };
    format!(
        "\
lifeboat: 1
environment: demo
vars: {{ service: {name} }}
targets:
  db:
    postgres:
      sandbox: {{}}{client}
  backups:
    storage: {{ scheme: fs, root: {backups} }}{docker}
  auth:
    http:
      base_url: http://127.0.0.1:{auth}
      sandbox: {{ database: db/manacore_auth{container} }}
  oncall:
    webhook: {{ url: \"http://127.0.0.1:{sink}/\", sandbox: true }}
",
        backups = backups.display()
    )
}

/// The plan for a machine without Docker: the steps that stop and start the container stop
/// and start the service's process instead, everything else is as it was.
fn without_docker(plan: &str) -> Result<String, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::permanent(format!("find this program: {error}")))?
        .display()
        .to_string();
    let step = |line: &str, verb: &str| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let argv = [program.as_str(), "sandbox", verb, "auth", "--env", "demo"];
        let (argv, effects) = (serde_json::json!(argv), serde_json::json!([format!("{verb} service:auth")]));
        format!("{indent}exec: {{ argv: {argv}, effects: {effects}, idempotent: true }}\n")
    };
    Ok(plan
        .split_inclusive('\n')
        .filter(|line| line.trim() != "docker: docker")
        .map(|line| match line.trim_start().split(':').next() {
            Some("container.stop") => step(line, "stop"),
            Some("container.start") => step(line, "start"),
            _ => line.to_owned(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_docker_only_stopping_and_starting_differ() {
        let plan = without_docker(RECOVERY.1).unwrap();
        let (before, after): (Vec<&str>, Vec<&str>) =
            (RECOVERY.1.lines().filter(|line| line.trim() != "docker: docker").collect(), plan.lines().collect());
        assert_eq!(before.len(), after.len());
        let differ: Vec<(&str, &str)> = before.into_iter().zip(after).filter(|(a, b)| a != b).collect();
        assert_eq!(differ.len(), 5, "stop and start, how each is taken back, and start in finally: {differ:?}");
        for (container, process) in differ {
            assert!(container.trim().starts_with("container.st") && process.trim().starts_with("exec: {"));
        }
    }
}
