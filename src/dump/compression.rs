//! Compression, told from the first bytes and never from the name.

use std::io::Write as _;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use bytes::Bytes;
use flate2::write::GzEncoder;
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

/// Compresses what is written to it, into one stream: several of them, one after the other, read as one.
pub struct Compressor(Stream);

enum Stream {
    Plain(Vec<u8>),
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::Encoder<'static, Vec<u8>>),
}

impl Compressor {
    /// One at `level`; otherwise gzip's own, and zstd's first: of SQL the next ones make little less, in twice the time.
    /// zstd takes so many threads besides the caller's.
    ///
    /// # Errors
    /// When the level is none.
    pub fn new(compression: Compression, level: Option<i32>, threads: u32) -> std::io::Result<Self> {
        Ok(Self(match compression {
            Compression::None => Stream::Plain(vec![]),
            Compression::Gzip => {
                let level = level.map_or_else(flate2::Compression::default, |level| {
                    flate2::Compression::new(level.clamp(0, 9).unsigned_abs())
                });
                Stream::Gzip(GzEncoder::new(vec![], level))
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(vec![], level.unwrap_or(1))?;
                encoder.include_checksum(true)?;
                encoder.multithread(threads)?;
                Stream::Zstd(encoder)
            }
        }))
    }

    /// Takes a piece.
    ///
    /// # Errors
    /// When it can't be compressed.
    pub fn write(&mut self, piece: &[u8]) -> std::io::Result<()> {
        match &mut self.0 {
            Stream::Plain(out) => out.extend_from_slice(piece),
            Stream::Gzip(encoder) => encoder.write_all(piece)?,
            Stream::Zstd(encoder) => encoder.write_all(piece)?,
        }
        Ok(())
    }

    /// What has come out, if that is so many bytes.
    pub fn take(&mut self, at_least: usize) -> Option<Bytes> {
        let out = match &mut self.0 {
            Stream::Plain(out) => out,
            Stream::Gzip(encoder) => encoder.get_mut(),
            Stream::Zstd(encoder) => encoder.get_mut(),
        };
        (out.len() >= at_least).then(|| std::mem::take(out).into())
    }

    /// Ends the stream: what is left of it.
    ///
    /// # Errors
    /// When it can't be compressed.
    pub fn finish(self) -> std::io::Result<Bytes> {
        Ok(match self.0 {
            Stream::Plain(out) => out,
            Stream::Gzip(encoder) => encoder.finish()?,
            Stream::Zstd(encoder) => encoder.finish()?,
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_one_after_the_other_read_as_one() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for threads in [0, 2] {
                let (mut all, mut text) = (vec![], vec![]);
                for stream in 0..3 {
                    let mut compressor = Compressor::new(compression, None, threads).unwrap();
                    for at in 0..2000 {
                        let piece = format!("{stream} and {}\n", at * at);
                        compressor.write(piece.as_bytes()).unwrap();
                        text.extend_from_slice(piece.as_bytes());
                        all.extend(compressor.take(1000).unwrap_or_default());
                    }
                    all.extend(compressor.finish().unwrap());
                }
                let (found, mut reader) = decompress(std::io::Cursor::new(all)).await.unwrap();
                let mut read = vec![];
                reader.read_to_end(&mut read).await.unwrap();
                assert_eq!((found, read == text), (compression, true));
            }
        }
    }
}
