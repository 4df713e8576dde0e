//! Facts about the machine. Those of this one are those of the server only if it runs here.

use std::fs;

use serde_json::{Value, json};

use super::wire::{EnergyState, is_gpu};
use crate::hardware::Hardware;

/// The first line of a file, if it can be read and has one.
fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// As the harness names them; the name of the host is nobody's business.
pub(super) fn system(local: bool) -> Value {
    let hardware = local.then(Hardware::read);
    let here = |value: Option<String>| value.filter(|_| local);
    json!({
        "os_name": here(Some(std::env::consts::OS.into())),
        "os_version": here(os_version()),
        "kernel_version": here(line("/proc/sys/kernel/osrelease")),
        "host_name": null,
        "cpu_count": hardware.as_ref().map(|hardware| hardware.cores),
        "cpu_brand": hardware.as_ref().map(|hardware| hardware.cpu.as_str()),
    })
}

fn os_version() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

/// The first accelerator of the basis.
pub(super) fn gpu(state: Option<&EnergyState>) -> Value {
    let rail = state.and_then(|state| state.domains.iter().find(|rail| is_gpu(&rail.domain)));
    let vendor = rail.map(|rail| match rail.domain.split(':').next() {
        Some("nvml") => "NVIDIA",
        Some("amdgpu") => "AMD",
        Some("apple") => "Apple",
        _ => "Intel",
    });
    json!({
        "name": rail.and_then(|rail| rail.name.as_deref()), "vendor": vendor, "device_id": null,
        "device_type": rail.map(|_| "gpu"), "backend": rail.and_then(|rail| rail.source.as_deref()),
    })
}

/// The first word with letters and digits of the GPU's name, else of the CPU's.
pub(super) fn label(gpu: &Value, system: &Value) -> String {
    let word = |name: Option<&str>| {
        let words = name?.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let mixed =
            |word: &&str| word.chars().any(|c| c.is_ascii_alphabetic()) && word.chars().any(|c| c.is_ascii_digit());
        words.into_iter().find(mixed).map(|word| word.to_ascii_uppercase())
    };
    word(gpu["name"].as_str()).or_else(|| word(system["cpu_brand"].as_str())).unwrap_or_else(|| "UNKNOWN_HW".into())
}

/// What else bears on power.
pub(super) fn facts(local: bool) -> Value {
    if !local {
        return Value::Null;
    }
    json!({
        "hardware": Hardware::read(),
        "cpu_governor": line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "platform_profile": line("/sys/firmware/acpi/platform_profile"),
        "virtual": fs::read_to_string("/proc/cpuinfo").ok()
            .map(|text| text.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_words_with_letters_and_digits() {
        let named = |gpu: Value, cpu: Value| label(&json!({"name": gpu}), &json!({"cpu_brand": cpu}));
        assert_eq!(named(json!("NVIDIA GeForce RTX4070"), json!("x")), "RTX4070");
        assert_eq!(named(Value::Null, json!("Intel(R) Core(TM) i7-1260P")), "I7-1260P");
        assert_eq!(named(Value::Null, Value::Null), "UNKNOWN_HW");
    }
}
