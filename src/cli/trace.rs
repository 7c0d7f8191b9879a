//! `-v`: what happens inside, to standard error, every secret masked.

use std::io::{self, Write};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::secret::Redactor;

/// The secrets of the plan at hand, as soon as one is loaded.
static REDACTOR: OnceLock<Redactor> = OnceLock::new();

/// Turns tracing on. `LIFEBOAT_LOG` takes a filter as `RUST_LOG` does elsewhere.
pub fn install(verbose: u8, color: bool) {
    let filter = match (std::env::var("LIFEBOAT_LOG"), verbose) {
        (Ok(filter), _) => EnvFilter::new(filter),
        (_, 0) => return,
        (_, 1) => EnvFilter::new("lifeboat=info"),
        (_, 2) => EnvFilter::new("lifeboat=debug"),
        _ => EnvFilter::new("lifeboat=trace,info"),
    };
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(Masked).compact().finish();
    // Refused only when there is one already, and this is the one place that sets it.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Masks the secrets that `redactor` knows, now and later, in everything that is traced.
pub fn mask(redactor: &Redactor) {
    let _ = REDACTOR.set(redactor.clone());
}

struct Masked;

impl<'a> MakeWriter<'a> for Masked {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Masked {
    /// The formatter hands over whole lines.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = REDACTOR.get().map_or(text.clone(), |redactor| redactor.redact(&text).into_owned().into());
        io::stderr().write_all(text.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
