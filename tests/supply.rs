//! What the program is made of: licences, sources and bans by `deny.toml`, and the bill of materials,
//! `deploy/sbom.cdx.json`, with the C code that crates bring along. `just sbom` writes that anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// The releases' platform. Others differ in a few crates that reach the operating system.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const SBOM: &str = "deploy/sbom.cdx.json";
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A crate of the dependency graph.
struct Crate {
    name: String,
    version: String,
    licence: String,
    source: Option<String>,
    folder: PathBuf,
    /// Ids of what it needs to be built and to run.
    needs: BTreeSet<String>,
    /// What it asks for with any version at all.
    wildcards: Vec<String>,
}

/// Everything that Cargo resolves, by id, and the id of this package.
fn resolved() -> (HashMap<String, Crate>, String) {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let told = Command::new(cargo)
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", PLATFORM])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be started");
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "cargo metadata: {said}");
    let all: Value = serde_json::from_slice(&told.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut needs: HashMap<String, BTreeSet<String>> = HashMap::new();
    for node in all["resolve"]["nodes"].as_array().unwrap() {
        let to_run = |it: &&Value| {
            let kinds = it["dep_kinds"].as_array().unwrap();
            kinds.iter().any(|kind| kind["kind"] != "dev")
        };
        let of = node["deps"].as_array().unwrap().iter().filter(to_run);
        let of = of.map(|it| text(&it["pkg"])).collect();
        needs.insert(text(&node["id"]), of);
    }
    let mut crates = HashMap::new();
    for package in all["packages"].as_array().unwrap() {
        let id = text(&package["id"]);
        let asked = package["dependencies"].as_array().unwrap().iter();
        let any = asked.filter(|it| it["req"] == "*" && it["path"].is_null());
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        crates.insert(
            id.clone(),
            Crate {
                name: text(&package["name"]),
                version: text(&package["version"]),
                licence: text(&package["license"]),
                source: package["source"].as_str().map(str::to_owned),
                folder: manifest.parent().unwrap().to_owned(),
                needs: needs.remove(&id).unwrap_or_default(),
                wildcards: any.map(|it| text(&it["name"])).collect(),
            },
        );
    }
    (crates, text(&all["resolve"]["root"]))
}

/// The ids of what the program itself is made of, without what only its tests need.
fn shipped(crates: &HashMap<String, Crate>, root: &str) -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(id) = open.pop() {
        if found.insert(id.clone()) {
            open.extend(crates[&id].needs.iter().cloned());
        }
    }
    found
}

/// The expression as SPDX has it now: older crates have a slash for `OR`.
fn spdx(licence: &str) -> String {
    let words: Vec<&str> = licence.split('/').map(str::trim).collect();
    words.join(" OR ")
}

/// Whether what `allowed` lists is enough to use something under the SPDX expression. `AND` binds more
/// tightly than `OR`.
fn may_use(expression: &str, allowed: &BTreeSet<String>) -> bool {
    fn split<'a>(text: &'a str, by: &str) -> Vec<&'a str> {
        let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
        for (at, c) in text.char_indices() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            let rest = text.get(at..).unwrap_or_default();
            if depth == 0 && at >= from && rest.starts_with(by) {
                parts.push(text.get(from..at).unwrap_or_default());
                from = at + by.len();
            }
        }
        parts.push(text.get(from..).unwrap_or_default());
        parts
    }
    let text = expression.trim();
    let either = split(text, " OR ");
    if either.len() > 1 {
        return either.iter().any(|part| may_use(part, allowed));
    }
    let both = split(text, " AND ");
    if both.len() > 1 {
        return both.iter().all(|part| may_use(part, allowed));
    }
    match text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'))
    {
        Some(inner) => may_use(inner, allowed),
        None => allowed.contains(text),
    }
}

#[test]
fn every_crate_has_a_licence_and_a_source_that_are_allowed() {
    let rules: toml::Table = read("deny.toml").parse().unwrap();
    let strings = |list: &toml::Value| -> BTreeSet<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|it| it.as_str().unwrap().to_owned()).collect()
    };
    let allowed = strings(&rules["licenses"]["allow"]);
    let registries = strings(&rules["sources"]["allow-registry"]);
    let banned = rules["bans"]["deny"].as_array().unwrap().iter();
    let banned: BTreeSet<_> = banned.map(|it| it["crate"].as_str().unwrap()).collect();
    assert_eq!(rules["sources"]["unknown-git"].as_str(), Some("deny"));

    let (crates, root) = resolved();
    assert!(crates.len() > 100, "the graph is there");
    let mut faults = Vec::new();
    for (id, it) in &crates {
        let name = format!("{} {}", it.name, it.version);
        if !may_use(&spdx(&it.licence), &allowed) {
            faults.push(format!("{name}: the licence `{}`", it.licence));
        }
        let registry = it
            .source
            .as_deref()
            .and_then(|it| it.strip_prefix("registry+"));
        if *id != root && !registry.is_some_and(|it| registries.contains(it)) {
            faults.push(format!("{name}: from {:?}", it.source));
        }
        if banned.contains(it.name.as_str()) {
            faults.push(format!("{name}: banned"));
        }
        if *id == root && !it.wildcards.is_empty() {
            faults.push(format!("any version of {:?}", it.wildcards));
        }
    }
    assert!(faults.is_empty(), "deny.toml: {faults:#?}");
}

#[test]
fn licences_are_judged_as_spdx_says() {
    let allowed = BTreeSet::from(["MIT", "ISC", "A WITH B"].map(str::to_owned));
    for (expression, may) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("", false),
        ("MIT OR GPL-3.0-only", true),
        ("MIT AND GPL-3.0-only", false),
        ("MIT AND ISC", true),
        ("(MIT OR GPL-3.0-only) AND ISC", true),
        ("(MIT OR ISC) AND GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT AND ISC", true),
        ("GPL-3.0-only AND MIT OR ISC", true),
        ("A WITH B OR X", true),
        ("A", false),
    ] {
        assert_eq!(may_use(expression, &allowed), may, "{expression}");
    }
    assert_eq!(spdx("MIT/Apache-2.0"), "MIT OR Apache-2.0");
    assert_eq!(spdx("Apache-2.0 / MIT"), "Apache-2.0 OR MIT");
}

/// C code that a crate brings along: its name, where it is from, its licence, and its version as its own
/// source has it.
struct Vendored {
    name: &'static str,
    purl: &'static str,
    licence: &'static str,
    within: &'static str,
    file: &'static str,
    /// What stands before each part of the version.
    version: &'static [&'static str],
}

const VENDORED: &[Vendored] = &[
    Vendored {
        name: "librdkafka",
        purl: "pkg:github/confluentinc/librdkafka@v",
        licence: "BSD-2-Clause",
        within: "rdkafka-sys",
        file: "librdkafka/src/rdkafka.h",
        version: &["#define RD_KAFKA_VERSION 0x"],
    },
    Vendored {
        name: "lz4",
        purl: "pkg:github/lz4/lz4@v",
        licence: "BSD-2-Clause",
        within: "rdkafka-sys",
        file: "librdkafka/src/lz4.h",
        version: &[
            "#define LZ4_VERSION_MAJOR",
            "#define LZ4_VERSION_MINOR",
            "#define LZ4_VERSION_RELEASE",
        ],
    },
    Vendored {
        name: "cJSON",
        purl: "pkg:github/davegamble/cjson@v",
        licence: "MIT",
        within: "rdkafka-sys",
        file: "librdkafka/src/cJSON.h",
        version: &[
            "#define CJSON_VERSION_MAJOR",
            "#define CJSON_VERSION_MINOR",
            "#define CJSON_VERSION_PATCH",
        ],
    },
    Vendored {
        name: "tinycthread",
        purl: "pkg:github/tinycthread/tinycthread@v",
        licence: "Zlib",
        within: "rdkafka-sys",
        file: "librdkafka/src/tinycthread.h",
        version: &[
            "#define TINYCTHREAD_VERSION_MAJOR",
            "#define TINYCTHREAD_VERSION_MINOR",
        ],
    },
    Vendored {
        name: "nanopb",
        purl: "pkg:github/nanopb/nanopb@",
        licence: "Zlib",
        within: "rdkafka-sys",
        file: "librdkafka/src/nanopb/pb.h",
        version: &["#define NANOPB_VERSION \"nanopb-"],
    },
    Vendored {
        name: "openssl",
        purl: "pkg:github/openssl/openssl@openssl-",
        licence: "Apache-2.0",
        within: "openssl-src",
        file: "openssl/VERSION.dat",
        version: &["MAJOR=", "MINOR=", "PATCH="],
    },
    Vendored {
        name: "zstd",
        purl: "pkg:github/facebook/zstd@v",
        licence: "BSD-3-Clause",
        within: "zstd-sys",
        file: "zstd/lib/zstd.h",
        version: &[
            "#define ZSTD_VERSION_MAJOR",
            "#define ZSTD_VERSION_MINOR",
            "#define ZSTD_VERSION_RELEASE",
        ],
    },
    Vendored {
        name: "zlib",
        purl: "pkg:github/madler/zlib@v",
        licence: "Zlib",
        within: "libz-sys",
        file: "src/zlib/zlib.h",
        version: &["#define ZLIB_VERSION \""],
    },
];

impl Vendored {
    fn version(&self, folder: &Path) -> String {
        let path = folder.join(self.file);
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let text = String::from_utf8_lossy(&text);
        let part = |before: &&str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(*before));
            let rest = rest.unwrap_or_else(|| panic!("{}: no {before}", path.display()));
            let rest = rest.trim_start().chars();
            let part: String = rest
                .take_while(|c| c.is_ascii_alphanumeric() || ".-".contains(*c))
                .collect();
            assert!(!part.is_empty(), "{before}");
            part
        };
        let parts: Vec<String> = self.version.iter().map(part).collect();
        match (self.name, parts.as_slice()) {
            // 0xMMmmrrxx, of which the last is for what is no release
            ("librdkafka", [hex]) => {
                let byte =
                    |at: usize| u8::from_str_radix(hex.get(at..at + 2).unwrap(), 16).unwrap();
                format!("{}.{}.{}", byte(0), byte(2), byte(4))
            }
            _ => parts.join("."),
        }
    }
}

/// The checksums that `Cargo.lock` has, by name and version.
fn checksums() -> BTreeMap<(String, String), String> {
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap().iter();
    let of = |it: &toml::Value| {
        let text = |key: &str| Some(it.get(key)?.as_str()?.to_owned());
        Some(((text("name")?, text("version")?), text("checksum")?))
    };
    packages.filter_map(of).collect()
}

/// The bill, in CycloneDX 1.5. One line for each component, so that a change can be read.
fn bill() -> String {
    let (crates, root) = resolved();
    let shipped = shipped(&crates, &root);
    let checksums = checksums();
    let purl = |it: &Crate| format!("pkg:cargo/{}@{}", it.name, it.version);
    let (mut components, mut depend) = (Vec::new(), Vec::new());
    for id in &shipped {
        let it = &crates[id];
        let mut needs: BTreeSet<String> = it.needs.iter().map(|id| purl(&crates[id])).collect();
        for c in VENDORED.iter().filter(|c| c.within == it.name) {
            let version = c.version(&it.folder);
            let purl = format!("{}{version}", c.purl);
            let component = json!({
                "type": "library", "bom-ref": purl, "name": c.name, "version": version, "purl": purl,
                "licenses": [{ "expression": c.licence }],
                "properties": [{ "name": "vendored in", "value": format!("{} {}", it.name, it.version) }],
            });
            components.push((purl.clone(), component));
            needs.insert(purl);
        }
        let reference = purl(it);
        depend.push((
            reference.clone(),
            json!({ "ref": reference, "dependsOn": needs }),
        ));
        if *id == root {
            continue;
        }
        assert_eq!(it.source.as_deref(), Some(REGISTRY), "{reference}");
        let checksum = &checksums[&(it.name.clone(), it.version.clone())];
        let component = json!({
            "type": "library", "bom-ref": reference, "name": it.name, "version": it.version,
            "purl": reference, "licenses": [{ "expression": spdx(&it.licence) }],
            "hashes": [{ "alg": "SHA-256", "content": checksum }],
        });
        components.push((reference, component));
    }
    let lines = |mut of: Vec<(String, Value)>| {
        of.sort_by(|one, other| one.0.cmp(&other.0));
        let lines: Vec<String> = of.iter().map(|(_, it)| format!("    {it}")).collect();
        lines.join(",\n")
    };
    let own = &crates[&root];
    let own = json!({ "component": {
        "type": "application", "bom-ref": purl(own), "name": "outbox-relay", "version": own.version,
        "purl": purl(own), "licenses": [{ "expression": own.licence }],
    }});
    format!(
        "{{\n  \"bomFormat\": \"CycloneDX\",\n  \"specVersion\": \"1.5\",\n  \"version\": 1,\n  \
         \"metadata\": {own},\n  \"components\": [\n{}\n  ],\n  \"dependencies\": [\n{}\n  ]\n}}\n",
        lines(components),
        lines(depend)
    )
}

#[test]
fn the_bill_of_materials_is_what_cargo_and_the_c_sources_say() {
    let made = bill();
    if std::env::var_os("OUTBOX_SBOM_WRITE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(SBOM);
        fs::write(path, &made).unwrap();
    }
    let kept = read(SBOM);
    let differ: Vec<_> = (kept.lines().filter(|line| !made.contains(line)))
        .chain(made.lines().filter(|line| !kept.contains(line)))
        .take(4)
        .collect();
    assert!(
        kept == made,
        "{SBOM} is not of this Cargo.lock: run `just sbom`. {differ:#?}"
    );
    let bill: Value = serde_json::from_str(&kept).unwrap();
    let components = bill["components"].as_array().unwrap();
    for c in VENDORED {
        let named = |it: &&Value| it["name"] == c.name && it["properties"].is_array();
        assert_eq!(components.iter().filter(named).count(), 1, "{}", c.name);
    }
    // each crate that is named is locked, with that checksum
    let locked = checksums();
    for it in components {
        let Some(hash) = it["hashes"][0]["content"].as_str() else {
            continue;
        };
        let text = |key: &str| it[key].as_str().unwrap().to_owned();
        let known = locked.get(&(text("name"), text("version")));
        assert_eq!(known.map(String::as_str), Some(hash), "{it}");
    }
}
