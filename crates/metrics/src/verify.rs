//! The check of a snapshot against what was registered.

use std::collections::{BTreeMap, HashMap};

use crate::registration::{Field, Metadata, Registration, Type};
use crate::snapshot::{Buckets, Number};
use crate::text::Value;
use crate::told::{Row, Told};
use crate::{MAX_LABEL, Page};

/// Most rows of one snapshot; those beyond are dropped.
const MAX_ROWS: usize = 20_000;

/// Checks the snapshots of one sandbox, which may lie.
///
/// A row is dropped and counted if its name or type was not registered, if its labels are not
/// those of its metric, if its value is not finite or a counter's is negative, if it comes twice,
/// or if a counter fell: the next snapshot is then held against the lower value, so that what
/// really began anew is missed once.
///
/// Rows mostly come as they came last time. Of one that does, name, type and labels were checked
/// then, and only the value is new.
#[derive(Debug)]
pub struct Verifier {
    registered: BTreeMap<String, Metadata>,
    /// The rows of the last snapshot, in its order.
    last: Vec<Known>,
    dropped: u64,
}

impl Verifier {
    /// For a sandbox that has registered this.
    pub fn new(registration: &Registration) -> Self {
        let metrics = registration.metrics().into_iter();
        Self {
            registered: metrics.map(|m| (m.prometheus_name.clone(), m)).collect(),
            last: Vec::new(),
            dropped: 0,
        }
    }

    /// Takes the rows that are sound for [`Verifier::write`], and says how many these are.
    pub fn check(&mut self, told: &Told<'_>) -> usize {
        let mut rows = Rows::new(std::mem::take(&mut self.last));
        let sound =
            |row: &&Row<'_>| rows.order.len() < MAX_ROWS && rows.take(row, &self.registered);
        let sound = told.data.iter().filter(sound).count();
        self.last = rows.in_order();
        self.dropped += (told.data.len() - sound) as u64;
        sound
    }

    /// Adds the sound rows of the last snapshot to a page, with the help texts that were
    /// registered; says how many the page did not take.
    pub fn write(&self, labels: &str, page: &mut Page) -> usize {
        let mut clashes = 0;
        for row in self.last.iter().filter(|row| !row.fell) {
            let registered = self.registered.get(&row.name);
            let help = registered.map_or("", |metric| metric.description.as_str());
            let labels = [labels, row.text.as_str()];
            clashes += usize::from(!page.row((&row.name, row.kind, help), labels, &row.value));
        }
        clashes
    }

    /// How many rows were dropped since the beginning.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// A row whose name, type and labels are as registered.
#[derive(Debug)]
struct Known {
    name: String,
    kind: Type,
    labels: BTreeMap<String, String>,
    /// The labels as a [`Page`] has them.
    text: String,
    value: Value,
    /// A counter of it fell: it is not told.
    fell: bool,
}

/// A row's name and labels.
type Key = (String, BTreeMap<String, String>);

impl Known {
    /// Whether a row is this one again.
    fn is(&self, row: &Row<'_>) -> bool {
        let labels = || self.labels.iter().zip(&row.labels);
        self.name == row.metric.name.as_str()
            && self.kind == row.metric.r#type
            && self.labels.len() == row.labels.len()
            && labels().all(|(own, told)| own.0 == told.0.as_str() && own.1 == told.1.as_str())
    }

    fn key(&self) -> Key {
        (self.name.clone(), self.labels.clone())
    }
}

/// The rows of the last snapshot on their way to be those of the next.
struct Rows {
    /// Those of the last one, and behind them the new ones.
    rows: Vec<Known>,
    taken: Vec<bool>,
    /// The next snapshot, by places in `rows`.
    order: Vec<usize>,
    /// Where each row is; made for the first one that does not come in its turn.
    index: Option<HashMap<Key, usize>>,
}

impl Rows {
    fn new(rows: Vec<Known>) -> Self {
        Self {
            taken: vec![false; rows.len()],
            order: Vec::with_capacity(rows.len()),
            index: None,
            rows,
        }
    }

    /// False for a row that is dropped.
    fn take(&mut self, row: &Row<'_>, registered: &BTreeMap<String, Metadata>) -> bool {
        let Some(metric) = registered.get(row.metric.name.as_str()) else {
            return false;
        };
        let Some(value) = value(row, metric) else {
            return false;
        };
        let next = self.order.last().map_or(0, |last| last + 1);
        let place = match self.rows.get(next) {
            Some(known) if known.is(row) => Some(next),
            _ => self.place(row),
        };
        match place {
            Some(at) => self.renew(at, value),
            None => self.add(row, metric, value),
        }
    }

    fn place(&mut self, row: &Row<'_>) -> Option<usize> {
        let all = self.rows.iter().enumerate();
        let index = self
            .index
            .get_or_insert_with(|| all.map(|(at, known)| (known.key(), at)).collect());
        index.get(&key(row)).copied()
    }

    /// A row that the last snapshot had, or this one already.
    fn renew(&mut self, at: usize, value: Value) -> bool {
        let (Some(known), Some(taken)) = (self.rows.get_mut(at), self.taken.get_mut(at)) else {
            return false;
        };
        if std::mem::replace(taken, true) {
            return false;
        }
        known.fell = known.kind != Type::Gauge && fell(&known.value, &value);
        known.value = value;
        self.order.push(at);
        !known.fell
    }

    fn add(&mut self, row: &Row<'_>, metric: &Metadata, value: Value) -> bool {
        if !labels_fit(row, &metric.fields) {
            return false;
        }
        let (name, labels) = key(row);
        let pairs: Vec<_> = labels
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        let known = Known {
            text: Page::labels(&pairs),
            kind: metric.kind(),
            value,
            fell: false,
            name,
            labels,
        };
        if let Some(index) = &mut self.index {
            index.insert(known.key(), self.rows.len());
        }
        self.order.push(self.rows.len());
        self.taken.push(true);
        self.rows.push(known);
        true
    }

    fn in_order(self) -> Vec<Known> {
        let unchanged = self.order.iter().copied().eq(0..self.rows.len());
        if unchanged {
            return self.rows;
        }
        let mut rows: Vec<_> = self.rows.into_iter().map(Some).collect();
        let row = |at: &usize| rows.get_mut(*at).and_then(Option::take);
        self.order.iter().filter_map(row).collect()
    }
}

fn key(row: &Row<'_>) -> Key {
    let labels = row.labels.iter();
    let labels = labels.map(|(name, value)| (name.as_str().to_owned(), value.as_str().to_owned()));
    (row.metric.name.as_str().to_owned(), labels.collect())
}

/// Whether a counter, or one of a histogram, is less than it was.
fn fell(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Number(old), Value::Number(new)) => new.value() < old.value(),
        (Value::Histogram(old), Value::Histogram(new)) => {
            let mut pairs = old.buckets.iter().zip(&new.buckets);
            new.total.value() < old.total.value() || pairs.any(|(old, new)| new.n < old.n)
        }
        _ => true,
    }
}

/// The labels are those that were registered, and no others.
fn labels_fit(row: &Row<'_>, fields: &[Field]) -> bool {
    let fits = |field: &Field| {
        let mut told = row.labels.iter();
        let value = told.find(|(name, _)| name.as_str() == field.field_name);
        let Some(value) = value.map(|(_, value)| value.as_str()) else {
            return false;
        };
        match field.allowed_values.as_slice() {
            [] => value.len() <= MAX_LABEL && !value.contains(char::is_control),
            allowed => allowed.iter().any(|allowed| allowed == value),
        }
    };
    row.labels.len() == fields.len() && fields.iter().all(fits)
}

/// The value of a row; `None` if it is not what its metric's must be, or is of another type.
fn value(row: &Row<'_>, registered: &Metadata) -> Option<Value> {
    let kind = registered.kind();
    if kind != row.metric.r#type {
        return None;
    }
    match (kind, row.val, &row.histogram) {
        (Type::Gauge, Some(number), None) => number.is_sound().then_some(Value::Number(number)),
        (Type::Counter, Some(number), None) => is_positive(number).then_some(Value::Number(number)),
        (Type::Histogram, None, Some(histogram)) => {
            is_as_registered(histogram, registered).then(|| Value::Histogram(histogram.clone()))
        }
        _ => None,
    }
}

fn is_positive(number: Number) -> bool {
    number.is_sound() && number.value() >= 0.0
}

/// Bounds as registered, sum positive.
fn is_as_registered(histogram: &Buckets, registered: &Metadata) -> bool {
    let mut starts = registered.distribution_bucket_lower_bounds.iter().skip(1);
    let fit = histogram.buckets.iter().all(|bucket| match starts.next() {
        Some(start) => bucket.le == bound(*start, registered.units),
        None => bucket.le.is_endless(),
    });
    let count = registered.distribution_bucket_lower_bounds.len();
    fit && histogram.buckets.len() == count && is_positive(histogram.total)
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
    use crate::{Data, Definition, Histogram, Metric, Snapshot};

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
        let json = serde_json::to_string(&Snapshot { when, data }).unwrap();
        verifier.check(&serde_json::from_str(&json).unwrap())
    }

    fn page(verifier: &Verifier) -> String {
        let mut page = Page::default();
        assert_eq!(verifier.write("sandbox=\"s1\"", &mut page), 0);
        page.text()
    }

    #[test]
    fn a_sound_row_passes_with_the_help_that_was_registered() {
        let mut verifier = verifier();
        assert_eq!(check(&mut verifier, vec![starts(1)]), 1);
        assert_eq!(verifier.dropped(), 0);
        let want = "# HELP berm_starts_total Starts.\n# TYPE berm_starts_total counter\n\
            berm_starts_total{sandbox=\"s1\",container=\"c1\"} 1\n";
        assert_eq!(page(&verifier), want);
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
    fn rows_are_known_again_in_any_order_and_those_that_are_gone_are_forgotten() {
        let of =
            |id: &str, value| row("berm_starts_total", Type::Counter, ("container", id), value);
        let mut verifier = verifier();
        assert_eq!(
            check(&mut verifier, vec![of("a", 1), of("b", 2), of("c", 3)]),
            3
        );
        // One is new, one is gone, the others have changed places and come twice.
        let next = vec![
            of("c", 4),
            of("d", 1),
            of("c", 9),
            of("a", 1),
            of("d", 1),
            of("a", 9),
        ];
        assert_eq!(check(&mut verifier, next), 3);
        assert_eq!(verifier.dropped(), 3);
        let lines = |text: &str| text.lines().filter(|l| !l.starts_with('#')).count();
        let text = page(&verifier);
        assert_eq!(lines(&text), 3, "{text}");
        assert!(text.contains("container=\"c\"} 4\n"), "{text}");
        // Forgotten: it may begin anew. Held against what it was: it may not.
        assert_eq!(check(&mut verifier, vec![of("b", 1), of("c", 3)]), 1);
        assert_eq!(check(&mut verifier, vec![of("b", 1), of("b", 2)]), 1);
        let text = page(&verifier);
        assert!(
            lines(&text) == 1 && text.contains("container=\"b\"} 1\n"),
            "{text}"
        );
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
