//! TLS in front of a real server; counts what clients let it read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, Kind};

/// What is said before TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    None,
    StartTls,
    Postgres,
}

/// The server behind it: `host:port`, or a socket's path.
pub type Upstream = String;

#[derive(Debug, Default)]
struct Counts {
    decrypted: AtomicUsize,
    open: AtomicUsize,
}

pub struct Front {
    pub port: u16,
    counts: Arc<Counts>,
}

impl Front {
    pub async fn start(authority: &Authority, kind: Kind, preamble: Preamble, upstream: Upstream) -> Self {
        let (certificate, key) = authority.files(kind);
        let certificate = CertificateDer::from_pem_file(certificate).unwrap();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, preamble, acceptor.clone(), upstream.clone(), shared.clone()));
            }
        });
        Self { port, counts }
    }

    /// Bytes that clients sent by TLS.
    pub fn decrypted(&self) -> usize {
        self.counts.decrypted.load(Ordering::SeqCst)
    }

    /// Bytes that clients sent before TLS.
    pub fn in_the_open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut stream: TcpStream,
    preamble: Preamble,
    acceptor: TlsAcceptor,
    upstream: Upstream,
    counts: Arc<Counts>,
) -> std::io::Result<()> {
    match preamble {
        Preamble::None => {}
        Preamble::Postgres => {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await?;
            counts.open.fetch_add(8, Ordering::SeqCst);
            stream.write_all(b"S").await?;
        }
        Preamble::StartTls => {
            stream.write_all(b"220 front ESMTP\r\n").await?;
            let mut lines = BufReader::new(&mut stream);
            for answer in ["250-front\r\n250 STARTTLS\r\n", "220 go on\r\n"] {
                let mut line = String::new();
                counts.open.fetch_add(lines.read_line(&mut line).await?, Ordering::SeqCst);
                lines.write_all(answer.as_bytes()).await?;
            }
        }
    }
    let client = acceptor.accept(stream).await?;
    if upstream.starts_with('/') {
        relay(client, UnixStream::connect(upstream).await?, &counts).await
    } else {
        let mut server = TcpStream::connect(upstream).await?;
        if preamble == Preamble::StartTls {
            // The client was greeted already.
            while server.read_u8().await? != b'\n' {}
        }
        relay(client, server, &counts).await
    }
}

async fn relay<C, S>(client: C, server: S, counts: &Counts) -> std::io::Result<()>
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite,
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = async {
        let mut piece = vec![0; 16 * 1024];
        loop {
            let read = from_client.read(&mut piece).await?;
            if read == 0 {
                return to_server.shutdown().await;
            }
            counts.decrypted.fetch_add(read, Ordering::SeqCst);
            to_server.write_all(&piece[..read]).await?;
        }
    };
    let down = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(up, down).map(drop)
}
