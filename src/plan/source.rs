//! From bytes to a tree of values that know their places.
//!
//! One pass over the YAML parser's events: values and positions can't disagree. Sizes,
//! depth and the growth of aliases are bounded. Knows YAML, nothing of plans.

mod offsets;
pub mod tree;

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};
use serde_json::Value;

use offsets::Offsets;
pub use tree::{Content, Entry, Map, Node, escape, segments};

use super::problem::{File, Place, Problem, Span, Text, clip};
use super::scalar;

/// A larger file is refused.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Deeper nesting is refused.
pub const MAX_DEPTH: usize = 64;
/// More values than this, those that aliases repeat included, are refused. Long texts count
/// as several, so this bounds memory too.
const MAX_WEIGHT: usize = 1 << 20;

/// A file that was read: its text, and its one document as a tree.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub file: File,
    /// The document.
    pub root: Node,
}

impl Source {
    /// The place of the value at `pointer`.
    pub fn value(&self, pointer: &str) -> Place {
        self.place(self.root.value_span(pointer))
    }

    /// The place of the key at `pointer`.
    pub fn key(&self, pointer: &str) -> Place {
        self.place(self.root.key_span(pointer))
    }

    /// A place in this file.
    pub fn place(&self, span: Span) -> Place {
        Place { file: Arc::clone(&self.file), span }
    }
}

/// Reads a file's bytes. The problems may be there besides a source (duplicate keys).
pub fn read(name: &str, bytes: &[u8]) -> (Option<Source>, Vec<Problem>) {
    if bytes.len() > MAX_BYTES {
        let message = format!("{name} is {} bytes large; {MAX_BYTES} are read at most", bytes.len());
        return (None, vec![Problem::new("lifeboat::too_large", message)]);
    }
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return (None, vec![not_utf8(name, bytes, error.valid_up_to())]),
    };
    let file: File = Arc::new(Text::new(name, text));
    let mut builder = Builder::new(text, Arc::clone(&file));
    match builder.document() {
        Ok(root) => (root.map(|root| Source { file, root }), builder.problems),
        Err(problem) => {
            builder.problems.push(*problem);
            (None, builder.problems)
        }
    }
}

fn not_utf8(name: &str, bytes: &[u8], valid: usize) -> Problem {
    let line = bytes[..valid].split(|byte| *byte == b'\n').count();
    let hint = if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        "it looks like UTF-16: save it as UTF-8"
    } else {
        "save it as UTF-8"
    };
    Problem::new(
        "lifeboat::not_utf8",
        format!("{name} is not UTF-8: byte {valid} (line {line}) is {:#04x}", bytes.get(valid).unwrap_or(&0)),
    )
    .help(hint.to_owned())
}

/// A value and what it costs: its weight, and how deep it nests.
#[derive(Clone)]
struct Built {
    node: Node,
    weight: usize,
    height: usize,
}

/// A collection that isn't complete yet.
struct Open {
    anchor: usize,
    span: Span,
    weight: usize,
    height: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map {
        map: Map,
        /// The key that waits for its value.
        key: Option<(Arc<str>, Span)>,
        /// Values of `<<`, joined when the map is complete: its own keys win.
        merged: Vec<Node>,
    },
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    file: File,
    offsets: Offsets<'t>,
    stack: Vec<Open>,
    anchors: HashMap<usize, Built>,
    weight: usize,
    problems: Vec<Problem>,
}

#[expect(clippy::unnecessary_box_returns, reason = "problems travel up boxed: results stay small")]
impl<'t> Builder<'t> {
    fn new(text: &'t str, file: File) -> Self {
        Self {
            parser: Parser::new_from_str(text),
            file,
            offsets: Offsets::new(text),
            stack: Vec::new(),
            anchors: HashMap::new(),
            weight: 0,
            problems: Vec::new(),
        }
    }

    /// The one document; none when the file is empty (a problem says so).
    fn document(&mut self) -> Result<Option<Node>, Box<Problem>> {
        let mut root: Option<Node> = None;
        while let Some(event) = self.parser.next_event() {
            let (event, span) = event.map_err(|error| Box::new(self.invalid(&error)))?;
            let span = self.offsets.span(&span);
            let built = match event {
                Event::DocumentStart(_) if root.is_some() => {
                    let help = "put each plan into a file of its own".to_owned();
                    return Err(self.fail(
                        span,
                        "lifeboat::several_documents",
                        "a second document starts here; one file is one document",
                        help,
                    ));
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let built = self.scalar(&text, style, tag.as_deref(), span)?;
                    Some(self.anchored(anchor, built, span)?)
                }
                Event::SequenceStart(anchor, tag) => {
                    self.collection_tag(tag.as_deref(), "seq", span)?;
                    self.open(anchor, span, OpenKind::List(Vec::new()))?;
                    None
                }
                Event::MappingStart(anchor, tag) => {
                    self.collection_tag(tag.as_deref(), "map", span)?;
                    self.open(anchor, span, OpenKind::Map { map: Map::default(), key: None, merged: Vec::new() })?;
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => self.close(span)?,
                Event::Alias(anchor) => Some(self.alias(anchor, span)?),
                _ => None,
            };
            if let Some(built) = built {
                root = self.place(built)?.or(root);
            }
        }
        let empty = root.as_ref().is_none_or(|root| {
            matches!(root.content, Content::Scalar(Value::Null)) && root.span.end <= root.span.start
        });
        if empty {
            let name = self.file.name().to_owned();
            self.problems.push(Problem::new("lifeboat::empty", format!("{name} is empty")));
            return Ok(None);
        }
        Ok(root)
    }

    fn fail(
        &self,
        span: Span,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) -> Box<Problem> {
        Box::new(Problem::at(&Place { file: Arc::clone(&self.file), span }, code, message).help(help))
    }

    /// A syntax error, with advice for the usual ones.
    fn invalid(&self, error: &ScanError) -> Problem {
        let at = self.offsets.byte(error.marker().index());
        let text = self.file.inner();
        let line_start = text[..at].rfind('\n').map_or(0, |found| found + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        let help = if line.trim_start_matches(' ').starts_with('\t') {
            Some("YAML is indented with spaces; this line starts with a tab")
        } else if line.contains("{{") && line.matches('"').count() > 2 {
            Some("a template with quotes in it goes into the other quotes: '{{ default x \"y\" }}'")
        } else if line.contains(": {{") || line.contains("- {{") {
            Some("a value that begins with `{{` needs quotes: \"{{ … }}\"")
        } else if line.matches(": ").count() > 1 && !line.contains('{') {
            Some("a text that contains `: ` needs quotes")
        } else {
            None
        };
        let end = text[at..].chars().next().map_or(at, |c| at + c.len_utf8());
        *self.fail(
            Span { start: at, end },
            "lifeboat::syntax",
            format!("not valid YAML: {}", error.info()),
            help.map(str::to_owned),
        )
    }

    fn spend(&mut self, weight: usize, span: Span, alias: bool) -> Result<(), Box<Problem>> {
        self.weight = self.weight.saturating_add(weight);
        if self.weight <= MAX_WEIGHT {
            return Ok(());
        }
        let (message, help) = if alias {
            (
                "the aliases of this file expand to more than a million values",
                "an alias repeats all that its anchor holds; write less, or use `for_each`",
            )
        } else {
            ("this file holds more than a million values", "split it into plans that `plan.run` calls")
        };
        Err(self.fail(span, "lifeboat::too_large", message, help.to_owned()))
    }

    fn too_deep(&self, span: Span) -> Box<Problem> {
        self.fail(span, "lifeboat::too_deep", format!("nested deeper than {MAX_DEPTH} levels"), None)
    }

    fn open(&mut self, anchor: usize, span: Span, kind: OpenKind) -> Result<(), Box<Problem>> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(self.too_deep(span));
        }
        self.spend(1, span, false)?;
        let span = self.offsets.first_line(span);
        self.stack.push(Open { anchor, span, weight: 1, height: 1, kind });
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<Option<Built>, Box<Problem>> {
        // The parser pairs starts and ends.
        let Some(mut open) = self.stack.pop() else { return Ok(None) };
        // A flow collection on one line is shown whole.
        let written = self.file.inner().get(open.span.start..end.end.max(open.span.start)).unwrap_or_default();
        if written.starts_with(['[', '{']) && !written.contains('\n') || open.span.end <= open.span.start {
            open.span.end = open.span.start + written.len();
        }
        let content = match open.kind {
            OpenKind::List(items) => Content::List(items),
            OpenKind::Map { mut map, merged, .. } => {
                for node in merged {
                    merge(&mut map, node);
                }
                Content::Map(map)
            }
        };
        let built = Built { node: Node { span: open.span, content }, weight: open.weight, height: open.height };
        self.anchored(open.anchor, built, open.span).map(Some)
    }

    fn anchored(&mut self, anchor: usize, built: Built, span: Span) -> Result<Built, Box<Problem>> {
        if anchor != 0 {
            self.spend(built.weight, span, true)?;
            self.anchors.insert(anchor, built.clone());
        }
        Ok(built)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<Built, Box<Problem>> {
        let Some(built) = self.anchors.get(&anchor).cloned() else {
            return Err(self.fail(span, "lifeboat::syntax", "an alias can't stand inside what it repeats", None));
        };
        self.spend(built.weight, span, true)?;
        if self.stack.len() + built.height > MAX_DEPTH {
            return Err(self.too_deep(span));
        }
        Ok(Built { node: Node { span, ..built.node }, ..built })
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        span: Span,
    ) -> Result<Built, Box<Problem>> {
        let weight = 1 + text.len() / 64;
        self.spend(weight, span, false)?;
        let core = match tag {
            None => (style != ScalarStyle::Plain).then_some("str"),
            Some(tag) if tag.is_yaml_core_schema() => Some(tag.suffix.as_str()),
            Some(tag) if tag.handle.is_empty() || (tag.handle == "!" && tag.suffix.is_empty()) => Some("str"),
            Some(tag) => return Err(self.unknown_tag(tag, span)),
        };
        let value = scalar::resolve(text, core).map_err(|message| {
            self.fail(span, "lifeboat::syntax", message, Some(format!("write it as a text: \"{}\"", clip(text))))
        })?;
        Ok(Built { node: Node { span, content: Content::Scalar(value) }, weight, height: 0 })
    }

    fn collection_tag(&self, tag: Option<&Tag>, kind: &str, span: Span) -> Result<(), Box<Problem>> {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == kind) => Err(self.unknown_tag(tag, span)),
            _ => Ok(()),
        }
    }

    fn unknown_tag(&self, tag: &Tag, span: Span) -> Box<Problem> {
        let help =
            "leave the tag out; `!!str`, `!!int`, `!!float`, `!!bool`, `!!null`, `!!map` and `!!seq` are known";
        self.fail(span, "lifeboat::syntax", format!("the tag `{tag}` means nothing here"), help.to_owned())
    }

    /// Puts a complete value where it belongs; hands it back when it is the document itself.
    fn place(&mut self, built: Built) -> Result<Option<Node>, Box<Problem>> {
        let Some(mut open) = self.stack.pop() else { return Ok(Some(built.node)) };
        open.weight = open.weight.saturating_add(built.weight);
        open.height = open.height.max(built.height + 1);
        let result = match &mut open.kind {
            OpenKind::List(items) => {
                items.push(built.node);
                Ok(())
            }
            OpenKind::Map { map, key, merged } => match key.take() {
                None => self.key(&built.node).map(|found| *key = Some(found)),
                Some((name, span)) => self.entry(map, merged, name, span, built.node),
            },
        };
        self.stack.push(open);
        result.map(|()| None)
    }

    fn key(&self, node: &Node) -> Result<(Arc<str>, Span), Box<Problem>> {
        let key = match &node.content {
            Content::Scalar(Value::String(text)) => text.as_str().into(),
            Content::Scalar(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string().into(),
            _ => {
                let written = self.file.inner().get(node.span.start..).unwrap_or_default();
                let before = self.file.inner().get(..node.span.start).unwrap_or_default();
                let (message, help) = if written.starts_with("{ ") && before.ends_with('{')
                    || written.starts_with("{{")
                {
                    ("a value that begins with `{{` is a map to YAML", "put the template into quotes: \"{{ … }}\"")
                } else {
                    ("a key must be a text", "write the key as a plain word")
                };
                return Err(self.fail(node.span, "lifeboat::syntax", message, help.to_owned()));
            }
        };
        Ok((key, node.span))
    }

    fn entry(
        &mut self,
        map: &mut Map,
        merged: &mut Vec<Node>,
        key: Arc<str>,
        span: Span,
        value: Node,
    ) -> Result<(), Box<Problem>> {
        if &*key == "<<" {
            let maps = match value.content {
                Content::List(items) => items,
                _ => vec![value],
            };
            if let Some(wrong) = maps.iter().find(|node| node.as_map().is_none()) {
                let help = "write `<<: *anchor`, or a list of such".to_owned();
                return Err(self.fail(wrong.span, "lifeboat::syntax", "`<<` merges maps only", help));
            }
            merged.extend(maps);
        } else if let Some(first) = map.get(&key) {
            let first = Place { file: Arc::clone(&self.file), span: first.key_span };
            let problem = self
                .fail(
                    span,
                    "lifeboat::duplicate_key",
                    format!("the key `{}` stands here twice", clip(&key)),
                    "remove or rename one of them".to_owned(),
                )
                .label("again here")
                .place(&first, Some("first here"));
            self.problems.push(problem);
        } else {
            map.push(Entry { key, key_span: span, value });
        }
        Ok(())
    }
}

fn merge(map: &mut Map, node: Node) {
    if let Content::Map(other) = node.content {
        for entry in other.entries {
            if map.get(&entry.key).is_none() {
                map.push(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests;
