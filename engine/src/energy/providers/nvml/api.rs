//! The few calls of NVIDIA's management library that are needed, and the library itself.

use std::{fmt, time::Duration};

use nvml_wrapper::{Device, Nvml, enums::device::SampleValue, error::NvmlError, structs::device::FieldId};

use crate::energy::types::Unavailable;

/// The power now, in milliwatts.
const FIELD_POWER_INSTANT: FieldId = FieldId(186);

/// Which device is meant. By its PCI address where the system tells it: other ways may wake further devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Such as `0000:01:00.0`.
    Pci(String),
    /// The library's own number.
    Index(u32),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => formatter.write_str(address),
            Self::Index(index) => index.fmt(formatter),
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The library or its driver is not there.
    #[error("{0}")]
    DriverMissing(String),
    /// The device has no such sensor, or the library no such call.
    #[error("the device does not support it")]
    NotSupported,
    /// The user may not.
    #[error("not permitted")]
    Denied,
    /// No such device is visible here.
    #[error("no such device")]
    NotFound,
    /// Anything else, such as a lost device.
    #[error("{0}")]
    Failed(String),
}

impl Fault {
    /// What it means for a sensor.
    pub(crate) fn reason(&self) -> Unavailable {
        match self {
            Self::DriverMissing(_) => Unavailable::DriverMissing,
            Self::NotSupported => Unavailable::NotSupported,
            Self::Denied => Unavailable::PermissionDenied,
            Self::NotFound => Unavailable::NoSensor,
            Self::Failed(_) => Unavailable::ReadFailed,
        }
    }
}

/// The library, or a script.
pub(crate) trait NvmlApi: Send {
    /// Number of devices.
    fn count(&mut self) -> Result<u32, Fault>;
    /// The name of a device that no other has.
    fn uuid(&mut self, device: &Address) -> Result<String, Fault>;
    /// Whether the device is divided into instances that others may use.
    fn is_divided(&mut self, device: &Address) -> Result<bool, Fault>;
    /// Energy since the driver was loaded, in millijoules.
    fn energy_mj(&mut self, device: &Address) -> Result<u64, Fault>;
    /// Power now, in milliwatts.
    fn instant_power_mw(&mut self, device: &Address) -> Result<f64, Fault>;
    /// Power as the plain call gives it, in milliwatts: the mean of the last second on most devices.
    fn power_mw(&mut self, device: &Address) -> Result<f64, Fault>;
    /// The limit of power in force, in milliwatts.
    fn limit_mw(&mut self, device: &Address) -> Result<u32, Fault>;
    /// Processes that compute on the device.
    fn processes(&mut self, device: &Address) -> Result<Vec<u32>, Fault>;
    /// Lets time pass between two looks at a sensor.
    fn wait(&mut self, time: Duration);
}

/// The library of this machine.
pub(crate) struct Library(Nvml);

impl Library {
    /// Loads it.
    ///
    /// # Errors
    /// [`Fault::DriverMissing`] if it or its driver is not there.
    pub(crate) fn load() -> Result<Box<dyn NvmlApi>, Fault> {
        Ok(Box::new(Self(Nvml::init()?)))
    }

    fn device(&self, device: &Address) -> Result<Device<'_>, Fault> {
        Ok(match device {
            Address::Pci(address) => self.0.device_by_pci_bus_id(address.as_str())?,
            Address::Index(index) => self.0.device_by_index(*index)?,
        })
    }
}

impl NvmlApi for Library {
    fn count(&mut self) -> Result<u32, Fault> {
        Ok(self.0.device_count()?)
    }

    fn uuid(&mut self, device: &Address) -> Result<String, Fault> {
        Ok(self.device(device)?.uuid()?)
    }

    fn is_divided(&mut self, device: &Address) -> Result<bool, Fault> {
        Ok(self.device(device)?.mig_mode()?.current != 0)
    }

    fn energy_mj(&mut self, device: &Address) -> Result<u64, Fault> {
        Ok(self.device(device)?.total_energy_consumption()?)
    }

    fn instant_power_mw(&mut self, device: &Address) -> Result<f64, Fault> {
        let mut values = self.device(device)?.field_values_for(&[FIELD_POWER_INSTANT])?;
        let value = values.pop().ok_or(Fault::NotSupported)?.and_then(|sample| sample.value);
        match value {
            Ok(SampleValue::F64(value)) => Ok(value),
            Ok(SampleValue::U32(value)) => Ok(f64::from(value)),
            Ok(SampleValue::U64(value)) => Ok(value as f64),
            Ok(SampleValue::I64(value)) => Ok(value as f64),
            // Drivers that do not know the field say so in this way.
            Err(NvmlError::InvalidArg) => Err(Fault::NotSupported),
            Err(error) => Err(error.into()),
        }
    }

    fn power_mw(&mut self, device: &Address) -> Result<f64, Fault> {
        Ok(f64::from(self.device(device)?.power_usage()?))
    }

    fn limit_mw(&mut self, device: &Address) -> Result<u32, Fault> {
        Ok(self.device(device)?.enforced_power_limit()?)
    }

    fn processes(&mut self, device: &Address) -> Result<Vec<u32>, Fault> {
        let processes = self.device(device)?.running_compute_processes()?;
        Ok(processes.into_iter().map(|process| process.pid).collect())
    }

    fn wait(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl From<NvmlError> for Fault {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded => {
                Self::DriverMissing(error.to_string())
            }
            NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => {
                Self::NotSupported
            }
            NvmlError::NoPermission => Self::Denied,
            NvmlError::NotFound => Self::NotFound,
            other => Self::Failed(other.to_string()),
        }
    }
}
