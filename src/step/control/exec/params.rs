//! The parameters of `exec`: a map, or a bare list that is its `argv`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema};
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};
use serde_json::json;

use crate::matcher::Matcher;
use crate::step::command::{Arg, Extract, zero};

/// Runs a command on this host.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schemars(rename = "Exec", transform = or_a_list)]
pub struct Exec {
    /// Program and arguments, run without a shell.
    #[schemars(extend("x-arguments" = true), length(min = 1))]
    #[serde(default)]
    pub argv: Option<Vec<Arg>>,
    /// A script for `/bin/sh`, instead of `argv`. Never build it from values of others: hand them over by `env`.
    #[schemars(extend("x-arguments" = true))]
    #[serde(default)]
    pub shell: Option<String>,
    /// Variables for it, and the place for secrets. Of Lifeboat's own it sees PATH, HOME, USER, LOGNAME, SHELL,
    /// LANG, LANGUAGE, LC_*, TZ, TMPDIR and SSH_AUTH_SOCK; LIFEBOAT_RUN, LIFEBOAT_STEP and LIFEBOAT_ATTEMPT are added.
    #[serde(default)]
    pub env: BTreeMap<String, Arg>,
    /// The folder it runs in; by default the one that Lifeboat was started in.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Text given to it as input.
    #[serde(default)]
    pub stdin: Option<String>,
    /// The exit codes that are no failure: a number or a matcher. Code 75 is taken for a failure that may pass by itself.
    #[serde(default = "zero")]
    pub expect_exit: Matcher,
    /// Further outputs, by name, read from its stdout.
    #[serde(default)]
    pub outputs: BTreeMap<String, Extract>,
    /// What it does to what, as `change postgres:db/manacore_auth`; verbs: read, create, change, destroy, stop, start,
    /// verify. `[]` means that it touches nothing. Without this nobody knows, and reviews say so.
    #[serde(default)]
    pub effects: Option<Vec<String>>,
    /// Whether it may run again when a kill leaves it open whether it happened.
    #[serde(default)]
    pub idempotent: bool,
}

/// `exec: [program, argument]` is short for `exec: { argv: [program, argument] }`. In one
/// schema, not in alternatives: what is said of keys concerns maps, of items lists.
fn or_a_list(schema: &mut Schema) {
    schema.insert("type".to_owned(), json!(["object", "array"]));
    schema.insert("minItems".to_owned(), json!(1));
    let item =
        json!({ "description": "Short for `argv`.", "type": ["string", "number", "boolean"], "x-arguments": true });
    schema.insert("items".to_owned(), item);
}

impl<'de> Deserialize<'de> for Exec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Exec;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list (program and arguments) or a map with `argv` or `shell`")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Exec, A::Error> {
                let mut argv = Vec::new();
                while let Some(arg) = list.next_element()? {
                    argv.push(arg);
                }
                Ok(Exec {
                    argv: Some(argv),
                    shell: None,
                    env: BTreeMap::new(),
                    cwd: None,
                    stdin: None,
                    expect_exit: zero(),
                    outputs: BTreeMap::new(),
                    effects: None,
                    idempotent: false,
                })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Exec, A::Error> {
                // The derived one: `remote = "Self"` gives it this name.
                Exec::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
