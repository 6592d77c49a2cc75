//! Generated documents: rendered again and compared with the files.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tallyman::domain::decision::Operation;
use tallyman::metrics::{Metrics, Outcome};

#[test]
fn the_documented_settings_match_help() {
    let (serve, dev) = (settings("serve"), only_in_dev());
    let name = "docs/configuration.md";
    let text = fs::read_to_string(path(name)).unwrap();
    let text = with_section(&text, "serve", &table(&serve));
    let text = with_section(&text, "dev", &table(&dev));
    check(name, &text);
}

#[test]
fn the_example_environment_has_every_setting_with_its_default() {
    let mut text = "\
# Every setting, commented out, with its default. Tallyman does not read this file; load a copy of it:
#   set -a; . ./.env; set +a
"
    .to_owned();
    let mut heading = String::new();
    let dev = only_in_dev().into_iter().map(|setting| Setting {
        heading: "tallyman dev".to_owned(),
        ..setting
    });
    for setting in settings("serve").into_iter().chain(dev) {
        if setting.heading != heading {
            heading.clone_from(&setting.heading);
            let _ = write!(text, "\n# --- {heading} ---\n");
        }
        let (variable, default) = (&setting.variable, setting.default.unwrap_or_default());
        let _ = write!(text, "\n# {}\n#{variable}={default}\n", setting.meaning);
    }
    check(".env.example", &text);
}

/// One row for each metric, from its HELP, TYPE and samples in the Prometheus format.
#[test]
fn the_documented_metrics_match_the_endpoint() {
    let metrics = Metrics::new("0.1.0", chrono::DateTime::UNIX_EPOCH);
    // These metrics have no samples before their first event.
    metrics.request_completed("GET", "/readyz", Some(200), Duration::ZERO);
    metrics.decided(
        Operation::Check,
        Outcome::Granted,
        &"api".parse().unwrap(),
        1,
    );
    let text = metrics.to_text().unwrap();

    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, meaning)) = metadata(line, "HELP") else {
            continue;
        };
        let (_, kind) = metadata(lines.next().unwrap(), "TYPE").unwrap();
        let ending = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let mut labels = BTreeSet::new();
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            assert!(sample.starts_with(&format!("{name}{ending}")), "{sample}");
            let values = sample.split(['{', '}']).nth(1).unwrap_or_default();
            let named = values.split(',').filter_map(|label| label.split_once('='));
            labels.extend(named.map(|(label, _)| label).filter(|label| *label != "le"));
        }
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let (labels, meaning) = (labels.join(", "), meaning.trim_end_matches('.'));
        let _ = writeln!(
            table,
            "| `{name}{ending}` | {kind} | {labels} | {meaning} |"
        );
    }
    let name = "docs/metrics.md";
    let text = fs::read_to_string(path(name)).unwrap();
    check(name, &with_section(&text, "metrics", &table));
}

/// Splits `# HELP tallyman_generations Numbers that …` into name and text.
fn metadata<'a>(line: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let rest = line.strip_prefix("# ")?.strip_prefix(kind)?;
    rest.trim_start().split_once(' ')
}

#[test]
fn the_committed_openapi_document_matches_the_executable() {
    let output = tallyman(&["openapi"]);
    check("docs/openapi.json", &output);
}

/// The output of the executable, which depends on its arguments only.
fn tallyman(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(arguments)
        // `--help` would show the values of variables that are set.
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A setting as printed by `--help`.
struct Setting {
    heading: String,
    /// With its value placeholder.
    flag: String,
    variable: String,
    default: Option<String>,
    meaning: String,
}

/// All settings of a subcommand, in the order of `--help`.
fn settings(subcommand: &str) -> Vec<Setting> {
    let help = tallyman(&[subcommand, "--help"]);
    let mut heading = String::new();
    let mut entries: Vec<(String, String, String)> = Vec::new();
    for line in help.lines().filter(|line| !line.is_empty()) {
        let text = line.trim();
        if !line.starts_with(' ') {
            text.trim_end_matches(':').clone_into(&mut heading);
        } else if text.starts_with('-') {
            let (flag, text) = text.split_once("  ").unwrap_or((text, ""));
            entries.push((heading.clone(), flag.to_owned(), text.trim().to_owned()));
        } else if let Some((_, _, about)) = entries.last_mut() {
            about.push_str(text);
        }
    }
    let settings: Vec<Setting> = entries
        .into_iter()
        .filter(|(_, flag, _)| flag != "-h, --help")
        .map(|(heading, flag, about)| setting(heading, flag, &about))
        .collect();
    assert!(!settings.is_empty(), "{help}");
    settings
}

/// Parses `Address to listen on [env: TALLYMAN_LISTEN=] [default: 127.0.0.1:7400]`.
fn setting(heading: String, flag: String, about: &str) -> Setting {
    let note = |name: &str| {
        let (_, rest) = about.split_once(&format!("[{name}: "))?;
        rest.split(']').next().map(str::to_owned)
    };
    let variable = note("env").unwrap_or_else(|| panic!("{flag} has no variable: {about}"));
    let is_switch = !flag.contains('<');
    Setting {
        heading,
        variable: variable.trim_end_matches('=').to_owned(),
        default: note("default").or_else(|| is_switch.then(|| "false".to_owned())),
        meaning: about.split(" [env: ").next().unwrap().to_owned(),
        flag,
    }
}

fn only_in_dev() -> Vec<Setting> {
    let serve: Vec<String> = settings("serve")
        .into_iter()
        .map(|it| it.variable)
        .collect();
    let mut dev = settings("dev");
    dev.retain(|setting| !serve.contains(&setting.variable));
    dev
}

fn table(settings: &[Setting]) -> String {
    let mut text = "| variable | flag | default | meaning |\n|---|---|---|---|\n".to_owned();
    for setting in settings {
        let default = match &setting.default {
            Some(default) if default.is_empty() => "none".to_owned(),
            Some(default) => format!("`{default}`"),
            None => "required".to_owned(),
        };
        // A bar would end the table cell, even in backticks.
        let (flag, meaning) = (
            setting.flag.replace('|', "\\|"),
            setting.meaning.replace('|', "\\|"),
        );
        let _ = writeln!(
            text,
            "| `{}` | `{flag}` | {default} | {meaning} |",
            setting.variable
        );
    }
    text
}

/// Replaces the content between the markers of a section.
fn with_section(text: &str, name: &str, content: &str) -> String {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let (before, rest) = text.split_once(&begin).expect("the section begins");
    let (_, after) = rest.split_once(&end).expect("the section ends");
    format!("{before}{begin}{content}{end}{after}")
}

/// Compares a document with the expected text, or writes it if `TALLYMAN_UPDATE_DOCS` is set.
fn check(name: &str, expected: &str) {
    let path = path(name);
    if fs::read_to_string(&path).unwrap_or_default() == expected {
        return;
    }
    if std::env::var_os("TALLYMAN_UPDATE_DOCS").is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    panic!(
        "{name} is outdated; update it with\n  TALLYMAN_UPDATE_DOCS=1 cargo test --test it documents\nIt should be:\n{expected}"
    );
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
