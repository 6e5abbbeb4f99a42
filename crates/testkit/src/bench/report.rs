//! Figures, their median and 90th percentile, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds; less is better.
    Ms,
    /// KiB; less is better.
    KiB,
    /// Per second; more is better.
    PerSecond,
}

/// The figures of one peer in one row.
#[derive(Clone, Debug, Default)]
pub struct Series {
    samples: Vec<f64>,
}

#[derive(Debug)]
struct RowFigures {
    name: &'static str,
    unit: Unit,
    /// One per peer, in the report's order.
    series: Vec<Series>,
}

/// All figures of a run.
#[derive(Debug)]
pub struct Report {
    peers: Vec<String>,
    rows: Vec<RowFigures>,
}

impl Report {
    /// An empty report; the first peer is the one that the others are compared with.
    pub fn new(peers: &[&str]) -> Self {
        Self {
            peers: peers.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a time.
    pub fn time(&mut self, row: &'static str, peer: &str, time: Duration) {
        self.add(row, Unit::Ms, peer, time.as_secs_f64() * 1000.0);
    }

    /// Adds a figure. Rows stand in the order in which they first came.
    pub fn add(&mut self, row: &'static str, unit: Unit, peer: &str, figure: f64) {
        let number = self
            .rows
            .iter()
            .position(|have| have.name == row)
            .unwrap_or_else(|| {
                let series = vec![Series::default(); self.peers.len()];
                self.rows.push(RowFigures {
                    name: row,
                    unit,
                    series,
                });
                self.rows.len() - 1
            });
        if let Some(column) = self.peers.iter().position(|have| have == peer) {
            self.rows[number].series[column].samples.push(figure);
        }
    }

    /// Everything, the samples included, with what is needed to read it later.
    pub fn to_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        json!({
            "version": 1,
            "time_unix_s": time.unwrap_or_default().as_secs(),
            "machine": { "kernel": kernel.trim(), "cpus": cpus },
            "peers": self.peers,
            "rows": rows,
        })
    }

    fn row_json(&self, row: &RowFigures) -> Value {
        let series = row
            .series
            .iter()
            .zip(&self.peers)
            .filter(|(series, _)| !series.is_empty());
        let figures: serde_json::Map<String, Value> = series
            .map(|(series, peer)| {
                let value = json!({
                    "n": series.samples.len(),
                    "median": series.median(),
                    "p90": series.p90(row.unit),
                    "samples": series.samples,
                });
                (peer.clone(), value)
            })
            .collect();
        let ratios: serde_json::Map<String, Value> = self
            .peers
            .iter()
            .enumerate()
            .skip(1)
            .filter_map(|(column, peer)| Some((peer.clone(), json!(row.ratio(column)?))))
            .collect();
        json!({
            "name": row.name,
            "unit": row.unit.to_string(),
            "peers": figures,
            "times_better_than": ratios,
        })
    }
}

impl RowFigures {
    /// How many times better the first peer's median is than that of the peer in `column`.
    fn ratio(&self, column: usize) -> Option<f64> {
        let (first, other) = (
            self.series.first()?.median()?,
            self.series.get(column)?.median()?,
        );
        let (better, worse) = if self.unit == Unit::PerSecond {
            (other, first)
        } else {
            (first, other)
        };
        (better > 0.0).then(|| worse / better)
    }
}

impl Series {
    fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The median; `None` without samples.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        Some(f64::midpoint(*lower, *upper))
    }

    /// The figure that nine in ten samples are as good as or better than (nearest rank).
    pub fn p90(&self, unit: Unit) -> Option<f64> {
        let mut sorted = self.sorted();
        if unit == Unit::PerSecond {
            sorted.reverse();
        }
        sorted
            .get((sorted.len() * 9).div_ceil(10).checked_sub(1)?)
            .copied()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ms => "ms",
            Self::KiB => "KiB",
            Self::PerSecond => "1/s",
        })
    }
}

/// The table: a row each, median and 90th percentile per peer, then how many times better the
/// first peer is than each of the others.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<32}{:>5}{:>6}", "", "unit", "n")?;
        for peer in &self.peers {
            write!(f, "{peer:>10}{:>9}", "p90")?;
        }
        for peer in self.peers.iter().skip(1) {
            write!(f, "{:>12}", format!("{peer}/{}", self.peers[0]))?;
        }
        writeln!(f)?;
        for row in &self.rows {
            let n = row
                .series
                .iter()
                .map(|series| series.samples.len())
                .max()
                .unwrap_or(0);
            write!(f, "{:<32}{:>5}{n:>6}", row.name, row.unit.to_string())?;
            for series in &row.series {
                write!(
                    f,
                    "{:>10}{:>9}",
                    Figure(series.median()),
                    Figure(series.p90(row.unit))
                )?;
            }
            for column in 1..self.peers.len() {
                let ratio = row.ratio(column).map(|ratio| format!("{ratio:.1}x"));
                write!(f, "{:>12}", ratio.as_deref().unwrap_or("-"))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A figure with three or four digits.
struct Figure(Option<f64>);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            None => "-".to_owned(),
            Some(figure) if figure >= 100.0 => format!("{figure:.0}"),
            Some(figure) if figure >= 10.0 => format!("{figure:.1}"),
            Some(figure) => format!("{figure:.2}"),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(samples: &[f64]) -> Series {
        Series {
            samples: samples.to_vec(),
        }
    }

    #[test]
    fn median_of_an_even_count_lies_between_the_middle_two() {
        assert_eq!(series(&[4.0, 1.0, 3.0, 2.0]).median(), Some(2.5));
        assert_eq!(series(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(series(&[]).median(), None);
    }

    #[test]
    fn p90_is_the_bad_end_also_where_more_is_better() {
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(series(&ten).p90(Unit::Ms), Some(9.0));
        assert_eq!(series(&ten).p90(Unit::PerSecond), Some(2.0));
        assert_eq!(series(&[]).p90(Unit::Ms), None);
    }

    #[test]
    fn ratio_says_how_many_times_better_the_first_peer_is() {
        let mut report = Report::new(&["a", "b"]);
        report.add("time", Unit::Ms, "a", 2.0);
        report.add("time", Unit::Ms, "b", 8.0);
        report.add("rate", Unit::PerSecond, "a", 8.0);
        report.add("rate", Unit::PerSecond, "b", 2.0);
        let ratios: Vec<_> = report.rows.iter().map(|row| row.ratio(1)).collect();
        assert_eq!(ratios, [Some(4.0), Some(4.0)]);
    }
}
