//! Opening a `plan.run`: the called file, what it is given, and the step that joins its ends.

use super::{
    Arc, Call, Collector, Expander, Given, Known, Late, MAX_CALLS, Map, Passed, Path, PathBuf, PlanFile,
    PlannedStep, StepDocument, Templated, Value, ValueKind, Viewer, clip, digest, json, parse, quoted, source,
    suggest,
};
use crate::plan::input;

/// Keys that mean nothing on a step that runs a plan: its steps have their own.
const NOT_HERE: [(&str, &str); 5] = [
    ("retry", "put it on the steps of that plan, or under its `defaults`"),
    ("timeout", "put it on the steps of that plan, or under its `defaults`"),
    ("confirm", "put it on the first step of that plan, or an `approve` step before this one"),
    ("interrupted", "put it on the steps of that plan"),
    ("valid_for", "put it on the checks of that plan"),
];

impl Expander<'_> {
    /// The file that a `plan.run` calls, read once. Problems are told by the first caller.
    pub(super) fn called_file(
        &mut self,
        step: &StepDocument,
        file: &Arc<PlanFile>,
        call: &Call,
    ) -> Option<Arc<PlanFile>> {
        let path = self.called_path(step, file, call)?;
        if let Some(known) = self.read.get(&path) {
            return known.clone();
        }
        let pointer = format!("{}/file", step.params_pointer());
        let read = match self.files.read(&path) {
            Ok(bytes) => {
                self.digests.push(digest(&bytes));
                let (source, problems) = source::read(&self.files.shown(&path), &bytes);
                self.problems.extend(problems);
                source.and_then(|source| parse::plan(source, &mut self.problems)).map(Arc::new)
            }
            Err(why) => {
                let help = "the file is looked for beside the calling plan; it lies in the folder of the plan that is run, \
                            or below it"
                    .to_owned();
                let message = format!("can't read the plan {}: {why}", self.files.shown(&path));
                Collector { source: &file.source, problems: &mut self.problems }.value(
                    &pointer,
                    "lifeboat::unreadable",
                    message,
                    help,
                );
                None
            }
        };
        self.read.insert(path, read.clone());
        read
    }

    /// The called file's path from the top plan's folder, which it may not leave, nor lead
    /// back to a plan that is being opened.
    fn called_path(&mut self, step: &StepDocument, file: &Arc<PlanFile>, call: &Call) -> Option<PathBuf> {
        let mut found = Collector { source: &file.source, problems: &mut self.problems };
        let pointer = format!("{}/file", step.params_pointer());
        let written = step.params.source().get("file")?.as_str()?;
        if written.contains("{{") {
            found.value(
                &pointer,
                "lifeboat::not_known_before_run",
                "`file` must be written out: the plan is opened before anything is known",
                None,
            );
            return None;
        }
        let Some(path) = joined(call.path.parent().unwrap_or(Path::new("")), Path::new(written)) else {
            let help = "a sub-plan lies in the folder of the plan that is run, or below it".to_owned();
            found.value(
                &pointer,
                "lifeboat::outside",
                format!("`{}` leads out of the plan's folder", clip(written)),
                help,
            );
            return None;
        };
        if let Some(from) = call.stack.iter().position(|open| open == &path) {
            let circle: Vec<String> =
                call.stack[from..].iter().chain([&path]).map(|path| path.display().to_string()).collect();
            found.value(
                &pointer,
                "lifeboat::cycle",
                format!("plans call each other in a circle: {}", circle.join(" → ")),
                None,
            );
            return None;
        }
        if call.stack.len() > MAX_CALLS {
            found.value(
                &pointer,
                "lifeboat::too_deep",
                format!("plans call each other deeper than {MAX_CALLS} levels"),
                None,
            );
            return None;
        }
        Some(path)
    }

    /// Opens the called plan before `step`, and makes `step` wait for all of it.
    pub(super) fn open_call(
        &mut self,
        step: &mut PlannedStep,
        file: &Arc<PlanFile>,
        at: usize,
        in_finally: bool,
        call: &Call,
    ) -> Option<Arc<PlanFile>> {
        let document = if in_finally { &file.finally[at] } else { &file.steps[at] };
        let mut found = Collector { source: &file.source, problems: &mut self.problems };
        for (key, help) in NOT_HERE {
            if file
                .source
                .root
                .child(if in_finally { "finally" } else { "steps" })
                .and_then(|list| list.child(&document.id)?.child(key))
                .is_some()
            {
                found.key(
                    &format!("{}/{key}", document.pointer),
                    "lifeboat::not_on_plan_run",
                    format!("`{key}` means nothing on a step that runs a plan"),
                    help.to_owned(),
                );
            }
        }
        let path = self.called_path(document, file, call)?;
        let called = self.called_file(document, file, call)?;
        let given = self.given(step, document, file, &called);
        let mut stack = call.stack.clone();
        stack.push(path.clone());
        let inner = Call {
            path,
            stack,
            finally: step.finally,
            needs: step.needs.clone(),
            guards: step.when.clone(),
            continues: step.continue_on_failure,
            allowed: step.allowed.clone(),
        };
        let settled = self.settle(&called, &format!("{}/", step.id), &given, &inner);
        let last = self.open(&called, &settled, &inner);
        if !last.is_empty() {
            step.needs = last;
        }
        let params = json!({ "file": step.params.source().get("file"), "outputs": called.outputs.source() });
        // The outputs were parsed on their own before.
        step.params = Templated::parse(params).unwrap_or_default();
        step.called = Some(settled.scope);
        Some(called)
    }

    /// What the call gives to the called plan's inputs.
    fn given(
        &mut self,
        step: &PlannedStep,
        document: &StepDocument,
        file: &Arc<PlanFile>,
        called: &PlanFile,
    ) -> Given {
        let empty = Map::new();
        let params = document.params_pointer();
        let inputs = document.params.source().get("inputs").and_then(Value::as_object).unwrap_or(&empty);
        let mut found = Collector { source: &file.source, problems: &mut self.problems };
        let mut given = Given { is_called: true, ..Given::default() };
        for (name, value) in inputs {
            let pointer = format!("{params}/inputs/{}", source::escape(name));
            let Some(declared) = called.document.inputs.get(name) else {
                let known = called.document.inputs.keys().map(String::as_str);
                let help = suggest(name, known).or_else(|| Some("that plan has no inputs".to_owned()));
                found.key(
                    &pointer,
                    "lifeboat::unknown_input",
                    format!("plan `{}` has no input `{}`", called.document.plan, clip(name)),
                    help,
                );
                continue;
            };
            // Its templates were parsed with the step's other parameters.
            let Ok(template) = Templated::parse(value.clone()) else { continue };
            let known = Known::default();
            let seen = Viewer { scope: &step.scope, item: step.item.as_ref(), known: &known }.see(&template);
            let passed = if seen.is_known() {
                let Ok(value) = seen.value(&template) else { continue };
                if let Err(wrong) = input::check(name, declared, &value) {
                    found.value(&pointer, wrong.code, wrong.message, wrong.help);
                    continue;
                }
                let secret = template.references().iter().any(|read| step.scope.is_secret(&read.path));
                Passed::Value { value, secret }
            } else {
                let kind = seen.whole_kind(&template);
                if !fits(kind, declared.kind.kind()) {
                    let message = format!(
                        "input `{name}` of plan `{}` is of type {:?}, and this is {kind:?}",
                        called.document.plan, declared.kind
                    )
                    .to_lowercase();
                    found.value(&pointer, "lifeboat::wrong_type", message, None);
                }
                let late = Late {
                    template: Arc::new(template),
                    scope: Some(Arc::clone(&step.scope)),
                    item: step.item.clone(),
                    redactor: None,
                    kind,
                };
                Passed::Late(late, (kind != ValueKind::Any).then_some(kind))
            };
            given.called.insert(name.clone(), passed);
        }
        let environment = self.environment;
        let missing: Vec<&str> = called
            .document
            .inputs
            .iter()
            .filter(|(name, declared)| {
                declared.default.is_none() && !inputs.contains_key(*name) && !environment.inputs.contains_key(*name)
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if !missing.is_empty() {
            let message = format!("plan `{}` needs {}", called.document.plan, quoted(missing.iter().copied()));
            let mut found = Collector { source: &file.source, problems: &mut self.problems };
            found.key(
                &params,
                "lifeboat::missing_input",
                message,
                format!("add `inputs: {{ {}: … }}`", missing[0]),
            );
        }
        given
    }
}

/// Whether a value of one kind can be given to an input of another.
fn fits(kind: ValueKind, declared: ValueKind) -> bool {
    kind == ValueKind::Any
        || kind == declared
        || matches!(
            (kind, declared),
            (ValueKind::Integer, ValueKind::Number)
                | (ValueKind::String, ValueKind::Duration | ValueKind::Timestamp)
                | (ValueKind::Duration | ValueKind::Timestamp, ValueKind::String)
        )
}

/// `file` as seen from `folder`, without `.` and `..`; none when it leaves the top folder.
fn joined(folder: &Path, file: &Path) -> Option<PathBuf> {
    use std::path::Component;
    let mut path = PathBuf::new();
    for component in folder.components().chain(file.components()) {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            _ => return None,
        }
    }
    (!path.as_os_str().is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_top_plan() {
        let cases = [
            ("", "a.yaml", Some("a.yaml")),
            ("sub", "../b.yaml", Some("b.yaml")),
            ("sub", "./c/d.yaml", Some("sub/c/d.yaml")),
            ("", "../x.yaml", None),
            ("", "/etc/passwd", None),
            ("", "", None),
        ];
        for (folder, file, expected) in cases {
            assert_eq!(joined(Path::new(folder), Path::new(file)), expected.map(PathBuf::from), "{folder} {file}");
        }
    }
}
