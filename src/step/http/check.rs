//! `http.check`: a service answers as it should, and goes on doing so.

mod probe;

use std::collections::BTreeMap;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::Services;
use crate::service::http::Http;
use crate::step::effect::{Effect, Resource, Role};
use crate::step::world::{Foretold, World};
use crate::step::{
    Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Duration;
use probe::Good;
pub(super) use probe::output_of;
pub use probe::{MaxFailures, Status};

/// The bound on the one look that a preview takes.
const PREVIEW_PATIENCE: StdDuration = StdDuration::from_secs(10);

/// Checks that a service answers as it should. Redirects are not followed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The service. Its headers and credentials go with the request.
    #[schemars(extend("x-target" = "http"))]
    #[serde(default)]
    pub target: Option<String>,
    /// The path below the target's `base_url`.
    #[serde(default)]
    pub path: Option<String>,
    /// A whole URL, instead of `path`.
    #[serde(default)]
    pub url: Option<String>,
    /// The status it must answer with: a number, a list of them, or a matcher.
    #[serde(default)]
    pub status: Status,
    /// What its JSON body must hold: JSON pointer (`/ready`) to matcher.
    #[serde(default)]
    pub body: BTreeMap<String, Matcher>,
    /// Text that its body must contain.
    #[serde(default)]
    pub contains: Option<String>,
    /// Asks again and again until it is well, no longer than this. Without it, what it answers now counts.
    #[serde(default)]
    pub within: Option<Duration>,
    /// The time between two requests.
    #[serde(default = "one_second")]
    pub every: Duration,
    /// How many answers in a row must be good: guards against a service that flaps.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub samples: u32,
    /// How many of the `samples` may be bad: a number, or a share as `1%`.
    #[serde(default)]
    pub max_failures: MaxFailures,
    /// How long an answer may take.
    #[serde(default)]
    pub max_latency: Option<Duration>,
}

const fn one_second() -> Duration {
    Duration::seconds(1)
}

const fn one() -> u32 {
    1
}

impl StepType for Check {
    const NAME: &'static str = "http.check";
    const SUMMARY: &'static str = "Checks that a service answers as it should";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![
            output("status", ValueKind::Integer, "The last answer's HTTP status"),
            output("latency", ValueKind::Number, "How long the last answer took, in seconds"),
            output("body", ValueKind::Any, "The last answer's body: JSON as values, else text, up to 64 KiB"),
        ]
    }
}

#[async_trait]
impl Step for Check {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(self.resource()).role(Role::Verifies)]
    }

    fn check(&self, found: &mut Findings) {
        match (&self.path, &self.url) {
            (None, None) => {
                found.add("", "`http.check` needs a `path` or a `url`", "write `path: /health/ready`".to_owned());
            }
            (Some(_), Some(_)) => {
                found.add("/url", "`path` and `url` can't both be given", "keep one of them".to_owned());
            }
            (Some(path), None) if path.contains("://") => {
                found.add("/path", "this is a whole URL", "write it as `url`".to_owned());
            }
            _ => {}
        }
        if self.target.is_none() && self.path.is_some() {
            found.add("", "a `path` is below the `base_url` of a target", "add `target`, of kind http".to_owned());
        }
        for pointer in self.body.keys().filter(|pointer| !pointer.is_empty() && !pointer.starts_with('/')) {
            let help = format!("write `/{}`", pointer.replace('.', "/"));
            found.add(format!("/body/{pointer}"), format!("`{pointer}` is not a JSON pointer"), help);
        }
        if self.samples == 0 {
            found.add("/samples", "without a sample nothing is checked", "write 1 or more".to_owned());
        } else if self.max_failures.of(self.samples) >= self.samples {
            found.add(
                "/max_failures",
                "every answer may be bad: nothing is checked",
                "lower it, or raise `samples`".to_owned(),
            );
        }
        if self.every.std() < StdDuration::from_millis(10) {
            found.add("/every", "the service needs at least 10ms between two requests", None);
        }
        let needed = self.every.std().saturating_mul(self.samples.saturating_sub(1));
        if let Some(within) = self.within.filter(|within| within.std() < needed) {
            let message =
                format!("{} samples take {} at least, longer than {within}", self.samples, Duration(needed));
            found.add("/within", message, "raise `within`, or lower `samples` or `every`".to_owned());
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("check that {} answers {}", self.shown(), self.wanted());
        let preview = Preview::from_effects(&self.effects(), summary);
        let unknown = ["/path", "/url", "/status", "/body", "/contains"].iter().any(|at| cx.is_unknown(at));
        let Some(services) = cx.services else { return preview };
        let (http, url) = match self.reach(services) {
            Ok(reached) => reached,
            Err(_) if unknown => return preview,
            Err(failure) => return preview.blocked(failure.message, failure.help),
        };
        if unknown || changed_before(cx.world, &self.resource()).is_some() {
            return preview;
        }
        let preview = Preview { certainty: Certainty::Observed, ..preview };
        match self.probe(&http, &url, PREVIEW_PATIENCE).await {
            Ok(good) => preview
                .output("status", good.status)
                .output("body", good.body)
                .output("latency", good.latency.as_secs_f64()),
            // It may still become well in the time that it has.
            Err(bad) if self.within.is_some() => preview.warning(format!("not well now: {bad}"), bad.help),
            Err(bad) => preview.blocked(bad.message, bad.help),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let (http, url) = self.reach(&cx.services)?;
        tokio::select! {
            result = self.watch(cx, &http, &url) => result,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("checking {} was cancelled", self.shown()))),
        }
    }
}

impl Check {
    /// Asks until the last `samples` answers are good enough, the time is up, or too many were bad.
    async fn watch(&self, cx: &RunCx, http: &Http, url: &reqwest::Url) -> Result<Done, Failure> {
        let deadline = self.within.map(|within| Instant::now() + within.std());
        let allowed = self.max_failures.of(self.samples);
        let mut window = Window::new(self.samples as usize);
        let mut last_good: Option<Good> = None;
        let mut last_bad: Option<Failure> = None;
        for asked in 1_u64.. {
            let left = deadline.map_or(StdDuration::MAX, |deadline| deadline - Instant::now());
            let began = Instant::now();
            let answer = self.probe(http, url, left).await;
            window.push(answer.is_ok());
            match answer {
                Ok(good) => {
                    if window.is_full() && window.bad() <= allowed {
                        return Ok(self.done(good, &window));
                    }
                    last_good = Some(good);
                }
                Err(bad) => {
                    // The last request is cut short by the deadline; what came before says more.
                    if left > self.every.std() || last_bad.is_none() {
                        last_bad = Some(bad);
                    }
                    match (deadline, &last_good) {
                        (None, _) if window.bad() > allowed => break,
                        (None, Some(good)) if window.is_full() => return Ok(self.done(good.clone(), &window)),
                        _ => {}
                    }
                }
            }
            cx.progress(self.progress(asked, &window, last_bad.as_ref()));
            let next = began + self.every.std();
            if deadline.is_some_and(|deadline| next >= deadline) {
                break;
            }
            sleep(next - Instant::now()).await;
        }
        Err(self.not_well(last_bad, &window))
    }

    fn done(&self, good: Good, window: &Window) -> Done {
        let latency = good.latency.as_secs_f64();
        let mut summary = format!("{} in {:.0} ms", good.status, latency * 1000.0);
        if self.samples > 1 {
            summary = format!("{summary}, {} of {} good", window.good(), self.samples);
        }
        Done::new(summary).output("status", good.status).output("latency", latency).output("body", good.body)
    }

    fn not_well(&self, last_bad: Option<Failure>, window: &Window) -> Failure {
        // There was a bad answer, or too few answers for the time given.
        let bad = last_bad.unwrap_or_else(|| {
            Failure::transient(format!("{} good answers, {} are wanted", window.good(), self.samples))
        });
        match self.within {
            Some(within) => bad.context(format!("{} was not well within {within}", self.shown())),
            None if self.samples > 1 => {
                bad.context(format!("{} of {} answers of {} were bad", window.bad(), window.len(), self.shown()))
            }
            None => bad.context(self.shown()),
        }
    }

    fn progress(&self, asked: u64, window: &Window, last_bad: Option<&Failure>) -> Progress {
        let message = match last_bad {
            Some(bad) if window.good() == 0 => format!("request {asked}: {bad}"),
            _ => format!("request {asked}"),
        };
        Progress {
            done: window.good() as u64,
            total: Some(self.samples.into()),
            unit: ProgressUnit::Items,
            message: Some(message),
        }
    }

    fn reach(&self, services: &Services) -> Result<(Http, reqwest::Url), Failure> {
        let path_or_url = self.url.as_ref().or(self.path.as_ref()).map_or("", String::as_str);
        let http = match &self.target {
            Some(target) => services.http(target),
            None => services.http_at(path_or_url),
        }?;
        let url = http.url(path_or_url)?;
        Ok((http, url))
    }

    fn resource(&self) -> Resource {
        let name = self.target.as_deref().or(self.url.as_deref()).unwrap_or_default();
        Resource::other("http", name)
    }

    /// What is asked, for people.
    fn shown(&self) -> String {
        match (&self.target, &self.path, &self.url) {
            (Some(target), Some(path), _) => {
                format!("{target}{}{path}", if path.starts_with('/') { "" } else { "/" })
            }
            (_, _, Some(url)) => {
                url.parse().map_or_else(|_| "the URL".to_owned(), |url| crate::service::http::shown(&url))
            }
            _ => "the service".to_owned(),
        }
    }

    fn wanted(&self) -> String {
        let mut wanted = vec![self.status.describe()];
        wanted.extend(self.body.iter().map(|(pointer, matcher)| format!("{pointer} {}", matcher.describe())));
        wanted.extend(self.contains.iter().map(|text| format!("`{text}`")));
        wanted.join(", ")
    }
}

/// The step that makes looking at the service now pointless: one that touches the
/// service itself, or a container or database that it may stand on.
fn changed_before<'a>(world: &'a World, service: &Resource) -> Option<&'a Foretold> {
    world.touching(service).or_else(|| {
        let stands_on = |resource: &Resource| {
            ["container:", "postgres:", "redis:", "dns:"].iter().any(|kind| resource.as_str().starts_with(kind))
        };
        world.iter().find(|(resource, _)| stands_on(resource)).map(|(_, foretold)| foretold)
    })
}

/// The last answers, good and bad.
struct Window {
    answers: std::collections::VecDeque<bool>,
    size: usize,
}

impl Window {
    fn new(size: usize) -> Self {
        Self { answers: [].into(), size }
    }

    fn push(&mut self, good: bool) {
        if self.is_full() {
            self.answers.pop_front();
        }
        self.answers.push_back(good);
    }

    fn is_full(&self) -> bool {
        self.answers.len() >= self.size
    }

    fn len(&self) -> usize {
        self.answers.len()
    }

    fn good(&self) -> usize {
        self.answers.iter().filter(|good| **good).count()
    }

    fn bad(&self) -> u32 {
        (self.len() - self.good()) as u32
    }
}

#[cfg(test)]
mod tests;
