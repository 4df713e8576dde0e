//! GPUs of several makers as one: that there is none of one maker matters only if there is none at all.

use std::collections::BTreeMap;

use crate::energy::types::{Basis, Domain, EnergyProvider, Missing, Rail, Raw, Unavailable};

/// Joins the providers of GPUs. Indices go on from one to the next.
pub(crate) struct Accelerators {
    providers: Vec<Box<dyn EnergyProvider>>,
    owners: BTreeMap<String, usize>,
}

impl Accelerators {
    /// Joins these.
    pub(crate) fn new(providers: Vec<Box<dyn EnergyProvider>>) -> Self {
        Self { providers, owners: BTreeMap::new() }
    }

    fn owner(&mut self, domain: &str) -> Option<&mut Box<dyn EnergyProvider>> {
        self.providers.get_mut(*self.owners.get(domain)?)
    }
}

impl EnergyProvider for Accelerators {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        let mut found: Vec<Result<Domain, Missing>> = Vec::new();
        for (owner, provider) in self.providers.iter_mut().enumerate() {
            let before = found.iter().filter(|domain| is_accelerator(domain)).count();
            for mut domain in provider.discover() {
                if let Ok(domain) = &mut domain {
                    self.owners.insert(domain.id.clone(), owner);
                    if let Rail::Accelerator(index) = &mut domain.rail {
                        *index += before;
                    }
                }
                found.push(domain);
            }
        }
        let covered = |basis: &Basis| {
            let of = |domain: &Result<Domain, Missing>| match domain {
                Ok(domain) => domain.bases.contains(basis),
                Err(missing) => is_device(missing) && missing.bases.contains(basis),
            };
            found.iter().any(of)
        };
        let keep: Vec<bool> = found
            .iter()
            .map(|domain| {
                domain.as_ref().map_or_else(|lost| is_device(lost) || !lost.bases.iter().all(covered), |_| true)
            })
            .collect();
        let mut keep = keep.into_iter();
        found.retain(|_| keep.next().unwrap_or(true));
        found
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        self.owner(domain).ok_or(Unavailable::NoSensor)?.read(domain)
    }

    fn foreign_processes(&mut self, domain: &str) -> Option<usize> {
        self.owner(domain)?.foreign_processes(domain)
    }
}

fn is_accelerator(domain: &Result<Domain, Missing>) -> bool {
    domain.as_ref().is_ok_and(|domain| matches!(domain.rail, Rail::Accelerator(_)))
}

/// Whether one device cannot be read, and not all of a kind.
fn is_device(missing: &Missing) -> bool {
    missing.domain.contains(':')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::energy::{
        providers::{CPU, GPU},
        types::{Source, SourceClass},
    };

    struct Told(Vec<Result<Domain, Missing>>);

    impl EnergyProvider for Told {
        fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
            self.0.clone()
        }

        fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
            Ok(Raw::Counter(domain.len() as u64))
        }
    }

    fn gpu(id: &str, index: usize, bases: &'static [Basis]) -> Result<Domain, Missing> {
        Ok(Domain {
            id: id.into(),
            source: Source::Amdgpu,
            class: SourceClass::IntervalMean,
            bases,
            exclusive: true,
            shared: false,
            max_watts: 1.0,
            update_period: None,
            busy_period: Duration::ZERO,
            rail: if bases == GPU { Rail::Accelerator(index) } else { Rail::Host },
        })
    }

    fn lost(id: &str) -> Result<Domain, Missing> {
        let reason = Unavailable::NoSensor;
        Err(Missing { domain: id.into(), source: Source::Nvml, reason, remedy: String::new(), bases: GPU })
    }

    fn found(providers: Vec<Vec<Result<Domain, Missing>>>) -> Vec<(String, Option<usize>)> {
        let providers = providers.into_iter().map(|found| Box::new(Told(found)) as Box<dyn EnergyProvider>).collect();
        let told = |found| match found {
            Ok(Domain { id, rail: Rail::Accelerator(index), .. }) => (id, Some(index)),
            Ok(Domain { id, .. }) | Err(Missing { domain: id, .. }) => (id, None),
        };
        Accelerators::new(providers).discover().into_iter().map(told).collect()
    }

    #[test]
    fn a_maker_without_gpus_matters_only_if_there_is_no_gpu() {
        let none = found(vec![vec![lost("nvml")], vec![lost("amdgpu")]]);
        assert_eq!(none, [("nvml".into(), None), ("amdgpu".into(), None)]);
        let one = found(vec![vec![lost("nvml")], vec![gpu("amdgpu:1", 0, GPU)]]);
        assert_eq!(one, [("amdgpu:1".into(), Some(0))]);
        let asleep = found(vec![vec![lost("nvml:1")], vec![lost("amdgpu")]]);
        assert_eq!(asleep, [("nvml:1".into(), None)]);
        let chip = found(vec![vec![lost("nvml")], vec![gpu("amdgpu:1", 0, CPU)]]);
        assert_eq!(chip, [("nvml".into(), None), ("amdgpu:1".into(), None)]);
    }

    #[test]
    fn indices_go_on_from_one_maker_to_the_next() {
        let (first, second) = (vec![gpu("a:1", 0, GPU), gpu("a:2", 1, GPU)], vec![gpu("b:1", 0, GPU)]);
        let indices: Vec<_> = found(vec![first.clone(), second.clone()]).into_iter().map(|(_, index)| index).collect();
        assert_eq!(indices, [Some(0), Some(1), Some(2)]);
        let mut joined = Accelerators::new(vec![Box::new(Told(first)), Box::new(Told(second))]);
        assert_eq!(joined.read("b:1"), Err(Unavailable::NoSensor), "not before they are found");
        joined.discover();
        assert_eq!(joined.read("b:1"), Ok(Raw::Counter(3)));
        assert_eq!(joined.read("c:1"), Err(Unavailable::NoSensor));
        assert_eq!(joined.foreign_processes("a:1"), None);
    }
}
