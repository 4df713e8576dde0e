//! The models that are part of the program. Adding one is a line in [`ALL`] and its folder in `models/builtin/`.

use std::{fmt, str::FromStr};

use crate::{ModelError, source::folder::ModelFiles};

/// One model that is part of the program.
#[derive(Clone, Copy)]
pub struct BuiltIn {
    name: &'static str,
    summary: &'static str,
    /// By file name.
    files: &'static [(&'static str, &'static [u8])],
}

/// The files of `models/builtin/<name>/`: those of every model, and the others that are named.
macro_rules! built_in {
    ($name:literal, $summary:literal $(, $file:literal)*) => {
        BuiltIn {
            name: $name,
            summary: $summary,
            files: &built_in!(@files $name; "config.json", "generation_config.json", "model.safetensors",
                "tokenizer.json", "tokenizer_config.json" $(, $file)*),
        }
    };
    (@files $name:literal; $($file:literal),*) => {
        [$(($file, include_bytes!(concat!("../builtin/", $name, "/", $file)).as_slice())),*]
    };
}

/// All of them; the first is the default.
static ALL: &[BuiltIn] = &[
    built_in!("leapfrog-diffusion", "a diffusion model with full attention", "diffusion.json"),
    built_in!("leapfrog-ar", "a causal model"),
    built_in!("leapfrog-cllm", "a causal model trained for Jacobi decoding", "jacobi.json"),
    built_in!("leapfrog-block", "a block-causal diffusion model", "diffusion.json"),
    built_in!("leapfrog-lla", "a causal model with local linear attention"),
];

impl BuiltIn {
    /// What all of them were trained for, to go on behind a subject.
    pub const SKILLS: &str = "solves short word problems with worked steps, turns a sentence into JSON, writes simple \
                              SQL from a question and a table schema, and makes small talk about that";

    /// All of them, the default first.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        ALL.iter().copied()
    }

    /// The name by which it is asked for, which is also its id.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// What kind of model it is, with its article.
    pub fn summary(self) -> &'static str {
        self.summary
    }

    /// All names, for messages.
    pub(crate) fn names() -> String {
        ALL.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn files(self) -> ModelFiles {
        ModelFiles::Embedded { name: self.name, files: self.files }
    }
}

impl Default for BuiltIn {
    fn default() -> Self {
        ALL[0]
    }
}

impl FromStr for BuiltIn {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = ALL.iter().find(|model| model.name == name).copied();
        found.ok_or_else(|| ModelError::BadSource { name: name.into() })
    }
}

impl PartialEq for BuiltIn {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for BuiltIn {}

impl fmt::Debug for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the files: they are megabytes.
        f.debug_tuple("BuiltIn").field(&self.name).finish()
    }
}
