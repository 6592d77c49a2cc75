//! API keys: `tm_<id>_<secret>`, stored with only a hash of the secret.

mod secret;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row as _};
use uuid::Uuid;

pub use secret::{KeyRecord, MirrorSecret, PresentedKey, SecretHash, may_hold_key};

use super::audit::{self, Actor};
use super::pool::{Error, Postgres, Result, Transaction};
use super::types::{BigInt, BindColumns as _, corrupt};
use crate::domain::api_key::{ApiKey, NewApiKey, NoScopes, Scope, Scopes};
use crate::domain::ids::{ApiKeyId, OrganizationId};

/// A new key.
#[expect(
    missing_debug_implementations,
    reason = "printing it would print the secret"
)]
pub struct IssuedKey {
    /// The key's description, without its secret.
    pub key: ApiKey,
    /// The whole key, which cannot be shown again.
    pub text: String,
}

/// Creates a key.
pub async fn create(db: &Postgres, request: &NewApiKey, actor: &Actor) -> Result<IssuedKey> {
    let id = Uuid::new_v4().simple().to_string()[..secret::ID_LENGTH].to_owned();
    let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let (mut tx, revision) = begin_change(db).await?;
    let key: ApiKey = sqlx::query_as(
        "insert into api_keys (id, name, hash, scopes, organization_id, expires_at, revision)
         values ($1, $2, $3, $4, $5, $6, $7)
         returning *",
    )
    .bind(&id)
    .bind(&request.name)
    .bind(SecretHash::of(&secret).0)
    .column(request.scopes.iter(), |scope| scope)
    .bind(&request.organization_id)
    .bind(request.expires_at)
    .bind(BigInt(revision))
    .fetch_one(&mut *tx)
    .await?;
    let (action, organization) = ("api_key.create", key.organization_id.as_ref());
    audit::record(&mut tx, actor, action, organization, &(), &key).await?;
    tx.commit().await?;
    let text = format!("tm_{id}_{secret}");
    Ok(IssuedKey { key, text })
}

/// Creates a key with all permissions, and returns the whole key.
pub async fn create_admin(db: &Postgres, name: &str) -> Result<String> {
    let request = NewApiKey {
        name: name.parse().map_err(Error::corrupt_row)?,
        scopes: Scope::Admin.into(),
        organization_id: None,
        expires_at: None,
    };
    let actor = Actor {
        name: name.to_owned(),
        request_id: String::new(),
    };
    Ok(create(db, &request, &actor).await?.text)
}

/// Revokes a key, unless it is revoked already; false if it does not exist.
pub async fn revoke(db: &Postgres, id: &ApiKeyId, actor: &Actor) -> Result<bool> {
    let (mut tx, revision) = begin_change(db).await?;
    let key: Option<ApiKey> =
        sqlx::query_as("select * from api_keys where id = $1 for no key update")
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(key) = key else {
        return Ok(false);
    };
    if key.revoked_at.is_none() {
        revoke_in(&mut tx, &key, revision, actor).await?;
        tx.commit().await?;
    }
    Ok(true)
}

/// Revokes every key that is bound to an organization, in the transaction that deletes it.
pub(super) async fn revoke_bound(
    tx: &mut PgConnection,
    organization: &OrganizationId,
    actor: &Actor,
) -> Result<Vec<ApiKeyId>> {
    lock(tx).await?;
    let keys: Vec<ApiKey> = sqlx::query_as(
        "select * from api_keys
         where organization_id = $1 and revoked_at is null
         order by id
         for no key update",
    )
    .bind(organization)
    .fetch_all(&mut *tx)
    .await?;
    for key in &keys {
        let revision = draw_revision(tx).await?;
        revoke_in(tx, key, revision, actor).await?;
    }
    Ok(keys.into_iter().map(|key| key.id).collect())
}

async fn revoke_in(
    tx: &mut PgConnection,
    before: &ApiKey,
    revision: u64,
    actor: &Actor,
) -> Result<()> {
    let after: ApiKey = sqlx::query_as(
        "update api_keys
         set revoked_at = date_trunc('milliseconds', now()), revision = $2
         where id = $1
         returning *",
    )
    .bind(&before.id)
    .bind(BigInt(revision))
    .fetch_one(&mut *tx)
    .await?;
    let (action, organization) = ("api_key.revoke", after.organization_id.as_ref());
    audit::record(tx, actor, action, organization, before, &after).await
}

/// Lists at most `count` keys, newest first and including revoked ones, starting after `after`.
pub async fn list(db: &Postgres, after: Option<&ApiKeyId>, count: u32) -> Result<Vec<ApiKey>> {
    Ok(sqlx::query_as(
        "select * from api_keys
         where $1::text is null or (created_at, id) < (select created_at, id from api_keys where id = $1)
         order by created_at desc, id desc
         limit $2",
    )
    .bind(after)
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Finds a key.
pub async fn get(db: &Postgres, id: &ApiKeyId) -> Result<Option<ApiKey>> {
    Ok(sqlx::query_as("select * from api_keys where id = $1")
        .bind(id)
        .fetch_optional(db.pool().await?)
        .await?)
}

/// Finds the record of a key.
pub async fn find(db: &Postgres, id: &str) -> Result<Option<KeyRecord>> {
    Ok(sqlx::query_as("select * from api_keys where id = $1")
        .bind(id)
        .fetch_optional(db.pool().await?)
        .await?)
}

/// Whether a key is valid.
pub async fn verify(db: &Postgres, key: &str, now: DateTime<Utc>) -> Result<bool> {
    let Some(key) = PresentedKey::parse(key) else {
        return Ok(false);
    };
    Ok(find(db, key.id)
        .await?
        .is_some_and(|record| record.matches(key) && record.is_valid_at(now)))
}

/// Changes of keys since a revision.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The revision up to which `records` is complete.
    pub revision: u64,
    /// The changed keys, oldest change first.
    pub records: Vec<KeyRecord>,
    /// Whether `records` begins at the very first key, because that revision was 0 or is unknown to this database, as
    /// after a restore from a backup.
    pub full: bool,
}

/// Lists at most `count` keys that have changed since `revision`; none if no key has.
pub async fn changes_since(db: &Postgres, revision: u64, count: u32) -> Result<Option<Changes>> {
    let newest: Option<BigInt> = sqlx::query_scalar("select max(revision) from api_keys")
        .fetch_one(db.pool().await?)
        .await?;
    let newest = newest.map_or(0, u64::from);
    if newest == revision {
        return Ok(None);
    }
    let base = if newest < revision { 0 } else { revision };
    let rows: Vec<RecordRow> = sqlx::query_as(
        "select * from api_keys
         where revision > $1
         order by revision
         limit $2",
    )
    .bind(BigInt(base))
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?;
    Ok(Some(Changes {
        revision: rows.last().map_or(0, |row| row.revision),
        records: rows.into_iter().map(|row| row.record).collect(),
        full: base == 0,
    }))
}

/// Reads the secret that seals the mirror in Redis, which the migrations have drawn.
pub async fn mirror_secret(db: &Postgres) -> Result<MirrorSecret> {
    let secret: [u8; 32] =
        sqlx::query_scalar("select value from secrets where name = 'key_mirror'")
            .fetch_one(db.pool().await?)
            .await?;
    Ok(secret.into())
}

/// A key that was created or revoked.
#[derive(Debug, Clone, FromRow)]
pub struct IdChange {
    /// The key's id.
    pub id: ApiKeyId,
    /// The revision of its last change.
    #[sqlx(try_from = "i64")]
    pub revision: u64,
    /// Whether it is revoked.
    pub revoked: bool,
}

/// Lists at most `count` keys that were created or revoked since `revision`, oldest change first.
pub async fn ids_since(db: &Postgres, revision: u64, count: u32) -> Result<Vec<IdChange>> {
    Ok(sqlx::query_as(
        "select id, revision, revoked_at is not null as revoked from api_keys
         where revision > $1
         order by revision
         limit $2",
    )
    .bind(BigInt(revision))
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Records the minute in which each key was last used, unless that minute or a later one is recorded.
pub async fn record_uses(db: &Postgres, uses: &BTreeMap<ApiKeyId, DateTime<Utc>>) -> Result<()> {
    if uses.is_empty() {
        return Ok(());
    }
    // Locked in key order, so that concurrent instances do not deadlock.
    sqlx::query(
        "with used as materialized (
             select api_keys.id, noted.at
             from api_keys
             join unnest($1::text[], $2::timestamptz[]) as noted (id, at) on noted.id = api_keys.id
             where api_keys.last_used_at is null or api_keys.last_used_at < noted.at
             order by api_keys.id
             for no key update of api_keys
         )
         update api_keys
         set last_used_at = used.at
         from used
         where api_keys.id = used.id",
    )
    .column(uses.keys(), |id| id)
    .column(uses.values(), |at| at)
    .execute(db.pool().await?)
    .await?;
    Ok(())
}

/// Begins a transaction that changes keys, and draws its revision. These transactions are serialized, so that
/// revisions become visible in order.
async fn begin_change(db: &Postgres) -> Result<(Transaction, u64)> {
    let mut tx = db.pool().await?.begin().await?;
    lock(&mut tx).await?;
    let revision = draw_revision(&mut tx).await?;
    Ok((tx, revision))
}

async fn lock(tx: &mut PgConnection) -> Result<()> {
    // The lock's key is arbitrary, but the same in every process.
    sqlx::query("select pg_advisory_xact_lock(7302815)")
        .execute(tx)
        .await?;
    Ok(())
}

async fn draw_revision(tx: &mut PgConnection) -> Result<u64> {
    let BigInt(revision) = sqlx::query_scalar("select nextval('api_key_revision')")
        .fetch_one(tx)
        .await?;
    Ok(revision)
}

#[derive(FromRow)]
struct RecordRow {
    #[sqlx(flatten)]
    record: KeyRecord,
    #[sqlx(try_from = "i64")]
    revision: u64,
}

impl FromRow<'_, PgRow> for KeyRecord {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let revoked_at: Option<DateTime<Utc>> = row.try_get("revoked_at")?;
        Ok(Self {
            id: row.try_get("id")?,
            hash: SecretHash(row.try_get("hash")?),
            scopes: scopes(row)?,
            organization: row.try_get("organization_id")?,
            expires_at: row.try_get("expires_at")?,
            revoked: revoked_at.is_some(),
            proven: true,
        })
    }
}

impl FromRow<'_, PgRow> for ApiKey {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            scopes: scopes(row)?,
            organization_id: row.try_get("organization_id")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            last_used_at: row.try_get("last_used_at")?,
            revoked_at: row.try_get("revoked_at")?,
        })
    }
}

fn scopes(row: &PgRow) -> sqlx::Result<Scopes> {
    let scopes: Vec<Scope> = row.try_get("scopes")?;
    let scopes = scopes.try_into();
    scopes.map_err(|error: NoScopes| corrupt("scopes", error))
}
