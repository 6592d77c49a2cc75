//! The scripts in `lua/`, joined from their parts. Each is called by exactly one function, which alone knows the positions of
//! its keys and arguments; the scripts' own comments describe both.

use std::collections::HashMap;
use std::sync::LazyLock;

use ::redis::{Arg, Cmd, ToRedisArgs};

use crate::metrics;

/// A script as Redis runs it. Its text is sent where the server lacks it.
pub(super) struct Script {
    pub(super) label: metrics::Script,
    /// The SHA-1 by which `EVALSHA` names it.
    pub(super) hash: String,
    pub(super) text: String,
}

impl Script {
    fn new(label: metrics::Script, parts: &[&str], text: &str) -> Self {
        let text = join(parts, text);
        let hash = ::redis::Script::new(&text).get_hash().to_owned();
        Self { label, hash, text }
    }

    /// The same call, with the text of the script instead of its name.
    pub(super) fn with_text(&self, call: &Cmd) -> Cmd {
        let mut eval = ::redis::cmd("EVAL");
        eval.arg(&self.text);
        for argument in call.args_iter().skip(2) {
            if let Arg::Simple(argument) = argument {
                eval.arg(argument);
            }
        }
        eval
    }

    /// A call, to which arguments may be added.
    pub(super) fn call<K: ToRedisArgs>(&self, keys: &[K], arguments: impl ToRedisArgs) -> Cmd {
        let mut call = ::redis::cmd("EVALSHA");
        call.arg(&self.hash)
            .arg(keys.len())
            .arg(keys)
            .arg(arguments);
        call
    }
}

macro_rules! source {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/lua/", $name, ".lua"))
    };
}

/// Declares each script with the parts that it is joined with.
macro_rules! scripts {
    ($($name:ident: $label:ident = $file:literal + [$($part:literal),*];)+) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(metrics::Script::$label, &[$(source!($part)),*], source!($file))
        });)+

        #[cfg(test)]
        static ALL: &[&LazyLock<Script>] = &[$(&$name),+];
    };
}

scripts! {
    COUNT: Count = "count" + ["counter", "batch"];
    OPEN: Open = "open" + ["counter", "organization", "data_set"];
    RESTORE: Restore = "restore" + ["counter", "organization"];
    CLOSE: Close = "close" + ["counter", "organization", "data_set"];
    ADJUST: Adjust = "adjust" + ["counter", "organization"];
    DRAIN: Drain = "drain" + ["counter", "organization"];
    SETTLE: Settle = "settle" + ["counter"];
    CONFIGURE: Configure = "configure" + ["counter", "organization"];
    POLICY: Policy = "policy" + ["organization"];
    ERASE: Erase = "erase" + ["counter"];
    DISCARD: Discard = "discard" + ["counter"];
    GC_COUNTERS: GcCounters = "gc_counters" + ["counter"];
    GC_ORGANIZATIONS: GcOrganizations = "gc_organizations" + ["organization"];
    UNFENCE: Unfence = "unfence" + [];
    MIRROR: Mirror = "mirror" + [];
    GENERATION: Generation = "generation" + [];
    APPLIED: Applied = "applied" + [];
}

/// Joins a script with parts behind its first line, and replaces constants by their values: Lua 5.1 has none, and a local
/// variable would be assigned by each call.
fn join(parts: &[&str], script: &str) -> String {
    let (shebang, rest) = script.split_once('\n').unwrap_or_default();
    let text = format!("{shebang}\n{}{rest}", parts.concat());
    let constants: HashMap<&str, &str> = text.lines().filter_map(constant).collect();
    let is_delimiter = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let mut joined = String::with_capacity(text.len());
    for line in text.lines().filter(|line| constant(line).is_none()) {
        for part in line.split_inclusive(is_delimiter) {
            let word = part.trim_end_matches(is_delimiter);
            joined.push_str(constants.get(word).copied().unwrap_or(word));
            joined.extend(part.chars().skip(word.chars().count()));
        }
        joined.push('\n');
    }
    joined
}

/// Name and value of a line `local NAME <const> = value`, which a comment may follow.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix("local ")?.split_once(" <const> = ")?;
    Some((name, value.split("--").next()?.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_replaced_by_their_values_and_their_lines_removed() {
        let part = "local LAST <const> = 3\n";
        let script =
            "#!lua\nlocal LAST_USED <const> = 11  -- comment\nreturn counter[LAST_USED]+LAST\n";
        assert_eq!(join(&[part], script), "#!lua\nreturn counter[11]+3\n");
    }

    #[test]
    fn scripts_use_declared_constants_only() {
        for script in ALL {
            let text = &script.text;
            let (_, code) = text.split_once('\n').unwrap();
            let without_headers: String = code
                .split("--[[")
                .map(|part| part.rsplit("]]\n").next().unwrap())
                .collect();
            for line in without_headers.lines() {
                let line = line.split("--").next().unwrap();
                // Every second part is within quotes.
                for code in line.split('\'').step_by(2) {
                    let words = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    for word in words.filter(|word| word.len() > 1) {
                        let is_constant = !word.contains(|c: char| c.is_ascii_lowercase())
                            && word.contains(|c: char| c.is_ascii_uppercase());
                        assert!(
                            !is_constant || ["KEYS", "ARGV"].contains(&word),
                            "{word} in {line:?} is not declared"
                        );
                    }
                }
            }
        }
    }
}
