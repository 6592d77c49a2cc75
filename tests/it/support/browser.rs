//! A browser, as far as the dashboard needs one: cookies, forms, and redirects that tests see.

use std::collections::BTreeMap;

use reqwest::Method;
use reqwest::header::{HeaderValue, SET_COOKIE};
use reqwest::redirect::Policy;

use super::{Answer, Http, Instance};

/// A browser that does not follow redirects by itself.
#[derive(Clone)]
pub struct Browser {
    client: reqwest::Client,
    /// The URL of the instance that it asks.
    pub base: String,
    /// What it sends with each request.
    pub cookies: BTreeMap<String, String>,
}

impl Browser {
    /// A browser at this instance, without a session.
    pub fn new(service: &Instance) -> Self {
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .tls_certs_only([])
            .build()
            .unwrap();
        Self {
            client,
            base: service.http.base().to_owned(),
            cookies: BTreeMap::new(),
        }
    }

    /// A browser that has signed in.
    pub async fn signed_in(service: &Instance, key: &str) -> Self {
        let mut browser = Self::new(service);
        let answer = browser.post("/dashboard/sign-in", &[("key", key)]).await;
        assert_eq!(answer.status, 303, "{}", answer.text);
        browser
    }

    /// A page.
    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], &[]).await
    }

    /// Sends a form.
    pub async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.send(Method::POST, path, &[], fields).await
    }

    /// The CSRF token of the session.
    pub async fn csrf(&mut self) -> String {
        let page = self.get("/dashboard").await;
        field(&page.text, "csrf")
    }

    /// A GET whose response is read while it arrives.
    pub async fn open(&self, path: &str) -> reqwest::Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// A request with the cookies.
    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let cookies = self.cookies.iter();
        let cookies = cookies.map(|(name, value)| format!("{name}={value}"));
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        let request = self.client.request(method, format!("{}{path}", self.base));
        request.header("cookie", cookies)
    }

    /// A request with headers and, if there are any, fields of a form.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        fields: &[(&str, &str)],
    ) -> Answer {
        let mut request = self.request(method.clone(), path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if method == Method::POST {
            let form = form_urlencoded::Serializer::new(String::new())
                .extend_pairs(fields)
                .finish();
            request = request
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form);
        }
        let answer = Http::answer(request).await;
        for cookie in answer.headers.get_all(SET_COOKIE) {
            self.keep(cookie);
        }
        answer
    }

    fn keep(&mut self, cookie: &HeaderValue) {
        let cookie = cookie.to_str().unwrap();
        let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
        if cookie.contains("Max-Age=0") {
            self.cookies.remove(name);
        } else {
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
    }
}

/// The value of the first field of this name in a page.
pub fn field(page: &str, name: &str) -> String {
    let (_, rest) = page
        .split_once(&format!("name=\"{name}\" value=\""))
        .unwrap_or_else(|| panic!("no field {name}: {page}"));
    rest.split('"').next().unwrap().to_owned()
}
