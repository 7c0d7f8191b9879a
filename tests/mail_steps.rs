//! `notify` by mail, for real: a mail server of each test's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test says what went wrong by panicking"
)]

mod support;

#[path = "mail_steps/doctor.rs"]
mod doctor;
#[path = "mail_steps/notify.rs"]
mod notify;
#[path = "mail_steps/server.rs"]
mod server;
