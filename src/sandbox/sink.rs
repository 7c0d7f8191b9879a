//! A web hook's other end: keeps every message that it gets, one JSON object a line.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::served;
use crate::failure::Failure;

/// Serves until SIGTERM or SIGINT; messages are appended to `file`.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve(listen: SocketAddr, file: PathBuf) -> Result<(), Failure> {
    served(listen, Router::new().fallback(keep).with_state(Arc::new(Mutex::new(file)))).await
}

async fn keep(State(file): State<Arc<Mutex<PathBuf>>>, uri: Uri, body: String) -> StatusCode {
    let message = serde_json::from_str(&body).unwrap_or(Value::String(body));
    let line = json!({ "at": jiff::Timestamp::now(), "path": uri.path(), "message": message });
    let file = file.lock().await;
    let written = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&*file)
        .and_then(|mut open| open.write_all(format!("{line}\n").as_bytes()));
    match written {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            StatusCode::INSUFFICIENT_STORAGE
        }
    }
}
