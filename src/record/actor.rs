//! Who acts, and where: the user, host, process and boot that a record names.

use super::event::Actor;

impl Actor {
    /// This process.
    pub fn current() -> Self {
        Self { user: user(), host: host(), pid: std::process::id(), boot: boot() }
    }

    /// Whether this machine was started anew since: the process can't be there any more, whoever has its number now.
    pub fn is_of_an_earlier_boot(&self) -> bool {
        let now = Self::current();
        let known = |boot: &str| boot != "unknown";
        self.host == now.host && self.boot != now.boot && known(&self.boot) && known(&now.boot)
    }

    /// `maria@db1 (process 4711)`.
    pub fn describe(&self) -> String {
        format!("{}@{} (process {})", self.user, self.host, self.pid)
    }
}

/// Who sits at the keyboard: the one who called `sudo`, if somebody did.
fn user() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| {
        let uid = nix::unistd::getuid();
        match nix::unistd::User::from_uid(uid) {
            Ok(Some(user)) => user.name,
            _ => format!("uid {uid}"),
        }
    })
}

fn host() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "unknown".to_owned())
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
}
