//! Where in a dump's text the lexer is.

#[derive(Debug)]
pub(super) enum State {
    Text,
    /// A `-` that may begin a comment.
    Dash,
    /// A `/` that may begin a comment.
    Slash,
    Comment(Vec<u8>),
    /// The depth, and the last byte.
    Block(u32, u8),
    Single {
        escapes: bool,
        escaped: bool,
        /// Whether it goes on with an `E''` string of an earlier line.
        continued: bool,
    },
    /// A quote that ends such a text, unless another one follows.
    Closing {
        escapes: bool,
        continued: bool,
    },
    Double,
    /// `$` and what follows it.
    Tag(Vec<u8>),
    /// The whole delimiter, and how much of it was seen.
    Dollar(Vec<u8>, usize),
    Command(Vec<u8>),
    /// After `COPY … FROM stdin;`: the rest of that line.
    CopyHead,
    Copy(Row),
}

/// How much of a COPY line was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Start,
    Backslash,
    End,
    EndReturn,
    Inside,
}
