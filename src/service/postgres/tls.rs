//! TLS to a server: who is trusted, by libpq's `sslmode`.
//!
//! `require` and stronger verify the certificate against the system's authorities or
//! `sslrootcert`; only `prefer`, which may go without TLS as well, takes any.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{Mode, TlsSettings};

/// The connector for these settings.
pub(super) fn connector(settings: &TlsSettings) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match settings.mode {
        Mode::Disable | Mode::Prefer => Arc::new(Lenient { trust: Trust::Anybody, provider: provider.clone() }),
        Mode::VerifyCa => {
            let inner = authorities(settings, &provider)?;
            Arc::new(Lenient { trust: Trust::AnyNameOf(inner), provider: provider.clone() })
        }
        Mode::Require | Mode::VerifyFull => authorities(settings, &provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match &settings.client_cert {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("`sslkey` {}: {error}", key.display()))?;
            builder.with_client_auth_cert(certificates(cert, "sslcert")?, key).map_err(|error| error.to_string())?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn authorities(
    settings: &TlsSettings,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let Some(file) = &settings.root_cert else {
        let verifier = rustls_platform_verifier::Verifier::new(provider.clone())
            .map_err(|error| format!("the system's certificate authorities: {error}"))?;
        return Ok(Arc::new(verifier));
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(file, "sslrootcert")?);
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| format!("`sslrootcert` {}: {error}", file.display()))?;
    Ok(verifier)
}

fn certificates(file: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error| format!("`{parameter}` {}: {error}", file.display());
    CertificateDer::pem_file_iter(file).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)
}

/// Checks less than the usual, as `sslmode` asks.
#[derive(Debug)]
struct Lenient {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Trust {
    Anybody,
    AnyNameOf(Arc<dyn ServerCertVerifier>),
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::AnyNameOf(inner) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last, when the chain was found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown};

    use nix::unistd::{User, geteuid};

    use crate::failure::Failure;
    use crate::secret::Redactor;
    use crate::service::sandbox::Cluster;
    use crate::service::tls_testing::Tls;
    use crate::service::{PostgresSandbox, PostgresSettings, Services, Target};

    /// Whether the session that a URL gives is encrypted.
    async fn encrypted(url: &str) -> Result<bool, Failure> {
        let settings: PostgresSettings = serde_json::from_value(serde_json::json!({ "url": url })).unwrap();
        let targets = BTreeMap::from([("db".to_owned(), Target::Postgres(settings))]);
        let session = Services::new(targets, Redactor::default()).postgres("db")?.connect(None).await?;
        let row = session.row("ask", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?;
        Ok(row.get(0))
    }

    #[tokio::test]
    async fn certificates_are_verified_as_sslmode_says() {
        let tls = Tls::new();
        // The server's user must be able to reach its key, and nobody else.
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        for file in ["cert.pem", "key.pem", "ca.pem"] {
            let copy = folder.path().join(file);
            std::fs::copy(tls.file(file), &copy).unwrap();
            std::fs::set_permissions(&copy, Permissions::from_mode(0o600)).unwrap();
            if geteuid().is_root() {
                let user =
                    User::from_name("postgres").unwrap().or_else(|| User::from_name("nobody").unwrap()).unwrap();
                chown(&copy, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
        let file = |name: &str| folder.path().join(name).display().to_string();
        let settings = BTreeMap::from([
            ("ssl".to_owned(), "on".to_owned()),
            ("ssl_cert_file".to_owned(), file("cert.pem")),
            ("ssl_key_file".to_owned(), file("key.pem")),
        ]);
        let cluster = Cluster::new(folder.path().join("cluster"));
        cluster.up(&PostgresSandbox { settings, ..PostgresSandbox::default() }).await.unwrap();
        let url = cluster.url().unwrap().expose().to_owned();
        let at = |host: &str, parameters: &str| {
            url.replace("127.0.0.1", host).replace("sslmode=disable", &format!("sslmode={parameters}"))
        };
        let ca = file("ca.pem");
        let good = format!("verify-full&sslrootcert={ca}");
        let answers = [
            encrypted(&at("127.0.0.1", "disable")).await,
            encrypted(&at("127.0.0.1", "prefer")).await,
            encrypted(&at("localhost", &good)).await,
            encrypted(&at("127.0.0.1", &format!("verify-ca&sslrootcert={ca}"))).await,
            // The certificate names localhost, and its authority is no system's.
            encrypted(&at("127.0.0.1", &good)).await,
            encrypted(&at("127.0.0.1", &format!("require&sslrootcert={ca}"))).await,
            encrypted(&at("localhost", "require")).await,
            encrypted(&at("localhost", "verify-ca")).await,
        ];
        cluster.down().await.unwrap();
        let [plain, preferred, full, authority, refused @ ..] = answers;
        assert_eq!([plain, preferred, full, authority], [Ok(false), Ok(true), Ok(true), Ok(true)]);
        let helps = ["as its certificate does", "as its certificate does", "sslrootcert", "sslrootcert"];
        for (refused, way_out) in refused.into_iter().zip(helps) {
            let failure = refused.unwrap_err();
            assert!(!failure.transient && failure.message.contains("certificate"), "{failure}");
            assert!(failure.help.as_ref().is_some_and(|help| help.contains(way_out)), "{failure:?}");
        }
    }
}
