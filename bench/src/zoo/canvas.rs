//! The diffusion models: full attention, and block by block with an exact cache.

use engine::{CacheMode, DiffusionOptions, EarlyStop, Policy};
use zoo::tasks::Task;

use super::{
    Setup,
    causal::{lanes_section, sameness},
    exam::{Method, Question, Sitting, first, sit},
    race::{Contender, Span, race},
    subject::Subject,
    table::{Findings, Goal, Unit, by_task, task_table},
};
use crate::stats::Estimate;

/// LocalLeap as published.
const THRESHOLD: f32 = 0.9;
const RELAXED: f32 = 0.75;
const RADIUS: usize = 4;

/// One slot a pass: the family's ranking, a quota of one.
fn one_a_pass() -> DiffusionOptions {
    DiffusionOptions { policy: Some(Policy::Quota), ..DiffusionOptions::default() }
}

/// All slots that reach `threshold`.
pub(super) fn threshold(threshold: f32) -> DiffusionOptions {
    DiffusionOptions { policy: Some(Policy::Threshold), threshold: Some(threshold), ..DiffusionOptions::default() }
}

/// LocalLeap with these settings.
pub(super) fn local_leap(threshold: f32, relaxed: f32, radius: usize) -> DiffusionOptions {
    DiffusionOptions {
        policy: Some(Policy::LocalLeap),
        threshold: Some(threshold),
        relaxed_threshold: Some(relaxed),
        radius: Some(radius),
        ..DiffusionOptions::default()
    }
}

/// `options` on a whole canvas of the set-up size.
pub(super) fn whole(setup: &Setup<'_>, options: DiffusionOptions) -> DiffusionOptions {
    DiffusionOptions { gen_length: Some(setup.canvas), block_length: setup.block_length, ..options }
}

/// The methods that are compared, in this order.
struct Methods {
    quota: Method,
    threshold: Method,
    local_leap: Method,
    /// LocalLeap as the model's folder recommends it.
    own: Method,
}

impl Methods {
    fn new(setup: &Setup<'_>, early_stop: EarlyStop) -> Self {
        let suffix = if early_stop == EarlyStop::None { ", no early stop" } else { "" };
        let method = |name: &str, options| {
            let options = DiffusionOptions { early_stop: Some(early_stop), ..whole(setup, options) };
            Method::canvas(&format!("{name}{suffix}"), options, setup.canvas)
        };
        Self {
            quota: method("one token a pass", one_a_pass()),
            threshold: method("threshold 0.9", threshold(THRESHOLD)),
            local_leap: method("LocalLeap 0.9, 0.75, 4", local_leap(THRESHOLD, RELAXED, RADIUS)),
            own: method(
                "LocalLeap, the model's own setting",
                DiffusionOptions { policy: Some(Policy::LocalLeap), ..DiffusionOptions::default() },
            ),
        }
    }
}

/// Mean of the accuracies of tasks, whose numbers of problems are equal, and the worst of them.
fn mean_and_worst(sitting: &Sitting) -> (Option<Estimate>, Option<Estimate>) {
    let mean = sitting.tally(|_| true).accuracy();
    let by_task = Task::ALL.into_iter().filter_map(|task| sitting.tally(|other| other == task).accuracy());
    (mean, by_task.min_by(|a, b| a.value.total_cmp(&b.value)))
}

/// How near the baseline comes to its name: published schedules may end a block with two slots in one pass.
fn one_a_pass_note(setup: &Setup<'_>, quota: &Sitting) -> String {
    let passes = || quota.answers.iter().map(|answer| answer.passes);
    format!(
        "\nWhole canvases, without early stop. \"{}\" took {} to {} passes for {} slots:\n\n",
        quota.method,
        passes().min().unwrap_or(0),
        passes().max().unwrap_or(0),
        setup.canvas
    )
}

/// Accuracy, passes and speed under full attention.
pub(super) fn diffusion(
    setup: &Setup<'_>,
    model: &Subject,
    questions: &[Question],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let few = first(questions, setup.timed);
    let ways = Methods::new(setup, EarlyStop::Prefix);
    let full = Methods::new(setup, EarlyStop::None);
    let put = |method: &Method, questions: &[Question]| sit(model, method, questions, setup.seed);
    let quota = put(&ways.quota, questions)?;
    let threshold = put(&ways.threshold, questions)?;
    let leap = put(&ways.local_leap, questions)?;
    let own = put(&ways.own, questions)?;
    let (quota_full, threshold_full) = (put(&full.quota, &few)?, put(&full.threshold, &few)?);
    let (leap_full, own_full) = (put(&full.local_leap, &few)?, put(&full.own, &few)?);
    let (mean, worst) = mean_and_worst(&quota);
    let goal = Goal::at_least(80.0, 95.0);
    findings.judged("diffusion, one token a pass: accuracy, mean of tasks", Unit::Percent, mean, goal);
    findings.judged("- its weakest task", Unit::Percent, worst, Goal::at_least(60.0, 60.0));
    let mut compare = |sitting: &Sitting, full: &Sitting, has_goal: bool| -> anyhow::Result<()> {
        let name = &sitting.method;
        let difference = sitting.accuracy_difference(&quota, |_| true)?;
        let share = sitting.share_of_passes(&quota, setup.seed)?;
        let share_full = full.share_of_passes(&quota_full, setup.seed)?;
        let what = [
            format!("{name}: accuracy against one token a pass"),
            format!("{name}: share of the passes, both stop at the end token"),
            format!("{name}: share of the passes, both fill the canvas"),
        ];
        let goals = [Goal::at_least(-0.5, 0.0), Goal::at_most(25.0, 14.2), Goal::at_most(25.0, 14.2)];
        let figures = [(Unit::Points, difference), (Unit::Percent, share), (Unit::Percent, share_full)];
        for ((what, goal), (unit, estimate)) in what.into_iter().zip(goals).zip(figures) {
            match has_goal {
                true => findings.judged(what, unit, estimate, goal),
                false => findings.reported(what, unit, estimate),
            }
        }
        Ok(())
    };
    compare(&own, &own_full, true)?;
    compare(&leap, &leap_full, true)?;
    compare(&threshold, &threshold_full, false)?;

    let mut warm = Vec::new();
    for temperature in setup.temperatures.into_iter().filter(|temperature| *temperature > 0.0) {
        warm.push(put(&ways.own.clone().at(temperature), questions)?);
    }
    let mut shown = vec![&quota, &threshold, &leap, &own];
    shown.extend(&warm);
    let mut section = by_task("`leapfrog-diffusion`", &shown, setup.seed);
    section.push_str(&one_a_pass_note(setup, &quota_full));
    section.push_str(&task_table(&[&quota_full, &threshold_full, &leap_full, &own_full], setup.seed));
    let quota_few = quota.first(setup.timed);
    section.push_str(&sameness(&[
        (&quota_few, &quota_full),
        (&threshold.first(setup.timed), &threshold_full),
        (&leap.first(setup.timed), &leap_full),
        (&own.first(setup.timed), &own_full),
    ])?);
    findings.sections.push(section);
    findings.sittings.extend([quota, threshold, leap, own, quota_full, threshold_full, leap_full, own_full]);
    findings.sittings.extend(warm);

    let of = |ways: Methods| [ways.quota, ways.threshold, ways.local_leap, ways.own];
    let methods = [of(ways), of(full)].concat();
    let half = methods.len() / 2;
    let contenders: Vec<Contender<'_>> =
        methods.into_iter().map(|method| Contender { subject: model, method }).collect();
    let lanes = race(&contenders, &few, setup.rounds, setup.seed)?;
    for at in [3, half + 3, 2, half + 2, 1, half + 1] {
        let reference = at / half * half;
        let ratio = lanes[at].against(&lanes[reference], Span::EndToEnd, |_| true);
        let what = format!("{}: tokens per second against one token a pass", lanes[at].method);
        match at % half {
            2 | 3 => findings.judged(what, Unit::Times, ratio, Goal::at_least(4.0, 6.94)),
            _ => findings.reported(what, Unit::Times, ratio),
        }
    }
    findings.sections.push(lanes_section(
        "`leapfrog-diffusion`: wall-clock time, batch 1, early stop",
        &lanes[..half],
        |_| &lanes[0],
        &few,
    ));
    findings.sections.push(lanes_section(
        "`leapfrog-diffusion`: wall-clock time, batch 1, whole canvases",
        &lanes[half..],
        |_| &lanes[half],
        &few,
    ));
    findings.lanes.extend(lanes);
    Ok(())
}

/// What the exact cache of the block model is worth.
pub(super) fn block(
    setup: &Setup<'_>,
    model: &Subject,
    questions: &[Question],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let method = |name: &str, options, cache| {
        let options = DiffusionOptions { cache: Some(cache), block_length: setup.block_length, ..options };
        let name = format!("{name}, {}", if cache == CacheMode::Block { "block cache" } else { "no cache" });
        Method::canvas(&name, options, setup.canvas)
    };
    let own = DiffusionOptions::default;
    let methods = [
        method("its own policy", own(), CacheMode::Block),
        method("its own policy", own(), CacheMode::None),
        method("one token a pass", one_a_pass(), CacheMode::Block),
        method("one token a pass", one_a_pass(), CacheMode::None),
    ];
    let mut sittings = Vec::new();
    for method in &methods {
        sittings.push(sit(model, method, questions, setup.seed)?);
    }
    findings.sections.push(
        by_task("`leapfrog-block`", &sittings.iter().collect::<Vec<_>>(), setup.seed)
            + &sameness(&[(&sittings[0], &sittings[1]), (&sittings[2], &sittings[3])])?,
    );
    let (mean, worst) = mean_and_worst(&sittings[0]);
    findings.reported("block model, its own policy: accuracy, mean of tasks", Unit::Percent, mean);
    findings.reported("- its weakest task", Unit::Percent, worst);
    findings.sittings.extend(sittings);

    let few = first(questions, setup.timed);
    let contenders = methods.map(|method| Contender { subject: model, method });
    let lanes = race(&contenders, &few, setup.rounds, setup.seed)?;
    for (at, reference) in [(0, 1), (2, 3)] {
        let ratio = lanes[at].against(&lanes[reference], Span::EndToEnd, |_| true);
        let what = format!("block model, {}: tokens per second against no cache", lanes[at].method);
        findings.judged(what, Unit::Times, ratio, Goal::at_least(2.0, 4.0));
    }
    for (title, pair) in [("its own policy", &lanes[..2]), ("one token a pass", &lanes[2..])] {
        let title = format!("`leapfrog-block`: wall-clock time, batch 1, {title}");
        findings.sections.push(lanes_section(&title, pair, |_| &pair[1], &few));
    }
    findings.lanes.extend(lanes);
    Ok(())
}
