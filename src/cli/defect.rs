//! A defect of Lifeboat itself ends in a text that can be reported, never in a backtrace.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::sync::atomic::{AtomicBool, Ordering};

use super::exit::Exit;

/// Whether something panicked, in whatever thread.
static HAPPENED: AtomicBool = AtomicBool::new(false);

/// Takes over what a panic prints.
pub fn install() {
    set_hook(Box::new(|panic| {
        HAPPENED.store(true, Ordering::Relaxed);
        super::out::shout(&describe(panic));
    }));
}

/// Runs the program; a panic anywhere in it ends as [`Exit::Defect`].
pub fn guard(program: impl FnOnce() -> Exit) -> Exit {
    let exit = catch_unwind(AssertUnwindSafe(program)).unwrap_or(Exit::Defect);
    if HAPPENED.load(Ordering::Relaxed) { Exit::Defect } else { exit }
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let words = panic.payload();
    let words =
        words.downcast_ref::<&str>().copied().or_else(|| words.downcast_ref::<String>().map(String::as_str));
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    // Of the arguments only the command: the others may hold a secret input.
    let command = std::env::args().nth(1).filter(|word| !word.starts_with('-')).unwrap_or_default();
    format!(
        "error: Lifeboat itself failed. This is a defect of the program, not of your plan.\n  \
           what: {}\n  where: {place}\n  in: lifeboat {} ({} {}), `lifeboat {command}`\n \
         help: please report these lines at {}/issues\n       \
               A run that was under way is in its journal, whole: `lifeboat status` shows it,\n       \
               `lifeboat resume` goes on.",
        words.unwrap_or("no message"),
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        env!("CARGO_PKG_REPOSITORY"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_any_thread_is_a_defect() {
        assert_eq!(guard(|| Exit::Done), Exit::Done);
        let hook = std::panic::take_hook();
        install();
        let exit = guard(|| {
            // As a worker's: caught by the one who waits for it, told by the hook.
            assert!(std::thread::spawn(|| panic!("a worker's")).join().is_err());
            Exit::Done
        });
        set_hook(hook);
        assert_eq!(exit, Exit::Defect);
    }
}
