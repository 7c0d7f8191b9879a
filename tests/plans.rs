//! The project's plans are the first ones that people read: each is without fault on each environment,
//! for the checker, for the dry-run without contact, and for the schemas that editors use.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// What the example environments take from outside.
const OUTSIDE: [(&str, &str); 14] = [
    ("DATABASE_ADMIN_URL", "postgres://lifeboat:not-a-secret-1@127.0.0.1:1/postgres"),
    ("STAGING_DATABASE_ADMIN_URL", "postgres://lifeboat:not-a-secret-2@127.0.0.1:1/postgres"),
    ("S3_ENDPOINT", "http://127.0.0.1:1"),
    ("S3_ACCESS_KEY_ID", "not-a-secret-3"),
    ("S3_SECRET_ACCESS_KEY", "not-a-secret-4"),
    ("STAGING_S3_ACCESS_KEY_ID", "not-a-secret-5"),
    ("STAGING_S3_SECRET_ACCESS_KEY", "not-a-secret-6"),
    ("ONCALL_WEBHOOK", "http://127.0.0.1:1/not-a-secret-7"),
    ("STAGING_ONCALL_WEBHOOK", "http://127.0.0.1:1/not-a-secret-8"),
    ("OIDC_CLIENT_SECRET", "not-a-secret-9"),
    ("STAGING_OIDC_CLIENT_SECRET", "not-a-secret-0"),
    ("TSIG_SECRET", "bm90LWEtc2VjcmV0"),
    ("STAGING_TSIG_SECRET", "bm90LWEtc2VjcmV0"),
    ("NO_COLOR", "1"),
];

fn lifeboat(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(args).envs(OUTSIDE).env_remove("LIFEBOAT_STATE").output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{folder}");
    found
}

fn name(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

/// Values for the inputs that a plan has no default for.
fn inputs(plan: &Path) -> &'static [&'static str] {
    match name(plan) {
        "pre-migration-backup" => &["-i", "change=add-passkeys"],
        "accidental-deletion" => &["-i", "moment=2024-02-01T09:59:00Z"],
        "remove-rebuilt" => &["-i", "run=20260101-000000-none"],
        "monthly-operations" => &["-i", "throwaway=true"],
        "complete-service-failure" => &[
            "-i",
            "database_password=not-a-secret-a",
            "-i",
            "service_database_url=postgres://not-a-secret-b@127.0.0.1:1/manacore_auth",
            "-i",
            "auth_secret=not-a-secret-c",
        ],
        _ => &[],
    }
}

#[test]
fn every_plan_is_without_fault_on_every_environment() {
    for plan in yaml_files("plans") {
        let path = plan.to_str().unwrap();
        for environment in yaml_files("plans/environments") {
            let env = name(&environment);
            let checked = lifeboat(&["check", path, "--env", env, "--format", "json"]);
            assert!(checked.status.success(), "{path} on {env}: {}", said(&checked));
            let found: Value = serde_json::from_slice(&checked.stdout).unwrap();
            assert!(!found.to_string().contains("lifeboat::"), "{path} on {env} has no warnings either: {found:#}");

            let dry = [&["run", path, "--env", env, "--dry-run", "--offline", "--format", "json"], inputs(&plan)]
                .concat();
            let dry = lifeboat(&dry);
            assert!(dry.status.success(), "{path} on {env}: {}", said(&dry));
            let verdict: Value = serde_json::from_slice(&dry.stdout).unwrap();
            assert_eq!(
                (&verdict["verdict"], &verdict["mode"]),
                (&"clear".into(), &"offline".into()),
                "{verdict:#}"
            );
            for (_, secret) in OUTSIDE.iter().filter(|(_, value)| value.contains("not-a-secret")) {
                let secret =
                    secret.split('/').find_map(|part| part.find("not-a-secret").map(|at| &part[at..at + 14]));
                assert!(!said(&dry).contains(secret.unwrap()), "{env} shows no secret: {}", said(&dry));
            }
        }
    }
}

#[test]
fn plans_and_environments_fit_the_schemas() {
    for (schema, folder) in [("plan", "plans"), ("environment", "plans/environments")] {
        let text = std::fs::read_to_string(format!("schemas/{schema}.schema.json")).unwrap();
        let schema = jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap();
        for file in yaml_files(folder) {
            let (source, problems) = lifeboat::plan::source::read(name(&file), &std::fs::read(&file).unwrap());
            assert!(problems.is_empty(), "{problems:?}");
            let value = source.unwrap().root.to_value();
            let errors: Vec<String> =
                schema.iter_errors(&value).map(|error| format!("{} at {}", error, error.instance_path())).collect();
            assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
        }
    }
}

#[test]
fn plans_say_who_owns_them_and_point_editors_to_their_schema() {
    for file in yaml_files("plans").into_iter().chain(yaml_files("plans/environments")) {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("# yaml-language-server: $schema=../"), "{}", file.display());
        assert!(text.lines().all(|line| line.len() <= 110), "{} reads without scrolling", file.display());
        if !file.to_string_lossy().contains("environments") {
            assert!(text.contains("\nowners:\n") && text.contains("\nsummary: "), "{}", file.display());
        }
    }
}

/// The plan and the environment by which the language is explained.
#[test]
fn the_example_of_the_language_loads() {
    let checked = lifeboat(&["check", "tests/plans/database-corruption.yaml", "--env", "production"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let args = ["run", "tests/plans/database-corruption.yaml", "--env", "production", "--dry-run", "--offline"];
    let dry = lifeboat(&args);
    assert!(dry.status.success(), "{}", said(&dry));
}

/// A slip in a plan is named and underlined, in the words of somebody who wants to help.
#[test]
fn a_slip_in_the_recovery_is_found() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("environments")).unwrap();
    let environment = std::fs::read_to_string("plans/environments/production.yaml").unwrap();
    std::fs::write(folder.path().join("environments/production.yaml"), environment).unwrap();
    let verify = "verify-integrity.yaml";
    std::fs::copy(format!("plans/{verify}"), folder.path().join(verify)).unwrap();
    let plan = std::fs::read_to_string("plans/database-corruption.yaml").unwrap();
    let slips = [
        ("{{ steps.find-backup.path }}", "{{ steps.find-backups.path }}", "find-backup"),
        ("    storage.verify:", "    storage.verfy:", "storage.verify"),
        ("target: backups", "target: backup", "backups"),
        ("readable: true", "readible: true", "readable"),
    ];
    for (right, wrong, suggested) in slips {
        let file = folder.path().join("slip.yaml");
        assert!(plan.contains(right), "{right}");
        std::fs::write(&file, plan.replacen(right, wrong, 1)).unwrap();
        let checked = lifeboat(&["check", file.to_str().unwrap(), "--env", "production"]);
        let said = said(&checked);
        assert_eq!(checked.status.code(), Some(2), "{said}");
        assert!(said.contains(suggested) && said.contains("slip.yaml"), "{wrong}: {said}");
    }
    // Without the stop, the swap would pull the database away from under the service.
    let file = folder.path().join("slip.yaml");
    let (before, rest) = plan.split_once("  stop-service:").unwrap();
    let (_, after) = rest.split_once("  restore:\n").unwrap();
    std::fs::write(&file, format!("{before}  restore:\n{after}")).unwrap();
    let checked = lifeboat(&["check", file.to_str().unwrap(), "--env", "production"]);
    assert_eq!(checked.status.code(), Some(2), "{}", said(&checked));
    assert!(said(&checked).contains("mana-core-auth"), "{}", said(&checked));
}

#[test]
fn every_step_type_is_in_a_plan() {
    let plans: Vec<String> =
        yaml_files("plans").iter().map(|plan| std::fs::read_to_string(plan).unwrap()).collect();
    let used = |name: &str| {
        let key = format!("{name}:");
        plans.iter().any(|plan| plan.lines().any(|line| line.trim_start().starts_with(&key)))
    };
    let unused: Vec<&str> = lifeboat::step::TYPES.iter().map(|info| info.name).filter(|name| !used(name)).collect();
    assert!(unused.is_empty(), "step types that no plan uses: {unused:?}");
}
