//! What a template may cost: how deep it nests, how long it is, how much it renders to.
//!
//! The parser and the renderer recurse and copy, and a plan can be anybody's text: a limit
//! is an error with a place, where a stack or the memory that runs out is none.

use std::io;

use handlebars::Output;

/// Blocks in blocks and calls in calls.
const MAX_DEPTH: usize = 32;
/// Bytes times tags: places in a text are found by counting from its start.
const MAX_WORK: usize = 64 << 20;
/// Bytes that all templates of one value may render to.
const MAX_RENDERED: usize = 4 << 20;

/// Checks a text before it is parsed.
///
/// # Errors
/// What is too much, and where in the text.
pub(super) fn check(text: &str) -> Result<(), (String, usize)> {
    let mut blocks: Vec<usize> = Vec::new();
    let mut tags = 0;
    let mut at = 0;
    while let Some(start) = text[at..].find("{{").map(|found| at + found) {
        tags += 1;
        let before = text[at..start].bytes().rev().take_while(|byte| *byte == b'\\').count();
        if before == 1 {
            at = start + 2;
            continue;
        }
        if text[start..].starts_with("{{{{") {
            return Err(("blocks of four braces are not part of the plan language".to_owned(), start));
        }
        let tag = text[start..].trim_start_matches(['{', '~', ' ', '\t', '\r', '\n']);
        at = text.len() - tag.len();
        if let Some(comment) = tag.strip_prefix('!') {
            let end = comment.strip_prefix("--").and_then(|long| long.find("--}}").map(|end| end + 6));
            at += 1 + end.or_else(|| comment.find("}}").map(|end| end + 2)).unwrap_or(comment.len());
            continue;
        }
        if tag.starts_with(['#', '^']) {
            blocks.push(1);
        } else if tag.starts_with('/') {
            blocks.pop();
        } else if tag.starts_with("else")
            && let Some(block) = blocks.last_mut()
        {
            // `else if` nests as a block of its own would.
            *block += 1;
        }
        let (length, depth) = one_tag(tag);
        if blocks.iter().sum::<usize>() + depth > MAX_DEPTH {
            return Err((format!("the template nests deeper than {MAX_DEPTH} levels"), start));
        }
        at += length;
    }
    if tags * text.len() > MAX_WORK {
        return Err((format!("{tags} templates in a text of {} bytes are too many", text.len()), 0));
    }
    Ok(())
}

/// The length of a tag to its closing braces, and how deep its brackets nest.
fn one_tag(tag: &str) -> (usize, usize) {
    let bytes = tag.as_bytes();
    let mut open: Vec<u8> = Vec::new();
    let mut deepest = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' | b'\'' => at = end_of_quote(bytes, at),
            b'(' | b'[' | b'{' => open.push(byte),
            b')' => drop(open.pop_if(|last| *last == b'(')),
            // A name in brackets may hold brackets of the other kinds.
            b']' => {
                if let Some(opened) = open.iter().rposition(|last| *last == b'[') {
                    open.truncate(opened);
                }
            }
            b'}' if open.last() == Some(&b'{') => drop(open.pop()),
            b'}' if bytes.get(at + 1) == Some(&b'}') => return (at + 2, deepest),
            _ => {}
        }
        deepest = deepest.max(open.len());
        at += 1;
    }
    (tag.len(), deepest)
}

/// Where a quoted text ends; where it starts, if it never does.
fn end_of_quote(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 1,
            _ if byte == bytes[start] => return at,
            _ => {}
        }
        at += 1;
    }
    start
}

/// What is left of what one value's templates may render to.
#[derive(Debug)]
pub(super) struct Allowance(usize);

impl Default for Allowance {
    fn default() -> Self {
        Self(MAX_RENDERED)
    }
}

impl Allowance {
    /// An empty text that takes from it.
    pub(super) fn text(&mut self) -> Bounded<'_> {
        Bounded { text: String::new(), left: &mut self.0 }
    }
}

/// A text that refuses to grow past an allowance.
pub(super) struct Bounded<'a> {
    /// What was written.
    pub text: String,
    left: &'a mut usize,
}

impl Output for Bounded<'_> {
    fn write(&mut self, segment: &str) -> Result<(), io::Error> {
        *self.left = self.left.checked_sub(segment.len()).ok_or_else(|| io::Error::other(too_large()))?;
        self.text.push_str(segment);
        Ok(())
    }
}

/// Refuses what a helper would make of small things many times over.
pub(super) fn check_length(length: Option<usize>) -> Result<(), String> {
    if length.is_some_and(|length| length <= MAX_RENDERED) { Ok(()) } else { Err(too_large()) }
}

fn too_large() -> String {
    format!("it renders to more than {} MiB", MAX_RENDERED >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nests_is_counted_as_the_parser_reads_it() {
        let deep = "(not ".repeat(MAX_DEPTH + 1);
        let cases = [
            format!("{{{{ {deep}x }}}}"),
            format!("{{{{ \"}}}}\" {deep}x }}}}"),
            format!("{{{{ x.[a)b] {deep} }}}}"),
            format!("\\{{{{ \" {{{{ {deep} }}}}"),
            format!("{{{{!-- \" --}}}}{{{{ {deep} }}}}"),
            "{{#if true}}".repeat(MAX_DEPTH + 1),
            format!("{{{{#if a}}}}{}{{{{/if}}}}", "{{else if b}}".repeat(MAX_DEPTH + 1)),
            "{{ [[".repeat(MAX_DEPTH),
        ];
        for text in cases {
            assert!(check(&text).is_err(), "{text}");
        }
        let cases = [
            "{{#if a}}x{{else}}y{{/if}}".repeat(MAX_DEPTH * 2),
            ":( ".repeat(MAX_DEPTH * 2) + "{{ x }}",
            format!("{{{{ default x '{}' }}}}", "(".repeat(MAX_DEPTH * 2)),
            format!("{{{{! {} }}}}{{{{!-- }}}} {} --}}}}", "(".repeat(99), "{{#if ".repeat(99)),
        ];
        for text in cases {
            assert_eq!(check(&text), Ok(()), "{text}");
        }
    }

    #[test]
    fn an_allowance_is_for_all_together() {
        let mut allowance = Allowance::default();
        let half = "x".repeat(MAX_RENDERED / 2);
        assert!(allowance.text().write(&half).is_ok());
        assert!(allowance.text().write(&half).is_ok());
        assert!(allowance.text().write("x").is_err());
    }
}
