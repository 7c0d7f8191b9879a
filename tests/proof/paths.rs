//! Paths in plans stay below their roots, and plans read neither files nor the environment.

use crate::bench::Bench;

fn plan(steps: &str) -> String {
    format!("lifeboat: 1\nplan: paths\ntargets: {{ store: storage }}\nsteps:\n{steps}")
}

fn refused(steps: &str, words: &str) {
    let bench = Bench::new(&[
        ("plans/paths.yaml", &plan(steps)),
        (
            "outside.yaml",
            "lifeboat: 1\nplan: outside\nsteps:\n  x:\n    exec: { argv: [touch, done], effects: [] }\n",
        ),
        ("plans/secret.txt", "what-a-file-holds"),
    ]);
    for command in ["check", "show", "run"] {
        let ran = bench.run(&[command, "plans/paths.yaml"]);
        assert_ne!(ran.code(), Some(0), "{command} {steps}: {}", ran.all());
        assert!(!ran.all().contains("what-a-file-holds"), "{}", ran.all());
    }
    let ran = bench.ends(2, &["check", "plans/paths.yaml"]);
    let said = ran.all().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains(words), "{steps}: {said}");
}

#[test]
fn storage_paths_stay_below_the_root() {
    for path in ["../x.sql", "/etc/passwd", "a/../../x", "a//b", "./x"] {
        refused(
            &format!("  f:\n    storage.find: {{ target: store, path: \"{path}\" }}\n"),
            "is not a path in a storage",
        );
    }
}

#[test]
fn a_path_that_only_the_run_knows_is_checked_as_well() {
    let steps = "  name:\n    exec: { argv: [echo, ../outside.sql], effects: [] }\n  \
                 find:\n    storage.find: { target: store, path: \"{{ steps.name.stdout }}\" }\n";
    let bench = Bench::new(&[
        ("paths.yaml", &plan(steps)),
        ("outside.sql", "x"),
        (
            "environments/test.yaml",
            "lifeboat: 1\nenvironment: test\ntargets: { store: { storage: { scheme: fs, root: inside } } }\n",
        ),
        ("inside/x.sql", ""),
    ]);
    let ran = bench.ends(1, &["run", "paths.yaml", "--env", "test"]);
    assert!(ran.all().contains("is not a path in a storage"), "{}", ran.all());
}

#[test]
fn a_called_plan_lies_in_the_plans_folder() {
    refused("  call:\n    plan.run: { file: ../../outside.yaml }\n", "outside");
    refused("  call:\n    plan.run: { file: /etc/passwd }\n", "outside");
}

#[test]
fn no_link_leads_a_called_plan_out_of_the_plans_folder() {
    let inside = "lifeboat: 1\nplan: inside\nsteps:\n  x:\n    exec: { argv: [echo, inside], effects: [] }\n";
    for called in ["link.yaml", "folder/secret.yaml"] {
        let bench = Bench::new(&[
            ("plans/paths.yaml", &plan(&format!("  call:\n    plan.run: {{ file: {called} }}\n"))),
            ("outside/secret.yaml", "lifeboat: 1\nplan: what-a-file-holds\nsteps: [what-a-file-holds]\n"),
            ("plans/real/inside.yaml", inside),
        ]);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, bench.path().join(name)).unwrap();
        link("../outside/secret.yaml", "plans/link.yaml");
        link("../outside", "plans/folder");
        for command in ["check", "show", "run"] {
            let ran = bench.run(&[command, "plans/paths.yaml"]);
            assert_ne!(ran.code(), Some(0), "{command} {called}: {}", ran.all());
            assert!(!ran.all().contains("what-a-file-holds"), "{}", ran.all());
        }
        let said = bench.ends(2, &["check", "plans/paths.yaml"]).all();
        let said = said.replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("a link leads out of the plan's folder"), "{said}");
        // One that stays below it is followed, from a folder that is a link itself.
        link("real/inside.yaml", "plans/in.yaml");
        link("plans", "linked");
        let steps = plan("  call:\n    plan.run: { file: in.yaml }\n").replace("targets: { store: storage }\n", "");
        std::fs::write(bench.path().join("plans/in-use.yaml"), steps).unwrap();
        bench.ends(0, &["check", "linked/in-use.yaml"]);
        bench.ends(0, &["run", "linked/in-use.yaml"]);
        let beside =
            bench.command(&["check", "in-use.yaml"]).current_dir(bench.path().join("plans")).output().unwrap();
        assert!(beside.status.success(), "{beside:?}");
    }
}

#[test]
fn plans_read_neither_files_nor_the_environment() {
    for template in [
        "{{ file 'secret.txt' }}",
        "{{ env.PATH }}",
        "{{> secret.txt }}",
        "{{> 'plans/secret.txt' }}",
        "{{#> secret.txt }}{{/secret.txt}}",
        "{{> (lookup vars 'x') }}",
        "{{ lookup env 'PATH' }}",
        "{{#with (file 'secret.txt')}}{{this}}{{/with}}",
        "{{#each (env)}}{{this}}{{/each}}",
        "{{#*inline 'x'}}y{{/inline}}{{> x}}",
    ] {
        let steps = format!("  x:\n    exec: {{ argv: [echo, \"{template}\"], effects: [] }}\n");
        refused(&steps, "lifeboat::");
    }
}
