//! Compression, told from the first bytes and never from the name.

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, BufReader};

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// As `gzip` does.
    Gzip,
    /// As `zstd` does.
    Zstd,
    /// Not at all.
    None,
}

impl Compression {
    /// The word used in plans.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::None => "none",
        }
    }

    fn of(beginning: &[u8]) -> Self {
        match beginning {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Something to read, whatever is behind it.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Decompresses what `reader` gives, to the very end: a stream that stops before its
/// trailer, or whose checksum doesn't fit, fails in the last read.
///
/// # Errors
/// When the beginning can't be read.
pub async fn decompress(
    reader: impl AsyncBufRead + Send + Unpin + 'static,
) -> std::io::Result<(Compression, Reader)> {
    let (beginning, reader) = peek(reader, 4).await?;
    let compression = Compression::of(&beginning);
    let reader: Reader = match compression {
        Compression::Gzip => {
            let mut decoder = GzipDecoder::new(reader);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Compression::Zstd => {
            let mut decoder = ZstdDecoder::new(reader);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Compression::None => Box::new(reader),
    };
    Ok((compression, reader))
}

/// The first bytes (fewer when there are no more), and a reader that gives them again.
///
/// # Errors
/// When they can't be read.
pub async fn peek<R: AsyncRead + Send + Unpin>(
    mut reader: R,
    length: usize,
) -> std::io::Result<(Vec<u8>, impl AsyncBufRead + Send + Unpin + use<R>)> {
    let mut beginning = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match reader.read(&mut beginning[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    beginning.truncate(filled);
    let again = std::io::Cursor::new(beginning.clone()).chain(reader);
    Ok((beginning, BufReader::with_capacity(256 << 10, again)))
}
