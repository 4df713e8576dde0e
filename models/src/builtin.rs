//! The model that is part of the program.

use crate::source::folder::ModelFiles;

/// Its files, by name.
static FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../builtin/config.json")),
    ("generation_config.json", include_bytes!("../builtin/generation_config.json")),
    ("tokenizer.json", include_bytes!("../builtin/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../builtin/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../builtin/model.safetensors")),
];

/// The files of the built-in model.
pub(crate) fn files() -> ModelFiles {
    ModelFiles::Embedded(FILES)
}
