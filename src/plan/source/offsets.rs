//! From the parser's positions to bytes of the text.

use crate::plan::problem::Span;

/// From the parser's positions, which count characters, to bytes.
pub(super) struct Offsets<'t> {
    text: &'t str,
    /// The byte at which every 64th character starts; empty for ASCII, where the two are one.
    starts: Vec<usize>,
}

const STRIDE: usize = 64;

impl<'t> Offsets<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let starts = if text.is_ascii() {
            Vec::new()
        } else {
            text.char_indices().step_by(STRIDE).map(|(byte, _)| byte).collect()
        };
        Self { text, starts }
    }

    pub(super) fn byte(&self, character: usize) -> usize {
        if self.starts.is_empty() {
            return character.min(self.text.len());
        }
        let Some(start) = self.starts.get(character / STRIDE) else { return self.text.len() };
        let rest = &self.text[*start..];
        rest.char_indices().nth(character % STRIDE).map_or(self.text.len(), |(byte, _)| start + byte)
    }

    pub(super) fn span(&self, span: &saphyr_parser::Span) -> Span {
        let start = self.byte(span.start.index());
        let end = self.byte(span.end.index()).max(start);
        // A block's end may lie on a later line: trailing white space isn't part of a value.
        let text = &self.text[start..end];
        Span { start, end: start + text.trim_end().len() }
    }

    /// What of a collection is underlined: the rest of its first line.
    pub(super) fn first_line(&self, span: Span) -> Span {
        let rest = &self.text[span.start..];
        let line = rest.find('\n').map_or(rest, |end| &rest[..end]);
        let line = line.split(" #").next().unwrap_or(line);
        Span { start: span.start, end: span.start + line.trim_end().len() }
    }
}
