//! A reader that shows what goes through it, and the checksum made with one.

use std::fmt::Write as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, ReadBuf};

use crate::failure::Failure;

/// Shows each piece that is read to `see`, whose error becomes the reader's.
#[derive(Debug)]
pub struct Tap<R, F> {
    reader: R,
    see: F,
}

impl<R, F: FnMut(&[u8]) -> io::Result<()>> Tap<R, F> {
    /// A tap on `reader`.
    pub const fn new(reader: R, see: F) -> Self {
        Self { reader, see }
    }
}

impl<R: AsyncRead + Unpin, F: FnMut(&[u8]) -> io::Result<()> + Unpin> AsyncRead for Tap<R, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buf))?;
        Poll::Ready((self.see)(&buf.filled()[before..]))
    }
}

/// A checksum in the making, shared by the tap that feeds it and whoever asks at the end.
#[derive(Clone, Debug, Default)]
pub struct Checksum(Arc<Mutex<(Sha256, u64)>>);

impl Checksum {
    /// Takes a piece.
    pub fn update(&self, piece: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.update(piece);
        state.1 += piece.len() as u64;
    }

    /// A reader that feeds it.
    pub fn tap<R: AsyncRead + Send + Unpin>(&self, reader: R) -> impl AsyncRead + Send + Unpin + use<R> {
        let own = self.clone();
        Tap::new(reader, move |piece: &[u8]| {
            own.update(piece);
            Ok(())
        })
    }

    /// How many bytes it has taken.
    pub fn bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// SHA-256 of what it has taken, in hex.
    pub fn hex(&self) -> String {
        let digest = self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone().finalize();
        digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// A failure on its way through a reader.
pub fn through_reader(failure: Failure) -> io::Error {
    io::Error::other(failure)
}

/// The failure that came through a reader, if one did.
pub fn from_reader(error: &io::Error) -> Option<&Failure> {
    error.get_ref()?.downcast_ref::<Failure>()
}
