//! Which calls are on the hot path.

use crate::domain::decision::Operation;

/// The calls that count, by path.
pub(super) const OPERATIONS: [(&str, Operation); 4] = [
    ("/v1/consume", Operation::Consume),
    ("/v1/track", Operation::Track),
    ("/v1/check", Operation::Check),
    ("/v1/refund", Operation::Refund),
];

const BATCH: &str = "/v1/batch";

/// Whether a route counts. Successful calls of it are logged at `debug`, because writing the line costs more than counting.
pub(super) fn counts(route: &str) -> bool {
    route == BATCH || OPERATIONS.iter().any(|(path, _)| *path == route)
}
