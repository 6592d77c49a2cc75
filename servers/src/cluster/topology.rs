//! Which node is master of what, and whether the nodes agree about it.

use anyhow::{Context as _, Result, bail, ensure};

use super::RedisCluster;
use super::view::View;
use crate::node::Node;
use crate::slots::SLOTS;
use crate::wait::until;

/// What makes a node unusable in the eyes of another.
const UNUSABLE: [&str; 4] = ["fail", "fail?", "handshake", "noaddr"];

impl RedisCluster {
    /// The master of a slot, by the newest claim that a live node knows. After a crash that is the dead node, until a
    /// replica takes its place.
    pub async fn master_of_slot(&self, slot: u16) -> Result<usize> {
        let views = self.views().await?;
        let owners = views.iter().filter_map(|(_, view)| view.owner(slot));
        let owner = owners
            .max_by_key(|member| member.epoch)
            .with_context(|| format!("slot {slot} has no master"))?;
        self.index(owner.port)
    }

    /// The replicas of a master: a live one says so itself, a dead one is what a live node remembers.
    pub async fn replicas_of(&self, master: usize) -> Result<Vec<usize>> {
        let views = self.views().await?;
        let port = self.nodes[master].port();
        let id = views.iter().find_map(|(_, view)| view.on_port(port));
        let id = &id.context("no live node knows the master")?.id;
        let mut replicas = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let own = views.iter().find(|(viewer, _)| *viewer == index);
            let (_, view) = own.or(views.first()).context("no node is live")?;
            let member = view.on_port(node.port());
            if member.is_some_and(|member| member.master.as_ref() == Some(id)) {
                replicas.push(index);
            }
        }
        Ok(replicas)
    }

    /// Whether a node is live and says itself that it is a master. One that has just started again says what it was
    /// before.
    pub async fn is_master(&self, node: usize) -> Result<bool> {
        let node = &self.nodes[node];
        if !node.is_live() {
            return Ok(false);
        }
        let view = View::of(node).await?;
        Ok(view.myself()?.master.is_none())
    }

    /// Waits until all live nodes agree on the masters and replicas, a live node is master of each slot, and every live
    /// replica is connected to its master.
    pub async fn wait_until_ok(&self) -> Result<()> {
        until("agreement in the cluster", async || self.check().await).await
    }

    async fn check(&self) -> Result<()> {
        let views = self.views().await?;
        let (_, first) = views.first().context("no node is live")?;
        for (index, view) in &views {
            let node = &self.nodes[*index];
            self.check_view(view)
                .with_context(|| format!("node {index}"))?;
            ensure!(view.agrees(first), "nodes disagree");
            let state = node.fields(&["CLUSTER", "INFO"]).await?;
            if state.get("cluster_state").is_none_or(|state| state != "ok") {
                bail!("node {index} is not ok: {state:?}");
            }
            if view.myself()?.master.is_some() {
                check_replica(node)
                    .await
                    .with_context(|| format!("node {index}"))?;
            }
        }
        Ok(())
    }

    /// Checks that a node sees all live nodes work and own all slots.
    fn check_view(&self, view: &View) -> Result<()> {
        let mut covered = 0;
        for node in &self.nodes {
            let port = node.port();
            let member = view.on_port(port);
            let member = member.with_context(|| format!("it does not know port {port}"))?;
            if !node.is_live() {
                continue;
            }
            let flags = &member.flags;
            ensure!(
                !UNUSABLE.iter().any(|flag| flags.contains(*flag)),
                "port {port} is {flags:?}"
            );
            covered += member
                .slots
                .iter()
                .map(ExactSizeIterator::len)
                .sum::<usize>();
        }
        ensure!(
            view.members.len() == self.nodes.len(),
            "it knows more nodes than there are"
        );
        ensure!(
            covered == usize::from(SLOTS),
            "{covered} slots have a live master"
        );
        Ok(())
    }

    /// What each live node knows, with its index.
    async fn views(&self) -> Result<Vec<(usize, View)>> {
        let mut views = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if node.is_live() {
                views.push((index, View::of(node).await?));
            }
        }
        Ok(views)
    }

    fn index(&self, port: u16) -> Result<usize> {
        let mut nodes = self.nodes.iter();
        nodes
            .position(|node| node.port() == port)
            .with_context(|| format!("no node has the port {port}"))
    }
}

/// Checks that a replica follows its master.
async fn check_replica(node: &Node) -> Result<()> {
    let replication = node.fields(&["INFO", "replication"]).await?;
    let link = replication
        .get("master_link_status")
        .map_or("unknown", String::as_str);
    ensure!(link == "up", "its link to its master is {link}");
    Ok(())
}
