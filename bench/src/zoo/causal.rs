//! The causal models: `leapfrog-ar`, and the consistency model that was made from it.

use anyhow::ensure;
use zoo::tasks::Task;

use super::{
    Setup,
    exam::{Method, Question, Sitting, first, sit},
    race::{Contender, Lane, Span, race},
    subject::Subject,
    table::{Findings, Goal, Unit, by_task},
};

/// Widths that are timed beside the adaptive one.
const WIDTHS: [usize; 4] = [4, 8, 16, 32];

/// Accuracy of `leapfrog-ar`, and that Jacobi says the same.
pub(super) fn ar(
    setup: &Setup<'_>,
    model: &Subject,
    questions: &[Question],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let target = sit(model, &Method::ar(setup.max_tokens), questions, setup.seed)?;
    let jacobi = sit(model, &setup.own_width(model), questions, setup.seed)?;
    for task in Task::ALL {
        let accuracy = target.tally(|other| other == task).accuracy();
        let what = format!("`leapfrog-ar`, exact answers, {task}");
        findings.judged(what, Unit::Percent, accuracy, Goal::at_least(80.0, 95.0));
    }
    let mut section = by_task("`leapfrog-ar`", &[&target, &jacobi], setup.seed);
    section.push_str(&sameness(&[(&target, &jacobi)])?);
    findings.sections.push(section);
    findings.sittings.extend([target, jacobi]);
    Ok(())
}

/// Everything about the consistency model; `target` is what it was made from.
pub(super) fn cllm(
    setup: &Setup<'_>,
    model: &Subject,
    target: &Subject,
    questions: &[Question],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let ar = Method::ar(setup.max_tokens);
    let known = findings.sittings.iter().find(|sitting| sitting.model == target.name && sitting.method == ar.name);
    let reference = match known.cloned() {
        Some(sitting) => sitting,
        None => sit(target, &ar, questions, setup.seed)?,
    };
    let mut sittings = Vec::new();
    for temperature in setup.temperatures {
        sittings.push(sit(model, &ar.clone().at(temperature), questions, setup.seed)?);
        sittings.push(sit(model, &setup.own_width(model).at(temperature), questions, setup.seed)?);
    }
    let greedy = &sittings[1];
    let difference = greedy.accuracy_difference(&reference, |_| true)?;
    findings.judged("CLLM: accuracy against its target", Unit::Points, difference, Goal::at_least(-1.0, 0.0));
    let all = greedy.tokens_per_forward(setup.seed, |_| true);
    let what = format!("CLLM: tokens per forward, greedy, width {}, all tasks", model.engine.model().width);
    findings.judged(what, Unit::Plain, all, Goal::at_least(2.4, 3.4));
    let but_chain = greedy.tokens_per_forward(setup.seed, |task| task != Task::Chain);
    findings.reported("- the same without the serial control", Unit::Plain, but_chain);
    let chain = greedy.tokens_per_forward(setup.seed, |task| task == Task::Chain);
    findings.reported("- serial control (`chain`) alone", Unit::Plain, chain);

    let shown: Vec<&Sitting> = sittings.iter().collect();
    let mut section = by_task("`leapfrog-cllm`", &shown, setup.seed);
    let pairs: Vec<(&Sitting, &Sitting)> = sittings.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect();
    section.push_str(&sameness(&pairs)?);
    section.push_str("\nAccuracy against its target, greedy, by task:\n\n| task | difference |\n|---|---|\n");
    for task in Task::ALL {
        let difference = greedy.accuracy_difference(&reference, |other| other == task)?;
        section.push_str(&format!("| {task} | {} |\n", Unit::Points.write_or_dash(difference)));
    }
    findings.sections.push(section);
    if reference_is_new(findings, &reference) {
        findings.sittings.push(reference);
    }
    findings.sittings.extend(sittings);
    time(setup, model, target, &first(questions, setup.timed), findings)
}

fn reference_is_new(findings: &Findings, reference: &Sitting) -> bool {
    !findings.sittings.iter().any(|sitting| sitting.model == reference.model && sitting.method == reference.method)
}

/// Wall-clock time at batch 1 against the better of both models under AR.
fn time(
    setup: &Setup<'_>,
    model: &Subject,
    target: &Subject,
    questions: &[Question],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let contender = |subject, method| Contender { subject, method };
    let mut contenders = vec![
        contender(target, Method::ar(setup.max_tokens)),
        contender(model, Method::ar(setup.max_tokens)),
        contender(target, Method::jacobi(None, setup.max_tokens)),
        contender(model, Method::jacobi(None, setup.max_tokens)),
    ];
    contenders.extend(WIDTHS.map(|width| contender(model, Method::jacobi(Some(width), setup.max_tokens))));
    let lanes = race(&contenders, questions, setup.rounds, setup.seed)?;
    let best = |span| if lanes[1].median(span) > lanes[0].median(span) { &lanes[1] } else { &lanes[0] };
    for (lane, what) in lanes.iter().zip(&contenders).skip(2) {
        let name = format!("{}, {}", lane.model, what.method.name);
        for (span, word) in [(Span::Decode, "decoding"), (Span::EndToEnd, "end to end")] {
            let best = best(span);
            let ratio = lane.against(best, span, |_| true);
            let what = format!("{name}: speed against the best AR ({}), {word}", best.model);
            let is_goal = lane.model == model.name;
            match is_goal {
                true => findings.judged(what, Unit::Times, ratio, Goal::at_least(2.0, 3.4)),
                false => findings.reported(what, Unit::Times, ratio),
            }
        }
    }
    findings.sections.push(lanes_section("Causal models: wall-clock time, batch 1", &lanes, best, questions));
    findings.lanes.extend(lanes);
    Ok(())
}

/// Speeds of timed lanes, and their ratios to the lane that `reference` names.
pub(super) fn lanes_section<'a>(
    title: &str,
    lanes: &'a [Lane],
    reference: impl Fn(Span) -> &'a Lane,
    questions: &[Question],
) -> String {
    let (decode, end_to_end) = (reference(Span::Decode), reference(Span::EndToEnd));
    let name = |lane: &Lane| format!("{}, {}", lane.model, lane.method);
    let mut text = format!(
        "## {title}\n\n{} problems a round. Ratios are taken within rounds; median and range. Reference: {} (decoding), {} \
         (end to end).\n\n| model | method | tok/s decoding | x all | x all but chain | x chain | tok/s end to end | x \
         end to end | tokens per forward | chain | right | prompt tokens shared |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
        questions.len(),
        name(decode),
        name(end_to_end),
    );
    for lane in lanes {
        let against = |reference, span, wanted: fn(Task) -> bool| {
            Unit::Times.write_or_dash(lane.against(reference, span, wanted))
        };
        text.push_str(&format!(
            "| {} | {} | {:.0} | {} | {} | {} | {:.0} | {} | {:.2} | {:.2} | {} of {} | {} |\n",
            lane.model,
            lane.method,
            lane.median(Span::Decode),
            against(decode, Span::Decode, |_| true),
            against(decode, Span::Decode, |task| task != Task::Chain),
            against(decode, Span::Decode, |task| task == Task::Chain),
            lane.median(Span::EndToEnd),
            against(end_to_end, Span::EndToEnd, |_| true),
            lane.tally.per_pass(lane.tally.tokens),
            lane.chain.per_pass(lane.chain.tokens),
            lane.tally.correct,
            lane.tally.problems,
            lane.cached_tokens(),
        ));
    }
    text
}

/// Says how many texts differ between sittings that must agree.
pub(super) fn sameness(pairs: &[(&Sitting, &Sitting)]) -> anyhow::Result<String> {
    ensure!(!pairs.is_empty(), "nothing to compare");
    let mut text = "\nTexts that must agree, token for token:\n\n".to_owned();
    for (a, b) in pairs {
        let different = a.different(b)?;
        let line = format!(
            "{}: `{}` and `{}` differ in {different} of {} problems",
            a.model,
            a.method,
            b.method,
            a.answers.len()
        );
        eprintln!("{line}");
        text.push_str(&format!("- {line}\n"));
    }
    Ok(text)
}
