//! `tallyman org`, `plan`, `reset-expired` and `verify`: administration through the HTTP API.

use std::str::FromStr;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::service::{Options as ServiceOptions, Service, print, print_json};
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::period::{ResetMode, ResetPeriod};

/// Options of `tallyman org`.
#[derive(Debug, Args)]
pub struct OrgOptions {
    #[command(subcommand)]
    action: OrgAction,
    #[command(flatten)]
    service: ServiceOptions,
}

#[derive(Debug, Subcommand)]
enum OrgAction {
    /// Show settings, limits and usage
    Show {
        /// The organization
        id: OrganizationId,
    },
    /// Change the given settings and keep the others
    Set {
        /// The organization
        id: OrganizationId,
        #[command(flatten)]
        change: OrgChange,
    },
    /// End the current period with its count, and start a new one at 0
    Reset {
        /// The organization
        id: OrganizationId,
        /// Only this meter; can be repeated
        #[arg(long = "meter", value_name = "METER")]
        meters: Vec<MeterId>,
        /// For the audit log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Add units to the current count, or subtract them with a minus
    Adjust {
        /// The organization
        id: OrganizationId,
        /// Number of units, such as -100
        #[arg(allow_negative_numbers = true, value_parser = amount)]
        amount: i64,
        /// The meter
        #[arg(long, value_name = "METER", default_value = MeterId::DEFAULT)]
        meter: MeterId,
        /// For the audit log
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Options of `tallyman org set`.
#[derive(Debug, Args)]
struct OrgChange {
    /// The plan
    #[arg(long, value_name = "PLAN")]
    plan: Option<PlanId>,
    /// What starts a new period: `lazy`, `scheduled` or `manual`
    #[arg(long, value_name = "MODE")]
    reset_mode: Option<ResetMode>,
    /// Length of a period: `hourly`, `daily`, `weekly`, `monthly` or `yearly`
    #[arg(long, value_name = "PERIOD")]
    reset_period: Option<ResetPeriod>,
    /// Day on which periods start
    #[arg(long, value_name = "DAY", value_parser = day)]
    reset_day: Option<u8>,
    /// IANA time zone in which periods start at midnight
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// Override a limit, such as api=5000 or api=unlimited; api=inherited removes the override; can be repeated
    #[arg(long = "limit", value_name = "METER=UNITS")]
    limits: Vec<LimitChange>,
    /// Create the organization if it does not exist
    #[arg(long)]
    create: bool,
}

fn amount(text: &str) -> Result<i64, &'static str> {
    let amount = text.parse();
    amount.map_err(|_| "must be an integer from -10^12 to 10^12, such as -100")
}

fn day(text: &str) -> Result<u8, &'static str> {
    let day = text.parse().ok().filter(|day| *day <= 31);
    day.ok_or("must be an integer from 0 to 31")
}

/// A meter, and its limit as JSON.
#[derive(Debug, Clone)]
struct LimitChange(MeterId, Value);

impl FromStr for LimitChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (meter, units) = text
            .split_once('=')
            .ok_or("must be METER=UNITS, such as api=5000")?;
        let meter = meter.parse().map_err(|rule| format!("the meter {rule}"))?;
        let limit = match units {
            "inherited" => Value::Null,
            "unlimited" => json!({"limit": null}),
            units => {
                let units: u64 = units.parse().map_err(
                    |_| "UNITS must be a number from 0 to 2^53 - 1, unlimited or inherited",
                )?;
                json!({ "limit": units })
            }
        };
        Ok(Self(meter, limit))
    }
}

/// Runs `tallyman org`.
pub(super) async fn org(options: OrgOptions) -> Result<()> {
    let service = options.service.service()?;
    match options.action {
        OrgAction::Show { id } => show(&service, &id).await,
        OrgAction::Set { id, change } => set(&service, &id, &change).await,
        OrgAction::Reset { id, meters, reason } => {
            let mut body = Map::new();
            if !meters.is_empty() {
                body.insert("meters".to_owned(), json!(meters));
            }
            if let Some(reason) = reason {
                body.insert("reason".to_owned(), json!(reason));
            }
            let path = ["organizations", id.as_str(), "reset"];
            let response = post(&service, &path, &body.into()).await?;
            service.show(&response)
        }
        OrgAction::Adjust {
            id,
            amount,
            meter,
            reason,
        } => {
            let body = json!({"meter": meter, "amount": amount, "reason": reason});
            let path = ["organizations", id.as_str(), "adjust"];
            service.show(&post(&service, &path, &body).await?)
        }
    }
}

async fn get(service: &Service, path: &[&str]) -> Result<Value> {
    service.call(Method::GET, path, &[], None).await
}

async fn post(service: &Service, path: &[&str], body: &Value) -> Result<Value> {
    service.call(Method::POST, path, &[], Some(body)).await
}

/// Limits as a JSON object.
fn limits_json(limits: &[LimitChange]) -> Map<String, Value> {
    let limits = limits.iter();
    limits
        .map(|LimitChange(meter, limit)| (meter.to_string(), limit.clone()))
        .collect()
}

async fn show(service: &Service, id: &OrganizationId) -> Result<()> {
    let path = ["organizations", id.as_str()];
    let settings = get(service, &path).await?;
    let path = ["organizations", id.as_str(), "usage"];
    let usage = get(service, &path).await?;
    service.show(&json!({"settings": settings, "usage": usage["meters"]}))
}

async fn set(service: &Service, id: &OrganizationId, change: &OrgChange) -> Result<()> {
    let path = ["organizations", id.as_str()];
    let settings: Map<String, Value> = [
        ("planId", json!(change.plan)),
        ("resetMode", json!(change.reset_mode)),
        ("resetPeriod", json!(change.reset_period)),
        ("resetDay", json!(change.reset_day)),
        ("timeZone", json!(change.time_zone)),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_null())
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let limits = limits_json(&change.limits);
    if settings.is_empty() && limits.is_empty() && !change.create {
        bail!("nothing to change; see tallyman org set --help");
    }
    let mut response = Value::Null;
    if change.create && service.find(&path).await?.is_none() {
        let body = Value::from(settings);
        response = service.call(Method::PUT, &path, &[], Some(&body)).await?;
    } else if !settings.is_empty() {
        let body = Value::from(settings);
        response = service.call(Method::PATCH, &path, &[], Some(&body)).await?;
    }
    if !limits.is_empty() {
        let (path, body) = (["organizations", id.as_str(), "limits"], limits.into());
        response = service.call(Method::PATCH, &path, &[], Some(&body)).await?;
    }
    service.show(&response)
}

/// Options of `tallyman plan`.
#[derive(Debug, Args)]
pub struct PlanOptions {
    #[command(subcommand)]
    action: PlanAction,
    #[command(flatten)]
    service: ServiceOptions,
}

#[derive(Debug, Subcommand)]
enum PlanAction {
    /// List all plans
    List,
    /// Show a plan
    Show {
        /// The plan
        id: PlanId,
    },
    /// Create or replace a plan; takes effect within 2 seconds
    Set {
        /// The plan
        id: PlanId,
        /// Descriptive name
        #[arg(long, value_name = "TEXT")]
        name: String,
        /// A limit, such as api=5000 or api=unlimited; can be repeated
        #[arg(long = "limit", value_name = "METER=UNITS")]
        limits: Vec<LimitChange>,
        /// A feature, such as sso=true, seats=5 or support=email; can be repeated
        #[arg(long = "feature", value_name = "NAME=VALUE")]
        features: Vec<FeatureChange>,
    },
    /// Delete a plan without organizations
    Delete {
        /// The plan
        id: PlanId,
    },
}

/// A feature, and its value.
#[derive(Debug, Clone)]
struct FeatureChange(String, Value);

impl FromStr for FeatureChange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (name, value) = text
            .split_once('=')
            .ok_or("must be NAME=VALUE, such as sso=true")?;
        let value = match serde_json::from_str(value) {
            Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::String(_))) => value,
            _ => json!(value),
        };
        Ok(Self(name.to_owned(), value))
    }
}

/// Runs `tallyman plan`.
pub(super) async fn plan(options: PlanOptions) -> Result<()> {
    let service = options.service.service()?;
    match options.action {
        PlanAction::List => {
            let plans = service.pages(&["plans"], |_| {}).await?;
            service.show_rows(&plans, &["id", "name", "limits", "features"])
        }
        PlanAction::Show { id } => service.show(&get(&service, &["plans", id.as_str()]).await?),
        PlanAction::Set {
            id,
            name,
            limits,
            features,
        } => {
            let limits = limits_json(&limits);
            let features: Map<String, Value> = features
                .into_iter()
                .map(|FeatureChange(name, value)| (name, value))
                .collect();
            let body = json!({"name": name, "limits": limits, "features": features});
            let path = ["plans", id.as_str()];
            let response = service.call(Method::PUT, &path, &[], Some(&body)).await?;
            service.show(&response)
        }
        PlanAction::Delete { id } => {
            let path = ["plans", id.as_str()];
            let response = service.call(Method::DELETE, &path, &[], None).await?;
            service.show(&response)
        }
    }
}

/// Options of `tallyman reset-expired`.
#[derive(Debug, Args)]
pub struct ResetExpiredOptions {
    #[command(flatten)]
    service: ServiceOptions,
}

/// Runs `tallyman reset-expired`.
pub(super) async fn reset_expired(options: ResetExpiredOptions) -> Result<()> {
    let service = options.service.service()?;
    let path = ["reset-expired"];
    let response = service.call(Method::POST, &path, &[], None).await?;
    service.show(&response)
}

/// Options of `tallyman verify`.
#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// Only this organization; default: all
    id: Option<OrganizationId>,
    #[command(flatten)]
    service: ServiceOptions,
}

/// Runs `tallyman verify`; fails if there are differences.
pub(super) async fn verify(options: VerifyOptions) -> Result<()> {
    let service = options.service.service()?;
    let (mut organizations, mut counters) = (0, 0);
    let mut tally = |page: &Value| {
        organizations += page["organizations"].as_u64().unwrap_or_default();
        counters += page["counters"].as_u64().unwrap_or_default();
    };
    let differences = if let Some(id) = &options.id {
        let query = [("organizationId", id.as_str())];
        let page = service.call(Method::GET, &["verify"], &query, None).await?;
        tally(&page);
        page["data"].as_array().cloned().unwrap_or_default()
    } else {
        service.pages(&["verify"], tally).await?
    };
    if service.is_json() {
        let all =
            json!({"data": differences, "organizations": organizations, "counters": counters});
        print_json(&all)?;
    } else if !differences.is_empty() {
        let fields = [
            "organizationId",
            "meter",
            "periodStart",
            "mismatch",
            "expected",
            "found",
        ];
        service.show_rows(&differences, &fields)?;
    }
    if !differences.is_empty() {
        bail!(
            "{} differences in {counters} counters of {organizations} organizations",
            differences.len()
        );
    }
    if !service.is_json() {
        print(&format!(
            "{counters} counters of {organizations} organizations, no difference\n"
        ))?;
    }
    Ok(())
}
