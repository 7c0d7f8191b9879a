//! One DNS message and its answer: by UDP, by TCP when it is long or signed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::TSigner;
use hickory_proto::rr::rdata::tsig::TsigError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::failure::Failure;

/// How long each try by UDP waits: a packet may be lost on either way.
const UDP_TRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// The bound on an exchange by TCP.
const TCP: Duration = Duration::from_secs(10);

/// Sends a message, and waits for its answer. One that is signed goes by TCP, and so does one that
/// `whole` asks for.
///
/// # Errors
/// When there is no answer that could be read and trusted.
pub(super) async fn exchange(
    to: SocketAddr,
    message: &Message,
    key: Option<&TSigner>,
    whole: bool,
) -> Result<Message, Failure> {
    let cannot = |error: &dyn std::fmt::Display| Failure::permanent(format!("write a DNS message: {error}"));
    let mut message = message.clone();
    let verifier = match key {
        None => None,
        Some(key) => {
            let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
            message.finalize(key, now).map_err(|error| cannot(&error))?
        }
    };
    let bytes = message.to_vec().map_err(|error| cannot(&error))?;
    let lost = |error: io::Error| Failure::transient(format!("{to}: {error}"));
    if let (None, false) = (key, whole) {
        let (_, answer) = by_udp(to, &bytes, &message).await.map_err(lost)?;
        if !answer.truncation {
            return Ok(answer);
        }
    }
    let (bytes, answer) = by_tcp(to, &bytes, &message).await.map_err(lost)?;
    if let Some(mut verifier) = verifier {
        if let Some(error) = answer.signature().and_then(|signature| signature.data.error) {
            return Err(refused_key(to, error));
        }
        // What refuses a key may be unsigned: it changed nothing, whoever said it.
        let unsigned_refusal = answer.signature().is_none() && u16::from(answer.response_code) != 0;
        if !unsigned_refusal && verifier.verify(&bytes).is_err() {
            return Err(Failure::transient(format!("the answer of {to} is not signed by the key")));
        }
    }
    Ok(answer)
}

fn refused_key(to: SocketAddr, error: TsigError) -> Failure {
    let (said, help) = match error {
        TsigError::BadKey => {
            ("it does not know the key (BADKEY)", "check `name` and `algorithm` of the target's `tsig`")
        }
        TsigError::BadSig => {
            ("the key's secret is another one (BADSIG)", "check `secret` and `algorithm` of the target's `tsig`")
        }
        TsigError::BadTime => {
            ("its clock and this machine's are too far apart (BADTIME)", "set both clocks by NTP")
        }
        _ => ("it refuses the key", "check the target's `tsig`"),
    };
    Failure::permanent(format!("{to}: {said}")).help(help)
}

async fn by_udp(to: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<(Vec<u8>, Message)> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    // Connected, so that only this server is heard; another port each time, so that nobody can foretell it.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    let mut buffer = vec![0; 4096];
    for patience in UDP_TRIES {
        socket.send(bytes).await?;
        let heard = timeout(patience, async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                // Whatever else comes is not the answer.
                if let Ok(answer) = read(&buffer[..length], asked) {
                    return io::Result::Ok((buffer[..length].to_vec(), answer));
                }
            }
        });
        if let Ok(heard) = heard.await {
            return heard;
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

async fn by_tcp(to: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<(Vec<u8>, Message)> {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        let length = u16::try_from(bytes.len()).map_err(|_| io::Error::other("the message is too long for DNS"))?;
        stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
        let length = stream.read_u16().await?;
        let mut heard = vec![0; length.into()];
        stream.read_exact(&mut heard).await?;
        let answer = read(&heard, asked).map_err(io::Error::other)?;
        Ok((heard, answer))
    };
    timeout(TCP, talk).await.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")))
}

fn read(bytes: &[u8], asked: &Message) -> Result<Message, String> {
    let answer = Message::from_vec(bytes).map_err(|error| format!("its answer can't be read: {error}"))?;
    // One that refuses the whole message may leave the question out.
    let same_question = answer.queries.is_empty() || answer.queries == asked.queries;
    if answer.id != asked.id || answer.message_type != MessageType::Response || !same_question {
        return Err("it answers something else".to_owned());
    }
    Ok(answer)
}
