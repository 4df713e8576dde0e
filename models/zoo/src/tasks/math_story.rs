//! Stories: somebody's things come and go, step by step.

use super::{
    draw::{Draw, variants},
    math::Work,
    math_families::two_people,
    words::{BOXES, Class, DAYS, ITEMS},
};

const START: &str = "[|In the morning, |On {day}, |At first, |\
    Today, ]{A} has {n} {items}[| at home| in a box| in a bag| on the table].";
const START_BOXES: &str = "[|In the morning, |On {day}, |At first, |Today, ]{A} [has|buys|gets|owns] {k} {boxes} \
    [with {n} {items} each|with {n} {items} in each|of {n} {items} each].";
const GAIN: &str = "[Then|Later|After that,|Next,] [{she} {gains} {n} more[| {items}]|\
    {B} gives {her} {n} more[| {items}]|\
    {she} gets {n} more from {B}|{she} {gains} another {n}[| {items}]].";
const LOSS: &str = "[Then|Later|After that,|Next,] [{she} {loses} {n} [of them|{items}]|{she} gives {n} [of them|\
    {items}] to {B}|\
    {B} takes {n} [of them|{items}]].";
const HALF: &str = "[Then|Later|After that,|Next,] [{she} {loses} half of [them|the {items}]|\
    {she} gives half of [them|the {items}] to {B}|{B} takes half of [them|the {items}]].";
const GAIN_BOXES: &str = "[Then|Later|After that,|Next,] {she} [buys|gets] {k} {boxes} [with {n} {items} each|\
    of {n} {items} each|\
    with {n} in each].";
const GAIN_DAYS: &str =
    "[Then|Later|After that,|Next,] {she} {gains} {n} [more |][a day|every day|each day|per day] for {k} days.";
const LOSS_EACH: &str = "[Then|Later|After that,|Next,] {she} [gives|sells] {n} [of them |{items} |]to each of {k} \
    [friends|children|neighbors].";
const HOW_MANY: &str = "How many {items} does [{A}|{she}] have [now|left|in the end|at the end]?";
const SHARE: &str = "[Then|Later|After that,|Next,] {she} [shares|divides|splits] [them|all of them|\
    the {items}] equally among {k} \
    [friends|children|neighbors|people]. How many [{items} does each of them get|does each of them get|\
    {items} does each one get]?";
const PACK: &str = "[Then|Later|After that,|Next,] {she} [puts|packs] [them|all of them|\
    the {items}] into {boxes} of {k}. \
    How many {boxes} [does {she} fill|does {A} fill|are full|are there]?";

/// How things of a class come and go.
fn verbs(class: Class) -> (&'static str, &'static str) {
    match class {
        Class::Fruit => ("[buys|gets|picks|collects]", "[eats|sells|gives away|loses|uses]"),
        Class::Baked => ("[bakes|makes|buys|gets]", "[eats|sells|gives away]"),
        Class::Thing => ("[buys|gets|finds|collects]", "[loses|sells|gives away]"),
    }
}

/// Somebody's things come and go.
pub(super) fn story(draw: &mut Draw, work: &mut Work) {
    let (a, b) = two_people(draw);
    let (items, class) = draw.pick(ITEMS);
    let (gains, loses) = verbs(class);
    let (gains, loses) = (draw.choose(gains), draw.choose(loses));
    let day = draw.pick(DAYS);
    let boxes = draw.pick(BOXES);
    let ask = |draw: &mut Draw, work: &mut Work, phrase: &str, n: i64, k: i64| {
        let (n, k) = (n.to_string(), k.to_string());
        work.ask(draw.say(
            phrase,
            &[
                ("A", a.name),
                ("B", b.name),
                ("she", a.subject()),
                ("her", a.object()),
                ("items", items),
                ("day", day),
                ("boxes", boxes),
                ("gains", &gains),
                ("loses", &loses),
                ("n", &n),
                ("k", &k),
            ],
        ));
    };
    let product = |work: &mut Work, k: i64, n: i64| work.step("That is", (k, '*', n), items);

    let mut have = draw.int(4, 60);
    if draw.chance(35) {
        let (k, n) = (draw.int(2, 12), draw.int(2, 12));
        ask(draw, work, START_BOXES, n, k);
        have = product(work, k, n);
    } else {
        ask(draw, work, START, have, 0);
    }
    let wanted = draw.pick(&[2, 2, 3, 3, 4]);
    let divides = draw.chance(30);
    let mut last_half = false;
    while work.steps() + usize::from(divides) < wanted {
        let kinds = if wanted - work.steps() >= 2 + usize::from(divides) { 9 } else { 6 };
        let kind = draw.below(kinds);
        match kind {
            0..=2 => {
                let n = draw.int(2, 60);
                ask(draw, work, GAIN, n, 0);
                have = work.step(&format!("{} has", a.name), (have, '+', n), items);
            }
            3 | 4 => {
                let n = draw.int(2, (have - 2).min(60));
                ask(draw, work, LOSS, n, 0);
                have = work.step("Then", (have, '-', n), "are left");
            }
            5 if !last_half && have % 2 == 0 => {
                ask(draw, work, HALF, 0, 0);
                have = work.step("Then", (have, '/', 2), "are left");
            }
            6 => {
                let (k, n) = (draw.int(2, 9), draw.int(2, 12));
                ask(draw, work, GAIN_BOXES, n, k);
                let more = product(work, k, n);
                have = work.step(&format!("{} has", a.name), (have, '+', more), items);
            }
            7 => {
                let (k, n) = (draw.int(2, 7), draw.int(2, 12));
                ask(draw, work, GAIN_DAYS, n, k);
                let more = product(work, k, n);
                have = work.step(&format!("{} has", a.name), (have, '+', more), items);
            }
            8 => {
                let (k, n) = (draw.int(2, 9), draw.int(2, 9));
                ask(draw, work, LOSS_EACH, n, k);
                let gone = product(work, k, n);
                have = work.step("Then", (have, '-', gone), "are left");
            }
            _ => continue,
        }
        last_half = kind == 5;
    }
    if divides {
        let divisors: Vec<i64> = (2..=12).filter(|k| have % k == 0).collect();
        let k = if divisors.is_empty() { 7 } else { draw.pick(&divisors) };
        if draw.chance(50) {
            ask(draw, work, SHARE, 0, k);
            work.step("Each gets", (have, '/', k), items);
        } else {
            ask(draw, work, PACK, 0, k);
            work.step("That fills", (have, '/', k), boxes);
        }
    } else {
        ask(draw, work, HOW_MANY, 0, 0);
    }
}

/// The phrases before the slots are filled, of stories with two events.
pub(super) fn num_templates() -> u64 {
    let sum = |phrases: &[&str]| phrases.iter().map(|phrase| variants(phrase)).sum::<u64>();
    let events = sum(&[GAIN, LOSS, HALF, GAIN_BOXES, GAIN_DAYS, LOSS_EACH]);
    let ends = events * variants(HOW_MANY) + sum(&[SHARE, PACK]);
    sum(&[START, START_BOXES]) * events * ends
}
