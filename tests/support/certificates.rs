//! Certificates made for a test, by openssl's own program.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::geteuid;

use super::local::{NOBODY, run};

/// An authority, and the directory where everything that it issues lies.
pub(crate) struct Authority {
    directory: PathBuf,
}

/// A certificate and its key, both as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// When a certificate is good.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dates {
    Now,
    Past,
}

const RULES: &str = "[ca]
default_ca = test
[test]
dir = .
database = index
serial = serial
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_days = 10
unique_subject = no
policy = any
[any]
commonName = supplied
";

impl Authority {
    /// A new one in `directory`, which it makes.
    pub(crate) async fn new(directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).expect("a directory can be made");
        // a server runs as somebody else
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.join("index"), "").unwrap();
        fs::write(directory.join("serial"), "1000\n").unwrap();
        let authority = Self { directory };
        let name = authority.directory.file_name().unwrap().to_string_lossy();
        let subject = format!("/CN={name}");
        let new = ["req", "-x509", "-days", "10", "-subj", &subject];
        let made = ["-keyout", "ca.key", "-out", "ca.pem"];
        authority
            .openssl(&[&new[..], &KEY[..], &made[..]].concat())
            .await;
        authority
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate for `name` and the hosts `hosts`, such as `DNS:localhost,IP:127.0.0.1`.
    pub(crate) async fn issue(&self, name: &str, hosts: &str, dates: Dates) -> Issued {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let file = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let [request, pem, key, rules] =
            ["csr", "pem", "key", "rules"].map(|ending| format!("{file}.{ending}"));
        let subject = format!("/CN={name}");
        let new = [
            "req", "-new", "-subj", &subject, "-keyout", &key, "-out", &request,
        ];
        self.openssl(&[&new[..], &KEY[..]].concat()).await;
        let extensions = format!(
            "{RULES}[host]\nsubjectAltName = {hosts}\nextendedKeyUsage = serverAuth, clientAuth\n"
        );
        fs::write(self.directory.join(&rules), extensions).unwrap();
        let mut sign = vec!["ca", "-batch", "-notext", "-config", &rules];
        sign.extend(["-extensions", "host", "-in", &request, "-out", &pem]);
        if matches!(dates, Dates::Past) {
            sign.extend([
                "-startdate",
                "20200101000000Z",
                "-enddate",
                "20200201000000Z",
            ]);
        }
        self.openssl(&sign).await;
        let issued = Issued {
            certificate: self.directory.join(pem),
            key: self.directory.join(key),
        };
        issued.is_for_servers();
        issued
    }

    async fn openssl(&self, arguments: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments).current_dir(&self.directory);
        let made = run(&mut openssl).await;
        made.unwrap_or_else(|why| panic!("the package `openssl` has it: {why}"));
    }
}

const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

impl Issued {
    /// Key and certificate in one file, as Kafka wants it.
    pub(crate) fn store(&self) -> PathBuf {
        let store = self.certificate.with_extension("store");
        let parts = [&self.key, &self.certificate].map(|file| fs::read(file).unwrap());
        fs::write(&store, parts.concat()).unwrap();
        store
    }

    /// Puts both where `other` has its own, each in one step.
    pub(crate) fn replaces(&self, other: &Self) {
        replace(&other.key, &fs::read(&self.key).unwrap());
        replace(&other.certificate, &fs::read(&self.certificate).unwrap());
        other.is_for_servers();
    }

    /// Postgres wants its key to be its own, or root's, and hidden from all others.
    fn is_for_servers(&self) {
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).unwrap();
        if geteuid().is_root() {
            chown(&self.key, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

/// Writes a file anew, in one step.
pub(crate) fn replace(file: &Path, text: &[u8]) {
    let beside = file.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, file).unwrap();
}
