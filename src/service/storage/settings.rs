//! A storage's settings: what a folder and a bucket take, and what is wrong with them.

use std::time::Duration;

use crate::failure::Failure;
use crate::service::{StorageSettings, Unsound};
use crate::units;

/// The settings of a folder.
const FS_SETTINGS: &[&str] = &["root"];

/// The settings of a bucket, by opendal's names.
const S3_SETTINGS: &[&str] = &[
    "root",
    "bucket",
    "endpoint",
    "region",
    "profile",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "role_arn",
    "external_id",
    "role_session_name",
    "assume_role_duration_seconds",
    "disable_config_load",
    "disable_ec2_metadata",
    "skip_signature",
    "server_side_encryption",
    "server_side_encryption_aws_kms_key_id",
    "server_side_encryption_customer_algorithm",
    "server_side_encryption_customer_key",
    "server_side_encryption_customer_key_md5",
    "default_storage_class",
    "enable_virtual_host_style",
    "checksum_algorithm",
    "disable_list_objects_v2",
    "enable_request_payer",
    "default_acl",
    SANDBOX,
    CA_FILE,
    TIMEOUT,
];

/// The setting that makes an S3 server a throwaway one.
pub(super) const SANDBOX: &str = "sandbox";

/// The setting that names authorities of one's own.
pub(super) const CA_FILE: &str = "ca_file";

/// The setting that says how long the service may be silent.
pub(super) const TIMEOUT: &str = "timeout";

/// How long it may be if that isn't set.
const PATIENCE: Duration = Duration::from_mins(2);

impl StorageSettings {
    /// The bucket and the address of a throwaway S3 server, if it is one.
    pub fn sandbox(&self) -> Option<(&str, &str)> {
        let is_one = self.scheme == "s3" && self.settings.get(SANDBOX).is_some_and(|set| set == "true");
        is_one
            .then(|| (self.settings.get("bucket"), self.settings.get("endpoint")))
            .and_then(|(bucket, endpoint)| Some((bucket?.as_str(), endpoint.map_or("", String::as_str))))
    }

    /// What is wrong with the settings, as far as that shows without contact.
    pub fn unsound(&self) -> Vec<Unsound> {
        let unsound =
            |setting: &str, message| Unsound { setting: setting.to_owned(), failure: Failure::permanent(message) };
        let (known, required) = match self.scheme.as_str() {
            "fs" => (FS_SETTINGS, "root"),
            "s3" => (S3_SETTINGS, "bucket"),
            other => {
                let message = format!("the scheme `{other}` is not one that Lifeboat can use: `fs` or `s3`");
                return vec![unsound("scheme", message)];
            }
        };
        let mut problems: Vec<_> = self
            .settings
            .keys()
            .filter(|name| !known.contains(&name.as_str()))
            .map(|name| {
                let near = |other: &&&str| strsim::jaro_winkler(name, other) > 0.9;
                let help = match known.iter().find(near) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it has {}", known.join(", ")),
                };
                let mut unknown = unsound(name, format!("`{}` has no setting `{name}`", self.scheme));
                unknown.failure = unknown.failure.help(help);
                unknown
            })
            .collect();
        if self.settings.get(required).is_none_or(String::is_empty) {
            problems.push(unsound(required, format!("`{}` needs the setting `{required}`", self.scheme)));
        }
        if let Err(problem) = self.timeout() {
            problems.push(unsound(TIMEOUT, problem));
        }
        problems
    }

    /// How long a request, or a piece of what is read or written, may take.
    pub(super) fn timeout(&self) -> Result<Duration, String> {
        let Some(text) = self.settings.get(TIMEOUT) else { return Ok(PATIENCE) };
        match text.parse::<units::Duration>()?.std() {
            Duration::ZERO => Err(format!("`{TIMEOUT}: {text}` leaves no time to answer")),
            timeout => Ok(timeout),
        }
    }
}
