//! The real servers behind TLS.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, Uri};

use crate::front::Upstream;

/// A server that ends with the test.
pub struct Server {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Backends {
    _servers: [Server; 2],
    http: Upstream,
    redis: Upstream,
    smtp: Upstream,
}

impl Backends {
    /// Where the server of that kind of target listens.
    pub fn of(&self, kind: &str) -> Upstream {
        let env = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name}: `just services-up`"));
        match kind {
            "http" | "oidc" | "webhook" => self.http.clone(),
            "redis" => self.redis.clone(),
            "smtp" => self.smtp.clone(),
            "storage" => env("LIFEBOAT_TEST_S3").replace("http://", ""),
            "docker" => env("LIFEBOAT_TEST_DOCKER").replace("unix://", ""),
            "postgres" => {
                let url = crate::support::postgres_url();
                url.rsplit_once('@').unwrap().1.split('/').next().unwrap().to_owned()
            }
            other => panic!("no server for {other}"),
        }
    }
}

pub async fn start() -> Backends {
    let (redis_port, smtp_port) = (crate::support::ports::free_port(), crate::support::ports::free_port());
    let password = ["--port", &redis_port.to_string(), "--requirepass", crate::SECRET].map(str::to_owned);
    let redis = redis(&password, redis_port);
    let at = format!("127.0.0.1:{smtp_port}");
    let mail = server("aiosmtpd", &["-n", "-c", "aiosmtpd.handlers.Sink", "-l", &at].map(str::to_owned), smtp_port);
    let endpoint = std::env::var("LIFEBOAT_TEST_S3").expect("LIFEBOAT_TEST_S3: `just services-up`");
    let bucket = reqwest::Client::new().put(format!("{endpoint}/tls-matrix")).send().await.unwrap();
    assert!(bucket.status().is_success(), "{bucket:?}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    Backends { _servers: [redis, mail], http, redis: format!("127.0.0.1:{redis_port}"), smtp: at }
}

/// A service, a web hook's other end and an issuer at once.
async fn answer(uri: Uri, headers: HeaderMap) -> String {
    if uri.path() != "/.well-known/openid-configuration" {
        return "{}".to_owned();
    }
    let issuer = format!("https://{}", headers["host"].to_str().unwrap());
    serde_json::json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/jwks") }).to_string()
}

/// Redis with these arguments besides.
pub fn redis(arguments: &[String], port: u16) -> Server {
    let mut all = ["--bind", "127.0.0.1", "--save", ""].map(str::to_owned).to_vec();
    all.extend(arguments.iter().cloned());
    server("redis-server", &all, port)
}

fn server(program: &str, arguments: &[String], port: u16) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server {
        child: command.spawn().unwrap_or_else(|_| panic!("{program}: from Debian's package")),
        _folder: folder,
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{program} did not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}
