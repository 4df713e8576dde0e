//! The worked cases of the LocalLeap specification, and laws on random inputs.

use proptest::prelude::*;

use super::*;

const KAPPA: f32 = 0.9;
const TAU: f32 = 0.75;

fn leap(threshold: f32, relaxed: Option<f32>, radius: usize) -> LocalLeap {
    LocalLeap { threshold, relaxed, radius }
}

/// Candidates out of confidences by position; `-` is no candidate.
fn candidates(text: &str) -> Vec<Candidate> {
    let parse = |(position, word): (usize, &str)| {
        let confidence = if word == "NaN" { f32::NAN } else { word.parse().ok()? };
        Some(Candidate { position, confidence })
    };
    text.split_whitespace().enumerate().filter(|(_, word)| *word != "-").filter_map(parse).collect()
}

fn positions(policy: &mut dyn CommitPolicy, candidates: &[Candidate]) -> Vec<usize> {
    policy.select(candidates).into_iter().map(|(index, _)| candidates[index].position).collect()
}

#[test]
fn worked_cases_of_local_leap() {
    let usual = leap(KAPPA, Some(TAU), 4);
    let overlapping = ".76 .80 .70 .92 .78 .74 .79 .91 .81 .77 .20 .76";
    let exact = ".80 .95 .80 .90 .89";
    let cases: [(u32, LocalLeap, &str, &[usize]); 25] = [
        (1, usual, ".62 .71 .88 .80 .55 .79 .40 .86", &[2]),
        (2, usual, ".80 .76 .74 .95 .77 .60 .78 .75 .89 .85 .89 .30", &[0, 1, 3, 4, 6, 7]),
        (3, leap(KAPPA, Some(TAU), 2), overlapping, &[1, 3, 4, 6, 7, 8, 9]),
        (4, leap(KAPPA, Some(TAU), 1), overlapping, &[3, 4, 6, 7, 8]),
        (5, usual, "- - - - .89 .77 .76 .93 - - - -", &[4, 5, 6, 7]),
        (6, usual, "- - - - .80 .60 .70 .89 -", &[7]),
        (7, usual, ".95 .91 .99 .93", &[0, 1, 2, 3]),
        (8, leap(0.875, Some(0.75), 1), ".875 .75 .75 .7499 .5 .75 .75", &[0, 1]),
        (9, usual, ".60 .85 .85 .85", &[1]),
        (10, leap(KAPPA, Some(TAU), 0), exact, &[1, 3]),
        (11, leap(KAPPA, None, 4), exact, &[1, 3]),
        (12, leap(0.9, Some(0.96), 1), ".92 .95 .97 .91", &[2]),
        (13, leap(0.9, Some(0.9), 4), ".92 .85 .97 .91", &[0, 2, 3]),
        (14, leap(KAPPA, Some(TAU), 3), "- .96 - - .80 .80 - .76 .90", &[1, 4, 5, 7, 8]),
        (15, leap(KAPPA, Some(TAU), 2), ".95 .80 .80 .80 .80 .80 .80 .80", &[0, 1, 2]),
        (16, leap(1.5, Some(TAU), 4), ".99 .98 .97", &[0]),
        (17, leap(KAPPA, Some(0.0), 3), ".95 .01 .02 .03 .04 .05 .06", &[0, 1, 2, 3]),
        (18, leap(KAPPA, Some(TAU), 1_000_000_000), ".80 .74 .75 .91 .76 .10 .90 .77", &[0, 2, 3, 4, 6, 7]),
        (19, usual, "- - .05 -", &[2]),
        (20, usual, "- - -", &[]),
        (21, usual, "- - .78 - .91 .80 .50 .76", &[2, 4, 5, 7]),
        (22, usual, "- - - - .91 .80 .50 .76", &[4, 5, 7]),
        (23, usual, ".80 NaN .95 .76", &[0, 2, 3]),
        (24, usual, "NaN NaN", &[0]),
        // Rows of a batch have policies and candidates of their own; the first is case 1, this one case 7 again.
        (25, usual, ".95 .91 .99 .93", &[0, 1, 2, 3]),
    ];
    for (case, mut policy, confidences, expected) in cases {
        assert_eq!(positions(&mut policy, &candidates(confidences)), expected, "case {case}");
    }
}

#[test]
fn rules_are_told_apart() {
    let rules: Vec<Rule> =
        leap(KAPPA, Some(TAU), 1).select(&candidates(".95 .80 .40")).into_iter().map(|(_, rule)| rule).collect();
    assert_eq!(rules, [Rule::Anchor, Rule::Relaxed]);
    assert_eq!(leap(KAPPA, Some(TAU), 1).select(&candidates(".10 .80")), [(1, Rule::Top)]);
}

#[test]
fn the_factor_rule_stops_at_the_first_failure() {
    let mut policy = Factor { factor: 1.0 };
    // Needed: free, 2/3, 3/4, 4/5.
    assert_eq!(positions(&mut policy, &candidates(".70 .99 .74 .90")), [1, 3], "0.74 < 3/4 ends it, 0.70 is not asked");
    assert_eq!(positions(&mut policy, &candidates(".90 .99 .91 .92")), [0, 1, 2, 3]);
    assert_eq!(positions(&mut policy, &candidates(".90 .99 .91 .79")), [0, 1, 2], "only the last fails");
    assert_eq!(positions(&mut policy, &candidates(".01 .02")), [1]);
    assert!(positions(&mut policy, &[]).is_empty());
}

#[test]
fn the_dynamic_rule_is_strict_and_keeps_its_quota() {
    let mut policy = Dynamic::new(0.75, Schedule::Even);
    let block = BlockStart { num_open: 4, len: 4, steps: 2 };
    policy.begin(block);
    assert_eq!(positions(&mut policy, &candidates(".75 .75 .20 .30")), [0, 1], "equal is not above: the two best");
    policy.begin(block);
    assert_eq!(positions(&mut policy, &candidates(".76 .80 .20 .90")), [0, 1, 3], "all above, more than the quota");
    policy.begin(block);
    assert_eq!(positions(&mut policy, &candidates("- - - .10")), [3], "the quota is cut to what is left");
}

#[test]
fn schedules_give_the_published_numbers() {
    let numbers = |schedule: Schedule, num_slots: usize, steps: usize| {
        let mut quotas = schedule.quotas(num_slots, steps);
        let mut left = num_slots;
        let mut numbers = Vec::new();
        while left > 0 {
            let quota = quotas.next(left);
            left -= quota;
            numbers.push(quota);
        }
        numbers
    };
    assert_eq!(numbers(Schedule::Even, 8, 3), [3, 3, 2]);
    assert_eq!(numbers(Schedule::Even, 2, 5), [1, 1], "steps without a slot are skipped");
    // round(5/4) = 1, round(4/3) = 1, round(3/2) = 2 (half to even), 1.
    assert_eq!(numbers(Schedule::Linear, 5, 4), [1, 1, 2, 1]);
    // round(1/2) = 0 (half to even) is dropped.
    assert_eq!(numbers(Schedule::Linear, 1, 2), [1]);
    // 8 slots, 4 steps: t = 1, .75025, .5005, .25075, .001; floor(8 x .24975) = 1, floor(7 x .33289) = 2,
    // floor(5 x .49900) = 2, and the rest.
    assert_eq!(numbers(Schedule::Grid, 8, 4), [1, 2, 2, 3]);
    assert_eq!(numbers(Schedule::Grid, 3, 1), [3]);
}

#[test]
fn the_origin_rule_follows_its_coins() {
    let noise = crate::sampling::SlotNoise::new(5, 0, 0);
    let all = candidates(&".5 ".repeat(2000));
    let mut policy = Origin::new(noise);
    policy.begin(BlockStart { num_open: 2000, len: 2000, steps: 4 });
    let first = positions(&mut policy, &all);
    // 2000 coins with probability 0.24975: 499.5 +- 19.4.
    assert!((400..600).contains(&first.len()), "{}", first.len());
    let mut again = Origin::new(noise);
    again.begin(BlockStart { num_open: 2000, len: 2000, steps: 4 });
    assert_eq!(positions(&mut again, &all), first, "the same key, the same coins");
    policy.begin(BlockStart { num_open: 1, len: 1, steps: 1 });
    assert_eq!(positions(&mut policy, &all[..1]), [0], "the last step takes all");
}

/// The published form: sort by confidence and walk the list, rank 0 is kept, the others by their threshold.
fn by_walking(candidates: &[Candidate], policy: LocalLeap) -> Vec<usize> {
    let anchors: Vec<usize> =
        candidates.iter().filter(|c| known(c.confidence) >= policy.threshold).map(|c| c.position).collect();
    let needed = |position: usize| match policy.relaxed {
        Some(relaxed) if anchors.iter().any(|anchor| anchor.abs_diff(position) <= policy.radius) => relaxed,
        _ => policy.threshold,
    };
    let order = ranked(candidates);
    let kept = order.iter().enumerate().filter(|(rank, index)| {
        let candidate = candidates[**index];
        *rank == 0 || known(candidate.confidence) >= needed(candidate.position)
    });
    let mut kept: Vec<usize> = kept.map(|(_, index)| candidates[*index].position).collect();
    kept.sort_unstable();
    kept
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    // Few values, so that ties and exact thresholds are common.
    let confidence = prop_oneof![(0u32..=20).prop_map(|n| n as f32 / 20.0), Just(f32::NAN)];
    proptest::collection::btree_map(0usize..60, confidence, 0..40)
        .prop_map(|map| map.into_iter().map(|(position, confidence)| Candidate { position, confidence }).collect())
}

fn any_leap() -> impl Strategy<Value = LocalLeap> {
    (1u32..=21, proptest::option::of(0u32..=20), 0usize..8)
        .prop_map(|(kappa, tau, radius)| leap(kappa as f32 / 20.0, tau.map(|tau| tau as f32 / 20.0), radius))
}

fn any_policy() -> impl Strategy<Value = Box<dyn CommitPolicy>> {
    let schedule = prop_oneof![Just(Schedule::Even), Just(Schedule::Grid), Just(Schedule::Linear)];
    let noise = crate::sampling::SlotNoise::new(1, 0, 0);
    (any_leap(), schedule, 0usize..6).prop_map(move |(leap, schedule, kind)| -> Box<dyn CommitPolicy> {
        match kind {
            0 => Box::new(leap),
            1 => Box::new(Factor { factor: leap.threshold }),
            2 => Box::new(Dynamic::new(leap.threshold, schedule)),
            3 => Box::new(Origin::new(noise)),
            4 => Box::new(Quota::new(schedule, Ranking::Random(noise))),
            _ => Box::new(Quota::new(schedule, Ranking::Confidence)),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_set_form_equals_the_published_walk(candidates in any_candidates(), policy in any_leap()) {
        prop_assert_eq!(positions(&mut policy.clone(), &candidates), by_walking(&candidates, policy));
    }

    #[test]
    fn every_policy_selects_some_candidates(
        candidates in any_candidates(),
        mut policy in any_policy(),
        steps in 1usize..50,
    ) {
        policy.begin(BlockStart { num_open: candidates.len(), len: 60, steps });
        let chosen = policy.select(&candidates);
        prop_assert_eq!(chosen.is_empty(), candidates.is_empty());
        prop_assert!(chosen.windows(2).all(|pair| pair[0].0 < pair[1].0));
        prop_assert!(chosen.iter().all(|(index, _)| *index < candidates.len()));
    }

    #[test]
    fn relaxing_never_takes_away(
        candidates in any_candidates(),
        (kappa, tau, lower) in (1u32..=20, 0u32..=20, 0u32..=20),
        (radius, wider) in (0usize..6, 0usize..6),
    ) {
        let (tau, lower) = (tau.min(kappa), lower.min(tau).min(kappa));
        let policy = leap(kappa as f32 / 20.0, Some(tau as f32 / 20.0), radius);
        let few = positions(&mut policy.clone(), &candidates);
        for mut more in [
            LocalLeap { relaxed: Some(lower as f32 / 20.0), ..policy },
            LocalLeap { radius: radius + wider, ..policy },
        ] {
            let many = positions(&mut more, &candidates);
            prop_assert!(few.iter().all(|position| many.contains(position)), "{:?} without {:?}", many, few);
        }
    }

    #[test]
    fn without_relaxation_it_is_threshold_decoding(candidates in any_candidates(), policy in any_leap()) {
        let expected = positions(&mut LocalLeap::threshold(policy.threshold), &candidates);
        let no_radius = LocalLeap { radius: 0, relaxed: policy.relaxed.map(|tau| tau.min(policy.threshold)), ..policy };
        for mut same in [
            LocalLeap { relaxed: Some(policy.threshold), ..policy },
            LocalLeap { relaxed: None, ..policy },
            no_radius,
        ] {
            prop_assert_eq!(positions(&mut same, &candidates), expected.clone());
        }
    }

    #[test]
    fn without_an_anchor_one_slot_is_committed(candidates in any_candidates(), policy in any_leap()) {
        let mut policy = LocalLeap { threshold: 1.5, ..policy };
        prop_assert_eq!(policy.select(&candidates).len(), candidates.len().min(1));
    }

    #[test]
    fn only_distances_count(candidates in any_candidates(), policy in any_leap(), shift in 0usize..1_000_000) {
        let moved: Vec<_> = candidates.iter().map(|c| Candidate { position: c.position + shift, ..*c }).collect();
        let expected: Vec<_> =
            positions(&mut policy.clone(), &candidates).into_iter().map(|position| position + shift).collect();
        prop_assert_eq!(positions(&mut policy.clone(), &moved), expected);
    }
}
