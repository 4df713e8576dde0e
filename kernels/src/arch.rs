//! Which vector instructions the kernels use. Decided once from the CPU, never at compile time.

use std::{cell::Cell, fmt, sync::OnceLock};

/// A set of vector instructions that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuLevel {
    /// No assumption beyond the build target.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

thread_local! {
    static CHOSEN: Cell<Option<CpuLevel>> = const { Cell::new(None) };
}

impl CpuLevel {
    /// All levels, lowest first.
    const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this machine can run the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// The levels of this machine, lowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|level| level.is_available()).collect()
    }

    /// The level that kernels called from this thread use: the highest available, unless [`CpuLevel::scope`] says
    /// otherwise.
    pub fn current() -> Self {
        static HIGHEST: OnceLock<CpuLevel> = OnceLock::new();
        CHOSEN.get().unwrap_or_else(|| {
            *HIGHEST.get_or_init(|| {
                Self::ALL.into_iter().rev().find(|level| level.is_available()).unwrap_or(Self::Portable)
            })
        })
    }

    /// Runs `body` with this level for the kernels that this thread calls; for tests and measurements. Returns `None`,
    /// and runs nothing, if the machine lacks the level.
    pub fn scope<R>(self, body: impl FnOnce() -> R) -> Option<R> {
        struct Restore(Option<CpuLevel>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CHOSEN.set(self.0);
            }
        }
        if !self.is_available() {
            return None;
        }
        let _restore = Restore(CHOSEN.replace(Some(self)));
        Some(body())
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512-vnni",
        })
    }
}
