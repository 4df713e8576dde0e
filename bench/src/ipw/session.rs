//! The measurement: idle window, warm-up, then all arms on every query, in turns.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use super::{
    args::{Arm, IpwArgs},
    client::{Client, Reply},
    data::Item,
    grade::Grade,
    wire::{Energy, Method},
};

/// Time of one batch of the warm-up, long enough for a mean of power.
const BATCH: Duration = Duration::from_secs(3);
/// Two batches in a row that differ by less than this share end the warm-up.
const STEADY: f64 = 0.05;

/// One answer of an arm to a query.
#[derive(Debug, Clone)]
pub(super) struct Shot {
    pub(super) arm: usize,
    pub(super) item: usize,
    pub(super) run: u32,
    pub(super) repeat: u32,
    /// The answer, or why there is none.
    pub(super) reply: Result<Reply, String>,
    /// Of [`Shot::reply`]; `None` if there is none.
    pub(super) grade: Option<Grade>,
}

impl Shot {
    /// What the server says of the energy; `None` if it says nothing usable.
    pub(super) fn energy(&self) -> Option<&Energy> {
        self.reply.as_ref().ok()?.energy.as_ref()?.as_ref().ok()
    }

    /// Energy on the basis, or why it is unknown.
    pub(super) fn joules(&self, method: Method) -> Result<f64, String> {
        let reply = self.reply.as_ref().map_err(|error| format!("request failed: {error}"))?;
        match &reply.energy {
            None => Err("the reply has no `usage.energy`".into()),
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(energy)) => energy.joules(method),
        }
    }
}

/// What the machine does when nobody asks.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest {
    pub(super) idle_watts: Option<f64>,
    /// Power of the batches of the warm-up, in watts.
    pub(super) warmup_watts: Vec<f64>,
    pub(super) warnings: Vec<String>,
}

/// A server, and how it is asked.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) args: &'a IpwArgs,
    pub(super) client: Client,
    pub(super) arms: Vec<Arm>,
    /// Whether energy is asked for.
    pub(super) metered: bool,
    pub(super) repeats: u32,
}

impl Session<'_> {
    /// Fields of every request.
    pub(super) fn sampling(&self) -> Map<String, Value> {
        self.args.preset.sampling(self.args.max_tokens)
    }

    fn body(&self, arm: &Arm, messages: &Value, seed: u64) -> Value {
        let mut body = json!({
            "model": arm.model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
            "seed": seed,
        });
        for (key, value) in self.sampling() {
            body[key.as_str()] = value;
        }
        if let Some(decoding) = &arm.decoding {
            body["decoding"] = decoding.clone();
        }
        if self.metered {
            body["energy"] = json!(true);
        }
        body
    }

    /// Whether the server takes the requests of every arm; what it says of each one's decoding.
    pub(super) async fn probe(&self) -> anyhow::Result<Vec<Option<Value>>> {
        let mut found = Vec::new();
        for arm in &self.arms {
            let mut body = self.body(arm, &warmup_prompt(0), 0);
            if let Some(fields) = body.as_object_mut() {
                fields.remove("stream_options");
            }
            match self.client.probe(body).await? {
                Ok(decoding) => found.push(decoding),
                Err(error) => anyhow::bail!("the server refuses the strategy `{}`: {error}", arm.name),
            }
        }
        Ok(found)
    }

    /// The idle window and the warm-up.
    pub(super) async fn rest(&self) -> anyhow::Result<Rest> {
        let mut rest = Rest::default();
        if self.metered && self.args.idle_seconds > 0 {
            let before = self.client.energy().await.map_err(anyhow::Error::msg)?;
            tokio::time::sleep(Duration::from_secs(self.args.idle_seconds)).await;
            let after = self.client.energy().await.map_err(anyhow::Error::msg)?;
            rest.idle_watts = after.watts_since(&before);
            if rest.idle_watts.is_none() {
                rest.warnings.push("idle power is unknown: the counters did not tell".into());
            }
        }
        let began = Instant::now();
        let most = Duration::from_secs(self.args.warmup_seconds);
        let mut steady = most.is_zero();
        let mut asked = 0;
        while !steady && began.elapsed() < most {
            let before = if self.metered { self.client.energy().await.ok() } else { None };
            let batch = Instant::now();
            while batch.elapsed() < BATCH.min(most) {
                for arm in &self.arms {
                    let reply = self.client.chat(&self.body(arm, &warmup_prompt(asked), asked)).await;
                    reply.with_context(|| format!("warming up with `{}`", arm.name))?;
                    asked += 1;
                }
            }
            let after = if self.metered { self.client.energy().await.ok() } else { None };
            let watts = before.zip(after).and_then(|(before, after)| after.watts_since(&before));
            let Some(watts) = watts else {
                // Without a meter there is nothing to wait for.
                steady = !self.metered;
                continue;
            };
            steady = rest.warmup_watts.last().is_some_and(|last| (watts - last).abs() < STEADY * last.abs());
            rest.warmup_watts.push(watts);
        }
        if !steady {
            rest.warnings.push(format!("power was not steady after {} s of warming up", most.as_secs()));
        }
        Ok(rest)
    }

    /// All arms on all queries. `progress` is told of every answer.
    pub(super) async fn ask(&self, items: &[Item], progress: &mut dyn FnMut(&Shot)) -> anyhow::Result<Vec<Shot>> {
        let mut shots = Vec::new();
        let width = usize::from(self.args.concurrency);
        for run in 0..self.args.runs {
            for repeat in 0..self.repeats {
                for (turn, queries) in (0..items.len()).collect::<Vec<_>>().chunks(width).enumerate() {
                    for arm in order(self.arms.len(), turn + repeat as usize + run as usize) {
                        let seed = self.args.seed ^ (u64::from(run) << 40) ^ (u64::from(repeat) << 20);
                        let done = self.together(arm, queries, items, seed).await?;
                        for (item, reply) in done {
                            let shot = Shot { arm, item, run, repeat, reply, grade: None };
                            progress(&shot);
                            shots.push(shot);
                        }
                    }
                }
            }
        }
        ensure!(
            shots.iter().any(|shot| shot.reply.is_ok()),
            "no request was answered; the first failed with: {}",
            shots.first().and_then(|shot| shot.reply.as_ref().err()).map_or("none was sent", String::as_str)
        );
        shots.sort_by_key(|shot| (shot.arm, shot.run, shot.repeat, shot.item));
        Ok(shots)
    }

    /// Some queries at the same time; then their final energies.
    async fn together(
        &self,
        arm: usize,
        queries: &[usize],
        items: &[Item],
        seed: u64,
    ) -> anyhow::Result<Vec<(usize, Result<Reply, String>)>> {
        let mut tasks = JoinSet::new();
        for query in queries.iter().copied() {
            let (client, body) = (self.client.clone(), self.body(&self.arms[arm], &items[query].messages, seed));
            tasks.spawn(async move { (query, client.chat(&body).await.map_err(|error| format!("{error:#}"))) });
        }
        let mut done = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            done.push(joined.context("a request of the benchmark broke off")?);
        }
        for (_, reply) in &mut done {
            let Ok(reply) = reply else { continue };
            if matches!(&reply.energy, Some(Ok(energy)) if energy.is_final == Some(false)) {
                reply.energy = Some(self.client.settled(&reply.id).await);
            }
        }
        Ok(done)
    }
}

/// The order of the arms in a turn. Over twice as many turns as arms each arm is equally often at each place, and equally
/// often before and after each other one: a later one meets a warmer machine, and prompts that were just computed.
fn order(arms: usize, turn: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..arms).map(|place| (place + turn) % arms).collect();
    if turn / arms % 2 == 1 {
        order.reverse();
    }
    order
}

/// Prompts of the warm-up; none is a query of a data set.
fn warmup_prompt(index: u64) -> Value {
    const PROMPTS: [&str; 4] = [
        "Name three colours and say where you saw them last.",
        "Describe a walk along a river in two sentences.",
        "List the months of the year in order.",
        "Explain in plain words why leaves are green.",
    ];
    json!([{"role": "user", "content": PROMPTS[index as usize % PROMPTS.len()]}])
}

/// Judges what was answered; no request runs meanwhile.
pub(super) fn judge(shots: &mut [Shot], items: &[Item]) {
    for shot in shots {
        shot.grade = shot.reply.as_ref().ok().map(|reply| items[shot.item].grader.grade(&reply.text));
    }
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn turns_are_fair() {
        for arms in 1..5 {
            let orders: Vec<Vec<usize>> = (0..2 * arms).map(|turn| order(arms, turn)).collect();
            for arm in 0..arms {
                for place in 0..arms {
                    assert_eq!(orders.iter().filter(|order| order[place] == arm).count(), 2);
                }
                for other in (0..arms).filter(|other| *other != arm) {
                    let at = |order: &[usize], arm| order.iter().position(|other| *other == arm).unwrap();
                    let before = orders.iter().filter(|order| at(order, arm) < at(order, other)).count();
                    assert_eq!(before, arms, "{arm} before {other}");
                }
            }
        }
    }
}
