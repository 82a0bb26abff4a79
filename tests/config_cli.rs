//! The command line and the config, as a user meets them: exit codes and what is printed where.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const CANARY: &str = "canary-4711";

/// Runs the program with `arguments` and nothing in its environment but `variables`.
fn relay<A: AsRef<OsStr>>(arguments: &[A], variables: &[(&str, &str)]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    for text in [stdout(&output), stderr(&output)] {
        assert!(!text.contains(CANARY), "a secret is shown: {text}");
    }
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("outbox-relay-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a scratch file");
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

#[test]
fn config_init_prints_the_starter_file_and_it_is_right() {
    let output = relay(&["config", "init"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = std::fs::read_to_string(root.join("config/outbox-relay.toml")).unwrap();
    assert_eq!(stdout(&output), committed);

    let file = Scratch::new("init.toml", &committed);
    let output = relay(&["config", "check", "--config", &file.text()], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "the config is right; it serves public.outbox\n"
    );
}

#[test]
fn the_reference_is_as_committed() {
    let output = relay(&["config", "reference"], &[]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = std::fs::read_to_string(root.join("docs/config.md")).unwrap();
    assert_eq!(stdout(&output), committed);
}

#[test]
fn an_unknown_key_ends_with_78_and_names_file_line_key_and_the_nearest() {
    let file = Scratch::new(
        "unknown.toml",
        "[kafka]\nbrokers = \"h:1\"\n\n[[outbox]]\ntabel = \"canary-4711\"\n",
    );
    for command in [
        vec!["run"],
        vec!["migrate"],
        vec!["config", "check"],
        vec!["config", "print"],
    ] {
        let mut arguments: Vec<&OsStr> = command.iter().map(OsStr::new).collect();
        arguments.extend([OsStr::new("--config"), file.path().as_os_str()]);
        let output = relay(&arguments, &[]);
        assert_eq!(output.status.code(), Some(78), "{command:?}");
        let line = format!(
            "{}:5: unknown key `outbox.tabel`; did you mean `table`?",
            file.text()
        );
        let told = stderr(&output);
        assert!(told.lines().any(|told| told == line), "{told}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn config_print_tells_where_each_value_is_from_and_hides_secrets() {
    let file = Scratch::new(
        "print.toml",
        "[kafka]\nbrokers = \"h:1\"\n[kafka.properties]\n\"sasl.password\" = \"canary-4711\"\n[relay]\nworkers = 2\n",
    );
    let output = relay(
        &[
            "config",
            "print",
            "--config",
            &file.text(),
            "--table",
            "Shop.Outbox",
        ],
        &[
            ("DATABASE_URL", "postgres://u:canary-4711@h/db"),
            ("OUTBOX_RELAY__OUTBOX__LANES", "32"),
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let printed = stdout(&output);
    for line in [
        "url = \"postgres://u:***@h/db\"  # from environment DATABASE_URL".to_owned(),
        format!("brokers = \"h:1\"  # from {}:2", file.text()),
        format!("\"sasl.password\" = \"***\"  # from {}:4", file.text()),
        format!("workers = 2  # from {}:6", file.text()),
        "table = \"Shop.Outbox\"  # from --table".to_owned(),
        "lanes = 32  # from environment OUTBOX_RELAY__OUTBOX__LANES".to_owned(),
        "layout = \"classic\"  # from default".to_owned(),
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}\n{printed}"
        );
    }
}

#[test]
fn no_file_is_needed() {
    let variables = [
        ("DATABASE_URL", "postgres://u:canary-4711@h/db"),
        ("KAFKA_BROKERS", "h:9092"),
    ];
    let output = relay(&["config", "check", "--table", "public.outbox"], &variables);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn what_is_missing_ends_with_78_and_says_how_to_set_it() {
    let output = relay(&["run"], &[]);
    assert_eq!(output.status.code(), Some(78));
    let told = stderr(&output);
    for word in ["DATABASE_URL", "KAFKA_BROKERS", "[[outbox]]"] {
        assert!(told.contains(word), "{told}");
    }
}

#[test]
fn a_wrong_variable_ends_with_78_and_the_nearest_name() {
    let output = relay(
        &["config", "check"],
        &[(
            "OUTBOX_RELAY__DATABASE__ULR",
            "postgres://u:canary-4711@h/db",
        )],
    );
    assert_eq!(output.status.code(), Some(78));
    let told = stderr(&output);
    assert!(
        told.contains("did you mean `OUTBOX_RELAY__DATABASE__URL`?"),
        "{told}"
    );
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    for arguments in [
        vec![],
        vec!["runn"],
        vec!["run", "--tabel", "a"],
        vec!["run", "--layout", "clasic"],
        vec!["run", "postgres://u:canary-4711@h/db"],
        vec!["run", "--url=postgres://u:canary-4711@h/db"],
        vec!["config"],
    ] {
        let output = relay(&arguments, &[]);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert_ne!(stderr(&output), "", "{arguments:?}");
    }
}

#[test]
fn help_has_examples_variables_and_exit_codes() {
    let output = relay(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    for word in [
        "Examples:",
        "Exit codes:",
        "DATABASE_URL",
        "OUTBOX_RELAY__",
        "RUST_LOG",
        " 78 ",
    ] {
        assert!(stdout(&output).contains(word), "{word}");
    }
    for (command, word) in [
        ("run", "a URL with a password in it is refused"),
        ("run", "--until-empty"),
        ("run", "Exit codes:"),
        ("migrate", "--print"),
        ("migrate", "--yes"),
    ] {
        let output = relay(&[command, "--help"], &[]);
        assert_eq!(output.status.code(), Some(0));
        let help = stdout(&output);
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn completions_are_scripts_that_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = relay(&["completions", shell], &[]);
        assert!(output.status.success(), "{shell}");
        let script = stdout(&output);
        for word in ["migrate", "deny-warnings", "older-than"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // the shell itself reads one
    let script = Scratch::new(
        "completions.bash",
        &stdout(&relay(&["completions", "bash"], &[])),
    );
    // whatever function it registers for the program
    let complete = format!(
        "set -e; . {}; COMP_WORDS=(outbox-relay par); COMP_CWORD=1; set -- $(complete -p outbox-relay); \
         while [ \"$1\" != -F ]; do shift; done; \"$2\" outbox-relay par outbox-relay; \
         printf '%s' \"${{COMPREPLY[@]}}\"",
        script.text()
    );
    match Command::new("bash").args(["-c", &complete]).output() {
        Ok(output) => assert_eq!(stdout(&output), "parked", "{}", stderr(&output)),
        Err(why) => assert_eq!(why.kind(), std::io::ErrorKind::NotFound, "no bash here"),
    }
    let output = relay(&["completions", "cmd"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("zsh"), "it says which there are");
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let page = stdout(&relay(&["man"], &[]));
    assert!(page.contains(".TH outbox-relay 1"), "{page}");
    for command in ["run", "migrate", "check", "parked", "config"] {
        assert!(
            page.contains(&format!("outbox\\-relay\\-{command}(1)")),
            "{command}: {page}"
        );
        let page = stdout(&relay(&["man", command], &[]));
        assert!(
            page.contains(&format!(".TH outbox-relay-{command} 1")),
            "{command}: {page}"
        );
    }
    let page = stdout(&relay(&["man", "check"], &[]));
    assert!(
        page.contains("deny\\-warnings") && page.contains("Exit codes"),
        "{page}"
    );
    let output = relay(&["man", "chek"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("there is no command `chek`"));
}
