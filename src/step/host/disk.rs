//! `host.disk`: enough of a disk is free.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::failure::Failure;
use crate::service::disk::{self, Space};
use crate::step::effect::{Effect, Resource};
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Size;

/// Checks that enough is free of the file system that a path lies on.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A folder or file on it, as an absolute path.
    pub path: String,
    /// What must be free: a size (`20GiB`), or a part of the whole (`10%`). Without it nothing is asked, only told.
    #[serde(default)]
    pub min_free: Option<MinFree>,
}

/// A size, or a part of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MinFree {
    /// Bytes.
    Bytes(Size),
    /// Percent of the file system's size.
    Percent(f64),
}

const PATTERN: &str = r"^([0-9]+ ?(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?|[0-9]+(\.[0-9]+)? ?%)$";

impl MinFree {
    /// In bytes of a file system of that size.
    fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(size) => size.0,
            Self::Percent(percent) => (total as f64 / 100.0 * percent).ceil() as u64,
        }
    }
}

impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for MinFree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(number) = text.strip_suffix('%') else { return text.parse().map(Self::Bytes) };
        match number.trim_end().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Percent(percent)),
            _ => Err(format!("`{text}` is not a part of a disk: write it as `10%`")),
        }
    }
}

impl<'de> Deserialize<'de> for MinFree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer) {
            Ok(Written::Number(bytes)) => Ok(Self::Bytes(Size(bytes))),
            Ok(Written::Text(text)) => text.parse().map_err(de::Error::custom),
            Err(_) => Err(de::Error::custom("write a size as `20GiB`, or a part as `10%`")),
        }
    }
}

impl JsonSchema for MinFree {
    fn schema_name() -> Cow<'static, str> {
        "MinFree".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 0, "pattern": PATTERN })
    }
}

impl StepType for Disk {
    const NAME: &'static str = "host.disk";
    const SUMMARY: &'static str = "Checks that enough of a disk is free";

    fn outputs() -> Vec<Output> {
        vec![output("free", ValueKind::Integer, "How many bytes are free")]
    }
}

#[async_trait]
impl Step for Disk {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(Resource::other("file", &self.path))]
    }

    fn check(&self, found: &mut Findings) {
        if !self.path.starts_with('/') && !self.path.contains('‹') {
            let help = "where Lifeboat is started must not decide what is looked at".to_owned();
            found.add("/path", format!("`{}` is not an absolute path", self.path), help);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = match self.min_free {
            Some(wanted) => format!("check that {wanted} is free at {}", self.path),
            None => format!("look how much is free at {}", self.path),
        };
        let assumed = Preview::from_effects(&self.effects(), summary);
        if cx.services.is_none() || cx.is_unknown("/path") || cx.is_unknown("/min_free") {
            return assumed;
        }
        let judged = disk::look(&self.path).await.and_then(|space| self.judge(space));
        // What runs before may make the folder, or make room.
        let may_change = cx.world.iter().next().is_some();
        match judged {
            Ok(summary) => Preview::new(
                Action::Read,
                if may_change { Certainty::Assumed } else { Certainty::Observed },
                summary,
            ),
            Err(failure) if may_change => assumed.warning(format!("now: {}", failure.message), failure.help),
            Err(failure) => Preview::failed(failure),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let space = tokio::select! {
            space = disk::look(&self.path) => space?,
            () = cx.cancel.cancelled() => return Err(Failure::transient("looking at the disk was cancelled")),
        };
        Ok(Done::new(self.judge(space)?).output("free", space.free))
    }
}

impl Disk {
    /// What is free, in one line, if it is enough.
    fn judge(&self, space: Space) -> Result<String, Failure> {
        let Space { free, total } = space;
        let percent = free as f64 * 100.0 / total.max(1) as f64;
        let said = format!("{} of {} ({percent:.1}%) free at {}", Size(free), Size(total), self.path);
        match self.min_free {
            Some(wanted) if free < wanted.of(total) => {
                Err(Failure::permanent(format!("{said}, less than {wanted}")).help("make room there, then resume"))
            }
            _ => Ok(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids::StepId;
    use crate::step::testing::{cx, findings, preview, refused, services, step};
    use crate::step::world::{Fact, World};

    #[tokio::test]
    async fn what_is_free_is_told_and_too_little_refused() {
        let services = services(json!({}));
        let (cx, _) = cx(&services);
        let done = step("host.disk", json!({ "path": "/", "min_free": "1KiB" })).run(&cx).await.unwrap();
        assert!(done.outputs["free"].as_u64().unwrap() > 0);
        assert!(step("host.disk", json!({ "path": "/" })).run(&cx).await.is_ok());

        for too_much in [json!("100%"), json!("900000 TiB"), json!(u64::MAX)] {
            let asked = step("host.disk", json!({ "path": "/", "min_free": too_much }));
            let failure = asked.run(&cx).await.unwrap_err();
            assert!(failure.message.contains("less than"), "{failure}");
            assert!(!failure.transient);
            let world = World::default();
            assert_eq!(preview(&*asked, Some(&services), &world).await.action, Action::Blocked);
            assert_eq!(preview(&*asked, None, &world).await.action, Action::Read);

            // A step before may make room.
            let mut world = World::default();
            world.foretell(Resource::object("backups", "old*"), Fact::Absent, &StepId::from("prune"));
            let preview = preview(&*asked, Some(&services), &world).await;
            assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Assumed));
            assert_eq!(preview.problems.len(), 1);
        }
    }

    #[tokio::test]
    async fn a_path_that_is_not_there_is_named() {
        let services = services(json!({}));
        let (cx, _) = cx(&services);
        let failure = step("host.disk", json!({ "path": "/no/such" })).run(&cx).await.unwrap_err();
        assert_eq!(failure.message, "look at the disk of `/no/such`: there is no such path");
    }

    #[test]
    fn sizes_and_parts() {
        assert_eq!("12.5 %".parse(), Ok(MinFree::Percent(12.5)));
        assert_eq!(MinFree::Percent(10.0).of(1000), 100);
        assert_eq!("1KiB".parse(), Ok(MinFree::Bytes(Size(1024))));
        for bad in ["101%", "-1%", "%", "NaN%", "10 percent"] {
            assert!(bad.parse::<MinFree>().is_err(), "{bad}");
        }
        assert!(refused("host.disk", json!({ "path": "/", "min_free": "much" })).starts_with("/min_free"));
        assert_eq!(findings("host.disk", json!({ "path": "var" })).len(), 1);
    }
}
