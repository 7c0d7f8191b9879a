//! `lifeboat completions`.

use super::exit::{Error, Exit};
use super::out::Out;

/// Print the completion script of a shell
///
/// For packagers, or for yourself: `lifeboat completions bash > ~/.local/share/bash-completion/completions/lifeboat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub fn completions(args: &Args, out: &Out) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "lifeboat", &mut script);
    out.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
