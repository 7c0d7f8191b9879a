//! What a parsed template reads and calls, without rendering it.

use std::ops::Range;

use handlebars::template::{HelperTemplate, Parameter, Subexpression, TemplateElement};
use handlebars::{Path, Template};
use serde_json::Value;

use super::helpers;

/// What a template reads.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    /// Paths with their places.
    pub references: Vec<(Vec<String>, Range<usize>)>,
    /// Places of expressions whose result goes into the text as it is.
    pub unquoted: Vec<Range<usize>>,
    /// Arguments of `(file "…")`.
    pub files: Vec<String>,
    /// The first expression is a path, not a call.
    pub plain_path: bool,
}

/// Names that a template's paths may begin with; others are local to a block.
const ROOTS: [&str; 8] = ["inputs", "vars", "steps", "targets", "plan", "run", "environment", "item"];

struct Inspector<'a> {
    text: &'a str,
    /// Where to look for the next name in the text.
    cursor: usize,
    /// Inside `each` or `with`, plain names belong to the block.
    local: bool,
    found: Inspected,
}

type Wrong = (String, Range<usize>);

/// Walks a template.
pub(super) fn inspect(template: &Template, text: &str) -> Result<Inspected, Wrong> {
    let mut inspector = Inspector { text, cursor: 0, local: false, found: Inspected::default() };
    inspector.found.plain_path = matches!(
        template.elements.iter().find(|element| !matches!(element, TemplateElement::RawString(_))),
        Some(TemplateElement::Expression(call) | TemplateElement::HtmlExpression(call)) if is_path(call)
    );
    inspector.template(template)?;
    Ok(inspector.found)
}

/// The text between the braces, if the template is exactly one expression.
pub(super) fn single_expression<'a>(template: &Template, text: &'a str) -> Option<&'a str> {
    let [TemplateElement::Expression(_)] = template.elements.as_slice() else { return None };
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (text == text.trim()).then(|| inner.trim_matches('~').trim())
}

/// The byte at a line and column, both from 1, as the parser counts them.
pub(super) fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let within =
        text[start..].char_indices().nth(column.saturating_sub(1)).map_or(text.len() - start, |(at, _)| at);
    start + within
}

fn is_path(call: &HelperTemplate) -> bool {
    let name_only = !call.block && call.params.is_empty() && call.hash.is_empty();
    name_only && !name(&call.name).is_some_and(|name| helpers::NAMES.contains(&name.as_str()))
}

fn name(parameter: &Parameter) -> Option<String> {
    match parameter {
        Parameter::Name(name) => Some(name.clone()),
        Parameter::Path(path) => segments(path).map(|(segments, _)| segments.join(".")),
        _ => None,
    }
}

/// A path's names, and whether it begins at `@root`. None for `@index` and its like.
fn segments(path: &Path) -> Option<(Vec<String>, bool)> {
    let Path::Relative((segments, raw)) = path else { return None };
    let names = segments.iter().filter_map(|segment| match segment {
        handlebars::PathSeg::Named(name) => Some(name.clone()),
        _ => None,
    });
    Some((names.collect(), raw.starts_with("@root")))
}

impl Inspector<'_> {
    fn template(&mut self, template: &Template) -> Result<(), Wrong> {
        for (element, mapping) in template.elements.iter().zip(&template.mapping) {
            // Inner templates count from the same start as the outer one.
            self.cursor = self.cursor.max(offset(self.text, mapping.0, mapping.1)).min(self.text.len());
            let start = self.cursor;
            match element {
                TemplateElement::RawString(_) | TemplateElement::Comment(_) => {}
                TemplateElement::Expression(call) | TemplateElement::HtmlExpression(call) => {
                    self.call(call)?;
                    let quoted = name(&call.name).is_some_and(|name| name == "sql_literal" || name == "sql_ident");
                    if !quoted {
                        self.found.unquoted.push(start..self.expression_end(start));
                    }
                }
                TemplateElement::HelperBlock(call) => self.block(call)?,
                _ => {
                    let message = "partials and decorators are not part of the plan language";
                    return Err((message.to_owned(), start..self.expression_end(start)));
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, call: &HelperTemplate) -> Result<(), Wrong> {
        self.call(call)?;
        let outer = self.local;
        self.local |= matches!(name(&call.name).as_deref(), Some("each" | "with"));
        for inner in [&call.template, &call.inverse].into_iter().flatten() {
            self.template(inner)?;
        }
        self.local = outer;
        Ok(())
    }

    fn call(&mut self, call: &HelperTemplate) -> Result<(), Wrong> {
        if is_path(call) {
            return self.parameter(&call.name);
        }
        if let Parameter::Subexpression(inner) = &call.name {
            return self.subexpression(inner);
        }
        let name = name(&call.name).unwrap_or_default();
        if !helpers::NAMES.contains(&name.as_str()) {
            let near = helpers::NAMES
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, &name).total_cmp(&strsim::jaro_winkler(b, &name)));
            let at = self.find(&name);
            let hint = near.filter(|near| strsim::damerau_levenshtein(near, &name) <= 2).map_or_else(
                || format!("known are {}", helpers::NAMES.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            return Err((format!("there is no helper `{name}`: {hint}"), at));
        }
        if name == "file" {
            match call.params.as_slice() {
                [Parameter::Literal(Value::String(path))] => self.found.files.push(path.clone()),
                _ => return Err(("`file` takes one path in quotes".to_owned(), self.find("file"))),
            }
        }
        for parameter in &call.params {
            self.parameter(parameter)?;
        }
        for parameter in call.hash.values() {
            self.parameter(parameter)?;
        }
        Ok(())
    }

    fn subexpression(&mut self, inner: &Subexpression) -> Result<(), Wrong> {
        match inner.as_element() {
            TemplateElement::Expression(call) => self.call(call),
            _ => Ok(()),
        }
    }

    fn parameter(&mut self, parameter: &Parameter) -> Result<(), Wrong> {
        match parameter {
            Parameter::Name(name) => self.reference(vec![name.clone()], name, false),
            Parameter::Path(path) => {
                if let (Some((names, rooted)), Path::Relative((_, raw))) = (segments(path), path) {
                    self.reference(names, raw, rooted);
                }
            }
            Parameter::Subexpression(inner) => self.subexpression(inner)?,
            // Literals, and whatever later versions add that reads nothing.
            _ => {}
        }
        Ok(())
    }

    fn reference(&mut self, path: Vec<String>, raw: &str, rooted: bool) {
        let at = self.find(raw);
        let known = path.first().is_some_and(|root| ROOTS.contains(&root.as_str()));
        // A block's own names (`{{name}}` inside `each`) can't be checked before the run.
        if !self.local || rooted || (known && raw.starts_with('.')) {
            let path = if path.is_empty() { vec!["this".to_owned()] } else { path };
            self.found.references.push((path, at));
        }
    }

    /// The next place of `raw` in the text, from the cursor on.
    fn find(&mut self, raw: &str) -> Range<usize> {
        match self.text.get(self.cursor..).and_then(|rest| rest.find(raw)) {
            Some(at) if !raw.is_empty() => {
                let start = self.cursor + at;
                self.cursor = start + raw.len();
                start..self.cursor
            }
            _ => 0..self.text.len(),
        }
    }

    fn expression_end(&self, start: usize) -> usize {
        self.text[start..].find("}}").map_or(self.text.len(), |at| start + at + 2)
    }
}
