//! `docker-compose.yml` and the `Dockerfile`: what they name exists, and their commands run outside of a container.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use tallyman::clock::Clock;
use tallyman::config::Servers;
use tallyman::domain::checkup::Severity;
use tallyman::redis::facts;
use tallyman_servers::{ClusterOptions, RedisCluster, RedisOptions, RedisServer};
use tempfile::TempDir;

use crate::support::{Process, World};
use crate::tidy::source;

/// The file. A member with a misspelled name does not parse.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    build: Option<String>,
    image: String,
    restart: String,
    stop_grace_period: Option<String>,
    #[serde(default)]
    env_file: Vec<EnvFile>,
    environment: BTreeMap<String, String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
    command: Option<String>,
    #[serde(default)]
    volumes: Vec<String>,
    healthcheck: Option<Healthcheck>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvFile {
    path: String,
    required: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    condition: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Healthcheck {
    test: String,
    interval: String,
    timeout: String,
    start_period: String,
}

fn compose() -> Compose {
    serde_saphyr::from_str(&source("docker-compose.yml")).unwrap()
}

/// Seconds of a duration such as `50s` or `1m`.
fn seconds(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.len() - 1);
    number.parse::<u64>().unwrap() * if unit == "m" { 60 } else { 1 }
}

/// The instructions of the last stage of the `Dockerfile`, each with its arguments on one line.
fn instructions() -> Vec<(String, String)> {
    let text = source("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let all = lines.filter_map(|line| line.split_once(' '));
    let mut last = Vec::new();
    for (name, arguments) in all {
        if name == "FROM" {
            last.clear();
        }
        last.push((name.to_owned(), arguments.to_owned()));
    }
    last
}

/// The arguments of an instruction that occurs once.
fn instruction(name: &str) -> String {
    let mut found = instructions().into_iter().filter(|(it, _)| it == name);
    let (_, arguments) = found.next().unwrap_or_else(|| panic!("{name}"));
    assert_eq!(found.next(), None);
    arguments
}

/// The words of an instruction in its exec form.
fn words(arguments: &str) -> Vec<String> {
    serde_json::from_str(arguments).unwrap()
}

/// The variables that the image sets.
fn image_variables() -> BTreeMap<String, String> {
    let text = instruction("ENV");
    let pairs = text.split(' ').map(|pair| pair.split_once('=').unwrap());
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn services_depend_on_healthy_ones_and_use_declared_volumes() {
    let compose = compose();
    let mut used = BTreeSet::new();
    for (name, service) in &compose.services {
        assert_eq!(service.restart, "unless-stopped", "{name}");
        assert!(
            service.build.is_some() || service.image.contains(':'),
            "{name}"
        );
        assert!(
            service
                .env_file
                .iter()
                .all(|file| file.path == ".env" && !file.required)
        );
        for (other, dependency) in &service.depends_on {
            assert_eq!(dependency.condition, "service_healthy", "{name}");
            let other = &compose.services[other];
            assert!(other.healthcheck.is_some(), "{name}");
        }
        for volume in &service.volumes {
            let (volume, path) = volume.split_once(':').unwrap();
            assert!(path.starts_with('/'), "{path}");
            used.insert(volume);
        }
        if let Some(check) = &service.healthcheck {
            let shell = Command::new("sh").args(["-n", "-c", &check.test]).status();
            assert!(shell.unwrap().success(), "{}", check.test);
            assert!(
                seconds(&check.timeout) <= seconds(&check.interval),
                "{name}"
            );
            assert!(
                seconds(&check.start_period) >= seconds(&check.interval),
                "{name}"
            );
        }
        if let Some(grace) = &service.stop_grace_period {
            assert!(seconds(grace) >= 10, "{name}");
        }
    }
    let declared: BTreeSet<&str> = compose.volumes.keys().map(String::as_str).collect();
    assert_eq!(used, declared);
}

#[test]
fn the_published_port_is_the_one_that_the_service_listens_on() {
    let compose = compose();
    let tallyman = &compose.services["tallyman"];
    let listen = &tallyman.environment["TALLYMAN_LISTEN"];
    assert_eq!(image_variables()["TALLYMAN_LISTEN"], *listen);
    let (_, port) = listen.rsplit_once(':').unwrap();
    assert_eq!(instruction("EXPOSE"), port);
    for published in &tallyman.ports {
        assert!(published.starts_with("127.0.0.1:"), "{published}");
        assert!(published.ends_with(&format!(":{port}")), "{published}");
    }
    assert!(!tallyman.ports.is_empty());
    for (url, server) in [
        ("TALLYMAN_REDIS_URL", "redis"),
        ("TALLYMAN_DATABASE_URL", "postgres"),
    ] {
        let url = &tallyman.environment[url];
        let (_, host) = url.rsplit_once('@').unwrap();
        assert!(host.starts_with(&format!("{server}:")), "{url}");
        assert!(tallyman.depends_on.contains_key(server), "{url}");
    }
}

/// The variables of `${NAME}` and `${NAME:?…}`, which Docker Compose replaces.
fn interpolated(text: &str) -> BTreeSet<&str> {
    let starts = text.match_indices("${").map(|(at, _)| &text[at + 2..]);
    starts
        .map(|rest| rest.split(['}', ':']).next().unwrap())
        .collect()
}

#[test]
fn the_manual_sets_every_password_that_compose_needs() {
    let text = source("docker-compose.yml");
    let manual = source("docs/operations.md");
    let needed = interpolated(&text);
    assert!(!needed.is_empty());
    for name in needed {
        assert!(
            text.contains(&format!("${{{name}:?")),
            "{name} may be missing"
        );
        assert!(manual.contains(&format!("{name}=%s")), "{name}");
    }
}

#[tokio::test]
async fn the_commands_of_the_image_run_with_the_settings_of_compose() {
    let world = World::new().await;
    let entrypoint = words(&instruction("ENTRYPOINT"));
    let serve = [entrypoint, words(&instruction("CMD"))].concat();
    // What `Process` runs.
    assert_eq!(serve, ["tallyman", "serve"]);
    let mut variables = image_variables();
    variables.extend(compose().services["tallyman"].environment.clone());
    for elsewhere in [
        "TALLYMAN_LISTEN",
        "TALLYMAN_REDIS_URL",
        "TALLYMAN_DATABASE_URL",
    ] {
        assert!(variables.remove(elsewhere).is_some());
    }
    variables.insert("TALLYMAN_DRAIN_SECONDS".to_owned(), "0".to_owned());
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let service = Process::serve(&world, world.servers(), &variables).await;

    let healthcheck = instruction("HEALTHCHECK");
    let (options, command) = healthcheck.split_once(" CMD ").unwrap();
    let timeout = options
        .split(' ')
        .find_map(|it| it.strip_prefix("--timeout="));
    assert!(seconds(timeout.unwrap()) > 5, "longer than its own timeout");
    let command = words(command);
    assert_eq!(command[0], "tallyman");
    let status = tokio::process::Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(&command[1..])
        .env_clear()
        .env("TALLYMAN_LISTEN", &service.address)
        .status();
    assert!(status.await.unwrap().success());
    let (code, _) = service.stop().await;
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn the_redis_of_compose_is_fit_for_counting() {
    let compose = compose();
    let command = compose.services["redis"].command.clone().unwrap();
    let command = command
        .strip_suffix(" --requirepass ${REDIS_PASSWORD}")
        .unwrap();
    let mut words = command.split(' ').map(str::to_owned);
    assert_eq!(words.next().as_deref(), Some("redis-server"));
    let options = RedisOptions {
        append_only: false,
        extra: words.collect(),
    };
    let dir = TempDir::new().unwrap();
    let redis = RedisServer::start(dir.path(), &options).await.unwrap();
    let facts = facts::read(&redis.url(), "tm:", &Clock::System).await;
    let [(_, Ok(facts))] = &facts.unwrap()[..] else {
        panic!("it cannot be asked")
    };
    for finding in facts.findings() {
        // The memory of the machine is for its owner to divide.
        let fit = finding.severity == Severity::Good || finding.text.contains("maxmemory");
        assert!(fit, "{}", finding.text);
    }
}

/// With these options of `docker-compose.cluster.yml` the cluster of the tests counts, and each name leads to a node.
#[tokio::test]
async fn the_cluster_of_compose_is_fit_for_counting() {
    let compose: Value = serde_saphyr::from_str(&source("docker-compose.cluster.yml")).unwrap();
    let services = compose["services"].as_object().unwrap();
    let nodes = services.values().filter_map(|service| {
        Some((
            service,
            service["networks"]["redis"]["ipv4_address"].as_str()?,
        ))
    });
    let (mut addresses, mut commands) = (BTreeSet::new(), BTreeSet::new());
    for (service, address) in nodes {
        assert!(addresses.insert(format!("{address}:6379")), "{address}");
        commands.insert(service["command"].as_str().unwrap());
    }
    assert_eq!(addresses.len(), 6);
    let former = services["redis-form"]["command"].as_str().unwrap();
    assert!(
        Command::new("sh")
            .args(["-n", "-c", former])
            .status()
            .unwrap()
            .success()
    );
    let members = former
        .split_whitespace()
        .filter(|word| word.ends_with(":6379"));
    assert_eq!(
        members.map(str::to_owned).collect::<BTreeSet<_>>(),
        addresses
    );
    let environment = &services["tallyman"]["environment"];
    let url = environment["TALLYMAN_REDIS_URL"].as_str().unwrap();
    let (_, hosts) = url.rsplit_once('@').unwrap();
    let (hosts, query) = hosts.split_once('?').unwrap();
    assert_eq!(query, "cluster=true");
    assert!(
        hosts.split(',').all(|host| addresses.contains(host)),
        "{url}"
    );

    let [command] = commands.into_iter().collect::<Vec<_>>()[..] else {
        panic!("nodes differ")
    };
    let options = command.strip_prefix("redis-server ").unwrap();
    let extra: Vec<String> = options
        .split(" --")
        .map(|option| option.trim_start_matches("--"))
        .filter(|option| !option.contains("${REDIS_PASSWORD}") && *option != "cluster-enabled yes")
        .flat_map(|option| {
            let (name, value) = option.split_once(' ').unwrap();
            [format!("--{name}"), value.to_owned()]
        })
        .collect();
    let options = ClusterOptions {
        extra,
        ..ClusterOptions::default()
    };
    let dir = TempDir::new().unwrap();
    let replicas = environment["TALLYMAN_REDIS_WAIT_REPLICAS"]
        .as_str()
        .unwrap();
    let replicas = replicas.parse().unwrap();
    let world = World::with(|config| config.redis_wait_replicas = replicas);
    let (world, cluster) = tokio::join!(world, RedisCluster::start(dir.path(), &options));
    let cluster = cluster.unwrap();
    let facts = facts::read(&cluster.url(), "tm:", &Clock::System)
        .await
        .unwrap();
    assert_eq!(facts.len(), 3);
    for (_, facts) in facts {
        for finding in facts.unwrap().findings() {
            let fit = finding.severity == Severity::Good || finding.text.contains("maxmemory");
            assert!(fit, "{}", finding.text);
        }
    }
    let servers = Servers {
        redis_url: cluster.url(),
        ..world.servers()
    };
    let instance = world.instance_with(servers).await;
    for number in 0..20 {
        assert_eq!(instance.count(&format!("org_{number}"), "api", 1).await, 1);
    }
}
