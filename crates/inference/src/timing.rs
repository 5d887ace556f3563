//! Times models side by side.
//!
//! Models take turns in blocks of calls, so a change of the machine's mood meets all of them, and a block is long enough for
//! several periods of a CPU quota to pass, so throttling shows in its mean. The quietest half of the blocks counts: other
//! processes only ever make a block slower.

use std::time::{Duration, Instant};

use ort::session::{Session, SessionInputValue};
use pleach_domain::Tensor;
use pleach_domain::runtime::{Optimization, TimedModel, Timing};

use crate::error::InferenceError;
use crate::library::OrtRuntime;
use crate::model::{bind, input_ports};

/// Shortest and longest block: two periods of a 10 ms quota, one of the kernel's default 100 ms.
const BLOCK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));
const BLOCKS_PER_BUDGET: u32 = 5;
const MIN_BLOCKS: usize = 2;
const WARM_UP_CALLS: (u32, u32) = (2, 64);
/// Calls whose single times are kept for the quantiles of one model.
const MAX_SAMPLES: usize = 16_384;
/// Models that are loaded at the same time: bounds memory and threads.
const GROUP_MODELS: usize = 32;
const GROUP_BYTES: usize = 64 << 20;

struct Subject<'a> {
    session: Session,
    inputs: Vec<SessionInputValue<'a>>,
}

impl Subject<'_> {
    fn call(&mut self) -> Result<(), InferenceError> {
        self.session.run(self.inputs.as_slice()).map(drop).map_err(InferenceError::ort("running a model to be timed"))
    }
}

pub(crate) fn time(runtime: &OrtRuntime, models: &[TimedModel], budget: Duration) -> Result<Vec<Timing>, InferenceError> {
    let mut timings = Vec::with_capacity(models.len());
    for group in groups(models) {
        let at = timings.len();
        let named = |index: usize, source| InferenceError::Timing { index: at + index, count: models.len(), source: Box::new(source) };
        let mut subjects = Vec::with_capacity(group.len());
        for (index, model) in group.iter().enumerate() {
            subjects.push(subject(runtime, model).map_err(|e| named(index, e))?);
        }
        timings.extend(interleave(&mut subjects, budget, Subject::call).map_err(|(index, e)| named(index, e))?);
    }
    Ok(timings)
}

fn subject<'a>(runtime: &OrtRuntime, model: &'a TimedModel) -> Result<Subject<'a>, InferenceError> {
    let session = runtime.session(&model.model, Optimization::All)?;
    let named: Vec<(&str, &Tensor)> = model.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let inputs = bind(&input_ports(&session)?, &named)?;
    Ok(Subject { session, inputs })
}

/// Splits models into runs that are loaded together.
fn groups(models: &[TimedModel]) -> Vec<&[TimedModel]> {
    let (mut out, mut rest) = (Vec::new(), models);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(GROUP_MODELS).take_while(|m| {
            bytes += m.model.len();
            bytes <= GROUP_BYTES
        });
        let (group, after) = rest.split_at(fits.count().max(1));
        out.push(group);
        rest = after;
    }
    out
}

#[derive(Default)]
struct Record {
    spent: Duration,
    blocks: Vec<(Duration, u32)>,
    samples_us: Vec<f64>,
    min_us: Option<f64>,
}

/// Calls subjects in turns until each had its budget; an error names the subject.
fn interleave<S, E>(
    subjects: &mut [S],
    budget: Duration,
    mut call: impl FnMut(&mut S) -> Result<(), E>,
) -> Result<Vec<Timing>, (usize, E)> {
    let block = (budget / BLOCKS_PER_BUDGET).clamp(BLOCK.0, BLOCK.1);
    for (index, subject) in subjects.iter_mut().enumerate() {
        let start = Instant::now();
        for calls in 0..WARM_UP_CALLS.1 {
            if calls >= WARM_UP_CALLS.0 && start.elapsed() >= block / 4 {
                break;
            }
            call(subject).map_err(|e| (index, e))?;
        }
    }
    let mut records: Vec<Record> = subjects.iter().map(|_| Record::default()).collect();
    let due = |record: &Record| record.spent < budget || record.blocks.len() < MIN_BLOCKS;
    while records.iter().any(due) {
        for (index, (subject, record)) in subjects.iter_mut().zip(&mut records).enumerate().filter(|(_, (_, r))| due(r)) {
            record.block(block, || call(subject)).map_err(|e| (index, e))?;
        }
    }
    Ok(records.into_iter().map(Record::timing).collect())
}

impl Record {
    fn block<E>(&mut self, length: Duration, mut call: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let start = Instant::now();
        let (mut before, mut calls) = (start, 0);
        loop {
            call()?;
            let now = Instant::now();
            let us = (now - before).as_secs_f64() * 1e6;
            (before, calls) = (now, calls + 1);
            self.min_us = Some(self.min_us.map_or(us, |m| m.min(us)));
            if self.samples_us.len() < MAX_SAMPLES {
                self.samples_us.push(us);
            }
            if now - start >= length {
                self.blocks.push((now - start, calls));
                self.spent += now - start;
                return Ok(());
            }
        }
    }

    fn timing(mut self) -> Timing {
        let mean = |&(wall, calls): &(Duration, u32)| wall.as_secs_f64() * 1e6 / f64::from(calls);
        self.blocks.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
        let quiet = self.blocks.iter().take(self.blocks.len().div_ceil(2));
        let (wall, calls) = quiet.fold((Duration::ZERO, 0), |(w, c), &(wall, calls)| (w + wall, c + calls));
        self.samples_us.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let at = (q * self.samples_us.len() as f64) as usize;
            self.samples_us.get(at).or(self.samples_us.last()).copied().unwrap_or(0.0)
        };
        Timing {
            mean_us: mean(&(wall, calls.max(1))),
            min_us: self.min_us.unwrap_or(0.0),
            p50_us: quantile(0.5),
            p95_us: quantile(0.95),
            calls: self.blocks.iter().map(|b| b.1).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(duration: Duration) {
        let start = Instant::now();
        while start.elapsed() < duration {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn means_tell_fast_from_slow_subjects() {
        let mut subjects = [Duration::from_micros(100), Duration::from_micros(400)];
        let timings = interleave(&mut subjects, Duration::from_millis(60), |d| {
            spin(*d);
            Ok::<(), ()>(())
        })
        .unwrap();
        let [fast, slow] = timings.try_into().unwrap();
        assert!(fast.min_us >= 100.0 && slow.min_us >= 400.0, "{fast:?} {slow:?}");
        assert!(fast.mean_us >= fast.min_us && fast.p50_us <= fast.p95_us, "{fast:?}");
        assert!((1.5..8.0).contains(&(slow.mean_us / fast.mean_us)), "{fast:?} {slow:?}");
    }

    #[test]
    fn mean_of_a_throttled_subject_includes_its_stalls() {
        // 10 ms of work, then a stall of 10 ms, as under a 50 % quota with a period of 20 ms.
        let mut worked = Duration::ZERO;
        let timings = interleave(&mut [()], Duration::from_millis(400), |()| {
            spin(Duration::from_micros(500));
            worked += Duration::from_micros(500);
            if worked >= Duration::from_millis(10) {
                worked = Duration::ZERO;
                spin(Duration::from_millis(10));
            }
            Ok::<(), ()>(())
        })
        .unwrap();
        let timing = timings.first().unwrap();
        assert!(timing.p50_us < 800.0, "{timing:?}");
        assert!(timing.mean_us > 850.0, "{timing:?}");
    }

    #[test]
    fn error_names_the_subject() {
        let result = interleave(&mut [1, 2, 3], Duration::ZERO, |s| if *s == 2 { Err("broken") } else { Ok(()) });
        assert_eq!(result.unwrap_err(), (1, "broken"));
    }

    #[test]
    fn groups_bound_models_and_bytes() {
        let model = |bytes| TimedModel { model: vec![0; bytes], inputs: Vec::new() };
        let many: Vec<_> = (0..70).map(|_| model(10)).collect();
        assert_eq!(groups(&many).iter().map(|g| g.len()).collect::<Vec<_>>(), [32, 32, 6]);
        let big = [model(GROUP_BYTES + 1), model(GROUP_BYTES / 2), model(GROUP_BYTES / 2), model(1)];
        assert_eq!(groups(&big).iter().map(|g| g.len()).collect::<Vec<_>>(), [1, 2, 1]);
        assert!(groups(&[]).is_empty());
    }
}
