//! Which server has the keys of each shard.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, FromRedisValue, Value, cmd};
use futures::FutureExt as _;
use futures::future::select_ok;
use tokio::time::timeout;

use super::address::{Address, Place};
use super::channel;
use super::error::Error;
use super::node::{Node, connect};
use super::shard::{SHARDS, Shard};

/// How long a node may take to reply before another is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(50);

/// The masters, and which of them has each shard.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Topology {
    /// Each is named once.
    pub(super) masters: Vec<Address>,
    /// By shard, the position of its master; none where no master has its slot.
    pub(super) owners: [Option<u16>; SHARDS as usize],
}

impl Topology {
    /// One server has everything.
    pub(super) fn single(address: Address) -> Self {
        Self {
            masters: vec![address],
            owners: [Some(0); SHARDS as usize],
        }
    }

    /// The reply of `CLUSTER SLOTS`, which `asked` has sent; none if it is something else.
    pub(super) fn parse(reply: &Value, asked: &Address) -> Option<Self> {
        let (mut masters, mut owners) = (Vec::new(), [None; SHARDS as usize]);
        for range in reply.as_sequence()? {
            let [start, end, master, ..] = range.as_sequence()? else {
                return None;
            };
            let slots = number(start)?..=number(end)?;
            let [host, port, ..] = master.as_sequence()? else {
                return None;
            };
            // Empty or null, and `?` where it does not know, is the host that was asked.
            let host: Option<String> = Option::from_redis_value_ref(host).ok()?;
            let host = host.filter(|host| !matches!(host.as_str(), "" | "?"));
            let master = asked.at(host.as_deref(), number(port)?);
            let known = masters.iter().position(|it| *it == master);
            let position = known.unwrap_or_else(|| {
                masters.push(master);
                masters.len().saturating_sub(1)
            });
            let position = u16::try_from(position).ok()?;
            for shard in Shard::all().filter(|shard| slots.contains(&shard.slot())) {
                *owners.get_mut(shard.index())? = Some(position);
            }
        }
        Some(Self { masters, owners })
    }
}

/// A slot or a port. The library would cut a larger number.
fn number(value: &Value) -> Option<u16> {
    match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    }
}

/// Reads which server has what: from one of these connections, or else over a connection of its own.
pub(super) async fn read(place: &Place, known: &[Arc<Node>]) -> Result<Topology, Error> {
    match place {
        Place::Server(address) => Ok(Topology::single(address.clone())),
        Place::Sentinel {
            sentinels,
            master,
            template,
        } => {
            let mut command = cmd("SENTINEL");
            command.arg(("GET-MASTER-ADDR-BY-NAME", master));
            let asked = sentinels.iter().map(|it| ask(it, &command).boxed());
            let (address, _) = select_ok(asked).await?;
            let address: Option<(String, u16)> = address;
            let unknown = || Error::Unfit(format!("its sentinels know no master {master:?}"));
            let (host, port) = address.ok_or_else(unknown)?;
            Ok(Topology::single(template.at(Some(&host), port)))
        }
        Place::Cluster(seeds) => {
            let mut command = cmd("CLUSTER");
            command.arg("SLOTS");
            for node in known {
                let reply = timeout(ANSWER_TIMEOUT, node.query(&command)).await;
                if let Ok(Ok(reply)) = reply
                    && let Some(topology) = Topology::parse(&reply, &node.address)
                {
                    return Ok(topology);
                }
            }
            let asked = seeds.iter().map(|seed| {
                let command = command.clone();
                async move {
                    let reply = ask(seed, &command).await?;
                    let other = || Error::Unfit("it replies no slots of a cluster".to_owned());
                    Topology::parse(&reply, seed).ok_or_else(other)
                }
                .boxed()
            });
            let (topology, _) = select_ok(asked).await?;
            Ok(topology)
        }
    }
}

/// Asks a server over a connection of its own.
async fn ask<T: FromRedisValue>(address: &Address, command: &Cmd) -> Result<T, Error> {
    let mut connection = connect(address, &channel::config()).await?;
    let reply = command.query_async(&mut connection).await;
    reply.map_err(|error| Error::Unavailable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: i64, end: i64, host: Value, port: i64) -> Value {
        let id = Value::BulkString(b"0123".to_vec());
        let master = Value::Array(vec![host, Value::Int(port), id]);
        Value::Array(vec![
            Value::Int(start),
            Value::Int(end),
            master.clone(),
            master,
        ])
    }

    fn asked() -> Address {
        match Place::parse("redis://seed:7000").unwrap() {
            Place::Server(address) => address,
            _ => panic!(),
        }
    }

    #[test]
    fn each_shard_belongs_to_the_master_of_its_slot() {
        let host = |host: &str| Value::BulkString(host.as_bytes().to_vec());
        // {00} is in slot 13254, {2a} in 8048, {ff} in 11756.
        let reply = Value::Array(vec![
            range(0, 8048, host("a"), 1),
            range(8049, 11_756, Value::Nil, 2),
            range(11_757, 13_253, host("a"), 1),
        ]);
        let topology = Topology::parse(&reply, &asked()).unwrap();
        let masters: Vec<String> = topology.masters.iter().map(ToString::to_string).collect();
        assert_eq!(masters, ["a:1", "seed:2"]);
        let owner = |shard: usize| topology.owners[shard];
        assert_eq!(
            (owner(0x00), owner(0x2a), owner(0xff)),
            (None, Some(0), Some(1))
        );
    }

    #[test]
    fn another_reply_is_no_topology() {
        for reply in [
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Array(vec![Value::Int(1), Value::Int(2)])]),
            Value::Array(vec![range(0, 70_000, Value::Nil, 1)]),
        ] {
            assert_eq!(Topology::parse(&reply, &asked()), None, "{reply:?}");
        }
    }
}
