//! The same cells in PyTorch: `bench/peers/lla_torch.py` reads the inputs from files and prints a line of JSON for each
//! of its forms.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    LlaArgs,
    inputs::{Inputs, Oracle, Shape},
};

/// What one form reported.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Peer {
    pub(super) name: String,
    /// Why there are no figures.
    pub(super) absent: Option<String>,
    #[serde(default)]
    pub(super) seconds: Vec<f64>,
    pub(super) peak_bytes: Option<u64>,
    /// Against our f64 reference.
    pub(super) error: Option<f64>,
}

/// Writes the inputs and the reference into a folder of its own, runs the script and reads what it prints.
pub(super) fn measure(
    args: &LlaArgs,
    python: &Path,
    inputs: &Inputs,
    oracle: &Oracle,
    ridge: f32,
) -> anyhow::Result<Vec<Peer>> {
    let folder = std::env::temp_dir().join(format!("leapfrog-bench-lla-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let result = write(&folder, args, inputs, oracle, ridge).and_then(|()| {
        let output = Command::new(python)
            .arg(&args.torch_script)
            .arg(&folder)
            .output()
            .with_context(|| format!("cannot run {}", python.display()))?;
        ensure!(output.status.success(), "the peers failed: {}", String::from_utf8_lossy(&output.stderr));
        parse(&String::from_utf8(output.stdout)?)
    });
    fs::remove_dir_all(&folder)?;
    result
}

fn write(folder: &Path, args: &LlaArgs, inputs: &Inputs, oracle: &Oracle, ridge: f32) -> anyhow::Result<()> {
    let Shape { heads, kv_heads, dim, rows, context } = inputs.shape;
    let meta = json!({
        "heads": heads, "kv_heads": kv_heads, "dim": dim, "rows": rows, "context": context, "ridge": ridge,
        "scale": inputs.shape.scale(), "rounds": args.rounds, "device": args.torch_device,
        "threads": rayon::current_num_threads(), "dense_bytes": args.dense_gib * f64::from(1 << 30),
        "reference_rows": oracle.rows,
    });
    fs::write(folder.join("meta.json"), meta.to_string())?;
    fs::write(folder.join("q.bin"), little_endian(&inputs.q)?)?;
    for (name, cache) in [("k.bin", &inputs.keys), ("v.bin", &inputs.values)] {
        let heads = (0..kv_heads).map(|head| inputs.head(cache, head)).collect::<candle_core::Result<Vec<_>>>()?;
        fs::write(folder.join(name), little_endian(&Tensor::stack(&heads, 0)?)?)?;
    }
    let reference: Vec<u8> = oracle.outputs.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(fs::write(folder.join("reference.bin"), reference)?)
}

fn little_endian(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect())
}

fn parse(text: &str) -> anyhow::Result<Vec<Peer>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("not a peer: {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_peers_are_read() {
        let text = "{\"name\":\"a\",\"absent\":null,\"seconds\":[0.5,0.25],\"peak_bytes\":7,\"error\":1e-3}\n\n\
                    {\"name\":\"b\",\"absent\":\"not installed\"}\n";
        let peers = parse(text).unwrap();
        assert_eq!(peers[0].seconds, [0.5, 0.25]);
        assert_eq!((peers[1].absent.as_deref(), peers[1].peak_bytes), (Some("not installed"), None));
        assert!(parse("warning").is_err());
    }
}
