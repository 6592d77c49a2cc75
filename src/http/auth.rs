//! Authenticates callers. What a caller may do is a type in a handler's signature: one that takes none of the
//! permissions below is public, but for those of calls that count, which share the one of `routes::counting::answer`.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::Extensions;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use serde::{Deserialize, Deserializer};

use super::etag::Conditions;
use super::extract::single_header;
use super::path::path_parameter;
use super::peer::Peer;
use super::problem::Error;
use super::request_log::{CallerId, RequestInfo, Time};
use super::state::State;
use crate::auth::User;
use crate::domain::api_key::Scope;
use crate::domain::ids::OrganizationId;
use crate::postgres::Actor;
use crate::postgres::api_keys::{KeyRecord, PresentedKey};

/// An authenticated caller. This alone is no permission: handlers take one of [`Permission`]'s types, except the one
/// that tells callers who they are.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    identity: Identity,
    request: RequestInfo,
}

/// Who a caller is.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    /// An API key.
    Key(Arc<KeyRecord>),
    /// A user of the auth server.
    User(Arc<User>),
}

impl Caller {
    fn new(identity: Identity, parts: &Parts) -> Result<Self, Error> {
        let request = parts.extensions.get::<RequestInfo>();
        let request = request.cloned().ok_or(Error::Internal)?;
        request.set_caller(match &identity {
            Identity::Key(key) => CallerId::Key(key.id.clone()),
            Identity::User(user) => CallerId::User(Arc::clone(&user.id)),
        });
        Ok(Self { identity, request })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Authenticates an API key.
    async fn with_key(key: PresentedKey<'_>, parts: &Parts, state: &State) -> Result<Self, Error> {
        let address = parts.extensions.get().map(|peer: &Peer| peer.ip);
        let record = state.auth.authenticate(key, address).await??;
        Self::new(Identity::Key(record), parts)
    }

    /// The organization that a request names, if this caller has access to it. Checked before any look-up: a caller
    /// bound to one organization cannot learn which others exist.
    pub(super) fn authorize(&self, named: &OrganizationParam) -> Result<OrganizationId, Error> {
        let (own, refusal) = match &self.identity {
            Identity::Key(key) => (
                key.organization.as_ref(),
                "this key is bound to another organization",
            ),
            Identity::User(user) => (
                Some(user.organization.as_ref().ok_or(NO_ORGANIZATION)?),
                "this token is for another organization",
            ),
        };
        match (own, &named.0) {
            (Some(own), named) if named.as_ref().ok() != Some(own) => {
                Err(Error::Forbidden(refusal))
            }
            (_, named) => named.clone(),
        }
    }

    /// Whether this caller has access to every organization.
    pub(super) fn authorize_all(&self) -> Result<(), Error> {
        match &self.identity {
            Identity::Key(key) if key.organization.is_none() => Ok(()),
            Identity::Key(_) => Err(Error::Forbidden("this key is bound to one organization")),
            Identity::User(_) => Err(Error::Forbidden("this token is for one organization")),
        }
    }

    /// The organization that a filter names; without one the filter covers all organizations.
    pub(super) fn authorize_filter(
        &self,
        named: Option<&OrganizationParam>,
    ) -> Result<Option<OrganizationId>, Error> {
        match named {
            Some(named) => self.authorize(named).map(Some),
            None => self.authorize_all().map(|()| None),
        }
    }

    /// Whether the credential is neither revoked nor expired since; assumed while that cannot be looked up.
    pub(super) async fn is_still_valid(&self, state: &State) -> bool {
        match &self.identity {
            Identity::Key(key) => !matches!(state.auth.known(&key.id).await, Ok(None)),
            Identity::User(user) => user.expires_at.is_none_or(|at| state.ctx.clock.now() < at),
        }
    }

    /// Whether the auth server guarantees that the caller's organization exists, counted yet or not.
    pub(super) fn trusts_existence(&self) -> bool {
        matches!(self.identity, Identity::User(_))
    }

    /// The organization of a request that names none: the token's.
    pub(super) fn default_organization(&self) -> Option<&OrganizationId> {
        match &self.identity {
            Identity::Key(_) => None,
            Identity::User(user) => user.organization.as_ref(),
        }
    }

    /// Identifies the caller in the audit log and in budgets.
    pub(super) fn name(&self) -> String {
        match &self.identity {
            Identity::Key(key) => format!("key:{}", key.id),
            Identity::User(user) => format!("user:{}", user.id),
        }
    }

    /// The caller and the request, for the audit log.
    pub(super) fn actor(&self) -> Actor {
        Actor {
            name: self.name(),
            request_id: self.request.request_id().to_owned(),
        }
    }

    /// Exempts the request from the deadline: its work grows with the number of organizations.
    pub(super) fn take_time(&self) {
        self.request.allow(Time::Unlimited);
    }

    /// Refuses a caller without this scope.
    async fn require(
        self,
        scope: Scope,
        state: &State,
        refusal: &'static str,
    ) -> Result<Self, Error> {
        let permitted = match &self.identity {
            Identity::Key(key) => key.scopes.permit(scope),
            Identity::User(_) => scope == Scope::Read,
        };
        match &self.identity {
            _ if !permitted => Err(Error::Forbidden(refusal)),
            // A record that is not proven by Postgres may only count.
            Identity::Key(key)
                if !key.proven && !matches!(scope, Scope::Ingest | Scope::Refund) =>
            {
                let proven = Box::pin(state.auth.prove(key)).await?;
                let proven = proven.filter(|key| key.scopes.permit(scope));
                Ok(Self {
                    identity: Identity::Key(proven.ok_or(Error::Unauthenticated)?),
                    ..self
                })
            }
            _ => Ok(self),
        }
    }
}

const NO_ORGANIZATION: Error = Error::Forbidden("this token names no organization");

impl FromRequestParts<State> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        // Nothing that comes from the network sets an extension.
        if let Some(LocalCaller(caller)) = parts.extensions.get() {
            return Ok(caller.clone());
        }
        let header = single_header(&parts.headers, &AUTHORIZATION)?;
        let token = header
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or(Error::Unauthenticated)?;
        if let Some(key) = PresentedKey::parse(token) {
            return Self::with_key(key, parts, state).await;
        }
        // Boxed: keeps the future of a request with a key small.
        let user = Box::pin(state.auth.user(token)).await?;
        let user = Arc::new(user.ok_or(Error::Unauthenticated)?);
        Self::new(Identity::User(user), parts)
    }
}

/// The caller of requests within this process, which another part of it has authenticated.
#[derive(Debug, Clone)]
pub struct LocalCaller(Caller);

impl LocalCaller {
    /// The caller with this key, for the log line and the request id of the request in `parts`.
    pub(crate) fn new(key: Arc<KeyRecord>, parts: &Parts) -> Option<Self> {
        Some(Self(Caller::new(Identity::Key(key), parts).ok()?))
    }

    /// Makes this the caller of a request, whatever its headers say.
    pub(crate) fn sign(&self, extensions: &mut Extensions) {
        extensions.insert(self.0.request.clone());
        extensions.insert(self.clone());
    }
}

/// An organization as a path, a query or a body names it. Only [`Caller::authorize`] reads it, so that no handler
/// skips the check. An invalid id is refused as such only to callers that may name more than one organization.
#[derive(Debug)]
pub(super) struct OrganizationParam(Result<OrganizationId, Error>);

impl<'de> Deserialize<'de> for OrganizationParam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OrganizationId::deserialize(deserializer).map(|id| Self(Ok(id)))
    }
}

/// A caller that has a permission.
pub(super) trait Permission: FromRequestParts<State, Rejection = Error> + Send {
    /// The caller.
    fn caller(&self) -> &Caller;
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident: $scope:ident, $word:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name(pub(super) Caller);

        impl $name {
            /// This permission, if the caller has it.
            async fn check(caller: Caller, state: &State) -> Result<Self, Error> {
                let refusal = concat!("this needs a key with the scope ", $word);
                caller.require(Scope::$scope, state, refusal).await.map(Self)
            }
        }

        impl FromRequestParts<State> for $name {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
                let caller = Caller::from_request_parts(parts, state).await?;
                Self::check(caller, state).await
            }
        }

        impl Permission for $name {
            fn caller(&self) -> &Caller {
                &self.0
            }
        }
    )+};
}

permissions! {
    /// A caller that may track and consume.
    Ingest: Ingest, "ingest";
    /// A caller that may refund.
    Refund: Refund, "refund";
    /// A caller that may read.
    Read: Read, "read";
    /// A caller that may reset expired periods.
    ResetExpired: Reset, "reset";
    /// A caller that may create organizations, and get their settings.
    Provision: Provision, "provision";
    /// A caller that may do everything.
    Administrator: Admin, "admin";
}

/// A caller that may put an organization: create it with the scope `provision`, replace it with `admin`.
#[derive(Debug)]
pub(super) struct PutOrganization(pub(super) Caller);

impl FromRequestParts<State> for PutOrganization {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let conditions = Conditions::from_request_parts(parts, state).await;
        let creates = conditions.is_ok_and(|Conditions(it)| it.require_absence());
        let scope = if creates {
            Scope::Provision
        } else {
            Scope::Admin
        };
        let refusal =
            "this needs a key with the scope admin, or with provision and `If-None-Match: *`";
        Ok(Self(caller.require(scope, state, refusal).await?))
    }
}

impl Permission for PutOrganization {
    fn caller(&self) -> &Caller {
        &self.0
    }
}

impl ResetExpired {
    /// Authenticates a key that a body holds, whatever the headers say.
    pub(super) async fn with_key(
        key: Option<&str>,
        parts: &Parts,
        state: &State,
    ) -> Result<Self, Error> {
        let key = key.and_then(PresentedKey::parse);
        let key = key.ok_or(Error::Unauthenticated)?;
        Self::check(Caller::with_key(key, parts, state).await?, state).await
    }
}

/// A key with the scope `admin`, or a user with a platform role that the settings name.
#[derive(Debug)]
pub(super) struct PlatformAdministrator(pub(super) Caller);

impl PlatformAdministrator {
    /// The organization that a request names: any.
    pub(super) fn authorize(&self, named: &OrganizationParam) -> Result<OrganizationId, Error> {
        match self.0.identity {
            Identity::User(_) => named.0.clone(),
            Identity::Key(_) => self.0.authorize(named),
        }
    }
}

impl FromRequestParts<State> for PlatformAdministrator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if matches!(&caller.identity, Identity::User(user) if user.is_admin) {
            return Ok(Self(caller));
        }
        let refusal =
            "this needs a key with the scope admin, or a token with a platform role for it";
        Ok(Self(caller.require(Scope::Admin, state, refusal).await?))
    }
}

/// A caller that has the permission `P` and access to the organization in the path.
#[derive(Debug)]
pub(super) struct InOrganization<P>(pub(super) P, pub(super) OrganizationId);

impl<P: Permission> FromRequestParts<State> for InOrganization<P> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Error> {
        let permission = P::from_request_parts(parts, state).await?;
        let named = OrganizationParam(path_parameter(parts, state, "id").await);
        let organization = permission.caller().authorize(&named)?;
        Ok(Self(permission, organization))
    }
}
