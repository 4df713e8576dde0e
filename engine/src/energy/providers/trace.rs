//! The text of a recorded trace. It stands alone: the lines at its head describe every domain.
//!
//! ```text
//! # leapfrog energy trace 1
//! # domain rapl:package-0 source=rapl class=counter modulus_uj=262143328850 bases=cpu,gpu+cpu exclusive=true
//!   shared=false max_watts=1000 update_ns=1000000 busy_ns=20000000 rail=host          (one line)
//! # missing rapl:dram-0 source=rapl reason=permission_denied bases=cpu,gpu+cpu remedy=to the end of the line
//! # t_ns,domain,raw
//! 20000000,rapl:package-0,1234567
//! 40000000,rapl:package-0,!read_failed
//! 60000000,@suspended,3600000000000
//! ```
//!
//! `t_ns` is the sampler's time in nanoseconds; it never goes back. A reading is a whole number of microjoules for a domain
//! of class `counter` (or `61.5W`, the power, once the counter was found wrong), watts for `power` and `interval_mean`, or `!` and the reason why there was none.
//! `@suspended` is how long the machine has slept so far, in nanoseconds; it is written when that has changed. `none`
//! stands for what is not known. A domain of class `power` may have `averaging_ns`.

use std::time::Duration;

use crate::energy::types::{Basis, Domain, Missing, Rail, Raw, Source, SourceClass, Unavailable};

/// The first line.
pub(super) const HEAD: &str = "# leapfrog energy trace 1";
/// The line that ends the head.
pub(super) const COLUMNS: &str = "# t_ns,domain,raw";
/// The name of the time asleep in the column of domains.
pub(super) const SUSPENDED: &str = "@suspended";

/// The line of the head for what a provider found. `None` if the name of the domain would break the format.
pub(super) fn describe(found: &Result<Domain, Missing>) -> Option<String> {
    let id = match found {
        Ok(domain) => &domain.id,
        Err(missing) => &missing.domain,
    };
    if id.is_empty() || id.contains([',', '@', '!', '#']) || id.contains(char::is_whitespace) {
        return None;
    }
    Some(match found {
        Ok(domain) => {
            let class = match domain.class {
                SourceClass::Counter { modulus_uj } => format!("counter modulus_uj={}", or_none(modulus_uj)),
                SourceClass::IntervalMean => "interval_mean".into(),
                SourceClass::InstantPower { averaging } => {
                    format!("power averaging_ns={}", or_none(averaging.map(|time| time.as_nanos())))
                }
            };
            let rail = match domain.rail {
                Rail::Host => "host".into(),
                Rail::Accelerator(index) => format!("accelerator:{index}"),
            };
            format!(
                "# domain {id} source={} class={class} bases={} exclusive={} shared={} max_watts={} update_ns={} \
                 busy_ns={} rail={rail}",
                domain.source,
                bases_text(domain.bases),
                domain.exclusive,
                domain.shared,
                domain.max_watts,
                or_none(domain.update_period.map(|time| time.as_nanos())),
                domain.busy_period.as_nanos(),
            )
        }
        Err(missing) => format!(
            "# missing {id} source={} reason={} bases={} remedy={}",
            missing.source,
            missing.reason,
            bases_text(missing.bases),
            missing.remedy.replace('\n', " "),
        ),
    })
}

/// What a reading is written as.
pub(super) fn reading_text(reading: Result<Raw, Unavailable>, class: SourceClass) -> String {
    match (reading, class) {
        (Ok(Raw::Counter(microjoules)), _) => microjoules.to_string(),
        (Ok(Raw::Watts(watts)), SourceClass::Counter { .. }) => format!("{watts}W"),
        (Ok(Raw::Watts(watts)), _) => watts.to_string(),
        (Err(reason), _) => format!("!{reason}"),
    }
}

/// Reads a reading of a domain of this class.
pub(super) fn parse_reading(text: &str, class: SourceClass) -> Result<Result<Raw, Unavailable>, String> {
    if let Some(name) = text.strip_prefix('!') {
        return Ok(Err(reason(name)?));
    }
    Ok(Ok(match class {
        SourceClass::Counter { .. } => match text.strip_suffix('W') {
            Some(watts) => Raw::Watts(number(watts, "watts")?),
            None => Raw::Counter(number(text, "a whole number of microjoules")?),
        },
        SourceClass::IntervalMean | SourceClass::InstantPower { .. } => Raw::Watts(number(text, "watts")?),
    }))
}

/// Reads a line of the head that describes something; `None` for any other comment.
pub(super) fn parse_description(line: &str) -> Result<Option<Result<Domain, Missing>>, String> {
    let line = line.trim_start_matches('#').trim_start();
    if let Some(rest) = line.strip_prefix("domain ") {
        return parse_domain(rest).map(|domain| Some(Ok(domain)));
    }
    let Some(rest) = line.strip_prefix("missing ") else { return Ok(None) };
    let (rest, remedy) = rest.split_once(" remedy=").ok_or("`remedy` is missing")?;
    let (id, fields) = Fields::parse(rest)?;
    Ok(Some(Err(Missing {
        domain: id.into(),
        source: source(fields.get("source")?)?,
        reason: reason(fields.get("reason")?)?,
        remedy: remedy.into(),
        bases: bases(fields.get("bases")?)?,
    })))
}

fn parse_domain(rest: &str) -> Result<Domain, String> {
    let (id, fields) = Fields::parse(rest)?;
    let class = match fields.get("class")? {
        "counter" => SourceClass::Counter { modulus_uj: fields.optional("modulus_uj")? },
        "interval_mean" => SourceClass::IntervalMean,
        "power" => SourceClass::InstantPower { averaging: fields.optional("averaging_ns")?.map(Duration::from_nanos) },
        other => return Err(format!("no class `{other}`; there are counter, interval_mean and power")),
    };
    let rail = match fields.get("rail")? {
        "host" => Rail::Host,
        other => {
            let index = other.strip_prefix("accelerator:").ok_or("a rail is `host` or `accelerator:` and an index")?;
            Rail::Accelerator(number(index, "the index of an accelerator")?)
        }
    };
    let max_watts: f64 = number(fields.get("max_watts")?, "watts")?;
    // The bound keeps sums of microjoules far from their end.
    if !(max_watts > 0.0 && max_watts <= 1e6) {
        return Err("`max_watts` must be above 0 and at most 1e6".into());
    }
    source(fields.get("source")?)?;
    Ok(Domain {
        id: id.into(),
        // The numbers come from the trace, whatever wrote it.
        source: Source::Replay,
        class,
        bases: bases(fields.get("bases")?)?,
        exclusive: number(fields.get("exclusive")?, "true or false")?,
        shared: number(fields.get("shared")?, "true or false")?,
        max_watts,
        update_period: fields.optional("update_ns")?.map(Duration::from_nanos),
        busy_period: Duration::from_nanos(number(fields.get("busy_ns")?, "nanoseconds")?),
        rail,
    })
}

/// `key=value` after the name of a domain.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> Result<(&'a str, Self), String> {
        let mut words = text.split_ascii_whitespace();
        let id = words.next().ok_or("the name of the domain is missing")?;
        let fields = words.map(|word| word.split_once('=').ok_or_else(|| format!("`{word}` is not `key=value`")));
        Ok((id, Self(fields.collect::<Result<_, _>>()?)))
    }

    fn get(&self, key: &str) -> Result<&'a str, String> {
        let field = self.0.iter().find(|(name, _)| *name == key);
        field.map(|(_, value)| *value).ok_or_else(|| format!("`{key}` is missing"))
    }

    fn optional(&self, key: &str) -> Result<Option<u64>, String> {
        match self.get(key)? {
            "none" => Ok(None),
            value => number(value, "a whole number or none").map(Some),
        }
    }
}

/// A number, or another value with a usual text.
pub(super) fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not {what}"))
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}

fn reason(name: &str) -> Result<Unavailable, String> {
    let found = Unavailable::ALL.into_iter().find(|reason| reason.name() == name);
    found.ok_or_else(|| format!("no reason is called `{name}`"))
}

fn source(name: &str) -> Result<Source, String> {
    let found = Source::ALL.into_iter().find(|source| source.name() == name);
    found.ok_or_else(|| format!("no source is called `{name}`"))
}

fn bases_text(bases: &[Basis]) -> String {
    if bases.is_empty() {
        return "none".into();
    }
    bases.iter().map(|basis| basis.name()).collect::<Vec<_>>().join(",")
}

fn bases(text: &str) -> Result<&'static [Basis], String> {
    if text == "none" {
        return Ok(&[]);
    }
    let named = |name: &str| {
        let found = Basis::ALL.into_iter().find(|basis| basis.name() == name);
        found.ok_or_else(|| format!("no basis is called `{name}`"))
    };
    let bases: Vec<Basis> = text.split(',').map(named).collect::<Result<_, _>>()?;
    // A few bytes for each domain of a trace, for as long as the process lives.
    Ok(Vec::leak(bases))
}
