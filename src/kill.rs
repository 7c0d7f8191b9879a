//! Points at which a test may kill the process; without the feature `kill-points` there are none.
//!
//! A point lies before and after each write of the journal and each effect on the outside
//! world, and in the middle of long ones. `LIFEBOAT_KILL_AT=17` dies at the seventeenth that
//! is passed, by SIGKILL: no destructor runs, no buffer is flushed. `LIFEBOAT_KILL_TRACE=FILE`
//! gets a line with the name of each. See `docs/design/kill-harness.md`.

#[cfg(all(feature = "kill-points", not(debug_assertions)))]
compile_error!(
    "`kill-points` lets a variable of the environment kill the program: it is for tests, never for a release build"
);

#[cfg(feature = "kill-points")]
mod armed {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::{Mutex, PoisonError};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    /// How many points were passed. Behind a lock, so that the lines of the trace are in order.
    static PASSED: Mutex<u64> = Mutex::new(0);

    fn wanted() -> Option<u64> {
        std::env::var("LIFEBOAT_KILL_AT").ok()?.parse().ok()
    }

    fn trace() -> Option<PathBuf> {
        std::env::var_os("LIFEBOAT_KILL_TRACE").map(PathBuf::from)
    }

    /// Passes a point, or dies at it.
    pub fn point(name: &str) {
        let (wanted, trace) = (wanted(), trace());
        if wanted.is_none() && trace.is_none() {
            return;
        }
        let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
        *passed += 1;
        if let Some(path) = trace
            && let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path)
        {
            // A trace that can't be written is a test that finds no points.
            let _ = writeln!(file, "{name}");
        }
        if wanted == Some(*passed) {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            loop {
                std::thread::park();
            }
        }
    }

    /// A point before and one after.
    pub async fn around<F: Future>(name: &str, act: F) -> F::Output {
        point(&format!("{name}: before"));
        let output = act.await;
        point(&format!("{name}: after"));
        output
    }

    /// As [`around`], for SQL that may change something.
    pub async fn statement<F: Future>(sql: &str, act: F) -> F::Output {
        const READS: [&str; 5] = ["SELECT", "SHOW", "EXPLAIN", "SET", "WITH"];
        let word: String = sql.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
        let word = word.to_ascii_uppercase();
        if READS.contains(&word.as_str()) { act.await } else { around(&format!("sql {word}"), act).await }
    }
}

#[cfg(feature = "kill-points")]
pub use armed::{around, point, statement};

/// Passes a point.
#[cfg(not(feature = "kill-points"))]
#[inline]
pub const fn point(_name: &str) {}

/// A point before and one after.
#[cfg(not(feature = "kill-points"))]
#[inline]
pub const fn around<F: Future>(_name: &str, act: F) -> F {
    act
}

/// As [`around`], for SQL that may change something.
#[cfg(not(feature = "kill-points"))]
#[inline]
pub const fn statement<F: Future>(_sql: &str, act: F) -> F {
    act
}
