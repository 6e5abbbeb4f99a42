//! What the real specs of containerd 2.3.4 are planned as, and what every refusal says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails may panic"
)]

#[path = "plan/attributes.rs"]
mod attributes;
#[path = "plan/device.rs"]
mod device;
#[path = "plan/dropped.rs"]
mod dropped;
#[path = "plan/given.rs"]
mod given;
#[path = "plan/golden.rs"]
mod golden;
#[path = "plan/hints.rs"]
mod hints;
#[path = "plan/hooks.rs"]
mod hooks;
#[path = "plan/host.rs"]
mod host;
#[path = "plan/netdevices.rs"]
mod netdevices;
#[path = "plan/order.rs"]
mod order;
#[path = "plan/refused.rs"]
mod refused;
