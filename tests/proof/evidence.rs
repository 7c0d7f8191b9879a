//! Evidence that was changed is found, here and elsewhere.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::{Bench, Ran};

const PLAN: &str = "lifeboat: 1\nplan: evidence\ninputs:\n  name: { type: string, default: maria, help: A name }\nsteps:\n  \
    say:\n    exec: { argv: [echo, \"hello {{ inputs.name }}\"], effects: [] }\n  \
    sub:\n    plan.run: { file: sub.yaml }\n  \
    fails:\n    retry: { attempts: 2, on: any, delay: 1ms }\n    exec: { argv: [sh, -c, \"echo tried; exit 3\"], effects: [] }\n";
const SUB: &str = "lifeboat: 1\nplan: sub\nsteps:\n  inner:\n    exec: { argv: [echo, inner], effects: [] }\n";
const ENVIRONMENT: &str = "lifeboat: 1\nenvironment: test\n";

fn ran() -> (Bench, PathBuf) {
    let bench = Bench::new(&[("evidence.yaml", PLAN), ("sub.yaml", SUB), ("environments/test.yaml", ENVIRONMENT)]);
    bench.ends(1, &["run", "evidence.yaml", "--env", "test"]);
    let folder = bench.path().join(".lifeboat/runs").join(bench.latest());
    (bench, folder)
}

/// What was said, in one line.
fn said(ran: &Ran) -> String {
    ran.all().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout()).unwrap_or_else(|error| panic!("{error}: {}", ran.all()))
}

fn head(bench: &Bench) -> String {
    let audited = json(&bench.ends(0, &["audit", "--format", "json"]));
    assert_eq!(audited["intact"], true, "{audited}");
    audited["head"].as_str().unwrap().to_owned()
}

/// Every file of the run that its evidence is made of.
fn files(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                found.push(entry.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.retain(|name| name != "lock" && !name.starts_with("inbox"));
    found.sort();
    found
}

#[test]
fn a_run_vouches_for_its_plans_inputs_and_logs() {
    let (bench, folder) = ran();
    let head = head(&bench);
    let names = files(&folder);
    for expected in [
        "environment.yaml",
        "journal.jsonl",
        "logs/fails.1.log",
        "logs/fails.2.log",
        "plan/evidence.yaml",
        "plan/sub.yaml",
        "run.json",
    ] {
        assert!(names.iter().any(|name| name == expected), "{expected} is not in {names:?}");
    }
    let audited = json(&bench.ends(0, &["audit", "--format", "json", "--head", &head.to_uppercase()]));
    assert_eq!(audited["files"].as_u64().unwrap() as usize, names.len() - 1, "{audited}");
    assert_eq!(audited["unvouched"], serde_json::json!([]));
    for name in names.iter().filter(|name| *name != "journal.jsonl") {
        let path = folder.join(name);
        let before = std::fs::read(&path).unwrap();
        let mut changed = before.clone();
        *changed.last_mut().unwrap() ^= 1;
        for damage in [Some(changed), None] {
            match &damage {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let audited = json(&bench.ends(1, &["audit", "--format", "json"]));
            assert_eq!(audited["intact"], false);
            assert_eq!(audited["flaws"][0]["what"], **name, "{audited}");
        }
        std::fs::write(&path, before).unwrap();
    }
    std::fs::write(folder.join("plan/added.yaml"), "x").unwrap();
    assert!(bench.ends(1, &["audit"]).stdout().contains("plan/added.yaml"));
    std::fs::remove_file(folder.join("plan/added.yaml")).unwrap();
    bench.ends(0, &["audit"]);
    // The copy of an edited plan is kept before its record: one that was never recorded says nothing of the run.
    std::fs::create_dir(folder.join("plan.7")).unwrap();
    std::fs::write(folder.join("plan.7/other.yaml"), "x").unwrap();
    let audited = json(&bench.ends(0, &["audit", "--format", "json"]));
    assert_eq!(audited["unvouched"], serde_json::json!(["plan.7/other.yaml"]));
}

#[test]
fn a_changed_record_is_named_and_a_cut_end_is_found_by_the_head() {
    let (bench, folder) = ran();
    let head = head(&bench);
    let path = folder.join("journal.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();

    let mut changed = lines.clone();
    let altered = lines[2].replace("say", "sad");
    changed[2] = &altered;
    std::fs::write(&path, changed.join("\n") + "\n").unwrap();
    let ran = bench.ends(1, &["audit"]);
    assert!(said(&ran).contains("record 2 is damaged"), "{}", ran.all());

    std::fs::write(&path, lines[..lines.len() - 2].join("\n") + "\n").unwrap();
    let short = json(&bench.ends(0, &["audit", "--format", "json"]));
    let ran = bench.ends(1, &["audit", "--head", &head]);
    assert!(said(&ran).contains("were cut off"), "{}", ran.all());

    std::fs::write(&path, &text).unwrap();
    bench.ends(0, &["audit", "--head", &head]);
    let ran = bench.ends(1, &["audit", "--head", short["head"].as_str().unwrap()]);
    assert!(said(&ran).contains("2 more were written since"), "{}", ran.all());
    bench.ends(2, &["audit", "--head", "abc"]);
}

/// A bundle at another place, where nobody knows the run.
fn elsewhere(bench: &Bench) -> Bench {
    let there = Bench::new(&[]);
    bench.ends(0, &["report", "--format", "bundle", "-o", "run.tar"]);
    std::fs::copy(bench.path().join("run.tar"), there.path().join("run.tar")).unwrap();
    there
}

#[test]
fn a_bundle_is_audited_and_told_elsewhere() {
    let (bench, _) = ran();
    let head = head(&bench);
    let report = json(&bench.ends(0, &["report", "--format", "json"]));
    bench.ends(2, &["report", "--format", "bundle"]);
    let there = elsewhere(&bench);
    drop(bench);
    let audited = json(&there.ends(0, &["audit", "run.tar", "--format", "json", "--head", &head]));
    assert_eq!((audited["intact"].as_bool(), audited["head"].as_str()), (Some(true), Some(head.as_str())));
    assert_eq!(json(&there.ends(0, &["report", "run.tar", "--format", "json"])), report);
    assert!(there.ends(0, &["report", "run.tar"]).stdout().contains(&head));
}

/// The archive's members: name and where their contents are.
fn members(bytes: &[u8]) -> Vec<(String, usize, usize)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let at = usize::try_from(entry.raw_file_position()).unwrap();
            (entry.path().unwrap().display().to_string(), at, usize::try_from(entry.size()).unwrap())
        })
        .collect()
}

#[test]
fn damage_to_any_member_of_a_bundle_is_found() {
    let (bench, _) = ran();
    let there = elsewhere(&bench);
    let path = there.path().join("run.tar");
    let bytes = std::fs::read(&path).unwrap();
    let members = members(&bytes);
    assert!(members.len() >= 9, "{members:?}");
    for (name, at, size) in &members {
        let mut damaged = bytes.clone();
        damaged[at + size / 2] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let ran = there.ends(1, &["audit", "run.tar"]);
        assert!(ran.all().contains(name.as_str()), "{name}: {}", ran.all());
    }
    for cut in [bytes.len() / 2, 700, 100, 0] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        there.ends(1, &["audit", "run.tar"]);
    }
    std::fs::write(&path, &bytes).unwrap();
    there.ends(0, &["audit", "run.tar"]);
}

/// An archive of whatever members.
fn archive(members: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind, bytes) in members {
        let mut header = tar::Header::new_gnu();
        // Past the checks that keep an honest writer from such names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o777);
        header.set_size(bytes.len() as u64);
        if *kind != tar::EntryType::Regular {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn a_hostile_archive_touches_nothing() {
    let (bench, _) = ran();
    let there = elsewhere(&bench);
    let honest = std::fs::read(there.path().join("run.tar")).unwrap();
    let (_, at, size) = members(&honest)[0].clone();
    let manifest = &honest[at..at + size];
    let first = ("manifest.json", tar::EntryType::Regular, manifest);
    let outside = there.path().join("outside");
    let absolute = outside.display().to_string();
    let file = tar::EntryType::Regular;
    for (hostile, words) in [
        (archive(&[first, ("../outside", file, b"x")]), "leads elsewhere"),
        (archive(&[first, ("logs/../../outside", file, b"x")]), "leads elsewhere"),
        (archive(&[first, (&absolute, file, b"x")]), "leads elsewhere"),
        (archive(&[first, ("logs", tar::EntryType::Symlink, b"")]), "no plain file"),
        (archive(&[first, ("journal.jsonl", tar::EntryType::Link, b"")]), "no plain file"),
        (archive(&[first, ("journal.jsonl", tar::EntryType::Fifo, b"")]), "no plain file"),
        (archive(&[first, ("a", file, b"x"), ("a", file, b"y")]), "can't be taken out"),
        (archive(&[("journal.jsonl", file, b"x")]), "does not begin with manifest.json"),
        (archive(&[("manifest.json", file, b"{}")]), "damaged"),
        (b"not an archive at all".to_vec(), "no bundle"),
    ] {
        std::fs::write(there.path().join("hostile.tar"), hostile).unwrap();
        let ran = there.ends(1, &["audit", "hostile.tar"]);
        assert!(said(&ran).contains(words), "{words}: {}", ran.all());
        assert!(!outside.exists());
    }
    // A member that says it is larger than any bundle.
    let mut huge = archive(&[first]);
    huge.truncate(huge.len() - 1024);
    let mut header = tar::Header::new_gnu();
    header.set_path("journal.jsonl").unwrap();
    header.set_size(u64::MAX / 4);
    header.set_cksum();
    huge.extend_from_slice(header.as_bytes());
    std::fs::write(there.path().join("hostile.tar"), huge).unwrap();
    assert!(said(&there.ends(1, &["audit", "hostile.tar"])).contains("larger than"));
    // A name that is longer than any memory, and extensions that no bundle has.
    for (kind, size) in [(tar::EntryType::GNULongName, 1_u64 << 40), (tar::EntryType::XHeader, 1 << 40)] {
        let mut long = archive(&[first]);
        long.truncate(long.len() - 1024);
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        long.extend_from_slice(header.as_bytes());
        long.resize(long.len() + (64 << 20), b'x');
        std::fs::write(there.path().join("hostile.tar"), long).unwrap();
        assert!(said(&there.ends(1, &["audit", "hostile.tar"])).contains("no plain file"));
    }
}
