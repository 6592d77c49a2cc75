//! The HTTP client of the commands that need a running service.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _, stdout};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde_json::Value;

/// Longer than any call takes.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The service and the key, for all commands that call it.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// URL of the service
    #[arg(
        long,
        env = "TALLYMAN_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:7400",
        value_parser = service_url,
        global = true
    )]
    url: Url,
    /// API key; prefer the variable, because a list of processes shows flags
    #[arg(
        long,
        env = "TALLYMAN_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        global = true
    )]
    api_key: Option<String>,
    /// Print the response as JSON
    #[arg(long, global = true)]
    json: bool,
}

/// A client of the service.
pub(super) struct Service {
    client: reqwest::Client,
    url: Url,
    key: String,
    json: bool,
}

/// Parses the URL of a service.
fn service_url(text: &str) -> Result<Url, String> {
    let is_fit = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    if let Some(url) = text.parse().ok().filter(is_fit) {
        return Ok(url);
    }
    // Most often the scheme is missing.
    let with_scheme = format!("http://{text}");
    let example = match with_scheme.parse::<Url>() {
        Ok(_) if !text.contains("://") => escape(&with_scheme),
        _ => "http://127.0.0.1:7400".to_owned(),
    };
    Err(format!(
        "must begin with http:// or https://, such as {example}"
    ))
}

/// An error response.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Problem {
    status: StatusCode,
    text: String,
}

impl Options {
    /// A client for these options.
    pub(super) fn service(self) -> Result<Service> {
        let key = self
            .api_key
            .context("TALLYMAN_API_KEY (--api-key) is missing")?;
        Service::new(self.url, key, self.json)
    }
}

impl Service {
    /// A client of the service at this URL.
    pub(super) fn new(url: Url, key: String, json: bool) -> Result<Self> {
        // Redirects must not carry the key to another server.
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self {
            client,
            url,
            key,
            json,
        })
    }

    /// Calls the service and returns the response; null if that has no body.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        let response = self.send(method, path, query, body).await?;
        response.map_err(|problem| anyhow!(problem))
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Result<Value, Problem>> {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow!("TALLYMAN_URL (--url) is not the URL of a service"))?
            .pop_if_empty()
            .push("v1")
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(reqwest::Error::without_url)
            .with_context(|| format!("no response from {}", self.url))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.map_err(reqwest::Error::without_url)?;
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(Ok(body));
        }
        let request_id = headers.get("x-request-id").and_then(|it| it.to_str().ok());
        let request_id = request_id.unwrap_or("none");
        let Some(detail) = body["detail"].as_str() else {
            bail!("{} responds with {status} and is not a Tallyman", self.url);
        };
        let code = body["code"].as_str().unwrap_or_default();
        let field = body["errors"][0]["pointer"].as_str();
        let field = field.map_or(String::new(), |field| format!("{field} "));
        Ok(Err(Problem {
            status,
            text: format!("{field}{detail} ({status}, {code}, request {request_id})"),
        }))
    }

    /// Reads a resource; none if it does not exist.
    pub(super) async fn find(&self, path: &[&str]) -> Result<Option<Value>> {
        match self.send(Method::GET, path, &[], None).await? {
            Ok(found) => Ok(Some(found)),
            Err(problem) if problem.status == StatusCode::NOT_FOUND => Ok(None),
            Err(problem) => bail!(problem),
        }
    }

    /// Reads all pages of a list, and passes each to `see`.
    pub(super) async fn pages(
        &self,
        path: &[&str],
        mut see: impl FnMut(&Value),
    ) -> Result<Vec<Value>> {
        let (mut rows, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let query: Vec<(&str, &str)> =
                cursor.iter().map(|it| ("cursor", it.as_str())).collect();
            let page = self.call(Method::GET, path, &query, None).await?;
            see(&page);
            rows.extend(page["data"].as_array().into_iter().flatten().cloned());
            match page["nextCursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return Ok(rows),
            }
        }
    }

    /// Whether to print JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a response as JSON or as lines of text.
    pub(super) fn show(&self, response: &Value) -> Result<()> {
        if self.json {
            print_json(response)
        } else {
            let mut text = String::new();
            write_lines(&mut text, "", response)?;
            print(&text)
        }
    }

    /// Prints a list as JSON or as a table of these fields.
    pub(super) fn show_rows(&self, rows: &[Value], fields: &[&str]) -> Result<()> {
        if self.json {
            return print_json(&Value::from(rows));
        }
        let mut table = vec![fields.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()];
        for row in rows {
            let cells = fields.iter().map(|field| word(&row[field]));
            table.push(cells.collect());
        }
        let mut text = String::new();
        for row in &table {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = table.iter().map(|row| row[column].chars().count()).max();
                write!(line, "{cell:width$}  ", width = width.unwrap_or_default())?;
            }
            writeln!(text, "{}", line.trim_end())?;
        }
        print(&text)
    }
}

/// Writes one line for each value, with its path.
fn write_lines(text: &mut String, name: &str, value: &Value) -> Result<()> {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (field, value) in fields {
                let field = escape(field);
                let dot = if name.is_empty() { "" } else { "." };
                write_lines(text, &format!("{name}{dot}{field}"), value)?;
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (index, value) in values.iter().enumerate() {
                write_lines(text, &format!("{name}[{index}]"), value)?;
            }
        }
        Value::Null if name.is_empty() => {}
        value => writeln!(text, "{name}: {}", word(value))?,
    }
    Ok(())
}

/// A value as text.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => escape(text),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join(", "),
        other => escape(&other.to_string()),
    }
}

/// Escapes control characters and those that change the direction of text, which a terminal would obey. Within JSON that
/// does not change the meaning.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Prints indented JSON without control characters except line breaks.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)?;
    let lines: Vec<String> = json.lines().map(escape).collect();
    print(&format!("{}\n", lines.join("\n")))
}

/// Writes to standard output. A reader that stops early, such as `head`, is no error.
pub(super) fn print(text: &str) -> Result<()> {
    match stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_error_of_a_url_without_scheme_suggests_one() {
        for (text, suggestion) in [
            ("127.0.0.1:7600", "such as http://127.0.0.1:7600"),
            ("localhost:7600", "such as http://localhost:7600"),
            ("ftp://a", "such as http://127.0.0.1:7400"),
            ("", "such as http://127.0.0.1:7400"),
            ("http://", "such as http://127.0.0.1:7400"),
        ] {
            let error = service_url(text).unwrap_err();
            assert_eq!(
                error,
                format!("must begin with http:// or https://, {suggestion}"),
                "{text}"
            );
        }
        assert!(service_url("https://tallyman.example/below").is_ok());
    }

    #[test]
    fn terminal_control_characters_are_escaped() {
        let text = "a\u{1b}[31m\u{7f}\u{9b}\u{202e}ü\n";
        assert_eq!(escape(text), r"a\u001b[31m\u007f\u009b\u202eü\u000a");
        let mut lines = String::new();
        let response = json!({"a\u{1b}": {"b": "\u{9b}x"}, "c": ["\n"], "d": [{"e": "\r"}]});
        write_lines(&mut lines, "", &response).unwrap();
        assert!(
            !lines.chars().any(|c| c.is_control() && c != '\n'),
            "{lines:?}"
        );
        assert_eq!(lines.lines().count(), 3);
    }

    #[test]
    fn a_response_is_one_line_per_value() {
        let mut text = String::new();
        let response = json!({
            "id": "org_1", "limits": {"api": {"limit": null, "warnAt": [80, 100]}}, "features": {},
            "data": [{"x": 1}]
        });
        write_lines(&mut text, "", &response).unwrap();
        insta::assert_snapshot!(text, @r"
        data[0].x: 1
        features: {}
        id: org_1
        limits.api.limit: -
        limits.api.warnAt: 80, 100
        ");
    }
}
