//! What COPY sends and takes: rows counted in a stream, the header of a CSV file, values as text.

/// Sessions that write rows down, or read them, mean the same by the same text, however the
/// role or the database is set up. Row security must not hide rows: it is an error then.
pub const PLAIN_FORMS: &str = "SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; \
     SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1; SET LOCAL row_security = off";

/// The signature that COPY's binary format begins with, before flags and an extension.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// The rows in what COPY writes, counted while it passes.
#[derive(Debug)]
pub enum RowCount {
    /// CSV: lines whose end is not within quotes.
    Csv {
        /// Lines so far.
        lines: u64,
        /// Whether a value in quotes is open.
        quoted: bool,
        /// Whether the last byte ended a line.
        ended: bool,
    },
    /// Binary: rows of fields, each with its length.
    Binary(Binary),
}

/// How far a binary stream is understood.
#[derive(Debug)]
pub struct Binary {
    rows: u64,
    /// Bytes to pass over.
    skip: u64,
    /// Fields of the row still to come.
    fields: u16,
    /// A number that is being read, and how many bytes of it are there.
    number: (u32, u8),
    state: State,
    seen: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Signature,
    Extension,
    Row,
    Field,
    Over,
    Wrong,
}

impl RowCount {
    /// For CSV.
    pub const fn csv() -> Self {
        Self::Csv { lines: 0, quoted: false, ended: true }
    }

    /// For the binary format.
    pub const fn binary() -> Self {
        Self::Binary(Binary {
            rows: 0,
            skip: 0,
            fields: 0,
            number: (0, 0),
            state: State::Signature,
            seen: Vec::new(),
        })
    }

    /// Takes a piece.
    pub fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Csv { lines, quoted, ended } => {
                for at in memchr::memchr2_iter(b'"', b'\n', piece) {
                    if piece[at] == b'"' {
                        *quoted = !*quoted;
                    } else if !*quoted {
                        *lines += 1;
                    }
                }
                if let Some(last) = piece.last() {
                    *ended = *last == b'\n';
                }
            }
            Self::Binary(binary) => binary.update(piece),
        }
    }

    /// Rows so far; the last line of a CSV file may lack its end.
    pub const fn rows(&self) -> u64 {
        match self {
            Self::Csv { lines, ended, .. } => *lines + if *ended { 0 } else { 1 },
            Self::Binary(binary) => binary.rows,
        }
    }

    /// Whether it came to its end.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Csv { quoted, .. } => !*quoted,
            Self::Binary(binary) => binary.state == State::Over,
        }
    }
}

impl Binary {
    fn update(&mut self, mut piece: &[u8]) {
        while let Some((&byte, rest)) = piece.split_first() {
            if self.skip > 0 {
                let skipped = self.skip.min(piece.len() as u64);
                self.skip -= skipped;
                piece = &piece[skipped as usize..];
                continue;
            }
            piece = rest;
            match self.state {
                State::Signature => {
                    self.seen.push(byte);
                    // The flags after it say nothing about rows.
                    if self.seen.len() == SIGNATURE.len() + 4 {
                        let right = self.seen.starts_with(SIGNATURE);
                        self.state = if right { State::Extension } else { State::Wrong };
                    }
                }
                State::Extension => {
                    if let Some(length) = self.number(byte, 4) {
                        self.skip = u64::from(length);
                        self.state = State::Row;
                    }
                }
                State::Row => {
                    if let Some(fields) = self.number(byte, 2) {
                        self.begin_row(fields as u16);
                    }
                }
                State::Field => {
                    if let Some(length) = self.number(byte, 4) {
                        self.skip = if length == u32::MAX { 0 } else { u64::from(length) };
                        self.fields -= 1;
                        if self.fields == 0 {
                            self.state = State::Row;
                        }
                    }
                }
                State::Over => self.state = State::Wrong,
                State::Wrong => return,
            }
        }
    }

    fn begin_row(&mut self, fields: u16) {
        if fields == u16::MAX {
            self.state = State::Over;
            return;
        }
        self.rows += 1;
        self.fields = fields;
        self.state = if fields == 0 { State::Row } else { State::Field };
    }

    fn number(&mut self, byte: u8, width: u8) -> Option<u32> {
        let (value, have) = self.number;
        let value = (value << 8) | u32::from(byte);
        if have + 1 == width {
            self.number = (0, 0);
            return Some(value);
        }
        self.number = (value, have + 1);
        None
    }
}

/// The values of the first line of a CSV file, once all of it is there.
pub fn csv_header(beginning: &[u8]) -> Option<Vec<String>> {
    let (mut quoted, mut end) = (false, None);
    for at in memchr::memchr2_iter(b'"', b'\n', beginning) {
        if beginning[at] == b'"' {
            quoted = !quoted;
        } else if !quoted {
            end = Some(at);
            break;
        }
    }
    let line = &beginning[..end?];
    let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut values = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                values.last_mut()?.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => values.push(String::new()),
            _ => values.last_mut()?.push(character),
        }
    }
    Some(values)
}

/// Appends a row in COPY's text format.
pub fn push_row<'a>(out: &mut Vec<u8>, values: impl Iterator<Item = Option<&'a str>>) {
    for (at, value) in values.enumerate() {
        if at > 0 {
            out.push(b'\t');
        }
        let Some(value) = value else {
            out.extend_from_slice(b"\\N");
            continue;
        };
        for byte in value.bytes() {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\t' => out.extend_from_slice(b"\\t"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                other => out.push(other),
            }
        }
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(mut count: RowCount, text: &[u8], piece: usize) -> (u64, bool) {
        for piece in text.chunks(piece) {
            count.update(piece);
        }
        (count.rows(), count.is_whole())
    }

    #[test]
    fn rows_are_counted_whatever_the_pieces() {
        let csv = b"id,text\n1,\"a \"\"quote\"\"\nand a line\"\n2,\n3,x";
        let mut binary = SIGNATURE.to_vec();
        binary.extend([0, 0, 0, 0, 0, 0, 0, 2, 9, 9]);
        binary.extend([0, 2, 0, 0, 0, 3, 1, 2, 3, 255, 255, 255, 255]);
        binary.extend([0, 1, 0, 0, 0, 0]);
        let cut = binary.clone();
        binary.extend([255, 255]);
        for piece in [1, 2, 7, 100] {
            assert_eq!(counted(RowCount::csv(), csv, piece), (4, true));
            assert_eq!(counted(RowCount::csv(), &csv[..15], piece), (2, false), "within quotes");
            assert_eq!(counted(RowCount::binary(), &binary, piece), (2, true));
            assert_eq!(counted(RowCount::binary(), &cut, piece), (2, false));
            assert!(!counted(RowCount::binary(), b"id,text\n1,x and much more text\n", piece).1);
        }
    }

    #[test]
    fn a_header_is_taken_apart() {
        assert_eq!(csv_header(b"id,\"a,\"\"b\"\"\nc\",\r\nrest").unwrap(), ["id", "a,\"b\"\nc", ""]);
        assert_eq!(csv_header(b"id,\"open\n"), None);
        assert_eq!(csv_header("\u{feff}id\n".as_bytes()).unwrap(), ["id"]);
    }

    #[test]
    fn a_row_is_written_so_that_it_reads_back() {
        let mut out = vec![];
        push_row(&mut out, [Some("a\tb\\N"), None, Some(""), Some("x\ny")].into_iter());
        assert_eq!(out, b"a\\tb\\\\N\t\\N\t\tx\\ny\n");
    }
}
