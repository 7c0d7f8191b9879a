//! A dump as statements and rows, in its order.

use std::sync::Arc;

use super::super::choice::Choice;
use super::super::lexer::{Lexer, Listener, Verdict};
use super::super::outline::{Name, Part, part};
use super::super::statement::{Kind, kind};
use super::super::survey::{Hearer, Rules};
use super::super::token::{qualified, tokens};
use crate::failure::Failure;
use crate::service::postgres::Session;

/// What a session has been told with SET, by parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(Arc<Vec<(String, String)>>);

impl Settings {
    fn with(&self, name: &str, sql: &str) -> Self {
        let mut all: Vec<_> = self.0.iter().filter(|(own, _)| own != name).cloned().collect();
        all.push((name.to_owned(), sql.to_owned()));
        Self(Arc::new(all))
    }

    /// Tells a session all of it.
    pub async fn apply(&self, session: &Session) -> Result<(), Failure> {
        let sql: String = self.0.iter().map(|(_, sql)| sql.as_str()).collect();
        session.batch("set what the dump sets", &sql).await
    }
}

/// A statement that is not COPY.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Its text.
    pub text: String,
    /// The dump's line that it begins on.
    pub line: u64,
    /// What it is.
    pub part: Part,
    /// What was set before it.
    pub settings: Settings,
}

impl Statement {
    /// One that comes before those of a dump.
    pub fn first(text: String) -> Self {
        Self { text, line: 0, part: Part::InOrder, settings: Settings::default() }
    }

    /// What is set after it.
    pub fn settings_after(&self) -> Settings {
        match &self.part {
            Part::Setting(name) => self.settings.with(name, &self.text),
            _ => self.settings.clone(),
        }
    }

    /// Whether it makes an event trigger.
    pub fn is_event_trigger(&self) -> bool {
        self.part == Part::EventTrigger
    }

    /// Its first words, for messages.
    pub fn beginning(&self) -> String {
        let words: Vec<_> = self.text.split_whitespace().take(8).collect();
        let mut words = words.join(" ");
        if words.len() > 80 {
            words.truncate(words.floor_char_boundary(80));
            words.push('…');
        }
        words
    }
}

/// A COPY whose rows follow.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The statement.
    pub text: Arc<str>,
    /// Its table.
    pub table: Name,
    /// The dump's line that its first row is on.
    pub line: u64,
    /// What was set before it.
    pub settings: Settings,
}

/// What goes by.
#[derive(Debug)]
pub enum Event {
    /// A statement.
    Statement(Statement),
    /// Rows begin.
    Copy(Copy),
    /// The last rows of a COPY that were not asked for before.
    Rows(Vec<u8>),
}

/// Takes a dump apart.
#[derive(Debug)]
pub struct Splitter {
    lexer: Lexer,
    ear: Ear,
}

#[derive(Debug)]
struct Ear {
    hearer: Hearer,
    /// What is restored, if not all of it.
    choice: Option<Arc<Choice>>,
    /// Whether the rows that go by aren't.
    skips: bool,
    /// Foreign keys that were left out, by their tables.
    left_out: Vec<(Name, String)>,
    settings: Settings,
    events: Vec<Event>,
    rows: Vec<u8>,
}

impl Splitter {
    /// One that leaves out what `rules` say, and rows that aren't chosen.
    pub fn new(rules: Rules, choice: Option<Arc<Choice>>) -> Self {
        let ear = Ear {
            hearer: Hearer::new(rules),
            choice,
            skips: false,
            left_out: vec![],
            settings: Settings::default(),
            events: vec![],
            rows: vec![],
        };
        Self { lexer: Lexer::default(), ear }
    }

    /// Reads on.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, Failure> {
        self.lexer.push(piece, &mut self.ear, None)?;
        Ok(std::mem::take(&mut self.ear.events))
    }

    /// The rows so far of the COPY that is being read; the last may not be whole.
    pub fn rows(&mut self) -> Vec<u8> {
        // What may be the line that ends them waits for what follows.
        let tail = match self.ear.rows.as_slice() {
            [.., b'\n', b'\\', b'.', b'\r'] => 3,
            [.., b'\n', b'\\', b'.'] => 2,
            [.., b'\n', b'\\'] => 1,
            rows if [b"\\".as_slice(), b"\\.", b"\\.\r"].contains(&rows) => rows.len(),
            _ => 0,
        };
        let tail = self.ear.rows.split_off(self.ear.rows.len() - tail);
        std::mem::replace(&mut self.ear.rows, tail)
    }

    /// The table whose rows go by.
    pub fn table(&self) -> Option<&str> {
        self.ear.hearer.copying()
    }

    /// Ends the dump: it is whole.
    pub fn finish(self) -> Result<(), Failure> {
        self.ear.hearer.finish(&self.lexer).map(drop)
    }
}

impl Ear {
    /// Whether that is a foreign key that refers to rows which aren't loaded, or a comment on one; or fills a
    /// materialised view, which waits until only what is chosen is there.
    fn leaves_out(&mut self, part: &Part, text: &str) -> bool {
        let Some(choice) = &self.choice else { return false };
        match part {
            Part::ForeignKey { table, name, refers, .. } => {
                let stays = !choice.names_keys_of(table) || choice.names(refers);
                if !stays {
                    self.left_out.push((table.clone(), name.clone()));
                }
                !stays
            }
            Part::Refresh(_) => true,
            Part::Late if !self.left_out.is_empty() => {
                on_constraint(text).is_some_and(|of| self.left_out.contains(&of))
            }
            _ => false,
        }
    }
}

/// The table and the name in `COMMENT ON CONSTRAINT name ON table`.
fn on_constraint(text: &str) -> Option<(Name, String)> {
    let tokens = tokens(text.as_bytes());
    let [first, on, constraint, name, ..] = tokens.as_slice() else { return None };
    if !(first.is("comment") && on.is("on") && constraint.is("constraint")) {
        return None;
    }
    let (schema, table, _) = qualified(&tokens, 5)?;
    Some(((schema, table), name.name()?.to_owned()))
}

impl Listener for Ear {
    fn comment(&mut self, text: &str, line: u64) {
        self.hearer.comment(text, line);
    }

    fn statement(&mut self, text: &[u8], line: u64) -> Result<Verdict, Failure> {
        let verdict = self.hearer.statement(text, line)?;
        if verdict == Verdict::Drop {
            return Ok(verdict);
        }
        let failed = || Failure::permanent(format!("line {line} of the dump is not UTF-8"));
        let text = std::str::from_utf8(text).map_err(|_| failed())?;
        let settings = self.settings.clone();
        if matches!(verdict, Verdict::Copy { .. }) {
            let Kind::Copy { schema, table } = kind(text.as_bytes()) else { return Ok(verdict) };
            let table = (schema, table);
            if self.choice.as_ref().is_some_and(|choice| !choice.names(&table)) {
                self.skips = true;
                return Ok(verdict);
            }
            let line = line + text.matches('\n').count() as u64 + 1;
            self.events.push(Event::Copy(Copy { text: text.into(), table, line, settings }));
            return Ok(verdict);
        }
        let part = part(text.as_bytes());
        if self.leaves_out(&part, text) {
            return Ok(Verdict::Drop);
        }
        let statement = Statement { text: text.to_owned(), line, part, settings };
        self.settings = statement.settings_after();
        self.events.push(Event::Statement(statement));
        Ok(verdict)
    }

    fn command(&mut self, text: &str, line: u64) -> Result<bool, Failure> {
        self.hearer.command(text, line)
    }

    fn row(&mut self) {
        self.hearer.row();
    }

    fn data(&mut self, rows: &[u8]) {
        self.hearer.data(rows);
        if !self.skips {
            self.rows.extend_from_slice(rows);
        }
    }

    fn end_of_data(&mut self) {
        if std::mem::take(&mut self.skips) {
            return;
        }
        let mut rows = std::mem::take(&mut self.rows);
        let end = if rows.ends_with(b"\r\n") { 4 } else { 3 };
        rows.truncate(rows.len().saturating_sub(end));
        self.events.push(Event::Rows(rows));
    }
}
