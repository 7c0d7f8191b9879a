//! From a tree with places to a plan as written, each step with its type and its templates parsed.
//!
//! What can be told from one file alone is told here: shape, names, types of steps,
//! syntax of templates. Names are resolved later. Read next: `expand`.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::document::{CommonDocument, LANGUAGE, PlanDocument};
use super::hazard;
use super::problem::{Place, Problem, clip, nearest, suggest};
use super::schema;
use super::shape::Misfit;
use super::source::{Source, escape, segments};
use crate::step::{self, TypeInfo};
use crate::template::{Condition, TemplateError, Templated};

/// A plan's file, parsed.
#[derive(Debug)]
pub struct PlanFile {
    /// Its text and places.
    pub source: Source,
    /// As written.
    pub document: PlanDocument,
    /// `steps`, those that could be read.
    pub steps: Vec<StepDocument>,
    /// `finally`, those that could be read.
    pub finally: Vec<StepDocument>,
    /// `vars`, parsed.
    pub vars: Templated,
    /// `outputs`, parsed.
    pub outputs: Templated,
    /// Ids of steps that couldn't be read: nothing more is said of them.
    pub broken: HashSet<String>,
    /// Inputs that couldn't be read: neither of them.
    pub broken_inputs: HashSet<String>,
}

/// A step as written.
#[derive(Debug)]
pub struct StepDocument {
    /// Its id.
    pub id: String,
    /// Where it stands: `/steps/restore`.
    pub pointer: String,
    /// Its type.
    pub info: &'static TypeInfo,
    /// Its parameters.
    pub params: Templated,
    /// The other keys.
    pub common: CommonDocument,
    /// `needs`, as a list.
    pub needs: Option<Vec<String>>,
    /// `when`, parsed.
    pub when: Option<Condition>,
    /// `for_each`, parsed.
    pub for_each: Option<Templated>,
    /// `title`, parsed.
    pub title: Option<Templated>,
    /// `confirm`, parsed.
    pub confirm: Option<Templated>,
    /// `undo`, parsed.
    pub undo: Option<(&'static TypeInfo, Templated)>,
}

impl StepDocument {
    /// Where the parameters stand: `/steps/restore/postgres.restore`.
    pub fn params_pointer(&self) -> String {
        format!("{}/{}", self.pointer, self.info.name)
    }
}

impl PlanFile {
    /// The step of that id, in `steps` or `finally`.
    pub fn step(&self, id: &str) -> Option<&StepDocument> {
        self.steps.iter().chain(&self.finally).find(|step| step.id == id)
    }
}

/// Collects the problems of one file.
#[derive(Debug)]
pub struct Collector<'a> {
    /// The file.
    pub source: &'a Source,
    /// What was found.
    pub problems: &'a mut Vec<Problem>,
}

impl Collector<'_> {
    /// A problem at the value at `pointer`.
    pub fn value(
        &mut self,
        pointer: &str,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.problems.push(Problem::at(&self.source.value(pointer), code, message).help(help));
    }

    /// A problem at the key at `pointer`.
    pub fn key(
        &mut self,
        pointer: &str,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.problems.push(Problem::at(&self.source.key(pointer), code, message).help(help));
    }

    /// Misfits of the value at `base`.
    pub fn misfits(&mut self, base: &str, misfits: Vec<Misfit>) {
        for misfit in misfits {
            let pointer = format!("{base}{}", misfit.pointer);
            let place = if misfit.on_key { self.source.key(&pointer) } else { self.source.value(&pointer) };
            self.problems.push(Problem::at(&place, misfit.code, misfit.message).help(misfit.help));
        }
    }

    /// Templates below `base` that don't parse.
    pub fn template_errors(&mut self, base: &str, errors: Vec<TemplateError>) {
        for error in errors {
            let place = self.template_place(base, &error);
            let advice = [": did you mean", ": known are"].iter().find_map(|start| error.message.find(start));
            let (message, help) = match advice {
                Some(at) => (error.message[..at].to_owned(), Some(error.message[at + 2..].to_owned())),
                None => (error.message, None),
            };
            self.problems.push(Problem::at(&place, "lifeboat::template", message).help(help));
        }
    }

    fn template_place(&self, base: &str, error: &TemplateError) -> Place {
        let pointer = format!("{base}{}", error.pointer);
        let key = segments(&pointer).last().unwrap_or_default();
        if key.contains("{{") {
            return self.source.key(&pointer);
        }
        let text = text_at(self.source, &pointer);
        self.source.value(&pointer).part(&text, error.at.clone())
    }

    /// Parses the templates of `value`, which stands at `base`.
    pub fn templated(&mut self, base: &str, value: Value) -> Option<Templated> {
        match Templated::parse(value) {
            Ok(templated) => Some(templated),
            Err(errors) => {
                self.template_errors(base, errors);
                None
            }
        }
    }
}

/// The text at `pointer`; empty when there is none.
pub fn text_at(source: &Source, pointer: &str) -> String {
    let mut node = Some(&source.root);
    for segment in segments(pointer) {
        node = node.and_then(|node| node.child(&segment));
    }
    node.and_then(|node| node.to_value().as_str().map(str::to_owned)).unwrap_or_default()
}

/// Parses a plan's tree. None when it can't be told what the plan is.
pub fn plan(source: Source, problems: &mut Vec<Problem>) -> Option<PlanFile> {
    let value = source.root.to_value();
    let mut found = Collector { source: &source, problems };
    if !is_readable(&value, &mut found, "a plan", "plan") {
        return None;
    }
    let misfits = schema::plan_shape().check(&value);
    let wrong: Vec<String> = misfits.iter().map(|misfit| misfit.pointer.clone()).collect();
    // A step that isn't a map is told of here; one that is, below.
    found.misfits("", misfits);
    let broken_inputs =
        wrong.iter().filter_map(|pointer| segments(pointer.strip_prefix("/inputs")?).next()).collect();
    let document = document(&value, &wrong)?;
    let mut broken = HashSet::new();
    let steps = steps("steps", &document.steps, &mut found, &mut broken);
    let finally = self::steps("finally", &document.finally, &mut found, &mut broken);
    duplicate_ids(&document, &mut found);
    let vars = found.templated("/vars", Value::Object(document.vars.clone())).unwrap_or_default();
    let outputs = found.templated("/outputs", Value::Object(document.outputs.clone())).unwrap_or_default();
    Some(PlanFile { source, document, steps, finally, vars, outputs, broken, broken_inputs })
}

/// Whether the language version is ours; says so if not.
pub fn is_readable(value: &Value, found: &mut Collector<'_>, what: &str, name: &str) -> bool {
    let Value::Object(map) = value else {
        found.value(
            "",
            "lifeboat::wrong_type",
            format!("{what} is a map of keys"),
            format!("begin with `lifeboat: {LANGUAGE}` and `{name}: NAME`"),
        );
        return false;
    };
    match map.get("lifeboat").and_then(Value::as_u64) {
        Some(version) if version > LANGUAGE => {
            found.value(
                "/lifeboat",
                "lifeboat::newer_language",
                format!(
                    "{what} of language version {version}; this is lifeboat {}, which reads version {LANGUAGE}",
                    env!("CARGO_PKG_VERSION")
                ),
                format!("language version {version} is read by lifeboat {version}.0 and later"),
            );
            false
        }
        _ => true,
    }
}

/// The typed document, without what is `wrong` in it.
fn document(value: &Value, wrong: &[String]) -> Option<PlanDocument> {
    let mut value = value.clone();
    for pointer in wrong {
        // Of a wrong input nothing is kept; steps, vars and targets are kept as they are.
        let path: Vec<String> = segments(pointer).collect();
        match path.first().map(String::as_str) {
            Some("steps" | "finally" | "vars" | "targets" | "outputs") if path.len() > 1 => {}
            Some("inputs") => remove(&mut value, &path[..path.len().min(2)]),
            Some(_) => remove(&mut value, &path),
            None => {}
        }
    }
    let Value::Object(mut map) = value else { return None };
    map.retain(|_, value| !value.is_null());
    if !map.get("plan").is_some_and(Value::is_string) {
        map.insert("plan".to_owned(), "unnamed".into());
    }
    map.entry("lifeboat").or_insert(LANGUAGE.into());
    map.entry("steps").or_insert(Map::new().into());
    map.retain(|key, _| schema::plan_keys().contains(key));
    let whole = serde_json::from_value(Value::Object(map.clone()));
    whole
        .or_else(|_| {
            // Parts that can't be mended by leaving out a value: only the steps are looked at then.
            map.retain(|key, _| ["lifeboat", "plan", "steps"].contains(&key.as_str()));
            serde_json::from_value(Value::Object(map))
        })
        .ok()
}

fn remove(value: &mut Value, path: &[String]) {
    let [first, rest @ ..] = path else { return };
    match value {
        Value::Object(map) if rest.is_empty() => drop(map.shift_remove(first)),
        Value::Object(map) => {
            if let Some(inner) = map.get_mut(first) {
                remove(inner, rest);
            }
        }
        // Taking out one entry would move the others away from their pointers.
        Value::Array(items) => {
            if let Some(item) = first.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                if rest.is_empty() { *item = Value::Null } else { remove(item, rest) }
            }
        }
        _ => {}
    }
}

fn duplicate_ids(document: &PlanDocument, found: &mut Collector<'_>) {
    for id in document.finally.keys().filter(|id| document.steps.contains_key(*id)) {
        let first = found.source.key(&format!("/steps/{}", escape(id)));
        let place = found.source.key(&format!("/finally/{}", escape(id)));
        let problem =
            Problem::at(&place, "lifeboat::duplicate_key", format!("there is a step `{id}` in `steps` already"))
                .label("again here")
                .place(&first, Some("first here"))
                .help("step ids are unique in a plan; rename one of them".to_owned());
        found.problems.push(problem);
    }
}

fn steps(
    list: &str,
    steps: &Map<String, Value>,
    found: &mut Collector<'_>,
    broken: &mut HashSet<String>,
) -> Vec<StepDocument> {
    let mut parsed = Vec::with_capacity(steps.len());
    for (id, value) in steps {
        let pointer = format!("/{list}/{}", escape(id));
        match value {
            Value::Object(keys) => match step(id, &pointer, keys, found) {
                Some(step) => parsed.push(step),
                None => drop(broken.insert(id.clone())),
            },
            _ => drop(broken.insert(id.clone())),
        }
    }
    parsed
}

fn step(id: &str, pointer: &str, keys: &Map<String, Value>, found: &mut Collector<'_>) -> Option<StepDocument> {
    let (info, params) = step_type(id, pointer, keys, found)?;
    let params = found.templated(&format!("{pointer}/{}", info.name), params);
    let common = common(pointer, keys, found);
    let when = match &common.when {
        // `when: true` is no condition; `when: false` switches a step off.
        Some(Value::Bool(false)) => condition(pointer, "not true", found),
        Some(Value::String(text)) => condition(pointer, text, found),
        _ => None,
    };
    let mut text = |key: &str, text: &Option<String>| {
        text.as_ref().and_then(|text| found.templated(&format!("{pointer}/{key}"), Value::from(text.clone())))
    };
    let title = text("title", &common.title);
    let confirm = text("confirm", &common.confirm);
    let for_each = common.for_each.clone().and_then(|list| found.templated(&format!("{pointer}/for_each"), list));
    let undo = common.undo.as_ref().and_then(|undo| undo_of(id, &format!("{pointer}/undo"), undo, found));
    allowances(pointer, &common, found);
    Some(StepDocument {
        id: id.to_owned(),
        pointer: pointer.to_owned(),
        info,
        params: params?,
        needs: common.needs.as_ref().map(names),
        when,
        for_each,
        title,
        confirm,
        undo,
        common,
    })
}

/// The common keys of a step; those that don't fit are told and left out.
fn common(pointer: &str, keys: &Map<String, Value>, found: &mut Collector<'_>) -> CommonDocument {
    let known = keys.iter().filter(|(key, value)| schema::common_keys().contains(*key) && !value.is_null());
    let common: Value = known.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>().into();
    let misfits = schema::common_shape().check(&common);
    let bad: HashSet<String> = misfits.iter().filter_map(|misfit| segments(&misfit.pointer).next()).collect();
    found.misfits(pointer, misfits);
    let Value::Object(mut map) = common else { return CommonDocument::default() };
    map.retain(|key, _| !bad.contains(key));
    serde_json::from_value(Value::Object(map)).unwrap_or_default()
}

fn names(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn condition(pointer: &str, text: &str, found: &mut Collector<'_>) -> Option<Condition> {
    match Condition::parse(text) {
        Ok(condition) => Some(condition),
        Err(_) => {
            let message = if text.contains("{{") {
                "a condition is an expression without braces"
            } else {
                "the condition does not parse: it is one name, or one helper with its arguments"
            };
            let help = "write it as `eq inputs.mode \"restore\"`; `and`, `or`, `not`, `gt` and so on stand before what they compare".to_owned();
            found.value(&format!("{pointer}/when"), "lifeboat::template", message, help);
            None
        }
    }
}

/// The one key of a step that is a type, and the parameters.
fn step_type(
    id: &str,
    pointer: &str,
    keys: &Map<String, Value>,
    found: &mut Collector<'_>,
) -> Option<(&'static TypeInfo, Value)> {
    let mut types: Vec<(&'static TypeInfo, &Value)> = Vec::new();
    let mut unknown: Vec<&String> = Vec::new();
    for (key, value) in keys {
        match step::find(key) {
            Some(info) => types.push((info, value)),
            None if schema::common_keys().contains(key) => {}
            None => unknown.push(key),
        }
    }
    let alone = types.is_empty() && unknown.len() == 1;
    for key in unknown {
        let key_pointer = format!("{pointer}/{}", escape(key));
        let common = nearest(key, schema::common_keys().iter().map(String::as_str));
        if let (Some(common), false) = (common, key.contains('.')) {
            found.key(
                &key_pointer,
                "lifeboat::unknown_key",
                format!("a step has no key `{}`", clip(key)),
                format!("did you mean `{common}`?"),
            );
        } else if alone || key.contains('.') {
            found.key(
                &key_pointer,
                "lifeboat::unknown_step",
                format!("there is no step type `{}`", clip(key)),
                suggest_type(key),
            );
        } else {
            let known =
                schema::common_keys().iter().map(String::as_str).chain(step::TYPES.iter().map(|info| info.name));
            let help = nearest(key, known).map(|nearest| format!("did you mean `{nearest}`?"));
            let help = help.or_else(|| Some("parameters belong below the step type, indented".to_owned()));
            found.key(&key_pointer, "lifeboat::unknown_key", format!("a step has no key `{}`", clip(key)), help);
        }
    }
    match types.as_slice() {
        [] if alone => None,
        [] => {
            found.key(
                pointer,
                "lifeboat::no_step_type",
                format!("step `{}` has no step type", clip(id)),
                "say what it does, as in `postgres.query: { … }`; `lifeboat steps` lists the types".to_owned(),
            );
            None
        }
        [(info, params)] => {
            let params = if params.is_null() { Value::Object(Map::new()) } else { (*params).clone() };
            Some((*info, params))
        }
        [(first, _), (second, _), ..] => {
            let place = found.source.key(&format!("{pointer}/{}", second.name));
            let first = (first.name, found.source.key(&format!("{pointer}/{}", first.name)));
            let problem = Problem::at(
                &place,
                "lifeboat::two_step_types",
                format!("step `{}` has two step types, `{}` and `{}`", clip(id), first.0, second.name),
            )
            .place(&first.1, Some("the first"))
            .help("make two steps of it".to_owned());
            found.problems.push(problem);
            None
        }
    }
}

/// The type that was probably meant, or those of the same group.
fn suggest_type(key: &str) -> Option<String> {
    if let Some(nearest) = nearest(key, step::TYPES.iter().map(|info| info.name)) {
        return Some(format!("did you mean `{nearest}`?"));
    }
    let group = key.split('.').next().unwrap_or(key);
    let related = step::TYPES.iter().map(|info| info.name).filter(|name| name.split('.').any(|part| part == group));
    suggest("", related)
        .filter(|_| !group.is_empty())
        .or_else(|| Some("`lifeboat steps` lists the types".to_owned()))
}

/// `undo`, one step type with its parameters.
fn undo_of(
    id: &str,
    pointer: &str,
    keys: &Map<String, Value>,
    found: &mut Collector<'_>,
) -> Option<(&'static TypeInfo, Templated)> {
    let (key, params) = keys.iter().next()?;
    let Some(info) = step::find(key) else {
        let key_pointer = format!("{pointer}/{}", escape(key));
        found.key(
            &key_pointer,
            "lifeboat::unknown_step",
            format!("there is no step type `{}`", clip(key)),
            suggest_type(key),
        );
        return None;
    };
    if info.name == "plan.run" {
        let help = "write the undo on the steps of that plan".to_owned();
        found.key(
            &format!("{pointer}/{key}"),
            "lifeboat::unknown_step",
            format!("`{id}` can't be undone by a plan"),
            help,
        );
        return None;
    }
    let params = if params.is_null() { Value::Object(Map::new()) } else { params.clone() };
    Some((info, found.templated(&format!("{pointer}/{}", info.name), params)?))
}

/// `allow` names hazards and goes with `because`.
fn allowances(pointer: &str, common: &CommonDocument, found: &mut Collector<'_>) {
    match (&common.allow, &common.because) {
        (Some(_), None) => found.key(
            &format!("{pointer}/allow"),
            "lifeboat::missing_key",
            "`allow` needs `because`: why is it no hazard here?",
            "add `because: …`; reviews show it".to_owned(),
        ),
        (None, Some(_)) => {
            found.key(
                &format!("{pointer}/because"),
                "lifeboat::unknown_key",
                "`because` explains an `allow`, and there is none",
                "add `allow: [code]`, or remove it".to_owned(),
            );
        }
        _ => {}
    }
    for (index, code) in common.allow.iter().flatten().enumerate() {
        if hazard_code(code).is_none() {
            found.value(
                &format!("{pointer}/allow/{index}"),
                "lifeboat::not_one_of",
                format!("`{}` is no hazard", clip(code)),
                suggest(code, hazard::CODES.iter().map(|code| code.trim_start_matches("lifeboat::"))),
            );
        }
    }
}

/// The hazard of that code, with or without `lifeboat::`.
pub fn hazard_code(code: &str) -> Option<&'static str> {
    hazard::CODES.into_iter().find(|known| *known == code || known.strip_prefix("lifeboat::") == Some(code))
}
