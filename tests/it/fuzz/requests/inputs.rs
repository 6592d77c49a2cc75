//! Random requests: examples of the document with random changes, and whatever else a client may send.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::Union;
use serde_json::{Map, Value, json};

use super::api::{Api, Case, ORGANIZATIONS, Operation};
use crate::fuzz::ids::texts;

/// What requests consist of.
#[derive(Clone)]
pub(super) struct Inputs {
    /// Names of members, and words of enumerations.
    words: BoxedStrategy<String>,
    /// Cursors that the service has returned, by the path of their list.
    cursors: BTreeMap<String, String>,
    values: BoxedStrategy<Value>,
}

/// A change of an example.
#[derive(Debug, Clone)]
enum Edit {
    Replace(Value),
    Remove,
    Add(String, Value),
}

impl Inputs {
    pub(super) fn new(api: &Api) -> Self {
        let mut words = BTreeSet::new();
        collect_words(&api.document["components"], &mut words);
        let words = select(words.into_iter().collect::<Vec<_>>()).boxed();
        Self {
            values: values(&words),
            words,
            cursors: cursors(api),
        }
    }

    /// Requests to an operation.
    pub(super) fn of(&self, operation: Operation) -> impl Strategy<Value = Case> + use<> {
        let path = self.path(&operation);
        let body = if operation.examples.is_empty() {
            prop_oneof![8 => Just(Vec::new()), 1 => vec(any::<u8>(), 0..20)].boxed()
        } else {
            self.body(&operation)
        };
        (path, headers(), body).prop_map(move |(path, headers, body)| Case {
            method: operation.method.clone(),
            path,
            headers,
            body,
        })
    }

    fn path(&self, operation: &Operation) -> impl Strategy<Value = String> + use<> {
        let template = operation.path.clone();
        let ids = prop_oneof![
            16 => select(ORGANIZATIONS.to_vec()).prop_map(str::to_owned),
            2 => Just("free".to_owned()),
            1 => self.words.clone(),
            1 => texts(),
        ];
        let any_name = prop_oneof![self.words.clone(), texts()];
        let mut parameters = vec![(1, (any_name, self.any_parameter()).boxed())];
        for (name, words) in &operation.query {
            let value = self.parameter(&operation.path, name, words);
            parameters.push((8, (Just(name.clone()), value).boxed()));
        }
        let parameters = vec(Union::new_weighted(parameters), 0..4);
        let query = if operation.query.is_empty() {
            prop_oneof![16 => Just(Vec::new()), 1 => parameters].boxed()
        } else {
            parameters.boxed()
        };
        (vec(ids, 2), query).prop_map(move |(ids, query)| {
            let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let mut path = String::new();
            for segment in template.split('/').skip(1) {
                let segment = match segment {
                    "{id}" => encode(&ids[0]),
                    it if it.starts_with('{') => encode(&ids[1]),
                    it => it.to_owned(),
                };
                let _ = write!(path, "/{segment}");
            }
            for (number, (name, value)) in query.iter().enumerate() {
                let separator = if number == 0 { '?' } else { '&' };
                let _ = write!(path, "{separator}{}={}", encode(name), encode(value));
            }
            path
        })
    }

    /// The value of a parameter, mostly of its kind.
    fn parameter(&self, path: &str, name: &str, words: &[String]) -> BoxedStrategy<String> {
        let texts_of = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|it| (*it).to_owned()).collect();
            select(texts).boxed()
        };
        let fit = match name {
            "cursor" => match self.cursors.get(path) {
                Some(cursor) => Just(cursor.clone()).boxed(),
                None => texts().boxed(),
            },
            "from" | "to" => instants().boxed(),
            "organizationId" => texts_of(&ORGANIZATIONS),
            "meter" => texts_of(&["api", "tokens"]),
            "timeZone" => texts_of(&["UTC", "Europe/Berlin", "Asia/Kolkata", "Pacific/Apia"]),
            "pageSize" | "limit" | "minPercentage" => {
                (0..250_u32).prop_map(|it| it.to_string()).boxed()
            }
            _ if !words.is_empty() => select(words.to_vec()).boxed(),
            _ => texts().boxed(),
        };
        prop_oneof![6 => fit, 1 => self.any_parameter()].boxed()
    }

    fn any_parameter(&self) -> impl Strategy<Value = String> + use<> {
        let cursors: Vec<String> = self.cursors.values().cloned().collect();
        let cursors = select(cursors);
        let damaged =
            (cursors.clone(), any::<Index>(), texts()).prop_map(|(mut cursor, at, text)| {
                let starts: Vec<usize> = cursor.char_indices().map(|(at, _)| at).collect();
                let at = if starts.is_empty() {
                    0
                } else {
                    *at.get(&starts)
                };
                cursor.replace_range(at.., &text);
                cursor
            });
        prop_oneof![
            1 => cursors,
            4 => damaged,
            2 => self.words.clone(),
            2 => any::<i64>().prop_map(|it| it.to_string()),
            1 => instants(),
            2 => texts(),
        ]
    }

    fn body(&self, operation: &Operation) -> BoxedStrategy<Vec<u8>> {
        let edit = prop_oneof![
            4 => self.values.clone().prop_map(Edit::Replace),
            1 => Just(Edit::Remove),
            2 => (self.words.clone(), self.values.clone()).prop_map(|(name, it)| Edit::Add(name, it)),
        ];
        let edited = (
            select(operation.examples.clone()),
            vec((any::<Index>(), edit), 0..4),
        );
        let edited = edited.prop_map(|(mut body, edits)| {
            for (at, edit) in edits {
                apply(&mut body, at, edit);
            }
            body
        });
        let json = prop_oneof![16 => edited, 1 => self.values.clone()];
        let text = json.prop_map(|json| json.to_string().into_bytes());
        let damage = vec((any::<Index>(), any::<u8>()), 1..4);
        let damaged = (text.clone(), damage).prop_map(|(mut text, damage)| {
            for (at, byte) in damage {
                let at = at.index(text.len());
                text[at] = byte;
            }
            text
        });
        prop_oneof![16 => text, 2 => damaged, 1 => vec(any::<u8>(), 0..40)].boxed()
    }
}

/// Changes one of the values inside, or the whole.
fn apply(body: &mut Value, at: Index, edit: Edit) {
    let mut pointers = Vec::new();
    collect_pointers(body, "", &mut pointers);
    let pointer = at.get(&pointers).clone();
    match edit {
        Edit::Replace(value) => *body.pointer_mut(&pointer).unwrap() = value,
        Edit::Remove => {
            let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
            if let Some(Value::Object(members)) = body.pointer_mut(parent) {
                members.remove(name);
            }
        }
        Edit::Add(name, value) => {
            if let Some(Value::Object(members)) = body.pointer_mut(&pointer) {
                members.insert(name, value);
            }
        }
    }
}

fn collect_pointers(value: &Value, at: &str, pointers: &mut Vec<String>) {
    pointers.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect_pointers(value, &format!("{at}/{name}"), pointers);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect_pointers(value, &format!("{at}/{index}"), pointers);
            }
        }
        _ => {}
    }
}

/// Names of properties, and words of enumerations.
fn collect_words(schema: &Value, words: &mut BTreeSet<String>) {
    match schema {
        Value::Object(members) => {
            for (name, value) in members {
                if name == "properties" {
                    words.extend(value.as_object().into_iter().flat_map(Map::keys).cloned());
                }
                if name == "enum" {
                    let all = value.as_array().into_iter().flatten();
                    words.extend(all.filter_map(Value::as_str).map(str::to_owned));
                }
                collect_words(value, words);
            }
        }
        Value::Array(items) => items.iter().for_each(|it| collect_words(it, words)),
        _ => {}
    }
}

/// The cursor behind the first item of each list that has more.
fn cursors(api: &Api) -> BTreeMap<String, String> {
    let lists = api.operations().into_iter();
    let lists = lists.filter(|it| it.query.iter().any(|(name, _)| name == "cursor"));
    let found: BTreeMap<String, String> = lists
        .filter_map(|it| {
            let path = it.path.replace("{id}", ORGANIZATIONS[0]);
            let page = api.get(&format!("{path}?pageSize=1")).text;
            let page: Value = serde_json::from_str(&page).ok()?;
            Some((it.path, page["nextCursor"].as_str()?.to_owned()))
        })
        .collect();
    assert!(found.len() >= 5, "{found:?}");
    found
}

fn instants() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        2 => "20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z",
        6 => "2031-03-1[0-9]T[01][0-9]:00:00(Z|\\.123Z|\\+05:30)",
        1 => "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,12})?(Z|[+-][0-9]{2}:[0-9]{2})",
        1 => "(0000|0001|9999|\\+10000)-(01-01|12-31)T(00:00:00|23:59:60)(Z|[+-]23:59)",
    ]
}

fn values(words: &BoxedStrategy<String>) -> BoxedStrategy<Value> {
    let number = prop_oneof![
        4 => (-2..2000_i64).prop_map(|it| json!(it)),
        1 => any::<i64>().prop_map(|it| json!(it)),
        1 => any::<u64>().prop_map(|it| json!(it)),
        1 => any::<f64>().prop_map(|it| json!(it)),
        1 => select(vec![json!(9_007_199_254_740_991_u64), json!(1_000_000_000_000_u64), json!(1e15), json!(1e300)]),
    ];
    let text = prop_oneof![
        4 => words.clone(),
        2 => texts(),
        2 => instants(),
        1 => select(vec!["org_123", "Europe/Berlin", "UTC", "api", "tokens", "free", "daily", "manual"])
            .prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::Bool),
        4 => number,
        4 => text.prop_map(Value::String),
    ];
    let words = words.clone();
    leaf.prop_recursive(3, 24, 6, move |inner| {
        let names = prop_oneof![4 => words.clone(), 1 => texts(), 2 => Just("api".to_owned())];
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::Array),
            vec((names, inner), 0..6).prop_map(|members| members.into_iter().collect()),
        ]
    })
    .boxed()
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, Vec<u8>)>> + Clone {
    let any_bytes = vec(any::<u8>(), 0..20);
    let texts_of =
        |texts: &[&'static str]| select(texts.to_vec()).prop_map(|text| text.as_bytes().to_vec());
    let content_type = prop_oneof![
        24 => texts_of(&["application/json"]),
        1 => texts_of(&["application/x-ndjson", "application/json; charset=utf-8", "text/plain", ""]),
    ];
    let header = prop_oneof![
        2 => ("[ -~]{0,40}").prop_map(|key| ("idempotency-key", key.into_bytes())),
        1 => any_bytes.clone().prop_map(|key| ("idempotency-key", key)),
        2 => texts_of(&["return=minimal", "wait=5", "wait=0", "wait=99999999999999999999", ",;="])
            .prop_map(|it| ("prefer", it)),
        2 => texts_of(&["*", "\"1\"", "\"17\", \"18\"", "W/\"1\"", "\"", "\"99999999999999999999\""])
            .prop_map(|it| ("if-match", it)),
        1 => texts_of(&["*", "\"1\""]).prop_map(|it| ("if-none-match", it)),
        1 => any_bytes.prop_map(|it| ("x-request-id", it)),
        1 => texts_of(&["gzip", "identity"]).prop_map(|it| ("content-encoding", it)),
    ];
    (content_type, option::weighted(0.25, vec(header, 1..3))).prop_map(|(content_type, more)| {
        let mut headers = vec![("content-type", content_type)];
        headers.extend(more.into_iter().flatten());
        headers
    })
}
