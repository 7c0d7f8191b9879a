use std::fmt::Write as _;

use serde_json::json;

use super::*;
use crate::plan::Known;

fn text(plan: &str) -> Loaded {
    load_text("plan.yaml", plan.as_bytes(), &Options::default())
}

fn told(loaded: &Loaded) -> Vec<String> {
    loaded
        .problems
        .iter()
        .map(|problem| {
            let (line, column) = problem.position().unwrap_or_default();
            let help = problem.help.as_ref().map(|help| format!(" | {help}")).unwrap_or_default();
            format!(
                "{line}:{column} {} {}: {}{help}",
                problem.severity.as_str(),
                problem.code.trim_start_matches("lifeboat::"),
                problem.message
            )
        })
        .collect()
}

fn good(plan: &str) -> Plan {
    let loaded = text(plan);
    assert!(!loaded.has_errors(), "{:#?}", told(&loaded));
    loaded.plan.unwrap()
}

fn needs(plan: &Plan) -> Vec<String> {
    plan.steps
        .iter()
        .map(|step| {
            let needs: Vec<&str> = step.needs.iter().map(StepId::as_str).collect();
            format!("{} <- {}", step.id, needs.join(" "))
        })
        .collect()
}

/// A folder of files, removed with the value.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

const HEAD: &str = "lifeboat: 1\nplan: test\n";

#[test]
fn needs_default_to_the_step_above() {
    let plan = good(&format!(
        "{HEAD}steps:
  a: {{ wait: {{ for: 1s }} }}
  b: {{ wait: {{ for: 1s }} }}
  c: {{ needs: [], wait: {{ for: 1s }} }}
  d: {{ needs: a, wait: {{ for: 1s }} }}
finally:
  x: {{ wait: {{ for: 1s }} }}
  y: {{ wait: {{ for: 1s }} }}
"
    ));
    assert_eq!(needs(&plan), ["a <- ", "b <- a", "c <- ", "d <- a", "x <- ", "y <- x"]);
    assert!(plan.steps[4].finally && !plan.steps[3].finally);
}

#[test]
fn for_each_makes_instances_side_by_side() {
    let plan = good(&format!(
        "{HEAD}inputs:
  names: {{ type: list, default: [x, y] }}
steps:
  first: {{ wait: {{ for: 1s }} }}
  many:
    for_each: \"{{{{ inputs.names }}}}\"
    exec: {{ argv: [echo, \"{{{{ item }}}}\"] }}
  none:
    for_each: []
    exec: {{ argv: [echo, \"{{{{ item }}}}\"] }}
  last:
    assert: {{ that: [ {{ value: \"{{{{ steps.many.stdout }}}}\", equals: [x, y] }} ] }}
"
    ));
    assert_eq!(needs(&plan), ["first <- ", "many[0] <- first", "many[1] <- first", "last <- many[0] many[1]"]);
    assert_eq!(plan.steps[1].item, Some(json!("x")));
    let mut known = Known::default();
    let rendered = plan.steps[3].render(&known).unwrap();
    assert_eq!(rendered.unknown, ["/that/0/value"]);
    for (instance, out) in [("many[0]", "x"), ("many[1]", "y")] {
        known.outputs.insert(instance.into(), [("stdout".to_owned(), json!(out))].into());
    }
    let rendered = plan.steps[3].render(&known).unwrap();
    assert_eq!(rendered.unknown, [""; 0]);
    assert!(format!("{:?}", rendered.step).contains("Array [String(\"x\"), String(\"y\")]"), "{:?}", rendered.step);
}

#[test]
fn every_mistake_in_one_go() {
    let loaded = text(
        "lifeboat: 1
plan: test
colour: red
inputs:
  mode: { type: string, choices: [a, b], default: c }
steps:
  a:
    execc: { argv: [echo] }
  b:
    needs: [bb]
    timeout: 5
    exec: { argv: [\"{{ inputs.mod }}\"], expect_exi: 0 }
  c:
    exec: { argv: [\"{{ steps.d.stdout }}\"] }
  d:
    when: eq inputs.mode
    retry: { attempts: 0 }
    exec: { argv: [\"{{ steps.c.stdot }}\", \"{{ steps.b.stdout\" ] }
",
    );
    assert!(loaded.plan.is_none());
    assert_eq!(
        told(&loaded),
        [
            "3:1 error unknown_key: the plan has no key `colour` | known here: `title`, `summary`, `objectives`, `owners`, `vars`, `targets`, `defaults`, `finally`, `outputs`",
            "5:51 error not_one_of: input `mode` is one of `a`, `b`, not `c` | did you mean `a`?",
            "8:5 error unknown_step: there is no step type `execc` | did you mean `exec`?",
            "10:13 error unknown_need: there is no step `bb` | did you mean `b`?",
            "11:14 error wrong_type: `timeout` is a duration, not the number 5 | say the unit: `5s`, `5m`",
            "12:24 error unknown_name: there is no input `mod` | did you mean `mode`?",
            "12:41 error unknown_key: `exec` has no key `expect_exi` | did you mean `expect_exit`?",
            "17:24 error out_of_range: `attempts` is at least 1, not 0",
            "18:43 error template: the template does not parse: expected a name or a helper call between `{{` and `}}`",
        ]
    );
}

#[test]
fn cycles_are_printed_as_a_path() {
    let loaded = text(&format!(
        "{HEAD}steps:\n  a: {{ needs: c, wait: {{ for: 1s }} }}\n  b: {{ wait: {{ for: 1s }} }}\n  c: {{ wait: {{ for: 1s }} }}\n"
    ));
    assert_eq!(loaded.problems[0].message, "steps wait for each other in a circle: a → c → b → a");
}

#[test]
fn sub_plans_are_opened() {
    let folder = folder(&[
        (
            "top.yaml",
            "lifeboat: 1
plan: top
inputs: { name: { default: auth } }
steps:
  find: { exec: { argv: [date] } }
  restore:
    when: eq inputs.name \"auth\"
    plan.run: { file: parts/inner.yaml, inputs: { database: \"{{ inputs.name }}\", stamp: \"{{ steps.find.stdout }}\" } }
  tell: { exec: { argv: [echo, \"{{ steps.restore.made }}\"] } }
finally:
  last: { wait: { for: 1s } }
",
        ),
        (
            "parts/inner.yaml",
            "lifeboat: 1
plan: inner
inputs: { database: {}, stamp: {} }
vars: { both: \"{{ inputs.database }}-{{ inputs.stamp }}\" }
steps:
  one: { exec: { argv: [echo, \"{{ vars.both }}\"] } }
  two: { needs: [], exec: { argv: [echo] } }
finally:
  clean: { wait: { for: 1s } }
outputs:
  made: \"{{ steps.one.stdout }}\"
",
        ),
    ]);
    let loaded = load(&folder.path().join("top.yaml"), &Options { complete: true, ..Options::default() });
    assert!(!loaded.has_errors(), "{:#?}", told(&loaded));
    let plan = loaded.plan.unwrap();
    assert_eq!(
        needs(&plan),
        [
            "find <- ",
            "restore/one <- find",
            "restore/two <- find",
            "restore <- restore/one restore/two",
            "tell <- restore",
            "restore/clean <- ",
            "last <- ",
        ]
    );
    let mut known = Known { complete: true, ..Known::default() };
    known.outputs.insert("find".into(), [("stdout".to_owned(), json!("today"))].into());
    assert_eq!(plan.steps[1].holds(&known).unwrap(), Some(true));
    let one = plan.steps[1].render(&known).unwrap();
    assert!(format!("{:?}", one.step).contains("auth-today"), "{:?}", one.step);
    known.outputs.insert("restore/one".into(), [("stdout".to_owned(), json!("made it"))].into());
    assert!(format!("{:?}", plan.steps[3].render(&known).unwrap().step).contains("made it"));
}

#[test]
fn plans_that_call_each_other_in_a_circle() {
    let call = |name: &str, file: &str| {
        format!("lifeboat: 1\nplan: {name}\nsteps:\n  go: {{ plan.run: {{ file: {file} }} }}\n")
    };
    let folder = folder(&[
        ("a.yaml", &call("a", "b.yaml")),
        ("b.yaml", &call("b", "./a.yaml")),
        ("c.yaml", &call("c", "../x.yaml")),
    ]);
    let loaded = load(&folder.path().join("a.yaml"), &Options::default());
    assert_eq!(loaded.problems[0].message, "plans call each other in a circle: a.yaml → b.yaml → a.yaml");
    let loaded = load(&folder.path().join("c.yaml"), &Options::default());
    assert_eq!(loaded.problems[0].code, "lifeboat::outside");
}

#[test]
fn an_environment_keeps_its_secrets() {
    let folder = folder(&[
        (
            "plan.yaml",
            "lifeboat: 1
plan: secretive
targets: { hook: webhook, api: http }
steps:
  tell: { notify: { target: hook, message: \"{{ targets.api.base_url }} {{ vars.who }}\" } }
  run: { exec: { argv: [echo, \"{{ vars.token }}\"] } }
  bad: { exec: { argv: [echo, \"{{ targets.hook.url }}\"] } }
",
        ),
        (
            "environments/production.yaml",
            "lifeboat: 1
environment: production
vars: { who: me, token: \"{{ (file \\\"token.txt\\\") }}\" }
targets:
  hook: { webhook: { url: \"http://x/{{ env.LIFEBOAT_TEST_NOT_SET }}\" } }
  api: { http: { base_url: http://localhost:1 } }
  unused: { http: { base_url: \"http://x/{{ env.LIFEBOAT_TEST_NOT_SET_EITHER }}\" } }
",
        ),
        ("environments/token.txt", "hunter22\n"),
    ]);
    let options = Options { environment: Some("production".to_owned()), ..Options::default() };
    let loaded = load(&folder.path().join("plan.yaml"), &options);
    let codes: Vec<&str> = loaded.problems.iter().map(|problem| problem.code).collect();
    assert_eq!(
        codes,
        ["lifeboat::missing_secret", "lifeboat::secret_in_arguments", "lifeboat::secret_setting"],
        "{:#?}",
        told(&loaded)
    );
    let (environment, _) = super::environment(folder.path(), "production", false).unwrap();
    assert_eq!(environment.redactor.redact("my hunter22"), "my ●●●●");
    let typo = Options { environment: Some("prodction".to_owned()), ..Options::default() };
    let loaded = load(&folder.path().join("plan.yaml"), &typo);
    assert_eq!(loaded.problems[0].help.as_deref(), Some("did you mean `production`?"));
}

#[test]
fn inputs_are_parsed_and_asked_for() {
    let plan = format!(
        "{HEAD}inputs:\n  count: {{ type: integer, min: 1 }}\nsteps:\n  a: {{ retry: {{ attempts: 2 }}, exec: {{ argv: [echo, \"{{{{ inputs.count }}}}\"] }} }}\n"
    );
    let load = |inputs: &[(&str, &str)], complete| {
        let inputs = inputs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        load_text("plan.yaml", plan.as_bytes(), &Options { inputs, complete, environment: None })
    };
    assert_eq!(load(&[], true).problems[0].code, "lifeboat::missing_input");
    assert!(!load(&[], false).has_errors());
    assert_eq!(load(&[("count", "0")], true).problems[0].message, "input `count` is at least 1, not 0");
    assert_eq!(load(&[("cuont", "1")], false).problems[0].help.as_deref(), Some("did you mean `count`?"));
    let loaded = load(&[("count", "3")], true).plan.unwrap();
    let rendered = loaded.steps[0].render(&Known::default()).unwrap();
    assert!(format!("{:?}", rendered.step).contains("\"3\""), "{:?}", rendered.step);
}

fn many(steps: usize, wide: bool, params: &str) -> String {
    let mut plan = format!("{HEAD}inputs: {{ x: {{ default: y }} }}\nsteps:\n");
    for step in 0..steps {
        let needs = if wide { "    needs: []\n" } else { "" };
        let _ = write!(plan, "  step-{step}:\n{needs}    exec: {{ argv: [{params}] }}\n");
    }
    plan
}

#[test]
fn ten_thousand_steps_load() {
    for wide in [false, true] {
        assert_eq!(good(&many(10_000, wide, "\"true\"")).steps.len(), 10_000);
    }
    assert_eq!(good(&many(1000, false, "echo, \"{{ inputs.x }}\"")).steps.len(), 1000);
}

#[test]
fn what_grows_without_bound_is_stopped() {
    let plan = format!(
        "{HEAD}inputs: {{ x: {{ type: list, default: [{}] }} }}\nsteps:\n  a: {{ for_each: \"{{{{ inputs.x }}}}\", wait: {{ for: 1s }} }}\n  b: {{ for_each: \"{{{{ inputs.x }}}}\", wait: {{ for: 1s }} }}\n",
        vec!["1"; 3000].join(", ")
    );
    assert_eq!(text(&plan).problems[0].code, "lifeboat::too_large");
}

mod any_text {
    use super::*;
    use proptest::prelude::*;

    const SEED: &str = "lifeboat: 1
plan: seed
inputs: { mode: { type: string, default: a }, list: { type: list, default: [1, 2] } }
vars: { v: \"{{ inputs.mode }}x\" }
targets: { api: http }
steps:
  a:
    title: T {{ vars.v }}
    retry: { attempts: 3, delay: 1s }
    exec: { argv: [echo, \"{{ inputs.mode }}\"], env: { A: b } }
  b:
    needs: [a]
    for_each: \"{{ inputs.list }}\"
    when: eq inputs.mode \"a\"
    assert: { that: [ { value: \"{{ steps.a.exit_code }}\", equals: 0 } ] }
finally:
  c: { wait: { for: 1s }, undo: { wait: { for: 2s } } }
outputs: { o: \"{{ steps.b.x }}\" }
";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn mutated_plans_never_panic(cuts in proptest::collection::vec((0usize..SEED.len(), 0usize..12, "[a-z:{}\\[\\]\"' \n.-]{0,6}"), 1..6)) {
            let mut plan = SEED.to_owned();
            for (at, length, insert) in cuts {
                let at = at.min(plan.len());
                let end = (at + length).min(plan.len());
                if plan.is_char_boundary(at) && plan.is_char_boundary(end) {
                    plan.replace_range(at..end, &insert);
                }
            }
            let loaded = text(&plan);
            prop_assert!(loaded.plan.is_some() != loaded.has_errors());
        }
    }

    #[test]
    fn the_seed_is_good_but_for_what_it_says() {
        let loaded = text(SEED);
        assert_eq!(told(&loaded).len(), 1, "{:#?}", told(&loaded));
    }
}
