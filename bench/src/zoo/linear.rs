//! `leapfrog-lla`, whose layers mix by local linear attention, against a twin that differs in nothing else.

use zoo::tasks::Task;

use super::{
    Setup,
    causal::{lanes_section, sameness},
    exam::{Method, Question, first, sit},
    race::{Contender, Span, race},
    subject::Subject,
    table::{Findings, Unit, by_task},
};

/// How often both are right, that Jacobi says what AR says, and what the solver costs.
pub(super) fn lla(
    setup: &Setup<'_>,
    model: &Subject,
    twin: &Subject,
    questions: &[Question],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let ar = Method::ar(setup.max_tokens);
    let own = sit(model, &ar, questions, setup.seed)?;
    let jacobi = sit(model, &setup.own_width(model), questions, setup.seed)?;
    let sampled = sit(model, &ar.clone().at(1.0), questions, setup.seed)?;
    let sampled_jacobi = sit(model, &setup.own_width(model).at(1.0), questions, setup.seed)?;
    let others = sit(twin, &ar, questions, setup.seed)?;
    for task in Task::ALL {
        let accuracy = own.tally(|other| other == task).accuracy();
        findings.reported(format!("`leapfrog-lla`, exact answers, {task}"), Unit::Percent, accuracy);
    }
    let difference = own.accuracy_difference(&others, |_| true)?;
    findings.reported("`leapfrog-lla`: accuracy against its softmax twin", Unit::Points, difference);
    for task in Task::ALL {
        let difference = own.accuracy_difference(&others, |other| other == task)?;
        findings.reported(format!("- {task}"), Unit::Points, difference);
    }
    let mut section = by_task("`leapfrog-lla` and its softmax twin", &[&own, &jacobi, &sampled, &others], setup.seed);
    section.push_str(&sameness(&[(&own, &jacobi), (&sampled, &sampled_jacobi)])?);
    findings.sections.push(section);
    findings.sittings.extend([own, jacobi, sampled, sampled_jacobi, others]);

    let questions = first(questions, setup.timed);
    let contenders = [(twin, &ar), (model, &ar)].map(|(subject, method)| Contender { subject, method: method.clone() });
    let lanes = race(&contenders, &questions, setup.rounds, setup.seed)?;
    for (span, word) in [(Span::Decode, "decoding"), (Span::EndToEnd, "end to end")] {
        let ratio = lanes[1].against(&lanes[0], span, |_| true);
        findings.reported(format!("`leapfrog-lla`: speed against its softmax twin, {word}"), Unit::Times, ratio);
    }
    let title = "Local linear and softmax attention: wall-clock time, batch 1";
    findings.sections.push(lanes_section(title, &lanes, |_| &lanes[0], &questions));
    findings.lanes.extend(lanes);
    Ok(())
}
