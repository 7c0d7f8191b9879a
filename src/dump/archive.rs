//! The header of `pg_dump`'s archives: which database, which server, which tool.

/// What an archive begins with.
pub const MAGIC: &[u8] = b"PGDMP";

/// How much of an archive's beginning [`Header::parse`] wants to see.
pub const HEADER: usize = 4096;

/// What an archive's header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The archive format's version: major, minor.
    pub version: (u8, u8),
    /// The database it was taken from.
    pub database: Option<String>,
    /// The server it was taken from.
    pub server_version: Option<String>,
    /// The tool that wrote it.
    pub tool_version: Option<String>,
}

impl Header {
    /// Reads the beginning of a custom-format archive, or of a directory's `toc.dat`.
    /// `None` when it is no archive.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = Cursor(bytes.strip_prefix(MAGIC)?);
        let version = (rest.byte()?, rest.byte()?);
        let _revision = rest.byte()?;
        let width = rest.byte()?;
        let _offset_width = rest.byte()?;
        let _format = rest.byte()?;
        let mut header = Self { version, ..Self::default() };
        // 1.15 put the algorithm, one byte, in the place of the level, an integer.
        if version >= (1, 15) {
            rest.byte()?;
        } else {
            rest.integer(width)?;
        }
        // The time it was begun, field by field.
        for _ in 0..7 {
            rest.integer(width)?;
        }
        header.database = rest.text(width);
        header.server_version = rest.text(width);
        header.tool_version = rest.text(width);
        Some(header)
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A sign, then the bytes, the least first.
    fn integer(&mut self, width: u8) -> Option<i64> {
        let negative = self.byte()? != 0;
        let mut value: i64 = 0;
        for at in 0..width {
            let byte = i64::from(self.byte()?);
            value |= byte.checked_shl(8 * u32::from(at)).unwrap_or(0);
        }
        Some(if negative { -value } else { value })
    }

    fn text(&mut self, width: u8) -> Option<String> {
        let length = usize::try_from(self.integer(width)?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}
