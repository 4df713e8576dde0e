//! The one device thread: admit -> plan -> pack -> forward -> score -> judge -> apply -> emit. The same for every
//! strategy.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use models::{Backbone, ForwardBatch, KvCache, ModelError, Segment, SolverReport};
use tokio::sync::{mpsc, oneshot};

use crate::{
    cost::{CostTable, PassCost},
    decode::{Decoder, StepPlan},
    energy::{EngineMeter, Running},
    engine::Occupancy,
    error::{RequestError, SubmitError},
    event::Event,
    metrics::{Metrics, Outcome, OutcomeLabels, StrategyLabels, TokenKind, TokenLabels},
    pages::PagePool,
    request::Request,
    scheduler::{Demand, RowBudget, allot},
    score::{Scored, queries, score, scores},
    sequence::{Ending, Job, Scoring, Sequence, SequenceContext},
    settings::PAGE_LEN,
};

/// Rows of a chunk whose prompt log-probabilities are wanted: each of them brings a whole row of logits to the host.
const SCORED_PROMPT_ROWS: usize = 64;

/// Messages to the worker.
pub(crate) enum Command {
    /// Run these.
    Submit(Vec<Job>),
    /// Answer when nothing runs or waits any more.
    Drain(oneshot::Sender<()>),
}

/// Makes the decoder of a request.
pub(crate) type DecoderFactory = Box<dyn Fn(&Request) -> Result<Box<dyn Decoder>, SubmitError> + Send>;

/// What the worker owns and needs.
pub(crate) struct Worker {
    pub(crate) backbone: Box<dyn Backbone>,
    pub(crate) kv: KvCache,
    pub(crate) pool: PagePool,
    pub(crate) context: SequenceContext,
    pub(crate) cost: CostTable,
    pub(crate) budget: RowBudget,
    pub(crate) max_concurrent: usize,
    pub(crate) make_decoder: DecoderFactory,
    pub(crate) metrics: Metrics,
    pub(crate) meter: EngineMeter,
    /// Shared with the handle, which bounds the number of requests by it.
    pub(crate) occupancy: Arc<Occupancy>,
    pub(crate) running: Vec<Sequence>,
    /// Without a slot: new, or preempted.
    pub(crate) waiting: VecDeque<Box<Sequence>>,
    pub(crate) drains: Vec<oneshot::Sender<()>>,
    /// Passes so far.
    pub(crate) num_passes: u64,
}

/// One sequence's part in a pass.
struct Turn {
    /// Index into `running`.
    index: usize,
    row_cap: usize,
    plan: StepPlan,
}

impl Worker {
    /// Serves until the last handle is gone and nothing runs.
    pub(crate) fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            if self.step() {
                continue;
            }
            for drain in self.drains.drain(..) {
                // The receiver may have given up waiting; then nobody needs the answer.
                let _ = drain.send(());
            }
            match commands.blocking_recv() {
                Some(command) => self.take(command),
                None => return,
            }
        }
    }

    pub(crate) fn take(&mut self, command: Command) {
        match command {
            Command::Submit(jobs) => {
                for job in jobs {
                    self.enqueue(job);
                }
            }
            Command::Drain(done) => self.drains.push(done),
        }
    }

    fn enqueue(&mut self, job: Job) {
        // As in a pass: a fault that one request brings out must not end the thread.
        let made = catch_unwind(AssertUnwindSafe(|| (self.make_decoder)(&job.request).map_err(|e| e.to_string())));
        match made.unwrap_or_else(|_| Err("the decoder panicked; see the log".into())) {
            Ok(decoder) => {
                self.waiting.push_back(Box::new(Sequence::new(job, decoder, &self.pool, self.context.clone())));
            }
            Err(error) => {
                self.occupancy.release(1);
                job.events.close(Event::Failed(RequestError::Decode(error)));
            }
        }
    }

    /// One decode step of everything that runs. Returns whether anything runs or waits.
    pub(crate) fn step(&mut self) -> bool {
        let began = Instant::now();
        self.drop_cancelled();
        self.admit();
        let turns = self.plan();
        if !turns.is_empty() {
            let num_sequences = turns.len();
            self.pass(turns);
            self.metrics.step_seconds.observe(began.elapsed().as_secs_f64());
            self.metrics.step_sequences.observe(num_sequences as f64);
        }
        self.gauges();
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    fn gauges(&self) {
        self.metrics.running.set(self.running.len() as i64);
        self.metrics.waiting.set(self.waiting.len() as i64);
        self.metrics.pages_cached.set(self.pool.num_cached() as i64);
        self.metrics.pages_used.set((self.pool.num_pages() - self.pool.num_free()) as i64);
    }

    fn drop_cancelled(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].events.is_closed() {
                self.end(index, Ending::Cancelled);
            }
        }
        let (open, closed): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(|sequence| !sequence.events.is_closed());
        self.waiting = open;
        for sequence in closed {
            if sequence.has_begun() {
                self.account(*sequence, Ending::Cancelled);
            } else {
                let labels = OutcomeLabels { outcome: Outcome::Cancelled, strategy: "none" };
                self.metrics.requests.get_or_create(&labels).inc();
                self.occupancy.release(1);
            }
        }
    }

    fn admit(&mut self) {
        while self.running.len() < self.max_concurrent {
            let Some(sequence) = self.waiting.front_mut() else { return };
            // Whoever enters must have the pages that it needs, or it would be preempted at once and read its tokens in
            // vain. Alone it always fits. First come, first served.
            let needed = match self.running.is_empty() {
                true => 0,
                false => sequence.pages_to_enter(PAGE_LEN).min(self.pool.num_pages()),
            };
            let pool = &self.pool;
            if !sequence.enter(needed, || pool.num_free()) {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if !sequence.has_begun() {
                sequence.begin(self.meter.open());
                self.metrics.shared_prefix_tokens.inc_by(sequence.cached_tokens() as u64);
                self.metrics.queue_seconds.observe(sequence.submitted().elapsed().as_secs_f64());
                let labels = TokenLabels { kind: TokenKind::Prompt };
                self.metrics.tokens.get_or_create(&labels).inc_by(sequence.prompt_len() as u64);
            }
            self.running.push(*sequence);
            let index = self.running.len() - 1;
            if self.running[index].is_complete() {
                self.end(index, Ending::Finished(crate::event::FinishReason::Length, None));
            }
        }
    }

    /// Plans the next pass and leases its pages. A sequence that finds no page takes those of the newest one.
    fn plan(&mut self) -> Vec<Turn> {
        let demands: Vec<Demand> = self.running.iter().map(|sequence| self.demand(sequence)).collect();
        let caps = allot(&demands, self.budget);
        let num_active = caps.iter().filter(|&&cap| cap > 0).count();
        let mut turns: Vec<Turn> = Vec::with_capacity(num_active);
        for (index, &row_cap) in caps.iter().enumerate().filter(|(_, cap)| **cap > 0) {
            // A preemption below may have taken this sequence away.
            let Some(sequence) = self.running.get(index) else { break };
            let others = num_active - 1;
            let plan = sequence.plan(row_cap, PassCost::new(&self.cost, others, others as f64));
            let end = plan.end();
            while self.running[index].lease.reserve(end).is_err() {
                let newest = self.running.len() - 1;
                self.preempt(newest);
                turns.retain(|turn| turn.index != newest);
                if newest == index {
                    break;
                }
            }
            if index < self.running.len() {
                turns.push(Turn { index, row_cap, plan });
            }
        }
        turns
    }

    fn demand(&self, sequence: &Sequence) -> Demand {
        let limit = if sequence.scores_prompt() { SCORED_PROMPT_ROWS } else { usize::MAX };
        let rows = sequence.demand(PassCost::new(&self.cost, 0, 0.0));
        Demand { rows, limit, last_pass: sequence.last_pass }
    }

    /// `index` is the last one running, so that no other index moves.
    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        sequence.preempt();
        self.metrics.preemptions.inc();
        tracing::debug!(running = self.running.len(), "out of KV pages: preempted the newest sequence");
        self.waiting.push_front(Box::new(sequence));
    }

    /// Runs one pass over all turns; if it fails, each turn alone, so that only the guilty one ends.
    fn pass(&mut self, turns: Vec<Turn>) {
        self.num_passes += 1;
        for turn in &turns {
            self.running[turn.index].last_pass = self.num_passes;
        }
        let mut endings: Vec<(usize, Ending)> = Vec::new();
        let mut running = self.announce(&turns);
        match self.forward(&turns) {
            Ok(scored) => self.judge(turns, scored, &mut endings),
            Err(error) if turns.len() == 1 => endings.push((turns[0].index, Ending::Failed(error))),
            Err(_) => {
                for turn in turns {
                    let alone = vec![turn];
                    // The one before has ended; its successor must not begin before that.
                    drop(running.take());
                    running = self.announce(&alone);
                    match self.forward(&alone) {
                        Ok(scored) => self.judge(alone, scored, &mut endings),
                        Err(error) => endings.push((alone[0].index, Ending::Failed(error))),
                    }
                }
            }
        }
        drop(running);
        endings.sort_by_key(|&(index, _)| std::cmp::Reverse(index));
        for (index, ending) in endings {
            self.end(index, ending);
        }
    }

    /// Tells the meter what a pass computes; the pass lasts until what is returned is dropped.
    fn announce(&self, turns: &[Turn]) -> Option<Running> {
        let sees_all = self.backbone.spec().attention == models::AttentionKind::Full;
        self.meter.begin(turns.iter().filter_map(|turn| self.running[turn.index].positions(&turn.plan, sees_all)))
    }

    /// One pass over all turns, and what its rows came to: one entry a turn.
    fn forward(&mut self, turns: &[Turn]) -> Result<Vec<Result<Scored, RequestError>>, RequestError> {
        let passes: Vec<Scoring<'_>> = turns.iter().map(|turn| self.running[turn.index].scoring(&turn.plan)).collect();
        let segments = turns.iter().zip(&passes).map(|(Turn { index, plan, .. }, pass)| Segment {
            tokens: &plan.tokens,
            start: plan.start,
            visibility: plan.visibility,
            scored: pass.rows(),
            pages: self.running[*index].lease.table().pages(),
        });
        let batch = ForwardBatch { segments: segments.collect() };
        self.metrics.forward_passes.inc();
        self.metrics.rows.inc_by(batch.num_rows() as u64);
        let (backbone, kv) = (self.backbone.as_mut(), &mut self.kv);
        // A fault inside a kernel must end this pass, not the thread that all requests depend on.
        let result = catch_unwind(AssertUnwindSafe(|| run_pass(backbone, kv, &batch, &passes)));
        let (scored, report) = match result {
            Ok(result) => result?,
            Err(_) => return Err(RequestError::Forward("the model panicked; see the log".into())),
        };
        if let (Some(metrics), Some(report)) = (&self.metrics.solver, report) {
            metrics.observe(&report);
        }
        Ok(scored)
    }

    fn judge(
        &mut self,
        turns: Vec<Turn>,
        scored: Vec<Result<Scored, RequestError>>,
        endings: &mut Vec<(usize, Ending)>,
    ) {
        let others = turns.len() - 1;
        for (Turn { index, row_cap, plan }, scored) in turns.into_iter().zip(scored) {
            let cost = PassCost::new(&self.cost, others, others as f64);
            let sequence = &mut self.running[index];
            let applied = scored.map_err(Ending::Failed).and_then(|Scored { prompt, rows, nonfinite }| {
                self.metrics.nonfinite_rows.inc_by(nonfinite);
                let (num_scored, before) = (rows.len(), sequence.completion_tokens());
                let applied = sequence.apply(&plan, row_cap, cost, prompt, rows);
                if let Some(canvas) = &self.metrics.canvas {
                    canvas.observe(num_scored, sequence.completion_tokens() - before);
                }
                applied
            });
            match applied {
                Ok(applied) => self.metrics.observe(applied),
                Err(ending) => endings.push((index, ending)),
            }
        }
    }

    fn end(&mut self, index: usize, ending: Ending) {
        let sequence = self.running.remove(index);
        self.account(sequence, ending);
    }

    fn account(&self, sequence: Sequence, ending: Ending) {
        let outcome = match &ending {
            Ending::Finished(crate::event::FinishReason::Stop, _) => Outcome::Stop,
            Ending::Finished(crate::event::FinishReason::Length, _) => Outcome::Length,
            Ending::Cancelled => Outcome::Cancelled,
            Ending::Failed(error) => {
                tracing::error!(%error, "a request failed");
                Outcome::Failed
            }
        };
        let strategy = sequence.strategy();
        self.metrics.requests.get_or_create(&OutcomeLabels { outcome, strategy }).inc();
        self.metrics.request_seconds.observe(sequence.submitted().elapsed().as_secs_f64());
        let num_tokens = sequence.completion_tokens() as u64;
        self.metrics.tokens.get_or_create(&TokenLabels { kind: TokenKind::Completion }).inc_by(num_tokens);
        if let Some(ticket) = sequence.ticket() {
            self.meter.close(ticket, sequence.prompt_len(), sequence.completion_tokens());
        }
        // Pages, slot and place in the queue are free before the client hears of the end.
        self.occupancy.observe(sequence.started().elapsed());
        self.occupancy.release(1);
        let stats = sequence.close(ending);
        let by_strategy = StrategyLabels { strategy };
        if let Some(mean) = stats.tokens_per_forward() {
            self.metrics.tokens_per_forward.get_or_create(&by_strategy).observe(mean);
        }
        if let Some(canvas) = &stats.diffusion {
            self.metrics.observe_canvas(canvas);
        }
        let acceptance = self.metrics.acceptance.get_or_create(&by_strategy);
        for (accepted, count) in (1..).zip(&stats.acceptance_histogram) {
            (0..*count).for_each(|_| acceptance.observe(f64::from(accepted)));
        }
    }
}

/// What each sequence's rows came to, and how the solvers of the pass fared.
type PassResult = (Vec<Result<Scored, RequestError>>, Option<SolverReport>);

/// Runs a pass and scores it: on the device of the model if that can, else on the host.
fn run_pass(
    backbone: &mut dyn Backbone,
    kv: &mut KvCache,
    batch: &ForwardBatch<'_>,
    passes: &[Scoring<'_>],
) -> Result<PassResult, RequestError> {
    let alignment = backbone.spec().alignment;
    let failed = |error: ModelError| RequestError::Forward(error.to_string());
    let miscounted = |what: &str, got: usize| {
        let expected = batch.num_scored();
        Err(RequestError::Forward(format!("{got} {what} for {expected} scored rows")))
    };
    if let Some(scorer) = backbone.scorer() {
        let mut asked = || passes.iter().flat_map(|pass| queries(pass, alignment)).collect();
        let scored = scorer.forward_scored(batch, kv, &mut asked).map_err(failed)?;
        if scored.rows.len() != batch.num_scored() {
            return miscounted("scores", scored.rows.len());
        }
        let mut rest = &scored.rows[..];
        let of_passes = passes.iter().map(|pass| {
            let (own, others) = rest.split_at(pass.rows().len());
            rest = others;
            scores(pass, own)
        });
        return Ok((of_passes.collect(), scored.solver));
    }
    let logits = backbone.forward(batch, kv).map_err(failed)?;
    if logits.num_rows() != batch.num_scored() {
        return miscounted("rows of logits", logits.num_rows());
    }
    Ok((score(passes, &logits, alignment), logits.solver().cloned()))
}
