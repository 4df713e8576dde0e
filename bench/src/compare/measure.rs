//! Rounds: every contender in turn under the same load, while the others idle.

use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    figures::{Shot, Turn},
    settings::Settings,
    start::{Entrant, Told},
    turns,
};
use crate::load::{
    self, Plan, Setting,
    arrivals::Arrivals,
    prompts::PromptSet,
    record::{Phase, Record},
    requests::{Endpoint, Requests, Source},
};

/// Failures in a row that end a turn: it has no speed then anyway.
const GIVE_UP_AFTER: u64 = 3;

/// Everything that was measured so far.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) contenders: Vec<Told>,
    /// Whether answers had full length by request.
    pub(super) ignores_end: bool,
    pub(super) rounds_done: usize,
    pub(super) turns: Vec<Turn>,
    pub(super) warnings: Vec<String>,
}

/// One turn to come.
struct Ahead {
    round: usize,
    concurrency: usize,
    contender: usize,
    place: usize,
    first_prompt: usize,
}

/// All rounds; `save` is called with what there is after each.
pub(super) async fn rounds(
    settings: &Settings,
    prompts: &PromptSet,
    entrants: &mut [Entrant],
    measured: &mut Measured,
    mut save: impl FnMut(&Measured) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let levels = settings.concurrency.len();
    for round in 0..=settings.rounds {
        for (level, &concurrency) in settings.concurrency.iter().enumerate() {
            let first_prompt = turns::first_prompt(round, level, levels, settings.requests);
            for (place, contender) in turns::order(round, entrants.len()).into_iter().enumerate() {
                let ahead = Ahead { round, concurrency, contender, place, first_prompt };
                let turn = turn(settings, prompts, &mut entrants[contender], &ahead, measured.ignores_end).await?;
                tell(settings, &measured.contenders[contender].name, &turn);
                measured.turns.push(turn);
            }
        }
        measured.rounds_done = round;
        save(measured)?;
    }
    Ok(())
}

fn tell(settings: &Settings, name: &str, turn: &Turn) {
    let failed = turn.shots.iter().filter(|shot| shot.error.is_some()).count();
    let said = match (turn.tokens_per_s(), &turn.skipped) {
        (Some(speed), _) => format!("{speed:.1} tokens/s"),
        (None, Some(reason)) => format!("not asked: {reason}"),
        (None, None) if failed > 0 => format!("{failed} of {} requests failed", turn.shots.len()),
        (None, None) => "its tokens were not counted".into(),
    };
    eprintln!("round {} of {}, concurrency {}, {name}: {said}", turn.round, settings.rounds, turn.concurrency);
}

async fn turn(
    settings: &Settings,
    prompts: &PromptSet,
    entrant: &mut Entrant,
    ahead: &Ahead,
    ignores_end: bool,
) -> anyhow::Result<Turn> {
    let &Ahead { round, concurrency, contender, place, first_prompt } = ahead;
    let mut turn =
        Turn { round, concurrency, contender, place, seconds: 0.0, shots: Vec::new(), skipped: entrant.is_out()? };
    if turn.skipped.is_some() {
        return Ok(turn);
    }
    let fields = entrant.fields(settings.max_tokens, ignores_end);
    let setting = Setting {
        client: entrant.client.clone(),
        requests: Arc::new(Requests::new(Source::Set(prompts.clone()), Endpoint::Chat, fields, false)?),
        live: Arc::default(),
        stop: CancellationToken::new(),
    };
    let plan = Plan {
        phase: if round == 0 { Phase::Warmup } else { Phase::Measured },
        arrivals: Arrivals::Closed { concurrency },
        first_index: first_prompt as u64,
        num_requests: Some(settings.requests as u64),
        duration: None,
        max_in_flight: concurrency,
        give_up_after_timeouts: 3,
        give_up_after: GIVE_UP_AFTER,
    };
    let mut records = Vec::new();
    let keep = |record| {
        records.push(record);
        Ok(())
    };
    load::run(&plan, &setting, keep).await.context("the load")?;
    let first_ns = records.iter().map(|record: &Record| record.sent_ns).min().unwrap_or(0);
    let last_ns = records.iter().map(Record::ended_ns).max().unwrap_or(0);
    turn.seconds = last_ns.saturating_sub(first_ns) as f64 / 1e9;
    turn.shots = records.into_iter().map(shot).collect();
    turn.shots.sort_by_key(|shot| shot.prompt);
    Ok(turn)
}

fn shot(record: Record) -> Shot {
    let answer = record.answer;
    let times: Vec<u64> = answer.events.iter().map(|event| event.at_ns).collect();
    let tokens = answer.usage.completion_tokens;
    Shot {
        prompt: record.index,
        ttft_ms: times.first().copied().map(millis),
        e2e_ms: answer.end_ns.filter(|_| answer.failure.is_none()).map(millis),
        tpot_ms: tpot_ms(&times, tokens),
        prompt_tokens: answer.usage.prompt_tokens,
        cached_tokens: answer.usage.cached_tokens(),
        tokens,
        error: answer.failure.map(|failure| failure.to_string()),
        text: answer.text.unwrap_or_default(),
    }
}

fn millis(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Time for each token but the first, from when texts came in; `None` where there is no pace: a single text, a single token,
/// tokens that nobody counted.
fn tpot_ms(times_ns: &[u64], tokens: Option<u64>) -> Option<f64> {
    let (first, last) = times_ns.first().zip(times_ns.last())?;
    let tokens = tokens.filter(|tokens| *tokens > 1 && times_ns.len() > 1)?;
    Some(millis(last - first) / (tokens - 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_by_tokens_not_by_texts() {
        assert_eq!(tpot_ms(&[20_000_000, 30_000_000, 80_000_000], Some(13)), Some(5.0));
        assert_eq!(tpot_ms(&[20_000_000, 30_000_000], Some(1)), None);
        assert_eq!(tpot_ms(&[20_000_000], Some(13)), None);
        assert_eq!(tpot_ms(&[20_000_000, 30_000_000], None), None);
        assert_eq!(tpot_ms(&[], Some(13)), None);
    }
}
