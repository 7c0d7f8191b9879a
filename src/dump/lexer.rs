//! Splits a plain SQL dump, as it streams by, with `psql`'s own rules: quotes, dollar
//! quotes, nested comments, `BEGIN ATOMIC` bodies, backslash commands, rows of COPY.
//!
//! It decides nothing: a [`Listener`] is told what goes by and says what is kept. What
//! is kept comes out byte for byte, but for a COPY's option; what is dropped leaves its line
//! feeds, so that line numbers stay those of the dump. Memory is bounded: a statement is held until its end
//! or up to [`HELD`], whichever comes first.

mod nesting;
mod state;

use nesting::Nesting;
use state::{Row, State};

use crate::failure::Failure;

/// How much of a statement is held before it must be let go.
pub const HELD: usize = 64 << 10;

/// How much of a comment's line is shown to the listener.
const COMMENT: usize = 512;

/// What goes by in a dump.
pub trait Listener {
    /// A `--` comment outside statements, without the dashes.
    fn comment(&mut self, text: &str, line: u64);

    /// A statement with its semicolon, or its first [`HELD`] bytes when it is longer.
    ///
    /// # Errors
    /// When the dump must not be used.
    fn statement(&mut self, text: &[u8], line: u64) -> Result<Verdict, Failure>;

    /// A backslash command with its arguments. Gives whether it is kept.
    ///
    /// # Errors
    /// When the dump must not be used.
    fn command(&mut self, text: &str, line: u64) -> Result<bool, Failure>;

    /// A piece of a row of the COPY that the last statement began. What has come when the COPY ends
    /// instead of the row is no row's (the end's own backslash).
    fn row_piece(&mut self, _piece: &[u8]) {}

    /// Such a row ended.
    fn row(&mut self);

    /// Rows as they are, in pieces of any size; the last ends with the line `\\.`.
    fn data(&mut self, _rows: &[u8]) {}

    /// The COPY's last row went by, and the line after it.
    fn end_of_data(&mut self) {}
}

/// What becomes of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// It goes.
    Drop,
    /// It stays, and rows of COPY follow it.
    Copy {
        /// Whether they are frozen: it gets an option that says so.
        frozen: bool,
    },
}

/// The lexer's place in a dump.
#[derive(Debug)]
pub struct Lexer {
    state: State,
    line: u64,
    /// The statement so far; empty between statements.
    held: Vec<u8>,
    /// The line that the statement began on.
    began: u64,
    /// What became of a statement that was let go before its end.
    let_go: Option<Verdict>,
    nesting: Nesting,
    /// `standard_conforming_strings = off`: every string takes backslashes.
    old_strings: bool,
    /// After an `E''` string: whether a line feed followed, so that a further string goes on with it.
    continues: Option<bool>,
    /// A carriage return went by outside quotes: it must be the line's end.
    returned: bool,
}

impl Default for Lexer {
    fn default() -> Self {
        Self {
            state: State::Text,
            line: 1,
            held: vec![],
            began: 1,
            let_go: None,
            nesting: Nesting::default(),
            old_strings: false,
            continues: None,
            returned: false,
        }
    }
}

impl Lexer {
    /// The line that is being read, from 1.
    pub const fn line(&self) -> u64 {
        self.line
    }

    /// What is open where the dump ends, if something is.
    pub fn open(&self) -> Option<&'static str> {
        match &self.state {
            State::CopyHead | State::Copy(_) => Some("in the rows of a COPY"),
            State::Single { .. } | State::Double | State::Dollar(..) => Some("in a quoted text"),
            State::Block(..) => Some("in a comment"),
            State::Command(_) => Some("in a backslash command"),
            _ if !self.held.is_empty() || self.let_go.is_some() => Some("in a statement"),
            _ => None,
        }
    }

    /// Reads on. What is kept is appended to `out`, if that is wanted.
    ///
    /// # Errors
    /// What the listener objects to, a COPY that doesn't begin on a line of its own, and what `psql` and the server
    /// would read differently: then nobody could say what `psql` takes for a command of its own.
    pub fn push(
        &mut self,
        piece: &[u8],
        listener: &mut impl Listener,
        mut out: Option<&mut Vec<u8>>,
    ) -> Result<(), Failure> {
        let mut at = 0;
        // `psql` reads lines as C strings.
        if let Some(zero) = memchr::memchr(0, piece) {
            self.line += memchr::memchr_iter(b'\n', &piece[..zero]).count() as u64;
            return Err(self.refused("a zero byte"));
        }
        while at < piece.len() {
            if let State::Copy(row) = self.state {
                at += self.rows(&piece[at..], row, listener, out.as_deref_mut());
            } else {
                self.carriage_return(piece[at])?;
                // Some states look at the byte that ends them once more.
                while !self.step(piece[at], listener, out.as_deref_mut())? {}
                if piece[at] == b'\n' {
                    self.line += 1;
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// Goes through rows of COPY up to the end of the piece or of the COPY. Gives how many bytes that were.
    fn rows(
        &mut self,
        piece: &[u8],
        mut row: Row,
        listener: &mut impl Listener,
        out: Option<&mut Vec<u8>>,
    ) -> usize {
        let (mut at, mut began) = (0, 0);
        while at < piece.len() {
            let byte = piece[at];
            row = match (row, byte) {
                (Row::End | Row::EndReturn, b'\n') => {
                    self.line += 1;
                    self.state = State::Text;
                    listener.data(&piece[..=at]);
                    listener.end_of_data();
                    keep(out, &piece[..=at]);
                    return at + 1;
                }
                (_, b'\n') => {
                    self.line += 1;
                    listener.row_piece(&piece[began..at]);
                    listener.row();
                    began = at + 1;
                    Row::Start
                }
                (Row::Start, b'\\') => Row::Backslash,
                (Row::Backslash, b'.') => Row::End,
                (Row::End, b'\r') => Row::EndReturn,
                _ => {
                    // Nothing matters before the line's end.
                    at = memchr::memchr(b'\n', &piece[at..]).map_or(piece.len(), |found| at + found);
                    row = Row::Inside;
                    continue;
                }
            };
            at += 1;
        }
        if began < piece.len() {
            listener.row_piece(&piece[began..]);
        }
        self.state = State::Copy(row);
        listener.data(piece);
        keep(out, piece);
        piece.len()
    }

    /// Takes one byte. Gives whether it is done with.
    fn step(
        &mut self,
        byte: u8,
        listener: &mut impl Listener,
        mut out: Option<&mut Vec<u8>>,
    ) -> Result<bool, Failure> {
        match &mut self.state {
            State::Text => return self.text(byte, listener, out),
            State::Dash => {
                if byte == b'-' {
                    self.state = State::Comment(vec![]);
                    if self.idle() {
                        keep(out, b"--");
                    } else {
                        self.hold(b"--", listener, out)?;
                    }
                    return Ok(true);
                }
                self.state = State::Text;
                self.continues = None;
                self.hold(b"-", listener, out)?;
                return Ok(false);
            }
            State::Slash => {
                if byte == b'*' {
                    self.state = State::Block(1, 0);
                    if self.idle() {
                        keep(out, b"/*");
                    } else {
                        self.hold(b"/*", listener, out)?;
                    }
                    return Ok(true);
                }
                self.state = State::Text;
                self.hold(b"/", listener, out)?;
                return Ok(false);
            }
            State::Comment(text) => {
                if byte == b'\n' {
                    let text = std::mem::take(text);
                    self.state = State::Text;
                    self.continues = self.continues.map(|_| true);
                    if self.idle() {
                        listener.comment(&String::from_utf8_lossy(&text), self.line);
                    }
                } else if text.len() < COMMENT {
                    text.push(byte);
                }
            }
            State::Block(depth, last) => match (*last, byte) {
                (b'*', b'/') if *depth == 1 => self.state = State::Text,
                (b'*', b'/') => (*depth, *last) = (*depth - 1, 0),
                (b'/', b'*') => (*depth, *last) = (*depth + 1, 0),
                _ => *last = byte,
            },
            State::Single { escapes, escaped, continued } => match byte {
                _ if *escaped => *escaped = false,
                b'\\' if *continued => {
                    return Err(
                        self.refused("a backslash in a quoted text that goes on with an E'' of an earlier line")
                    );
                }
                b'\\' if *escapes => *escaped = true,
                b'\'' => self.state = State::Closing { escapes: *escapes, continued: *continued },
                _ => {}
            },
            State::Closing { escapes, continued } => {
                if byte != b'\'' {
                    self.continues = escapes.then_some(false);
                    self.state = State::Text;
                    return Ok(false);
                }
                self.state = State::Single { escapes: *escapes, escaped: false, continued: *continued };
            }
            State::Double => {
                if byte == b'"' {
                    self.state = State::Text;
                }
            }
            State::Tag(tag) => {
                let first = tag.len() == 1;
                if byte == b'$' {
                    let mut delimiter = std::mem::take(tag);
                    delimiter.push(b'$');
                    self.state = State::Dollar(delimiter, 0);
                } else if is_word(byte) && byte != b'$' && !(first && byte.is_ascii_digit()) && tag.len() < 64 {
                    tag.push(byte);
                } else if first && byte.is_ascii_digit() {
                    // `$1`, a function's parameter.
                    self.state = State::Text;
                    return Ok(false);
                } else {
                    return Err(self.refused("a dollar sign that begins no quote"));
                }
            }
            State::Dollar(delimiter, seen) => {
                *seen = if byte == delimiter[*seen] { *seen + 1 } else { usize::from(byte == b'$') };
                if *seen == delimiter.len() {
                    self.state = State::Text;
                }
            }
            State::Command(text) => {
                if byte == b'\n' {
                    let text = String::from_utf8_lossy(&std::mem::take(text)).trim_end().to_owned();
                    self.state = State::Text;
                    if listener.command(&text, self.line)? {
                        keep(out.as_deref_mut(), text.as_bytes());
                    }
                    keep(out, b"\n");
                } else if text.len() < HELD {
                    text.push(byte);
                } else {
                    return Err(self.refused("a backslash command without an end"));
                }
                return Ok(true);
            }
            State::CopyHead => {
                match byte {
                    b'\n' => self.state = State::Copy(Row::Start),
                    b' ' | b'\t' | b'\r' => {}
                    _ => return Err(self.refused("something follows a COPY on its line")),
                }
                keep(out, &[byte]);
                return Ok(true);
            }
            State::Copy(_) => return Ok(true),
        }
        if self.idle() {
            keep(out, &[byte]);
        } else {
            self.hold(&[byte], listener, out)?;
        }
        Ok(true)
    }

    fn text(&mut self, byte: u8, listener: &mut impl Listener, out: Option<&mut Vec<u8>>) -> Result<bool, Failure> {
        let continued = match byte {
            b'\n' => self.continues.map(|_| true),
            b' ' | b'\t' | b'\r' | b'-' => self.continues,
            _ => None,
        };
        let goes_on = std::mem::replace(&mut self.continues, continued) == Some(true);
        let word = self.nesting.word();
        let after_word = !word.is_empty();
        match byte {
            b'-' => {
                self.nesting.end_of_word();
                self.state = State::Dash;
                return Ok(true);
            }
            b'/' => {
                self.nesting.end_of_word();
                self.state = State::Slash;
                return Ok(true);
            }
            // `psql` versions differ on `1e'…'` and the like; what they agree on is read, nothing else.
            b'\'' if after_word && !matches!(word, b"e" | b"b" | b"x" | b"n") => {
                return Err(self.refused("a quoted text right after a word"));
            }
            b'\'' => {
                let continued = goes_on && !self.old_strings;
                let escapes = self.old_strings || continued || word == b"e";
                self.nesting.end_of_word();
                self.state = State::Single { escapes, escaped: false, continued };
            }
            b'"' => {
                self.nesting.end_of_word();
                self.state = State::Double;
            }
            b'$' if !after_word => self.state = State::Tag(vec![b'$']),
            // `1$$`: for `psql`, a number and a quote.
            b'$' if word[0].is_ascii_digit() => return Err(self.refused("a dollar sign right after a number")),
            b'\\' => {
                self.nesting.end_of_word();
                if !self.idle() {
                    return Err(self.refused("a backslash command inside a statement"));
                }
                self.state = State::Command(vec![b'\\']);
                return Ok(true);
            }
            b';' => {
                self.nesting.end_of_word();
                if self.nesting.ends_statement() {
                    return self.end_of_statement(listener, out).map(|()| true);
                }
            }
            b'(' | b')' => {
                self.nesting.end_of_word();
                self.nesting.parenthesis(byte == b'(');
            }
            _ if is_word(byte) => self.nesting.byte_of_word(byte),
            _ => self.nesting.end_of_word(),
        }
        if self.idle() && byte.is_ascii_whitespace() {
            keep(out, &[byte]);
        } else {
            self.hold(&[byte], listener, out)?;
        }
        Ok(true)
    }

    /// Whether no statement has begun.
    fn idle(&self) -> bool {
        self.held.is_empty() && self.let_go.is_none()
    }

    fn hold(
        &mut self,
        bytes: &[u8],
        listener: &mut impl Listener,
        out: Option<&mut Vec<u8>>,
    ) -> Result<(), Failure> {
        match self.let_go {
            Some(Verdict::Drop) => keep(out, if bytes == b"\n" { bytes } else { b"" }),
            Some(_) => keep(out, bytes),
            None => {
                if self.held.is_empty() {
                    self.began = self.line;
                }
                self.held.extend_from_slice(bytes);
                if self.held.len() >= HELD {
                    let verdict = listener.statement(&self.held, self.began)?;
                    if matches!(verdict, Verdict::Copy { .. }) {
                        return Err(self.refused("a COPY without an end"));
                    }
                    release(&mut self.held, verdict, out);
                    self.let_go = Some(verdict);
                }
            }
        }
        Ok(())
    }

    fn end_of_statement(&mut self, listener: &mut impl Listener, out: Option<&mut Vec<u8>>) -> Result<(), Failure> {
        self.nesting = Nesting::default();
        self.continues = None;
        if let Some(verdict) = self.let_go.take() {
            keep(out, if verdict == Verdict::Drop { b"" } else { b";" });
            return Ok(());
        }
        if self.held.is_empty() {
            self.began = self.line;
        }
        self.held.push(b';');
        if let Some(on) = super::statement::conforming_strings(&self.held) {
            self.old_strings = !on;
        }
        let verdict = listener.statement(&self.held, self.began)?;
        release(&mut self.held, verdict, out);
        if matches!(verdict, Verdict::Copy { .. }) {
            self.state = State::CopyHead;
        }
        Ok(())
    }

    /// Outside quotes a carriage return ends a line for `psql`, a line feed only for others.
    fn carriage_return(&mut self, byte: u8) -> Result<(), Failure> {
        let counts = matches!(
            self.state,
            State::Text | State::Closing { .. } | State::Comment(_) | State::Dash | State::Slash
        );
        if std::mem::replace(&mut self.returned, counts && byte == b'\r') && byte != b'\n' {
            return Err(self.refused("a carriage return within a line"));
        }
        Ok(())
    }

    fn refused(&self, what: &str) -> Failure {
        Failure::permanent(format!("line {} of the dump: {what}", self.line))
            .help("this is not what pg_dump writes; look at the file before you trust it")
    }
}

fn keep(out: Option<&mut Vec<u8>>, bytes: &[u8]) {
    if let Some(out) = out {
        out.extend_from_slice(bytes);
    }
}

fn release(held: &mut Vec<u8>, verdict: Verdict, out: Option<&mut Vec<u8>>) {
    if let Some(out) = out {
        match verdict {
            Verdict::Drop => out.extend(held.iter().filter(|byte| **byte == b'\n')),
            Verdict::Keep | Verdict::Copy { frozen: false } => out.extend_from_slice(held),
            Verdict::Copy { frozen: true } => {
                out.extend_from_slice(held.strip_suffix(b";").unwrap_or(held));
                out.extend_from_slice(b" WITH (FREEZE);");
            }
        }
    }
    held.clear();
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}
