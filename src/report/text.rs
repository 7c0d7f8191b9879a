//! The shapes that pages for people are made of: colour, wrapping, tables, amounts.
//!
//! Colour only helps: every meaning it carries is also there as a symbol or a word.

use std::borrow::Cow;

use console::{Style, measure_text_width};
use jiff::tz::TimeZone;

/// How to write for one reader: with colour or without, how wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    /// Whether escape sequences may be used.
    pub color: bool,
    /// Columns.
    pub width: usize,
}

impl Paint {
    /// Without colour, as files and pipes take it.
    pub const fn plain(width: usize) -> Self {
        Self { color: false, width }
    }

    /// Done, well.
    pub fn good(self, text: &str) -> String {
        self.apply(&Style::new().green(), text)
    }

    /// Failed, in the way.
    pub fn bad(self, text: &str) -> String {
        self.apply(&Style::new().red().bold(), text)
    }

    /// Worth a look.
    pub fn warn(self, text: &str) -> String {
        self.apply(&Style::new().yellow(), text)
    }

    /// A name to find again.
    pub fn name(self, text: &str) -> String {
        self.apply(&Style::new().cyan(), text)
    }

    /// A heading.
    pub fn strong(self, text: &str) -> String {
        self.apply(&Style::new().bold(), text)
    }

    /// Less important than what is beside it.
    pub fn dim(self, text: &str) -> String {
        self.apply(&Style::new().dim(), text)
    }

    fn apply(self, style: &Style, text: &str) -> String {
        if self.color && !text.is_empty() {
            style.clone().force_styling(true).apply_to(text).to_string()
        } else {
            text.to_owned()
        }
    }
}

/// Columns of a text on a terminal; escape sequences take none.
pub fn width(text: &str) -> usize {
    measure_text_width(text)
}

/// `text` broken at words to `width` columns, each line after the first indented by `indent`.
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let room = width.saturating_sub(indent).max(20);
    let margin = " ".repeat(indent);
    let mut lines = Vec::new();
    for line in text.lines() {
        lines.extend(textwrap::wrap(line, textwrap::Options::new(room).break_words(false)));
    }
    lines.join(&format!("\n{margin}"))
}

/// A page whose text can't move the cursor, hide what stands beside it or turn it round:
/// reviews show plans of people who may want just that. Colours stay; the rest is written out.
pub fn tame(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut tamed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(acts) {
        tamed.push_str(&rest[..at]);
        let colour = colour(&rest[at..]);
        if rest[at..].starts_with("\r\n") {
            rest = &rest[at + 1..];
        } else if colour > 0 {
            tamed.push_str(&rest[at..at + colour]);
            rest = &rest[at + colour..];
        } else if let Some(character) = rest[at..].chars().next() {
            tamed.extend(character.escape_default());
            rest = &rest[at + character.len_utf8()..];
        }
    }
    tamed.push_str(rest);
    Cow::Owned(tamed)
}

/// Whether a terminal would do something for this character instead of showing it.
fn acts(character: char) -> bool {
    let turns = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || character.is_control() && !matches!(character, '\n' | '\t')
}

/// The length of the colour sequence that the text begins with; hidden text is no colour.
fn colour(text: &str) -> usize {
    let Some(codes) = text.strip_prefix("\u{1b}[") else { return 0 };
    let Some(length) = codes.find(|character: char| !character.is_ascii_digit() && character != ';') else {
        return 0;
    };
    let shown = codes[..length].split(';').all(|code| code.trim_start_matches('0') != "8");
    if codes[length..].starts_with('m') && shown { length + 3 } else { 0 }
}

/// Rows of aligned columns. The last column is wrapped to what the page leaves for it;
/// columns that are empty in every row take no room. A row of one cell is a heading.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
    indent: usize,
}

impl Table {
    /// A table that starts `indent` columns from the margin.
    pub fn new(indent: usize) -> Self {
        Self { indent, ..Self::default() }
    }

    /// Columns that hold numbers.
    #[must_use]
    pub fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// Adds a row. Cells may be painted; only the last may hold several lines.
    pub fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, each line ended.
    pub fn render(&self, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let rows = || self.rows.iter().filter(|row| row.len() > 1);
        let widths: Vec<usize> = (0..columns)
            .map(|at| rows().filter_map(|row| row.get(at)).map(|cell| width(cell)).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            // Painted blanks at a line's end can't be trimmed: empty cells there are left out.
            let last = row.iter().rposition(|cell| !cell.is_empty()).unwrap_or(0);
            for (at, cell) in row.iter().enumerate().take(last + 1) {
                if widths[at] == 0 && last > 0 {
                    continue;
                }
                if at == last {
                    let start = width(&line);
                    line.push_str(&wrap(cell, paint.width, start.min(paint.width.saturating_sub(24))));
                } else {
                    let gap = " ".repeat(widths[at] - width(cell));
                    let (before, after) =
                        if self.right.contains(&at) { (gap.as_str(), "") } else { ("", gap.as_str()) };
                    line.extend([before, cell, after, "  "]);
                }
            }
            for line in line.lines() {
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }
}

/// A length of time for people, from seconds: `40ms`, `1.2s`, `12s`, `3m 05s`, `2h 10m`, `4d 3h`.
pub fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 0.9995 {
        return format!("{:.0}ms", seconds * 1000.0);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 if whole.is_multiple_of(60) => format!("{minutes}m"),
        60..3600 => format!("{minutes}m {:02}s", whole % 60),
        3600..86_400 if minutes == 0 => format!("{hours}h"),
        3600..86_400 => format!("{hours}h {minutes:02}m"),
        _ if hours == 0 => format!("{days}d"),
        _ => format!("{days}d {hours}h"),
    }
}

/// An instant for people, in UTC: the run of a night is read in more than one zone.
pub fn moment(at: jiff::Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// The clock part of [`moment`].
pub fn clock(at: jiff::Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%H:%M:%S").to_string()
}

/// A count with its thousands apart: `1,204`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 step`, `3 steps`.
pub fn plural(number: usize, word: &str) -> String {
    format!("{} {word}{}", count(number as u64), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(
            [0.04, 12.4, 59.7, 185.0, 7800.0, 356_400.0].map(span),
            ["40ms", "12s", "1m", "3m 05s", "2h 10m", "4d 3h"]
        );
        assert_eq!([0, 999, 1204, 1_234_567].map(count), ["0", "999", "1,204", "1,234,567"]);
        assert_eq!([plural(1, "step"), plural(2, "step")], ["1 step", "2 steps"]);
    }

    #[test]
    fn a_table_aligns_painted_cells_and_wraps_the_last() {
        let mut table = Table::new(2);
        let paint = Paint { color: true, width: 40 };
        table.row([paint.good("✓"), "a".into(), "short".into()]);
        table.row([paint.bad("✗"), "long".into(), "words that do not fit on one line of forty".into()]);
        let text = console::strip_ansi_codes(&table.render(paint)).into_owned();
        assert_eq!(text, "  ✓  a     short\n  ✗  long  words that do not fit on one\n           line of forty\n");
    }

    #[test]
    fn a_page_keeps_its_colours_and_loses_what_acts_on_a_terminal() {
        let cases = [
            ("plain ü\n\ttext", "plain ü\n\ttext"),
            ("two\r\nlines", "two\nlines"),
            ("\u{1b}[1;31mred\u{1b}[0m", "\u{1b}[1;31mred\u{1b}[0m"),
            ("\u{1b}[8mhidden", "\\u{1b}[8mhidden"),
            ("up\u{1b}[1A\u{1b}[2K", "up\\u{1b}[1A\\u{1b}[2K"),
            ("a\rb\u{202e}c\u{9b}1A\u{1b}", "a\\rb\\u{202e}c\\u{9b}1A\\u{1b}"),
        ];
        for (text, shown) in cases {
            assert_eq!(tame(text), shown);
        }
    }
}
