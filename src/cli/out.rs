//! Where words go: results to standard output, talk to standard error.

use std::io::{self, IsTerminal, Write};

use super::exit::Error;
use crate::report::text::{Paint, tame, wrap};

/// What every command writes through.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// For standard output.
    pub paint: Paint,
    /// For standard error.
    pub talk: Paint,
    /// `-q`: no talk but errors.
    pub quiet: bool,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Even into a pipe.
    Always,
    /// Never.
    Never,
}

/// `--format` of most commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Human,
    /// For programs
    Json,
}

impl Out {
    /// From the common flags and what the two streams are.
    pub fn new(color: Color, width: Option<usize>, quiet: bool) -> Self {
        let may_color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let paint = |terminal: bool, columns: Option<usize>| Paint {
            color: match color {
                Color::Auto => terminal && may_color,
                Color::Always => true,
                Color::Never => false,
            },
            width: width.unwrap_or_else(|| columns.map_or(80, |columns| columns.clamp(60, 120))),
        };
        let columns = |term: &console::Term| term.size_checked().map(|(_, columns)| usize::from(columns));
        Self {
            paint: paint(io::stdout().is_terminal(), columns(&console::Term::stdout())),
            talk: paint(io::stderr().is_terminal(), columns(&console::Term::stderr())),
            quiet,
        }
    }

    /// A result, without what would act on the reader's terminal.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn print(&self, text: &str) -> Result<(), Error> {
        self.print_raw(&tame(text))
    }

    /// A result, as it is: what a step printed.
    ///
    /// # Errors
    /// When standard output can't be written.
    #[expect(clippy::unused_self, reason = "commands write through one thing, whatever it needs for that")]
    pub fn print_raw(&self, text: &str) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::BrokenPipe,
            _ => Error::usage(format!("failed to write to standard output: {error}")),
        })
    }

    /// A result as indented JSON.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn print_json(&self, value: &impl serde::Serialize) -> Result<(), Error> {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.print(&(text + "\n")),
            Err(error) => Err(Error::new(super::exit::Exit::Defect, format!("failed to write JSON: {error}"))),
        }
    }

    /// Talk. Nobody may be there to hear it; that is no error.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            shout(text);
        }
    }

    /// What ends the program, on standard error.
    pub fn error(&self, error: &Error) {
        let Error::Message { message, help, .. } = error else { return };
        let mut text = format!("{} {}", self.talk.bad("error:"), wrap(message, self.talk.width, 7));
        if let Some(help) = help {
            text.extend(["\n ", &self.talk.name("help:"), " ", &wrap(help, self.talk.width, 7)]);
        }
        shout(&text);
    }
}

/// Writes to standard error; nobody may be there to hear it, and that is no error.
pub fn shout(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", tame(text).trim_end());
}
