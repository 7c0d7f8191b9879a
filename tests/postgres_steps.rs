//! The PostgreSQL step types on a real server: fresh, already done, blocked, failing, killed.

mod support;

#[path = "postgres_steps/databases.rs"]
mod databases;
#[path = "postgres_steps/statements.rs"]
mod statements;
#[path = "postgres_steps/swap.rs"]
mod swap;
#[path = "postgres_steps/verification.rs"]
mod verification;
