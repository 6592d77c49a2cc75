//! `TALLYMAN_REDIS_URL`: one server, a cluster, or a master that sentinels name.

use std::fmt;

use ::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use super::error::Error;

/// Where Redis is.
#[derive(Debug)]
pub(super) enum Place {
    /// One server: `redis://host:port`, `rediss://…` or `redis+unix://…`.
    Server(Address),
    /// A cluster, by some of its nodes: `redis://host:port,host:port?cluster=true`.
    Cluster(Vec<Address>),
    /// The master of this name, by its sentinels: `redis+sentinel://host:port,host:port/name`.
    Sentinel {
        sentinels: Vec<Address>,
        master: String,
        /// With the credentials and options of the master, whatever its address.
        template: Address,
    },
}

/// A server, and how to connect to it.
#[derive(Debug, Clone)]
pub(super) struct Address(ConnectionInfo);

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.0.addr() == other.0.addr()
    }
}

/// Host and port, or path; no credentials.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.addr().fmt(f)
    }
}

impl Address {
    fn parse(url: &str) -> Result<Self, Error> {
        let unfit = |error: ::redis::RedisError| Error::Unfit(error.to_string());
        let info = url.into_connection_info().map_err(unfit)?;
        // RESP3 pushes a message when the connection is lost; RESP2 notices it at the next command.
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(Self(info.set_redis_settings(redis).set_tcp_settings(tcp)))
    }

    /// Another server, to connect to in the same way. `host` is None if it is on the same host.
    pub(super) fn at(&self, host: Option<&str>, port: u16) -> Self {
        let mut addr = self.0.addr().clone();
        match &mut addr {
            ConnectionAddr::Tcp(own, own_port)
            | ConnectionAddr::TcpTls {
                host: own,
                port: own_port,
                ..
            } => {
                if let Some(host) = host {
                    host.clone_into(own);
                }
                *own_port = port;
            }
            _ => {}
        }
        Self(self.0.clone().set_addr(addr))
    }

    /// What connections are made with.
    pub(super) fn info(&self) -> &ConnectionInfo {
        &self.0
    }

    /// A client of this server alone.
    pub(super) fn client(&self) -> Result<Client, Error> {
        Client::open(self.0.clone()).map_err(|error| Error::Unfit(error.to_string()))
    }
}

impl Place {
    /// Parses a URL.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let parts = Parts::of(url);
        match parts {
            Some(parts) if parts.is_sentinel => parts.sentinel(),
            Some(parts) if parts.is_cluster => {
                let seeds = parts.addresses(parts.user, parts.path, &parts.query)?;
                if seeds.iter().any(|it| it.0.redis_settings().db() != 0) {
                    return Err(Error::Unfit("a cluster has database 0 only".to_owned()));
                }
                Ok(Self::Cluster(seeds))
            }
            Some(parts) if parts.hosts.contains(',') => Err(Error::Unfit(
                "several hosts are a cluster, with ?cluster=true, or sentinels, with redis+sentinel://"
                    .to_owned(),
            )),
            _ => Ok(Self::Server(Address::parse(url)?)),
        }
    }

    /// Whether the keys of a script call must be of one shard.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

/// A URL with hosts.
struct Parts<'a> {
    scheme: &'a str,
    is_sentinel: bool,
    is_cluster: bool,
    /// With its `@`, or empty.
    user: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    /// None for a path.
    fn of(url: &'a str) -> Option<Self> {
        const CLUSTER: &str = "cluster=true";
        let (scheme, rest) = url.split_once("://")?;
        let (scheme, is_sentinel) = match scheme {
            "redis" | "rediss" | "valkey" | "valkeys" => (scheme, false),
            _ => (scheme.strip_suffix("+sentinel")?, true),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = authority.rfind('@').map_or(0, |at| at.saturating_add(1));
        let (user, hosts) = authority.split_at(host);
        let query: Vec<&str> = query.split('&').filter(|it| !it.is_empty()).collect();
        Some(Self {
            scheme,
            is_sentinel,
            is_cluster: query.contains(&CLUSTER),
            user,
            hosts,
            path,
            query: query.into_iter().filter(|it| *it != CLUSTER).collect(),
        })
    }

    /// Each host as a server of its own.
    fn addresses(&self, user: &str, path: &str, query: &[&str]) -> Result<Vec<Address>, Error> {
        let (scheme, query) = (self.scheme, query.join("&"));
        let hosts = self.hosts.split(',');
        hosts
            .map(|host| {
                let host = if self.is_sentinel {
                    with_sentinel_port(host)
                } else {
                    host.to_owned()
                };
                Address::parse(&format!("{scheme}://{user}{host}/{path}?{query}"))
            })
            .collect()
    }

    fn sentinel(&self) -> Result<Place, Error> {
        let (master, database) = self.path.split_once('/').unwrap_or((self.path, ""));
        if master.is_empty() {
            return Err(Error::Unfit(
                "the path of redis+sentinel:// names the master, as in redis+sentinel://host:26379/mymaster"
                    .to_owned(),
            ));
        }
        let mut own = String::new();
        let mut query = self.query.clone();
        query.retain(|it| match it.strip_prefix("sentinel_password=") {
            Some(password) => {
                own = format!(":{password}@");
                false
            }
            None => true,
        });
        let template = self.addresses(self.user, database, &query)?;
        let template = template.into_iter().next();
        Ok(Place::Sentinel {
            sentinels: self.addresses(&own, "", &[])?,
            master: master.to_owned(),
            template: template.ok_or_else(|| Error::Unfit("no sentinel is named".to_owned()))?,
        })
    }
}

/// A host, with the default port of sentinels if it has none.
fn with_sentinel_port(host: &str) -> String {
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port {
        host.to_owned()
    } else {
        format!("{host}:26379")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(addresses: &[Address]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_url_names_a_server_a_cluster_or_sentinels() {
        for url in [
            "redis://localhost",
            "rediss://u:p@h:1/2",
            "redis+unix:///tmp/redis.sock?protocol=resp3",
        ] {
            assert!(matches!(Place::parse(url), Ok(Place::Server(_))), "{url}");
        }
        let Ok(Place::Cluster(seeds)) = Place::parse("redis://:a%2Cb@h:1,[::1]:2,g?cluster=true")
        else {
            panic!()
        };
        assert_eq!(texts(&seeds), ["h:1", "::1:2", "g:6379"]);
        for seed in &seeds {
            assert_eq!(seed.0.redis_settings().password(), Some("a,b"));
        }
        let url = "redis+sentinel://u:p@s1,s2:7/prime/3?sentinel_password=q";
        let Ok(Place::Sentinel {
            sentinels,
            master,
            template,
        }) = Place::parse(url)
        else {
            panic!()
        };
        assert_eq!(texts(&sentinels), ["s1:26379", "s2:7"]);
        assert_eq!(master, "prime");
        let settings = |it: &Address| {
            let it = it.0.redis_settings();
            (it.password().map(str::to_owned), it.db())
        };
        assert_eq!(settings(&sentinels[0]), (Some("q".to_owned()), 0));
        assert_eq!(settings(&template), (Some("p".to_owned()), 3));
        assert_eq!(template.at(Some("m"), 9).to_string(), "m:9");
    }

    #[test]
    fn a_url_that_names_none_tells_what_is_wrong() {
        for (url, reason) in [
            ("redis://a,b", "cluster=true"),
            ("redis://a/1?cluster=true", "database 0"),
            ("redis+sentinel://a:1", "names the master"),
            ("nonsense", "URL"),
        ] {
            let error = Place::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
