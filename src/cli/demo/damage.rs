//! How the demo damages the data: as a bad migration would, in several tables, not in all.

use crate::failure::Failure;
use crate::service::postgres::Session;

/// What is done, in words and in SQL.
pub const DAMAGE: [(&str, &str); 4] = [
    (
        "every tenth user deleted, and by cascade their sessions and balances",
        "DELETE FROM auth.users WHERE id LIKE '%3'",
    ),
    (
        "every fifth address garbled",
        "UPDATE auth.users SET email = md5(email), name = NULL WHERE right(id, 1) IN ('5', '0')",
    ),
    (
        "a fifth of the balances turned negative",
        "UPDATE credits.balances SET amount = -amount WHERE user_id LIKE '%7' OR user_id LIKE '%2'",
    ),
    ("all signing keys deleted", "DELETE FROM auth.jwks"),
];

/// Damages the data, all of it at once.
pub async fn damage(session: &Session) -> Result<(), Failure> {
    let statements: Vec<&str> = DAMAGE.iter().map(|(_, sql)| *sql).collect();
    session.batch("damage the data", &format!("BEGIN; {}; COMMIT", statements.join("; "))).await
}
