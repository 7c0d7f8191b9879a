//! A proxy before a bucket's endpoint that harms connections.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bucket::endpoint;

/// What becomes of a connection.
pub enum Fault {
    None,
    Refuse,
    /// An answer of that status, whatever was asked.
    Answer(u16),
    /// Nothing for two seconds.
    Slow,
    CutRequest(u64),
    CutAnswer(u64),
    /// The byte at that place of the request comes out as another one.
    Damage(usize),
    /// The first request with these words is carried out, and its answer lost.
    LoseAnswer(&'static str, Arc<AtomicUsize>),
    /// Half of each large body, as if it were all: with a length that fits.
    Half,
}

/// Stands before the real endpoint; `fault` says what becomes of each connection, by its number.
pub async fn proxy(fault: impl Fn(usize) -> Fault + Send + Sync + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let connections = count.clone();
    let target = endpoint().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let fault = fault(connections.fetch_add(1, Ordering::SeqCst));
            let target = target.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                match fault {
                    Fault::None => {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                    Fault::Refuse => {}
                    Fault::Answer(status) => {
                        let mut asked = vec![];
                        while !asked.windows(4).any(|window| window == b"\r\n\r\n") {
                            if client.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        let answer =
                            format!("HTTP/1.1 {status} Later\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                        let _ = client.write_all(answer.as_bytes()).await;
                        // Read on, so that the answer isn't lost to a reset.
                        let mut nowhere = tokio::io::sink();
                        let reading = tokio::io::copy(&mut client, &mut nowhere);
                        let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
                    }
                    Fault::Slow => {
                        tokio::time::sleep(Duration::from_secs(2)).await;
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                    Fault::Half => {
                        let _ = half(&mut client, &mut server).await;
                    }
                    Fault::CutRequest(bytes) => {
                        let (mut reads, mut writes) = client.split();
                        let (mut answers, mut asks) = server.split();
                        let answering = tokio::io::copy(&mut answers, &mut writes);
                        let asking = async { tokio::io::copy(&mut (&mut reads).take(bytes), &mut asks).await };
                        tokio::select! { _ = asking => {}, _ = answering => {} }
                    }
                    Fault::Damage(at) => {
                        let (mut reads, mut writes) = client.split();
                        let (mut answers, mut asks) = server.split();
                        let answering = tokio::io::copy(&mut answers, &mut writes);
                        let asking = async {
                            let (mut buffer, mut came) = (vec![0; 64 << 10], 0);
                            while let Ok(read @ 1..) = reads.read(&mut buffer).await {
                                if (came..came + read).contains(&at) {
                                    buffer[at - came] ^= 1;
                                }
                                came += read;
                                if asks.write_all(&buffer[..read]).await.is_err() {
                                    break;
                                }
                            }
                        };
                        tokio::select! { () = asking => {}, _ = answering => {} }
                    }
                    Fault::LoseAnswer(words, lost) => {
                        let (mut reads, mut writes) = client.split();
                        let (mut answers, mut asks) = server.split();
                        let (mut buffer, mut answer) = (vec![0; 64 << 10], vec![0; 64 << 10]);
                        loop {
                            tokio::select! {
                                read = reads.read(&mut buffer) => {
                                    let Ok(read @ 1..) = read else { return };
                                    asks.write_all(&buffer[..read]).await.unwrap();
                                    let said = buffer[..read].windows(words.len()).any(|at| at == words.as_bytes());
                                    if said && lost.fetch_add(1, Ordering::SeqCst) == 0 {
                                        // It is done once it is answered.
                                        let _ = answers.read(&mut answer).await;
                                        return;
                                    }
                                }
                                read = answers.read(&mut answer) => {
                                    let Ok(read @ 1..) = read else { return };
                                    if writes.write_all(&answer[..read]).await.is_err() {
                                        return;
                                    }
                                }
                            }
                        }
                    }
                    Fault::CutAnswer(bytes) => {
                        let (mut reads, mut writes) = client.split();
                        let (mut answers, mut asks) = server.split();
                        let asking = tokio::io::copy(&mut reads, &mut asks);
                        let answering =
                            async { tokio::io::copy(&mut (&mut answers).take(bytes), &mut writes).await };
                        tokio::select! { _ = asking => {}, _ = answering => {} }
                        let _ = writes.shutdown().await;
                    }
                }
            });
        }
    });
    (address, count)
}

/// Hands one answer on, and of a large body the first half.
async fn half(client: &mut TcpStream, server: &mut TcpStream) -> Option<()> {
    let mut asked = vec![];
    while !asked.windows(4).any(|window| window == b"\r\n\r\n") {
        (client.read_buf(&mut asked).await.ok()? > 0).then_some(())?;
    }
    server.write_all(&asked).await.ok()?;
    let mut answer = vec![];
    let head = loop {
        (server.read_buf(&mut answer).await.ok()? > 0).then_some(())?;
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let mut body = answer.split_off(head);
    let head = String::from_utf8(answer).ok()?;
    let length =
        |line: &str| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok();
    let whole = head.lines().find_map(length).unwrap_or(0);
    let has_body = asked.starts_with(b"GET");
    while has_body && body.len() < whole {
        (server.read_buf(&mut body).await.ok()? > 0).then_some(())?;
    }
    let large = has_body && whole > 100_000;
    let told = if large { whole / 2 } else { whole };
    body.truncate(told);
    let mut kept = String::new();
    for line in head.lines().filter(|line| !line.is_empty()) {
        if length(line).is_some() {
            let _ = write!(kept, "Content-Length: {told}\r\n");
        } else if !line.to_ascii_lowercase().starts_with("connection:") {
            let _ = write!(kept, "{line}\r\n");
        }
    }
    client.write_all(format!("{kept}Connection: close\r\n\r\n").as_bytes()).await.ok()?;
    client.write_all(&body).await.ok()?;
    client.shutdown().await.ok()
}
