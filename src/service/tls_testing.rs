//! For tests: TLS with a fresh authority in front of a real service.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An authority, with the files that a client needs.
pub struct Tls {
    folder: TempDir,
    authority: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Tls {
    /// A fresh authority, and a client that it signed.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let tls = Self { folder: tempfile::tempdir().unwrap(), authority, issuer: Issuer::new(params, key) };
        let (client, client_key) = tls.issue();
        std::fs::write(tls.file("ca.pem"), tls.authority.pem()).unwrap();
        std::fs::write(tls.file("cert.pem"), client.pem()).unwrap();
        std::fs::write(tls.file("key.pem"), client_key.serialize_pem()).unwrap();
        tls
    }

    /// `ca.pem`, `cert.pem` or `key.pem`, as Docker names them.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Listens on a free port and hands what it decrypts to what `connect` opens; with
    /// `clients` only those whose certificate the authority signed. Gives back the port.
    pub async fn serve<S, O>(&self, clients: bool, connect: impl Fn() -> O + Send + 'static) -> u16
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        O: Future<Output = std::io::Result<S>> + Send + 'static,
    {
        let (certificate, key) = self.issue();
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let config = rustls::ServerConfig::builder();
        let config = if clients {
            config.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), connect());
                tokio::spawn(async move {
                    if let (Ok(mut client), Ok(mut upstream)) = (acceptor.accept(stream).await, upstream.await) {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                    }
                });
            }
        });
        port
    }
}
