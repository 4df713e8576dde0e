//! Experts that a GGUF file keeps in one tensor, taken apart.

use crate::{
    config::{EXPERT_PARTS, EXPERTS, MAX_EXPERTS},
    loader::TensorEntry,
};

/// The experts of a merged tensor `[experts, out, in]`, each by its own name and over its own bytes. `None` if the tensor
/// is not one of merged experts. The bytes stay where and as they are: rows are independent in every stored type.
pub(super) fn split(name: &str, merged: &TensorEntry) -> Option<Vec<(String, TensorEntry)>> {
    let (prefix, part) = name.strip_suffix(".weight")?.split_once(&format!(".{EXPERTS}."))?;
    let &[num_experts, outputs, inputs] = merged.shape.as_slice() else { return None };
    if !EXPERT_PARTS.contains(&part) || num_experts > MAX_EXPERTS {
        return None;
    }
    // The tensor is a whole number of rows, so an expert is too.
    let len = merged.bytes.len() / num_experts;
    let expert = |index: usize| {
        let start = merged.bytes.start + index * len;
        let entry = TensorEntry { shape: vec![outputs, inputs], bytes: start..start + len, ..merged.clone() };
        (format!("{prefix}.{EXPERTS}.{index}.{part}.weight"), entry)
    };
    Some((0..num_experts).map(expert).collect())
}

#[cfg(test)]
mod tests {
    use kernels::GgmlType;

    use super::*;

    #[test]
    fn experts_share_the_bytes_in_order() {
        let merged = TensorEntry { file: 0, stored: GgmlType::Q8_0, shape: vec![3, 2, 32], bytes: 100..100 + 6 * 34 };
        let experts = split("model.layers.7.mlp.experts.up_proj.weight", &merged).expect("merged experts");
        assert_eq!(experts.len(), 3);
        let (name, last) = &experts[2];
        assert_eq!(name, "model.layers.7.mlp.experts.2.up_proj.weight");
        assert_eq!((last.shape.as_slice(), last.bytes.clone()), ([2, 32].as_slice(), 100 + 4 * 34..100 + 6 * 34));
        assert!(split("model.layers.7.mlp.up_proj.weight", &merged).is_none());
        let flat = TensorEntry { shape: vec![6, 32], ..merged };
        assert!(split("model.layers.7.mlp.experts.up_proj.weight", &flat).is_none());
    }
}
