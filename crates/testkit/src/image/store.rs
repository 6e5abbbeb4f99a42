//! Images as blobs by digest, and the names that lead to them (OCI image specification 1.1).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tar::Tar;

/// Images under construction. Layers are plain tar archives.
#[derive(Debug, Default)]
pub struct Store {
    blobs: BTreeMap<String, Content>,
    /// A name with its tag, and the descriptor of its manifest.
    manifests: Vec<(String, Value)>,
}

/// A blob and what it is.
#[derive(Debug)]
pub struct Content {
    /// Its media type.
    pub media_type: &'static str,
    /// Itself.
    pub bytes: Vec<u8>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Store {
    /// Adds an image of `layers`; `process` is the object `config` of an image's configuration.
    pub fn image(&mut self, name: &str, layers: &[&[u8]], process: &Value) {
        let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": process,
            "rootfs": { "type": "layers", "diff_ids": digests },
        });
        let config = self.blob(CONFIG, config.to_string().into_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob(LAYER, layer.to_vec()))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let manifest = self.blob(MANIFEST, manifest.to_string().into_bytes());
        self.manifests.push((name.to_owned(), manifest));
    }

    /// The digest of the manifest that `name`, with its tag, leads to.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&str> {
        let (_, manifest) = self.manifests.iter().find(|(known, _)| known == name)?;
        manifest["digest"].as_str()
    }

    /// A manifest, configuration or layer.
    #[must_use]
    pub fn get(&self, digest: &str) -> Option<&Content> {
        self.blobs.get(digest)
    }

    /// All of it as an archive that `ctr images import` reads.
    #[must_use]
    pub fn archive(&self) -> Vec<u8> {
        let mut tar = Tar::default();
        for (digest, content) in &self.blobs {
            let name = format!("blobs/{}", digest.replace(':', "/"));
            tar.file(&name, &content.bytes, 0o644, 0);
        }
        tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644, 0);
        let named = |(name, manifest): &(String, Value)| {
            let mut manifest = manifest.clone();
            manifest["annotations"] = json!({
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name,
            });
            manifest
        };
        let manifests: Vec<Value> = self.manifests.iter().map(named).collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        tar.file("index.json", index.to_string().as_bytes(), 0o644, 0);
        tar.finish()
    }

    fn blob(&mut self, media_type: &'static str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        self.blobs
            .entry(digest)
            .or_insert(Content { media_type, bytes });
        descriptor
    }
}

/// This machine in the words of an image, which are Go's.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}
