//! Values as containerd's messages carry them.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// A point in time as a set field.
pub(crate) fn time(at: SystemTime) -> MessageField<Timestamp> {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    MessageField::some(Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Timestamp::default()
    })
}

/// A pid; the kernel's are never negative.
pub(crate) fn pid(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_kept() {
        let stamp = time(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 42));
        assert_eq!((stamp.seconds, stamp.nanos), (1_700_000_000, 42));
    }
}
