//! `lifeboat doctor`: what is there, what can be reached, what to install.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::{Common, problem, run_folder};
use crate::failure::Failure;
use crate::plan::load;
use crate::report::text::{Paint, Table, plural};
use crate::service::postgres::tool;
use crate::service::process::find_program;
use crate::service::{DockerSettings, PostgresSettings, Services, Target};

/// See whether this machine can do the work: tools, versions, connections, privileges
///
/// With an environment, every target in it is reached, read-only. Nothing is installed or changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The environment whose targets are reached: a file, or a name of `environments/NAME.yaml` or `plans/environments/NAME.yaml`
    #[arg(short, long, value_name = "ENV")]
    env: Option<String>,
    /// How to print what is found
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// `tool`, `state`, or a target's kind.
    kind: &'static str,
    name: String,
    ok: bool,
    /// Whether something that was asked for can't work without it.
    needed: bool,
    /// What was found, or what is wrong.
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Finding {
    fn new(kind: &'static str, name: &str, needed: bool, found: Result<String, Failure>) -> Self {
        let (ok, found, help) = match found {
            Ok(found) => (true, found, None),
            Err(failure) => (false, failure.message, failure.help),
        };
        Self { kind, name: name.to_owned(), ok, needed, found, help }
    }
}

pub fn doctor(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let environment = match &args.env {
        None => None,
        Some(named) => match load::environment(folder_of(named), named, true) {
            Ok((environment, _)) => Some(environment),
            Err(problems) => {
                for found in &problems {
                    super::out::shout(&problem::page(found, out.talk));
                }
                return Ok(Exit::Usage);
            }
        },
    };
    let targets = environment.as_ref().map(|environment| environment.targets.clone());
    let redactor = environment.as_ref().map(|environment| environment.redactor.clone()).unwrap_or_default();
    let services = Services::new(targets.clone().unwrap_or_default(), redactor).read_only();
    let state = common.state.clone().or_else(|| environment.and_then(|environment| environment.state));
    let found = super::block_on(async {
        let mut found = vec![state_folder(state.as_deref().unwrap_or(run_folder::DEFAULT))];
        match &targets {
            None => found.extend(tools().await),
            Some(targets) => found.extend(reach(&services, targets).await),
        }
        Ok(found)
    })?;
    match args.format {
        Format::Json => out.print_json(&found)?,
        Format::Human => out.print(&page(&found, out.paint))?,
    }
    let missing = found.iter().any(|finding| finding.needed && !finding.ok);
    Ok(if missing { Exit::Failed } else { Exit::Done })
}

/// Where `environments/` is looked for: beside plans, wherever one stands.
fn folder_of(named: &str) -> &'static Path {
    let below = |folder: &str| Path::new(folder).join("environments").join(format!("{named}.yaml")).is_file();
    Path::new(if !below("") && below("plans") { "plans" } else { "" })
}

fn page(found: &[Finding], paint: Paint) -> String {
    let mut table = Table::new(2);
    for finding in found {
        let mark = match (finding.ok, finding.needed) {
            (true, _) => paint.good("✓"),
            (false, true) => paint.bad("✗"),
            (false, false) => paint.warn("–"),
        };
        let help =
            finding.help.as_ref().map(|help| format!("\n{} {help}", paint.name("help:"))).unwrap_or_default();
        table.row([mark, finding.name.clone(), paint.dim(finding.kind), format!("{}{help}", finding.found)]);
    }
    let missing = found.iter().filter(|finding| finding.needed && !finding.ok).count();
    let verdict = if missing == 0 {
        paint.good("✓ ready")
    } else {
        paint.bad(&format!("✗ {} in the way", plural(missing, "thing")))
    };
    format!("{}\n{verdict}\n", table.render(paint))
}

/// Whether runs can be kept.
fn state_folder(state: &str) -> Finding {
    let path = Path::new(state);
    // The nearest folder that exists is where the first run will make it.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find(|folder| folder.exists());
    let found = match existing {
        Some(folder) => match nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK) {
            Ok(()) => Ok("runs can be kept there".to_owned()),
            Err(error) => {
                Err(Failure::permanent(format!("failed to write to {}: {}", folder.display(), error.desc()))
                    .help("make it writable, or name another folder with `--state`"))
            }
        },
        None => Err(Failure::permanent("no folder above it exists")),
    };
    Finding::new("state", state, true, found)
}

/// What this machine has, whatever it may be needed for.
async fn tools() -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, for_) in [
        ("pg_dump", "postgres.backup"),
        ("pg_restore", "postgres.restore of custom dumps"),
        ("psql", "postgres.restore of plain dumps"),
        ("initdb", "sandboxes and the demo"),
        ("pg_basebackup", "postgres.base_backup"),
        ("pg_verifybackup", "postgres.base_backup and postgres.recover_to"),
        ("pg_waldump", "postgres.recover_to"),
    ] {
        let tool = tool::find(name, None, 0).await;
        found.push(Finding::new(
            "tool",
            name,
            false,
            tool.map(|tool| format!("{} in {}; for {for_}", tool.version, tool.path.display())),
        ));
    }
    let age = find_program("age", None).map(|path| format!("{}; for exports with `encrypt_to`", path.display()));
    let missing = || Failure::permanent("age is not installed").help("Debian: `apt-get install age`");
    found.push(Finding::new("tool", "age", false, age.ok_or_else(missing)));
    let docker = Target::Docker(DockerSettings { host: crate::service::docker_host(), tls: None, sandbox: None });
    let services =
        Services::new(BTreeMap::from([("docker".to_owned(), docker.clone())]), crate::secret::Redactor::default());
    let mut engine = reach_one(&services, "docker", &docker).await;
    for finding in &mut engine {
        finding.needed = false;
    }
    found.extend(engine);
    found
}

async fn reach(services: &Services, targets: &BTreeMap<String, Target>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, target) in targets {
        found.extend(match target {
            Target::Oidc(issuer) if is_served_here(&issuer.issuer, targets) => {
                vec![Finding::new("oidc", name, true, Ok(format!("a sandbox, at {}", issuer.issuer)))]
            }
            target => reach_one(services, name, target).await,
        });
    }
    found
}

/// Whether a sandbox's auth service is that issuer.
fn is_served_here(issuer: &str, targets: &BTreeMap<String, Target>) -> bool {
    targets
        .values()
        .any(|target| matches!(target, Target::Http(http) if http.sandbox.is_some() && http.base_url == issuer))
}

async fn reach_one(services: &Services, name: &str, target: &Target) -> Vec<Finding> {
    let one = |found| vec![Finding::new(target.kind(), name, true, found)];
    match target {
        Target::Postgres(settings) => postgres(services, name, settings).await,
        Target::Docker(_) => one(docker(services, name).await),
        Target::Storage(settings) if settings.sandbox().is_some() => {
            one(a_sandbox_by(crate::sandbox::object_server()))
        }
        Target::Storage(_) => one(storage(services, name).await),
        // Like a sandboxed cluster: it is there once `lifeboat sandbox up` has made it.
        Target::Http(settings) if settings.sandbox.is_some() || settings.consumer_sandbox.is_some() => {
            one(services.http(name).map(|_| format!("a sandbox, at {}", settings.base_url)))
        }
        Target::Http(settings) => one(http(services, name, &settings.base_url).await),
        // A hook is only reached by telling people something.
        Target::Webhook(_) => one(services.webhook(name).map(|_| "its settings hold; it is not tried".to_owned())),
        Target::Redis(settings) if settings.sandbox => one(a_sandbox_by(crate::sandbox::redis_server())),
        Target::Redis(_) => one(redis(services, name).await),
        Target::Dns(settings) if settings.sandbox => one(a_sandbox_by(crate::sandbox::name_server())),
        Target::Smtp(settings) if settings.sandbox => one(a_sandbox_by(crate::sandbox::mail_server())),
        Target::Smtp(_) => one(mail(services, name).await),
        Target::Dns(_) => one(dns(services, name).await),
        Target::Ssh(settings) if settings.sandbox => one(a_sandbox_by(crate::sandbox::ssh_server())),
        Target::Ssh(_) => one(ssh(services, name).await),
        Target::Oidc(_) => one(oidc(services, name).await),
    }
}

fn a_sandbox_by(program: Result<std::path::PathBuf, Failure>) -> Result<String, Failure> {
    program.map(|program| format!("a sandbox, by {}", program.display()))
}

async fn postgres(services: &Services, name: &str, settings: &PostgresSettings) -> Vec<Finding> {
    if settings.url.is_none() && settings.sandbox.is_some() {
        let tool = tool::find("initdb", settings.bin_dir.as_deref().map(Path::new), 0).await;
        let found = tool.map(|tool| format!("a sandbox, by {} {}", tool.path.display(), tool.version));
        return vec![Finding::new("postgres", name, true, found)];
    }
    // There only while a plan needs it.
    if let Some(beside) = &settings.beside {
        let said = format!("a cluster beside {}, on port {} when it is there", beside.like, beside.port);
        return vec![Finding::new("postgres", name, true, Ok(said))];
    }
    let server = match services.postgres(name) {
        Ok(server) => server,
        Err(failure) => return vec![Finding::new("postgres", name, true, Err(failure))],
    };
    let asked = async {
        let session = server.connect(None).await?;
        Ok((session.server_facts().await?, session.role().await?))
    };
    let (facts, role) = match asked.await {
        Ok(known) => known,
        Err(failure) => return vec![Finding::new("postgres", name, true, Err(failure))],
    };
    let standby = if facts.in_recovery { ", a standby: nothing can be written" } else { "" };
    let mut found = vec![Finding::new(
        "postgres",
        name,
        true,
        Ok(format!("PostgreSQL {} at {}{standby}", facts.version, server.host_and_port())),
    )];
    let may = if role.superuser {
        "superuser: may do everything".to_owned()
    } else {
        let rights = [
            (role.create_db, "create databases"),
            (role.signal_backend, "end others' sessions"),
            (role.bypass_rls, "read past row security"),
        ];
        let (can, cannot): (Vec<_>, Vec<_>) = rights.iter().partition(|(may, _)| *may);
        let words =
            |list: Vec<&(bool, &'static str)>| list.iter().map(|(_, word)| *word).collect::<Vec<_>>().join(", ");
        let (can, cannot) = (words(can), words(cannot));
        match (can.is_empty(), cannot.is_empty()) {
            (false, true) => format!("may {can}"),
            (true, _) => format!("may not {cannot}"),
            (false, false) => format!("may {can}; may not {cannot}"),
        }
    };
    found.push(Finding::new("role", &role.name, false, Ok(may)));
    for program in ["pg_dump", "pg_restore"] {
        let tool = server.tool(program, facts.version.major).await;
        found.push(Finding::new(
            "tool",
            program,
            true,
            tool.map(|tool| format!("{} in {}", tool.version, tool.path.display())),
        ));
    }
    found
}

async fn docker(services: &Services, name: &str) -> Result<String, Failure> {
    // A container of this name is in nobody's way; the answer is the engine's all the same.
    services.docker(name)?.find("lifeboat-doctor").await.map(|_| "the engine answers".to_owned())
}

async fn redis(services: &Services, name: &str) -> Result<String, Failure> {
    let session = services.redis(name)?.connect().await?;
    session.ping().await?;
    let info = session.info("server").await?;
    Ok(format!("version {} at {}", info.text("redis_version")?, session.place()))
}

async fn dns(services: &Services, name: &str) -> Result<String, Failure> {
    services.dns(name)?.probe().await
}

async fn mail(services: &Services, name: &str) -> Result<String, Failure> {
    services.mail(name)?.probe().await
}

async fn storage(services: &Services, name: &str) -> Result<String, Failure> {
    let objects = services.storage(name)?.list("").await?;
    Ok(format!("it answers; {} in it", plural(objects.len(), "object")))
}

async fn ssh(services: &Services, name: &str) -> Result<String, Failure> {
    let host = services.ssh(name)?;
    host.probe(None, None, services.cancel()).await?;
    Ok(format!("commands run at {}", host.place()))
}

/// Its document alone: an issuer may make a key when it is asked for more.
async fn oidc(services: &Services, name: &str) -> Result<String, Failure> {
    let issuer = services.oidc(name)?;
    issuer.discovery().await?;
    let client = if issuer.has_client() {
        "a client that may ask for tokens"
    } else {
        "no client: tokens can't be asked for"
    };
    Ok(format!("an OpenID Connect issuer, {client}"))
}

async fn http(services: &Services, name: &str, base_url: &str) -> Result<String, Failure> {
    let http = services.http(name)?;
    let url = http.url("/")?;
    let answer = http.get(&url, std::time::Duration::from_secs(10)).await?;
    Ok(format!("{base_url} answers, {} to GET /", answer.status))
}
