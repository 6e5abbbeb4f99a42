//! Prometheus' text format, version 0.0.4.
//!
//! Written here and not by `prometheus-client`: that writes OpenMetrics only, from values that
//! live in its registry, while these come from other processes and are written once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::snapshot::{Buckets, Data, Number};
use crate::{Metric, Type};

/// What a row says.
#[derive(Debug)]
pub(crate) enum Value {
    Number(Number),
    Histogram(Buckets),
}

/// A page of metrics: rows of many sandboxes, those of one metric together.
#[derive(Debug, Default)]
pub struct Page {
    families: BTreeMap<String, Family>,
}

#[derive(Debug)]
struct Family {
    kind: Type,
    help: String,
    rows: String,
}

impl Page {
    /// Adds a row with these labels before its own; false if the page has the name with another
    /// type, which is not added.
    #[must_use]
    pub fn add(&mut self, labels: &str, data: &Data) -> bool {
        let Metric { name, r#type, help } = &data.metric;
        let own: Vec<_> = data
            .labels
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        let labels = [labels, &Self::labels(&own)];
        let number = data.val.map(Value::Number);
        let histogram = data.histogram.clone().map(Value::Histogram);
        let mut values = number.iter().chain(&histogram);
        values.all(|value| self.row((name, *r#type, help), labels, value))
    }

    /// The same for a row whose labels are written already.
    pub(crate) fn row(
        &mut self,
        (name, kind, help): (&str, Type, &str),
        labels: [&str; 2],
        value: &Value,
    ) -> bool {
        // Looked up first: most rows are not the first of their metric.
        if !self.families.contains_key(name) {
            let family = Family {
                kind,
                help: help.to_owned(),
                rows: String::new(),
            };
            self.families.insert(name.to_owned(), family);
        }
        let Some(family) = self.families.get_mut(name) else {
            return false;
        };
        if family.kind != kind {
            return false;
        }
        match value {
            Value::Number(number) => line(&mut family.rows, name, "", labels, *number),
            Value::Histogram(buckets) => histogram(&mut family.rows, name, labels, buckets),
        }
        true
    }

    /// The text.
    pub fn text(&self) -> String {
        let long = self.families.values().map(|family| family.rows.len() + 256);
        let mut text = String::with_capacity(long.sum());
        for (name, family) in &self.families {
            let kind = family.kind.as_str();
            let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            text.push_str(&family.rows);
        }
        text
    }

    /// Labels as [`Page::add`] takes them.
    pub fn labels(pairs: &[(&str, &str)]) -> String {
        let mut text = String::new();
        for (name, value) in pairs {
            label(&mut text, name, value);
        }
        text
    }
}

fn label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push('"');
}

fn line(text: &mut String, name: &str, suffix: &str, labels: [&str; 2], number: Number) {
    text.push_str(name);
    text.push_str(suffix);
    let [first, second] = labels;
    let comma = if first.is_empty() || second.is_empty() {
        ""
    } else {
        ","
    };
    if !first.is_empty() || !second.is_empty() {
        for part in ["{", first, comma, second, "}"] {
            text.push_str(part);
        }
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, " {}", number.value());
}

fn histogram(text: &mut String, name: &str, labels: [&str; 2], histogram: &Buckets) {
    let [first, own] = labels;
    let mut count: u64 = 0;
    for bucket in &histogram.buckets {
        count = count.saturating_add(bucket.n);
        let le = match bucket.le.is_endless() {
            true => "+Inf".to_owned(),
            false => bucket.le.value().to_string(),
        };
        let mut own = own.to_owned();
        label(&mut own, "le", &le);
        line(text, name, "_bucket", [first, &own], count.into());
    }
    line(text, name, "_sum", labels, histogram.total);
    line(text, name, "_count", labels, count.into());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Histogram;

    fn data(name: &str, kind: Type, label: &str) -> Data {
        Data {
            metric: Metric {
                name: name.into(),
                r#type: kind,
                help: "a\\b\nc".into(),
            },
            labels: [("container".to_owned(), label.to_owned())].into(),
            val: Some(7.into()),
            histogram: None,
        }
    }

    #[test]
    fn rows_of_one_metric_stand_together_and_labels_are_escaped() {
        let mut page = Page::default();
        let labels = |id| Page::labels(&[("sandbox", id)]);
        assert!(page.add(&labels("s1"), &data("b", Type::Gauge, "x")));
        assert!(page.add(&labels("s1"), &data("a_total", Type::Counter, "x")));
        assert!(page.add(&labels("s2"), &data("b", Type::Gauge, "q\"\\\n")));
        assert!(!page.add(&labels("s3"), &data("b", Type::Counter, "x")));
        let want = "\
# HELP a_total a\\\\b\\nc
# TYPE a_total counter
a_total{sandbox=\"s1\",container=\"x\"} 7
# HELP b a\\\\b\\nc
# TYPE b gauge
b{sandbox=\"s1\",container=\"x\"} 7
b{sandbox=\"s2\",container=\"q\\\"\\\\\\n\"} 7
";
        assert_eq!(page.text(), want);
    }

    #[test]
    fn a_histogram_counts_upwards_to_infinity() {
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_micros(200));
        histogram.observe(Duration::from_secs(60));
        let mut data = data("p_seconds", Type::Histogram, "x");
        data.labels.clear();
        (data.val, data.histogram) = (None, Some(histogram.buckets()));
        let mut page = Page::default();
        assert!(page.add("", &data));
        let text = page.text();
        for line in [
            "p_seconds_bucket{le=\"0.0001\"} 0\n",
            "p_seconds_bucket{le=\"0.00025\"} 1\n",
            "p_seconds_bucket{le=\"10\"} 1\n",
            "p_seconds_bucket{le=\"+Inf\"} 2\np_seconds_sum 60.0002\np_seconds_count 2\n",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
    }
}
