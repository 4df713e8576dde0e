//! Tokens a second of strategies at batch 1: the schedules that were recorded, with the passes of a large model.

use std::ops::Range;

use models::{AttentionKind, LogitAlignment, Visibility};

use super::{
    Part, Setup,
    log::{Cell, Log, figure},
    subject::{Rows, Subject},
    traces::{Steps, Trace, Traces},
};

/// Tokens of the prompt of every replayed request.
const PROMPT: usize = 256;

/// Replays every strategy that the family of the shape has.
pub(super) fn run(setup: &Setup, subject: &mut Subject, traces: &Traces, log: &mut Log) -> anyhow::Result<()> {
    let prompt = setup.prompt.unwrap_or(PROMPT);
    log.note(
        Part::Decoding,
        format!(
            "Batch 1, prompts of {prompt} tokens. Time on the clock from the first pass over the prompt to the last pass, \
             without what a server adds (text, events). Weights mean nothing, so what a pass commits is forced: as the \
             built-in models did in this run on held-out problems (Jacobi: leapfrog-cllm at its own width, passes in \
             ascending order of what they accept; threshold and LocalLeap: leapfrog-diffusion with the dual cache in blocks \
             of 32 on a canvas of 64, leapfrog-block with the block cache in its own blocks). Tokens are text tokens of \
             those answers. Every row of a block is scored in every pass, also when some are decided."
        ),
    );
    let ar: Vec<Trace> = traces
        .jacobi
        .iter()
        .map(|trace| {
            let accepted = vec![1; trace.tokens.saturating_sub(1)];
            Trace { tokens: trace.tokens, steps: Steps::Jacobi { width: 1, accepted } }
        })
        .collect();
    replay_all(setup, subject, ("ar", &ar), prompt, log)?;
    let policies = match subject.config.attention {
        AttentionKind::Causal => return replay_all(setup, subject, ("jacobi", &traces.jacobi), prompt, log),
        AttentionKind::Full => &traces.canvas,
        AttentionKind::BlockCausal { .. } => &traces.blocks,
    };
    if shift(subject) > 0 && subject.config.attention == AttentionKind::Full {
        log.note(Part::Decoding, format!("{}: a row scores the next slot, so blocks have one row more.", subject.name));
    }
    for (name, traces) in policies {
        replay_all(setup, subject, (name, traces), prompt, log)?;
    }
    Ok(())
}

fn replay_all(
    setup: &Setup,
    subject: &mut Subject,
    (name, traces): (&str, &[Trace]),
    prompt: usize,
    log: &mut Log,
) -> anyhow::Result<()> {
    let cell = Cell::new(Part::Decoding, &subject.name, name);
    let schedules: Vec<Vec<Rows>> = traces.iter().map(|trace| schedule(&trace.steps, prompt, shift(subject))).collect();
    let refusal = schedules.iter().flatten().find_map(|rows| {
        let end = rows.positions.end;
        subject.refusal(rows.positions.len(), end - rows.positions.len())
    });
    let measured = setup.guarded(refusal, || {
        let mut millis = Vec::new();
        for (index, schedule) in schedules.iter().enumerate() {
            // Passes of new shapes are launched, then recorded: a server has seen them long ago.
            let warm_ups = if index == 0 { 2 } else { 0 };
            for _ in 0..warm_ups {
                replay(subject, schedule)?;
            }
            millis.push(1e3 * replay(subject, schedule)?);
        }
        Ok(millis)
    });
    log.add(match measured {
        Err(reason) => Cell { left_out: Some(reason), ..cell },
        Ok(millis) => {
            let tokens = traces.iter().map(|trace| trace.tokens).sum::<usize>() as f64;
            let passes = schedules.iter().map(|schedule| scoring_passes(schedule)).sum::<usize>() as f64;
            let seconds = millis.iter().sum::<f64>() / 1e3;
            Cell { millis, ..cell }
                .with(figure::TOKENS_PER_S, tokens / seconds)
                .with(figure::TOKENS_PER_PASS, tokens / passes.max(1.0))
                .with(figure::PASSES, passes)
        }
    })
}

/// Distance from a row to the slot that it scores.
fn shift(subject: &Subject) -> usize {
    usize::from(subject.config.alignment == LogitAlignment::NextSlot)
}

/// Seconds of the passes, one after the other.
fn replay(subject: &mut Subject, schedule: &[Rows]) -> anyhow::Result<f64> {
    schedule.iter().map(|rows| subject.pass(rows)).sum()
}

/// Passes that score a slot; one that only reads the prompt does not.
fn scoring_passes(schedule: &[Rows]) -> usize {
    schedule.iter().filter(|rows| !rows.scored.is_empty()).count()
}

/// The passes of a request.
fn schedule(steps: &Steps, prompt: usize, shifted: usize) -> Vec<Rows> {
    let read = Rows { positions: 0..prompt, visibility: Visibility::Causal, scored: prompt - 1..prompt };
    match steps {
        Steps::Jacobi { width, accepted } => {
            let mut len = prompt;
            let block = |accepted: &usize| {
                let rows = Rows::causal(len..len + width);
                len += accepted;
                rows
            };
            std::iter::once(read).chain(accepted.iter().map(block).collect::<Vec<_>>()).collect()
        }
        Steps::Canvas { canvas_len, block_len, passes } => {
            let total = prompt + canvas_len;
            let visibility = Visibility::Through(total);
            let blocks = passes.iter().enumerate().flat_map(|(index, &count)| {
                let slots = prompt + index * block_len..(prompt + (index + 1) * block_len).min(total);
                let scored = slots.start - shifted..slots.end - shifted;
                let renew = Rows { positions: 0..total, visibility, scored: scored.clone() };
                let again = Rows { positions: slots.start - shifted..slots.end, visibility, scored };
                once_and(renew, again, count)
            });
            blocks.collect()
        }
        Steps::Blocks { block_len, passes } => {
            let blocks = passes.iter().enumerate().flat_map(|(index, &count)| {
                let slots = prompt + index * block_len..prompt + (index + 1) * block_len;
                let visible = |positions: Range<usize>| Rows {
                    positions,
                    visibility: Visibility::Blocks { origin: prompt, block_len: *block_len },
                    scored: slots.clone(),
                };
                // The block before is fed once more with the first pass, now that it is full.
                let before = if index == 0 { 0 } else { *block_len };
                once_and(visible(slots.start - before..slots.end), visible(slots.clone()), count)
            });
            // What is decided first is in the first block.
            std::iter::once(Rows { scored: prompt..prompt, ..read }).chain(blocks).collect()
        }
    }
}

/// `first`, then `again` until there are `count`.
fn once_and(first: Rows, again: Rows, count: usize) -> impl Iterator<Item = Rows> {
    std::iter::once(first).chain(std::iter::repeat_n(again, count.saturating_sub(1))).take(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(schedule: &[Rows]) -> Vec<(Range<usize>, Range<usize>)> {
        schedule.iter().map(|rows| (rows.positions.clone(), rows.scored.clone())).collect()
    }

    #[test]
    fn jacobi_moves_on_by_what_it_accepts() {
        let schedule = schedule(&Steps::Jacobi { width: 4, accepted: vec![1, 3] }, 10, 1);
        assert_eq!(spans(&schedule), [(0..10, 9..10), (10..14, 10..14), (11..15, 11..15)]);
        assert_eq!(scoring_passes(&schedule), 3);
    }

    #[test]
    fn a_dual_cache_is_renewed_at_each_block() {
        let steps = Steps::Canvas { canvas_len: 8, block_len: 4, passes: vec![3, 1] };
        let schedule = |shifted| schedule(&steps, 10, shifted);
        assert_eq!(spans(&schedule(0)), [(0..18, 10..14), (10..14, 10..14), (10..14, 10..14), (0..18, 14..18)]);
        assert_eq!(spans(&schedule(1)), [(0..18, 9..13), (9..14, 9..13), (9..14, 9..13), (0..18, 13..17)]);
        assert!(schedule(0).iter().all(|rows| rows.visibility == Visibility::Through(18)));
        assert_eq!(scoring_passes(&schedule(0)), 4);
    }

    #[test]
    fn a_full_block_is_fed_with_the_next_one() {
        let schedule = schedule(&Steps::Blocks { block_len: 4, passes: vec![2, 2] }, 10, 0);
        let expected = [(0..10, 10..10), (10..14, 10..14), (10..14, 10..14), (10..18, 14..18), (14..18, 14..18)];
        assert_eq!(spans(&schedule), expected);
        assert_eq!(scoring_passes(&schedule), 4);
    }
}
