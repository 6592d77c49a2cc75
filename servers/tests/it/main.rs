//! Servers in groups, with the Redis that is installed or that `TALLYMAN_TEST_REDIS` names.
#![expect(clippy::unwrap_used, reason = "a test fails at the first error")]

mod cluster;
mod sentinel;

use std::path::Path;

/// `scripts/setup` installs servers there; the tests of a crate start in its own directory.
fn in_workspace() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::env::set_current_dir(workspace).unwrap();
}
