//! What the old database hands on to the one that takes its place: owner, privileges,
//! settings, connection limit, comment. A plain dump restored beside it has few of them, or older ones.

use crate::failure::Failure;
use crate::service::postgres::facts::Database;
use crate::service::postgres::{Session, ident, literal};

/// Settings whose value is a list of names, which `ALTER DATABASE … SET` takes one by one.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// The statements that make `replacement`, once it bears the name of `live`, what `live` was to its clients.
pub(super) async fn statements(
    session: &Session,
    live: &Database,
    replacement: &Database,
) -> Result<Vec<String>, Failure> {
    let name = ident(&live.name);
    let mut sql = Vec::new();
    if live.owner != replacement.owner {
        sql.push(format!("ALTER DATABASE {name} OWNER TO {}", ident(&live.owner)));
    }
    if live.acl.is_some() || replacement.acl.is_some() {
        for grantee in grantees(session, replacement.oid).await? {
            sql.push(format!("REVOKE ALL ON DATABASE {name} FROM {grantee} CASCADE"));
        }
        // A change of owner passes the old owner's privileges on.
        sql.push(format!("REVOKE ALL ON DATABASE {name} FROM {} CASCADE", ident(&live.owner)));
        sql.extend(grants(session, live.oid, &name).await?);
    }
    sql.extend(resets(session, replacement.oid, &name).await?);
    sql.extend(settings(session, live.oid, &name).await?);
    if live.connection_limit != replacement.connection_limit {
        sql.push(format!("ALTER DATABASE {name} CONNECTION LIMIT {}", live.connection_limit));
    }
    if live.comment != replacement.comment {
        let comment = live.comment.as_deref().map_or_else(|| "NULL".to_owned(), literal);
        sql.push(format!("COMMENT ON DATABASE {name} IS {comment}"));
    }
    Ok(sql)
}

/// Everybody who holds a privilege on a database now, default ones counted.
async fn grantees(session: &Session, oid: u32) -> Result<Vec<String>, Failure> {
    let rows = session
        .rows(
            "read a database's privileges",
            "SELECT DISTINCT CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee)::text END \
             FROM pg_catalog.pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a \
             WHERE d.oid = $1 ORDER BY 1",
            &[&oid],
        )
        .await?;
    Ok(rows.iter().map(|row| role(row.get(0))).collect())
}

/// The privileges on a database as grants; the new owner is who gives them.
async fn grants(session: &Session, oid: u32, name: &str) -> Result<Vec<String>, Failure> {
    let rows = session
        .rows(
            "read a database's privileges",
            "SELECT CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee)::text END, \
                    a.is_grantable, string_agg(DISTINCT a.privilege_type, ', ' ORDER BY a.privilege_type) \
             FROM pg_catalog.pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a \
             WHERE d.oid = $1 GROUP BY 1, 2 ORDER BY 1, 2",
            &[&oid],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let option = if row.get(1) { " WITH GRANT OPTION" } else { "" };
            format!("GRANT {} ON DATABASE {name} TO {}{option}", row.get::<_, &str>(2), role(row.get(0)))
        })
        .collect())
}

/// Takes back what the replacement has set for itself.
async fn resets(session: &Session, oid: u32, name: &str) -> Result<Vec<String>, Failure> {
    let rows = role_settings(session, oid).await?;
    Ok(rows
        .into_iter()
        .map(|(role, _)| match role {
            Some(role) => format!("ALTER ROLE {role} IN DATABASE {name} RESET ALL"),
            None => format!("ALTER DATABASE {name} RESET ALL"),
        })
        .collect())
}

/// The settings on a database, and those that roles have in it.
async fn settings(session: &Session, oid: u32, name: &str) -> Result<Vec<String>, Failure> {
    let mut sql = Vec::new();
    for (role, settings) in role_settings(session, oid).await? {
        let whose = role.map_or_else(
            || format!("ALTER DATABASE {name}"),
            |role| format!("ALTER ROLE {role} IN DATABASE {name}"),
        );
        for setting in settings {
            if let Some((parameter, value)) = setting.split_once('=') {
                sql.push(format!(
                    "{whose} SET {} TO {}",
                    parameter_name(parameter),
                    parameter_value(parameter, value)
                ));
            }
        }
    }
    Ok(sql)
}

async fn role_settings(session: &Session, oid: u32) -> Result<Vec<(Option<String>, Vec<String>)>, Failure> {
    let rows = session
        .rows(
            "read a database's settings",
            "SELECT CASE WHEN setrole = 0 THEN NULL ELSE pg_get_userbyid(setrole)::text END, setconfig \
             FROM pg_catalog.pg_db_role_setting WHERE setdatabase = $1 ORDER BY setrole",
            &[&oid],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get::<_, Option<&str>>(0).map(ident), row.get(1))).collect())
}

/// A grantee as SQL names it; `None` is everybody.
fn role(name: Option<&str>) -> String {
    name.map_or_else(|| "PUBLIC".to_owned(), ident)
}

/// `app.tenant` is two names.
fn parameter_name(name: &str) -> String {
    name.split('.').map(ident).collect::<Vec<_>>().join(".")
}

fn parameter_value(parameter: &str, value: &str) -> String {
    if !LISTS.contains(&parameter.to_ascii_lowercase().as_str()) {
        return literal(value);
    }
    let names = list_names(value);
    if names.is_empty() {
        "''".to_owned()
    } else {
        names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ")
    }
}

/// The names in `"$user", public`.
fn list_names(value: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        let Some(name) = names.last_mut() else { break };
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                name.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            _ if !quoted && character.is_whitespace() => {}
            _ => name.push(character),
        }
    }
    if names == [""] && !value.contains('"') { Vec::new() } else { names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_names_apart() {
        assert_eq!(parameter_value("search_path", r#""$user", auth, "we,ird""#), "'$user', 'auth', 'we,ird'");
        assert_eq!(parameter_value("search_path", r#""""#), "''");
        assert_eq!(parameter_value("statement_timeout", "5s"), "'5s'");
        assert_eq!(parameter_name("app.tenant"), r#""app"."tenant""#);
    }
}
