//! What runs a model.

use std::{fmt, str::FromStr, sync::Arc};

use kernels::{
    cuda,
    device::{Device, ElementType},
};

use crate::ModelError;

/// What runs a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device.
    Cuda {
        /// Its number, from 0 on.
        ordinal: usize,
    },
}

impl Target {
    /// Opens the device; `None` is the processor.
    ///
    /// # Errors
    /// If the build has no CUDA, the machine no driver or no such device, or the kernels were not compiled for it. The
    /// processor is never taken instead.
    pub fn open(self) -> Result<Option<Arc<dyn Device>>, ModelError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda { ordinal } => match cuda::open(ordinal) {
                Ok(device) => Ok(Some(device)),
                Err(source) => Err(ModelError::NoDevice { target: self.to_string(), source: Box::new(source) }),
            },
        }
    }

    /// Refuses a device that is not there, without opening it.
    ///
    /// # Errors
    /// Those of [`Target::open`] that need no device to be found out.
    pub fn check(self) -> Result<(), ModelError> {
        let Self::Cuda { ordinal } = self else { return Ok(()) };
        let missing = |source| ModelError::NoDevice { target: self.to_string(), source: Box::new(source) };
        let count = cuda::count().map_err(missing)?;
        if ordinal < count {
            return Ok(());
        }
        Err(missing(kernels::KernelError::OutOfRange { op: "cuda", what: "device", index: ordinal, len: count }))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { ordinal: 0 } => f.write_str("cuda"),
            Self::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Target {
    type Err = ModelError;

    /// `cpu`, `cuda`, or `cuda:1` for the second device.
    fn from_str(text: &str) -> Result<Self, ModelError> {
        let ordinal = match text.split_once(':') {
            None if text == "cpu" => return Ok(Self::Cpu),
            None if text == "cuda" => Some(0),
            Some(("cuda", ordinal)) => ordinal.parse().ok(),
            _ => None,
        };
        let unsupported = || ModelError::Unsupported {
            origin: "device".into(),
            field: "name".into(),
            value: format!("`{text}`"),
            supported: "cpu, cuda, cuda:N".into(),
        };
        ordinal.map(|ordinal| Self::Cuda { ordinal }).ok_or_else(unsupported)
    }
}

/// The 16-bit type that a device computes with: of the inputs of its matrix products, its keys and values, and weights
/// that are not quantised. Sums and the residual stream are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 11 bits of precision, values up to 65,504.
    F16,
    /// 8 bits of precision, values as large as those of f32; from compute capability 8.0 on.
    BF16,
}

impl Precision {
    /// As arrays have it.
    pub(crate) fn element(self) -> ElementType {
        match self {
            Self::F16 => ElementType::F16,
            Self::BF16 => ElementType::BF16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.element().fmt(f)
    }
}

impl FromStr for Precision {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            other => Err(ModelError::Unsupported {
                origin: "precision".into(),
                field: "type".into(),
                value: format!("`{other}`"),
                supported: "f16, bf16".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_they_are_written() {
        for (text, target) in [
            ("cpu", Target::Cpu),
            ("cuda", Target::Cuda { ordinal: 0 }),
            ("cuda:0", Target::Cuda { ordinal: 0 }),
            ("cuda:3", Target::Cuda { ordinal: 3 }),
        ] {
            assert_eq!(text.parse::<Target>().unwrap(), target);
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
        for text in ["gpu", "cuda:", "cuda:-1", "cpu:0", "CUDA", ""] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("cpu, cuda, cuda:N"), "{error}");
        }
    }
}
