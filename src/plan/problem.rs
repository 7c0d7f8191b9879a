//! Problems of a plan or an environment: what is wrong, where, and what to write instead.
//!
//! A problem underlines its place by itself (it is a miette diagnostic); the command line
//! only prints it. Knows nothing of how problems are found.

use std::fmt;
use std::sync::{Arc, OnceLock};

use miette::{Diagnostic, LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use crate::secret::url_password;

/// A file's name and text, as problems show it.
pub type File = Arc<Text>;

/// A named text that shows places in it: long lines cut, passwords in URLs hidden.
#[derive(Debug)]
pub struct Text {
    name: String,
    inner: Arc<str>,
    shown: OnceLock<String>,
}

impl Text {
    /// A file's text.
    pub fn new(name: impl Into<String>, text: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), inner: text.into(), shown: OnceLock::new() }
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn inner(&self) -> &str {
        &self.inner
    }
}

impl SourceCode for Text {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        /// Bytes shown on each side of a place.
        const AROUND: usize = 400;
        let whole = self.inner.read_span(span, before, after)?;
        // One line may be a whole plan: JSON is YAML. What is far from the place is left out.
        let (start, end) = (whole.span().offset(), whole.span().offset() + whole.span().len());
        let line = self.inner[..span.offset()].rfind(['\n', '\r']).map_or(0, |at| at + 1);
        let from = if span.offset() - line.max(start) > AROUND || line.saturating_sub(start) > AROUND * 2 {
            self.inner.floor_char_boundary(line.max(span.offset().saturating_sub(AROUND)))
        } else {
            start
        };
        let place = span.offset() + span.len();
        let to =
            if end - place.min(end) > AROUND * 2 { self.inner.floor_char_boundary(place + AROUND) } else { end };
        let cut = from.max(start)..to.min(end).max(from);
        let skipped = self.inner[start..cut.start].matches('\n').count();
        let column = if cut.start == start { whole.column() } else { self.inner[line..cut.start].chars().count() };
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            &self.shown.get_or_init(|| without_passwords(&self.inner)).as_bytes()[cut.clone()],
            (cut.start, cut.len()).into(),
            whole.line() + skipped,
            column,
            whole.line_count(),
        )))
    }
}

/// A text that is as long, without what is written plainly between `user:` and `@host` of a URL: the place of a mistake
/// beside it is shown to people who may not know it, in the log of a CI job, say.
fn without_passwords(text: &str) -> String {
    let mut shown = text.to_owned();
    for (at, _) in text.match_indices("://") {
        // It ends with the quotes that it stands in, or with a space.
        let scheme = text[..at].trim_end_matches(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let quote =
            scheme.chars().next_back().filter(|c| "\"'`<".contains(*c)).map(|c| if c == '<' { '>' } else { c });
        let url = text[at..].split(|c: char| c.is_whitespace() || Some(c) == quote).next().unwrap_or_default();
        let Some(password) = url_password(url) else { continue };
        // What a template stands for isn't written here.
        let mut plain = at + password.start;
        let end = at + password.end;
        while plain < end {
            let template = text[plain..end].find("{{").map_or(end, |opens| plain + opens);
            shown.replace_range(plain..template, &"*".repeat(template - plain));
            plain = text[template..end].find("}}").map_or(end, |closes| template + closes + 2);
        }
    }
    shown
}

/// A range of bytes in a file's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

/// A place in a file.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub file: File,
    /// Where in its text.
    pub span: Span,
}

impl Place {
    /// The part of this place's text at `range`, where that is known exactly; the whole place otherwise.
    #[must_use]
    pub fn part(mut self, text: &str, range: std::ops::Range<usize>) -> Self {
        let written = self.file.inner().get(self.span.start..self.span.end).unwrap_or_default();
        // The text stands there as it is (bare or simply quoted): offsets carry over.
        if range.start < range.end
            && let Some(offset) = written.find(text)
            && text.get(range.clone()).is_some()
        {
            let start = self.span.start + offset;
            self.span = Span { start: start + range.start, end: start + range.end };
        }
        self
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; the plan runs.
    Warning,
    /// The plan doesn't run.
    Error,
}

impl Severity {
    /// The word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One problem.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Its stable code: `lifeboat::unknown_step`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong: a lower-case sentence without a full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// The file it is in; none where no file could be read.
    pub file: Option<File>,
    /// What is underlined, the main place first.
    pub labels: Vec<(Span, Option<String>)>,
    /// The target of the environment that it is about: told only where a plan uses that one.
    pub target: Option<String>,
}

impl Problem {
    /// An error without a place.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            help: None,
            file: None,
            labels: Vec::new(),
            target: None,
        }
    }

    /// An error at a place.
    pub fn at(place: &Place, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, message).place(place, None)
    }

    /// The same problem as a warning.
    #[must_use]
    pub const fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Adds what to write instead; the first advice given stays.
    #[must_use]
    pub fn help(mut self, help: impl Into<Option<String>>) -> Self {
        if self.help.is_none() {
            self.help = help.into();
        }
        self
    }

    /// Underlines a place; the first one is the main one. Places in other files can't be shown.
    #[must_use]
    pub fn place(mut self, place: &Place, label: Option<&str>) -> Self {
        match &self.file {
            None => self.file = Some(Arc::clone(&place.file)),
            Some(file) if !Arc::ptr_eq(file, &place.file) => return self,
            Some(_) => {}
        }
        self.labels.push((place.span, label.map(str::to_owned)));
        self
    }

    /// Names what the main place is.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        if let Some((_, text)) = self.labels.first_mut() {
            *text = Some(label.into());
        }
        self
    }

    /// Line and column of the main place, from 1; columns count characters.
    pub fn position(&self) -> Option<(usize, usize)> {
        let text = self.file.as_ref()?.inner();
        let before = text.get(..self.labels.first()?.0.start)?;
        let line = before.split('\n').count();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Some((line, before[line_start..].chars().count() + 1))
    }

    /// Whether it keeps the plan from running.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code(&self) -> Option<Box<dyn fmt::Display + '_>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.file.as_deref().map(|file| file as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let file = self.file.as_ref()?;
        Some(Box::new(self.labels.iter().enumerate().map(move |(index, (span, label))| {
            let range = span.start..span.end.clamp(span.start, file.inner().floor_char_boundary(span.start + 300));
            if index == 0 {
                LabeledSpan::new_primary_with_span(label.clone(), range)
            } else {
                LabeledSpan::new_with_span(label.clone(), range)
            }
        })))
    }
}

/// `did you mean …?` with the known name nearest to `name`, or the list of names where
/// none is near and there are few.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(nearest) = nearest(name, known.iter().copied()) {
        return Some(format!("did you mean `{nearest}`?"));
    }
    (1..=24).contains(&known.len()).then(|| format!("known here: {}", quoted(known)))
}

/// The name that `name` was probably meant to be.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing grows with the product of the lengths; nobody misspells a whole page.
    if name.len() > 128 {
        return None;
    }
    let lower = name.to_lowercase().replace('_', "-");
    let bound = |other: &str| (name.len().max(other.len()) / 3).clamp(1, 4);
    known
        .into_iter()
        // A name that is much longer or shorter needn't be compared to be told far.
        .filter(|other| name.len().abs_diff(other.len()) <= 2 * bound(other))
        .map(|other| (strsim::damerau_levenshtein(&lower, &other.to_lowercase().replace('_', "-")), other))
        .filter(|(distance, other)| *distance <= bound(other))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// Names as a list for people: `a`, `b`, `c`.
pub fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// At most so much of a text from the plan is repeated in a message, and no URL's password.
pub fn clip(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = without_passwords(text).replace('\n', "⏎");
    if line.chars().count() <= LONGEST {
        return line;
    }
    line.chars().take(LONGEST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_a_far_one_is_not() {
        let known = ["retry", "timeout", "postgres.restore"];
        assert_eq!(nearest("rety", known), Some("retry"));
        assert_eq!(nearest("postgre.restore", known), Some("postgres.restore"));
        assert_eq!(nearest("colour", known), None);
    }

    #[test]
    fn a_password_beside_a_mistake_is_not_shown() {
        let text = "a: [\"postgres://me:s3cr:ät@db/x\", \"redis://:{{env.PW}}@h\"]\nb: http://h/a:b@c x\n\
                    c: 'redis://:ab{{env.PW}}cd@h'\nd: redis://:it's@h\n";
        let shown = Text::new("x.yaml", text);
        let contents = shown.read_span(&(0, 1).into(), 0, 3).unwrap();
        let hidden = text.replace("s3cr:ät", "********").replace("ab{{env.PW}}cd", "**{{env.PW}}**");
        let hidden = hidden.replace("it's", "****");
        assert_eq!(std::str::from_utf8(contents.data()).unwrap(), hidden);
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!(
            "a: {}\nb: {}x{}\nc: {}\n",
            "1".repeat(9000),
            "ü".repeat(9000),
            "3".repeat(9000),
            "4".repeat(9000)
        );
        let at = text.find('x').unwrap();
        let shown = Text::new("x.yaml", text.as_str());
        let contents = shown.read_span(&(at, 1).into(), 1, 1).unwrap();
        let cut = std::str::from_utf8(contents.data()).unwrap();
        assert!(cut.contains("üxüü".trim_end_matches('ü')) && cut.len() < 1000, "{cut}");
        assert_eq!((contents.line(), contents.span().offset() + cut.find('x').unwrap()), (1, at));
        let short = Text::new("x.yaml", "a: 1\nb: 2\nc: 3\n");
        assert_eq!(short.read_span(&(5, 1).into(), 1, 1).unwrap().data(), b"a: 1\nb: 2\nc: 3\n");
    }

    #[test]
    fn positions_count_lines_and_characters() {
        let file: File = Arc::new(Text::new("x.yaml", "a: 1\nü: b\n"));
        let place = Place { file, span: Span { start: 9, end: 10 } };
        assert_eq!(Problem::at(&place, "lifeboat::x", "x").position(), Some((2, 4)));
    }
}
