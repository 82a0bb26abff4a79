//! A `postgres://` URL: whether it is one, and how to show it. Nothing here says what was written:
//! where the URL is wrong, no one can tell which part of it is the password.

use super::suggest;

const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Parameters that may be shown. Of any other nobody knows what it holds.
const SHOWN: [&str; 8] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "ssl-mode",
    "sslmode",
    "user",
];

/// The parts of a URL, as written (percent-encoded).
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    password: Option<&'a str>,
    host: &'a str,
    database: &'a str,
    query: Option<&'a str>,
}

/// Checks that `url` is a `postgres://` URL.
///
/// # Errors
/// What is wrong, without a word of the URL.
pub(super) fn check(url: &str) -> Result<(), String> {
    let parts = parts(url)?;
    if parts.host.is_empty() && (parts.user.is_some() || parts.password.is_some()) {
        return Err("it has a user and no host".into());
    }
    check_host(parts.host)?;
    for (name, value) in parameters(parts.query) {
        match name {
            "sslmode" | "ssl-mode" if !SSL_MODES.contains(&value) => {
                return Err(match suggest::nearest(value, SSL_MODES) {
                    Some(mode) => format!("its sslmode is unknown; did you mean `{mode}`?"),
                    None => format!("its sslmode is none of {}", SSL_MODES.join(", ")),
                });
            }
            "port" if value.parse::<u16>().is_err() => {
                return Err("its port is no number up to 65535".into());
            }
            // The client would not use it, and would log it.
            "sslpassword" => {
                return Err("keys with a password (`sslpassword`) are not supported".into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// `url` with everything hidden that may be a secret.
pub(super) fn redacted(url: &str) -> String {
    const HIDDEN: &str = "***";
    if check(url).is_err() {
        return HIDDEN.into();
    }
    let Ok(parts) = parts(url) else {
        return HIDDEN.into();
    };
    let mut shown = format!("{}://", parts.scheme);
    if let Some(user) = parts.user {
        shown.push_str(user);
        if parts.password.is_some() {
            shown.push(':');
            shown.push_str(HIDDEN);
        }
        shown.push('@');
    }
    shown.push_str(parts.host);
    shown.push_str(parts.database);
    for (i, (name, value)) in parameters(parts.query).enumerate() {
        shown.push(if i == 0 { '?' } else { '&' });
        shown.push_str(name);
        shown.push('=');
        shown.push_str(if SHOWN.contains(&name) { value } else { HIDDEN });
    }
    shown
}

/// Whether `url`, as far as it is one, has a password in it.
#[must_use]
pub fn has_password(url: &str) -> bool {
    parts(url).is_ok_and(|parts| {
        let passwords = [parts.password, parameter(url, "password")];
        passwords.into_iter().flatten().any(|it| !it.is_empty())
    })
}

/// What the parameter `name` of `url` says, as written, if the URL has it.
#[must_use]
pub fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    let query = url.split_once('?').map(|(_, query)| query);
    let mut all = parameters(query);
    all.find(|(it, _)| *it == name).map(|(_, value)| value)
}

/// `text` as it may stand in any part of a URL.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn parts(url: &str) -> Result<Parts<'_>, String> {
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it has a space or a control character".into());
    }
    let (scheme, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "postgres" | "postgresql"))
        .ok_or("it does not begin with `postgres://`")?;
    if rest.contains('#') {
        return Err("it has a `#`: write it as `%23`".into());
    }
    let (rest, query) = match rest.split_once('?') {
        None => (rest, None),
        Some((rest, query)) => (rest, Some(query)),
    };
    let (authority, database) = match rest.find('/') {
        None => (rest, ""),
        Some(slash) => rest.split_at(slash),
    };
    // A password with a bare `/`, `?` or `@` cuts the URL at the wrong place; then a part of it
    // would pass for a database, to be shown.
    if database.contains('@') || query.is_some_and(|query| query.contains('@')) {
        return Err(
            "it has an `@` behind its host: in a password write `/` as `%2F`, `?` as `%3F`, `@` as `%40`".into(),
        );
    }
    let (user, password, host) = match authority.rsplit_once('@') {
        None => (None, None, authority),
        Some((user, host)) => match user.split_once(':') {
            None => (Some(user), None, host),
            Some((user, password)) => (Some(user), Some(password), host),
        },
    };
    Ok(Parts {
        scheme,
        user,
        password,
        host,
        database,
        query,
    })
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']').ok_or("a `[` has no closing `]`")?;
            match rest.strip_prefix(':') {
                None if rest.is_empty() => (name, None),
                None => return Err("something follows its `]`".into()),
                Some(port) => (name, Some(port)),
            }
        }
        None => match host.split_once(':') {
            None => (host, None),
            Some((name, port)) => (name, Some(port)),
        },
    };
    if port.is_some_and(|port| !port.is_empty() && port.parse::<u16>().is_err()) {
        return Err("its port is no number up to 65535 (in a password write `/` as `%2F`)".into());
    }
    if name.is_empty() && port.is_some() {
        return Err("it has a port and no host".into());
    }
    if name.contains(',') {
        return Err("it has several hosts; write one".into());
    }
    if name.contains(['<', '>', '^', '|', '\\', '[', ']']) {
        return Err("its host has a character that no host has".into());
    }
    Ok(())
}

fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        for (url, shown) in [
            ("postgres://u:canary@h/db", "postgres://u:***@h/db"),
            (
                "postgresql://u:can:a@ry@h:5432/db",
                "postgresql://u:***@h:5432/db",
            ),
            ("postgres://u@h", "postgres://u@h"),
            (
                "postgres:///db?host=/run/pg&password=canary",
                "postgres:///db?host=/run/pg&password=***",
            ),
            (
                "postgres://[::1]:5432/db?sslmode=require&token=canary",
                "postgres://[::1]:5432/db?sslmode=require&token=***",
            ),
            ("postgres://u:canary/x@h/db", "***"),
            ("postgres://u:12/canary@h/db", "***"),
            ("postgres://u:12?canary@h/db", "***"),
            ("host=h password=canary", "***"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }

    #[test]
    fn what_is_no_url_says_why_and_not_what() {
        for (url, why) in [
            ("mysql://canary@h/db", "postgres://"),
            ("canary", "postgres://"),
            ("postgres://u:canary #@h", "space"),
            ("postgres://u:canary#@h", "%23"),
            ("postgres://u:12/canary@h/db", "%2F"),
            ("postgres://u:canary/x", "port"),
            ("postgres://h:99999/db", "port"),
            ("postgres://u:canary@/db", "no host"),
            ("postgres://a,b/db", "several"),
            ("postgres://h/db?sslmode=requird", "`require`"),
            ("postgres://h/db?sslpassword=canary", "sslpassword"),
        ] {
            let error = check(url).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn a_password_is_found_wherever_it_may_stand() {
        for (url, has) in [
            ("postgres://u:canary@h/db", true),
            ("postgresql://u:p%40@[::1]:5432/db?sslmode=require", true),
            ("postgres://u@h/db?sslmode=disable&password=canary", true),
            ("postgres://u:@h/db", false),
            ("postgres://u@h:5432/db", false),
            ("postgres:///db?host=/run/postgresql&user=password", false),
            ("no URL", false),
        ] {
            assert_eq!(has_password(url), has, "{url}");
        }
    }

    #[test]
    fn parameters_of_other_clients_do_no_harm() {
        assert_eq!(check("postgres://h/db?channel_binding=require"), Ok(()));
    }
}
