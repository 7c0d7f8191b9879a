//! Values that know their places, and the way to one by JSON pointer.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::plan::problem::Span;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where. A collection's place is its first line.
    pub span: Span,
    /// What.
    pub content: Content,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// Null, a boolean, a number or a text.
    Scalar(Value),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the text.
    Map(Map),
}

/// A map's entries in the order of the text, found by key.
#[derive(Clone, Debug, Default)]
pub struct Map {
    pub(super) entries: Vec<Entry>,
    /// Where each key is: an index would be wasted on the many small maps.
    index: HashMap<Arc<str>, usize>,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// Where the key stands.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

/// From this many entries on a map keeps an index.
const INDEXED: usize = 12;

impl Map {
    /// The entries in the order of the text.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of that key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        if self.index.is_empty() {
            return self.entries.iter().find(|entry| &*entry.key == key);
        }
        self.index.get(key).and_then(|at| self.entries.get(*at))
    }

    /// Adds an entry of a new key.
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
        if self.entries.len() == INDEXED {
            self.index = self.entries.iter().enumerate().map(|(at, entry)| (entry.key.clone(), at)).collect();
        } else if self.entries.len() > INDEXED
            && let Some(last) = self.entries.last()
        {
            self.index.insert(last.key.clone(), self.entries.len() - 1);
        }
    }
}

impl Node {
    /// The map it is, if it is one.
    pub const fn as_map(&self) -> Option<&Map> {
        if let Content::Map(map) = &self.content { Some(map) } else { None }
    }

    /// The value without places.
    pub fn to_value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => items.iter().map(Self::to_value).collect(),
            Content::Map(map) => Value::Object(
                map.entries.iter().map(|entry| (entry.key.to_string(), entry.value.to_value())).collect(),
            ),
        }
    }

    /// The child of that key or index.
    pub fn child(&self, segment: &str) -> Option<&Self> {
        match &self.content {
            Content::Scalar(_) => None,
            Content::List(items) => items.get(segment.parse::<usize>().ok()?),
            Content::Map(map) => map.get(segment).map(|entry| &entry.value),
        }
    }

    /// Where the value at `pointer` (`/steps/restore/needs/0`) stands, as far as it exists.
    pub fn value_span(&self, pointer: &str) -> Span {
        let mut node = self;
        for segment in segments(pointer) {
            match node.child(&segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.span
    }

    /// Where the key at `pointer` stands; a list item's own place; as far as it exists.
    pub fn key_span(&self, pointer: &str) -> Span {
        let (mut node, mut span) = (self, self.span);
        for segment in segments(pointer) {
            span = match (&node.content, node.child(&segment)) {
                (Content::Map(map), Some(_)) => map.get(&segment).map_or(span, |entry| entry.key_span),
                (_, Some(child)) => child.span,
                (_, None) => break,
            };
            if let Some(child) = node.child(&segment) {
                node = child;
            }
        }
        span
    }
}

/// The segments of a JSON pointer, unescaped.
pub fn segments(pointer: &str) -> impl Iterator<Item = String> + '_ {
    pointer.split('/').skip(1).map(|segment| segment.replace("~1", "/").replace("~0", "~"))
}

/// A JSON pointer's segment, escaped.
pub fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}
