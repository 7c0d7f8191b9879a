//! An RDB file: whether it is one and whole.

use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};

use crate::failure::Failure;
use crate::service::process::{Command, find_program};
use crate::step::RunCx;

const MAGIC: &[u8] = b"REDIS";

/// The last byte before the checksum of 8 bytes.
const END: u8 = 0xFF;

const TOOL: &str = "redis-check-rdb";

/// Whether a file is a whole RDB file; how many keys are in it, if the tool that counts them is here.
/// `shown` names the file for people, `opened` is the path that the tool opens.
pub(super) async fn check(file: &mut File, opened: &Path, shown: &str, cx: &RunCx) -> Result<Option<u64>, Failure> {
    let unread = |error: std::io::Error| Failure::permanent(format!("read {shown}: {error}"));
    let length = file.metadata().await.map_err(unread)?.len();
    let mut begin = [0; MAGIC.len()];
    let mut end = [0; 1];
    if length >= 18 {
        file.rewind().await.map_err(unread)?;
        file.read_exact(&mut begin).await.map_err(unread)?;
        file.seek(SeekFrom::End(-9)).await.map_err(unread)?;
        file.read_exact(&mut end).await.map_err(unread)?;
        file.rewind().await.map_err(unread)?;
    }
    let help = "use another snapshot";
    if begin != MAGIC {
        return Err(Failure::permanent(format!("{shown} is no RDB file ({length} bytes)")).help(help));
    }
    if end != [END] {
        return Err(Failure::permanent(format!("{shown} is cut off: it has no end ({length} bytes)")).help(help));
    }
    if find_program(TOOL, None).is_none() {
        cx.log(&format!("{TOOL} is not installed: only the beginning and the end of {shown} were looked at\n"));
        return Ok(None);
    }
    let finished = Command::new(TOOL).arg(opened).run(None, &cx.redactor, &|_| (), &cx.cancel).await?;
    let said = finished.stdout.text();
    if finished.exit.success() {
        let count = |line: &str| line.split_once("[info] ")?.1.strip_suffix(" keys read")?.parse().ok();
        return Ok(said.lines().find_map(count));
    }
    if said.contains("handle RDB format version") {
        cx.log(&format!("{TOOL} is older than {shown}: only its beginning and end were looked at\n"));
        return Ok(None);
    }
    let words = finished.stdout.last_lines(4, &cx.redactor);
    Err(Failure::permanent(format!("{shown} is damaged: {TOOL}: {words}")).help(help))
}
