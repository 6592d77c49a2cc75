//! The domain's ids, words and counts as SQL types, and what rows and statements share.
//!
//! A row is decoded into the domain's types directly; a value that they refuse is a decode error that names the column.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;

use chrono_tz::Tz;
use serde::de::DeserializeOwned;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgBindIterExt as _, PgHasArrayType, PgRow, PgTypeInfo,
    PgValueRef,
};
use sqlx::query::{Query, QueryAs};
use sqlx::types::Json;
use sqlx::{Decode, Encode, FromRow, Postgres, Row as _, Type};

use crate::domain::api_key::Scope;
use crate::domain::calendar::{InvalidCalendar, parse_time_zone};
use crate::domain::counter::{AppliedAdjustment, CounterId};
use crate::domain::event::EventType;
use crate::domain::ids::{
    ApiKeyId, ApiKeyName, EventId, IdempotencyKey, MeterId, OrganizationId, PlanId, PlanName,
    WebhookId,
};
use crate::domain::limit::{Enforcement, OnOutage};
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::quantity::Count;
use crate::domain::threshold::Notified;
use crate::domain::webhook::{DeliveryStatus, DisabledReason};

/// Implements `text` for types that `Display` writes and `FromStr` parses.
macro_rules! text {
    ($($name:ty),+ $(,)?) => {$(
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <str as Type<Postgres>>::type_info()
            }

            fn compatible(info: &PgTypeInfo) -> bool {
                <str as Type<Postgres>>::compatible(info)
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                <&str as PgHasArrayType>::array_type_info()
            }

            fn array_compatible(info: &PgTypeInfo) -> bool {
                <&str as PgHasArrayType>::array_compatible(info)
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                write!(**buffer, "{self}")?;
                Ok(IsNull::No)
            }
        }

        impl Decode<'_, Postgres> for $name {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                let text = value.as_str()?;
                text.parse().map_err(|error| format!("{text:?} {error}").into())
            }
        }
    )+};
}

text!(
    AppliedAdjustment,
    ApiKeyId,
    ApiKeyName,
    DeliveryStatus,
    DisabledReason,
    Enforcement,
    EventId,
    EventType,
    IdempotencyKey,
    MeterId,
    OrganizationId,
    PlanId,
    PlanName,
    ResetMode,
    ResetPeriod,
    Scope,
    TimeZone,
    Notified,
    OnOutage,
    WebhookId,
);

/// An IANA time zone as `text`.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeZone(pub(super) Tz);

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl FromStr for TimeZone {
    type Err = InvalidCalendar;

    fn from_str(name: &str) -> Result<Self, InvalidCalendar> {
        parse_time_zone(name).map(Self)
    }
}

/// An unsigned number as `bigint`, which holds every version, generation, sequence and count. A larger one, which
/// only a caller can ask for, is bound as the largest `bigint`.
#[derive(Debug, Clone, Copy)]
pub(super) struct BigInt(pub(super) u64);

impl From<BigInt> for u64 {
    fn from(number: BigInt) -> Self {
        number.0
    }
}

impl From<u64> for BigInt {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// Implements `bigint` for types that are made from `u64`, and back.
macro_rules! bigint {
    ($($name:ty),+ $(,)?) => {$(
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <i64 as Type<Postgres>>::type_info()
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                <i64 as PgHasArrayType>::array_type_info()
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let number = i64::try_from(u64::from(*self)).unwrap_or(i64::MAX);
                Encode::<Postgres>::encode(number, buffer)
            }
        }

        impl Decode<'_, Postgres> for $name {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                let number = <i64 as Decode<Postgres>>::decode(value)?;
                Ok(u64::try_from(number)?.try_into()?)
            }
        }
    )+};
}

bigint!(BigInt, Count);

/// Reads a `bigint` column that is never negative.
pub(super) fn unsigned(row: &PgRow, column: &str) -> sqlx::Result<u64> {
    let BigInt(number) = row.try_get(column)?;
    Ok(number)
}

/// The error of a column whose value the domain refuses.
pub(super) fn corrupt(column: &str, error: impl Into<BoxDynError>) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: error.into(),
    }
}

/// Reads a JSON column.
pub(super) fn json<T: DeserializeOwned>(row: &PgRow, column: &str) -> sqlx::Result<T> {
    let Json(value) = row.try_get(column)?;
    Ok(value)
}

impl FromRow<'_, PgRow> for CounterId {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            organization: row.try_get("organization_id")?,
            meter: row.try_get("meter")?,
            start: row.try_get("period_start")?,
        })
    }
}

/// Binds columns of rows, as arrays for `unnest`.
pub(super) trait BindColumns<'q>: Sized {
    /// Binds one value.
    fn value<T: Encode<'q, Postgres> + Type<Postgres> + 'q>(self, value: T) -> Self;

    /// Binds one element of every row.
    fn column<R, T, I>(self, rows: I, element: impl FnMut(R) -> T + 'q) -> Self
    where
        I: IntoIterator<Item = R, IntoIter: 'q>,
        T: Encode<'q, Postgres> + Type<Postgres> + PgHasArrayType + 'q,
    {
        self.value(rows.into_iter().map(element).bind_iter())
    }

    /// Binds the three columns that name counters: organizations, meters and starts.
    fn counters<'c: 'q>(self, counters: impl Iterator<Item = &'c CounterId> + Clone + 'q) -> Self {
        self.column(counters.clone(), |it| &it.organization)
            .column(counters.clone(), |it| &it.meter)
            .column(counters, |it| it.start)
    }
}

impl<'q> BindColumns<'q> for Query<'q, Postgres, PgArguments> {
    fn value<T: Encode<'q, Postgres> + Type<Postgres> + 'q>(self, value: T) -> Self {
        self.bind(value)
    }
}

impl<'q, O> BindColumns<'q> for QueryAs<'q, Postgres, O, PgArguments> {
    fn value<T: Encode<'q, Postgres> + Type<Postgres> + 'q>(self, value: T) -> Self {
        self.bind(value)
    }
}
