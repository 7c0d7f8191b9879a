//! Certificates by an authority that no machine knows.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// What a certificate is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Good,
    AnotherHost,
    Expired,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::AnotherHost => "another",
            Self::Expired => "expired",
        }
    }
}

/// `ca.pem`, and a certificate and key of each kind, in a folder.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { folder: tempfile::tempdir().unwrap() };
        let mut params = CertificateParams::new(vec![]).unwrap();
        // Names of their own: OpenSSL takes a certificate that bears its issuer's for a self-signed one.
        params.distinguished_name.push(DnType::CommonName, "the authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(authority.file("ca.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        for kind in [Kind::Good, Kind::AnotherHost, Kind::Expired] {
            let host = if matches!(kind, Kind::AnotherHost) { "elsewhere.test" } else { "localhost" };
            let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
            if matches!(kind, Kind::Expired) {
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
            }
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let (pem, key_pem) = authority.files(kind);
            std::fs::write(pem, certificate.pem()).unwrap();
            std::fs::write(key_pem, key.serialize_pem()).unwrap();
        }
        authority
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The certificate and the key of a kind.
    pub fn files(&self, kind: Kind) -> (PathBuf, PathBuf) {
        let name = kind.name();
        (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")))
    }

    /// The folder, which stays after this is gone.
    pub fn kept(self) -> PathBuf {
        self.folder.keep()
    }
}
