//! What calls that count take: one meter or several, and the conversion to a request to the use case.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema};
use utoipa::openapi::{Object, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::auth::{Caller, OrganizationParam};
use super::problem::Error;
use crate::domain::decision::{Demand, Operation};
use crate::domain::ids::{ByMeter, IdempotencyKey, METERS_MAX, MeterId, OrganizationId};
use crate::domain::input::{Instant, not_null, optional};
use crate::domain::quantity::Amount;
use crate::redis::IdempotencyUse;
use crate::usage::Request;

/// The fields of track, consume, check and refund; each operation refuses those that it does not use.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Charges {
    /// An unknown organization starts on the default plan.
    #[schema(value_type = OrganizationId)]
    pub(super) organization_id: OrganizationParam,
    /// The meter; `api` by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub(super) meter: Option<MeterId>,
    /// The number of units; 1 by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub(super) amount: Option<Amount>,
    /// Units by meter: charges all of them, or none.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    pub(super) meters: Option<ByMeter<Amount>>,
    /// Units by meter that must be available on top, and are not charged.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    pub(super) require: Option<ByMeter<Amount>>,
    /// When the event happened: at most 48 hours ago (a setting), and 5 minutes ahead. It counts in the hour and the
    /// period of this instant.
    #[serde(default, deserialize_with = "optional::<Instant, _>")]
    #[schema(nullable = false)]
    pub(super) timestamp: Option<DateTime<Utc>>,
}

impl Charges {
    /// The request to the use case, if the caller has access to the organization.
    pub(super) fn into_request(
        self,
        caller: &Caller,
        kind: Operation,
        key: Option<IdempotencyKey>,
    ) -> Result<Request, Error> {
        let organization = caller.authorize(&self.organization_id)?;
        self.refuse_unused_fields(kind)?;
        let timestamp = self.timestamp.map(|at| at.trunc_subsecs(3));
        let demands = self.demands()?;
        let idempotency = key.map(|key| {
            IdempotencyUse::new(key, &payload(kind, &organization, &demands, timestamp))
        });
        Ok(Request {
            organization,
            kind,
            demands,
            timestamp,
            idempotency,
            times: 1,
        })
    }

    /// A field that would have no effect is refused, so that nobody relies on it.
    fn refuse_unused_fields(&self, kind: Operation) -> Result<(), Error> {
        let (may_require, may_date) = match kind {
            Operation::Track => (false, true),
            Operation::Consume | Operation::Check => (true, false),
            Operation::Refund => (false, false),
        };
        if self.require.is_some() && !may_require {
            let detail = "is for consume and check alone; leave it out";
            return Err(invalid("/require", detail));
        }
        if self.timestamp.is_some() && !may_date {
            return Err(invalid("/timestamp", "is for track alone; leave it out"));
        }
        Ok(())
    }

    /// The units of each meter: first the charged ones, then those that are only required.
    fn demands(self) -> Result<Vec<(MeterId, Demand)>, Error> {
        let charge = |amount: Amount| Demand {
            amount: amount.get(),
            need: amount.get(),
        };
        let mut demands: Vec<(MeterId, Demand)> = match self.meters {
            Some(_) if self.meter.is_some() || self.amount.is_some() => {
                let detail = "takes the place of meter and amount; give either, not both";
                return Err(invalid("/meters", detail));
            }
            Some(ByMeter(meters)) if meters.is_empty() => {
                let detail = "must name at least one meter; got an empty object";
                return Err(invalid("/meters", detail));
            }
            Some(ByMeter(meters)) => {
                let meters = meters.into_iter();
                meters.map(|(meter, it)| (meter, charge(it))).collect()
            }
            None => {
                let amount = self.amount.unwrap_or(Amount::ONE);
                vec![(self.meter.unwrap_or_default(), charge(amount))]
            }
        };
        if let Some(ByMeter(required)) = self.require {
            let mut by_meter: BTreeMap<MeterId, Demand> = demands.into_iter().collect();
            for (meter, amount) in required {
                let demand = by_meter
                    .entry(meter)
                    .or_insert(Demand { amount: 0, need: 0 });
                demand.need = demand.need.saturating_add(amount.get());
            }
            demands = by_meter.into_iter().collect();
        }
        if demands.len() > METERS_MAX {
            let detail = format!(
                "must name at most {METERS_MAX} meters, as many as an organization may have; got {}",
                demands.len()
            );
            return Err(invalid("/meters", detail));
        }
        Ok(demands)
    }
}

fn invalid(pointer: &str, detail: impl Into<String>) -> Error {
    Error::InvalidField {
        pointer: pointer.to_owned(),
        detail: detail.into(),
    }
}

/// What a retry must have in common with the first request, however either is spelled. Stored as a fingerprint.
fn payload(
    kind: Operation,
    organization: &OrganizationId,
    demands: &[(MeterId, Demand)],
    timestamp: Option<DateTime<Utc>>,
) -> String {
    let mut text = format!("{kind:?} {organization}");
    for (meter, demand) in demands {
        let _ = write!(text, " {meter} {} {}", demand.amount, demand.need);
    }
    if let Some(at) = timestamp {
        let _ = write!(text, " @{}", at.timestamp_millis());
    }
    text
}

macro_rules! bodies {
    ($($name:ident, $description:literal, $own:expr, [$($example:tt),+];)+) => {$(
        #[doc = concat!("The part of [`Charges`] that is a ", stringify!($name), ", for the OpenAPI document.")]
        pub(super) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                body($description, $own, [$(json!($example)),+])
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                Charges::schemas(schemas);
            }
        }
    )+};
}

bodies! {
    TrackBody, "What to track.", Some("timestamp"), [
        {"organizationId": "org_123"},
        {"organizationId": "org_123", "meter": "tokens", "amount": 1200},
        {"organizationId": "org_123", "meters": {"api": 1, "tokens": 1200}}
    ];
    ConsumeBody, "What to consume.", Some("require"), [
        {"organizationId": "org_123", "amount": 2},
        {"organizationId": "org_123", "meters": {"api": 1, "tokens": 1200}},
        {"organizationId": "org_123", "require": {"tokens": 1}}
    ];
    RefundBody, "What to refund.", None, [
        {"organizationId": "org_123", "amount": 2},
        {"organizationId": "org_123", "meters": {"api": 1, "tokens": 1200}}
    ];
}

/// Either of two objects: one meter or several, each with the operation's own field.
fn body<const N: usize>(
    description: &str,
    own: Option<&str>,
    examples: [Value; N],
) -> RefOr<Schema> {
    let all = match Charges::schema() {
        RefOr::T(Schema::Object(all)) => all,
        _ => Object::new(),
    };
    let object = |title: &str, required: &[&str], optional: &[&str]| {
        let mut object = ObjectBuilder::new()
            .title(Some(title))
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        for name in required.iter().chain(optional).copied().chain(own) {
            if let Some(field) = all.properties.get(name) {
                let mut field = field.clone();
                if required.contains(&name) {
                    object = object.required(name);
                    if let RefOr::T(Schema::Object(map)) = &mut field {
                        map.min_properties = Some(1);
                        map.max_properties = Some(METERS_MAX);
                    }
                }
                object = object.property(name, field);
            }
        }
        object
    };
    OneOfBuilder::new()
        .description(Some(description))
        .item(object(
            "One meter",
            &["organizationId"],
            &["meter", "amount"],
        ))
        .item(object("Several meters", &["organizationId", "meters"], &[]))
        .examples(examples)
        .into()
}
