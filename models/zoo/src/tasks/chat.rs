//! Small talk and honest refusals. Every kind of turn has one reply.

use super::{
    Draft, Message, Role, Split, Task, Wrong,
    draw::{Draw, articles, capital, variants},
    words::{CITIES, GOODS, ITEMS, PEOPLE, PETS, SUBJECTS},
};

const CAN: &str = "I can solve short word problems, turn a sentence into JSON and write simple SQL queries.";

/// What the models say of themselves, by kind of turn.
const SOCIAL: &[(&str, &str, &str)] = &[
    (
        "greeting",
        "[Hi|Hello|Hey|Good morning|Good evening|Good afternoon|Good day|Hi there|Hello there|hi|hello|hey][|\
            , Leapfrog| Leapfrog]\
            [.|!||[.|!] [How are you|How are you today|How do you do|Are you there]?|[.|!] [Nice to meet you|\
            I am {name}].]",
        "Hello! How can I help you?",
    ),
    (
        "help",
        "[What can you do[| for me]|How can you help[| me]|Can you help me|What are you able to do|\
            What are you good at|Help|help|\
            Please help me|I need help|What can I ask you|What can I do here|How do I use you|What do you know|\
            Tell me what you can do|What do you do|Show me what you can do][?|.|]",
        CAN,
    ),
    (
        "example",
        "[[Give|Show] me an example|[Please give|Please show] me an example|Can you [give|show] me an example|\
            For example|\
            An example, please|I need an example|What is an example|Do you have an example|Let me see an example][?|.|\
            !|]",
        "Try this: Anna has 12 apples and buys 7 more. How many apples does she have?",
    ),
    (
        "who",
        "[Who are you|What are you|What is your name|Tell me who you are|Are you a [person|robot|human]|\
            Do you have a name|Who am I talking to|What is Leapfrog|Who is Leapfrog|Are you Leapfrog|Who made you|\
            Are you real]\
            [?|]",
        "I am Leapfrog, a small language model.",
    ),
    (
        "thanks",
        "[Thanks|Thank you|Many thanks|Great, thanks|Good, thank you|Thanks a lot|Thank you very much|thanks|\
            thank you|Perfect, thanks|\
            Well done|That is right|Very good|Great work|Good work|That helps][|, Leapfrog][.|!|]",
        "You are welcome!",
    ),
    (
        "bye",
        "[Bye|Goodbye|See you|See you later|Good night|Bye bye|Have a nice day|Talk to you later|I have to go|\
            That is all|\
            bye|goodbye|See you on Monday|Until next time][|, Leapfrog][.|!|]",
        "Goodbye! Have a nice day.",
    ),
];

/// Requests that are refused: what the refusal names, and how one asks; the slot is a topic.
const REFUSED: &[(&str, &str)] = &[
    (
        "write texts",
        "[[Write|Make|Give me|Write me|Make me] a [poem|story|song|text|letter|speech] about {topic}|Write a [short|\
            long|funny] [poem|story|song] about {topic}|\
            Can you write a [poem|story|song|text] about {topic}|I want a [poem|story|song] about {topic}|\
            Tell me a [story|joke] about {topic}][.|, please.|]",
    ),
    (
        "translate",
        "[[Translate|Please translate] {topic} into {language}|What is the word for {topic} in {language}|\
            How do you say {topic} in {language}|\
            Say {topic} in {language}|Can you translate {topic} into {language}|Put {topic} into {language}][.|?|]",
    ),
    (
        "look up facts",
        "[What is {topic}|Who invented {topic}|Tell me [something|more|a fact|all] about {topic}|\
            Explain {topic}[| to me]|Where does {topic} come from|\
            What do you know about {topic}|How does {topic} work|Why is there {topic}|What is the capital of {country}|\
            How many people live in {city}|Where is {city}|Who is the president of {country}|\
            When was {topic} invented|How old is {city}][?|.|]",
    ),
    (
        "give opinions",
        "[Do you like {topic}|What do you think [of|about] {topic}|Is {topic} good|Do you love {topic}|\
            Is {topic} better than {topic2}|\
            What is your opinion [of|about|on] {topic}|Which is better, {topic} or {topic2}|\
            Do you prefer {topic} or {topic2}][?|]",
    ),
    (
        "write code",
        "[[Write|Make|Give me|Show me] [a program|code|a script|a function] [about|for|with] {topic}|Write [Python|\
            Rust|Java] code for {topic}|\
            Can you write [code|a program] for {topic}|Fix my [code|program|script] for {topic}|\
            How do I code {topic}][.|?|]",
    ),
    (
        "give advice",
        "[[How can I|How do I|Can you help me to] learn {topic}|Should I [buy|sell|learn|try] {topic}|I feel [sick|\
            sad|tired|bad|lonely]|\
            My [head|back|leg|arm|tooth] hurts|What should I [do|say|read|eat] [today|on Monday|about {topic}|\
            in {city}]|\
            Is it healthy to eat {food}|Which {topic} should I choose|Give me advice about {topic}|\
            How much {food} should I eat][.|?|]",
    ),
    (
        "follow the news",
        "[What is the [news|weather|time|date] in {city}|What is new in {city}|What happened in {city} [today|\
            yesterday]|\
            What time is it[| in {city}]|What day is [it|today]|What is the weather [today|like in {city}]|\
            Who won the game in {city}|\
            What is the price of {topic} today|Is it [cold|warm|late] in {city}][?|.|]",
    ),
];

/// What one can make no sense of, or no use.
const OTHER: &str = "[I [like|love|want|need|see|have|hate] {topic}|My {pet} is [old|sick|called {name}|sad|hungry]|\
    {name} [likes|loves|has|sees] {topic}|\
    I [am in|live in|come from|love|am from] {city}|{topic} and {topic2}|The {pet} [likes|eats|sees] {food}|{topic}|\
    {city}|It is [cold|warm|late] in {city}|\
    I [bought|lost|found] {items} [today|yesterday]|Why|Why {topic}|And then|No|Yes|Maybe|OK|Is {name} [at home|here|\
    nice]|Where is {name}|\
    Call {name}|Send {items} to {name}|Play {topic}|Open the [door|book|box]|Sing[| about {topic}]|Count to [10|20|\
    100]|\
    Think about {topic}|The [door|book|box] is [old|open|new]][.|?|!|]";

const QUESTION_WORDS: &[&str] = &[
    "What", "Who", "Where", "When", "Why", "How", "Which", "Is", "Are", "Do", "Does", "Can", "Should", "And", "Maybe",
    "For",
];
const LANGUAGES: &[&str] = &["French", "German", "Spanish", "Latin"];
const COUNTRIES: &[&str] = &["France", "Spain", "Italy", "Japan", "Egypt", "Peru"];
const FOODS: &[&str] = &["bread", "rice", "cheese", "fish", "cake", "fruit"];
const TOPICS: &[&str] = &[
    "love",
    "winter",
    "summer",
    "the sea",
    "the moon",
    "the sun",
    "rain",
    "snow",
    "football",
    "chess",
    "tea",
    "coffee",
    "the future",
    "water",
    "fire",
    "life",
    "time",
    "work",
    "school",
    "war",
    "peace",
    "space",
    "gold",
    "paper",
];

const SYSTEMS: &[&str] = &[
    "You are a helpful assistant.",
    "You are Leapfrog.",
    "You are Leapfrog, a helpful assistant.",
    "Be short.",
    "Answer in a helpful way.",
    "You help people.",
];

/// The phrases before the slots are filled.
pub(super) fn num_templates() -> u64 {
    let social: u64 = SOCIAL.iter().map(|kind| variants(kind.1)).sum();
    let refused: u64 = REFUSED.iter().map(|kind| variants(kind.1)).sum();
    social + refused + variants(OTHER)
}

/// The last turn of a dialogue.
pub(super) fn draft(draw: &mut Draw) -> Draft {
    if draw.chance(45) { social(draw, SOCIAL) } else { refusal(draw) }
}

fn social(draw: &mut Draw, kinds: &[(&str, &str, &str)]) -> Draft {
    let (kind, phrase, reply) = draw.pick(kinds);
    let name = draw.pick(PEOPLE).name;
    let question = punctuated(draw.say(phrase, &[("name", name)]));
    Draft { key: format!("{kind} {}", plain(&question)), question, answer: reply.to_owned() }
}

fn refusal(draw: &mut Draw) -> Draft {
    let which = draw.below(REFUSED.len() + 2);
    let (action, phrase) = REFUSED.get(which).copied().unwrap_or(("help with that", OTHER));
    let topics = topics(draw);
    let slots = [
        ("topic", topics[0]),
        ("topic2", topics[1]),
        ("language", draw.pick(LANGUAGES)),
        ("country", draw.pick(COUNTRIES)),
        ("city", draw.pick(CITIES)),
        ("food", draw.pick(FOODS)),
        ("pet", draw.pick(PETS)),
        ("items", draw.pick(ITEMS).0),
        ("name", draw.pick(PEOPLE).name),
    ];
    let question = punctuated(capital(&articles(&draw.say(phrase, &slots))));
    Draft { key: format!("{action} {}", plain(&question)), question, answer: format!("Sorry, I can't {action}. {CAN}") }
}

fn topics(draw: &mut Draw) -> [&'static str; 2] {
    let lists = [TOPICS, TOPICS, SUBJECTS, GOODS];
    let list = draw.pick(&lists);
    let two = draw.some(list, 2);
    [two[0], two[1]]
}

/// The text, if it is one sentence, with the mark at its end that fits: `?` after a question, else `.` or `!`.
fn punctuated(mut text: String) -> String {
    let question = text.split([' ', ',', '.', '!', '?']).next().is_some_and(|word| QUESTION_WORDS.contains(&word));
    let marks = ['.', '!', '?'];
    if text.ends_with(marks) && text.matches(marks).count() == 1 && text.ends_with('?') != question {
        text.pop();
        text.push(if question { '?' } else { '.' });
    }
    text
}

/// Small letters without punctuation: what two ways of writing the same words share.
fn plain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    text.to_lowercase().trim().to_owned()
}

/// Messages before a problem of another task, in about one of eight: a system message, or small talk.
pub(super) fn before_problem(draw: &mut Draw) -> Vec<Message> {
    match draw.below(100) {
        0..5 => vec![system(draw)],
        5..12 => {
            let kinds: Vec<_> =
                SOCIAL.iter().filter(|kind| ["greeting", "help", "thanks"].contains(&kind.0)).copied().collect();
            turns(social(draw, &kinds))
        }
        _ => Vec::new(),
    }
}

/// Messages before the last turn of a chat: in about one of seven a system message, in about one of three a turn of any
/// task, whose problem is of the same split.
pub(super) fn before_chat(draw: &mut Draw, split: Split) -> Vec<Message> {
    let mut messages = Vec::new();
    if draw.chance(15) {
        messages.push(system(draw));
    }
    if draw.chance(35) {
        let task = draw.pick(&Task::ALL);
        messages.extend(turns(super::draft_in(task, split, draw)));
    }
    messages
}

fn system(draw: &mut Draw) -> Message {
    Message { role: Role::System, content: draw.pick(SYSTEMS).to_owned() }
}

fn turns(draft: Draft) -> Vec<Message> {
    vec![
        Message { role: Role::User, content: draft.question },
        Message { role: Role::Assistant, content: draft.answer },
    ]
}

/// Accepts the reply of the kind only.
pub(super) fn check(answer: &str, output: &str) -> Result<(), Wrong> {
    if output.trim() == answer { Ok(()) } else { Err(Wrong::text(answer, output)) }
}
