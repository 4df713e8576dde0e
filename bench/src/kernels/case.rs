//! One op on one set of data: how it is called, timed and checked, with candle's op beside it.

use std::{
    fmt,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use candle_core::Tensor;
use kernels::peak::Products;
use serde::Serialize;

use super::counts::Counts;

/// A call on one of several copies of the same data.
pub(super) type Call<'a> = Box<dyn Fn(usize) -> anyhow::Result<Tensor> + 'a>;

/// The error of an output.
pub(super) type ErrorOf<'a> = Box<dyn Fn(&Tensor) -> anyhow::Result<f64> + 'a>;

/// What a line of the table is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Label {
    pub(super) op: &'static str,
    pub(super) shape: &'static str,
    /// Matrix, or kind of attention; empty where an op has but one.
    pub(super) what: String,
    pub(super) rows: usize,
    /// Of weights, keys and values, or what the op reads.
    pub(super) format: String,
    /// Whether weights, or keys and values, come from memory; activations never do.
    pub(super) cold: bool,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, shape, what, rows, format, cold } = self;
        let data = if *cold { "cold" } else { "warm" };
        let space = if what.is_empty() { "" } else { " " };
        write!(f, "{op}{space}{what} of {shape}, {rows} rows, {format}, {data}")
    }
}

/// What our op is compared with.
pub(super) enum Peer<'a> {
    /// candle's own op on the same data, and what brings its output into the order of ours.
    Candle { name: &'static str, call: Call<'a>, arrange: fn(Tensor) -> candle_core::Result<Tensor> },
    /// candle has no such op: the error of an output against a reference.
    NoSuchOp { error: ErrorOf<'a> },
}

/// An op, ready to be called.
pub(super) struct Case<'a> {
    pub(super) label: Label,
    pub(super) counts: Counts,
    /// The multipliers that it uses.
    pub(super) products: Products,
    /// Copies of the data; calls go from one to the next.
    pub(super) num_copies: usize,
    pub(super) ours: Call<'a>,
    pub(super) peer: Peer<'a>,
    /// Largest error that rounding explains.
    pub(super) tolerance: f64,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    #[serde(flatten)]
    pub(super) label: Label,
    #[serde(flatten)]
    pub(super) counts: Counts,
    pub(super) num_copies: usize,
    /// Seconds of a call, by round.
    pub(super) ours_s: Vec<f64>,
    /// Absent where candle has no such op.
    pub(super) candle: Option<Candle>,
    /// Largest difference of an output value from candle's, or from the reference, relative to the root mean square.
    pub(super) error: f64,
    pub(super) tolerance: f64,
    pub(super) bound_s: f64,
    pub(super) bound_by: &'static str,
}

/// candle's side of a cell.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Candle {
    pub(super) op: &'static str,
    /// Seconds of a call, by round.
    pub(super) seconds: Vec<f64>,
}

/// How long is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    pub(super) rounds: usize,
    /// Shortest time of one sample.
    pub(super) sample: Duration,
}

/// Times of ours and of candle's, one after the other in every round, and the error of the output.
pub(super) struct Measured {
    pub(super) ours_s: Vec<f64>,
    pub(super) candle: Option<Candle>,
    pub(super) error: f64,
}

/// Checks the output, then times the op.
pub(super) fn measure(case: &Case<'_>, effort: Effort) -> anyhow::Result<Measured> {
    let error = check(case).with_context(|| case.label.to_string())?;
    let mut ours = Sampler::new(&case.ours, case, effort)?;
    let mut theirs = match &case.peer {
        Peer::Candle { name, call, .. } => Some((*name, Sampler::new(call, case, effort)?)),
        Peer::NoSuchOp { .. } => None,
    };
    let (mut ours_s, mut theirs_s) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        ours_s.push(ours.sample()?);
        if let Some((_, sampler)) = &mut theirs {
            theirs_s.push(sampler.sample()?);
        }
    }
    let candle = theirs.map(|(op, _)| Candle { op, seconds: theirs_s });
    Ok(Measured { ours_s, candle, error })
}

/// Times calls of one op.
struct Sampler<'a> {
    call: &'a Call<'a>,
    num_copies: usize,
    /// Copy of the next call; samples go on where the last one ended, for what it read may still be in a cache.
    next: usize,
    calls: usize,
}

impl<'a> Sampler<'a> {
    /// Finds out how many calls take as long as a sample should.
    fn new(call: &'a Call<'a>, case: &Case<'_>, effort: Effort) -> anyhow::Result<Self> {
        let mut sampler = Self { call, num_copies: case.num_copies, next: 0, calls: 1 };
        sampler.sample()?;
        let mut seconds = sampler.sample()?;
        // One call may be too short for the clock.
        while sampler.calls < 1000 && seconds * sampler.calls as f64 * 10.0 < effort.sample.as_secs_f64() {
            sampler.calls *= 4;
            seconds = sampler.sample()?;
        }
        sampler.calls = (effort.sample.as_secs_f64() / seconds.max(1e-9)).ceil().max(1.0) as usize;
        Ok(sampler)
    }

    /// Seconds of a call. One call before the clock starts brings back what the other op has driven out, and waits for its
    /// threads to rest.
    fn sample(&mut self) -> anyhow::Result<f64> {
        self.once()?;
        let start = Instant::now();
        for _ in 0..self.calls {
            self.once()?;
        }
        Ok(start.elapsed().as_secs_f64() / self.calls as f64)
    }

    fn once(&mut self) -> anyhow::Result<()> {
        black_box((self.call)(self.next)?);
        self.next = (self.next + 1) % self.num_copies;
        Ok(())
    }
}

/// The error of the output of the first copy, which must be within the tolerance.
fn check(case: &Case<'_>) -> anyhow::Result<f64> {
    let output = (case.ours)(0)?;
    let (error, name) = match &case.peer {
        Peer::Candle { name, call, arrange } => (difference(&output, &arrange(call(0)?)?)?, *name),
        Peer::NoSuchOp { error } => (error(&output)?, "the reference"),
    };
    // Written so that an error that is not a number fails.
    ensure!(
        error <= case.tolerance,
        "the output differs from that of {name} by {error:.3e} of its root mean square; rounding explains {:.0e}",
        case.tolerance
    );
    Ok(error)
}

/// Largest difference of a value, relative to the root mean square of `expected`.
pub(super) fn difference(got: &Tensor, expected: &Tensor) -> anyhow::Result<f64> {
    ensure!(got.dims() == expected.dims(), "the output is {:?} and not {:?}", got.dims(), expected.dims());
    let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (got, expected) = (numbers(got)?, numbers(expected)?);
    let square: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = (square / expected.len() as f64).sqrt();
    ensure!(scale.is_finite() && scale > 0.0, "the expected output is zero or not finite");
    let largest = got.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    // `max` would pass over what is not a number.
    Ok(largest.fold(0.0, |most, x| if x.is_nan() || x > most { x } else { most }) / scale)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).expect("a tensor of a slice")
    }

    fn case(ours: &'static [f32], theirs: &'static [f32]) -> Case<'static> {
        Case {
            label: Label { op: "sum", shape: "tiny", what: String::new(), rows: 1, format: "f32".into(), cold: false },
            counts: Counts { bytes: 4, operations: 1 },
            products: Products::F32,
            num_copies: 3,
            ours: Box::new(|_| Ok(tensor(ours))),
            peer: Peer::Candle { name: "theirs", call: Box::new(|_| Ok(tensor(theirs))), arrange: Ok },
            tolerance: 1e-3,
        }
    }

    const EFFORT: Effort = Effort { rounds: 2, sample: Duration::from_micros(50) };

    #[test]
    fn both_are_timed_in_every_round() {
        let measured = measure(&case(&[3.0, -4.0], &[3.0, -4.001]), EFFORT).unwrap();
        assert_eq!((measured.ours_s.len(), measured.candle.unwrap().seconds.len()), (2, 2));
        // 0.001 of the root of 12.5.
        assert!((measured.error - 0.001 / 12.5f64.sqrt()).abs() < 1e-6, "{}", measured.error);
    }

    #[test]
    fn a_wrong_output_is_a_failure() {
        for (ours, theirs) in [
            (&[3.0f32, -4.0][..], &[3.0f32, -4.1][..]),
            (&[f32::NAN, -4.0], &[3.0, -4.0]),
            (&[3.0, f32::INFINITY], &[3.0, -4.0]),
            (&[3.0], &[3.0, -4.0]),
            (&[0.0, 0.0], &[0.0, 0.0]),
            (&[-4.0, 3.0], &[3.0, -4.0]),
        ] {
            let error = measure(&case(ours, theirs), EFFORT).err().map(|error| format!("{error:#}"));
            assert!(error.is_some_and(|error| error.contains("sum of tiny")), "{ours:?}");
        }
    }

    #[test]
    fn calls_go_through_the_copies() {
        let seen = std::sync::Mutex::new(Vec::new());
        let case = Case {
            ours: Box::new(|copy| {
                seen.lock().unwrap().push(copy);
                Ok(tensor(&[1.0]))
            }),
            ..case(&[1.0], &[1.0])
        };
        let mut sampler = Sampler { call: &case.ours, num_copies: case.num_copies, next: 2, calls: 3 };
        sampler.sample().unwrap();
        assert_eq!(*seen.lock().unwrap(), [2, 0, 1, 2]);
    }
}
