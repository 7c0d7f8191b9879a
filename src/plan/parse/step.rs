//! One step: its type, its parameters, its common keys.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{Collector, StepDocument, hazard_code};
use crate::plan::document::CommonDocument;
use crate::plan::hazard;
use crate::plan::problem::{Problem, clip, nearest, suggest};
use crate::plan::schema;
use crate::plan::source::{escape, segments};
use crate::step::{self, TypeInfo};
use crate::template::{Condition, Templated};

/// Parses a step. None when it has no type, or its parameters can't be parsed.
pub(super) fn parse(
    id: &str,
    pointer: &str,
    keys: &Map<String, Value>,
    found: &mut Collector<'_>,
) -> Option<StepDocument> {
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
    if let Ok(condition) = Condition::parse(text) {
        return Some(condition);
    }
    let message = if text.contains("{{") {
        "a condition is an expression without braces"
    } else {
        "the condition does not parse: it is one name, or one helper with its arguments"
    };
    let help = "write it as `eq inputs.mode \"restore\"`; `and`, `or`, `not`, `gt` and so on stand before what they compare";
    found.value(&format!("{pointer}/when"), "lifeboat::template", message, help.to_owned());
    None
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
