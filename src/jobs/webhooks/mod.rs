//! Webhooks: registering them, and delivering events to them.
//!
//! An event is delivered at least once, as the Standard Webhooks specification describes, with the same `webhook-id` on
//! every attempt. Instances share the work by leases in Postgres: the deliveries of an instance that crashed are retried
//! by another one. Each webhook is served independently, so a slow endpoint does not delay the others. Start reading at
//! [`Deliverer::deliver_once`]; [`Deliverer::run`] loops.

mod deliver;
mod register;
mod sender;
mod signature;
mod targets;

pub use deliver::{Deliverer, Report};
pub use register::{Issued, Webhooks};
