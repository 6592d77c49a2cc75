//! The OpenAPI document matches the service: operations, scopes, examples and problems.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use tallyman::config::{API_PATHS, PLUGIN_PATH};

use crate::support::{Answer, Http, Instance, World};

/// The webhook of a populated service.
const WEBHOOK: &str = "wh_0123456789abcdef0123456789abcdef";

/// The path that every scope opens.
const SESSION: &str = "/v1/session";

/// An operation of the document.
struct Operation {
    method: Method,
    path: String,
    about: Value,
}

impl Operation {
    /// The path with its placeholders replaced.
    fn path(&self) -> String {
        let id = match self.path.split('/').nth(2) {
            Some("api-keys") => "0123456789abcdef",
            Some("plans") => "pro",
            Some("webhooks") => WEBHOOK,
            _ => "org_123",
        };
        self.path
            .replace("{id}", id)
            .replace("{feature}", "sso")
            .replace("{delivery}", "evt_01a207e5f2407000a3f0c2d9e8b7a695")
    }

    /// The scope that it requires, if it needs a key.
    fn scope(&self) -> Option<&str> {
        self.about["security"][0]["key"][0].as_str()
    }

    fn parameters(&self) -> impl Iterator<Item = &Value> {
        self.about["parameters"].as_array().into_iter().flatten()
    }
}

/// The served document.
struct Document(Value);

impl Document {
    async fn of(service: &Instance) -> Self {
        let answer = service.http.with_key(None).get("/openapi.json").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/json");
        Self(answer.body)
    }

    fn operations(&self) -> Vec<Operation> {
        let paths = self.0["paths"].as_object().unwrap();
        let operations: Vec<Operation> = paths
            .iter()
            .flat_map(|(path, item)| {
                item.as_object()
                    .unwrap()
                    .iter()
                    .map(|(method, about)| Operation {
                        method: method.to_uppercase().parse().unwrap(),
                        path: path.clone(),
                        about: about.clone(),
                    })
            })
            .collect();
        assert!(operations.len() > 15);
        operations
    }

    /// The value itself, or the target of its `$ref`.
    fn resolve<'a>(&'a self, at: &'a Value) -> &'a Value {
        match at["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').unwrap();
                self.0
                    .pointer(pointer)
                    .unwrap_or_else(|| panic!("{reference} has no target"))
            }
            None => at,
        }
    }

    /// The examples of a body, or else those of its schema.
    fn examples(&self, content: &Value) -> Vec<Value> {
        let schema = self.resolve(&content["schema"]);
        let named = content["examples"].as_object().into_iter().flatten();
        let of_schema = schema["examples"].as_array().into_iter().flatten();
        let own: Vec<Value> = named
            .map(|(_, example)| example["value"].clone())
            .chain(content.get("example").cloned())
            .collect();
        if !own.is_empty() {
            return own;
        }
        of_schema.chain(schema.get("example")).cloned().collect()
    }

    /// The fields of a body in any of its shapes.
    fn fields(&self, schema: &Value) -> BTreeSet<String> {
        let schema = self.resolve(schema);
        let own = schema["properties"].as_object().into_iter().flatten();
        let shapes = schema["oneOf"].as_array().into_iter().flatten();
        own.map(|(name, _)| name.clone())
            .chain(shapes.flat_map(|shape| self.fields(shape)))
            .collect()
    }

    fn allows(&self, schema: &Value, value: &Value) -> bool {
        let schema = json!({"allOf": [schema], "components": self.0["components"]});
        jsonschema::draft202012::is_valid(&schema, value)
    }

    fn assert_valid(&self, schema: &Value, value: &Value) {
        let schema = json!({"allOf": [schema], "components": self.0["components"]});
        let schema = jsonschema::draft202012::new(&schema).unwrap();
        let errors: Vec<String> = schema
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{value:#} is refused: {errors:#?}");
    }

    /// Asserts that the operation documents a response with this status, body and headers.
    fn assert_documented(&self, operation: &Operation, answer: &Answer) {
        let status = answer.status.as_str();
        let response = self.resolve(&operation.about["responses"][status]);
        assert!(
            response.is_object(),
            "{} {} does not document {status}: {}",
            operation.method,
            operation.path,
            answer.text
        );
        let media_type = answer.header("content-type").split(';').next().unwrap();
        let content = &response["content"][media_type];
        if media_type.is_empty() {
            assert!(response["content"].is_null() && answer.text.is_empty());
        } else if matches!(media_type, "application/json" | "application/problem+json") {
            self.assert_valid(&content["schema"], &answer.body);
        } else {
            assert!(content.is_object(), "{} {media_type}", operation.path);
        }
        let documented = response["headers"].as_object().unwrap();
        let documented: BTreeSet<String> =
            documented.keys().map(|name| name.to_lowercase()).collect();
        for name in [
            "x-request-id",
            "ratelimit",
            "retry-after",
            "preference-applied",
            "www-authenticate",
            "etag",
        ] {
            if answer.headers.contains_key(name) {
                assert!(
                    documented.contains(name),
                    "{} {status} has {name}",
                    operation.path
                );
            }
        }
    }
}

/// A service with the resources that the examples name.
async fn populated_service(world: &World) -> (Instance, Document) {
    let service = world.instance().await;
    service
        .settings("org_123", json!({"features": {"sso": true}}))
        .await;
    let plan = json!({"limits": {"api": {"limit": 10000}}});
    assert_eq!(service.http.put("/v1/plans/pro", plan).await.status, 200);
    service.count("org_123", "api", 5).await;
    service.flush().await;
    sqlx::query(
        "insert into webhooks (id, url, secret, created_at)
         values ($1, 'https://example.com/tallyman', decode(repeat('00', 32), 'hex'), now())",
    )
    .bind(WEBHOOK)
    .execute(&world.postgres().await)
    .await
    .unwrap();
    // So that a live stream ends after its first event.
    service.app.state.live.close();
    let document = Document::of(&service).await;
    (service, document)
}

async fn send(http: &Http, operation: &Operation, query: &str, body: Option<Value>) -> Answer {
    let path = format!("{}{query}", operation.path());
    http.send(operation.method.clone(), &path, &[], body).await
}

#[test]
fn a_route_is_registered_with_its_description_or_not_at_all() {
    let source = include_str!("../../src/http/routes/mod.rs");
    assert!(source.contains(".routes(routes!("));
    for around in [".route_service(", ".merge("] {
        assert!(!source.contains(around), "{around}");
    }
    // Files of Swagger UI, which are no operations.
    assert_eq!(source.matches(".route(").count(), 1);
    assert!(source.contains(r#".route("/docs/{file}", get(docs::file))"#));
    // The plugin's operations, whose path is a setting.
    assert_eq!(source.matches(".nest(").count(), 1);
    assert!(source.contains(".nest(plugin_path, plugin_routes())"));
}

#[test]
fn the_plugins_path_cannot_collide_with_those_of_the_api() {
    let document = serde_json::to_value(tallyman::http::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap().keys();
    let begins = paths
        .filter(|path| !path.starts_with(PLUGIN_PATH))
        .map(|path| path.split('/').nth(1).unwrap());
    assert_eq!(begins.collect::<BTreeSet<_>>(), API_PATHS.into());
}

#[tokio::test]
async fn the_document_is_whole() {
    let world = World::new().await;
    let service = world.instance().await;
    let document = Document::of(&service).await;
    assert_eq!(document.0["openapi"], "3.1.0");
    assert_eq!(document.0["info"]["version"], env!("CARGO_PKG_VERSION"));
    let tags = document.0["tags"].as_array().unwrap();
    let tags: BTreeSet<&str> = tags
        .iter()
        .map(|tag| tag["name"].as_str().unwrap())
        .collect();
    let mut ids = BTreeSet::new();
    for operation in document.operations() {
        let Operation { path, about, .. } = &operation;
        assert!(
            ids.insert(about["operationId"].as_str().unwrap().to_owned()),
            "{path}"
        );
        assert!(
            about["summary"].as_str().is_some_and(|it| !it.is_empty()),
            "{path}"
        );
        assert!(tags.contains(about["tags"][0].as_str().unwrap()), "{path}");
        assert_eq!(
            operation.scope().is_some() || path == SESSION,
            (path.starts_with("/v1/") || path.starts_with("/api/auth/") || path == "/metrics")
                && !path.ends_with("/usage-tracking/reset-expired"),
            "{path}"
        );
        for placeholder in path.split('{').skip(1) {
            let name = placeholder.split('}').next().unwrap();
            assert!(
                operation
                    .parameters()
                    .any(|it| it["in"] == "path" && it["name"] == name)
            );
        }
        for response in about["responses"].as_object().unwrap().values() {
            let response = document.resolve(response);
            assert!(
                !response["description"].as_str().unwrap().is_empty(),
                "{path}"
            );
            assert!(response["headers"]["x-request-id"].is_object(), "{path}");
        }
    }
}

#[tokio::test]
async fn an_operation_is_opened_by_the_scope_that_it_names_and_by_no_other_than_admin() {
    let world = World::new().await;
    let (service, document) = populated_service(&world).await;
    let mut keys = Vec::new();
    for scope in ["ingest", "refund", "read", "reset", "provision", "admin"] {
        keys.push((scope, world.key_with(&[scope]).await));
    }
    for operation in document.operations() {
        let path = &operation.path;
        let without = send(&service.http.with_key(None), &operation, "", None).await;
        if path == SESSION {
            assert_eq!(without.status, 401);
            for (_, key) in &keys {
                let http = service.http.with_key(Some(key));
                let answer = send(&http, &operation, "", None).await;
                assert_eq!(answer.status, 200, "{}", answer.text);
                document.assert_documented(&operation, &answer);
            }
            continue;
        }
        let Some(needed) = operation.scope() else {
            // The plugin's secret is in the body, which is missing.
            let plugin = path.ends_with("/usage-tracking/reset-expired");
            assert_eq!(without.status, if plugin { 415 } else { 200 }, "{path}");
            document.assert_documented(&operation, &without);
            continue;
        };
        assert_eq!(without.status, 401, "{path}");
        document.assert_documented(&operation, &without);
        for (scope, key) in &keys {
            let http = service.http.with_key(Some(key));
            let answer = send(&http, &operation, "", None).await;
            let included = *scope == "provision" && ["ingest", "read"].contains(&needed);
            let opened = *scope == needed || included || *scope == "admin";
            assert_eq!(
                answer.status != 403,
                opened,
                "{path} with {scope}: {}",
                answer.text
            );
            document.assert_documented(&operation, &answer);
        }
    }
}

#[tokio::test]
async fn every_example_request_is_accepted_and_answered_as_documented() {
    let world = World::new().await;
    let (service, document) = populated_service(&world).await;
    let (mut bodies, mut queries) = (0, 0);
    for operation in document.operations() {
        let body = &operation.about["requestBody"]["content"]["application/json"];
        if body.is_object() {
            let examples = document.examples(body);
            assert!(!examples.is_empty(), "{}", operation.path);
            for example in examples {
                document.assert_valid(&body["schema"], &example);
                let answer = send(&service.http, &operation, "", Some(example)).await;
                if operation.path.ends_with("/usage-tracking/reset-expired") {
                    // The example has no valid secret.
                    assert_eq!(answer.status, 401);
                    continue;
                }
                assert!(answer.status.is_success(), "{}", answer.text);
                document.assert_documented(&operation, &answer);
                bodies += 1;
            }
        } else if operation.method == Method::GET {
            // The organization is optional with a token, but not with a key.
            let plugin = operation.path.starts_with("/api/auth/");
            let query = if plugin {
                "?organizationId=org_123"
            } else {
                ""
            };
            let answer = send(&service.http, &operation, query, None).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            document.assert_documented(&operation, &answer);
            for parameter in operation.parameters().filter(|it| it["in"] == "query") {
                let schema = document.resolve(&parameter["schema"]);
                let of_schema = ["examples", "enum"]
                    .into_iter()
                    .filter_map(|it| schema[it].as_array());
                for example in of_schema.flatten().chain(parameter.get("example")) {
                    let (name, value) = (&parameter["name"], example.as_str().unwrap());
                    let mut query = format!("?{}={value}", name.as_str().unwrap());
                    if plugin && name != "organizationId" {
                        query.push_str("&organizationId=org_123");
                    }
                    let answer = send(&service.http, &operation, &query, None).await;
                    assert_eq!(answer.status, 200, "{query}: {}", answer.text);
                    document.assert_documented(&operation, &answer);
                    queries += 1;
                }
            }
        }
    }
    assert!(bodies > 12 && queries > 15, "{bodies} and {queries}");
}

#[tokio::test]
async fn null_in_place_of_a_field_is_refused_by_name_unless_the_schema_says_otherwise() {
    let world = World::new().await;
    let (service, document) = populated_service(&world).await;
    let mut refused = 0;
    for operation in document.operations() {
        let body = &operation.about["requestBody"]["content"]["application/json"];
        if !body.is_object() || operation.path.ends_with("/usage-tracking/reset-expired") {
            continue;
        }
        for example in document.examples(body) {
            for field in document.fields(&body["schema"]) {
                let mut body_with_null = example.clone();
                body_with_null[&field] = Value::Null;
                if document.allows(&body["schema"], &body_with_null) {
                    continue;
                }
                let answer = send(&service.http, &operation, "", Some(body_with_null)).await;
                let context = format!("{} {field}: {}", operation.path, answer.text);
                assert_eq!(answer.status, 400, "{context}");
                // The plugin's endpoints have no pointer, but name the field in the message.
                let named = answer.body["errors"][0]["pointer"] == format!("/{field}")
                    || answer.body["error"].to_string().contains(&field);
                assert!(named, "{context}");
                refused += 1;
            }
        }
    }
    assert!(refused > 40, "{refused}");
}

#[tokio::test]
async fn every_example_response_matches_its_schema() {
    let world = World::new().await;
    let service = world.instance().await;
    let document = Document::of(&service).await;
    for operation in document.operations() {
        for (status, response) in operation.about["responses"].as_object().unwrap() {
            let contents = document.resolve(response)["content"].as_object();
            for (media_type, content) in contents.into_iter().flatten() {
                let examples = document.examples(content);
                let shown = !matches!(operation.path.as_str(), "/docs" | "/openapi.json");
                let context = format!("{} {status} {media_type}", operation.path);
                assert!(
                    !shown || !status.starts_with('2') || !examples.is_empty(),
                    "{context}"
                );
                for example in &examples {
                    document.assert_valid(&content["schema"], example);
                    if media_type == "application/problem+json" {
                        assert_eq!(example["status"].to_string(), *status, "{context}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn responses_of_every_kind_are_documented() {
    let world = World::new().await;
    let (service, document) = populated_service(&world).await;
    let operations = document.operations();
    let consume = operations
        .iter()
        .find(|it| it.path == "/v1/consume")
        .unwrap();
    let body = |amount: u64| json!({"organizationId": "org_123", "amount": amount});
    let mut statuses = Vec::new();
    for (preference, amount) in [
        ("return=minimal", 1),
        ("return=representation", 1),
        ("", 5000),
    ] {
        let headers = [("prefer", preference), ("idempotency-key", preference)];
        let headers = if preference.is_empty() {
            &headers[..1]
        } else {
            &headers
        };
        let body = Some(body(amount));
        let answer = service
            .http
            .send(Method::POST, "/v1/consume", headers, body)
            .await;
        document.assert_documented(consume, &answer);
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [204, 200, 429]);
    let refused = service.try_consume("org_123", "api", 5000).await;
    let content = &document.resolve(&consume.about["responses"]["429"])["content"];
    let example = &content["application/problem+json"]["examples"]["limit_exceeded"]["value"];
    for word in [
        "type", "title", "status", "detail", "code", "deniedBy", "allowed",
    ] {
        assert_eq!(refused.body[word], example[word], "{word}");
    }

    for accepted in ["text/csv", "application/x-ndjson"] {
        for operation in operations.iter().filter(|it| it.path.ends_with("/history")) {
            let headers = [("accept", accepted)];
            let path = operation.path();
            let answer = service.http.send(Method::GET, &path, &headers, None).await;
            assert!(answer.header("content-type").starts_with(accepted));
            assert!(answer.text.contains("api"), "{}", answer.text);
            document.assert_documented(operation, &answer);
        }
    }
}

#[tokio::test]
async fn every_problem_of_the_contract_is_in_the_document_and_no_other() {
    let world = World::new().await;
    let service = world.instance().await;
    let document = Document::of(&service).await;
    let contract = include_str!("../../docs/api.md");
    let mut listed = BTreeSet::new();
    for line in contract.lines() {
        if let [_, status, code, _, _, ..] = line.split('|').map(str::trim).collect::<Vec<_>>()[..]
            && status.parse::<u16>().is_ok()
        {
            listed.insert((status.to_owned(), code.trim_matches('`').to_owned()));
        }
    }
    // These belong to no operation: unknown methods and unparsable requests.
    for (status, code) in [
        ("405", "method_not_allowed"),
        ("414", "uri_too_long"),
        ("431", "head_too_large"),
    ] {
        assert!(listed.remove(&(status.to_owned(), code.to_owned())));
    }
    let mut documented = BTreeSet::new();
    for operation in document.operations() {
        for (status, response) in operation.about["responses"].as_object().unwrap() {
            let content = &document.resolve(response)["content"]["application/problem+json"];
            for code in content["examples"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(code, _)| code)
            {
                documented.insert((status.clone(), code.clone()));
            }
        }
    }
    assert_eq!(documented, listed);
}

#[tokio::test]
async fn docs_serve_swagger_ui_without_any_other_origin() {
    let world = World::new().await;
    let service = world.instance().await;
    let client = service.http.with_key(None);
    let page = client.get("/docs").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.text.ends_with("</html>\n"), "{}", page.text);
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';"),
        "{policy}"
    );
    let sources = policy.split("; ").flat_map(|it| it.split(' ').skip(1));
    let known = ["'none'", "'self'", "data:"];
    assert!(sources.clone().all(|it| known.contains(&it)), "{policy}");
    for inline in ["<style", " style=", "<script>", " on", "<base", "url("] {
        assert!(!page.text.contains(inline), "{inline}");
    }
    let links = ["src=\"", "href=\""]
        .iter()
        .flat_map(|attribute| page.text.split(attribute).skip(1))
        .map(|it| it.split('"').next().unwrap());
    let mut kinds = BTreeSet::new();
    for link in links {
        let name = link.strip_prefix("docs/").unwrap();
        assert!(!name.contains(['/', ':']), "{link} has another origin");
        let file = client.get(&format!("/{link}")).await;
        assert_eq!(file.status, 200, "{link}");
        assert!(file.text.len() > 300, "{link}");
        kinds.insert(file.header("content-type").to_owned());
    }
    let expected = ["image/png", "text/css", "text/javascript"];
    assert_eq!(kinds, expected.map(str::to_owned).into());
    let start = client.get("/docs/swagger-initializer.js").await.text;
    for setting in [r#""url": "openapi.json""#, r#""validatorUrl": "none""#] {
        assert!(start.contains(setting), "{start}");
    }
    let unknown = client.get("/docs/nothing.js").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.code(), "not_found");
}
