//! HTTP services and web hooks: one request at a time, bounded, never redirected.
//!
//! Knows nothing of steps. What a good answer is, the caller decides; here an answer is
//! an answer, and only the lack of one is a failure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde_json::Value;

use super::oidc::OidcSettings;
use super::{HttpAuth, HttpSettings, Services, Target, WebhookFormat, trust};
use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;

/// How much of an answer's body is read.
pub const BODY_CAP: usize = 1 << 20;

/// The bound on a web hook's answer, and on a request outside of any target.
const PATIENCE: Duration = Duration::from_secs(10);

/// An HTTP service that can be asked.
#[derive(Debug)]
pub struct Http {
    client: Client,
    base: Option<Url>,
    /// Sent to the service itself, never to another origin.
    headers: HeaderMap,
    timeout: Duration,
    redactor: Redactor,
}

impl Services {
    /// The HTTP service that a target names.
    ///
    /// # Errors
    /// When there is no such target of that kind, or its settings don't fit.
    pub fn http(&self, target: &str) -> Result<Http, Failure> {
        let Target::Http(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "http"));
        };
        let in_target = |failure: Failure| failure.context(format!("target {target}"));
        let base = parse_url(&settings.base_url).map_err(in_target)?;
        let client = client(&base, settings.ca_file.as_deref()).map_err(in_target)?;
        Ok(Http {
            headers: headers_of(settings, &client, &base).map_err(in_target)?,
            client,
            base: Some(base),
            timeout: settings.timeout.std(),
            redactor: self.redactor().clone(),
        })
    }

    /// What asks a URL that belongs to no target.
    ///
    /// # Errors
    /// When the URL isn't one.
    pub fn http_at(&self, url: &str) -> Result<Http, Failure> {
        let client = client(&parse_url(url)?, None)?;
        let redactor = self.redactor().clone();
        Ok(Http { client, base: None, headers: HeaderMap::new(), timeout: PATIENCE, redactor })
    }

    /// What asks the issuer that a target names; its URL is the base.
    ///
    /// # Errors
    /// When its settings don't fit.
    pub(super) fn http_of_issuer(&self, settings: &OidcSettings) -> Result<Http, Failure> {
        let base = parse_url(&settings.issuer)?;
        Ok(Http {
            client: client(&base, settings.ca_file.as_deref())?,
            base: Some(base),
            headers: HeaderMap::new(),
            timeout: PATIENCE,
            redactor: self.redactor().clone(),
        })
    }

    /// The web hook that a target names.
    ///
    /// # Errors
    /// When there is no such target of that kind, or its settings don't fit.
    pub fn webhook(&self, target: &str) -> Result<Webhook, Failure> {
        let Target::Webhook(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "webhook"));
        };
        let in_target = |failure: Failure| failure.context(format!("target {target}"));
        let url = parse_url(&settings.url).map_err(in_target)?;
        Ok(Webhook {
            client: client(&url, settings.ca_file.as_deref()).map_err(in_target)?,
            url,
            format: settings.format,
            headers: plain_headers(&settings.headers).map_err(in_target)?,
            target: target.to_owned(),
            redactor: self.redactor().clone(),
        })
    }
}

/// A request that may do something.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The method.
    pub method: &'a str,
    /// Where.
    pub url: &'a Url,
    /// Headers besides the target's own; the same name replaces those.
    pub headers: &'a BTreeMap<String, String>,
    /// The body.
    pub body: Body<'a>,
}

/// What is sent along.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Nothing.
    None,
    /// JSON.
    Json(&'a Value),
    /// Names and values, as a form of a page sends them.
    Form(&'a [(&'a str, &'a str)]),
}

/// A request without an answer.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub failure: Failure,
    /// Whether the service may have got it all the same.
    pub perhaps_received: bool,
}

/// An answer, whatever it says.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// From sending the request to the body's end.
    pub latency: Duration,
    /// The body, up to [`BODY_CAP`].
    pub body: String,
    /// Whether there was more of it.
    pub cut: bool,
    /// Where a redirection points.
    pub location: Option<String>,
}

impl Http {
    /// The URL of a path below the target's base, or a whole URL.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn url(&self, path_or_url: &str) -> Result<Url, Failure> {
        match &self.base {
            Some(base) if !path_or_url.contains("://") => {
                let base = base.as_str().trim_end_matches('/');
                parse_url(&format!("{base}/{}", path_or_url.trim_start_matches('/')))
            }
            _ => parse_url(path_or_url),
        }
    }

    /// Masks secrets in what it answers.
    pub const fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Asks, within `at_most` and the target's own bound.
    ///
    /// # Errors
    /// When there is no answer: transient, unless a certificate stands in the way.
    pub async fn get(&self, url: &Url, at_most: Duration) -> Result<Answer, Failure> {
        let ask = Ask { method: "GET", url, headers: &BTreeMap::new(), body: Body::None };
        self.send(&ask, at_most).await.map_err(|unanswered| unanswered.failure)
    }

    /// Asks for something to be done, within the target's own bound.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Unanswered> {
        kill::around("http request", self.send(ask, Duration::MAX)).await
    }

    async fn send(&self, ask: &Ask<'_>, at_most: Duration) -> Result<Answer, Unanswered> {
        let Ask { method, url, headers, body } = *ask;
        tracing::debug!(url = shown(url), "{method}");
        let bound = self.timeout.min(at_most);
        let unsent = |failure: Failure| Unanswered { failure, perhaps_received: false };
        let verb: Method =
            method.parse().map_err(|_| unsent(Failure::permanent(format!("`{method}` is no HTTP method"))))?;
        let mut request = self.client.request(verb, url.clone()).timeout(bound);
        if self.base.as_ref().is_some_and(|base| base.origin() == url.origin()) {
            request = request.headers(self.headers.clone());
        }
        request = request.headers(plain_headers(headers).map_err(unsent)?);
        request = match body {
            Body::None => request,
            Body::Json(json) => request.json(json),
            Body::Form(fields) => request.form(fields),
        };
        let began = Instant::now();
        let failed = |error: reqwest::Error| Unanswered {
            perhaps_received: !error.is_connect() && !error.is_builder(),
            failure: no_answer(error, bound, &self.redactor).context(format!("{method} {}", shown(url))),
        };
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let location = header(&response, &LOCATION);
        let (body, cut) = read_body(&mut response, BODY_CAP).await.map_err(failed)?;
        Ok(Answer { status, latency: began.elapsed(), body, cut, location })
    }
}

/// A URL as people may see it: without credentials or query.
pub fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// A web hook.
#[derive(Debug)]
pub struct Webhook {
    client: Client,
    url: Url,
    format: WebhookFormat,
    headers: HeaderMap,
    target: String,
    redactor: Redactor,
}

/// What a web hook is told.
#[derive(Clone, Debug)]
pub struct Message {
    /// The headline.
    pub subject: Option<String>,
    /// The text.
    pub text: String,
    /// `info`, `warning` or `critical`.
    pub severity: &'static str,
    /// The run it comes from.
    pub run: String,
    /// The step it comes from.
    pub step: String,
    /// Whether an earlier attempt may have told it already.
    pub repeated: bool,
}

impl Message {
    /// The same for each attempt: a receiver that knows it drops the repetition.
    pub fn key(&self) -> String {
        format!("{}:{}", self.run, self.step)
    }

    fn body(&self, format: WebhookFormat) -> Value {
        match format {
            WebhookFormat::Json => serde_json::json!({
                "severity": self.severity,
                "subject": self.subject,
                "message": self.text,
                "run": self.run,
                "step": self.step,
                "idempotency_key": self.key(),
                "possibly_repeated": self.repeated,
            }),
            WebhookFormat::Slack => {
                // `&`, `<` and `>` are what Slack's markup is made of.
                let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                let severity =
                    if self.severity == "info" { String::new() } else { format!("[{}] ", self.severity) };
                let subject = self.subject.as_ref().map(|subject| format!("*{}*\n", escape(subject)));
                let repeated = if self.repeated { "\n_(possibly repeated)_" } else { "" };
                let text = [&severity, subject.as_deref().unwrap_or(""), &escape(&self.text), repeated].concat();
                serde_json::json!({ "text": text })
            }
        }
    }
}

/// A message that was not acknowledged.
#[derive(Debug)]
pub struct Undelivered {
    /// Why.
    pub failure: Failure,
    /// Whether the receiver may have got it all the same.
    pub perhaps_received: bool,
}

impl Webhook {
    /// Delivers a message once.
    ///
    /// # Errors
    /// When the receiver did not acknowledge it with a 2xx answer.
    pub async fn deliver(&self, message: &Message) -> Result<(), Undelivered> {
        tracing::debug!(host = self.url.host_str(), "POST a message");
        let request = self
            .client
            .post(self.url.clone())
            .timeout(PATIENCE)
            .headers(self.headers.clone())
            .header("Idempotency-Key", message.key())
            .json(&message.body(self.format));
        kill::around("webhook", self.send(request)).await.map_err(|undelivered| Undelivered {
            // The URL itself is often the secret, so only the target is named.
            failure: undelivered.failure.context(format!("tell {}", self.target)),
            ..undelivered
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<(), Undelivered> {
        let mut response = request.send().await.map_err(|error| Undelivered {
            perhaps_received: !error.is_connect() && !error.is_builder(),
            failure: no_answer(error, PATIENCE, &self.redactor),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let wait = header(&response, &RETRY_AFTER).map(|wait| format!(" (retry after {wait})")).unwrap_or_default();
        let (body, _) = read_body(&mut response, 2048).await.unwrap_or_default();
        let said = format!("it answered {status}{wait}{}", quoted(&body, &self.redactor));
        let failure = match status.as_u16() {
            408 | 425 | 429 | 500.. => Failure::transient(said),
            300..=399 => Failure::permanent(said)
                .help("redirects are not followed: set the target's `url` to the final address"),
            401 | 403 | 404 | 410 => {
                Failure::permanent(said).help("check the target's `url`: the hook may be revoked, or wrong")
            }
            _ => Failure::permanent(said),
        };
        Err(Undelivered { failure, perhaps_received: status.is_server_error() })
    }
}

/// The beginning of a body in an error text: `: "…"`, secrets masked.
pub fn quoted(body: &str, redactor: &Redactor) -> String {
    let masked = redactor.redact(body.trim());
    match masked.char_indices().nth(200) {
        _ if masked.is_empty() => String::new(),
        Some((end, _)) => format!(": {}…", &masked[..end]),
        None => format!(": {masked}"),
    }
}

async fn read_body(response: &mut Response, cap: usize) -> Result<(String, bool), reqwest::Error> {
    let mut body = Vec::new();
    let mut cut = false;
    while let Some(piece) = response.chunk().await? {
        let room = cap - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.len() > room {
            cut = true;
            break;
        }
    }
    Ok((String::from_utf8_lossy(&body).into_owned(), cut))
}

fn header(response: &Response, name: &HeaderName) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn no_answer(error: reqwest::Error, bound: Duration, redactor: &Redactor) -> Failure {
    let (timeout, builder) = (error.is_timeout(), error.is_builder());
    // The URL may hold credentials.
    let error = error.without_url();
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    // The innermost cause is the one that says what happened.
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    let text = redactor.redact(&text);
    if timeout {
        Failure::transient(format!("no answer within {}", crate::units::Duration(bound)))
    } else if let Some(help) = trust::way_out(&text, "ca_file") {
        Failure::permanent(text.into_owned()).help(help)
    } else if builder {
        Failure::permanent(text.into_owned())
    } else {
        Failure::transient(text.into_owned())
    }
}

fn client(url: &Url, ca_file: Option<&str>) -> Result<Client, Failure> {
    let mut builder = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(PATIENCE)
        .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")));
    // A proxy of the environment can't reach this host's own services.
    if url.host_str().is_some_and(is_loopback) {
        builder = builder.no_proxy();
    }
    if let Some(path) = ca_file {
        builder = builder.tls_certs_merge(trust::authorities(path)?);
    }
    builder.build().map_err(|error| Failure::permanent(format!("set up HTTP: {error}")))
}

/// Whether a host is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn headers_of(settings: &HttpSettings, client: &Client, base: &Url) -> Result<HeaderMap, Failure> {
    let request = client.get(base.clone());
    let request = match &settings.auth {
        None => request,
        Some(HttpAuth::Bearer(token)) => request.bearer_auth(token),
        Some(HttpAuth::Basic { user, password }) => request.basic_auth(user, Some(password)),
    };
    // A request never sent: the library writes the credentials as the standard says, and marks them sensitive.
    let mut request =
        request.build().map_err(|_| Failure::permanent("the credentials hold characters that a header can't"))?;
    let mut headers = plain_headers(&settings.headers)?;
    headers.extend(std::mem::take(request.headers_mut()));
    Ok(headers)
}

fn plain_headers(headers: &BTreeMap<String, String>) -> Result<HeaderMap, Failure> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let wrong = |what: &str| Failure::permanent(format!("header `{name}`: not a valid {what}"));
        let key: HeaderName = name.parse().map_err(|_| wrong("name"))?;
        let mut value: HeaderValue = value.parse().map_err(|_| wrong("value"))?;
        value.set_sensitive(true);
        map.append(key, value);
    }
    Ok(map)
}

fn parse_url(text: &str) -> Result<Url, Failure> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        // The text is not repeated: it may hold credentials.
        _ => Err(Failure::permanent("not an http:// or https:// URL")),
    }
}
