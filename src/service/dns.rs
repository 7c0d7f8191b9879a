//! DNS: what servers answer, and changes of a zone by its primary (RFC 2136, signed by TSIG).
//!
//! Knows nothing of steps. Records are read from the servers themselves, never from a cache,
//! unless a resolver is asked.

mod record;
mod wire;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Services, Target, Unsound};
use crate::failure::Failure;
use crate::kill;
pub use record::{Kind, Records, canonical_name};

/// What an answer by UDP may measure, so that it is in no packet that a network cuts up.
const PAYLOAD: u16 = 1232;

/// How far clocks may be apart, in seconds.
const FUDGE: u16 = 300;

/// A DNS zone that can be updated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsSettings {
    /// The primary server, as `ns1.example.com` or `192.0.2.1:53`.
    pub server: String,
    /// The zone, as `example.com`.
    pub zone: String,
    /// The key that signs updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsig: Option<TsigSettings>,
    /// The authoritative servers, as `ns2.example.com` or `192.0.2.2:53`, where they aren't those that
    /// the zone's NS records name, or are reached elsewhere (behind an anycast address, at another port).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Lifeboat itself starts a throwaway name server at `server`, on loopback, that has the zone.
    #[serde(default)]
    pub sandbox: bool,
}

/// A TSIG key (RFC 8945).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TsigSettings {
    /// The key's name.
    pub name: String,
    /// `hmac-sha256`, `hmac-sha384` or `hmac-sha512`.
    #[serde(default = "tsig_algorithm")]
    pub algorithm: String,
    /// The key, in base64.
    pub secret: String,
}

fn tsig_algorithm() -> String {
    "hmac-sha256".to_owned()
}

impl DnsSettings {
    /// What is wrong with them, without contact.
    pub(super) fn unsound(&self) -> Option<Unsound> {
        let wrong = |setting: &str, failure| Some(Unsound { setting: setting.to_owned(), failure });
        if let Err(failure) = Endpoint::parse(&self.server) {
            return wrong("server", failure);
        }
        if let Some(failure) = self.servers.iter().find_map(|server| Endpoint::parse(server).err()) {
            return wrong("servers", failure);
        }
        if let Err(message) = record::name(&self.zone) {
            return wrong("zone", Failure::permanent(message));
        }
        self.key().err().and_then(|failure| wrong("tsig", failure))
    }

    fn key(&self) -> Result<Option<TSigner>, Failure> {
        let Some(tsig) = &self.tsig else { return Ok(None) };
        let algorithm = match tsig.algorithm.to_lowercase().as_str() {
            "hmac-sha256" => TsigAlgorithm::HmacSha256,
            "hmac-sha384" => TsigAlgorithm::HmacSha384,
            "hmac-sha512" => TsigAlgorithm::HmacSha512,
            other => {
                return Err(Failure::permanent(format!("`{other}` is no algorithm that signs updates here"))
                    .help("write `hmac-sha256`, `hmac-sha384` or `hmac-sha512`"));
            }
        };
        let name = record::name(&tsig.name).map_err(Failure::permanent)?;
        let secret = BASE64.decode(tsig.secret.trim().as_bytes()).ok().filter(|secret| !secret.is_empty());
        let secret = secret.ok_or_else(|| {
            Failure::permanent("the key's `secret` is not base64").help("take it as `tsig-keygen` prints it")
        })?;
        let key = TSigner::new(secret, algorithm, name, FUDGE);
        key.map(Some).map_err(|error| Failure::permanent(format!("the key does not fit: {error}")))
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::permanent(format!("`{text}` is no name server"))
                .help("write `ns1.example.com`, `192.0.2.1:53` or `[2001:db8::1]:53`")
        };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self { host: address.to_string(), port: 53 });
        }
        let (host, port) = match text.split_once(':') {
            None => (text, 53),
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
        };
        record::name(host).map_err(|_| wrong())?;
        Ok(Self { host: host.to_owned(), port })
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![(address, self.port).into()]);
        }
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found.map_err(|error| Failure::transient(format!("find {}: {error}", self.host)))?;
        Ok(preferred(found.collect()))
    }
}

/// A name server's addresses of the older kind, which every machine reaches, or else the others.
fn preferred(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let old: Vec<SocketAddr> = addresses.iter().copied().filter(SocketAddr::is_ipv4).collect();
    if old.is_empty() { addresses } else { old }
}

/// A server that answers questions.
#[derive(Clone)]
pub struct Server {
    /// What people call it.
    shown: String,
    endpoint: Endpoint,
    key: Option<TSigner>,
    /// Whether it is asked to find out, rather than for what it knows itself.
    resolves: bool,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.shown)
    }
}

/// What a server answers to one question.
#[derive(Clone, Debug)]
pub struct Answer {
    kind: Kind,
    found: Vec<Record>,
    /// What the name is an alias of, if it is one.
    pub alias: Option<String>,
    /// Whether the server has the zone itself.
    pub authoritative: bool,
}

impl Answer {
    /// The records of the type that was asked for.
    pub fn records(&self) -> Records {
        Records::of(self.kind, &self.found)
    }
}

impl Server {
    /// A server that finds out what it is asked for: `9.9.9.9`, `ns1.example.com`, `192.0.2.1:53`.
    ///
    /// # Errors
    /// When the text names none.
    pub fn at(text: &str) -> Result<Self, Failure> {
        let endpoint = Endpoint::parse(text)?;
        Ok(Self { shown: text.to_owned(), endpoint, key: None, resolves: true })
    }

    /// This machine's resolvers, in the order in which it asks them.
    pub fn of_this_machine() -> Vec<Self> {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let named = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        });
        let found: Vec<Self> = named.filter_map(|address| Self::at(address).ok()).collect();
        // What the C library does when nothing is said.
        if found.is_empty() { Self::at("127.0.0.1").into_iter().collect() } else { found }
    }

    /// What people call it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Asks one question.
    ///
    /// # Errors
    /// When it does not answer, or not to this client.
    pub async fn ask(&self, name: &str, kind: Kind) -> Result<Answer, Failure> {
        let name = record::name(name).map_err(Failure::permanent)?;
        let answer = self.query(&name, kind.wire()).await?;
        let alias = answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(to) if record.name == name => Some(record::shown_name(to)),
            _ => None,
        });
        let found = answer.answers.iter().filter(|record| record.record_type() == kind.wire()).cloned().collect();
        Ok(Answer { kind, found, alias, authoritative: answer.authoritative })
    }

    async fn query(&self, name: &Name, wire: RecordType) -> Result<Message, Failure> {
        let mut message = Message::query();
        message.metadata.recursion_desired = self.resolves;
        message.add_query(Query::query(name.clone(), wire));
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        message.set_edns(edns);
        let attempted = || format!("ask {} for {wire} {}", self.shown, record::shown_name(name));
        let answer = self.exchange(&message, false).await.map_err(|failure| failure.context(attempted()))?;
        let said = |code: ResponseCode| format!("{}: it answers {}", attempted(), code_shown(code));
        match answer.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            ResponseCode::ServFail => Err(Failure::transient(said(ResponseCode::ServFail))),
            code @ ResponseCode::Refused => Err(Failure::permanent(said(code)).help(if self.resolves {
                "it does not answer this machine, or only for its own zones"
            } else {
                "it does not have this zone, or does not answer this machine"
            })),
            code => Err(Failure::permanent(said(code))),
        }
    }

    /// Each of its addresses in turn, until one answers.
    async fn exchange(&self, message: &Message, whole: bool) -> Result<Message, Failure> {
        let mut failed = Failure::transient(format!("{} has no address", self.shown));
        for address in self.endpoint.addresses().await? {
            match wire::exchange(address, message, self.key.as_ref(), whole).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failed = failure,
            }
        }
        Err(failed)
    }
}

/// A code as RFCs write it.
fn code_shown(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::NotAuth => "NOTAUTH".to_owned(),
        ResponseCode::NotZone => "NOTZONE".to_owned(),
        other => other.to_string(),
    }
}

/// A target of kind `dns`.
#[derive(Debug)]
pub struct Zone {
    primary: Server,
    origin: Name,
    servers: Vec<Endpoint>,
    target: String,
}

impl Services {
    /// The zone that a target names. Makes no contact yet.
    ///
    /// # Errors
    /// When there is no such target of that kind, or its settings don't fit.
    pub fn dns(&self, target: &str) -> Result<Zone, Failure> {
        let Target::Dns(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "dns"));
        };
        let in_target = |failure: Failure| failure.context(format!("target {target}"));
        if let Some(tsig) = &settings.tsig {
            self.redactor().add(&tsig.secret);
        }
        let primary = Server {
            shown: settings.server.clone(),
            endpoint: Endpoint::parse(&settings.server).map_err(in_target)?,
            key: settings.key().map_err(in_target)?,
            resolves: false,
        };
        let origin = record::name(&settings.zone).map_err(|message| in_target(Failure::permanent(message)))?;
        // A sandbox's zone has one server, at a port that no NS record can name.
        let alone = settings.sandbox.then_some(&settings.server);
        let servers = settings.servers.iter().chain(alone).map(|server| Endpoint::parse(server));
        let servers = servers.collect::<Result<_, _>>();
        Ok(Zone { primary, origin, servers: servers.map_err(in_target)?, target: target.to_owned() })
    }
}

impl Zone {
    /// The server that takes updates.
    pub const fn primary(&self) -> &Server {
        &self.primary
    }

    /// What the primary has. Signed, so that a key that it doesn't take is seen.
    ///
    /// # Errors
    /// When the name is not in the zone, or the primary doesn't answer for it.
    pub async fn read(&self, name: &str, kind: Kind) -> Result<Answer, Failure> {
        let whole = record::name(name).map_err(Failure::permanent)?;
        let zone = record::shown_name(&self.origin);
        if !self.origin.zone_of(&whole) {
            let help = format!("write it whole, as `{}.{zone}`", name.split('.').next().unwrap_or_default());
            return Err(Failure::permanent(format!("`{name}` is not in {}'s zone {zone}", self.target)).help(help));
        }
        let answer = self.primary.ask(name, kind).await?;
        if !answer.authoritative {
            let place = &self.primary.shown;
            return Err(Failure::permanent(format!("{place} does not answer for {zone} itself"))
                .help(format!("name the zone's primary in `server` of target {}", self.target)));
        }
        Ok(answer)
    }

    /// Replaces what was read by `wanted`, unless it has been changed since (RFC 2136, section 2.4).
    ///
    /// # Errors
    /// When the primary does not do so, or nobody knows whether it did.
    pub async fn replace(&self, name: &str, was: &Answer, wanted: &Records) -> Result<(), Failure> {
        let (kind, wire) = (was.kind, was.kind.wire());
        let name = record::name(name).map_err(Failure::permanent)?;
        let class = |mut record: Record, class: DNSClass| {
            record.dns_class = class;
            record.ttl = 0;
            record
        };
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(self.origin.clone(), RecordType::SOA));
        // The first section holds what must be so, the next one what is done then.
        if was.found.is_empty() {
            // An alias stands alone, and a server that knows so says nothing and does nothing.
            let none = if kind == Kind::Cname { RecordType::ANY } else { wire };
            message.add_answer(class(Record::update0(name.clone(), 0, none), DNSClass::NONE));
        } else {
            message.add_answers(was.found.iter().map(|record| class(record.clone(), DNSClass::IN)));
            message.add_authority(class(Record::update0(name.clone(), 0, wire), DNSClass::ANY));
        }
        for value in &wanted.values {
            let data = kind.read(value).map_err(Failure::permanent)?;
            message.add_authority(Record::from_rdata(name.clone(), wanted.ttl, data));
        }
        let attempted = format!("update {wire} {} on {}", record::shown_name(&name), self.primary.shown);
        tracing::debug!(attempted);
        let answer = kill::around("dns update", self.primary.exchange(&message, true))
            .await
            .map_err(|failure| failure.context(&attempted))?;
        self.judged(answer.response_code, kind).map_err(|failure| failure.context(attempted))
    }

    fn judged(&self, code: ResponseCode, kind: Kind) -> Result<(), Failure> {
        let place = &self.primary.shown;
        let said = format!("it answers {}", code_shown(code));
        match code {
            ResponseCode::NoError => Ok(()),
            ResponseCode::YXDomain if kind == Kind::Cname => {
                Err(Failure::permanent("the name has other records, and an alias stands alone")
                    .help("remove them first, by `dns.update` with `values: []`"))
            }
            ResponseCode::YXDomain | ResponseCode::YXRRSet | ResponseCode::NXRRSet => {
                Err(Failure::transient("somebody else changed it since it was read; nothing was done"))
            }
            ResponseCode::Refused => Err(Failure::permanent(said).help(match &self.primary.key {
                Some(_) => {
                    format!("let the key change this name there (BIND: `update-policy` of the zone on {place})")
                }
                None => format!("updates need a key: set `tsig` of target {}", self.target),
            })),
            ResponseCode::NotAuth => Err(Failure::permanent(said).help(format!(
                "{place} is not the primary of {}, or does not know the key: check target {}",
                record::shown_name(&self.origin),
                self.target
            ))),
            ResponseCode::ServFail => Err(Failure::transient(said)),
            _ => Err(Failure::permanent(said)),
        }
    }

    /// Every server that answers for the zone, the primary first: those that the target names, or
    /// those of the zone's NS records, at each address.
    ///
    /// # Errors
    /// When they can't be found.
    pub async fn all_servers(&self) -> Result<Vec<Server>, Failure> {
        let server = |shown: String, endpoint: Endpoint| Server { shown, endpoint, key: None, resolves: false };
        let mut found = vec![server(self.primary.shown.clone(), self.primary.endpoint.clone())];
        let mut seen = self.primary.endpoint.addresses().await?;
        for (name, addresses) in self.named().await? {
            for address in addresses.into_iter().filter(|address| !seen.contains(address)).collect::<Vec<_>>() {
                seen.push(address);
                let endpoint = Endpoint { host: address.ip().to_string(), port: address.port() };
                let shown =
                    if name.starts_with(&endpoint.host) { name.clone() } else { format!("{name} ({address})") };
                found.push(server(shown, endpoint));
            }
        }
        Ok(found)
    }

    async fn named(&self) -> Result<Vec<(String, Vec<SocketAddr>)>, Failure> {
        let mut found = vec![];
        for endpoint in &self.servers {
            found.push((format!("{}:{}", endpoint.host, endpoint.port), endpoint.addresses().await?));
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let answer = self.primary.query(&self.origin, RecordType::NS).await?;
        for record in &answer.answers {
            let RData::NS(name) = &record.data else { continue };
            let shown = record::shown_name(name);
            let mut addresses = vec![];
            // What the zone itself says of its servers is newer than what a resolver remembers.
            if self.origin.zone_of(name) {
                for kind in [RecordType::A, RecordType::AAAA] {
                    let glue = self.primary.query(name, kind).await?;
                    addresses.extend(glue.answers.iter().filter_map(|record| match &record.data {
                        RData::A(address) => Some(SocketAddr::from((address.0, 53))),
                        RData::AAAA(address) => Some(SocketAddr::from((address.0, 53))),
                        _ => None,
                    }));
                }
            }
            if addresses.is_empty() {
                addresses = Endpoint { host: shown.clone(), port: 53 }.addresses().await?;
            }
            found.push((shown, preferred(addresses)));
        }
        found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    /// Looks whether the primary has the zone and takes the key.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn probe(&self) -> Result<String, Failure> {
        let zone = record::shown_name(&self.origin);
        let answer = self.primary.query(&self.origin, RecordType::SOA).await?;
        let serial = answer.answers.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        let Some(serial) = serial.filter(|_| answer.authoritative) else {
            return Err(Failure::permanent(format!("{} does not have the zone {zone}", self.primary.shown))
                .help("name the zone's primary in `server`"));
        };
        let key = if self.primary.key.is_some() { ", and takes the key" } else { "; there is no key for updates" };
        Ok(format!("{} has {zone}, serial {serial}{key}", self.primary.shown))
    }
}

#[cfg(test)]
mod tests;
