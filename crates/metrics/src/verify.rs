//! The check of a snapshot against what was registered.

use std::collections::{BTreeMap, HashMap};

use crate::registration::{Field, Metadata, Registration, Type};
use crate::snapshot::{Buckets, Data, Number, Snapshot};
use crate::{MAX_LABEL, Metric};

/// Most rows of one snapshot; those beyond are dropped.
const MAX_ROWS: usize = 20_000;

/// Checks the snapshots of one sandbox, which may lie.
///
/// A row is dropped and counted if its name or type was not registered, if its labels are not
/// those of its metric, if its value is not finite or a counter's is negative, if it comes twice,
/// or if a counter fell: the next snapshot is then held against the lower value, so that what
/// really began anew is missed once.
#[derive(Debug)]
pub struct Verifier {
    registered: BTreeMap<String, Metadata>,
    /// What each counter was in the last snapshot.
    last: HashMap<Row, Vec<f64>>,
    dropped: u64,
}

/// A row's name and the values of its labels.
type Row = (String, Vec<String>);

impl Verifier {
    /// For a sandbox that has registered this.
    pub fn new(registration: &Registration) -> Self {
        let metrics = registration.metrics().into_iter();
        Self {
            registered: metrics.map(|m| (m.prometheus_name.clone(), m)).collect(),
            last: HashMap::new(),
            dropped: 0,
        }
    }

    /// The rows that are sound, with the help text that was registered.
    pub fn check(&mut self, snapshot: Snapshot) -> Vec<Data> {
        let mut seen = HashMap::new();
        let mut sound = Vec::with_capacity(snapshot.data.len().min(MAX_ROWS));
        for mut data in snapshot.data {
            if seen.len() < MAX_ROWS && self.is_sound(&data, &mut seen) {
                if let Some(registered) = self.registered.get(&data.metric.name) {
                    data.metric.help.clone_from(&registered.description);
                }
                sound.push(data);
            } else {
                self.dropped += 1;
            }
        }
        self.last = seen;
        sound
    }

    /// How many rows were dropped since the beginning.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_sound(&self, data: &Data, seen: &mut HashMap<Row, Vec<f64>>) -> bool {
        let Metric { name, r#type, .. } = &data.metric;
        let Some(registered) = self.registered.get(name) else {
            return false;
        };
        let Some(values) = values(data, registered) else {
            return false;
        };
        if registered.kind() != *r#type || !labels_fit(data, &registered.fields) {
            return false;
        }
        let row = (name.clone(), data.labels.values().cloned().collect());
        if seen.contains_key(&row) {
            return false;
        }
        let fell = *r#type != Type::Gauge
            && self.last.get(&row).is_some_and(|last| {
                last.len() != values.len() || last.iter().zip(&values).any(|(old, new)| new < old)
            });
        seen.insert(row, values);
        !fell
    }
}

/// The labels are those that were registered, and no others.
fn labels_fit(data: &Data, fields: &[Field]) -> bool {
    let fits = |field: &Field| {
        let Some(value) = data.labels.get(&field.field_name) else {
            return false;
        };
        match field.allowed_values.as_slice() {
            [] => value.len() <= MAX_LABEL && !value.contains(char::is_control),
            allowed => allowed.contains(value),
        }
    };
    data.labels.len() == fields.len() && fields.iter().all(fits)
}

/// The numbers of a row; `None` if they are not what its metric's must be.
fn values(data: &Data, registered: &Metadata) -> Option<Vec<f64>> {
    match (registered.kind(), data.val, &data.histogram) {
        (Type::Gauge, Some(number), None) => number.is_sound().then(|| vec![number.value()]),
        (Type::Counter, Some(number), None) => positive(number).map(|value| vec![value]),
        (Type::Histogram, None, Some(histogram)) => bucket_values(histogram, registered),
        _ => None,
    }
}

fn positive(number: Number) -> Option<f64> {
    (number.is_sound() && number.value() >= 0.0).then(|| number.value())
}

/// Bounds as registered, sum and counts positive.
fn bucket_values(histogram: &Buckets, registered: &Metadata) -> Option<Vec<f64>> {
    let mut starts = registered.distribution_bucket_lower_bounds.iter().skip(1);
    let fit = histogram.buckets.iter().all(|bucket| match starts.next() {
        Some(start) => bucket.le == bound(*start, registered.units),
        None => bucket.le.is_endless(),
    });
    let count = registered.distribution_bucket_lower_bounds.len();
    if !fit || histogram.buckets.len() != count {
        return None;
    }
    let counts = histogram.buckets.iter().map(|bucket| bucket.n);
    let mut values = vec![positive(histogram.total)?];
    values.extend(counts.map(|n| Number::from(n).value()));
    Some(values)
}

fn bound(start: i64, units: u8) -> Number {
    let start = u64::try_from(start).unwrap_or_default();
    match units {
        1 => Number::seconds(start),
        _ => Number::from(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Definition, Histogram};

    const OWN: &[Definition] = &[
        Definition {
            name: "berm_starts_total",
            kind: Type::Counter,
            labels: &[("container", &[])],
            help: "Starts.",
        },
        Definition {
            name: "berm_containers",
            kind: Type::Gauge,
            labels: &[("state", &["running", "stopped"])],
            help: "Containers.",
        },
        Definition {
            name: "berm_phase_seconds",
            kind: Type::Histogram,
            labels: &[],
            help: "Phases.",
        },
    ];

    fn row(name: &str, kind: Type, label: (&str, &str), value: u64) -> Data {
        Data {
            metric: Metric {
                name: name.to_owned(),
                r#type: kind,
                help: "told".to_owned(),
            },
            labels: [(label.0.to_owned(), label.1.to_owned())].into(),
            val: Some(value.into()),
            histogram: None,
        }
    }

    fn starts(value: u64) -> Data {
        row(
            "berm_starts_total",
            Type::Counter,
            ("container", "c1"),
            value,
        )
    }

    fn verifier() -> Verifier {
        Verifier::new(&Registration::Own(OWN))
    }

    fn check(verifier: &mut Verifier, data: Vec<Data>) -> usize {
        let when = String::new();
        verifier.check(Snapshot { when, data }).len()
    }

    #[test]
    fn a_sound_row_passes_with_the_help_that_was_registered() {
        let mut verifier = verifier();
        let data = vec![starts(1)];
        let when = String::new();
        let sound = verifier.check(Snapshot { when, data });
        assert_eq!(sound[0].metric.help, "Starts.");
        assert_eq!(verifier.dropped(), 0);
    }

    #[test]
    fn what_was_not_registered_is_dropped_and_counted() {
        let long = "x".repeat(MAX_LABEL + 1);
        let mut no_label = starts(1);
        no_label.labels.clear();
        let mut no_value = starts(1);
        no_value.val = None;
        let mut both = starts(1);
        both.val = serde_json::from_str(r#"{"int":1,"float":1.5}"#).unwrap();
        let bad = [
            row("berm_other_total", Type::Counter, ("container", "c1"), 1),
            row("berm_starts_total", Type::Gauge, ("container", "c1"), 1),
            row("berm_starts_total", Type::Counter, ("contain", "c1"), 1),
            row("berm_starts_total", Type::Counter, ("container", &long), 1),
            row("berm_starts_total", Type::Counter, ("container", "a\nb"), 1),
            row("berm_containers", Type::Gauge, ("state", "odd"), 1),
            row("berm_phase_seconds", Type::Histogram, ("x", "y"), 1),
            no_label,
            no_value,
            both,
        ];
        let mut verifier = verifier();
        for (count, data) in bad.into_iter().enumerate() {
            assert_eq!(check(&mut verifier, vec![data.clone()]), 0, "{data:?}");
            assert_eq!(verifier.dropped(), count as u64 + 1);
        }
    }

    #[test]
    fn a_row_that_comes_twice_is_taken_once() {
        let mut verifier = verifier();
        assert_eq!(check(&mut verifier, vec![starts(1), starts(2)]), 1);
        assert_eq!(verifier.dropped(), 1);
    }

    #[test]
    fn a_counter_that_falls_is_dropped_once_and_a_gauge_may_fall() {
        let mut verifier = verifier();
        let gauge = |value| row("berm_containers", Type::Gauge, ("state", "running"), value);
        assert_eq!(check(&mut verifier, vec![starts(5), gauge(5)]), 2);
        assert_eq!(check(&mut verifier, vec![starts(4), gauge(4)]), 1);
        assert_eq!(check(&mut verifier, vec![starts(4), gauge(3)]), 2);
        assert_eq!(verifier.dropped(), 1);
    }

    #[test]
    fn a_histogram_has_the_registered_bounds_and_counts_that_never_fall() {
        let row = |histogram: Buckets| Data {
            metric: Metric {
                name: "berm_phase_seconds".into(),
                r#type: Type::Histogram,
                help: String::new(),
            },
            labels: BTreeMap::new(),
            val: None,
            histogram: Some(histogram),
        };
        let mut histogram = Histogram::default();
        histogram.observe(std::time::Duration::from_millis(3));
        let full = histogram.buckets();
        let mut verifier = verifier();
        assert_eq!(check(&mut verifier, vec![row(full.clone())]), 1);
        let mut odd = full.clone();
        odd.buckets[2].le = Number::seconds(7);
        assert_eq!(check(&mut verifier, vec![row(odd)]), 0);
        assert_eq!(check(&mut verifier, vec![row(full)]), 1);
        assert_eq!(
            check(&mut verifier, vec![row(Histogram::default().buckets())]),
            0
        );
    }
}
