//! What instances announce to each other: the id of an organization whose policy has changed, or `plan:<id>:<version>`. No id
//! has a colon.

use std::fmt;
use std::str::FromStr;

use crate::domain::ids::{OrganizationId, PlanId};

/// A change of what policies are resolved from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// The settings of an organization.
    Organization(OrganizationId),
    /// A plan, and its policy version.
    Plan(PlanId, u64),
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Organization(id) => write!(f, "{id}"),
            Self::Plan(id, version) => write!(f, "plan:{id}:{version}"),
        }
    }
}

impl FromStr for Announcement {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let Some((kind, rest)) = text.split_once(':') else {
            return text.parse().map(Self::Organization).map_err(|_| ());
        };
        let (id, version) = rest.split_once(':').ok_or(())?;
        match (kind, id.parse(), version.parse()) {
            ("plan", Ok(id), Ok(version)) => Ok(Self::Plan(id, version)),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announcements_parse() {
        for announcement in [
            Announcement::Organization("plan".parse().unwrap()),
            Announcement::Plan("pro.2".parse().unwrap(), u64::MAX),
        ] {
            assert_eq!(announcement.to_string().parse(), Ok(announcement));
        }
        for text in [
            "",
            "plan:pro",
            "plan:pro:",
            "plan:pro:x",
            "plans:pro:1",
            "plan::1",
        ] {
            assert_eq!(text.parse::<Announcement>(), Err(()), "{text}");
        }
    }
}
