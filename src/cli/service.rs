//! Calls a service over HTTP with a key, from wherever the command line is.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _, stdout};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde_json::Value;

/// More than any single call takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Which service, and with which key.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where the service answers
    #[arg(
        long,
        env = "TALLYMAN_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:7400",
        value_parser = service_url,
        global = true
    )]
    url: Url,
    /// The API key; better as the variable, which no list of processes shows
    #[arg(
        long,
        env = "TALLYMAN_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        global = true
    )]
    api_key: Option<String>,
    /// Print what the service answers as JSON
    #[arg(long, global = true)]
    json: bool,
}

/// A service that can be called.
pub(super) struct Service {
    client: reqwest::Client,
    url: Url,
    key: String,
    json: bool,
}

/// Where a service answers.
fn service_url(text: &str) -> Result<Url, String> {
    let is_fit = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    if let Some(url) = text.parse().ok().filter(is_fit) {
        return Ok(url);
    }
    // A scheme is what is forgotten most.
    let meant = format!("http://{text}");
    let example = match meant.parse::<Url>() {
        Ok(_) if !text.contains("://") => escape(&meant),
        _ => "http://127.0.0.1:7400".to_owned(),
    };
    Err(format!(
        "must begin with http:// or https://, such as {example}"
    ))
}

/// What a service says in place of an answer.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Refusal {
    status: StatusCode,
    text: String,
}

impl Options {
    /// The service that they say.
    pub(super) fn service(self) -> Result<Service> {
        let key = self
            .api_key
            .context("TALLYMAN_API_KEY (--api-key) is missing")?;
        // The key goes to this service and to no other.
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(PATIENCE)
            .build()?;
        Ok(Service {
            client,
            url: self.url,
            key,
            json: self.json,
        })
    }
}

impl Service {
    /// What a call answers; null where that is nothing.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        let answer = self.send(method, path, query, body).await?;
        answer.map_err(|refusal| anyhow!(refusal))
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Result<Value, Refusal>> {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow!("TALLYMAN_URL (--url) is no URL of a service"))?
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
        let answer = request
            .send()
            .await
            .map_err(reqwest::Error::without_url)
            .with_context(|| format!("nothing answers at {}", self.url))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await.map_err(reqwest::Error::without_url)?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(Ok(answer));
        }
        let request_id = headers.get("x-request-id").and_then(|it| it.to_str().ok());
        let request_id = request_id.unwrap_or("none");
        let Some(detail) = answer["detail"].as_str() else {
            bail!("{} answers {status}, and is no Tallyman", self.url);
        };
        let code = answer["code"].as_str().unwrap_or_default();
        let field = answer["errors"][0]["pointer"].as_str();
        let field = field.map_or(String::new(), |field| format!("{field} "));
        Ok(Err(Refusal {
            status,
            text: format!("{field}{detail} ({status}, {code}, request {request_id})"),
        }))
    }

    /// What is at a path, if anything is.
    pub(super) async fn find(&self, path: &[&str]) -> Result<Option<Value>> {
        match self.send(Method::GET, path, &[], None).await? {
            Ok(answer) => Ok(Some(answer)),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
            Err(refusal) => bail!(refusal),
        }
    }

    /// Every row of a list; `see` gets each page.
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

    /// Whether whoever reads the output is a program.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Shows an answer: as it came, or for people.
    pub(super) fn show(&self, answer: &Value) -> Result<()> {
        if self.json {
            print_json(answer)
        } else {
            let mut text = String::new();
            write_lines(&mut text, "", answer)?;
            print(&text)
        }
    }

    /// Shows rows of a list: as they came, or these fields of each in columns.
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

/// One line for each value, after the way to it.
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

/// A value as people read it.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => escape(text),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join(", "),
        other => escape(&other.to_string()),
    }
}

/// A text that a terminal does not obey: control characters, and those that turn the direction of what follows, are
/// escaped. In JSON that leaves the meaning as it is.
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

/// Prints JSON in lines; its own line breaks are the only control characters that are left.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)?;
    let lines: Vec<String> = json.lines().map(escape).collect();
    print(&format!("{}\n", lines.join("\n")))
}

/// Writes to standard output. Whoever has stopped reading, as `head` does, has read enough.
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
    fn a_url_without_a_scheme_is_told_with_one() {
        for (text, told) in [
            ("127.0.0.1:7600", "such as http://127.0.0.1:7600"),
            ("localhost:7600", "such as http://localhost:7600"),
            ("ftp://a", "such as http://127.0.0.1:7400"),
            ("", "such as http://127.0.0.1:7400"),
            ("http://", "such as http://127.0.0.1:7400"),
        ] {
            let error = service_url(text).unwrap_err();
            assert_eq!(
                error,
                format!("must begin with http:// or https://, {told}"),
                "{text}"
            );
        }
        assert!(service_url("https://tallyman.example/below").is_ok());
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let text = "a\u{1b}[31m\u{7f}\u{9b}\u{202e}ü\n";
        assert_eq!(escape(text), r"a\u001b[31m\u007f\u009b\u202eü\u000a");
        let mut lines = String::new();
        let answer = json!({"a\u{1b}": {"b": "\u{9b}x"}, "c": ["\n"], "d": [{"e": "\r"}]});
        write_lines(&mut lines, "", &answer).unwrap();
        assert!(
            !lines.chars().any(|c| c.is_control() && c != '\n'),
            "{lines:?}"
        );
        assert_eq!(lines.lines().count(), 3);
    }

    #[test]
    fn an_answer_is_a_line_for_each_value() {
        let mut text = String::new();
        let answer = json!({
            "id": "org_1", "limits": {"api": {"limit": null, "warnAt": [80, 100]}}, "features": {},
            "data": [{"x": 1}]
        });
        write_lines(&mut text, "", &answer).unwrap();
        insta::assert_snapshot!(text, @r"
        data[0].x: 1
        features: {}
        id: org_1
        limits.api.limit: -
        limits.api.warnAt: 80, 100
        ");
    }
}
