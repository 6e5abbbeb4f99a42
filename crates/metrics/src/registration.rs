//! What a sandbox says at its birth that it will tell.

use serde::{Deserialize, Serialize, Serializer};

use crate::histogram::BOUNDS_NS;

/// What kind of number a metric is; the numbers are gVisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Type {
    /// Goes up and down.
    Gauge = 1,
    /// Never falls.
    Counter = 2,
    /// Counts by size, none of which ever falls.
    Histogram = 3,
}

impl Type {
    /// The word of Prometheus.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

impl From<Type> for u8 {
    fn from(kind: Type) -> Self {
        match kind {
            Type::Gauge => 1,
            Type::Counter => 2,
            Type::Histogram => 3,
        }
    }
}

impl TryFrom<u8> for Type {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, &'static str> {
        match number {
            1 => Ok(Self::Gauge),
            2 => Ok(Self::Counter),
            3 => Ok(Self::Histogram),
            _ => Err("type is none of 1 (gauge), 2 (counter), 3 (histogram)"),
        }
    }
}

/// A label of a metric as the code defines it: its name and the values that it takes; none: any.
pub type Label = (&'static str, &'static [&'static str]);

/// A metric as the code defines it.
#[derive(Debug, PartialEq, Eq)]
pub struct Definition {
    /// Prometheus' name, `berm_` included.
    pub name: &'static str,
    /// Gauge, counter, histogram.
    pub kind: Type,
    /// Its labels, those of the sandbox not among them.
    pub labels: &'static [Label],
    /// What it says, and where the kernel has it from.
    pub help: &'static str,
}

/// A metric as it is registered: gVisor's `MetricMetadata`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// `/berm/containers`: the other name with slashes.
    pub name: String,
    /// `berm_containers`
    pub prometheus_name: String,
    /// For people.
    pub description: String,
    /// It never falls.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cumulative: bool,
    /// 0 a number, 1 a distribution.
    #[serde(default, skip_serializing_if = "is_default")]
    pub r#type: u8,
    /// Of a distribution's bounds: 0 none, 1 ns.
    #[serde(default, skip_serializing_if = "is_default")]
    pub units: u8,
    /// Its labels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fields: Vec<Field>,
    /// Where each bucket of a distribution begins.
    #[serde(default, skip_serializing_if = "is_default")]
    pub distribution_bucket_lower_bounds: Vec<i64>,
}

/// A label of a registered metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name.
    pub field_name: String,
    /// The values that it takes; none: any.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allowed_values: Vec<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Metadata {
    /// What kind of number it is.
    pub fn kind(&self) -> Type {
        match (self.r#type, self.cumulative) {
            (0, true) => Type::Counter,
            (0, false) => Type::Gauge,
            _ => Type::Histogram,
        }
    }
}

impl From<&Definition> for Metadata {
    fn from(definition: &Definition) -> Self {
        let histogram = definition.kind == Type::Histogram;
        let field = |(name, values): &Label| Field {
            field_name: (*name).to_owned(),
            allowed_values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let bounds = || std::iter::once(0).chain(BOUNDS_NS.map(u64::cast_signed));
        Self {
            name: format!("/{}", definition.name.replacen('_', "/", 1)),
            prometheus_name: definition.name.to_owned(),
            description: definition.help.to_owned(),
            cumulative: definition.kind != Type::Gauge,
            r#type: histogram.into(),
            units: histogram.into(),
            fields: definition.labels.iter().map(field).collect(),
            distribution_bucket_lower_bounds: match histogram {
                true => bounds().collect(),
                false => Vec::new(),
            },
        }
    }
}

/// gVisor's `MetricRegistration`: every metric that later snapshots may have.
///
/// The sandbox's own is a reference to the table in the code and costs no memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub enum Registration {
    /// This build's.
    Own(&'static [Definition]),
    /// As a record or a sandbox told it.
    Told(Vec<Metadata>),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    metrics: Vec<Metadata>,
    /// gVisor's phases of the sandbox's start; Berm has none.
    #[serde(default)]
    stages: Vec<String>,
}

impl From<Wire> for Registration {
    fn from(wire: Wire) -> Self {
        Self::Told(wire.metrics)
    }
}

impl Registration {
    /// Every metric.
    pub fn metrics(&self) -> Vec<Metadata> {
        match self {
            Self::Own(definitions) => definitions.iter().map(Metadata::from).collect(),
            Self::Told(metrics) => metrics.clone(),
        }
    }
}

impl PartialEq for Registration {
    fn eq(&self, other: &Self) -> bool {
        self.metrics() == other.metrics()
    }
}

impl Eq for Registration {}

impl Serialize for Registration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let wire = Wire {
            metrics: self.metrics(),
            stages: Vec::new(),
        };
        wire.serialize(serializer)
    }
}
