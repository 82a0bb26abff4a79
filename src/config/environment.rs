//! The environment: the only place where it is read, and what its variables mean.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::Secret;
use super::database_url::encoded;

/// What the relay's own variables begin with.
pub(super) const PREFIX: &str = "OUTBOX_RELAY__";

/// The variables of a process, or of a test.
///
/// An empty variable counts as one that is not set: that is what `X=${X:-}` leaves behind.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, Secret>,
    /// Variables of ours that are no text.
    unreadable: Vec<String>,
}

/// Whether the environment names a collector of traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collector {
    /// It does not.
    None,
    /// It does.
    Named,
    /// It does, and in a way that cannot be served: a sentence.
    Wrong(String),
}

impl Environment {
    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self::of(std::env::vars_os())
    }

    /// The given variables.
    pub fn of<N, V>(variables: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        let mut environment = Self::default();
        for (name, value) in variables {
            // What has a name that is no text is none of ours.
            let Ok(name) = name.into().into_string() else {
                continue;
            };
            match value.into().into_string() {
                Ok(value) if value.is_empty() => {}
                Ok(value) => {
                    environment.variables.insert(name, Secret::new(value));
                }
                Err(_) => environment.unreadable.push(name),
            }
        }
        environment
    }

    /// The user and the machine, as far as the environment tells.
    #[must_use]
    pub fn user_and_host(&self) -> (Option<String>, Option<String>) {
        let first = |names: &[&str]| {
            let value = names.iter().find_map(|name| self.get(name));
            value.map(|value| value.expose().to_owned())
        };
        let host = || std::fs::read_to_string("/etc/hostname").ok();
        (
            first(&["USER", "LOGNAME", "USERNAME"]),
            first(&["HOSTNAME", "COMPUTERNAME"])
                .or_else(host)
                .map(|host| host.trim().to_owned()),
        )
    }

    /// Where traces go, by OpenTelemetry's variables
    /// (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).
    #[must_use]
    pub fn collector(&self) -> Collector {
        let is = |name: &str, value: &str| {
            let set = self.get(name).map(Secret::expose);
            set.is_some_and(|set| set.eq_ignore_ascii_case(value))
        };
        let endpoints = [
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ];
        let named = endpoints.iter().any(|name| self.get(name).is_some());
        if !named || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Collector::None;
        }
        let protocols = [
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ];
        let protocol = protocols.iter().find(|name| self.get(name).is_some());
        match protocol {
            Some(name) if !is(name, "http/protobuf") => Collector::Wrong(format!(
                "{name} is none that this relay speaks: set it to http/protobuf, and the endpoint to the \
                 collector's port for that, usually 4318"
            )),
            _ => Collector::Named,
        }
    }

    /// The value of a variable.
    pub(super) fn get(&self, name: &str) -> Option<&Secret> {
        self.variables.get(name)
    }

    /// Names and values of the relay's own variables.
    pub(super) fn own(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.variables
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX))
            .map(|(name, value)| (name.as_str(), value))
    }

    /// Whether the variable is set to bytes that are no text.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = &str> {
        self.unreadable.iter().map(String::as_str)
    }

    /// The database as libpq's variables name it, as a URL, and which variables did. `None` where
    /// none of them says where or what the database is.
    ///
    /// What they leave out the client fills in as libpq would: the local socket, the user of the
    /// process, the password file.
    pub(super) fn libpq_url(&self) -> Option<(Secret, String)> {
        const NAMED: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGUSER"];
        const PARAMETERS: [(&str, &str); 9] = [
            ("PGHOSTADDR", "hostaddr"),
            ("PGPORT", "port"),
            ("PGUSER", "user"),
            ("PGPASSWORD", "password"),
            ("PGSSLMODE", "sslmode"),
            ("PGSSLROOTCERT", "sslrootcert"),
            ("PGSSLCERT", "sslcert"),
            ("PGSSLKEY", "sslkey"),
            ("PGAPPNAME", "application_name"),
        ];
        if !NAMED.iter().any(|name| self.get(name).is_some()) {
            return None;
        }
        let mut used = Vec::new();
        let mut url = String::from("postgres:///");
        if let Some(database) = self.get("PGDATABASE") {
            used.push("PGDATABASE");
            url.push_str(&encoded(database.expose()));
        }
        let mut separator = '?';
        // The address comes behind the host: the client lets the last one count, as libpq does.
        for (variable, parameter) in [("PGHOST", "host")].into_iter().chain(PARAMETERS) {
            if let Some(value) = self.get(variable) {
                used.push(variable);
                url.push_str(&format!(
                    "{separator}{parameter}={}",
                    encoded(value.expose())
                ));
                separator = '&';
            }
        }
        Some((Secret::new(url), used.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(variables: &[(&str, &str)]) -> Option<(String, String)> {
        Environment::of(variables.iter().copied())
            .libpq_url()
            .map(|(url, names)| (url.expose().to_owned(), names))
    }

    #[test]
    fn libpq_variables_make_a_url() {
        let (url, names) = url(&[
            ("PGHOST", "db.example"),
            ("PGPORT", "5433"),
            ("PGUSER", "svc"),
            ("PGPASSWORD", "p@ss/word"),
            ("PGDATABASE", "shop"),
        ])
        .unwrap();
        assert_eq!(
            url,
            "postgres:///shop?host=db.example&port=5433&user=svc&password=p%40ss%2Fword"
        );
        assert_eq!(names, "PGDATABASE, PGHOST, PGPORT, PGUSER, PGPASSWORD");
        assert!(super::super::database_url::check(&url).is_ok());
    }

    #[test]
    fn a_socket_is_a_host_that_begins_with_a_slash() {
        let (url, _) = url(&[("PGHOST", "/run/pg"), ("PGDATABASE", "")]).unwrap();
        assert_eq!(url, "postgres:///?host=%2Frun%2Fpg");
    }

    #[test]
    fn a_password_alone_names_no_database() {
        assert_eq!(url(&[("PGPASSWORD", "x"), ("PGPORT", "5432")]), None);
    }
}
