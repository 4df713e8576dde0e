//! Questions about a table into SQL queries.

use super::{
    Draft, Wrong,
    draw::{Draw, variants},
    sql_tables::{Column, Kind, TABLES, Table},
};

/// The table and the question.
const FRAMES: &str = "[Table {table}({columns}). {question}|Table: {table}({columns}). {question}|\
    The table {table} has the columns {columns}. {question}|Given the table {table}({columns}): {question}|\
    {table}({columns}): {question}|SQL for {table}({columns}): {question}|{question} Table {table}({columns}).|\
    {question} Table: {table}({columns}).|{question} The table is {table}({columns}).|\
    Write SQL for the table {table}({columns}). {question}|Use {table}({columns}). {question}]";

/// Rows with chosen columns.
const LIST: &str = "[[[Show|Give|Get|Find][| me]|List|Select|Return|Print] the {what} of [|all |the ]{table}{where}.|\
    [Show|List|Give|Get|Find] the {what} for [all|the] {table}{where}.|What {are} the {what} of [all|\
    the] {table}{where}?|\
    [I want|I need] the {what} of [|all |the ]{table}{where}.]";
const STAR: &str = "[[Show|List|Find|Get|Give me|Select|Return|Print] all {table}{where}.|\
    [[Show|Give|Get][| me]|Return] [all columns|every column|everything] of the {table}{where}.|\
    Which {table} are there{where}?|[I want|I need] all {table}{where}.|\
    [Show|Give][| me] the full rows of the {table}{where}.]";
const COUNT: &str = "[How many {table} are there{where}?|Count [the|all] {table}{where}.|\
    [What is|Find|Give me|Show|I need] the number of {table}{where}[?|.]|How many {table} [do we have|exist]{where}?]";
const AGGREGATE: &str = "[[What {is}|Find|Give me|Show|Get|Compute|I need|Return] the {fold} {column} of [|all |\
    the ]{table}{where}.|\
    [Find|Show|Get|Compute] the {fold} {column} for [all|the] {table}{where}.]";
const SORTED: &str = "[[[Show|Give|Get][| me]|List|Return|Print] the {what} of [|all |the ]{table}{where}, {sorted}.|\
    [Sort|Order] the {table}{where} by {column}{direction} and [show|list|give] the {what}.]";
const TOP: &str = "[[[Show|Give|Get|Find][| me]|\
    List] the {what} of the {n} {table}{where} with the {extreme} {column}.|\
    Which {n} {table}{where} have the {extreme} {column}? [Show|Give|List] the {what}.|\
    [Find|Take|Get] the {n} {table}{where} with the {extreme} {column} and [show|list|give] the {what}.]";
const FIRST: &str = "[[[Show|Give|Get][| me]|List|Print] the {what} of [|the first |only ]{n} {table}{where}.|\
    [Show|List|Give] the {what} of the {table}{where}, [only {n}|{n} rows only|at most {n} rows|limit {n}].]";
const COUNT_BY: &str = "[How many {table} are there [for each|per|by] {group}?|Count the {table} [for each|per|\
    by] {group}.|\
    [Show|Find|Give me|Get] the number of {table} [for each|per|by] {group}.]";
const AGGREGATE_BY: &str = "[What {is} the {fold} {column} of the {table} [for each|per|by] {group}?|\
    [Show|Find|Give me|Get|Compute] the {fold} {column} [of the {table} |][for each|per|by] {group}.]";

/// What a phrase for a sum of many rows means.
const FOLDS: &[(&str, &str)] = &[
    ("MAX", "[highest|largest|maximum|top]"),
    ("MIN", "[lowest|smallest|minimum]"),
    ("AVG", "[average|mean]"),
    ("SUM", "[total|overall]"),
];

const ASCENDING: &str = "[sorted by {column}|ordered by {column}|sorted by {column} from low to high|\
    ordered by {column} ascending|by {column}, lowest first|in the order of {column}]";
const DESCENDING: &str = "[sorted by {column} from high to low|ordered by {column} from high to low|\
    sorted by {column} descending|ordered by {column} descending|by {column}, highest first]";
const UP: &str = "[| from low to high| ascending]";
const DOWN: &str = "[ from high to low| descending]";
const MOST: &str = "[highest|largest|top]";
const LEAST: &str = "[lowest|smallest]";

/// Conditions after a noun, as in `with pay over 500` and `where pay is over 500`.
const WITH: &str = "[ with| that have| having]";
const WHERE: &str = "[ where| for which]";
const COMPARISONS: &[(&str, &str)] = &[
    (">", "[over|above|more than|greater than|larger than|higher than]"),
    ("<", "[under|below|less than|smaller than|lower than]"),
    (">=", "[at least|not under|not below]"),
    ("<=", "[at most|not over|not above]"),
    ("=", "[equal to|exactly]"),
];

/// The phrases before the slots are filled, with at most one condition.
pub(super) fn num_templates() -> u64 {
    let comparisons: u64 = COMPARISONS.iter().map(|comparison| variants(comparison.1)).sum();
    let conditions = (variants(WITH) + variants(WHERE)) * (comparisons + 1) + 1;
    let folds: u64 = FOLDS.iter().map(|fold| variants(fold.1)).sum();
    let sorted = variants(ASCENDING) + variants(DESCENDING);
    let plain = variants(LIST) + variants(STAR) + variants(COUNT) + variants(AGGREGATE) * folds + variants(FIRST);
    let ordered = variants(SORTED) * sorted + variants(TOP) * (variants(MOST) + variants(LEAST));
    let grouped = variants(COUNT_BY) + variants(AGGREGATE_BY) * folds;
    variants(FRAMES) * ((plain + ordered) * conditions + grouped)
}

/// A table with the columns of one problem.
struct Scene {
    table: &'static Table,
    columns: Vec<Column>,
}

impl Scene {
    fn draw(draw: &mut Draw) -> Self {
        let table = &TABLES[draw.below(TABLES.len())];
        let count = draw.int(3, 5) as usize;
        let mut columns = draw.some(&table.columns[1..], count);
        let numbers = columns.iter().filter(|column| matches!(column.kind, Kind::Number { .. })).count();
        // Every question finds a number and a word.
        if numbers == 0 || numbers == columns.len() {
            columns = table.columns[1..].to_vec();
        }
        columns.insert(0, table.columns[0]);
        Self { table, columns }
    }

    fn pick(&self, draw: &mut Draw, number: bool) -> Column {
        let fits = |column: &&Column| match column.kind {
            Kind::Number { .. } => number,
            Kind::Word(_) => !number,
            Kind::Label => false,
        };
        let columns: Vec<Column> = self.columns.iter().filter(fits).copied().collect();
        draw.pick(&columns)
    }

    /// One or two columns, as in a sentence and as in a query.
    fn what(&self, draw: &mut Draw) -> (String, String) {
        let count = if draw.chance(55) { 1 } else { 2 };
        let first = if draw.chance(50) { vec![self.columns[0]] } else { draw.some(&self.columns, 1) };
        let rest: Vec<Column> = self.columns.iter().filter(|column| column.name != first[0].name).copied().collect();
        let names: Vec<&str> =
            first.iter().copied().chain(draw.some(&rest, count - 1)).map(|column| column.name).collect();
        (names.join(" and "), names.join(", "))
    }

    /// No, one or two conditions, each with a space before.
    fn conditions(&self, draw: &mut Draw, most: i64) -> (String, String) {
        let count = if most > 0 && draw.chance(75) { draw.int(1, most) } else { 0 };
        if count == 0 {
            return (String::new(), String::new());
        }
        let clause = draw.chance(45);
        let columns = draw.shuffled(&self.columns);
        let conditions = columns.into_iter().filter_map(|column| condition(draw, column, clause));
        let (texts, queries): (Vec<String>, Vec<String>) = conditions.take(count as usize).unzip();
        let (word, key) = if draw.chance(30) { (" or ", " OR ") } else { (" and ", " AND ") };
        let before = draw.choose(if clause { WHERE } else { WITH });
        let query = format!(" WHERE {}", queries.join(key));
        // As in `in Oslo with pay over 500`.
        let city = texts[0].strip_prefix("city ").filter(|_| !clause && word == " and " && draw.chance(60));
        let text = match (city, texts.get(1)) {
            (Some(city), Some(second)) => format!(" in {city}{before} {second}"),
            (Some(city), None) => format!(" in {city}"),
            _ => format!("{before} {}", texts.join(word)),
        };
        (text, query)
    }
}

/// `are` after one or more plural nouns, and `is` after another.
fn verb(columns: &str) -> &'static str {
    if columns.ends_with('s') || columns.contains(" and ") { "are" } else { "is" }
}

/// One condition in words and in SQL; none on a label.
fn condition(draw: &mut Draw, column: Column, clause: bool) -> Option<(String, String)> {
    let name = column.name;
    let is = if clause { format!(" {}", verb(name)) } else { String::new() };
    match column.kind {
        Kind::Number { base, step, count } => {
            let value = base + step * draw.int(1, count);
            let (sign, words) = draw.pick(COMPARISONS);
            let words = draw.choose(words);
            Some((format!("{name}{is} {words} {value}"), format!("{name} {sign} {value}")))
        }
        Kind::Word(list) => {
            let value = draw.pick(list);
            Some((format!("{name}{is} {value}"), format!("{name} = '{value}'")))
        }
        Kind::Label => None,
    }
}

/// A question about one of the tables.
pub(super) fn draft(draw: &mut Draw) -> Draft {
    let scene = Scene::draw(draw);
    let table = scene.table.name;
    let form = draw.below(20);
    let (where_text, where_query) = scene.conditions(draw, if form < 12 { 2 } else { 1 });
    let (what, select) = scene.what(draw);
    let column = scene.pick(draw, true).name;
    let group = scene.pick(draw, false).name;
    let n = draw.int(2, 9).to_string();
    let (fold, fold_words) = draw.pick(FOLDS);
    let fold_words = draw.choose(fold_words);
    let descending = draw.chance(50);
    let order = if descending { format!("{column} DESC") } else { column.to_owned() };
    let slot = [("column", column)];
    let sorted = draw.say(if descending { DESCENDING } else { ASCENDING }, &slot);
    let direction = draw.choose(if descending { DOWN } else { UP });
    let extreme = match verb(column) {
        "are" if descending => "most".to_owned(),
        "are" => "fewest".to_owned(),
        _ => draw.choose(if descending { MOST } else { LEAST }),
    };

    let (phrase, answer) = match form {
        0..5 => (LIST, format!("SELECT {select} FROM {table}{where_query};")),
        5..7 => (STAR, format!("SELECT * FROM {table}{where_query};")),
        7..9 => (COUNT, format!("SELECT COUNT(*) FROM {table}{where_query};")),
        9..12 => (AGGREGATE, format!("SELECT {fold}({column}) FROM {table}{where_query};")),
        12..14 => (SORTED, format!("SELECT {select} FROM {table}{where_query} ORDER BY {order};")),
        14..16 => (TOP, format!("SELECT {select} FROM {table}{where_query} ORDER BY {order} LIMIT {n};")),
        16..17 => (FIRST, format!("SELECT {select} FROM {table}{where_query} LIMIT {n};")),
        17..18 => (COUNT_BY, format!("SELECT {group}, COUNT(*) FROM {table} GROUP BY {group};")),
        _ => (AGGREGATE_BY, format!("SELECT {group}, {fold}({column}) FROM {table} GROUP BY {group};")),
    };
    let question = draw.say(
        phrase,
        &[
            ("table", table),
            ("where", &where_text),
            ("what", &what),
            ("is", verb(column)),
            ("are", verb(&what)),
            ("column", column),
            ("group", group),
            ("n", &n),
            ("fold", &fold_words),
            ("sorted", &sorted),
            ("direction", &direction),
            ("extreme", &extreme),
        ],
    );
    let columns: Vec<&str> = scene.columns.iter().map(|column| column.name).collect();
    let columns = columns.join(", ");
    let question = draw.say(FRAMES, &[("table", table), ("columns", &columns), ("question", &question)]);
    Draft { question, key: answer.clone(), answer }
}

const KEYWORDS: &[&str] = &[
    "SELECT", "FROM", "WHERE", "AND", "OR", "ORDER", "GROUP", "BY", "DESC", "LIMIT", "COUNT", "MAX", "MIN", "AVG",
    "SUM",
];

/// Accepts the query of the answer, whatever the white space, the case of keywords and the last semicolon.
pub(super) fn check(answer: &str, output: &str) -> Result<(), Wrong> {
    if normal(answer) == normal(output) { Ok(()) } else { Err(Wrong::text(answer, output)) }
}

/// The pieces of a query: words, numbers, quoted texts and signs.
fn normal(query: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = query.trim();
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let len = if first == '\'' {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else if word(first) {
            rest.find(|c| !word(c)).unwrap_or(rest.len())
        } else if rest.starts_with(">=") || rest.starts_with("<=") {
            2
        } else {
            first.len_utf8()
        };
        let piece = &rest[..len];
        if KEYWORDS.contains(&piece.to_uppercase().as_str()) {
            pieces.push(piece.to_uppercase());
        } else if !first.is_whitespace() {
            pieces.push(piece.to_owned());
        }
        rest = &rest[len..];
    }
    pieces.pop_if(|piece| piece == ";");
    pieces
}
