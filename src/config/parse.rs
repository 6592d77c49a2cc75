//! Parses command line and environment, and reports all invalid settings together.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command, Parser};

use super::values::invalid;

/// All invalid settings, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n"))]
pub struct InvalidSettings(
    /// Each with its position in `--help`, which orders them.
    pub(super) BTreeSet<(usize, String)>,
);

/// Parses command line and environment. Exits where that is not a matter of settings: `--help`, an unknown flag.
///
/// Clap stops at the first invalid value. So each invalid setting is noted, made to accept any text, and everything
/// parsed again.
pub fn parse<T: Parser>(
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
) -> Result<T, InvalidSettings> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let mut command = T::command();
    let mut problems = BTreeSet::new();
    let matches = loop {
        let error = match command.clone().try_get_matches_from(&arguments) {
            Ok(matches) => break matches,
            Err(error) => error,
        };
        let Some((id, problem)) = invalid_setting(&command, &error) else {
            error.exit();
        };
        problems.insert(problem);
        command = accept_any_text(command, &id);
    };
    for (id, rule) in contradictions(&matches) {
        problems.extend(find(&command, |arg| arg.get_id() == id).map(|found| found.problem(&rule)));
    }
    if problems.is_empty() {
        Ok(T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
    } else {
        Err(InvalidSettings(problems))
    }
}

/// A setting, and its position in the help.
struct Found<'a> {
    position: usize,
    arg: &'a Arg,
}

impl Found<'_> {
    /// The line that reports a problem with it, by variable and flag.
    fn problem(&self, rule: &str) -> (usize, String) {
        let variable = self.arg.get_env().unwrap_or_default().to_string_lossy();
        let flag = self.arg.get_long().unwrap_or_default();
        (self.position, format!("{variable} (--{flag}) {rule}"))
    }
}

/// The first setting, of the command or its subcommands, that fulfils a condition. Settings have a heading in the help;
/// other arguments, such as the URL that a command calls, do not.
fn find(command: &Command, is_it: impl Fn(&Arg) -> bool + Copy) -> Option<Found<'_>> {
    let mut args = command.get_arguments().enumerate();
    let found = args.find(|(_, arg)| arg.get_help_heading().is_some() && is_it(arg));
    let found = found.map(|(position, arg)| Found { position, arg });
    found.or_else(|| command.get_subcommands().find_map(|it| find(it, is_it)))
}

/// The id of the setting that clap refuses, and the line that reports it; none for other errors.
fn invalid_setting(command: &Command, error: &clap::Error) -> Option<(String, (usize, String))> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let Some(ContextValue::String(usage)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    // Such as `--listen <ADDRESS>`.
    let flag = usage.strip_prefix("--")?.split(' ').next();
    let found = find(command, |arg| arg.get_long() == flag)?;
    let rule = error.source()?.to_string();
    Some((found.arg.get_id().to_string(), found.problem(&rule)))
}

fn accept_any_text(command: Command, id: &str) -> Command {
    let accept = |arg: Arg| {
        if arg.get_id() == id {
            arg.value_parser(clap::value_parser!(String))
        } else {
            arg
        }
    };
    command
        .mut_args(accept)
        .mut_subcommands(|subcommand| accept_any_text(subcommand, id))
}

/// What several settings require of each other, as ids and rules. Looks at texts, because some may be invalid.
fn contradictions(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let matches = matches.subcommand().map_or(matches, |(_, it)| it);
    let text = |id| {
        let mut values = matches.try_get_raw(id).ok().flatten()?;
        values.next().and_then(OsStr::to_str)
    };
    let mut found = Vec::new();
    for (together, needed) in [
        (
            &["jwks_url", "issuer", "audience"][..],
            "given where one of jwt-jwks-url, jwt-issuer and jwt-audience is",
        ),
        (
            &["tls_certificate", "tls_key"],
            "given where the other one of tls-certificate and tls-key is",
        ),
    ] {
        let texts = together.iter().map(|id| text(id).unwrap_or_default());
        let (missing, given): (Vec<_>, Vec<_>) = together
            .iter()
            .zip(texts)
            .partition(|(_, text)| text.is_empty());
        if !given.is_empty() {
            let missing = missing.into_iter();
            found.extend(missing.map(|(id, text)| (*id, invalid(text, needed))));
        }
    }
    if let (Some(api), Some(metrics)) = (text("listen"), text("metrics_listen"))
        && let (Ok(api), Ok(address)) = (api.parse::<SocketAddr>(), metrics.parse::<SocketAddr>())
        && api == address
        && address.port() != 0
    {
        let needed = "another address than that of the API";
        found.push(("metrics_listen", invalid(metrics, needed)));
    }
    found
}
