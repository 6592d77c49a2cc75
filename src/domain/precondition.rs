//! Conditional requests: `If-Match` and `If-None-Match` (RFC 9110, section 13.1) on versions.

use std::fmt;

/// The entity tag of a version. Strong, because equal versions have equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityTag(pub u64);

impl fmt::Display for EntityTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// The conditions of one request; an absent one is met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preconditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// An invalid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `*`, or entity tags such as \"17\" with commas between them")]
pub struct InvalidPrecondition;

/// The present version does not meet the conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the present version does not match")]
pub struct PreconditionFailed;

impl Preconditions {
    /// Parses the values of the headers; several headers of one name form one list.
    pub fn parse(
        if_match: Option<&str>,
        if_none_match: Option<&str>,
    ) -> Result<Self, InvalidPrecondition> {
        Ok(Self {
            if_match: if_match.map(Tags::parse).transpose()?,
            if_none_match: if_none_match.map(Tags::parse).transpose()?,
        })
    }

    /// Checks a version; `None` if the resource does not exist. Call it under the lock that serializes changes, so that of
    /// two clients that read the same version one wins.
    pub fn check(&self, version: Option<u64>) -> Result<(), PreconditionFailed> {
        let matches = self
            .if_match
            .as_ref()
            .is_none_or(|tags| tags.contain(version, Comparison::Strong));
        if matches && !self.is_not_modified(version) {
            Ok(())
        } else {
            Err(PreconditionFailed)
        }
    }

    /// Whether only a resource that does not exist meets them: `If-None-Match: *`.
    pub fn require_absence(&self) -> bool {
        self.if_none_match == Some(Tags::Any)
    }

    /// Whether `If-None-Match` lists this version: the client has it cached.
    pub fn is_not_modified(&self, version: Option<u64>) -> bool {
        self.if_none_match
            .as_ref()
            .is_some_and(|tags| tags.contain(version, Comparison::Weak))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tags {
    /// Any version: the resource exists.
    Any,
    Listed(Vec<Tag>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag {
    weak: bool,
    /// Including the quotes.
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// A weak tag matches nothing.
    Strong,
    Weak,
}

impl Tags {
    fn parse(text: &str) -> Result<Self, InvalidPrecondition> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let (mut tags, mut rest) = (Vec::new(), text.trim_start());
        while !rest.is_empty() {
            // Empty list elements are allowed.
            if let Some(next) = rest.strip_prefix(',') {
                rest = next.trim_start();
                continue;
            }
            let (tag, next) = Tag::take(rest)?;
            tags.push(tag);
            rest = next.trim_start();
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(InvalidPrecondition);
            }
        }
        if tags.is_empty() {
            return Err(InvalidPrecondition);
        }
        Ok(Self::Listed(tags))
    }

    fn contain(&self, version: Option<u64>, comparison: Comparison) -> bool {
        match (self, version) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::Listed(tags), Some(version)) => {
                let present = EntityTag(version).to_string();
                tags.iter()
                    .any(|tag| tag.text == present && (comparison == Comparison::Weak || !tag.weak))
            }
        }
    }
}

impl Tag {
    /// Splits the first tag from the rest.
    fn take(text: &str) -> Result<(Self, &str), InvalidPrecondition> {
        let (weak, quoted) = match text.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, text),
        };
        let inner = quoted.strip_prefix('"').ok_or(InvalidPrecondition)?;
        // A tag may hold a comma, so the list cannot be split at commas.
        let (opaque, rest) = inner.split_once('"').ok_or(InvalidPrecondition)?;
        if opaque.chars().any(|c| c <= ' ' || c == '\u{7f}') {
            return Err(InvalidPrecondition);
        }
        let text = format!("\"{opaque}\"");
        Ok((Self { weak, text }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn if_match(text: &str, version: Option<u64>) -> bool {
        Preconditions::parse(Some(text), None)
            .unwrap()
            .check(version)
            .is_ok()
    }

    fn if_none_match(text: &str, version: Option<u64>) -> bool {
        Preconditions::parse(None, Some(text))
            .unwrap()
            .check(version)
            .is_ok()
    }

    #[test]
    fn without_conditions_any_version_is_accepted() {
        assert!(Preconditions::default().check(None).is_ok());
        assert!(Preconditions::default().check(Some(7)).is_ok());
    }

    #[test]
    fn if_match_requires_a_listed_version() {
        for (text, holds) in [
            ("\"7\"", true),
            ("\"6\"", false),
            ("\"6\", \"7\"", true),
            (" , \"a,b\",,\"7\" ,", true),
            ("\"07\"", false),
            ("\"\"", false),
        ] {
            assert_eq!(if_match(text, Some(7)), holds, "{text}");
            assert!(!if_match(text, None), "{text}");
        }
        assert!(if_match("*", Some(7)) && !if_match("*", None));
    }

    #[test]
    fn a_weak_tag_matches_for_if_none_match_only() {
        assert!(!if_match("W/\"7\"", Some(7)));
        assert!(!if_none_match("W/\"7\"", Some(7)));
    }

    #[test]
    fn if_none_match_excludes_listed_versions() {
        assert!(if_none_match("*", None) && !if_none_match("*", Some(7)));
        let absence = |text| {
            Preconditions::parse(None, Some(text))
                .unwrap()
                .require_absence()
        };
        assert!(absence("*") && !absence("\"6\"") && !Preconditions::default().require_absence());
        assert!(if_none_match("\"6\"", Some(7)) && !if_none_match("\"6\", \"7\"", Some(7)));
        assert!(if_none_match("\"7\"", None));
    }

    #[test]
    fn invalid_lists_of_tags_are_rejected() {
        for text in [
            "",
            " ",
            ",",
            "7",
            "\"7",
            "7\"",
            "\"7\" \"8\"",
            "*, \"7\"",
            "w/\"7\"",
            "W/7",
            "\"a b\"",
            "**",
        ] {
            assert_eq!(
                Preconditions::parse(Some(text), None),
                Err(InvalidPrecondition),
                "{text}"
            );
        }
    }
}
