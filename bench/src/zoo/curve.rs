//! Accuracy against tokens per forward of the diffusion model: thresholds, and LocalLeap over its three parameters.

use std::{fs, path::Path};

use anyhow::Context;
use engine::{DiffusionOptions, Policy};

use super::{
    Setup,
    canvas::{local_leap, threshold, whole},
    exam::{Method, Question, sit},
    subject::Subject,
    table::{Findings, Unit},
};
use crate::{
    plot::{Captions, Point, Scale, Series, scatter},
    stats::{Estimate, accuracy_under_parallelism},
};

/// What is swept.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    pub(super) thresholds: Vec<f32>,
    pub(super) kappas: Vec<f32>,
    pub(super) taus: Vec<f32>,
    pub(super) radii: Vec<usize>,
}

/// One setting and what came of it.
#[derive(Debug, Clone)]
struct Sample {
    setting: Setting,
    problems: usize,
    accuracy: Estimate,
    tokens_per_forward: Estimate,
    chars_per_forward: f64,
    passes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Setting {
    OneAPass,
    Threshold(f32),
    LocalLeap { kappa: f32, tau: f32, radius: usize },
}

impl Setting {
    fn options(self) -> DiffusionOptions {
        match self {
            Self::OneAPass => DiffusionOptions { policy: Some(Policy::Quota), ..DiffusionOptions::default() },
            Self::Threshold(kappa) => threshold(kappa),
            Self::LocalLeap { kappa, tau, radius } => local_leap(kappa, tau, radius),
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::OneAPass => "one token a pass",
            Self::Threshold(_) => "threshold",
            Self::LocalLeap { .. } => "LocalLeap",
        }
    }

    /// `kappa,tau,radius`, empty where there is none.
    fn cells(self) -> String {
        match self {
            Self::OneAPass => ",,".into(),
            Self::Threshold(kappa) => format!("{kappa},,"),
            Self::LocalLeap { kappa, tau, radius } => format!("{kappa},{tau},{radius}"),
        }
    }
}

impl Grid {
    /// One token a pass, all thresholds, and LocalLeap where `tau` is below `kappa`: elsewhere it relaxes nothing.
    fn settings(&self) -> Vec<Setting> {
        let mut settings = vec![Setting::OneAPass];
        settings.extend(self.thresholds.iter().map(|kappa| Setting::Threshold(*kappa)));
        for &kappa in &self.kappas {
            for &tau in self.taus.iter().filter(|tau| **tau < kappa) {
                settings.extend(self.radii.iter().map(|&radius| Setting::LocalLeap { kappa, tau, radius }));
            }
        }
        settings
    }
}

/// Runs the sweep and writes `curve.csv` and `curve.svg` into `out`.
pub(super) fn curve(
    setup: &Setup<'_>,
    model: &Subject,
    questions: &[Question],
    grid: &Grid,
    out: Option<&Path>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut samples = Vec::new();
    for setting in grid.settings() {
        let name = format!("{} {}", setting.method(), setting.cells());
        let method = Method::canvas(name.trim(), whole(setup, setting.options()), setup.canvas);
        let sitting = sit(model, &method, questions, setup.seed)?;
        let tally = sitting.tally(|_| true);
        samples.push(Sample {
            setting,
            problems: tally.problems,
            accuracy: tally.accuracy().context("no problems")?,
            tokens_per_forward: sitting.tokens_per_forward(setup.seed, |_| true).context("no passes")?,
            chars_per_forward: tally.per_pass(tally.chars),
            passes: tally.passes,
        });
    }
    findings.sections.push(section(&samples));
    if let Some(folder) = out {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(folder.join("curve.csv"), csv(&samples))?;
        fs::write(folder.join("curve.svg"), picture(&samples)?)?;
    }
    for (method, aup) in areas(&samples) {
        let value = aup.map(|value| Estimate { value, low: value, high: value });
        findings.reported(format!("AUP of {method} (no interval)"), Unit::Plain, value);
    }
    Ok(())
}

/// Accuracy under parallelism of each swept method; the best accuracy is that of any setting.
fn areas(samples: &[Sample]) -> [(&'static str, Option<f64>); 2] {
    let best = samples.iter().map(|sample| sample.accuracy.value * 100.0).fold(0.0, f64::max);
    ["threshold", "LocalLeap"].map(|method| {
        let of_method = samples.iter().filter(|sample| sample.setting.method() == method);
        let points: Vec<(f64, f64)> =
            of_method.map(|sample| (sample.tokens_per_forward.value, sample.accuracy.value * 100.0)).collect();
        (method, accuracy_under_parallelism(&points, best).filter(|area| area.is_finite()))
    })
}

fn section(samples: &[Sample]) -> String {
    let mut text = format!(
        "## Accuracy against tokens per forward\n\n{} problems for each setting, all tasks, the serial control among them; \
         `curve.svg` and `curve.csv`.\n\n| method | kappa, tau, radius | right | tokens per forward | characters per \
         forward |\n|---|---|---|---|---|\n",
        samples.first().map_or(0, |sample| sample.problems),
    );
    for sample in samples {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {:.2} |\n",
            sample.setting.method(),
            sample.setting.cells().trim_matches(',').replace(',', ", "),
            Unit::Percent.write(sample.accuracy),
            Unit::Plain.write(sample.tokens_per_forward),
            sample.chars_per_forward,
        ));
    }
    text
}

fn csv(samples: &[Sample]) -> String {
    let mut text = "method,kappa,tau,radius,problems,accuracy,accuracy_low,accuracy_high,tokens_per_forward,\
                    tokens_per_forward_low,tokens_per_forward_high,characters_per_forward,passes\n"
        .to_owned();
    for Sample { setting, problems, accuracy, tokens_per_forward, chars_per_forward, passes } in samples {
        text.push_str(&format!(
            "{},{},{problems},{:.5},{:.5},{:.5},{:.4},{:.4},{:.4},{chars_per_forward:.4},{passes}\n",
            setting.method(),
            setting.cells(),
            accuracy.value,
            accuracy.low,
            accuracy.high,
            tokens_per_forward.value,
            tokens_per_forward.low,
            tokens_per_forward.high,
        ));
    }
    text
}

fn picture(samples: &[Sample]) -> Result<String, std::fmt::Error> {
    const COLOURS: [&str; 5] = ["#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d"];
    let point = |sample: &Sample| Point {
        x: sample.tokens_per_forward.value,
        y: sample.accuracy.value * 100.0,
        low: sample.accuracy.low * 100.0,
        high: sample.accuracy.high * 100.0,
        label: format!("{} {}", sample.setting.method(), sample.setting.cells()),
    };
    let series = |name: String, colour, joined, wanted: &dyn Fn(&Setting) -> bool| Series {
        name,
        colour,
        joined,
        points: samples.iter().filter(|sample| wanted(&sample.setting)).map(point).collect(),
    };
    let mut all = vec![
        series("one token a pass".into(), "#000000", false, &|setting| *setting == Setting::OneAPass),
        series("threshold".into(), "#d95f02", true, &|setting| matches!(setting, Setting::Threshold(_))),
    ];
    let mut radii: Vec<usize> = samples
        .iter()
        .filter_map(|sample| match sample.setting {
            Setting::LocalLeap { radius, .. } => Some(radius),
            _ => None,
        })
        .collect();
    radii.sort_unstable();
    radii.dedup();
    for (radius, colour) in radii.into_iter().zip(COLOURS.into_iter().cycle()) {
        let wanted = |setting: &Setting| matches!(setting, Setting::LocalLeap { radius: r, .. } if *r == radius);
        all.push(series(format!("LocalLeap, W = {radius}"), colour, false, &wanted));
    }
    let captions = Captions {
        title: "leapfrog-diffusion, held-out problems",
        x: ("tokens per forward", Scale::Linear),
        y: ("exact answers, %", Scale::Linear),
    };
    scatter(&captions, &all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(setting: Setting, accuracy: f64, rate: f64) -> Sample {
        let exact = |value| Estimate { value, low: value, high: value };
        Sample {
            setting,
            problems: 10,
            accuracy: exact(accuracy),
            tokens_per_forward: exact(rate),
            chars_per_forward: 3.0 * rate,
            passes: 100,
        }
    }

    #[test]
    fn the_grid_has_no_setting_that_relaxes_nothing() {
        let grid =
            Grid { thresholds: vec![0.9], kappas: vec![0.7, 0.9], taus: vec![0.6, 0.75, 0.9], radii: vec![2, 4] };
        let settings = grid.settings();
        assert_eq!(settings.len(), 1 + 1 + 2 * (1 + 2));
        assert!(!settings.contains(&Setting::LocalLeap { kappa: 0.7, tau: 0.75, radius: 2 }));
    }

    #[test]
    fn areas_are_by_method_and_share_the_best_accuracy() {
        let leap = |tau| Setting::LocalLeap { kappa: 0.9, tau, radius: 4 };
        let samples = [
            sample(Setting::OneAPass, 0.8, 1.0),
            sample(leap(0.5), 0.76, 5.0),
            sample(leap(0.8), 0.80, 1.0),
            sample(leap(0.7), 0.79, 3.0),
            sample(Setting::Threshold(0.9), 0.40, 2.0),
        ];
        let [(_, threshold), (_, leap)] = areas(&samples);
        assert!((threshold.unwrap() - 80.0).abs() < 1e-9);
        assert!((leap.unwrap() - 377.6).abs() < 0.05);
        let csv = csv(&samples);
        assert_eq!(csv.lines().count(), 6);
        let columns: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert!(columns.iter().all(|count| *count == columns[0]), "{csv}");
        assert!(csv.contains("LocalLeap,0.9,0.5,4,10,0.76000"), "{csv}");
        assert_eq!(picture(&samples).unwrap().matches("<title>").count(), 5);
    }
}
