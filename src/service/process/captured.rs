//! What is kept of a stream.

use std::borrow::Cow;

use super::CAPTURE;
use crate::secret::Redactor;

#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    Beginning,
    End,
}

/// What was kept of a stream.
#[derive(Debug)]
pub struct Captured {
    bytes: Vec<u8>,
    total: u64,
    keep: Keep,
}

impl Captured {
    pub(super) const fn new(keep: Keep) -> Self {
        Self { bytes: Vec::new(), total: 0, keep }
    }

    /// Of which the beginning is kept: for what becomes an output.
    pub const fn beginning() -> Self {
        Self::new(Keep::Beginning)
    }

    /// Of which the end is kept: for what explains a failure.
    pub const fn end() -> Self {
        Self::new(Keep::End)
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.total += piece.len() as u64;
        match self.keep {
            Keep::Beginning => {
                let room = CAPTURE.saturating_sub(self.bytes.len());
                self.bytes.extend_from_slice(&piece[..room.min(piece.len())]);
            }
            Keep::End => {
                self.bytes.extend_from_slice(piece);
                // Cut rarely, so that a long stream is not moved at each piece.
                if self.bytes.len() > 2 * CAPTURE {
                    self.bytes.drain(..self.bytes.len() - CAPTURE);
                }
            }
        }
    }

    /// The text, with a replacement character where it is not UTF-8. May hold secrets.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// How much was written in all.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Whether more was written than is kept.
    pub const fn is_cut(&self) -> bool {
        self.total > self.bytes.len() as u64
    }

    /// The last lines, for an error: at most `lines` and 2 KiB, secrets masked.
    pub fn last_lines(&self, lines: usize, redactor: &Redactor) -> String {
        let text = self.text();
        // Masked whole before it is cut, so that no part of a secret is left at the edge.
        let text = redactor.redact(text.trim_end());
        let mut from = text.len().saturating_sub(2048);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let mut kept: Vec<&str> = text[from..].lines().rev().take(lines).collect();
        kept.reverse();
        kept.join("\n")
    }
}
