//! How the metrics of one or more engines are written: one description a name, and under it the samples of every
//! engine with its model as a label.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, TypedMetric, counter::Counter},
    registry::Unit,
};

use crate::{
    metrics::{CanvasMetrics, Metrics},
    solver::SolverMetrics,
};

/// Instruments of one kind, told apart by labels. A `Family` of the client library could not be written under the label
/// of its engine. Clones share the instruments.
#[derive(Debug, Clone)]
pub(crate) struct ByLabels<L, M> {
    instruments: Arc<RwLock<BTreeMap<L, M>>>,
    make: fn() -> M,
}

impl<L: Ord + Clone, M: Clone> ByLabels<L, M> {
    /// No instruments yet; `make` makes them as they are asked for.
    pub(crate) fn new(make: fn() -> M) -> Self {
        Self { instruments: Arc::default(), make }
    }

    /// The instrument with these labels.
    pub(crate) fn get_or_create(&self, labels: &L) -> M {
        if let Some(instrument) = self.instruments.read().unwrap_or_else(PoisonError::into_inner).get(labels) {
            return instrument.clone();
        }
        let mut instruments = self.instruments.write().unwrap_or_else(PoisonError::into_inner);
        instruments.entry(labels.clone()).or_insert_with(self.make).clone()
    }

    fn is_empty(&self) -> bool {
        self.instruments.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The metrics of engines, each with the id of its model.
#[derive(Debug)]
pub(crate) struct Exposition(pub(crate) Vec<(String, Metrics)>);

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Metrics::write(&mut Page { encoder, engines: &self.0 })
    }
}

/// The canvases of those engines that fill some, under the names that other servers have for them.
#[derive(Debug)]
pub(crate) struct CanvasExposition(Vec<(String, CanvasMetrics)>);

impl Exposition {
    pub(crate) fn canvases(&self) -> CanvasExposition {
        CanvasExposition(self.0.iter().filter_map(|(model, m)| Some((model.clone(), m.canvas.clone()?))).collect())
    }
}

impl Collector for CanvasExposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        type Of = fn(&CanvasMetrics) -> &Counter;
        let names: [(&str, &str, Of); 3] = [
            ("vllm:diffusion_num_denoising_steps", "Denoising steps.", |m| &m.steps),
            ("vllm:diffusion_num_canvas_positions", "Positions of canvases that were evaluated.", |m| &m.positions),
            ("vllm:diffusion_num_committed_tokens", "Tokens that became final.", |m| &m.committed),
        ];
        for (name, help, of) in names {
            let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, metrics) in &self.0 {
                let labels = [("model_name", model.as_str()), ("engine", "0")];
                of(metrics).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Writes one name after the other.
pub(crate) struct Page<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    engines: &'a [(String, Metrics)],
}

impl Page<'_, '_> {
    /// An instrument that every engine has once.
    pub(crate) fn one<M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        of: fn(&Metrics) -> &M,
    ) -> fmt::Result {
        self.with_unit(name, help, None, of)
    }

    /// The same in seconds, which the name will say.
    pub(crate) fn seconds<M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        of: fn(&Metrics) -> &M,
    ) -> fmt::Result {
        self.with_unit(name, help, Some(&Unit::Seconds), of)
    }

    fn with_unit<M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        of: fn(&Metrics) -> &M,
    ) -> fmt::Result {
        let mut encoder = self.encoder.encode_descriptor(name, &format!("{help}."), unit, M::TYPE)?;
        for (model, metrics) in self.engines {
            of(metrics).encode(encoder.encode_family(&Labels { model, more: None })?)?;
        }
        Ok(())
    }

    /// An instrument of the engines whose models solve systems, where it is counted. Without such an engine the name is left
    /// out.
    pub(crate) fn solver<M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        of: fn(&SolverMetrics) -> Option<&M>,
    ) -> fmt::Result {
        let engines = self.engines.iter();
        let mut engines = engines.filter_map(|(model, m)| Some((model, of(m.solver.as_ref()?)?))).peekable();
        if engines.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.encoder.encode_descriptor(name, &format!("{help}."), None, M::TYPE)?;
        for (model, metric) in engines {
            metric.encode(encoder.encode_family(&Labels { model, more: None })?)?;
        }
        Ok(())
    }

    /// Instruments that every engine has for some labels. A name without samples is left out.
    pub(crate) fn by<L, M>(&mut self, name: &str, help: &str, of: fn(&Metrics) -> &ByLabels<L, M>) -> fmt::Result
    where
        L: EncodeLabelSet + Ord + Clone,
        M: EncodeMetric + TypedMetric + Clone,
    {
        if self.engines.iter().all(|(_, metrics)| of(metrics).is_empty()) {
            return Ok(());
        }
        let mut encoder = self.encoder.encode_descriptor(name, &format!("{help}."), None, M::TYPE)?;
        for (model, metrics) in self.engines {
            for (labels, instrument) in of(metrics).instruments.read().unwrap_or_else(PoisonError::into_inner).iter() {
                instrument.encode(encoder.encode_family(&Labels { model, more: Some(labels) })?)?;
            }
        }
        Ok(())
    }
}

/// The model first, then what else there is.
struct Labels<'a> {
    model: &'a str,
    more: Option<&'a dyn EncodeLabelSet>,
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("model", self.model)].encode(encoder)?;
        self.more.map_or(Ok(()), |more| more.encode(encoder))
    }
}

#[cfg(test)]
mod tests {
    use models::{SolverDetails, SolverReport};
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;
    use crate::metrics::{Outcome, OutcomeLabels, StrategyLabels};

    fn page(engines: Vec<(String, Metrics)>) -> String {
        let mut registry = Registry::default();
        registry.sub_registry_with_prefix("leapfrog").register_collector(Box::new(Exposition(engines)));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn canvases_are_counted_under_names_that_others_have() {
        let canvas = CanvasMetrics::default();
        canvas.observe(8, 3);
        canvas.observe(0, 0);
        canvas.observe(8, 5);
        let llada = Metrics { canvas: Some(canvas), ..Metrics::new() };
        let exposition = Exposition(vec![("llada".into(), llada), ("qwen".into(), Metrics::new())]);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(exposition.canvases()));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for (name, value) in [("denoising_steps", 2), ("canvas_positions", 16), ("committed_tokens", 8)] {
            let line = format!("vllm:diffusion_num_{name}_total{{model_name=\"llada\",engine=\"0\"}} {value}\n");
            assert!(page.contains(&line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("qwen"));
    }

    #[test]
    fn engines_share_descriptions_and_keep_their_samples_apart() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.running.set(3);
        two.running.set(4);
        one.refused.inc();
        two.queue_seconds.observe(0.5);
        two.requests.get_or_create(&OutcomeLabels { outcome: Outcome::Stop, strategy: "ar" }).inc_by(2);
        two.acceptance.get_or_create(&StrategyLabels { strategy: "jacobi" }).observe(2.0);
        let page = page(vec![("a/\"b\"".into(), one), ("c".into(), two)]);
        for line in [
            "# HELP leapfrog_requests_running Sequences that decode now.",
            "# TYPE leapfrog_requests_running gauge",
            r#"leapfrog_requests_running{model="a/\"b\""} 3"#,
            r#"leapfrog_requests_running{model="c"} 4"#,
            r#"leapfrog_requests_refused_total{model="a/\"b\""} 1"#,
            r#"leapfrog_requests_refused_total{model="c"} 0"#,
            r#"leapfrog_requests_total{model="c",outcome="stop",strategy="ar"} 2"#,
            "# UNIT leapfrog_queue_duration_seconds seconds",
            r#"leapfrog_queue_duration_seconds_count{model="c"} 1"#,
            r#"leapfrog_accepted_tokens_bucket{le="2.0",model="c",strategy="jacobi"} 1"#,
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        // A second description or a sample twice is what readers of this format refuse.
        let mut seen = std::collections::BTreeSet::new();
        for line in page.lines().filter(|line| !line.starts_with("# EOF")) {
            let key = if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 };
            assert!(seen.insert(key), "twice: {key}");
        }
        assert!(!page.contains("leapfrog_slots_decided"), "a name without samples: {page}");
        assert!(!page.contains("leapfrog_lla"), "no model solves systems: {page}");
    }

    #[test]
    fn only_engines_that_solve_systems_say_how_that_went() {
        let solving = Metrics { solver: Some(SolverMetrics::new(true)), ..Metrics::new() };
        let on_device = Metrics { solver: Some(SolverMetrics::new(false)), ..Metrics::new() };
        let report = SolverReport {
            num_queries: 12,
            num_steps: 39,
            most_steps: 5,
            num_capped: 3,
            num_fallbacks: 4,
            details: None,
        };
        let details = SolverDetails {
            iterations: vec![1, 0, 0, 8, 0, 3],
            num_frozen: 2,
            num_weak_ridges: 5,
            largest_eta: 6.5,
            changes: vec![0.25, f64::NAN, 1.25],
        };
        let smaller = SolverDetails { largest_eta: 0.5, changes: vec![], ..details.clone() };
        on_device.solver.as_ref().unwrap().observe(&report);
        let solver = solving.solver.as_ref().unwrap();
        for details in [details, smaller] {
            solver.observe(&SolverReport { details: Some(details), ..report.clone() });
        }
        let alone = page(vec![("gpu".into(), on_device.clone())]);
        let page = page(vec![("plain".into(), Metrics::new()), ("lla".into(), solving), ("gpu".into(), on_device)]);
        for line in [
            "# TYPE leapfrog_lla_queries counter",
            r#"leapfrog_lla_queries_total{model="lla"} 24"#,
            "# TYPE leapfrog_lla_iterations histogram",
            r#"leapfrog_lla_iterations_sum{model="lla"} 78.0"#,
            r#"leapfrog_lla_iterations_count{model="lla"} 24"#,
            r#"leapfrog_lla_iterations_bucket{le="1.0",model="lla"} 2"#,
            r#"leapfrog_lla_iterations_bucket{le="3.0",model="lla"} 18"#,
            r#"leapfrog_lla_iterations_bucket{le="6.0",model="lla"} 24"#,
            r#"leapfrog_lla_capped_total{model="lla"} 6"#,
            r#"leapfrog_lla_frozen_total{model="lla"} 4"#,
            r#"leapfrog_lla_fallbacks_total{model="lla"} 8"#,
            r#"leapfrog_lla_weak_ridges_total{model="lla"} 10"#,
            "# TYPE leapfrog_lla_largest_eta gauge",
            r#"leapfrog_lla_largest_eta{model="lla"} 6.5"#,
            r#"leapfrog_lla_change_sum{model="lla"} 1.5"#,
            r#"leapfrog_lla_change_count{model="lla"} 2"#,
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        let of_plain = |line: &str| line.contains("leapfrog_lla") && line.contains(r#"model="plain""#);
        assert!(!page.lines().any(of_plain), "{page}");
        // What a device does not count has no sample, and no description if nobody counts it.
        let of_device = |page: &str| {
            let lines = page.lines().filter(|line| line.starts_with("leapfrog_lla") && line.contains(r#"model="gpu""#));
            lines.map(String::from).collect::<Vec<_>>()
        };
        let counted = ["queries_total 12", "capped_total 3", "fallbacks_total 4"].map(|counted| {
            let (name, count) = counted.split_once(' ').unwrap();
            format!(r#"leapfrog_lla_{name}{{model="gpu"}} {count}"#)
        });
        assert_eq!((of_device(&page), of_device(&alone)), (counted.to_vec(), counted.to_vec()));
        for name in ["iterations", "frozen", "weak_ridges", "largest_eta", "change"] {
            assert!(!alone.contains(&format!("leapfrog_lla_{name}")), "{alone}");
        }
    }
}
