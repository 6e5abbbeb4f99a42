//! The figures of one moment, in gVisor's form.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::registration::Type;

/// gVisor's `prometheus.Snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// RFC 3339, in UTC.
    pub when: String,
    /// One row for each metric and each set of labels.
    #[serde(default)]
    pub data: Vec<Data>,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Which metric.
    pub metric: Metric,
    /// Its labels, those of the sandbox not among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The value of a gauge or counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Number>,
    /// The value of a histogram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Buckets>,
}

/// A metric as each row repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// Prometheus' name.
    pub name: String,
    /// Gauge, counter, histogram.
    pub r#type: Type,
    /// For people.
    #[serde(default)]
    pub help: String,
}

/// A number: whole, or not; never both. `{}` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    #[serde(default, skip_serializing_if = "is_zero_float")]
    float: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    int: i64,
}

fn is_zero_float(number: &f64) -> bool {
    *number == 0.0
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl From<u64> for Number {
    /// Above `i64::MAX`: that.
    fn from(number: u64) -> Self {
        Self {
            float: 0.0,
            int: i64::try_from(number).unwrap_or(i64::MAX),
        }
    }
}

impl Number {
    /// Nanoseconds as seconds.
    pub fn seconds(ns: u64) -> Self {
        const SECOND: u64 = 1_000_000_000;
        if ns.is_multiple_of(SECOND) {
            return Self::from(ns / SECOND);
        }
        #[allow(clippy::cast_precision_loss, reason = "0.1 µs after 30 years")]
        let float = ns as f64 / 1e9;
        Self { float, int: 0 }
    }

    /// As Prometheus keeps it.
    pub fn value(self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "Prometheus knows only this")]
        let int = self.int as f64;
        if self.int == 0 { self.float } else { int }
    }

    /// True for the bound of the last bucket.
    pub(crate) fn is_endless(self) -> bool {
        self.int == i64::MAX
    }

    /// True if it is one finite number.
    pub(crate) fn is_sound(self) -> bool {
        self.float.is_finite() && (self.int == 0 || self.float == 0.0)
    }
}

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Buckets {
    /// The sum of all that was counted.
    #[serde(default)]
    pub total: Number,
    /// Its buckets; the last has no end.
    #[serde(default)]
    pub buckets: Vec<Bucket>,
}

/// One bucket of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Where it ends.
    #[serde(default)]
    pub le: Number,
    /// How many are in it, those of smaller buckets not among them.
    #[serde(default, skip_serializing_if = "is_none")]
    pub n: u64,
}

fn is_none(number: &u64) -> bool {
    *number == 0
}

/// A time as RFC 3339 has it, in UTC: `2026-02-24T15:58:01.000000001Z`.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_nanos(at.max(UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_the_gregorian_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_827_696, "2000-02-29T12:34:56.000000000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000000Z"),
        ];
        for (second, want) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(second)), want);
        }
    }

    #[test]
    fn numbers_are_whole_where_they_can_be_and_0_is_empty() {
        let json = |number: Number| serde_json::to_string(&number).unwrap();
        assert_eq!(json(Number::from(0)), "{}");
        assert_eq!(json(Number::from(295)), r#"{"int":295}"#);
        assert_eq!(json(Number::seconds(2_000_000_000)), r#"{"int":2}"#);
        assert_eq!(json(Number::seconds(1_500_000_000)), r#"{"float":1.5}"#);
        assert_eq!(Number::from(u64::MAX).value(), 9_223_372_036_854_775_807.0);
    }
}
