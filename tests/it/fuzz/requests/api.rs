//! The API in this process: its operations, as its OpenAPI document lists them, and data to read.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderName, HeaderValue, Method, Request};
use serde_json::{Value, json};
use tallyman::http::Dispatch;
use tokio::runtime::Runtime;
use tower::Service;

use crate::support::{Instance, World};

/// Organizations that have data.
pub(super) const ORGANIZATIONS: [&str; 2] = ["org_123", "org_456"];

/// An operation of the document.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) method: Method,
    /// With parameters such as `{id}`.
    pub(super) path: String,
    /// The parameters of the query, each with words that it may be.
    pub(super) query: Vec<(String, Vec<String>)>,
    /// Valid bodies; none if it takes no body.
    pub(super) examples: Vec<Value>,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) method: Method,
    /// With the query.
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, Vec<u8>)>,
    pub(super) body: Vec<u8>,
}

/// A response, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) media_type: String,
    pub(super) text: String,
    /// Whether it is a replay.
    pub(super) replayed: bool,
}

/// A service with data, called without a connection.
pub(super) struct Api {
    runtime: Runtime,
    world: World,
    instance: Instance,
    service: Dispatch,
    pub(super) document: Value,
}

impl Api {
    pub(super) fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (world, instance) = runtime.block_on(async {
            // A busy machine must not make answers late.
            let world = World::with(|config| config.request_timeout = Duration::from_mins(1)).await;
            let instance = world.instance().await;
            (world, instance)
        });
        let api = Self {
            service: instance.app.service(),
            document: serde_json::to_value(tallyman::http::openapi()).unwrap(),
            runtime,
            world,
            instance,
        };
        api.fill();
        api
    }

    /// Executes the examples, and counts for some days.
    fn fill(&self) {
        let daily = json!({"resetPeriod": "daily"});
        for organization in ORGANIZATIONS {
            let path = format!("/v1/organizations/{organization}");
            assert_eq!(self.put(Method::PUT, &path, &daily).status, 200);
        }
        for operation in self.operations() {
            if operation.method == Method::DELETE {
                continue;
            }
            for example in &operation.examples {
                let path = operation.path.replace("{id}", ORGANIZATIONS[0]);
                self.put(operation.method.clone(), &path, example);
            }
        }
        for _ in 0..4 {
            for organization in ORGANIZATIONS {
                let body =
                    json!({"organizationId": organization, "meters": {"api": 900, "tokens": 7}});
                assert_eq!(self.put(Method::POST, "/v1/track", &body).status, 200);
            }
            self.runtime.block_on(self.instance.flush());
            self.world.clock.advance(chrono::Duration::days(1));
        }
    }

    fn put(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.send(&Case {
            method,
            path: path.to_owned(),
            headers: vec![("content-type", b"application/json".to_vec())],
            body: body.to_string().into_bytes(),
        })
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.send(&Case {
            method: Method::GET,
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        })
    }

    pub(super) fn send(&self, case: &Case) -> Answer {
        let mut request = Request::builder()
            .method(case.method.clone())
            .uri(&case.path)
            .header("authorization", format!("Bearer {}", self.world.key))
            .body(Body::from(case.body.clone()))
            .unwrap();
        for (name, value) in &case.headers {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                request
                    .headers_mut()
                    .append(HeaderName::from_static(name), value);
            }
        }
        self.runtime.block_on(async {
            let mut service = self.service.clone();
            let Ok(response) = Service::<Request<Body>>::call(&mut service, request).await;
            let header = |name: &str| {
                let value = response.headers().get(name)?;
                Some(value.to_str().unwrap().to_owned())
            };
            let media_type = header("content-type").unwrap_or_default();
            let (status, replayed) = (
                response.status().as_u16(),
                header("idempotent-replayed").is_some(),
            );
            // A live stream has no end.
            let text = if media_type == "text/event-stream" {
                String::new()
            } else {
                let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            Answer {
                status,
                media_type,
                text,
                replayed,
            }
        })
    }

    /// Every operation of the document, except those that look up the host of a webhook.
    pub(super) fn operations(&self) -> Vec<Operation> {
        let paths = self.document["paths"].as_object().unwrap();
        let all = paths.iter().flat_map(|(path, operations)| {
            let operations = operations.as_object().unwrap().iter();
            operations.map(|(method, about)| Operation {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                query: self.query(about),
                examples: self.examples(about),
            })
        });
        all.filter(|it| it.examples.is_empty() || !it.path.starts_with("/v1/webhooks"))
            .collect()
    }

    fn query(&self, about: &Value) -> Vec<(String, Vec<String>)> {
        let parameters = about["parameters"].as_array().into_iter().flatten();
        let in_query = parameters
            .map(|it| self.resolve(it))
            .filter(|it| it["in"] == "query");
        in_query
            .map(|it| {
                let mut words = BTreeSet::new();
                self.words(&it["schema"], &mut words);
                let name = it["name"].as_str().unwrap();
                (name.to_owned(), words.into_iter().collect())
            })
            .collect()
    }

    /// The words of enumerations in a schema.
    fn words(&self, schema: &Value, words: &mut BTreeSet<String>) {
        let schema = self.resolve(schema);
        let all = schema["enum"].as_array().into_iter().flatten();
        words.extend(all.filter_map(Value::as_str).map(str::to_owned));
        if schema["type"] == "boolean" {
            words.extend(["true", "false"].map(str::to_owned));
        }
        for parts in ["oneOf", "anyOf", "allOf"] {
            for part in schema[parts].as_array().into_iter().flatten() {
                self.words(part, words);
            }
        }
        if schema["items"].is_object() {
            self.words(&schema["items"], words);
        }
    }

    fn examples(&self, about: &Value) -> Vec<Value> {
        let content = &about["requestBody"]["content"]["application/json"];
        let schema = self.resolve(&content["schema"]);
        let several = schema["examples"].as_array().into_iter().flatten();
        let one = [&content["example"], &schema["example"]];
        several
            .chain(one.into_iter().filter(|it| !it.is_null()))
            .cloned()
            .collect()
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.document.pointer(&reference[1..]).unwrap(),
            None => value,
        }
    }
}
