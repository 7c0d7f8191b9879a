//! Questions put to the person at the terminal.
//!
//! Lines are read on a thread of their own: a question that somebody else answers first
//! is dropped without losing what is typed next.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::answer::value_of;
use crate::engine::Asker;
use crate::record::event::{Actor, Answer, Question, QuestionKind};
use crate::report::live::Screen;
use crate::report::text::{Paint, wrap};

/// Whether a person can be asked.
pub fn possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// The person at the terminal.
#[derive(Debug)]
pub struct Terminal {
    lines: Mutex<UnboundedReceiver<String>>,
    screen: Screen,
    paint: Paint,
}

impl Terminal {
    /// Starts to listen. `screen` is taken off while a question is open.
    pub fn new(screen: Screen, paint: Paint) -> Self {
        let (sender, lines) = unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { lines: Mutex::new(lines), screen, paint }
    }

    fn say(text: &str) {
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
    }

    /// One line; `None` at the end of input.
    async fn line(lines: &mut UnboundedReceiver<String>, prompt: &str) -> Option<String> {
        Self::say(prompt);
        lines.recv().await.map(|line| line.trim().to_owned())
    }

    /// Yes, no, or left open.
    async fn decide(&self, lines: &mut UnboundedReceiver<String>, prompt: &str) -> Option<bool> {
        loop {
            let hint = self.paint.dim("yes / no / later");
            match Self::line(lines, &format!("  {prompt} ({hint}) ")).await?.to_lowercase().as_str() {
                "y" | "yes" => return Some(true),
                "n" | "no" => return Some(false),
                "l" | "later" => return None,
                _ => {}
            }
        }
    }

    async fn fields(
        &self,
        lines: &mut UnboundedReceiver<String>,
        question: &Question,
    ) -> Option<BTreeMap<String, serde_json::Value>> {
        let mut fields = BTreeMap::new();
        for (name, kind) in &question.fields {
            loop {
                let text =
                    Self::line(lines, &format!("  {name} {}: ", self.paint.dim(&format!("({kind})")))).await?;
                match value_of(Some(kind), &text) {
                    Ok(value) if !text.is_empty() => {
                        fields.insert(name.clone(), value);
                        break;
                    }
                    Ok(_) => {}
                    Err(wanted) => Self::say(&format!("  that is not {wanted}\n")),
                }
            }
        }
        Some(fields)
    }

    fn heading(&self, step: &str, question: &Question) -> String {
        let what = match question.kind {
            QuestionKind::Manual => "is yours to do",
            QuestionKind::Approve => "waits for an answer",
            QuestionKind::Confirm => "asks before it acts",
            QuestionKind::Interrupted => "was cut off, and nobody can tell if it happened",
        };
        let heading = self.paint.strong(&format!("{step} {what}"));
        format!("\n{} {heading}\n  {}\n", self.paint.warn("?"), wrap(&question.message, self.paint.width, 2))
    }

    async fn answer(&self, step: &str, question: &Question) -> Option<Answer> {
        let by = Actor::current().user;
        let mut lines = self.lines.lock().await;
        // What was typed before the question was seen doesn't answer it.
        while lines.try_recv().is_ok() {}
        Self::say(&self.heading(step, question));
        if !question.by.is_empty() && !question.by.contains(&by) {
            Self::say(&format!("  asked are {}; you are {by}\n", question.by.join(", ")));
            return None;
        }
        for item in &question.checklist {
            if !self.decide(&mut lines, &format!("{item}: done?")).await? {
                Self::say("  then it is left open for now\n");
                return None;
            }
        }
        let word = match question.kind {
            QuestionKind::Manual => "Done?",
            QuestionKind::Approve => "Approve?",
            QuestionKind::Confirm => "Go on?",
            QuestionKind::Interrupted => "Run it again?",
        };
        let approved = self.decide(&mut lines, word).await?;
        let fields = if approved { self.fields(&mut lines, question).await? } else { BTreeMap::new() };
        let note = match question.kind {
            QuestionKind::Confirm => None,
            _ => Self::line(&mut lines, "  Note, kept with the answer (may be empty): ")
                .await
                .filter(|note| !note.is_empty()),
        };
        Some(Answer { approved, by, at: Timestamp::now(), note, fields })
    }
}

#[async_trait]
impl Asker for Terminal {
    async fn ask(&self, step: &str, question: &Question) -> Option<Answer> {
        let _quiet = self.screen.hide();
        self.answer(step, question).await
    }
}

/// The environment's name, typed: whether it is the one.
pub fn type_name(environment: &str, destroyed: &str, paint: Paint) -> bool {
    let warning = format!("`{environment}` is protected, and this plan destroys {destroyed} in it.");
    let mut stderr = std::io::stderr().lock();
    let asked =
        format!("{} {}\n  Type the environment's name to go on: ", paint.bad("!"), wrap(&warning, paint.width, 2));
    let _ = write!(stderr, "{asked}").and_then(|()| stderr.flush());
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).is_ok() && line.trim() == environment
}
