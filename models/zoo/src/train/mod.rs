//! Training: the loop that all recipes share, its checkpoints and its log.

mod ar;
mod consistency;
mod data;
mod masked;
mod store;
mod trajectory;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use candle_core::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

pub use self::{
    ar::Ar,
    consistency::Consistency,
    data::Mix,
    masked::Masked,
    store::{finished, load_weights},
    trajectory::Trajectories,
};
use crate::{Net, Optimizer, Shape, ZooError};

/// How a model is trained, whatever the recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// Steps of the whole run.
    pub steps: usize,
    /// Steps over which the learning rate rises to its peak; it falls linearly to zero from there to the end.
    pub warm_up: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Rows of a micro-batch, roughly.
    pub rows: usize,
    /// Micro-batches of a step; each is computed by one thread, and the gradients are added in their order, so that the
    /// number of threads does not change the result.
    pub micro_batches: usize,
    /// Seed of weights and data.
    pub seed: u64,
    /// How often each task is drawn.
    pub mix: Mix,
    /// Sizes of the network.
    pub shape: Shape,
}

/// Gradients above this norm are scaled down to it.
const MAX_NORM: f64 = 1.0;
/// File of the evaluations.
const EVALUATION: &str = "evaluation.csv";
/// Steps between lines of the log.
const LOG_EVERY: usize = 20;

/// The loss of one micro-batch.
#[derive(Debug)]
pub struct Loss {
    /// What is minimised, `[]`.
    pub total: Tensor,
    /// Its parts and other figures of interest, by name.
    pub parts: Vec<(&'static str, f64)>,
}

/// What distinguishes one kind of training from another.
pub trait Recipe: Sync {
    /// What a micro-batch keeps from one step to the next.
    type State: Serialize + serde::de::DeserializeOwned + Send;

    /// Its name in run folders.
    fn name(&self) -> &'static str;

    /// The state of a micro-batch before the first step.
    fn state(&self, micro: usize) -> Result<Self::State, ZooError>;

    /// The loss of micro-batch `draw % micro_batches` of step `draw / micro_batches`.
    fn loss(&self, net: &Net, draw: u64, state: &mut Self::State) -> Result<Loss, ZooError>;

    /// Figures on validation problems, by name.
    fn evaluate(&self, net: &Net) -> Result<Vec<(String, f64)>, ZooError>;
}

/// Where and how a run works, which does not change its result.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Folder of the run: its state, its log.
    pub folder: PathBuf,
    /// Threads.
    pub threads: usize,
    /// Steps between checkpoints with evaluation.
    pub save_every: usize,
}

/// Trains until the last step, from the folder's checkpoint if it has one. `start` makes the network of step 0.
pub fn train<R: Recipe>(
    recipe: &R,
    settings: &TrainSettings,
    options: &RunOptions,
    start: impl FnOnce() -> Result<Net, ZooError>,
) -> Result<Net, ZooError> {
    if settings.steps == 0 || settings.micro_batches == 0 || options.threads == 0 || options.save_every == 0 {
        return Err(ZooError::Settings("steps, micro-batches, threads and the checkpoint interval start at 1".into()));
    }
    fs::create_dir_all(&options.folder).map_err(|source| ZooError::Io { path: options.folder.clone(), source })?;
    let (net, mut optimizer, mut states, first) =
        match store::load::<R::State>(&options.folder, recipe.name(), settings)? {
            Some(saved) => saved,
            None => {
                let states: Result<_, _> = (0..settings.micro_batches).map(|micro| recipe.state(micro)).collect();
                (start()?, Optimizer::default(), states?, 0)
            }
        };
    let bar = ProgressBar::new(settings.steps as u64).with_position(first as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} left {eta} {msg}") {
        bar.set_style(style);
    }
    let mut log = Log::new(&options.folder.join("log.csv"), first)?;
    for step in first..settings.steps {
        let begun = Instant::now();
        let (parts, grads) = gradients(recipe, &net, settings, step, &mut states, options.threads)?;
        let loss = parts.first().map_or(f64::NAN, |(_, loss)| *loss);
        if !loss.is_finite() {
            return Err(ZooError::Diverged { step, loss: loss as f32 });
        }
        let left = (settings.steps - step) as f64 / (settings.steps - settings.warm_up.min(settings.steps - 1)) as f64;
        let rate = settings.learning_rate * left.min((step + 1) as f64 / settings.warm_up.max(1) as f64);
        let norm = optimizer.step(net.parameters(), &grads, rate, MAX_NORM, options.threads)?;
        log.add(
            step,
            &parts,
            &[("learning_rate", rate), ("gradient_norm", norm), ("seconds", begun.elapsed().as_secs_f64())],
        )?;
        bar.set_message(format!("loss {loss:.4}"));
        bar.inc(1);
        if (step + 1).is_multiple_of(options.save_every) || step + 1 == settings.steps {
            store::save(&options.folder, recipe.name(), settings, &net, &optimizer, &states, step + 1)?;
            let figures = recipe.evaluate(&net)?;
            let text: Vec<_> = figures.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
            bar.suspend(|| log.note(&options.folder.join(EVALUATION), step + 1, &text))?;
        }
    }
    bar.finish();
    Ok(net)
}

type Figures = Vec<(&'static str, f64)>;

/// Mean of the parts and of the gradients over the micro-batches of a step.
fn gradients<R: Recipe>(
    recipe: &R,
    net: &Net,
    settings: &TrainSettings,
    step: usize,
    states: &mut [R::State],
    threads: usize,
) -> Result<(Figures, BTreeMap<String, Tensor>), ZooError> {
    let count = settings.micro_batches;
    let mut shares: Vec<Vec<(usize, &mut R::State)>> = (0..threads).map(|_| Vec::new()).collect();
    for (micro, state) in states.iter_mut().enumerate() {
        shares[micro % threads].push((micro, state));
    }
    let work = |share: Vec<(usize, &mut R::State)>| -> Result<Vec<_>, ZooError> {
        let done = share.into_iter().map(|(micro, state)| {
            let loss = recipe.loss(net, (step * count + micro) as u64, state)?;
            let store = loss.total.backward()?;
            let grads = net.parameters().iter().filter_map(|(name, var)| Some((name.clone(), store.get(var)?.clone())));
            Ok((micro, loss.parts, grads.collect::<BTreeMap<_, _>>()))
        });
        done.collect()
    };
    let results = thread::scope(|scope| {
        let workers: Vec<_> = shares.into_iter().map(|share| scope.spawn(|| work(share))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a recipe does not panic")).collect::<Vec<_>>()
    });
    let mut done = Vec::new();
    for part in results {
        done.extend(part?);
    }
    done.sort_by_key(|(micro, ..)| *micro);
    let (mut parts, mut grads) = (Figures::new(), BTreeMap::<String, Tensor>::new());
    for (_, figures, own) in done {
        for (name, value) in figures {
            match parts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += value / count as f64,
                None => parts.push((name, value / count as f64)),
            }
        }
        for (name, grad) in own {
            let sum = match grads.get(&name) {
                Some(sum) => (sum + grad)?,
                None => grad,
            };
            grads.insert(name, sum.detach());
        }
    }
    for grad in grads.values_mut() {
        *grad = (&*grad * (1.0 / count as f64))?;
    }
    Ok((parts, grads))
}

/// The loss curve: means over [`LOG_EVERY`] steps.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    sums: Vec<(&'static str, f64)>,
    count: usize,
}

impl Log {
    fn new(path: &Path, first: usize) -> Result<Self, ZooError> {
        for path in [path, &path.with_file_name(EVALUATION)] {
            if first == 0 && path.exists() {
                fs::remove_file(path).map_err(|source| ZooError::Io { path: path.into(), source })?;
            }
        }
        Ok(Self { path: path.into(), sums: Vec::new(), count: 0 })
    }

    fn add(&mut self, step: usize, parts: &Figures, more: &[(&'static str, f64)]) -> Result<(), ZooError> {
        if self.sums.is_empty() {
            self.sums = parts.iter().chain(more).map(|(name, _)| (*name, 0.0)).collect();
        }
        for ((_, sum), (_, value)) in self.sums.iter_mut().zip(parts.iter().chain(more)) {
            *sum += value;
        }
        self.count += 1;
        if (step + 1).is_multiple_of(LOG_EVERY) {
            let names: Vec<_> = self.sums.iter().map(|(name, _)| *name).collect();
            let means: Vec<_> = self.sums.iter().map(|(_, sum)| format!("{:.6}", sum / self.count as f64)).collect();
            append(&self.path, &format!("step,{}", names.join(",")), &format!("{},{}", step + 1, means.join(",")))?;
            (self.sums, self.count) = (Vec::new(), 0);
        }
        Ok(())
    }

    #[expect(clippy::print_stderr, reason = "the report of a command that runs for long")]
    fn note(&self, path: &Path, step: usize, figures: &[String]) -> Result<(), ZooError> {
        eprintln!("step {step}: {}", figures.join(", "));
        append(path, "step,figures", &format!("{step},\"{}\"", figures.join(", ")))
    }
}

/// Appends a line to a file, after a head line if the file is new.
fn append(path: &Path, head: &str, line: &str) -> Result<(), ZooError> {
    let failed = |source| ZooError::Io { path: path.into(), source };
    let is_new = !path.exists();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    let text = if is_new { format!("{head}\n{line}\n") } else { format!("{line}\n") };
    file.write_all(text.as_bytes()).map_err(failed)
}
