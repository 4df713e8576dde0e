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
