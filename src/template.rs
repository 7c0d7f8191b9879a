//! Templates: handlebars, strict, without escaping, parsed at load and checked before they render.
//!
//! Knows nothing of plans: a template says which paths it reads, and renders on a JSON
//! object. It never reads a file or the process's environment by itself.
//! `inspect` finds what a template reads; `helpers` is what it can call; `limits` bounds what
//! it may cost.

mod helpers;
mod inspect;
mod limits;

use std::ops::Range;
use std::sync::LazyLock;

use handlebars::{Context, Handlebars, RenderContext, RenderError, RenderErrorReason, Renderable, Template};
use serde_json::{Map, Value};

pub use helpers::NAMES as HELPERS;
use inspect::Inspected;
use limits::Allowance;

/// A JSON value whose strings may hold templates, parsed.
#[derive(Clone, Debug, Default)]
pub struct Templated {
    value: Value,
    parsed: Vec<Parsed>,
    references: Vec<Reference>,
}

/// One string with templates in it.
#[derive(Clone, Debug)]
struct Parsed {
    pointer: String,
    template: Template,
    /// The string is exactly one expression: the value keeps its own type.
    whole: bool,
    unquoted: Vec<Range<usize>>,
    files: Vec<String>,
}

/// A path that a template reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where in the value, as a JSON pointer.
    pub pointer: String,
    /// The path's segments: `["steps", "find-backup", "path"]`.
    pub path: Vec<String>,
    /// Where in the string, in bytes; best effort, the whole string otherwise.
    pub at: Range<usize>,
    /// Whether it is the whole string: the parameter then keeps the value's own type.
    pub whole: bool,
}

/// A template that does not parse or render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    /// Where in the value, as a JSON pointer.
    pub pointer: String,
    /// Where in the string, in bytes.
    pub at: Range<usize>,
    /// What is wrong.
    pub message: String,
}

/// The handlebars registry with our helpers; strict, so that a missing name is an error.
static REGISTRY: LazyLock<Handlebars<'static>> = LazyLock::new(|| {
    let mut registry = Handlebars::new();
    registry.set_strict_mode(true);
    registry.register_escape_fn(handlebars::no_escape);
    helpers::register(&mut registry);
    registry
});

impl Templated {
    /// Parses every string of `value`.
    ///
    /// # Errors
    /// All templates that don't parse, and unknown helpers.
    pub fn parse(value: Value) -> Result<Self, Vec<TemplateError>> {
        let mut templated = Self { value: Value::Null, parsed: Vec::new(), references: Vec::new() };
        let mut errors = Vec::new();
        visit(&value, &mut String::new(), &mut |pointer, text, is_key| {
            if is_key {
                errors.push(TemplateError {
                    pointer: pointer.to_owned(),
                    at: 0..text.len(),
                    message: "a template can't stand in a key, only in a value".to_owned(),
                });
                return;
            }
            match parse_text(text) {
                Ok((template, inspected, whole)) => templated.take(pointer, template, inspected, whole),
                Err(error) => errors.push(TemplateError { pointer: pointer.to_owned(), ..error }),
            }
        });
        templated.value = value;
        if errors.is_empty() { Ok(templated) } else { Err(errors) }
    }

    /// The value as written.
    pub fn source(&self) -> &Value {
        &self.value
    }

    /// Every path that is read, in the order of the text.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// Whether there is any template in it.
    pub fn is_literal(&self) -> bool {
        self.parsed.is_empty()
    }

    /// Every string with a template in it: where, and whether it is exactly one expression,
    /// whose value then keeps its own type.
    pub fn templates(&self) -> impl Iterator<Item = (&str, bool)> {
        self.parsed.iter().map(|parsed| (parsed.pointer.as_str(), parsed.whole))
    }

    /// The paths that `(file "…")` names; the one who renders gives their text in the
    /// context's `__files` object. Only environment files may call it.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parsed
            .iter()
            .flat_map(|parsed| parsed.files.iter().map(|file| (parsed.pointer.as_str(), file.as_str())))
    }

    /// Expressions that aren't quoted by `sql_literal` or `sql_ident`, at or below `pointer`:
    /// the string's pointer, and the place in it.
    pub fn unquoted(&self, pointer: &str) -> Vec<(String, Range<usize>)> {
        let below = format!("{pointer}/");
        self.parsed
            .iter()
            .filter(|parsed| parsed.pointer == pointer || parsed.pointer.starts_with(&below))
            .flat_map(|parsed| parsed.unquoted.iter().map(|at| (parsed.pointer.clone(), at.clone())))
            .collect()
    }

    /// The value with every template rendered on `context`.
    ///
    /// # Errors
    /// The first template that fails: a missing name, a helper's refusal.
    pub fn render(&self, context: &Value) -> Result<Value, TemplateError> {
        self.render_or(context, Err)
    }

    /// The same, but what fails is handed to `instead`, whose value then stands there.
    ///
    /// # Errors
    /// The first that `instead` hands back.
    pub fn render_or(
        &self,
        context: &Value,
        mut instead: impl FnMut(TemplateError) -> Result<Value, TemplateError>,
    ) -> Result<Value, TemplateError> {
        let mut rendered = self.value.clone();
        if self.parsed.is_empty() {
            return Ok(rendered);
        }
        let context = Context::from(context.clone());
        let mut allowance = Allowance::default();
        for parsed in &self.parsed {
            let mut out = allowance.text();
            let result = parsed.template.render(&REGISTRY, &context, &mut RenderContext::new(None), &mut out);
            let value = match result {
                // A whole expression was parsed as a call of `__value`, which prints JSON.
                Ok(()) if parsed.whole => serde_json::from_str(&out.text).unwrap_or(Value::String(out.text)),
                Ok(()) => Value::String(out.text),
                Err(error) => instead(self.failed(parsed, &error))?,
            };
            if let Some(place) = rendered.pointer_mut(&parsed.pointer) {
                *place = value;
            }
        }
        Ok(rendered)
    }

    fn take(&mut self, pointer: &str, template: Template, inspected: Inspected, whole: bool) {
        self.references.extend(inspected.references.into_iter().map(|(path, at)| Reference {
            pointer: pointer.to_owned(),
            path,
            at,
            whole: whole && inspected.plain_path,
        }));
        self.parsed.push(Parsed {
            pointer: pointer.to_owned(),
            template,
            whole,
            unquoted: inspected.unquoted,
            files: inspected.files,
        });
    }

    fn failed(&self, parsed: &Parsed, error: &RenderError) -> TemplateError {
        let text = self.value.pointer(&parsed.pointer).and_then(Value::as_str).unwrap_or_default();
        TemplateError { pointer: parsed.pointer.clone(), at: 0..text.len(), message: explain(error.reason()) }
    }
}

/// A `when`: an expression without braces, `eq inputs.mode "restore"`.
#[derive(Clone, Debug)]
pub struct Condition {
    source: String,
    expression: Templated,
}

impl Condition {
    /// Parses an expression.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let wrong = |message: String| TemplateError { pointer: String::new(), at: 0..text.len(), message };
        if text.contains("{{") {
            return Err(wrong(
                "a condition is an expression without braces: `eq inputs.mode \"restore\"`".to_owned(),
            ));
        }
        let expression = Templated::parse(Value::from(format!("{{{{{}}}}}", text.trim())))
            .map_err(|errors| wrong(errors.into_iter().map(|error| error.message).collect()))?;
        if !expression.parsed.first().is_some_and(|parsed| parsed.whole) {
            return Err(wrong("a condition is one expression: `eq inputs.mode \"restore\"`".to_owned()));
        }
        Ok(Self { source: text.to_owned(), expression })
    }

    /// The text as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Every path that is read.
    pub fn references(&self) -> &[Reference] {
        self.expression.references()
    }

    /// Whether it holds: false, null, 0, an empty text or list are false, all else is true.
    ///
    /// # Errors
    /// When a name is missing or a helper refuses.
    pub fn holds(&self, context: &Value) -> Result<bool, TemplateError> {
        Ok(match self.expression.render(context)? {
            Value::Null => false,
            Value::Bool(value) => value,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(map) => !map.is_empty(),
        })
    }
}

/// Calls `found` with each string that has a template in it; `true` marks an object's key.
fn visit(value: &Value, pointer: &mut String, found: &mut impl FnMut(&str, &str, bool)) {
    match value {
        Value::String(text) if text.contains("{{") => found(pointer, text, false),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                below(pointer, &index.to_string(), |pointer| visit(item, pointer, found));
            }
        }
        Value::Object(map) => visit_map(map, pointer, found),
        _ => {}
    }
}

fn visit_map(map: &Map<String, Value>, pointer: &mut String, found: &mut impl FnMut(&str, &str, bool)) {
    for (key, item) in map {
        below(pointer, &key.replace('~', "~0").replace('/', "~1"), |pointer| {
            if key.contains("{{") {
                found(pointer, key, true);
            }
            visit(item, pointer, found);
        });
    }
}

fn below(pointer: &mut String, segment: &str, visit: impl FnOnce(&mut String)) {
    let length = pointer.len();
    pointer.push('/');
    pointer.push_str(segment);
    visit(pointer);
    pointer.truncate(length);
}

/// Parses one string. A string that is exactly one expression is rewritten as a call of
/// `__value`, so that handlebars evaluates it and its type survives.
fn parse_text(text: &str) -> Result<(Template, Inspected, bool), TemplateError> {
    let fail = |at: Range<usize>, message: String| TemplateError { pointer: String::new(), at, message };
    limits::check(text).map_err(|(message, start)| fail(start..text.len().min(start + 2), message))?;
    let template = Template::compile(text).map_err(|error| {
        let at = error.pos().map_or(0..text.len(), |(line, column)| {
            let start = inspect::offset(text, line, column);
            start..text.len().min(start + 1).max(start)
        });
        fail(at, format!("the template does not parse: {}", syntax(&error)))
    })?;
    let inspected = inspect::inspect(&template, text).map_err(|(message, at)| fail(at, message))?;
    let Some(inner) = inspect::single_expression(&template, text) else {
        return Ok((template, inspected, false));
    };
    let call = if inspected.plain_path {
        format!("{{{{__value {inner}}}}}")
    } else {
        format!("{{{{__value ({inner})}}}}")
    };
    let template = Template::compile(&call)
        .map_err(|error| fail(0..text.len(), format!("the template does not parse: {}", syntax(&error))))?;
    Ok((template, inspected, true))
}

/// What the parser said, without its drawing of the place.
fn syntax(error: &handlebars::TemplateError) -> String {
    use handlebars::TemplateErrorReason as Reason;
    match error.reason() {
        Reason::MismatchingClosedHelper(open, close) => format!("`{open}` is closed by `{close}`"),
        Reason::InvalidSyntax(_) => "expected a name or a helper call between `{{` and `}}`".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

/// A failure to render in a plan author's words.
fn explain(reason: &RenderErrorReason) -> String {
    match reason {
        RenderErrorReason::MissingVariable(Some(path)) => format!("`{path}` has no value"),
        RenderErrorReason::MissingVariable(None) => "a value that the template reads is missing".to_owned(),
        RenderErrorReason::ParamNotFoundForIndex(helper, index) => {
            format!("`{helper}`: its argument {} is missing or has no value", index + 1)
        }
        RenderErrorReason::ParamNotFoundForName(helper, name) => {
            format!("`{helper}`: its argument `{name}` is missing or has no value")
        }
        RenderErrorReason::ParamTypeMismatchForName(helper, name, kind) => {
            format!("`{helper}`: its argument `{name}` must be of type {kind}")
        }
        RenderErrorReason::IOError(error) => error.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
