//! Sends wrong values for every field, parameter and id of every operation in the OpenAPI document. Each refusal must
//! name the field, quote the value and say what is accepted, and no response may be a 5xx.

use jsonschema::Validator;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::support::{Answer, Instance, World};

/// Words of the JSON, number and date-time parsers, which must not leak into details.
const PARSER_WORDS: [&str; 19] = [
    "invalid type",
    "invalid value",
    "invalid length",
    "invalid digit",
    "invalid characters",
    "premature end",
    "expected",
    "untagged",
    "variant",
    "failed to parse",
    "missing field",
    "unknown field",
    "duplicate field",
    "struct ",
    "a map",
    "a sequence",
    " u8",
    " u16",
    " u32",
];

/// Phrases that say what is accepted.
const REMEDIES: [&str; 8] = [
    "must ",
    "known are",
    "leave it out",
    "give it once",
    "give either",
    "write ",
    "at most",
    "reaches beyond",
];

struct Sweep {
    service: Instance,
    /// The id of an existing webhook.
    webhook: String,
    document: Value,
    sent: usize,
    refused: usize,
    violations: Vec<String>,
}

/// An operation of the document.
#[derive(Clone)]
struct Call {
    method: Method,
    path: String,
    about: Value,
}

impl Call {
    /// The path with its placeholders replaced by existing resources.
    fn path(&self, webhook: &str) -> String {
        let id = match self.path.split('/').nth(2) {
            Some("api-keys") => "0123456789abcdef",
            Some("plans") => "pro",
            Some("webhooks") => webhook,
            _ => "org_123",
        };
        self.path
            .replace("{id}", id)
            .replace("{feature}", "sso")
            .replace("{delivery}", "evt_01a207e5f2407000a3f0c2d9e8b7a695")
    }

    fn is_plugin(&self) -> bool {
        self.path.starts_with("/api/auth/")
    }

    fn parameters(&self, place: &str) -> Vec<Value> {
        let all = self.about["parameters"].as_array().into_iter().flatten();
        all.filter(|it| it["in"] == place).cloned().collect()
    }
}

impl Sweep {
    async fn new(world: &World) -> Self {
        let service = world.instance().await;
        let settings = json!({"features": {"sso": true}});
        service.settings("org_123", settings).await;
        service.http.put("/v1/plans/pro", json!({})).await;
        let webhook = json!({"url": "https://example.com/tallyman"});
        let webhook = service.http.post("/v1/webhooks", webhook).await;
        Self {
            service,
            webhook: webhook.body["id"].as_str().unwrap().to_owned(),
            document: serde_json::to_value(tallyman::http::openapi()).unwrap(),
            sent: 0,
            refused: 0,
            violations: Vec::new(),
        }
    }

    fn calls(&self) -> Vec<Call> {
        let paths = self.document["paths"].as_object().unwrap();
        let calls: Vec<Call> = paths
            .iter()
            .flat_map(|(path, item)| {
                item.as_object()
                    .unwrap()
                    .iter()
                    .map(|(method, about)| Call {
                        method: method.to_uppercase().parse().unwrap(),
                        path: path.clone(),
                        about: about.clone(),
                    })
            })
            .collect();
        assert!(calls.len() > 40);
        calls
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').unwrap();
                self.document.pointer(pointer).unwrap()
            }
            None => schema,
        }
    }

    fn validator(&self, schema: &Value) -> Validator {
        let schema = json!({"allOf": [schema], "components": self.document["components"]});
        jsonschema::draft202012::new(&schema).unwrap()
    }

    /// The alternatives of a schema (`oneOf`, `anyOf`, `allOf`).
    fn alternatives<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolve(schema);
        let several = ["oneOf", "anyOf", "allOf"]
            .into_iter()
            .find_map(|it| schema[it].as_array());
        match several {
            Some(several) => several
                .iter()
                .flat_map(|it| self.alternatives(it))
                .collect(),
            None => vec![schema],
        }
    }

    fn example(&self, content: &Value) -> Value {
        let of_schema = |schema: &Value| {
            let listed = schema["examples"].as_array().and_then(|all| all.first());
            listed.or(schema.get("example")).cloned()
        };
        let own = content.get("example").cloned();
        own.or_else(|| of_schema(self.resolve(&content["schema"])))
            .unwrap_or_else(|| panic!("no example: {content}"))
    }

    /// A body for each field, with the JSON pointer to that field.
    fn bodies(&self, schema: &Value, example: &Value, at: &str) -> Vec<(String, Value)> {
        let mut bodies = Vec::new();
        for schema in self.alternatives(schema) {
            let required = schema["required"].as_array();
            let is_required = |name: &String| {
                required.is_some_and(|all| all.iter().any(|it| it == name.as_str()))
            };
            let given = example.as_object().cloned().unwrap_or_default();
            let base: Map<String, Value> = given
                .clone()
                .into_iter()
                .filter(|(name, _)| is_required(name))
                .collect();
            let properties = schema["properties"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            let mut members: Vec<(String, Value)> = properties.into_iter().collect();
            if schema["additionalProperties"].is_object() {
                let name = given.keys().next().map_or("api", String::as_str);
                members.push((name.to_owned(), schema["additionalProperties"].clone()));
            }
            for (name, member) in members {
                let pointer = format!("{at}/{name}");
                let value = given
                    .get(&name)
                    .cloned()
                    .unwrap_or_else(|| self.simple_value(&member));
                let mut body = base.clone();
                body.insert(name.clone(), value.clone());
                bodies.push((pointer, Value::from(body.clone())));
                for (inner, changed) in self.bodies(&member, &value, "") {
                    let mut body = body.clone();
                    body.insert(name.clone(), changed);
                    bodies.push((format!("{at}/{name}{inner}"), body.into()));
                }
            }
            if schema["items"].is_object() {
                let first = example[0].clone();
                let first = if first.is_null() {
                    self.simple_value(&schema["items"])
                } else {
                    first
                };
                bodies.push((format!("{at}/0"), json!([first.clone()])));
                for (inner, changed) in self.bodies(&schema["items"], &first, "") {
                    bodies.push((format!("{at}/0{inner}"), json!([changed])));
                }
            }
        }
        bodies
    }

    /// A value of the type that a schema allows.
    fn simple_value(&self, schema: &Value) -> Value {
        let first = self.alternatives(schema)[0].clone();
        let kind = first["type"].as_str().or(first["type"][0].as_str());
        match kind {
            Some("object") if first["properties"].is_object() => {
                let required = first["required"].as_array().into_iter().flatten();
                let members = required.map(|name| {
                    let name = name.as_str().unwrap();
                    (
                        name.to_owned(),
                        self.simple_value(&first["properties"][name]),
                    )
                });
                Value::from(members.collect::<Map<_, _>>())
            }
            Some("object") => json!({"api": self.simple_value(&first["additionalProperties"])}),
            Some("array") => json!([self.simple_value(&first["items"])]),
            Some("integer" | "number") => json!(1),
            Some("boolean") => json!(true),
            _ if first["format"] == "date-time" => json!("2040-01-01T00:00:00Z"),
            _ => first["examples"][0].clone(),
        }
    }

    async fn send(&mut self, call: &Call, query: &str, body: Option<&Value>) -> Answer {
        let path = format!("{}{query}", call.path(&self.webhook));
        self.sent += 1;
        let http = &self.service.http;
        http.send(call.method.clone(), &path, &[], body.cloned())
            .await
    }

    /// Records a violation, if the response is one. `given` is the quoted value; `wrong`: the response must be a refusal.
    fn expect_refusal(&mut self, call: &Call, answer: &Answer, at: &str, given: &str, wrong: bool) {
        if let Err(why) = self.violation(call, answer, at, given, wrong) {
            let (method, path, text) = (&call.method, &call.path, &answer.text);
            self.violations
                .push(format!("{why}: {method} {path} {at} given {given}: {text}"));
        }
    }

    fn violation(
        &mut self,
        call: &Call,
        answer: &Answer,
        at: &str,
        given: &str,
        wrong: bool,
    ) -> Result<(), &'static str> {
        let status = answer.status.as_u16();
        let item = &answer.body["results"][0];
        let (status, problem, at) = match item["status"].as_u64() {
            // An invalid item of a batch is a problem of that item.
            Some(of_item) if status == 200 => (
                of_item,
                item,
                at.strip_prefix("/items/0").unwrap_or_default(),
            ),
            _ => (u64::from(status), &answer.body, at),
        };
        match status {
            // The key is in the body, and every invalid one gets the same 401.
            401 if call.path.ends_with("/usage-tracking/reset-expired") => return Ok(()),
            200..300 | 404 | 409 | 429 if !wrong => return Ok(()),
            400 | 422 => self.refused += 1,
            _ => return Err("unexpected status"),
        }
        let (pointer, detail) = if call.is_plugin() {
            let error = problem["error"].as_str().unwrap_or_default();
            error.split_once(": ").unwrap_or(("", error))
        } else {
            match problem["code"].as_str() {
                Some("invalid_field") => {}
                Some("malformed_request") => return Err("names no field"),
                _ => return Ok(()),
            }
            let field = &problem["errors"][0];
            let text = |it: &'static str| field[it].as_str().unwrap_or_default();
            (text("pointer"), text("detail"))
        };
        if !pointer.starts_with(at) {
            return Err("names another field");
        }
        if PARSER_WORDS.iter().any(|raw| detail.contains(raw)) {
            return Err("leaks words of a parser");
        }
        if !REMEDIES.iter().any(|remedy| detail.contains(remedy)) {
            return Err("does not say what is accepted");
        }
        let names_itself = ["is missing", "is unknown", "more than once"];
        if pointer.len() == at.len()
            && given != "nothing"
            && !detail.contains(given)
            && !names_itself.iter().any(|it| detail.contains(it))
        {
            return Err("does not quote the value");
        }
        if detail.chars().any(char::is_control) || detail.len() > 400 {
            return Err("has control characters or is too long");
        }
        Ok(())
    }

    fn finish(&self) {
        let (violations, sent) = (self.violations.join("\n"), self.sent);
        assert!(violations.is_empty(), "of {sent} requests:\n{violations}");
    }
}

/// Wrong values, and the start of their quotation in a detail.
fn wrong_values() -> Vec<(Value, &'static str)> {
    vec![
        (json!(true), "true"),
        (json!(7), "7"),
        (json!(null), "null"),
        (json!(-1), "-1"),
        (json!(1.5), "1.5"),
        (json!(1e300), "1e"),
        (json!(u64::MAX), "18446744073709551615"),
        (json!(""), "\"\""),
        (json!("x".repeat(3000)), "xxx"),
        (json!("a\u{0}b"), "\"a\\0b\""),
        (json!("\u{1b}[31m"), "\"\\u{1b}[31m"),
        (json!("nonsense"), "\"nonsense\""),
        (json!("utc"), "\"utc\""),
        (json!("2026-12-31T23:59:60Z"), "\"2026-12-31T23:59:60Z\""),
        (
            json!("-262143-01-01T00:00:00Z"),
            "\"-262143-01-01T00:00:00Z\"",
        ),
        (json!({}), "object"),
        (json!({"nobody knows": 1}), "object"),
        (json!([]), "array"),
        (json!([{}]), "array"),
    ]
}

#[tokio::test]
async fn a_wrong_value_of_any_body_field_is_refused_with_an_actionable_detail() {
    let world = World::new().await;
    let mut sweep = Sweep::new(&world).await;
    let mut fields = 0;
    for call in sweep.calls() {
        let content = &call.about["requestBody"]["content"]["application/json"];
        if !content.is_object() {
            continue;
        }
        let schema = &content["schema"];
        let example = sweep.example(content);
        let validator = sweep.validator(schema);
        for (pointer, body) in sweep.bodies(schema, &example, "") {
            fields += 1;
            for (value, given) in wrong_values() {
                let mut body = body.clone();
                *body.pointer_mut(&pointer).unwrap() = value;
                let wrong = !validator.is_valid(&body);
                let answer = sweep.send(&call, "", Some(&body)).await;
                sweep.expect_refusal(&call, &answer, &pointer, given, wrong);
            }
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let mut without = body.clone();
            if let Value::Object(members) = without.pointer_mut(parent).unwrap() {
                members.remove(name);
                let wrong = !validator.is_valid(&without);
                let answer = sweep.send(&call, "", Some(&without)).await;
                sweep.expect_refusal(&call, &answer, parent, "nothing", wrong);
            }
        }
        for wrong in [json!(null), json!(7), json!("x"), json!([])] {
            let answer = sweep.send(&call, "", Some(&wrong)).await;
            sweep.expect_refusal(&call, &answer, "", "", true);
        }
        let unknown = json!({"nobody knows": 1});
        let answer = sweep.send(&call, "", Some(&unknown)).await;
        sweep.expect_refusal(&call, &answer, "", "", true);
    }
    sweep.finish();
    let refused = sweep.refused;
    assert!(fields > 80 && refused > 800, "{fields} {refused}");
}

#[tokio::test]
async fn a_wrong_value_of_any_query_parameter_is_refused_with_an_actionable_detail() {
    let world = World::new().await;
    let mut sweep = Sweep::new(&world).await;
    let mut parameters = 0;
    for call in sweep.calls() {
        // With a key, the plugin's endpoints require the organization.
        let organization = if call.is_plugin() {
            "&organizationId=org_123"
        } else {
            ""
        };
        for parameter in call.parameters("query") {
            parameters += 1;
            let name = parameter["name"].as_str().unwrap();
            let schema = sweep.resolve(&parameter["schema"]).clone();
            let organization = if name == "organizationId" {
                ""
            } else {
                organization
            };
            for (text, given, wrong) in [
                ("", "\"\"", false),
                ("nonsense", "\"nonsense\"", false),
                ("-1", "\"-1\"", false),
                ("1.5", "\"1.5\"", false),
                ("99999999999999999999", "\"99999999999999999999\"", false),
                (&"x".repeat(3000), "\"xxx", false),
                ("%00", "\"\\0\"", true),
                ("%1B%5B31m", "\"\\u{1b}[31m", false),
                ("2026-12-31T23:59:60Z", "\"2026-12-31T23:59:60Z\"", false),
                (
                    "-262143-01-01T00:00:00Z",
                    "\"-262143-01-01T00:00:00Z\"",
                    false,
                ),
                ("-4800-01-01T00:00:00Z", "\"-4800-01-01T00:00:00Z\"", false),
                (
                    "2026-11-01T00:00:00+02:00",
                    "\"2026-11-01T00:00:00 02:00\"",
                    false,
                ),
                ("Etc/GMT+5", "\"Etc/GMT 5\"", false),
            ] {
                let query = format!("?{name}={text}{organization}");
                let answer = sweep.send(&call, &query, None).await;
                sweep.expect_refusal(&call, &answer, &format!("/{name}"), given, wrong);
                if ["from", "to", "timeZone"].contains(&name) && text.contains('+') {
                    assert!(answer.text.contains("%2B"), "{}", answer.text);
                }
            }
            if schema["type"] != "array" {
                let query = format!("?{name}=a&{name}=b{organization}");
                let answer = sweep.send(&call, &query, None).await;
                sweep.expect_refusal(&call, &answer, &format!("/{name}"), "2 values", true);
            }
        }
        if call.path.starts_with("/v1") || call.is_plugin() {
            let answer = sweep.send(&call, "?nobodyKnows=1", None).await;
            let context = format!("{} {}: {}", call.method, call.path, answer.text);
            let without_key = call.path.ends_with("/usage-tracking/reset-expired");
            assert!(
                answer.status == 400
                    || call.about["requestBody"].is_object() && answer.status == 415
                    || without_key,
                "{context}"
            );
        }
    }
    sweep.finish();
    let refused = sweep.refused;
    assert!(parameters > 50 && refused > 300, "{parameters} {refused}");
}

#[tokio::test]
async fn an_invalid_id_in_a_path_is_refused_with_the_format_of_ids() {
    let world = World::new().await;
    let mut sweep = Sweep::new(&world).await;
    let mut ids = 0;
    for call in sweep.calls() {
        for parameter in call.parameters("path") {
            let name = parameter["name"].as_str().unwrap();
            let any_text = name == "feature";
            ids += 1;
            for (text, given) in [
                ("a%20b", "\"a b\""),
                ("%00", "\"\\0\""),
                ("%1B", "\"\\u{1b}\""),
                (&"x".repeat(300), "\"xxx"),
                ("%FF", "UTF-8"),
            ] {
                let mut call = call.clone();
                call.path = call.path.replace(&format!("{{{name}}}"), text);
                let example = &call.about["requestBody"]["content"]["application/json"];
                let body = example.is_object().then(|| sweep.example(example));
                let answer = sweep.send(&call, "", body.as_ref()).await;
                let wrong = !any_text || text == "%FF";
                sweep.expect_refusal(&call, &answer, &format!("/{name}"), given, wrong);
            }
        }
    }
    sweep.finish();
    assert!(ids > 20, "{ids}");
}

#[tokio::test]
async fn a_bound_key_learns_nothing_from_an_invalid_id() {
    let world = World::new().await;
    let service = world.instance().await;
    let request = json!({"name": "own", "scopes": ["read"], "organizationId": "org_1"});
    let key = service.http.post("/v1/api-keys", request).await.body["key"].clone();
    let bound = service.http.with_key(key.as_str());
    for path in ["a%20b", "org_2"] {
        let answer = bound.get(&format!("/v1/organizations/{path}/usage")).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (403, "forbidden"));
    }
}

#[tokio::test]
async fn a_duplicate_field_or_parameter_is_refused_by_name() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    for (method, path, text, pointer) in [
        (
            Method::POST,
            "/v1/consume",
            r#"{"organizationId":"org_1","meters":{"a":50,"a":1}}"#,
            "/meters/a",
        ),
        (
            Method::POST,
            "/v1/consume",
            r#"{"organizationId":"org_1","require":{"a":50,"\u0061":1}}"#,
            "/require/a",
        ),
        (
            Method::POST,
            "/v1/consume",
            r#"{"organizationId":"org_1","amount":1,"amount":1}"#,
            "/amount",
        ),
        (
            Method::PATCH,
            "/v1/organizations/org_1/limits",
            r#"{"api":{"limit":5},"api":null}"#,
            "/api",
        ),
        (
            Method::PATCH,
            "/v1/organizations/org_1/limits",
            r#"{"api":{"limit":5,"limit":6}}"#,
            "/api/limit",
        ),
        (
            Method::PUT,
            "/v1/organizations/org_1",
            r#"{"features":{"sso":true,"sso":false}}"#,
            "/features/sso",
        ),
        (
            Method::PUT,
            "/v1/organizations/org_1",
            r#"{"metadata":{"a":[{"b/c":1,"b/c":2}]}}"#,
            "/metadata/a/0/b~1c",
        ),
        (
            Method::PUT,
            "/v1/plans/pro",
            r#"{"limits":{"api":{},"api":{"limit":1}}}"#,
            "/limits/api",
        ),
    ] {
        let answer = service.http.send_text(method, path, &[], text).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{text}"
        );
        assert_eq!(
            answer.body["errors"][0]["pointer"], pointer,
            "{}",
            answer.text
        );
    }
    let items = r#"{"items":[{"op":"track","organizationId":"org_1"},
        {"op":"track","organizationId":"org_1","meters":{"a":50,"a":1}}]}"#;
    let answer = service
        .http
        .send_text(Method::POST, "/v1/batch", &[], items)
        .await;
    assert_eq!(
        (&answer.body["counted"], &answer.body["failed"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        answer.body["results"][1]["errors"][0]["pointer"],
        "/meters/a"
    );
    // No other item was counted, and no limit was set.
    assert_eq!(service.current("org_1", "api").await, 1);
    let limits = service.http.get("/v1/organizations/org_1/limits").await;
    assert_eq!(limits.body["limits"]["api"]["limit"], 1000);
}

#[tokio::test]
async fn a_single_valued_header_cannot_be_sent_twice() {
    let world = World::new().await;
    let service = world.instance().await;
    let bearer = format!("Bearer {}", world.key);
    let body = || Some(json!({"organizationId": "org_1"}));
    for headers in [
        [("idempotency-key", "a"), ("idempotency-key", "b")],
        [("idempotency-key", "a"), ("idempotency-key", "a")],
        [
            ("content-type", "application/json"),
            ("content-type", "application/json"),
        ],
        [("authorization", &bearer), ("authorization", &bearer)],
    ] {
        let name = headers[0].0;
        let http = service.http.with_key(
            Some(&world.key)
                .filter(|_| name != "authorization")
                .map(String::as_str),
        );
        let answer = http.send(Method::POST, "/v1/track", &headers, body()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "malformed_request"),
            "{name}"
        );
        assert!(
            answer.body["detail"].as_str().unwrap().contains(name),
            "{}",
            answer.text
        );
    }
    assert_eq!(
        service
            .http
            .get("/v1/organizations/org_1/usage")
            .await
            .status,
        404
    );
    // A list-valued header may be repeated.
    let headers = [("prefer", "wait=1"), ("prefer", "return=minimal")];
    let answer = service
        .http
        .send(Method::POST, "/v1/track", &headers, body())
        .await;
    assert_eq!(answer.status, 204);
}

#[tokio::test]
async fn a_body_with_a_content_encoding_is_refused() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1"});
    for path in ["/v1/track", "/v1/batch", "/v1/webhooks"] {
        for coding in ["gzip", "br", "identity, gzip", "x"] {
            let headers = [("content-encoding", coding)];
            let answer = service
                .http
                .send(Method::POST, path, &headers, Some(body.clone()))
                .await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (415, "unsupported_media_type")
            );
            assert!(
                answer.body["detail"]
                    .as_str()
                    .unwrap()
                    .contains("Content-Encoding")
            );
        }
    }
    let headers = [("content-encoding", "Identity")];
    let answer = service
        .http
        .send(Method::POST, "/v1/track", &headers, Some(body))
        .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn the_plugins_endpoints_refuse_query_parameters_that_nobody_knows() {
    let world = World::new().await;
    let service = world.instance().await;
    let base = "/api/auth/usage-tracking";
    for (path, body) in [
        ("reset", json!({"organizationId": "org_1"})),
        (
            "update-limits",
            json!({"organizationId": "org_1", "apiLimit": 5}),
        ),
        ("reset-expired", json!({"apiKey": world.key})),
    ] {
        let answer = service
            .http
            .post(&format!("{base}/{path}?dryRun=true"), body)
            .await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(
            answer.body["error"].as_str().unwrap().contains("dryRun"),
            "{}",
            answer.text
        );
    }
    assert_eq!(
        service.http.get("/v1/organizations/org_1").await.status,
        404
    );
}

#[tokio::test]
async fn an_instant_outside_the_supported_years_is_refused_everywhere() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    for at in [
        "2040-12-31T23:59:60Z",
        "9999-12-31T23:59:60Z",
        "9999-12-31T23:59:59.9995Z",
        "0000-01-01T00:00:00Z",
    ] {
        for (method, path, body, pointer) in [
            (
                Method::PUT,
                "/v1/organizations/org_1",
                json!({"anchor": at}),
                "/anchor",
            ),
            (
                Method::PATCH,
                "/v1/organizations/org_1",
                json!({"anchor": at}),
                "/anchor",
            ),
            (
                Method::PATCH,
                "/v1/organizations/org_1/limits",
                json!({"api": {"temporary": {"limit": 1, "until": at}}}),
                "/api/temporary/until",
            ),
            (
                Method::POST,
                "/v1/api-keys",
                json!({"name": "a", "scopes": ["read"], "expiresAt": at}),
                "/expiresAt",
            ),
            (
                Method::POST,
                "/v1/track",
                json!({"organizationId": "org_1", "timestamp": at}),
                "/timestamp",
            ),
        ] {
            let answer = service.http.send(method, path, &[], Some(body)).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (400, "invalid_field"),
                "{path} {at}"
            );
            assert_eq!(answer.body["errors"][0]["pointer"], pointer);
        }
        for list in ["events", "audit", "history", "organizations/org_1/history"] {
            for name in ["from", "to"] {
                let answer = service.http.get(&format!("/v1/{list}?{name}={at}")).await;
                assert_eq!(
                    (answer.status.as_u16(), answer.code()),
                    (400, "invalid_field"),
                    "{list} {at}"
                );
            }
        }
    }
    for at in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z"] {
        for list in ["events", "audit", "history", "organizations/org_1/history"] {
            for name in ["from", "to"] {
                let answer = service.http.get(&format!("/v1/{list}?{name}={at}")).await;
                assert_eq!(answer.status, 200, "{list} {name} {at}: {}", answer.text);
            }
        }
    }
}
