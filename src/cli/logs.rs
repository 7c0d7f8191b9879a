//! `lifeboat logs`.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::{Common, run_folder};
use crate::ids::StepId;
use crate::record::state::RunState;
use crate::record::store::{RunFolder, Store};

/// Show what the steps of a run printed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it; the latest without one
    run: Option<String>,
    /// Only this step
    step: Option<String>,
    /// Stay, and show what is added until the run's process ends
    #[arg(short, long)]
    follow: bool,
    /// `json`: one object a line, with `step`, `attempt` and `text`
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn logs(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let (folder, step) = choose(args, &store)?;
    let mut reader = Reader { out, format: args.format, offsets: HashMap::new(), last: None };
    loop {
        let alive = args.follow && folder.holder()?.is_some();
        let printed = reader.print_new(&folder, &folder.state()?, step.as_deref())?;
        if !alive {
            break;
        }
        if !printed {
            sleep(Duration::from_millis(200));
        }
    }
    if reader.last.is_none() {
        let of =
            step.map_or_else(|| format!("run {}", folder.id), |step| format!("step `{step}` of run {}", folder.id));
        out.say(&format!("{of} printed nothing"));
    }
    Ok(Exit::Done)
}

/// `logs STEP` means the latest run's step when no run is called so.
fn choose(args: &Args, store: &Store) -> Result<(RunFolder, Option<String>), Error> {
    let (folder, step) = match (store.find(args.run.as_deref()), &args.run, &args.step) {
        (Err(unknown), Some(word), None) => {
            let latest = store.find(None)?;
            if latest.state()?.step(word).is_none() {
                return Err(unknown.into());
            }
            (latest, Some(word.clone()))
        }
        (found, _, step) => (found?, step.clone()),
    };
    if let Some(step) = &step
        && folder.state()?.step(step).is_none()
    {
        return Err(Error::usage(format!("run {} has no step `{step}`", folder.id))
            .help(format!("`lifeboat status {}` lists its steps", folder.id)));
    }
    Ok((folder, step))
}

struct Reader<'a> {
    out: &'a Out,
    format: Format,
    /// How much of each file was printed.
    offsets: HashMap<PathBuf, u64>,
    /// The file that the last text was of.
    last: Option<PathBuf>,
}

impl Reader<'_> {
    /// Prints what was added since the last call; whether there was something.
    fn print_new(&mut self, folder: &RunFolder, state: &RunState, only: Option<&str>) -> Result<bool, Error> {
        let mut printed = false;
        for step in state.steps.iter().filter(|step| only.is_none_or(|only| step.header.id == only)) {
            for attempt in 1..=step.attempt {
                let id = StepId::from(step.header.id.as_str());
                for (path, what) in [
                    (folder.log_path(&id, attempt), ""),
                    (folder.asked_path(&id, attempt), ", asked what became of it"),
                ] {
                    let text = self.read_new(&path)?;
                    if text.is_empty() {
                        continue;
                    }
                    printed = true;
                    let heading =
                        (self.last.as_ref() != Some(&path)).then(|| format!("{id}, attempt {attempt}{what}"));
                    self.print(heading.as_deref(), id.as_str(), attempt, &text)?;
                    self.last = Some(path);
                }
            }
        }
        Ok(printed)
    }

    fn read_new(&mut self, path: &PathBuf) -> Result<String, Error> {
        let failed = |error: std::io::Error| Error::file("read the log", path, &error);
        let mut file = match std::fs::File::open(path) {
            Ok(file) => file,
            // A step that printed nothing has no log.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(failed(error)),
        };
        let offset = self.offsets.entry(path.clone()).or_default();
        file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(16 << 20).read_to_end(&mut bytes).map_err(failed)?;
        *offset += bytes.len() as u64;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn print(&self, heading: Option<&str>, step: &str, attempt: u32, text: &str) -> Result<(), Error> {
        match self.format {
            Format::Human => {
                if let Some(heading) = heading {
                    let before = if self.last.is_some() { "\n" } else { "" };
                    self.out.print(&format!("{before}{}\n", self.out.paint.strong(heading)))?;
                }
                self.out.print_raw(text)?;
                if text.ends_with('\n') { Ok(()) } else { self.out.print("\n") }
            }
            Format::Json => text.lines().try_for_each(|line| {
                self.out.print(&format!("{}\n", json!({ "step": step, "attempt": attempt, "text": line })))
            }),
        }
    }
}
