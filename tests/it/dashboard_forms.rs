//! Forms of the dashboard that are refused, or that meet another administrator's change.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{Answer, Browser, Instance, World, field};

const OWN: &str = "/dashboard/organizations/org_1";

/// A form that must be refused: where it is sent, its id, its fields, and the invalid one.
type Case = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);

const OF_ORGANIZATION: [Case; 8] = [
    (
        "/limits",
        "limit-api",
        &[
            ("meter", "api"),
            ("mode", "lasting"),
            ("limit", "many"),
            ("enforcement", "soft"),
            ("warnAt", "80, 90"),
            ("until", "1d"),
        ],
        "limit",
    ),
    (
        "/limits",
        "limit-api",
        &[("meter", "api"), ("mode", "lasting"), ("warnAt", "90, 80")],
        "warnAt",
    ),
    (
        "/limits",
        "limit-api",
        &[
            ("meter", "api"),
            ("mode", "temporary"),
            ("limit", "7"),
            ("until", "at"),
            ("at", "2020-01-01T10:00"),
        ],
        "at",
    ),
    (
        "/limits",
        "add-limit",
        &[
            ("form", "add-limit"),
            ("mode", "lasting"),
            ("meter", "no meter!"),
            ("limit", "5"),
            ("enforcement", "soft"),
        ],
        "meter",
    ),
    (
        "/limits",
        "add-limit",
        &[
            ("form", "add-limit"),
            ("mode", "lasting"),
            ("meter", "api"),
            ("limit", "many"),
        ],
        "limit",
    ),
    (
        "/adjust",
        "adjust",
        &[
            ("meter", "jobs"),
            ("amount", "lots"),
            ("direction", "add"),
            ("reason", "failed calls"),
            ("idempotencyKey", "dashboard-1"),
        ],
        "amount",
    ),
    (
        "/adjust",
        "adjust",
        &[
            ("meter", "jobs"),
            ("amount", "3"),
            ("reason", ""),
            ("idempotencyKey", "dashboard-1"),
        ],
        "reason",
    ),
    ("/plan", "plan", &[("planId", "nothing")], "planId"),
];

const ELSEWHERE: [Case; 8] = [
    (
        "/dashboard/organizations/org_1/reset",
        "reset",
        &[
            ("reason", "a new contract"),
            ("idempotencyKey", "dashboard-1"),
        ],
        "meters",
    ),
    (
        "/dashboard/organizations/org_1/reset",
        "reset",
        &[
            ("reason", "a\0b"),
            ("meters", "jobs"),
            ("idempotencyKey", "dashboard-1"),
        ],
        "reason",
    ),
    (
        "/dashboard/keys",
        "new-key",
        &[
            ("name", ""),
            ("organizationId", "org_1"),
            ("scopes", "read"),
            ("scopes", "refund"),
        ],
        "name",
    ),
    (
        "/dashboard/keys",
        "new-key",
        &[("name", "gateway"), ("expiresAt", "2020-01-01T10:00")],
        "scopes",
    ),
    (
        "/dashboard/webhooks",
        "webhook",
        &[
            ("url", "nonsense"),
            ("organizationId", "org_1"),
            ("events", "usage.reset"),
        ],
        "url",
    ),
    (
        "/dashboard/plans/new",
        "plan",
        &[
            ("id", "pro"),
            ("name", "Pro"),
            ("meter-0", "api"),
            ("limit-0", "5,000"),
            ("enforcement-0", "soft"),
            ("meter-2", "jobs"),
            ("limit-2", "many"),
            ("enforcement-2", "hard"),
            ("feature-1", "sso"),
            ("value-1", "true"),
        ],
        "limit-2",
    ),
    (
        "/dashboard/plans/new",
        "plan",
        &[("id", "pro"), ("meter-0", "api"), ("meter-1", "api")],
        "meter-1",
    ),
    (
        "/dashboard/plans/new",
        "plan",
        &[("id", "free"), ("name", "Free"), ("warnAt-0", "80")],
        "id",
    ),
];

async fn limited(world: &World) -> Instance {
    let service = world.instance().await;
    let limits = json!({"api": {"limit": 10}, "jobs": {"limit": 10}});
    service.limits("org_1", limits).await;
    service.http.put("/v1/plans/free", json!({})).await;
    service
}

/// The tag with this id, and all after it.
fn tag<'a>(page: &'a str, id: &str) -> &'a str {
    let own = format!(" id=\"{id}\"");
    let mut found = page.match_indices(&own).map(|it| it.0);
    let at = found.next().unwrap_or_else(|| panic!("no id {id}: {page}"));
    assert_eq!(found.next(), None, "{id} is there twice");
    &page[page[..at].rfind('<').unwrap()..]
}

/// Whether a form has this value of a field: entered, checked or selected.
fn keeps(form: &str, name: &str, value: &str) -> bool {
    let own = format!(" name=\"{name}\"");
    let mut select = false;
    form.split('<').any(|tag| {
        let attributes = tag.split('>').next().unwrap();
        if tag.starts_with("select") {
            select = attributes.contains(&own);
        }
        let is_own = attributes.contains(&own) || select && tag.starts_with("option");
        let is_chosen = match () {
            () if tag.starts_with("option") => attributes.contains(" selected"),
            () => {
                !attributes.contains("type=\"radio\"") && !attributes.contains("\"checkbox\"")
                    || attributes.contains(" checked")
            }
        };
        let written = attributes.contains(&format!(" value=\"{value}\""))
            || tag.ends_with(&format!(">{value}"));
        is_own && is_chosen && written
    })
}

fn assert_refused(page: &Answer, (path, form, fields, invalid): Case) {
    let text = &page.text;
    assert!(page.status.is_client_error(), "{path}: {}", page.status);
    assert!(text.contains("<title>Error: "), "{path}: {text}");
    let id = format!("{form}:{invalid}");
    assert!(
        text.contains(&format!("<a href=\"#{id}\">")),
        "{path}, {id}: {text}"
    );
    let at = tag(text, &id);
    let described = format!("{id}-e\"");
    assert!(
        at.split('>').next().unwrap().contains(&described),
        "{path}: {at}"
    );
    assert!(text.contains("aria-invalid=\"true\""), "{path}: {text}");
    assert!(tag(text, &format!("{id}-e")).starts_with("<p class=\"err\""));
    let before = &text[..text.len() - tag(text, form).len()];
    let is_in_details = before.matches("<details").count() > before.matches("</details").count();
    let open = before
        .rfind("<details")
        .map(|at| before[at..].starts_with("<details open>"));
    assert!(
        !is_in_details || open == Some(true),
        "{path}: {form} is closed"
    );
    let body = tag(text, form).split("</form>").next().unwrap();
    for (name, value) in fields {
        assert!(
            keeps(body, name, value),
            "{path} lost {name}={value}: {body}"
        );
    }
}

#[tokio::test]
async fn a_refused_form_comes_back_open_as_entered_with_the_message_at_its_field() {
    let world = World::new().await;
    let service = limited(&world).await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let csrf = browser.csrf().await;
    let version = field(&browser.get(OWN).await.text, "version");
    for case in OF_ORGANIZATION.into_iter().chain(ELSEWHERE) {
        let own = [("csrf", csrf.as_str()), ("version", &version)];
        let (path, fields) = (case.0, [&own[..], case.2].concat());
        let path = if path.starts_with("/dashboard") {
            path.to_owned()
        } else {
            format!("{OWN}{path}")
        };
        let page = browser.post(&path, &fields).await;
        assert_refused(&page, case);
    }
    assert_eq!(service.meter("org_1", "api").await["limit"], 10);
}

/// The hidden fields of the form on the page of a conflict.
fn hidden(page: &str) -> Vec<(String, String)> {
    let (_, form) = page
        .split_once("<form class=\"card\"")
        .unwrap_or_else(|| panic!("{page}"));
    let inputs = form.split("<input type=\"hidden\" name=\"").skip(1);
    let pair = |input: &str| {
        let mut parts = input.split('"');
        (
            parts.next().unwrap().to_owned(),
            parts.nth(1).unwrap().to_owned(),
        )
    };
    inputs.map(pair).collect()
}

/// The cells of the rows of the page of a conflict.
fn compared(page: &Answer) -> Vec<Vec<String>> {
    assert_eq!(
        page.status,
        StatusCode::PRECONDITION_FAILED,
        "{}",
        page.text
    );
    rows(&page.text)
}

fn rows(page: &str) -> Vec<Vec<String>> {
    let (_, body) = page
        .split_once("<tbody")
        .unwrap_or_else(|| panic!("{page}"));
    let text = |cell: &str| {
        let (_, text) = cell.split_once('>').unwrap();
        text.replace("<b>", "")
            .replace("</b>", "")
            .split('<')
            .next()
            .unwrap()
            .to_owned()
    };
    let cells = |row: &str| {
        let (head, rest) = row
            .split_once("<th")
            .unwrap()
            .1
            .split_once("</th>")
            .unwrap();
        [head]
            .into_iter()
            .chain(rest.split("<td").skip(1))
            .map(text)
            .collect()
    };
    body.split("<tr").skip(1).map(cells).collect()
}

/// Sends the form of a conflict's page.
async fn apply(browser: &mut Browser, path: &str, page: &Answer) -> Answer {
    let fields = hidden(&page.text);
    let pairs: Vec<(&str, &str)> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    browser.post(path, &pairs).await
}

#[tokio::test]
async fn a_conflict_shows_both_values_and_applies_the_entered_ones_to_the_present_version() {
    let world = World::new().await;
    let service = limited(&world).await;
    service
        .http
        .put("/v1/plans/pro", json!({"name": "Pro"}))
        .await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let csrf = browser.csrf().await;
    let outdated = field(&browser.get(OWN).await.text, "version");
    service
        .limits("org_1", json!({"api": {"limit": 60_000}}))
        .await;

    let path = format!("{OWN}/limits");
    let own = [("csrf", csrf.as_str()), ("version", &outdated)];
    let limit = [
        ("meter", "api"),
        ("mode", "lasting"),
        ("limit", "5,000"),
        ("enforcement", "soft"),
    ];
    let page = browser.post(&path, &[&own[..], &limit].concat()).await;
    let shown = compared(&page);
    assert_eq!(shown[0], ["Limit of api", "5,000", "60,000"]);
    assert_eq!(shown[2], ["Enforcement of api", "soft", "hard"]);
    assert_eq!(service.meter("org_1", "api").await["limit"], 60_000);

    // A third change in between is a conflict again.
    service
        .limits("org_1", json!({"api": {"limit": 70_000}}))
        .await;
    let page = apply(&mut browser, &path, &page).await;
    assert_eq!(compared(&page)[0], ["Limit of api", "5,000", "70,000"]);
    let saved = apply(&mut browser, &path, &page).await;
    assert_eq!(saved.status, StatusCode::SEE_OTHER, "{}", saved.text);
    let meter = service.meter("org_1", "api").await;
    assert_eq!(
        (&meter["limit"], &meter["enforcement"]),
        (&json!(5000), &json!("soft"))
    );

    let path = format!("{OWN}/plan");
    let page = browser
        .post(&path, &[own[0], own[1], ("planId", "pro")])
        .await;
    assert_eq!(rows(&page.text), [["Plan", "pro", "free"]]);
    let saved = apply(&mut browser, &path, &page).await;
    assert_eq!(saved.status, StatusCode::SEE_OTHER, "{}", saved.text);
    assert_eq!(
        service.http.get("/v1/organizations/org_1").await.body["planId"],
        "pro"
    );
}

#[tokio::test]
async fn a_plan_that_changed_meanwhile_is_compared_limit_by_limit() {
    let world = World::new().await;
    let service = limited(&world).await;
    let path = "/dashboard/plans/pro";
    service
        .http
        .put("/v1/plans/pro", json!({"name": "Pro"}))
        .await;
    let mut browser = Browser::signed_in(&service, &world.key).await;
    let form = browser.get(path).await;
    let (csrf, version) = (field(&form.text, "csrf"), field(&form.text, "version"));
    let stored = json!({"limits": {"jobs": {"limit": 7}}, "features": {"sso": true}});
    service.http.put("/v1/plans/pro", stored).await;
    let fields = [
        ("csrf", csrf.as_str()),
        ("version", &version),
        ("id", "pro"),
        ("name", "Pro"),
        ("meter-0", "api"),
        ("limit-0", "50,000"),
        ("enforcement-0", "hard"),
        ("do", "check"),
    ];
    let page = browser.post(path, &fields).await;
    let shown = compared(&page);
    assert_eq!(shown[1], ["Limit of api", "50,000 hard", "–"]);
    assert_eq!(shown[2], ["Limit of jobs", "–", "7 hard"]);
    assert_eq!(shown[3], ["Feature sso", "–", "true"]);
    let saved = apply(&mut browser, path, &page).await;
    assert_eq!(saved.status, StatusCode::SEE_OTHER, "{}", saved.text);
    let plan = service.http.get("/v1/plans/pro").await.body;
    assert_eq!(plan["limits"]["api"]["limit"], 50_000);
}
