//! The scenes of word problems.

use super::{
    draw::{Draw, variants},
    math::Work,
    math_story::{self, story},
    words::{GOODS, ITEMS, PEOPLE, Person},
};

/// Adds sentences and steps of one problem.
pub(super) type Family = fn(&mut Draw, &mut Work);

/// All scenes; stories are drawn more often.
pub(super) const FAMILIES: &[Family] =
    &[story, story, story, story, compare, compare, ages, prices, wages, pages, seats, bus];

/// Two people of whom one is a she and one a he, so that a pronoun has one meaning.
pub(super) fn two_people(draw: &mut Draw) -> (Person, Person) {
    let first = draw.pick(PEOPLE);
    let others: Vec<Person> = PEOPLE.iter().filter(|person| person.she != first.she).copied().collect();
    (first, draw.pick(&others))
}

const COMPARE_FIRST: &str =
    "[{A} has {n} {items}.|{A} [owns|collects] {n} {items}.|There are {n} {items} in the [box|bag|basket] of {A}.]";
const COMPARE_MORE: &str = "{B} has {n} [more|more {items}] than {A}.";
const COMPARE_LESS: &str = "{B} has {n} [fewer|fewer {items}] than {A}.";
const COMPARE_TIMES: &str = "{B} has {times} as many[| {items}] as {A}.";
const COMPARE_HALF: &str = "{B} has half as many[| {items}] as {A}.";
const COMPARE_ALL: &str = "How many[| {items}] do they have [together|altogether|in total|in all]?";
const COMPARE_LAST: &str = "How many {items} does {B} have?";
const COMPARE_GAP: &str = "How many more {items} does {A} have than {B}?";

const AGE_FIRST: &str = "[{A} is {n} years old.|{A} is {n}.|The age of {A} is {n}.|Today {A} is {n} years old.]";
const AGE_MORE: &str = "[{B} is {n} years older than {A}.|{A} is {n} years younger than {B}.]";
const AGE_LESS: &str = "[{B} is {n} years younger than {A}.|{A} is {n} years older than {B}.]";
const AGE_TIMES: &str = "{B} is {times} as old as {A}.";
const AGE_HALF: &str = "{B} is half as old as {A}.";
const AGE_LAST: &str = "[How old is {B}?|What is the age of {B}?|How many years old is {B}?]";
const AGE_LATER: &str =
    "[How old will {B} be in {n} years?|What will be the age of {B} in {n} years?|In {n} years, how old will {B} be?]";

fn times(k: i64) -> String {
    if k == 2 { "twice".into() } else { format!("{k} times") }
}

/// The phrases that relate a person's number to the one before.
struct Relations {
    more: &'static str,
    less: &'static str,
    times: &'static str,
    half: &'static str,
}

/// Tells and works out `b` from `a`, who has `value`.
fn relate(
    draw: &mut Draw,
    work: &mut Work,
    relations: &Relations,
    people: (&str, &str, &str),
    verb: (&str, &str),
    value: i64,
) -> i64 {
    let (a, b, items) = people;
    let kind = draw.below(if value % 2 == 0 { 7 } else { 6 });
    let (phrase, equation) = match kind {
        0..=1 => (relations.more, (value, '+', draw.int(2, 40))),
        2..=3 => (relations.less, (value, '-', draw.int(2, (value - 2).min(40)))),
        4..=5 => (relations.times, (value, '*', draw.int(2, 5))),
        _ => (relations.half, (value, '/', 2)),
    };
    let n = equation.2.to_string();
    let slots = [("A", a), ("B", b), ("n", n.as_str()), ("items", items), ("times", &times(equation.2))];
    work.ask(draw.say(phrase, &slots));
    work.step(&format!("{b} {}", verb.0), equation, verb.1)
}

/// Who has more.
fn compare(draw: &mut Draw, work: &mut Work) {
    let relations = Relations { more: COMPARE_MORE, less: COMPARE_LESS, times: COMPARE_TIMES, half: COMPARE_HALF };
    let people = draw.some(PEOPLE, 3);
    let [a, b, c] = [people[0].name, people[1].name, people[2].name];
    let items = draw.pick(ITEMS).0;
    let first = draw.int(4, 60);
    work.ask(draw.say(COMPARE_FIRST, &[("A", a), ("items", items), ("n", &first.to_string())]));
    let second = relate(draw, work, &relations, (a, b, items), ("has", items), first);
    if draw.chance(50) {
        if draw.chance(25) && first > second {
            work.ask(draw.say(COMPARE_GAP, &[("A", a), ("B", b), ("items", items)]));
            work.step("The difference is", (first, '-', second), "");
        } else {
            work.ask(draw.say(COMPARE_ALL, &[("items", items)]));
            work.step("Together they have", (first, '+', second), items);
        }
        return;
    }
    let third = relate(draw, work, &relations, (b, c, items), ("has", items), second);
    if draw.chance(50) {
        work.ask(draw.say(COMPARE_LAST, &[("B", c), ("items", items)]));
    } else {
        work.ask(draw.say(COMPARE_ALL, &[("items", items)]));
        let two = work.step("Two of them have", (first, '+', second), items);
        work.step("Together they have", (two, '+', third), items);
    }
}

/// Who is older.
fn ages(draw: &mut Draw, work: &mut Work) {
    let relations = Relations { more: AGE_MORE, less: AGE_LESS, times: AGE_TIMES, half: AGE_HALF };
    let people = draw.some(PEOPLE, 3);
    let [a, b, c] = [people[0].name, people[1].name, people[2].name];
    let first = draw.int(5, 40);
    work.ask(draw.say(AGE_FIRST, &[("A", a), ("n", &first.to_string())]));
    let mut age = relate(draw, work, &relations, (a, b, ""), ("is", "years old"), first);
    let mut last = b;
    let mut oldest = age;
    if draw.chance(50) {
        age = relate(draw, work, &relations, (b, c, ""), ("is", "years old"), age);
        last = c;
        oldest = oldest.max(age);
    }
    if work.steps() == 2 && draw.chance(50) {
        work.ask(draw.say(AGE_LAST, &[("B", last)]));
    } else {
        let years = draw.int(2, 20);
        work.ask(draw.say(AGE_LATER, &[("B", last), ("n", &years.to_string())]));
        age = work.step(&format!("In {years} years {last} is"), (age, '+', years), "years old");
    }
    if oldest.max(age) > 99 {
        work.spoil();
    }
}

const PRICE_ONE: &str = "{A} buys {m} {goods} for {p} dollars each.";
const PRICE_TWO: &str = "[{Goods} cost {p} dollars each and {goods2} cost {q} dollars each. \
    {A} buys {m} {goods} and {n} {goods2}.|\
    {A} buys {m} {goods} for {p} dollars each and {n} {goods2} for {q} dollars each.|\
    [In a shop|At the store|At the market], {A} [buys|takes|\
    gets] {m} {goods} for {p} dollars each and {n} {goods2} for {q} dollars each.]";
const PRICE_CHANGE: &str = "{She} [pays with|gives the seller] {t} dollars. [How much change does {she} get?|\
    How many dollars does {she} get back?|How much money does {she} get back?|What is the change?]";
const PRICE_LEFT: &str =
    "{She} had {t} dollars [before|at first]. How [many dollars does|much money does] [{she}|{A}] have [left|now]?";
const PRICE_SUM: &str = "How [much does {she}|many dollars does {she}|much does {A}|much money does {she}] [pay|\
    spend][| in total| in all]?";

/// Shopping.
fn prices(draw: &mut Draw, work: &mut Work) {
    let a = draw.pick(PEOPLE);
    let goods = draw.some(GOODS, 2);
    let (m, p, n, q) = (draw.int(2, 9), draw.int(2, 12), draw.int(2, 9), draw.int(2, 12));
    let two = draw.chance(60);
    let numbers = [m, p, n, q].map(|number| number.to_string());
    let upper = super::draw::capital(goods[0]);
    let slots = [
        ("A", a.name),
        ("goods", goods[0]),
        ("goods2", goods[1]),
        ("Goods", &upper),
        ("m", &numbers[0]),
        ("p", &numbers[1]),
        ("n", &numbers[2]),
        ("q", &numbers[3]),
        ("she", a.subject()),
    ];
    work.ask(draw.say(if two { PRICE_TWO } else { PRICE_ONE }, &slots));
    let mut sum = work.step(&format!("The {} cost", goods[0]), (m, '*', p), "dollars");
    if two {
        let second = work.step(&format!("The {} cost", goods[1]), (n, '*', q), "dollars");
        sum = work.step("Together that is", (sum, '+', second), "dollars");
        if draw.chance(50) {
            work.ask(draw.say(PRICE_SUM, &slots));
            return;
        }
    }
    let round = (sum + 2).div_euclid(10) * 10 + 10;
    let paid = if draw.chance(50) { round } else { sum + draw.int(2, 40) };
    let change = draw.chance(60);
    let paid_text = paid.to_string();
    let slots = [("A", a.name), ("She", a.capital_subject()), ("she", a.subject()), ("t", paid_text.as_str())];
    work.ask(draw.say(if change { PRICE_CHANGE } else { PRICE_LEFT }, &slots));
    work.step(if change { "The change is" } else { "Then there are" }, (paid, '-', sum), "dollars");
}

const WAGE: &str = "{A} [earns|makes|gets] {w} dollars [an hour|per hour|for every hour|\
    for each hour]. {She} works {h} hours [a day|every day|each day|per day] \
    for {d} days.";
const WAGE_SPENT: &str = "[Then {she} spends {s} dollars|{She} spends {s} dollars of it|\
    After that {she} pays {s} dollars|{She} gives {s} dollars to {B}]. \
    How [much money|many dollars] does [{she}|{A}] have left?";
const WAGE_SUM: &str = "How [much money|many dollars] does [{she}|{A}] [earn|make|get][| in total| in all]?";

/// Work and pay.
fn wages(draw: &mut Draw, work: &mut Work) {
    let (a, b) = two_people(draw);
    let (w, h, d) = (draw.int(2, 12), draw.int(2, 8), draw.int(2, 7));
    let (ws, hs, ds) = (w.to_string(), h.to_string(), d.to_string());
    let people = [("A", a.name), ("B", b.name), ("She", a.capital_subject()), ("she", a.subject())];
    work.ask(draw.say(WAGE, &[&people[..], &[("w", &ws), ("h", &hs), ("d", &ds)]].concat()));
    let hours = work.step(&format!("{} works", a.name), (d, '*', h), "hours");
    let pay = work.step("That pays", (hours, '*', w), "dollars");
    if draw.chance(50) {
        work.ask(draw.say(WAGE_SUM, &people));
    } else {
        let spent = draw.int(2, (pay - 2).min(60));
        work.ask(draw.say(WAGE_SPENT, &[&people[..], &[("s", &spent.to_string())]].concat()));
        work.step("Then", (pay, '-', spent), "are left");
    }
}

const PAGES: &str = "[A book has {t} pages. {A} reads|{A} has a book of {t} pages and reads|\
    There are {t} pages in a book. {A} reads] \
    {n} pages [a day|every day|each day|per day] for {k} days.";
const PAGES_MORE: &str = "[Then|After that|On the next day|Later] {she} reads {m} [more|more pages].";
const PAGES_LEFT: &str = "How many pages are [left|left to read|left in the book]?";

/// Reading a book.
fn pages(draw: &mut Draw, work: &mut Work) {
    let a = draw.pick(PEOPLE);
    let (n, k, m) = (draw.int(4, 30), draw.int(2, 9), draw.int(2, 40));
    let more = draw.chance(50);
    let read = n * k + if more { m } else { 0 };
    let total = if draw.chance(50) { read + draw.int(2, 60) } else { (read + 2).div_euclid(10) * 10 + 10 };
    let numbers = [total, n, k, m].map(|number| number.to_string());
    let slots = [
        ("A", a.name),
        ("she", a.subject()),
        ("t", numbers[0].as_str()),
        ("n", &numbers[1]),
        ("k", &numbers[2]),
        ("m", &numbers[3]),
    ];
    work.ask(draw.say(PAGES, &slots));
    let mut done = work.step("That is", (k, '*', n), "pages");
    if more {
        work.ask(draw.say(PAGES_MORE, &slots));
        done = work.step(&format!("{} reads", a.name), (done, '+', m), "pages");
    }
    work.ask(draw.say(PAGES_LEFT, &slots));
    work.step("Then", (total, '-', done), "are left");
}

const SEATS: &str = "[A|The|This] {hall} has {k} [rows with|rows of] {n} [seats each|seats].";
const SEATS_TAKEN: &str =
    "[{t} seats are [taken|broken|used].|{t} people sit [down|there].|{t} of them are [taken|broken|used].]";
const SEATS_LATER: &str = "[Then|Later|After that] {m} people [sit down|come and sit down|take seats].";
const SEATS_FREE: &str = "How many seats are [free|free now|still free|left]?";

/// Rows of seats.
fn seats(draw: &mut Draw, work: &mut Work) {
    let (k, n) = (draw.int(2, 12), draw.int(2, 12));
    let taken = draw.int(2, (k * n - 4).min(60));
    let later = draw.int(2, (k * n - taken - 2).min(40));
    let numbers = [k, n, taken, later].map(|number| number.to_string());
    let hall = draw.pick(&["hall", "room", "bus", "train"]);
    let slots =
        [("hall", hall), ("k", numbers[0].as_str()), ("n", &numbers[1]), ("t", &numbers[2]), ("m", &numbers[3])];
    work.ask(draw.say(SEATS, &slots));
    work.ask(draw.say(SEATS_TAKEN, &slots));
    let all = work.step("That is", (k, '*', n), "seats");
    let free = work.step("Then", (all, '-', taken), "are free");
    if draw.chance(50) {
        work.ask(draw.say(SEATS_LATER, &slots));
        work.step("Then", (free, '-', later), "are free");
    }
    work.ask(draw.say(SEATS_FREE, &slots));
}

const BUS: &str =
    "[A {bus} [starts|leaves] with {n} people.|There are {n} people [on|in] a {bus}.|{n} people are [on|in] a {bus}.]";
const BUS_OFF: &str = "{At} {n} [get off|leave|people get off|people leave].";
const BUS_ON: &str = "{At} {n} [get on|people get on|more get on|more people get on].";
const BUS_AT: &[&str] = &[
    "[At the first stop|First|In {city}|Then]",
    "[At the next stop|At the second stop|Then|Later]",
    "[At the next stop|At the third stop|Then|After that]",
    "[At the next stop|At the last stop|Then|In the end]",
];
const BUS_NOW: &str = "How many people are [there now|there in the end|in the {bus} now|on the {bus} now]?";

/// People get on and off.
fn bus(draw: &mut Draw, work: &mut Work) {
    let bus = draw.pick(&["bus", "train", "boat"]);
    let city = draw.pick(super::words::CITIES);
    let mut people = draw.int(8, 60);
    work.ask(draw.say(BUS, &[("bus", bus), ("n", &people.to_string())]));
    let stops = draw.int(2, 4) as usize;
    for place in BUS_AT.iter().take(stops) {
        let off = draw.chance(50);
        let n = if off { draw.int(2, (people - 2).min(40)) } else { draw.int(2, 40) };
        let place = draw.say(place, &[("city", city)]);
        work.ask(draw.say(if off { BUS_OFF } else { BUS_ON }, &[("At", &place), ("n", &n.to_string())]));
        people = if off {
            work.step("Then", (people, '-', n), "are left")
        } else {
            work.step("Then there are", (people, '+', n), "people")
        };
    }
    work.ask(draw.say(BUS_NOW, &[("bus", bus)]));
}

/// The phrases before the slots are filled.
pub(super) fn num_templates() -> u64 {
    let sum = |phrases: &[&str]| phrases.iter().map(|phrase| variants(phrase)).sum::<u64>();
    let product = |phrases: &[&str]| phrases.iter().map(|phrase| variants(phrase)).product::<u64>();
    let relations = sum(&[COMPARE_MORE, COMPARE_LESS, COMPARE_TIMES, COMPARE_HALF]);
    let compares = variants(COMPARE_FIRST)
        * relations
        * (sum(&[COMPARE_ALL, COMPARE_GAP]) + relations * sum(&[COMPARE_LAST, COMPARE_ALL]));
    let relations = sum(&[AGE_MORE, AGE_LESS, AGE_TIMES, AGE_HALF]);
    let ages = variants(AGE_FIRST) * relations * (variants(AGE_LATER) + relations * sum(&[AGE_LAST, AGE_LATER]));
    let prices = sum(&[PRICE_ONE, PRICE_TWO]) * sum(&[PRICE_CHANGE, PRICE_LEFT]) + product(&[PRICE_TWO, PRICE_SUM]);
    let wages = variants(WAGE) * sum(&[WAGE_SPENT, WAGE_SUM]);
    let pages = variants(PAGES) * (1 + variants(PAGES_MORE)) * variants(PAGES_LEFT);
    let seats = product(&[SEATS, SEATS_TAKEN, SEATS_FREE]) * (1 + variants(SEATS_LATER));
    let buses = variants(BUS) * product(&BUS_AT[..2]) * sum(&[BUS_OFF, BUS_ON]).pow(2) * variants(BUS_NOW);
    math_story::num_templates() + compares + ages + prices + wages + pages + seats + buses
}
