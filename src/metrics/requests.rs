//! Requests by route, method and status.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::families::{BoundedMap, Labels, Members, OTHER, latency};
use super::labels::{Label as _, Method};

/// The most endpoints (route and method) with labels of their own.
const ENDPOINTS_MAX: usize = 256;

/// The most statuses of one endpoint with a label of their own.
const STATUSES_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Requests {
    counts: Members<3, Counter>,
    durations: Members<2, Histogram>,
    endpoints: BoundedMap<(String, Method), Endpoint>,
}

/// The metrics of one route and method.
#[derive(Debug)]
struct Endpoint {
    labels: Labels<2>,
    duration: Histogram,
    /// By status; none if the client disconnected.
    statuses: BoundedMap<Option<u16>, Counter>,
}

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counts = Members::new_with_constructor(Counter::default as fn() -> Counter);
        registry.register(
            "http_requests",
            "Requests with a response, or whose client disconnected before",
            counts.clone(),
        );
        let durations = Members::new_with_constructor(latency as fn() -> Histogram);
        registry.register(
            "http_request_duration_seconds",
            "From the head of a request to the head of its response",
            durations.clone(),
        );
        Self {
            counts,
            durations,
            endpoints: BoundedMap::new(ENDPOINTS_MAX),
        }
    }

    pub(super) fn completed(&self, method: &str, route: &str, status: Option<u16>, took: Duration) {
        let method = Method::parse(method);
        let endpoint = self.endpoints.get(
            |(known, its)| known == route && *its == method,
            || (route.to_owned(), method),
            |key| self.endpoint(key),
        );
        endpoint.duration.observe(took.as_secs_f64());
        let count = endpoint.statuses.get(
            |known| *known == status,
            || status,
            |key| self.count(endpoint, key),
        );
        count.inc();
    }

    fn endpoint(&self, key: Option<&(String, Method)>) -> Endpoint {
        let (route, method) = match key {
            Some((route, method)) => (route.as_str(), *method),
            None => (OTHER, Method::Other),
        };
        let labels = [method.pair(), ("route", route.to_owned())];
        Endpoint {
            duration: self.durations.get_or_create_owned(&labels),
            statuses: BoundedMap::new(STATUSES_MAX),
            labels,
        }
    }

    fn count(&self, endpoint: &Endpoint, key: Option<&Option<u16>>) -> Counter {
        let status = match key {
            Some(Some(status)) => status.to_string(),
            Some(None) => "none".to_owned(),
            None => OTHER.to_owned(),
        };
        let [method, route] = endpoint.labels.clone();
        let labels = [method, route, ("status", status)];
        self.counts.get_or_create_owned(&labels)
    }
}
