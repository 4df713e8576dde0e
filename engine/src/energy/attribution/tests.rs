use proptest::prelude::*;

use super::*;
use crate::energy::{
    report::Ticket,
    steps::{Phase, StepLog},
};

const MS: u64 = 1_000_000;

fn request(ticket: u64, phase: Phase, weight: u64) -> Share {
    Share { account: Account::Request(Ticket(ticket), phase), weight }
}

fn log(steps: &[(u64, u64, &[Share])]) -> StepLog {
    let mut log = StepLog::default();
    for (begin, end, shares) in steps {
        let (id, _) = log.begin(Nanos(begin * MS), &[], shares);
        log.end(id, Nanos(end * MS));
    }
    log
}

fn second(energy_uj: u64) -> Interval {
    Interval { from: Nanos(0), to: Nanos(1000 * MS), energy_uj }
}

fn joules(division: &Division) -> Vec<(Account, f64)> {
    division.parts.iter().map(|part| (part.account, part.energy_uj as f64 / 1e6)).collect()
}

#[test]
fn the_idle_part_is_what_idling_takes() {
    let log = log(&[(200, 700, &[request(1, Phase::Decode, 1)])]);
    let account = Account::Request(Ticket(1), Phase::Decode);
    for (energy_uj, idle_watts, idle, busy) in [
        (20_000_000, Some(8.0), 4_000_000, 16.0),
        (20_000_000, None, 10_000_000, 10.0),
        (3_000_000, Some(8.0), 3_000_000, 0.0),
    ] {
        let division = divide(second(energy_uj), &Rail::Host, idle_watts, log.steps());
        assert_eq!(division.idle_uj, idle);
        assert_eq!(joules(&division), [(account, busy)]);
        assert!((division.parts[0].seconds - 0.5).abs() < 1e-12);
    }
}

#[test]
fn a_step_is_divided_by_its_weights() {
    let log = log(&[
        (0, 400, &[request(1, Phase::Prefill, 90), request(2, Phase::Decode, 10)]),
        (400, 1000, &[request(1, Phase::Decode, 1), request(2, Phase::Decode, 1)]),
    ]);
    let division = divide(second(30_000_000), &Rail::Host, Some(8.0), log.steps());
    assert_eq!(division.idle_uj, 0);
    assert_eq!(
        joules(&division),
        [
            (Account::Request(Ticket(1), Phase::Prefill), 10.8),
            (Account::Request(Ticket(1), Phase::Decode), 9.0),
            (Account::Request(Ticket(2), Phase::Decode), 10.2),
        ]
    );
}

#[test]
fn steps_at_the_same_time_share_it() {
    let log = log(&[(0, 1000, &[request(1, Phase::Decode, 7)]), (500, 1000, &[request(2, Phase::Decode, 1)])]);
    let division = divide(second(8_000_000), &Rail::Host, None, log.steps());
    let parts: Vec<u64> = division.parts.iter().map(|part| part.energy_uj).collect();
    assert_eq!(parts, [6_000_000, 2_000_000]);
}

#[test]
fn a_step_of_nobody_is_other_work_and_one_elsewhere_is_none() {
    let mut log = StepLog::default();
    log.begin(Nanos(0), &[3], &[request(1, Phase::Decode, 0)]);
    let on = |rail| divide(second(8_000_000), &rail, None, log.steps());
    let other = vec![(Account::System(SystemCause::Other), 8.0)];
    assert_eq!(joules(&on(Rail::Host)), other);
    assert_eq!(joules(&on(Rail::Accelerator(3))), other);
    assert_eq!(on(Rail::Accelerator(2)), Division { idle_uj: 8_000_000, parts: vec![] });
}

/// Begin, length and shares of some steps, in milliseconds; some reach beyond the interval from 100 to 1100.
fn any_steps() -> impl Strategy<Value = Vec<(u64, u64, Vec<Share>)>> {
    let share =
        (0u64..5, any::<bool>(), prop_oneof![Just(0), 1u64..100, any::<u64>()]).prop_map(|(ticket, first, weight)| {
            request(ticket, if first { Phase::Prefill } else { Phase::Decode }, weight)
        });
    let step = (0u64..1400, 0u64..500, prop::collection::vec(share, 0..5));
    prop::collection::vec(step, 0..8)
}

fn log_of(steps: &[(u64, u64, Vec<Share>)]) -> StepLog {
    let mut log = StepLog::default();
    for (begin, length, shares) in steps {
        let (id, _) = log.begin(Nanos(begin * MS), &[], shares);
        log.end(id, Nanos((begin + length) * MS));
    }
    log
}

const FROM: Nanos = Nanos(100 * MS);
const TO: Nanos = Nanos(1100 * MS);

fn sums(division: &Division) -> BTreeMap<Option<Account>, u64> {
    let mut sums = BTreeMap::from([(None, division.idle_uj)]);
    sums.extend(division.parts.iter().map(|part| (Some(part.account), part.energy_uj)));
    sums
}

proptest! {
    #[test]
    fn everything_is_given_to_somebody(
        steps in any_steps(), energy_uj in 0u64..1 << 50, idle_watts in prop::option::of(0.0..50.0f64),
    ) {
        let log = log_of(&steps);
        let division = divide(Interval { from: FROM, to: TO, energy_uj }, &Rail::Host, idle_watts, log.steps());
        prop_assert_eq!(sums(&division).values().sum::<u64>(), energy_uj);
        // Only those whose steps lie in the interval pay.
        for part in &division.parts {
            let owns = |shares: &[Share]| match part.account {
                Account::System(_) => shares.iter().all(|share| share.weight == 0),
                account => shares.iter().any(|share| share.account == account && share.weight > 0),
            };
            let inside = |begin: u64, length: u64| {
                begin * MS < TO.0 && (begin + length) * MS > FROM.0 && length > 0
            };
            prop_assert!(steps.iter().any(|(begin, length, shares)| inside(*begin, *length) && owns(shares)));
        }
    }

    #[test]
    fn two_readings_or_one_make_no_difference(steps in any_steps(), at in 1u64..1000, watts in 1u64..1000) {
        let log = log_of(&steps);
        let cut = Nanos(FROM.0 + at * MS);
        let part = |from: Nanos, to: Nanos| {
            let energy_uj = watts * (to.0 - from.0) / 1000;
            sums(&divide(Interval { from, to, energy_uj }, &Rail::Host, None, log.steps()))
        };
        let (whole, first, second) = (part(FROM, TO), part(FROM, cut), part(cut, TO));
        for account in whole.keys().chain(first.keys()).chain(second.keys()) {
            let of = |sums: &BTreeMap<_, u64>| sums.get(account).copied().unwrap_or(0);
            let difference = of(&whole).abs_diff(of(&first) + of(&second));
            // One for the idle part and one for the rest, for each cut.
            prop_assert!(difference <= 4, "{account:?} differs by {difference}");
        }
    }

    #[test]
    fn equals_pay_the_same(num_shares in 1u64..9, weight in 1u64..1 << 40, energy_uj in 0u64..1 << 40) {
        let shares: Vec<Share> = (0..num_shares).map(|ticket| request(ticket, Phase::Decode, weight)).collect();
        let log = log_of(&[(100, 1000, shares)]);
        let division = divide(Interval { from: FROM, to: TO, energy_uj }, &Rail::Host, None, log.steps());
        let parts = || division.parts.iter().map(|part| part.energy_uj);
        prop_assert!(parts().max().unwrap() - parts().min().unwrap() <= 1);
    }

    #[test]
    fn twice_the_energy_is_twice_the_share(steps in any_steps(), energy_uj in 0u64..1 << 40) {
        let log = log_of(&steps);
        let of = |energy_uj| sums(&divide(Interval { from: FROM, to: TO, energy_uj }, &Rail::Host, None, log.steps()));
        let (once, twice) = (of(energy_uj), of(2 * energy_uj));
        for (account, uj) in once {
            prop_assert!((2 * uj).abs_diff(twice[&account]) <= 4);
        }
    }

    #[test]
    fn the_order_in_which_steps_are_told_makes_no_difference(steps in any_steps(), energy_uj in 0u64..1 << 40) {
        let of = |steps: &[(u64, u64, Vec<Share>)]| {
            let log = log_of(steps);
            sums(&divide(Interval { from: FROM, to: TO, energy_uj }, &Rail::Host, None, log.steps()))
        };
        let reversed: Vec<_> = steps.iter().rev().cloned().collect();
        prop_assert_eq!(of(&steps), of(&reversed));
    }
}
