//! Where a semicolon ends a statement.

/// What keeps a semicolon from ending a statement: parentheses, and `BEGIN ATOMIC … END`
/// in a function, told from other BEGINs by the statement's first words, as `psql` does.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    parentheses: u32,
    begins: u32,
    /// The statement's first four words, by their first letter: `create or replace function`.
    first: [u8; 4],
    words: usize,
    word: Vec<u8>,
}

impl Nesting {
    pub(super) fn word(&self) -> &[u8] {
        &self.word
    }

    pub(super) fn byte_of_word(&mut self, byte: u8) {
        // Longer than any word that matters, and no longer.
        if self.word.len() < 16 {
            self.word.push(byte.to_ascii_lowercase());
        }
    }

    pub(super) fn end_of_word(&mut self) {
        if self.word.is_empty() {
            return;
        }
        let word = std::mem::take(&mut self.word);
        if word[0].is_ascii_digit() {
            return;
        }
        if let Some(first) = self.first.get_mut(self.words) {
            *first = match &*word {
                b"create" => b'c',
                b"function" => b'f',
                b"procedure" => b'p',
                b"or" => b'o',
                b"replace" => b'r',
                _ => 0,
            };
        }
        self.words += 1;
        let function = matches!(self.first, [b'c', b'f' | b'p', ..] | [b'c', b'o', b'r', b'f' | b'p']);
        if function && self.parentheses == 0 {
            match &*word {
                b"begin" => self.begins += 1,
                b"case" if self.begins > 0 => self.begins += 1,
                b"end" => self.begins = self.begins.saturating_sub(1),
                _ => {}
            }
        }
    }

    pub(super) fn parenthesis(&mut self, open: bool) {
        self.parentheses = if open { self.parentheses + 1 } else { self.parentheses.saturating_sub(1) };
    }

    pub(super) const fn ends_statement(&self) -> bool {
        self.parentheses == 0 && self.begins == 0
    }
}
