//! What a node knows of its cluster: the reply to `CLUSTER NODES`.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};

use crate::node::Node;

/// All nodes as one of them sees them.
#[derive(Debug)]
pub(super) struct View {
    pub(super) members: Vec<Member>,
}

/// A node as one of them sees it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) port: u16,
    /// Such as `master` and `fail?`.
    pub(super) flags: BTreeSet<String>,
    /// The id of a replica's master.
    pub(super) master: Option<String>,
    /// A claim of slots with a higher one wins.
    pub(super) epoch: u64,
    pub(super) slots: Vec<RangeInclusive<u16>>,
}

impl View {
    /// Asks a node.
    pub(super) async fn of(node: &Node) -> Result<Self> {
        let text: String = node.command(&["CLUSTER", "NODES"]).await?;
        let member = |line| parse(line).with_context(|| format!("not a node: {line}"));
        let members = text.lines().map(member).collect::<Result<_>>()?;
        Ok(Self { members })
    }

    /// The node that was asked.
    pub(super) fn myself(&self) -> Result<&Member> {
        let mut members = self.members.iter();
        members
            .find(|member| member.flags.contains("myself"))
            .context("the node does not know itself")
    }

    pub(super) fn on_port(&self, port: u16) -> Option<&Member> {
        self.members.iter().find(|member| member.port == port)
    }

    pub(super) fn owner(&self, slot: u16) -> Option<&Member> {
        let owns = |member: &&Member| member.slots.iter().any(|range| range.contains(&slot));
        self.members.iter().find(owns)
    }

    /// Whether both list the same masters and slots.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let same = |member: &Member| {
            other
                .on_port(member.port)
                .is_some_and(|it| it.master == member.master && it.slots == member.slots)
        };
        self.members.len() == other.members.len() && self.members.iter().all(same)
    }
}

/// Reads `<id> <ip>:<port>@<bus>,… <flags> <master> <ping> <pong> <epoch> <link> <slots> …`.
fn parse(line: &str) -> Option<Member> {
    let mut words = line.split(' ');
    let id = words.next()?.to_owned();
    let (address, _) = words.next()?.split_once('@')?;
    let (_, port) = address.rsplit_once(':')?;
    let flags = words.next()?.split(',').map(str::to_owned).collect();
    let master = Some(words.next()?).filter(|id| *id != "-");
    let epoch = words.nth(2)?.parse().ok()?;
    // A slot that is being moved is listed once more, in brackets.
    let slots = words.skip(1).filter(|slots| !slots.starts_with('['));
    Some(Member {
        id,
        port: port.parse().ok()?,
        flags,
        master: master.map(str::to_owned),
        epoch,
        slots: slots.map(range).collect::<Option<_>>()?,
    })
}

/// Reads `<slot>` or `<first>-<last>`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_is_parsed_with_its_slots_and_without_those_that_are_imported() {
        let line = "07c3 127.0.0.1:15001@15002,,shard-id=9a myself,master - 0 1426238317239 4 connected 0-5 7 [8-<-67ed]";
        let member = parse(line).unwrap();
        assert_eq!((member.id.as_str(), member.port), ("07c3", 15001));
        assert!(member.flags.contains("myself") && member.flags.contains("master"));
        assert_eq!((member.master, member.epoch), (None, 4));
        assert_eq!(member.slots, [0..=5, 7..=7]);
    }

    #[test]
    fn a_replica_is_parsed_with_its_master() {
        let line = "67ed 127.0.0.1:15003@15004 slave,fail? 07c3 1426238317741 1426238316232 4 disconnected";
        let member = parse(line).unwrap();
        assert!(member.flags.contains("fail?"));
        assert_eq!(member.master.as_deref(), Some("07c3"));
        assert!(member.slots.is_empty());
    }
}
