//! The list of organizations: its filters and its rows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Deserialize;

use super::types::Listed;
use crate::dashboard::api::encode;
use crate::dashboard::format::{
    Bar, Mark, TimeText, bar, compact, mark, percent, shortened, time_text,
};

/// How many organizations a page of the list has.
const PAGE_SIZE: usize = 25;

/// The filters of the list.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Filters {
    pub(super) search: String,
    pub(super) plan: String,
    pub(super) state: String,
    pub(super) sort: String,
    pub(super) cursor: String,
}

impl Filters {
    /// The path of the list in the API.
    pub(super) fn path(&self) -> String {
        let mut path = format!(
            "/v1/organizations?pageSize={PAGE_SIZE}&view=brief&sort={}",
            self.order()
        );
        for (name, value) in [
            ("search", &self.search),
            ("planId", &self.plan),
            ("cursor", &self.cursor),
        ] {
            if !value.is_empty() {
                path = format!("{path}&{name}={}", encode(value));
            }
        }
        match self.state.as_str() {
            "" => path,
            "near" => format!("{path}&minPercentage=95"),
            state => format!("{path}&state={}", encode(state)),
        }
    }

    pub(super) fn order(&self) -> &'static str {
        match self.sort.as_str() {
            "id" => "id",
            "-id" => "-id",
            "percentage" => "percentage",
            "current" => "current",
            "-current" => "-current",
            _ => "-percentage",
        }
    }

    /// The query of this page with another value of one filter, on the first page.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        let own = [
            ("search", self.search.as_str()),
            ("plan", &self.plan),
            ("state", &self.state),
            ("sort", &self.sort),
        ];
        let pairs = own
            .into_iter()
            .map(|(key, own)| (key, if key == name { value } else { own }));
        let extra = (name == "cursor").then_some((name, value));
        let pairs = pairs.chain(extra).filter(|(_, value)| !value.is_empty());
        let pairs: Vec<String> = pairs
            .map(|(key, value)| format!("{key}={}", encode(value)))
            .collect();
        format!("/dashboard?{}", pairs.join("&"))
    }

    /// The page of the organization whose id was searched for.
    pub(super) fn named(&self) -> Option<String> {
        let id = Some(self.search.trim()).filter(|id| !id.is_empty())?;
        Some(page_path(id))
    }

    pub(super) fn is_empty(&self) -> bool {
        [&self.search, &self.plan, &self.state, &self.cursor]
            .iter()
            .all(|it| it.is_empty())
    }
}

/// A row of the list, as it is written.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) mark: Mark,
    pub(super) meter: String,
    pub(super) percent: String,
    pub(super) bar: Option<Bar>,
    pub(super) used: String,
    pub(super) used_exactly: u64,
    pub(super) limit: String,
    pub(super) resets: Option<TimeText>,
    pub(super) plan: String,
}

impl Row {
    pub(super) fn new(
        listed: &Listed,
        plans: &BTreeMap<String, String>,
        now: DateTime<Utc>,
    ) -> Self {
        let meter = listed.fullest.as_ref();
        let (used, limit) = meter.map_or((listed.current, None), |it| (it.current, it.limit));
        let mark = if listed.period_over {
            Mark {
                class: "",
                icon: "i-clock",
                label: "Period over",
            }
        } else {
            let is_hard = meter.is_none_or(|it| it.enforcement == "hard");
            mark(used, limit, is_hard, listed.state != "ok")
        };
        Self {
            id: listed.organization_id.clone(),
            name: listed
                .name
                .clone()
                .filter(|name| *name != listed.organization_id),
            mark,
            meter: meter.map_or("api".to_owned(), |it| it.meter.clone()),
            percent: limit.map_or("–".to_owned(), |limit| percent(used, limit)),
            bar: limit.filter(|it| *it > 0).map(|limit| bar(used, limit)),
            used: compact(used),
            used_exactly: used,
            limit: limit.map_or("no limit".to_owned(), compact),
            resets: meter
                .and_then(|it| it.reset_date)
                .map(|at| time_text(at, now, Tz::UTC)),
            plan: plans
                .get(&listed.plan_id)
                .unwrap_or(&listed.plan_id)
                .clone(),
        }
    }

    pub(super) fn shortened(&self) -> Option<(&str, &str, &str)> {
        shortened(&self.id)
    }

    pub(super) fn path(&self) -> String {
        page_path(&self.id)
    }
}

/// The page of an organization.
fn page_path(id: &str) -> String {
    format!("/dashboard/organizations/{}", encode(id))
}
