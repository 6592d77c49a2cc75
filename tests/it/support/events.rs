//! A stream of server-sent events.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::time::timeout;

/// Upper bound for each step; reaching it fails the test.
pub const EVENT_TIMEOUT: Duration = Duration::from_mins(1);

/// An open stream of events.
pub struct Events {
    response: Response,
    text: String,
}

impl Events {
    /// The events of a successful response.
    pub fn new(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            text: String::new(),
        }
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The lines of the next event; none at the end of the stream.
    pub async fn event(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.into();
                return Some(event);
            }
            let chunk = timeout(EVENT_TIMEOUT, self.response.chunk()).await;
            let chunk = chunk.expect("an event arrives").unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The data of the next event, without its instant.
    pub async fn data(&mut self) -> Value {
        let event = self.event().await.expect("the stream continues");
        let data = event.lines().find_map(|line| line.strip_prefix("data: "));
        let mut data: Value =
            serde_json::from_str(data.unwrap_or_else(|| panic!("{event}"))).unwrap();
        assert!(data.as_object_mut().unwrap().remove("at").is_some());
        data
    }

    pub async fn ends(mut self) {
        assert_eq!(self.event().await, None);
    }
}
