//! Parsers of values. Their errors complete a sentence that begins with the name of the setting.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::thread::available_parallelism;
use std::time::Duration;

use reqwest::Url;
use tracing_subscriber::filter::Targets;

use crate::domain::calendar::parse_time_zone;
use crate::domain::quantity::Count;

const DAY: Duration = Duration::from_hours(24);

/// A century, for ever in practice.
const DAYS_MAX: u64 = 36_500;

type Parsed<T> = Result<T, String>;

/// Origins whose pages may call the API from a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// All.
    Any,
    /// These, spelled as browsers send them.
    Only(Vec<String>),
}

impl FromStr for Origins {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origins = list(text);
        if origins.iter().all(|origin| is_origin(origin)) {
            Ok(Self::Only(origins))
        } else {
            Err(())
        }
    }
}

/// Whether a browser could send this: `scheme://host` or `scheme://host:port`, in lower case.
fn is_origin(text: &str) -> bool {
    let fit = |c: u8| c.is_ascii_graphic() && !c.is_ascii_uppercase() && !b"/*?#@;'\"".contains(&c);
    text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty() && !host.is_empty() && scheme.bytes().chain(host.bytes()).all(fit)
    })
}

/// The first segments of the API's paths, which the plugin's path must not begin with.
pub const API_PATHS: [&str; 6] = ["docs", "healthz", "metrics", "openapi.json", "readyz", "v1"];

/// Whether a path has one or more segments, none of them empty or resolved by clients.
pub(super) fn is_path(text: &str) -> bool {
    let fit = |segment: &str| {
        let mut bytes = segment.bytes();
        !matches!(segment, "" | "." | "..")
            && bytes.all(|c| c.is_ascii_alphanumeric() || b"-._~".contains(&c))
    };
    text.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(fit))
}

/// The error of an invalid value, with the accepted ones.
pub(super) fn invalid(text: &str, needed: &str) -> String {
    format!("is {text:?}; it must be {needed}")
}

pub(super) fn value<T: FromStr>(needed: &'static str) -> impl Fn(&str) -> Parsed<T> + Clone {
    move |text| text.parse().map_err(|_| invalid(text, needed))
}

/// A type with its own error messages.
pub(super) fn id<T: FromStr<Err: fmt::Display>>(text: &str) -> Parsed<T> {
    text.parse()
        .map_err(|rule| format!("is {text:?}; it {rule}"))
}

pub(super) fn number<T: TryFrom<u64>>(min: u64, max: u64) -> impl Fn(&str) -> Parsed<T> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|it| (min..=max).contains(it));
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| invalid(text, &format!("a number from {min} to {max}")))
    }
}

/// A number of units.
pub(super) fn duration(
    unit: Duration,
    min: u64,
    max: u64,
) -> impl Fn(&str) -> Parsed<Duration> + Clone {
    move |text| Ok(unit * number::<u32>(min, max)(text)?)
}

/// A number of days; none if empty.
pub(super) fn days(min: u64) -> impl Fn(&str) -> Parsed<Option<Duration>> + Clone {
    move |text| {
        if text.is_empty() {
            return Ok(None);
        }
        duration(DAY, min, DAYS_MAX)(text).map(Some)
    }
}

/// One of these words.
pub(super) fn choice<T: Copy, const N: usize>(
    choices: [(&'static str, T); N],
) -> impl Fn(&str) -> Parsed<T> + Clone {
    move |text| {
        let chosen = choices.iter().find(|(word, _)| *word == text);
        let chosen = chosen.map(|(_, value)| *value);
        chosen.ok_or_else(|| invalid(text, &choices.map(|(word, _)| word).join(" or ")))
    }
}

/// A socket address.
pub fn address(text: &str) -> Parsed<SocketAddr> {
    value("an address such as 127.0.0.1:7400")(text)
}

pub(super) fn metrics_address(text: &str) -> Parsed<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    value("an address such as 127.0.0.1:7401")(text).map(Some)
}

/// A URL with one of these schemes. Errors do not repeat it, because it may hold a password.
pub(super) fn url<const N: usize>(
    schemes: [&'static str; N],
) -> impl Fn(&str) -> Parsed<String> + Clone {
    move |text| {
        let has_scheme = |scheme: &&str| {
            text.strip_prefix(*scheme)
                .is_some_and(|rest| rest.starts_with("://"))
        };
        let problem = match text {
            "" => "is missing",
            _ if !text.contains("://") => "has no scheme",
            _ if schemes.iter().any(has_scheme) && text.parse::<Url>().is_ok() => {
                return Ok(text.to_owned());
            }
            _ => "is not a URL",
        };
        let schemes = schemes.join(":// or ");
        Err(format!("{problem}; it must begin with {schemes}://"))
    }
}

/// Empty where no JWT is accepted.
pub(super) fn jwks_url(text: &str) -> Parsed<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    url(["http", "https"])(text)
}

pub(super) fn database_url(text: &str) -> Parsed<String> {
    url(["postgres", "postgresql"])(text)
}

pub(super) fn redis_url(text: &str) -> Parsed<String> {
    // Of several hosts only the first: a URL has one.
    let (first, others) = text.split_once(',').unwrap_or((text, ""));
    let rest = others.find(['/', '?']).and_then(|at| others.get(at..));
    let one = format!("{first}{}", rest.unwrap_or_default());
    url([
        "redis",
        "rediss",
        "redis+sentinel",
        "rediss+sentinel",
        "redis+unix",
        "unix",
    ])(&one)?;
    Ok(text.to_owned())
}

pub(super) fn claim(text: &str) -> Parsed<String> {
    if text.is_empty() {
        return Err(invalid(text, "the name of a claim"));
    }
    Ok(text.to_owned())
}

pub(super) fn plugin_path(text: &str) -> Parsed<String> {
    let first = text.split('/').nth(1).unwrap_or_default();
    if !is_path(text) {
        let needed =
            "a path such as /usage, of letters, digits and - . _ ~, that does not end with a slash";
        return Err(invalid(text, needed));
    }
    if API_PATHS.contains(&first) {
        let needed =
            format!("a path that does not begin with /{first}, which is a path of the API");
        return Err(invalid(text, &needed));
    }
    Ok(text.to_owned())
}

pub(super) fn redis_prefix(text: &str) -> Parsed<String> {
    if text.len() > 64 || text.contains(['{', '}']) {
        return Err(invalid(text, "at most 64 characters without { and }"));
    }
    Ok(text.to_owned())
}

/// Mebibytes, as bytes.
pub(super) fn mebibytes(text: &str) -> Parsed<u64> {
    Ok(number::<u64>(8, 1 << 20)(text)? << 20)
}

pub(super) fn workers(text: &str) -> Parsed<usize> {
    match text {
        // Half of the cores: waking another one costs more than it brings until there is work for all, and Redis needs one.
        "auto" => Ok(available_parallelism().map_or(1, |it| it.get().div_ceil(2))),
        _ => number(1, 1024)(text),
    }
}

pub(super) fn limit(text: &str) -> Parsed<Option<Count>> {
    if text == "unlimited" {
        return Ok(None);
    }
    let units = text.parse::<u64>().ok();
    let count = units.and_then(|units| Count::try_from(units).ok());
    let needed = "a number from 0 to 2^53 - 1, or unlimited";
    count.map(Some).ok_or_else(|| invalid(text, needed))
}

pub(super) fn time_zone(text: &str) -> Parsed<chrono_tz::Tz> {
    parse_time_zone(text).map_err(|rule| format!("is {text:?}; it {}", rule.detail))
}

pub(super) fn log_filter(text: &str) -> Parsed<Targets> {
    value("a filter such as info or tallyman=debug")(text)
}

/// The items of a comma-separated list.
pub(super) fn list(text: &str) -> Vec<String> {
    let items = text.split(',').map(str::trim).filter(|it| !it.is_empty());
    items.map(str::to_owned).collect()
}
