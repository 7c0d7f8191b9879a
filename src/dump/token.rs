//! The words of a dump's statement.

use std::ops::Range;

/// A word, a quoted name, a quoted text or a sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// An unquoted word, folded to lower case.
    Word(String),
    /// A quoted name, unquoted.
    Name(String),
    /// A quoted text, unquoted.
    Text(String),
    /// Anything else.
    Sign(char),
}

impl Token {
    /// Whether it is that word, unquoted.
    pub fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own == word)
    }

    /// The name that it is, if it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// A name with or without its schema, from `at`; and where it ends.
pub fn qualified(tokens: &[Token], at: usize) -> Option<(Option<String>, String, usize)> {
    let at = if tokens.get(at)?.is("only") { at + 1 } else { at };
    let first = tokens.get(at)?.name()?.to_owned();
    if tokens.get(at + 1) == Some(&Token::Sign('.')) {
        Some((Some(first), tokens.get(at + 2)?.name()?.to_owned(), at + 3))
    } else {
        Some((None, first, at + 1))
    }
}

/// The tokens of a statement; comments and the insides of dollar quotes are left out.
pub fn tokens(text: &[u8]) -> Vec<Token> {
    placed(&String::from_utf8_lossy(text)).into_iter().map(|(_, token)| token).collect()
}

/// The same, and where each stands.
pub fn placed(text: &str) -> Vec<(Range<usize>, Token)> {
    let mut tokens = vec![];
    let mut rest = text.char_indices().peekable();
    // Only the beginning tells what a long statement is.
    while tokens.len() < 4096 {
        let Some((at, c)) = rest.next() else { break };
        let token = match c {
            _ if c.is_ascii_whitespace() => continue,
            '-' if text[at..].starts_with("--") => {
                while rest.next().is_some_and(|(_, c)| c != '\n') {}
                continue;
            }
            '/' if text[at..].starts_with("/*") => {
                skip_to(&mut rest, at + block_comment(&text[at..]));
                continue;
            }
            '$' if let Some(length) = dollar_quote(&text[at..]) => {
                skip_to(&mut rest, at + length);
                continue;
            }
            '"' | '\'' => {
                let mut inner = String::new();
                while let Some((_, next)) = rest.next() {
                    if next != c {
                        inner.push(next);
                    } else if rest.next_if(|(_, after)| *after == c).is_some() {
                        inner.push(c);
                    } else {
                        break;
                    }
                }
                if c == '"' { Token::Name(inner) } else { Token::Text(inner) }
            }
            _ if is_word(c) => {
                let mut word = String::from(c);
                while let Some((_, next)) = rest.next_if(|(_, c)| is_word(*c) || *c == '$') {
                    word.push(next);
                }
                if word.eq_ignore_ascii_case("e") && rest.next_if(|(_, next)| *next == '\'').is_some() {
                    Token::Text(escaped(&mut rest))
                } else {
                    Token::Word(word.to_lowercase())
                }
            }
            _ => Token::Sign(c),
        };
        let end = rest.peek().map_or(text.len(), |(after, _)| *after);
        tokens.push((at..end, token));
    }
    tokens
}

/// What words are made of: for PostgreSQL, anything that isn't ASCII as well.
const fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

type Rest<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

fn skip_to(rest: &mut Rest, end: usize) {
    while rest.next_if(|(at, _)| *at < end).is_some() {}
}

/// How long the comment is that a text begins with; such comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.as_bytes().get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") if depth == 1 => return at + 2,
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

/// How long the quote is that a text begins with, if its dollar begins one.
fn dollar_quote(text: &str) -> Option<usize> {
    let tag = text[1..].find('$')? + 1;
    let plain = |(at, c): (usize, char)| is_word(c) && (at > 0 || !c.is_ascii_digit());
    if !text[1..tag].char_indices().all(plain) {
        return None;
    }
    let inside = tag + 1;
    Some(text[inside..].find(&text[..inside]).map_or(text.len(), |end| inside + end + inside))
}

/// The rest of an `E''` text, of whose escapes only those count that stand before a quote.
fn escaped(rest: &mut Rest) -> String {
    let mut inner = String::new();
    while let Some((_, next)) = rest.next() {
        match next {
            '\\' => inner.extend(rest.next().map(|(_, c)| c)),
            '\'' if rest.next_if(|(_, after)| *after == '\'').is_none() => break,
            next => inner.push(next),
        }
    }
    inner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_dollar_quotes_are_left_out() {
        let left_out =
            "GRANT /* a ; /* ' */ \" */ $1 $été$ 'x$$ $été$ $a²\u{a0}$ ' $a²\u{a0}$ E'a\\'b''c' -- '\n$$x$$;";
        let kept = [
            Token::Word("grant".to_owned()),
            Token::Sign('$'),
            Token::Word("1".to_owned()),
            Token::Text("a'b'c".to_owned()),
            Token::Sign(';'),
        ];
        assert_eq!(tokens(left_out.as_bytes()), kept);
    }
}
