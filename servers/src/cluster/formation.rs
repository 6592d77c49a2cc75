//! Making one cluster of nodes that do not know each other.

use anyhow::Result;

use crate::node::Node;
use crate::slots::SLOTS;
use crate::wait::until;

/// Gives the first nodes the slots and makes the others their replicas. The nodes may still have to learn about it.
pub(super) async fn form(nodes: &[Node], masters: usize) -> Result<()> {
    for (index, node) in nodes.iter().enumerate() {
        // Equal epochs would be a conflict, which nodes take long to resolve.
        let epoch = (index + 1).to_string();
        let () = node
            .command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch])
            .await?;
    }
    for (index, node) in nodes[..masters].iter().enumerate() {
        let bound = |index| usize::from(SLOTS) * index / masters;
        let (first, last) = (bound(index).to_string(), (bound(index + 1) - 1).to_string());
        let () = node
            .command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])
            .await?;
    }
    meet(nodes).await?;
    for (index, replica) in nodes[masters..].iter().enumerate() {
        replicate(replica, &nodes[index % masters]).await?;
    }
    Ok(())
}

/// Introduces each pair, which is faster than waiting until they hear of each other.
async fn meet(nodes: &[Node]) -> Result<()> {
    for (index, node) in nodes.iter().enumerate().skip(1) {
        let mut pipeline = redis::pipe();
        for other in &nodes[..index] {
            let mut command = redis::cmd("CLUSTER");
            command.arg("MEET").arg("127.0.0.1");
            command.arg(other.port()).arg(other.bus());
            pipeline.add_command(command).ignore();
        }
        let () = pipeline.query_async(&mut node.connection().await?).await?;
    }
    Ok(())
}

/// Makes a node the replica of a master, once it knows the master.
async fn replicate(replica: &Node, master: &Node) -> Result<()> {
    let id: String = master.command(&["CLUSTER", "MYID"]).await?;
    until("making a replica", async || {
        Ok(replica.command(&["CLUSTER", "REPLICATE", &id]).await?)
    })
    .await
}
