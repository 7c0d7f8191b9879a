//! Encryption for people's keys, by the program [age](https://age-encryption.org) (Debian: `age`).
//!
//! What is sealed for a recipient (`age1…`, or an SSH public key) is read by whoever has its identity.
//! Streams go through the program; it authenticates each piece, so what was cut or changed is an error.

use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::process;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::process::{Command, Finished, Process};
use crate::failure::Failure;
use crate::secret::{Redactor, Secret};

/// How every sealed file begins (the age format's specification, "Version line").
pub const MAGIC: &[u8] = b"age-encryption.org/";

const PIECE: usize = 64 << 10;

/// Whether that looks like a recipient. Only `age` can tell if it is one.
pub fn is_recipient(text: &str) -> bool {
    ["age1", "ssh-ed25519 ", "ssh-rsa "].iter().any(|begin| text.starts_with(begin))
}

/// Proves that something can be sealed for these recipients: with nothing.
///
/// # Errors
/// When age isn't installed, or knows no such recipient.
pub async fn try_recipients(
    recipients: &[String],
    redactor: &Redactor,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let finished = sealing(recipients).run(Some(b""), redactor, &|_| (), cancel).await.map_err(installed)?;
    ended_well(&finished, redactor)
}

/// Starts to seal: what goes into its input comes sealed out of its output.
///
/// # Errors
/// When age can't be started.
pub fn seal(recipients: &[String], redactor: &Redactor) -> Result<Process, Failure> {
    sealing(recipients).start(true, redactor).map_err(installed)
}

/// Whether age ended well.
///
/// # Errors
/// Its own last words otherwise.
pub fn ended_well(finished: &Finished, redactor: &Redactor) -> Result<(), Failure> {
    if finished.exit.success() {
        return Ok(());
    }
    let words = finished.stderr.last_lines(12, redactor);
    // Its last line asks for bug reports.
    let said = words.lines().find_map(|line| line.strip_prefix("age: error: ")).unwrap_or(words.trim());
    Err(Failure::permanent(format!("age: {said}")))
}

fn sealing(recipients: &[String]) -> Command {
    let command = Command::new("age").arg("--encrypt");
    recipients.iter().fold(command, |command, recipient| command.arg("--recipient").arg(recipient))
}

fn installed(failure: Failure) -> Failure {
    failure.help("install age (Debian: `apt-get install age`)")
}

/// Opens what was sealed. What is wrong with it (another identity, damage, a cut) comes as the reader's error.
///
/// # Errors
/// When age can't be started.
pub fn open<R: AsyncRead + Send + Unpin + 'static>(
    sealed: R,
    identity: &Secret,
    redactor: &Redactor,
    cancel: &CancellationToken,
) -> Result<impl AsyncRead + Send + Unpin + use<R>, Failure> {
    let cannot = |error: io::Error| Failure::permanent(format!("hand the identity to age: {error}"));
    // A file in memory: the identity is in no argument, no variable and on no disk.
    let file = memfd_create("identity", MFdFlags::MFD_CLOEXEC).map_err(|errno| cannot(errno.into()))?;
    let mut file = std::fs::File::from(file);
    writeln!(file, "{}", identity.expose().trim()).map_err(cannot)?;
    let path = format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd());
    let command = Command::new("age").arg("--decrypt").arg("--identity").arg(path);
    let process = command.start(true, redactor).map_err(installed)?;
    let (to, from) = mpsc::channel(4);
    let (redactor, cancel) = (redactor.clone(), cancel.clone());
    tokio::spawn(async move {
        let outcome = pump(process, sealed, &to, &redactor, &cancel).await;
        drop(file);
        if let Err(error) = outcome {
            // Nobody may read any more.
            let _ = to.send(Err(error)).await;
        }
    });
    let pieces = futures::stream::unfold(from, async |mut from| Some((from.recv().await?, from)));
    Ok(StreamReader::new(Box::pin(pieces)))
}

async fn pump(
    mut process: Process,
    mut sealed: impl AsyncRead + Send + Unpin,
    to: &mpsc::Sender<io::Result<Bytes>>,
    redactor: &Redactor,
    cancel: &CancellationToken,
) -> io::Result<()> {
    let (Some(mut stdin), Some(mut stdout)) = (process.stdin.take(), process.stdout.take()) else { return Ok(()) };
    let feed = async {
        let fed = tokio::io::copy(&mut sealed, &mut stdin).await;
        drop(stdin);
        match fed {
            // It ended early, and says why itself.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            fed => fed.map(|_| ()),
        }
    };
    let drain = async {
        loop {
            let mut piece = vec![0; PIECE];
            let read = stdout.read(&mut piece).await?;
            if read == 0 {
                return Ok(());
            }
            piece.truncate(read);
            // Nobody reads any more: all of it ends, and the process with it.
            to.send(Ok(piece.into())).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
    };
    tokio::select! {
        passed = futures::future::try_join(feed, drain) => passed.map(|_| ())?,
        () = cancel.cancelled() => return Err(io::Error::other(Failure::transient("decrypting was cancelled"))),
    }
    let ended = async { ended_well(&process.wait(cancel).await?, redactor) };
    ended.await.map_err(io::Error::other)
}
