//! API keys: `tm_<id>_<secret>`, of which only a hash of the secret is stored.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use hex::FromHex as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::{FromRow, Transaction};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::organizations::{corrupt_row, parse};
use super::{Actor, Error, Postgres, audit, signed, unsigned};
use crate::domain::api_key::{ApiKey, NewApiKey, Scope, Scopes};
use crate::domain::ids::{ApiKeyId, OrganizationId};

/// What is kept of a secret: its SHA-256. Printing it for debugging hides it all the same.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> Self {
        hex::encode(hash.0)
    }
}

impl TryFrom<String> for SecretHash {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, hex::FromHexError> {
        <[u8; 32]>::from_hex(text).map(Self)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A key that somebody has sent. The secret itself is not kept.
#[derive(Debug, Clone)]
pub struct PresentedKey {
    /// Names the key; not secret.
    pub id: ApiKeyId,
    hash: SecretHash,
}

/// Whether a text holds what may be a key, or the beginning of one, and so must not be repeated.
pub fn may_hold_key(text: &[u8]) -> bool {
    text.windows(ID_LENGTH + 4).any(|part| match part {
        [b't', b'm', b'_', id @ .., b'_'] => id.iter().all(u8::is_ascii_hexdigit),
        _ => false,
    })
}

/// What is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key of the form tm_<id>_<secret>")]
pub struct InvalidKey;

impl FromStr for PresentedKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let (id, secret) = text
            .strip_prefix("tm_")
            .and_then(|rest| rest.split_once('_'))
            .ok_or(InvalidKey)?;
        if secret.len() != SECRET_LENGTH || !secret.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(InvalidKey);
        }
        Ok(Self {
            id: id.parse().map_err(|_| InvalidKey)?,
            hash: SecretHash::of(secret),
        })
    }
}

const ID_LENGTH: usize = 16;
const SECRET_LENGTH: usize = 64;

/// What decides whether a key is accepted; mirrored in Redis.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Names the key.
    pub id: ApiKeyId,
    hash: SecretHash,
    /// What the key may do.
    pub scopes: Scopes,
    /// The only organization that it reaches; none = all.
    pub organization: Option<OrganizationId>,
    expires_at: Option<DateTime<Utc>>,
    /// Whether it was revoked, which is final.
    pub revoked: bool,
    /// Whether it is certain that Postgres has it like this, or had. Not for others to say, and so not in the mirror.
    #[serde(skip)]
    pub proven: bool,
}

impl KeyRecord {
    /// Whether this is the record of `key`, in time that does not depend on how much of it is right.
    pub fn matches(&self, key: &PresentedKey) -> bool {
        self.hash.0.ct_eq(&key.hash.0).into()
    }

    /// Whether another record is of the same secret.
    pub fn is_of_the_key_of(&self, other: &Self) -> bool {
        self.id == other.id && self.hash.0.ct_eq(&other.hash.0).into()
    }

    /// Whether it is neither revoked nor expired.
    pub fn is_valid_at(&self, now: DateTime<Utc>) -> bool {
        !self.revoked && self.expires_at.is_none_or(|at| now < at)
    }
}

/// A key that was just made.
#[expect(
    missing_debug_implementations,
    reason = "printing it would print the secret"
)]
pub struct IssuedKey {
    /// What will be shown of it from now on.
    pub key: ApiKey,
    /// The key as its owner holds it, which nobody can show again.
    pub text: String,
}

/// Makes a key.
pub async fn create(
    postgres: &Postgres,
    wish: &NewApiKey,
    actor: &Actor,
) -> Result<IssuedKey, Error> {
    let id = Uuid::new_v4().simple().to_string()[..ID_LENGTH].to_owned();
    let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let scopes: Vec<String> = wish.scopes.iter().map(|it| it.to_string()).collect();
    let (mut transaction, revision) = begin_change(postgres).await?;
    let row: KeyRow = sqlx::query_as(
        "insert into api_keys (id, name, hash, scopes, organization_id, expires_at, revision)
         values ($1, $2, $3, $4, $5, $6, $7)
         returning *",
    )
    .bind(&id)
    .bind(wish.name.as_str())
    .bind(SecretHash::of(&secret).0.as_slice())
    .bind(scopes)
    .bind(wish.organization_id.as_ref().map(OrganizationId::as_str))
    .bind(wish.expires_at)
    .bind(signed(revision))
    .fetch_one(&mut *transaction)
    .await?;
    let key = row.shown()?;
    let organization = key.organization_id.as_ref();
    audit::record(
        &mut transaction,
        actor,
        "api_key.create",
        organization,
        &(),
        &key,
    )
    .await?;
    transaction.commit().await?;
    Ok(IssuedKey {
        key,
        text: format!("tm_{id}_{secret}"),
    })
}

/// Makes a key that may do everything, and returns it as its owner holds it.
pub async fn create_admin(postgres: &Postgres, name: &str) -> Result<String, Error> {
    let wish = NewApiKey {
        name: parse(name)?,
        scopes: Scope::Admin.into(),
        organization_id: None,
        expires_at: None,
    };
    let actor = Actor {
        name: name.to_owned(),
        request_id: String::new(),
    };
    Ok(create(postgres, &wish, &actor).await?.text)
}

/// Revokes a key, unless it is revoked already; false if there is none.
pub async fn revoke(postgres: &Postgres, id: &ApiKeyId, actor: &Actor) -> Result<bool, Error> {
    let (mut transaction, revision) = begin_change(postgres).await?;
    let before: Option<KeyRow> =
        sqlx::query_as("select * from api_keys where id = $1 for no key update")
            .bind(id.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
    let before = match before {
        None => return Ok(false),
        Some(row) if row.revoked_at.is_some() => return Ok(true),
        Some(row) => row.shown()?,
    };
    revoke_in(&mut transaction, &before, revision, actor).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Revokes every key that is bound to an organization, in the transaction that deletes it.
pub(super) async fn revoke_bound(
    transaction: &mut Transaction<'static, sqlx::Postgres>,
    organization: &OrganizationId,
    actor: &Actor,
) -> Result<Vec<ApiKeyId>, Error> {
    lock(transaction).await?;
    let rows: Vec<KeyRow> = sqlx::query_as(
        "select * from api_keys
         where organization_id = $1 and revoked_at is null
         order by id
         for no key update",
    )
    .bind(organization.as_str())
    .fetch_all(&mut **transaction)
    .await?;
    let mut revoked = Vec::new();
    for row in rows {
        let before = row.shown()?;
        let revision = draw_revision(transaction).await?;
        revoke_in(transaction, &before, revision, actor).await?;
        revoked.push(before.id);
    }
    Ok(revoked)
}

async fn revoke_in(
    transaction: &mut Transaction<'static, sqlx::Postgres>,
    before: &ApiKey,
    revision: u64,
    actor: &Actor,
) -> Result<(), Error> {
    let after: KeyRow = sqlx::query_as(
        "update api_keys
         set revoked_at = date_trunc('milliseconds', now()), revision = $2
         where id = $1
         returning *",
    )
    .bind(before.id.as_str())
    .bind(signed(revision))
    .fetch_one(&mut **transaction)
    .await?;
    let after = after.shown()?;
    let organization = after.organization_id.as_ref();
    audit::record(
        transaction,
        actor,
        "api_key.revoke",
        organization,
        before,
        &after,
    )
    .await
}

/// At most `count` keys, newest first, revoked ones included; those that follow `after`, if that is given.
pub async fn list(
    postgres: &Postgres,
    after: Option<&ApiKeyId>,
    count: u32,
) -> Result<Vec<ApiKey>, Error> {
    let rows: Vec<KeyRow> = sqlx::query_as(
        "select * from api_keys
         where $1::text is null or (created_at, id) < (select created_at, id from api_keys where id = $1)
         order by created_at desc, id desc
         limit $2",
    )
    .bind(after.map(ApiKeyId::as_str))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.into_iter().map(KeyRow::shown).collect()
}

/// The record of a key, if there is one.
pub async fn find(postgres: &Postgres, id: &ApiKeyId) -> Result<Option<KeyRecord>, Error> {
    let row: Option<KeyRow> = sqlx::query_as("select * from api_keys where id = $1")
        .bind(id.as_str())
        .fetch_optional(&postgres.pool)
        .await?;
    row.map(KeyRow::record).transpose()
}

/// Whether this key would be accepted.
pub async fn verify(postgres: &Postgres, key: &str, now: DateTime<Utc>) -> Result<bool, Error> {
    let Ok(key) = key.parse::<PresentedKey>() else {
        return Ok(false);
    };
    Ok(find(postgres, &key.id)
        .await?
        .is_some_and(|record| record.matches(&key) && record.is_valid_at(now)))
}

/// Changes of keys since a revision.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The revision up to which `records` is complete.
    pub revision: u64,
    /// What has changed, oldest change first.
    pub records: Vec<KeyRecord>,
    /// Whether `records` begins at the very first key, because there is no way from that revision to
    /// this database: there was none, or the database is older than it, as after a restore.
    pub from_the_first: bool,
}

/// What has changed since `revision`, at most `count` keys of it; none if nothing has.
pub async fn changes_since(
    postgres: &Postgres,
    revision: u64,
    count: u32,
) -> Result<Option<Changes>, Error> {
    let (newest,): (Option<i64>,) = sqlx::query_as("select max(revision) from api_keys")
        .fetch_one(&postgres.pool)
        .await?;
    let newest = newest.map_or(0, unsigned);
    if newest == revision {
        return Ok(None);
    }
    let base = if newest < revision { 0 } else { revision };
    let rows: Vec<KeyRow> = sqlx::query_as(
        "select * from api_keys
         where revision > $1
         order by revision
         limit $2",
    )
    .bind(signed(base))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    Ok(Some(Changes {
        revision: rows.last().map_or(0, |row| unsigned(row.revision)),
        records: rows
            .into_iter()
            .map(KeyRow::record)
            .collect::<Result<_, _>>()?,
        from_the_first: base == 0,
    }))
}

/// What the records in Redis are sealed with.
pub struct MirrorSecret([u8; 32]);

impl MirrorSecret {
    /// The secret itself.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<[u8; 32]> for MirrorSecret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for MirrorSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// The secret that the migrations have drawn.
pub async fn mirror_secret(postgres: &Postgres) -> Result<MirrorSecret, Error> {
    let (value,): (Vec<u8>,) =
        sqlx::query_as("select value from secrets where name = 'key_mirror'")
            .fetch_one(&postgres.pool)
            .await?;
    let value = value.try_into().map_err(|_| corrupt_row("a secret"))?;
    Ok(MirrorSecret(value))
}

/// Keys that were revoked since a revision, at most `count`, each with the revision of that; oldest first.
pub async fn revoked_since(
    postgres: &Postgres,
    revision: u64,
    count: u32,
) -> Result<Vec<(ApiKeyId, u64)>, Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select id, revision from api_keys
         where revision > $1 and revoked_at is not null
         order by revision
         limit $2",
    )
    .bind(signed(revision))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter()
        .map(|(id, revision)| Ok((parse(id)?, unsigned(*revision))))
        .collect()
}

/// Notes when keys were last used; an older minute never replaces a newer one, and the same minute is
/// not written again.
pub async fn note_uses(
    postgres: &Postgres,
    uses: &BTreeMap<ApiKeyId, DateTime<Utc>>,
) -> Result<(), Error> {
    if uses.is_empty() {
        return Ok(());
    }
    let (ids, minutes): (Vec<&str>, Vec<DateTime<Utc>>) =
        uses.iter().map(|(id, at)| (id.as_str(), *at)).unzip();
    // Locked in the order of the key, so that instances that write at once do not deadlock.
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
    .bind(ids)
    .bind(minutes)
    .execute(&postgres.pool)
    .await?;
    Ok(())
}

/// Begins a transaction that changes keys, and draws its revision. All such transactions are
/// serialized, so that revisions become visible in their order.
async fn begin_change(
    postgres: &Postgres,
) -> Result<(Transaction<'static, sqlx::Postgres>, u64), Error> {
    let mut transaction = postgres.pool.begin().await?;
    lock(&mut transaction).await?;
    let revision = draw_revision(&mut transaction).await?;
    Ok((transaction, revision))
}

async fn lock(transaction: &mut Transaction<'static, sqlx::Postgres>) -> Result<(), Error> {
    // The key of the lock is arbitrary; it only has to be the same in every process.
    sqlx::query("select pg_advisory_xact_lock(7302815)")
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn draw_revision(
    transaction: &mut Transaction<'static, sqlx::Postgres>,
) -> Result<u64, Error> {
    let (revision,): (i64,) = sqlx::query_as("select nextval('api_key_revision')")
        .fetch_one(&mut **transaction)
        .await?;
    Ok(unsigned(revision))
}

#[derive(FromRow)]
struct KeyRow {
    id: String,
    name: String,
    hash: Vec<u8>,
    scopes: Vec<String>,
    organization_id: Option<String>,
    expires_at: Option<DateTime<Utc>>,
    revision: i64,
    created_at: DateTime<Utc>,
    last_used_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

impl KeyRow {
    fn shown(self) -> Result<ApiKey, Error> {
        Ok(ApiKey {
            id: parse(&self.id)?,
            name: parse(&self.name)?,
            scopes: scopes(&self.scopes)?,
            organization_id: self.organization_id.as_deref().map(parse).transpose()?,
            created_at: self.created_at,
            expires_at: self.expires_at,
            last_used_at: self.last_used_at,
            revoked_at: self.revoked_at,
        })
    }

    fn record(self) -> Result<KeyRecord, Error> {
        Ok(KeyRecord {
            id: parse(&self.id)?,
            hash: SecretHash(self.hash.try_into().map_err(|_| corrupt_row("a hash"))?),
            scopes: scopes(&self.scopes)?,
            organization: self.organization_id.as_deref().map(parse).transpose()?,
            expires_at: self.expires_at,
            revoked: self.revoked_at.is_some(),
            proven: true,
        })
    }
}

fn scopes(words: &[String]) -> Result<Scopes, Error> {
    let scopes: Vec<Scope> = words
        .iter()
        .map(|word| parse(word))
        .collect::<Result<_, _>>()?;
    scopes.try_into().map_err(corrupt_row)
}
