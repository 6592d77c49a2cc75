//! Policies: what Redis knows of organizations.

use ::redis::cmd;
use chrono::{DateTime, Utc};

use super::announcement::Announcement;
use super::error::Error;
use super::routes::Routes;
use super::scripts::{CONFIGURE, POLICY};
use super::shard::Shard;
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::ids::{MeterId, OrganizationId};

/// What Redis knows of an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownOrganization {
    /// The resolved policy: its version, a space, and its JSON.
    pub policy: String,
    /// Every meter counted in this data set; none if nothing was counted.
    pub meters: Option<Vec<MeterId>>,
    /// The policy version of the last deletion that Redis knows of; 0 if it knows of none.
    pub incarnation: u64,
}

/// A policy as Redis stores it.
#[derive(Debug, Clone, Copy)]
pub struct PolicyText<'a> {
    /// Orders policies.
    pub version: u64,
    /// The policy version of the organization's last deletion; 0 if it was never deleted.
    pub incarnation: u64,
    /// The resolved policy as JSON, without its version, so that organizations with equal policies share it.
    pub json: &'a str,
}

/// A policy to apply.
#[derive(Debug, Clone, Copy)]
pub struct Configuration<'a> {
    /// The organization.
    pub organization: &'a OrganizationId,
    /// Its policy.
    pub policy: PolicyText<'a>,
    /// Counters to apply it to, each with its new stamp; they keep their generations.
    pub running: &'a [(CounterId, Stamp)],
}

/// The result of applying a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configured {
    /// Redis has it, or a newer one.
    Known {
        /// Of the policy that Redis has now.
        version: u64,
        /// Every meter counted in this data set.
        meters: Vec<MeterId>,
    },
    /// Redis has a stale incarnation, which must be erased first.
    Stale {
        /// Its policy: version, a space, and JSON.
        policy: String,
        /// Every meter counted in it in this data set.
        meters: Vec<MeterId>,
    },
}

impl Routes {
    /// What Redis knows of some organizations; none where it does not know the policy.
    pub async fn organizations(
        &self,
        organizations: &[&OrganizationId],
    ) -> Result<Vec<Option<KnownOrganization>>, Error> {
        let keys = &self.keys;
        let calls = organizations.iter().map(|organization| {
            let shard = Shard::of(organization);
            let keys = [keys.organizations(organization), keys.policies(shard)];
            (shard, POLICY.call(&keys, organization.as_str()))
        });
        let replies: Vec<(Option<String>, Option<String>, u64)> =
            self.invoke_each(&POLICY, calls).await?;
        let known = replies.into_iter().map(|(policy, meters, incarnation)| {
            Some(KnownOrganization {
                policy: policy?,
                meters: meters.map(|meters| parse_meters(&meters)),
                incarnation,
            })
        });
        Ok(known.collect())
    }

    /// The same of one organization.
    pub async fn organization(
        &self,
        organization: &OrganizationId,
    ) -> Result<Option<KnownOrganization>, Error> {
        let known = self.organizations(&[organization]).await?;
        Ok(known.into_iter().next().flatten())
    }

    /// Applies policies to organizations and running counters; the results, in order.
    pub async fn configure(
        &self,
        policies: &[Configuration<'_>],
        now: DateTime<Utc>,
    ) -> Result<Vec<Configured>, Error> {
        self.configure_erased(policies, false, now).await
    }

    /// Applies the policy of a new incarnation, after the counters of the stale one were erased.
    pub async fn start_incarnation(
        &self,
        policy: &Configuration<'_>,
        now: DateTime<Utc>,
    ) -> Result<Configured, Error> {
        let policy = std::slice::from_ref(policy);
        let configured = self.configure_erased(policy, true, now).await?;
        let configured = configured.into_iter().next();
        configured.ok_or_else(|| Error::Inconsistent("a missing reply".to_owned()))
    }

    async fn configure_erased(
        &self,
        policies: &[Configuration<'_>],
        erased: bool,
        now: DateTime<Utc>,
    ) -> Result<Vec<Configured>, Error> {
        let keys = &self.keys;
        let calls = policies.iter().map(|it| {
            let shard = Shard::of(it.organization);
            let mut call_keys = vec![
                keys.organizations(it.organization),
                keys.dirty(shard),
                keys.generation(shard),
                keys.policies(shard),
            ];
            call_keys.extend(it.running.iter().map(|(counter, _)| keys.counter(counter)));
            let stamps = it
                .running
                .iter()
                .map(|(_, stamp)| stamp.without_generation());
            let arguments = (
                it.policy.version,
                it.policy.json,
                now.timestamp_millis(),
                it.organization.as_str(),
                it.policy.incarnation,
                i32::from(erased),
                stamps.collect::<Vec<_>>(),
            );
            (shard, CONFIGURE.call(&call_keys, arguments))
        });
        let replies: Vec<(String, String, Option<String>)> =
            self.invoke_each(&CONFIGURE, calls).await?;
        let configured = replies.into_iter().map(|(word, meters, stale)| {
            let meters = parse_meters(&meters);
            if let Some(policy) = stale {
                return Ok(Configured::Stale { policy, meters });
            }
            let version = word.parse();
            let version = version.map_err(|_| Error::Inconsistent(format!("version {word:?}")))?;
            Ok(Configured::Known { version, meters })
        });
        configured.collect()
    }

    /// Announces a change to every instance.
    pub async fn announce(&self, changed: &Announcement) -> Result<(), Error> {
        let channel = self.keys.announcements();
        let mut publish = cmd("PUBLISH");
        publish.arg(channel).arg(changed.to_string());
        // Any node passes it on to all.
        let away = || Error::Unavailable("no master is connected".to_owned());
        let any = self.connected().find(|it| !it.is_broken());
        any.ok_or_else(away)?.query(&publish).await
    }
}

/// Meters as scripts return them, separated by spaces.
fn parse_meters(text: &str) -> Vec<MeterId> {
    text.split_whitespace()
        .filter_map(|meter| meter.parse().ok())
        .collect()
}
