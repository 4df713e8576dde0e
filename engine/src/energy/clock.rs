//! The clocks of the system.

use std::time::{Duration, Instant};

use super::types::{Clock, Nanos};

/// Monotonic time since it was made.
#[derive(Debug)]
pub(crate) struct SystemClock(Instant);

impl SystemClock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    #[cfg(target_os = "linux")]
    fn suspended(&self) -> Duration {
        use rustix::time::{ClockId, clock_gettime};
        let read = |clock| {
            let time = clock_gettime(clock);
            Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
        };
        // The one goes on while the machine sleeps and the other does not.
        read(ClockId::Boottime).saturating_sub(read(ClockId::Monotonic))
    }

    #[cfg(not(target_os = "linux"))]
    fn suspended(&self) -> Duration {
        Duration::ZERO
    }
}

/// Processor time of this thread; `None` where the system does not tell.
#[cfg(target_os = "linux")]
pub(crate) fn thread_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
}

/// Processor time of this thread; `None` where the system does not tell.
#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_time() -> Option<Duration> {
    None
}
