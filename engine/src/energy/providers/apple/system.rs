//! The counters of macOS behind the rails, through `macmon`.

use std::time::{Duration, Instant};

use macmon::Sampler;

use super::{Interval, Meter, OpenMeter};

struct System {
    sampler: Sampler,
    /// When the last interval ended.
    last: Instant,
}

/// A meter of this machine.
pub(crate) fn open() -> OpenMeter {
    Box::new(|| {
        let sampler = Sampler::new().map_err(|error| error.to_string())?;
        Ok(Box::new(System { sampler, last: Instant::now() }) as Box<dyn Meter>)
    })
}

impl Meter for System {
    fn next(&mut self, interval: Duration) -> Result<Interval, String> {
        let milliseconds = u32::try_from(interval.as_millis()).map_err(|error| error.to_string())?;
        let metrics = self.sampler.get_metrics(milliseconds).map_err(|error| error.to_string())?;
        let now = Instant::now();
        let time = now.duration_since(std::mem::replace(&mut self.last, now));
        let watts = [metrics.cpu_power, metrics.gpu_power, metrics.ane_power, metrics.ram_power, metrics.sys_power];
        Ok(Interval::from_watts(time, watts.map(f64::from)))
    }
}
