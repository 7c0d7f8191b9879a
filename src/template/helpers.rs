//! What a template can call: handlebars' own helpers, and the few that plans need.

use handlebars::{
    Context, Handlebars, Helper, HelperDef, HelperResult, JsonValue, Output, PathAndJson, RenderContext,
    RenderError, RenderErrorReason, ScopedJson, handlebars_helper,
};
use serde_json::Value;

use super::limits;

/// Every helper, for suggestions and docs. `file` works in environment files only.
pub const NAMES: [&str; 25] = [
    "and",
    "date",
    "default",
    "each",
    "eq",
    "file",
    "gt",
    "gte",
    "if",
    "join",
    "json",
    "len",
    "lookup",
    "lower",
    "lt",
    "lte",
    "ne",
    "not",
    "now",
    "or",
    "replace",
    "sql_ident",
    "sql_literal",
    "unless",
    "with",
];

/// Adds ours to handlebars' own, and takes away what prints by itself.
pub(super) fn register(registry: &mut Handlebars<'static>) {
    handlebars_helper!(lower: |text: str| text.to_lowercase());
    handlebars_helper!(json: |value: Json| value.to_string());
    registry.register_helper("lower", Box::new(lower));
    registry.register_helper("replace", Box::new(Function(replace)));
    registry.register_helper("json", Box::new(json));
    registry.register_helper("join", Box::new(Function(join)));
    registry.register_helper("now", Box::new(Function(|_| Ok(jiff::Timestamp::now().to_string().into()))));
    registry.register_helper("date", Box::new(Function(date)));
    registry.register_helper("sql_literal", Box::new(Function(sql_literal)));
    registry.register_helper("sql_ident", Box::new(Function(sql_ident)));
    registry.register_helper("default", Box::new(Default));
    registry.register_helper("file", Box::new(File));
    registry.register_helper("__value", Box::new(Whole));
    registry.unregister_helper("log");
    registry.unregister_helper("raw");
}

/// A helper that is a function of its arguments, all of which must have a value.
struct Function(fn(&[&Value]) -> Result<Value, String>);

impl HelperDef for Function {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        if let Some(missing) = helper.params().iter().find(|param| param.is_value_missing()) {
            return Err(RenderErrorReason::MissingVariable(missing.relative_path().cloned()).into());
        }
        let arguments: Vec<&Value> = helper.params().iter().map(PathAndJson::value).collect();
        (self.0)(&arguments)
            .map(ScopedJson::Derived)
            .map_err(|message| RenderErrorReason::Other(format!("`{}`: {message}", helper.name())).into())
    }
}

/// `default VALUE FALLBACK`: the fallback where the value is missing, null or an empty text.
struct Default;

impl HelperDef for Default {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        let given = helper
            .param(0)
            .filter(|param| !param.is_value_missing())
            .map(PathAndJson::value)
            .filter(|value| !value.is_null() && value.as_str() != Some(""));
        match given.or_else(|| helper.param(1).map(PathAndJson::value)) {
            Some(value) => Ok(ScopedJson::Derived(value.clone())),
            None => Err(RenderErrorReason::ParamNotFoundForIndex("default", 1).into()),
        }
    }
}

/// `file "path"`: the text that the context's `__files` holds for it.
struct File;

impl HelperDef for File {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        context: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        let path = helper.param(0).and_then(|param| param.value().as_str()).unwrap_or_default();
        context
            .data()
            .get("__files")
            .and_then(|files| files.get(path))
            .map(|text| ScopedJson::Derived(text.clone()))
            .ok_or_else(|| RenderErrorReason::Other("`file` works in environment files only".to_owned()).into())
    }
}

/// `__value X`: prints X as JSON, so that a whole expression keeps its type.
struct Whole;

impl HelperDef for Whole {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        match helper.param(0) {
            Some(param) if !param.is_value_missing() => Ok(out.write(&param.value().to_string())?),
            Some(param) => Err(RenderErrorReason::MissingVariable(param.relative_path().cloned()).into()),
            None => Err(RenderErrorReason::MissingVariable(None).into()),
        }
    }
}

fn text_of(value: &JsonValue) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `replace TEXT FROM TO`: each FROM in the text as TO.
fn replace(arguments: &[&Value]) -> Result<Value, String> {
    let [Value::String(text), Value::String(from), Value::String(to)] = arguments else {
        return Err("takes three texts: in what, what, by what".to_owned());
    };
    let grown = text.matches(from.as_str()).count().checked_mul(to.len());
    limits::check_length(grown.and_then(|grown| grown.checked_add(text.len())))?;
    Ok(text.replace(from.as_str(), to).into())
}

/// `join LIST SEPARATOR`: the list's entries as one text.
fn join(arguments: &[&Value]) -> Result<Value, String> {
    let [Value::Array(list), Value::String(separator)] = arguments else {
        return Err("takes a list and a separator".to_owned());
    };
    limits::check_length(list.len().checked_mul(separator.len()))?;
    Ok(list.iter().map(text_of).collect::<Vec<_>>().join(separator).into())
}

/// `date INSTANT FORMAT`: strftime in UTC, as `date run.started_at "%Y%m%dT%H%M%SZ"`.
fn date(arguments: &[&Value]) -> Result<Value, String> {
    let [instant, format] = arguments else { return Err("takes an instant and a format".to_owned()) };
    let (Some(instant), Some(format)) = (instant.as_str(), format.as_str()) else {
        return Err("takes an instant and a format, both as text".to_owned());
    };
    // The stand-in of an instant that only the run knows formats to itself.
    if instant.starts_with('‹') {
        return Ok(instant.into());
    }
    let instant: jiff::Timestamp =
        instant.parse().map_err(|_| format!("`{instant}` is not an RFC 3339 instant with an offset"))?;
    jiff::fmt::strtime::format(format, instant).map(Value::from).map_err(|error| format!("`{format}`: {error}"))
}

/// `sql_literal VALUE`: the value as an SQL constant.
fn sql_literal(arguments: &[&Value]) -> Result<Value, String> {
    let [value] = arguments else { return Err("takes one value".to_owned()) };
    Ok(match value {
        Value::Null => "NULL".into(),
        Value::Bool(value) => if *value { "TRUE" } else { "FALSE" }.into(),
        Value::Number(number) => number.to_string().into(),
        Value::String(text) if text.contains('\0') => return Err("a NUL byte can't stand in SQL".to_owned()),
        Value::String(text) => postgres_protocol::escape::escape_literal(text).trim_start().into(),
        other => postgres_protocol::escape::escape_literal(&other.to_string()).trim_start().into(),
    })
}

/// `sql_ident NAME`: the name as one quoted SQL identifier.
fn sql_ident(arguments: &[&Value]) -> Result<Value, String> {
    let [Value::String(name)] = arguments else { return Err("takes one name".to_owned()) };
    if name.is_empty() || name.contains('\0') {
        return Err("an identifier is not empty and has no NUL byte".to_owned());
    }
    Ok(postgres_protocol::escape::escape_identifier(name).into())
}
