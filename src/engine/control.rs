//! Pause and cancel: Ctrl-C, SIGTERM, and a terminal that closes.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// What may be asked of a running run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Control {
    /// Start no new steps; the running ones finish.
    Pause,
    /// Cancel the running steps, for real; `finally` still runs.
    Cancel,
    /// Cancel `finally` as well.
    Abort,
}

impl Control {
    /// What asking once more means.
    const fn more(asked: Option<Self>) -> Self {
        match asked {
            None => Self::Pause,
            Some(Self::Pause) => Self::Cancel,
            Some(Self::Cancel | Self::Abort) => Self::Abort,
        }
    }
}

/// Listens to the process's signals: Ctrl-C pauses, twice cancels, three times gives up
/// `finally` as well; SIGTERM is Ctrl-C twice; SIGHUP is nothing, so that a closed
/// terminal does not end a recovery.
///
/// # Errors
/// When the system lets no signal be listened to.
pub fn signals() -> std::io::Result<UnboundedReceiver<Control>> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut hangups = signal(SignalKind::hangup())?;
    let (sender, receiver) = unbounded_channel();
    tokio::spawn(async move {
        let mut asked = None;
        loop {
            let control = tokio::select! {
                Some(()) = interrupts.recv() => Control::more(asked),
                Some(()) = terminations.recv() => Control::more(asked.max(Some(Control::Pause))),
                Some(()) = hangups.recv() => continue,
                else => return,
            };
            asked = Some(control);
            if sender.send(control).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
